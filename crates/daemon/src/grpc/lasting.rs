//! Calls that last are made by callers who still may make them.
//!
//! A request or an answer in several messages asks again before each of them whether anything has
//! changed that decides who may call, and whether the client's certificate is still in its time. A
//! watch, which may have nothing to say for long, is woken by a change and by the end of that time.
//!
//! A watch also ends with its connection, in time to say so.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use evidenceos_access::{Callers, Peer, PeerCertificate, Principal};
use evidenceos_driver::clock::unix_ms;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep},
};
use tokio_stream::{Stream as _, wrappers::WatchStream};
use tonic::{Status, body::Body, metadata::MetadataValue};

use super::{rules::Needs, status};

/// The right by which a call goes on.
#[derive(Clone)]
pub struct Standing {
    callers: Arc<Callers>,
    principal: Principal,
    needs: Needs,
    peer: Option<Peer>,
    /// The end of the client certificate's time, in Unix seconds.
    not_after_unix: u64,
    changes: watch::Receiver<u64>,
}

impl Standing {
    /// Of a call that was let in. `changes` were asked for before it was. `lasts`: it may outlive
    /// the certificate, whose time is read again for that.
    pub fn new(
        callers: &Arc<Callers>,
        principal: &Principal,
        needs: Needs,
        peer: Option<&Peer>,
        changes: watch::Receiver<u64>,
        lasts: bool,
    ) -> Self {
        let certificate = peer.filter(|_| lasts).and_then(Peer::certificate);
        let not_after_unix = certificate
            .and_then(|der| PeerCertificate::read(der).ok())
            .map_or(u64::MAX, |certificate| certificate.not_after_unix);
        Self {
            callers: Arc::clone(callers),
            principal: principal.clone(),
            needs,
            peer: peer.cloned(),
            not_after_unix,
            changes,
        }
    }

    /// Whether the call may go on.
    fn check(&mut self) -> Result<(), Status> {
        // A sender that is gone belongs to a daemon that ends: nothing changes any more.
        let has_changed = self.changes.has_changed().unwrap_or(false);
        if !has_changed && unix_ms() / 1_000 <= self.not_after_unix {
            return Ok(());
        }
        // The change is marked before the roles are read, so that one that comes in between is
        // looked at again.
        self.changes.mark_unchanged();
        let roles = self
            .callers
            .roles_now(&self.principal, self.peer.as_ref())
            .map_err(|denied| status::unauthenticated(&denied.to_string()))?;
        // The handler may have looked at any role that there was when the call began.
        if !self.needs.met_by(roles) || roles.union(self.principal.roles) != roles {
            return Err(status::role_required(self.needs.word()));
        }
        Ok(())
    }
}

/// Where the messages of a body go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Server,
    Client,
}

/// A body of a call that goes on as long as its caller may make it.
struct Lasting {
    body: Body,
    standing: Standing,
    to: To,
    /// Of a body that may be silent for long.
    wake: Option<Wake>,
    ended: bool,
}

/// Tells when to look at the caller again while there is nothing else to tell.
struct Wake {
    changes: Option<WatchStream<u64>>,
    /// The end of the certificate's time, if there is one.
    expiry: Option<Pin<Box<Sleep>>>,
}

impl Wake {
    fn new(standing: &Standing) -> Self {
        // The certificate holds through its last second.
        let now_unix = unix_ms() / 1_000;
        let left_s = standing
            .not_after_unix
            .saturating_sub(now_unix)
            .saturating_add(1);
        let expires = standing.not_after_unix != u64::MAX;
        Self {
            changes: Some(WatchStream::from_changes(standing.changes.clone())),
            expiry: expires.then(|| Box::pin(sleep(Duration::from_secs(left_s)))),
        }
    }

    /// Ready if the caller is to be looked at. Otherwise the task is woken once it is.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(changes) = &mut self.changes {
            match Pin::new(changes).poll_next(cx) {
                Poll::Ready(Some(_)) => return Poll::Ready(()),
                Poll::Ready(None) => self.changes = None,
                Poll::Pending => {}
            }
        }
        if let Some(expiry) = &mut self.expiry
            && expiry.as_mut().poll(cx).is_ready()
        {
            // The clocks of timers and of certificates are not the same.
            expiry
                .as_mut()
                .reset(Instant::now() + Duration::from_secs(1));
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// A request that breaks off when its caller may not make it any more.
pub fn request(body: Body, standing: Standing) -> Body {
    Body::new(Lasting {
        body,
        standing,
        to: To::Server,
        wake: None,
        ended: false,
    })
}

/// An answer that ends when its caller may not have it any more. `waits`: it may be silent for long.
pub fn answer(body: Body, standing: Standing, waits: bool) -> Body {
    let wake = waits.then(|| Wake::new(&standing));
    Body::new(Lasting {
        body,
        standing,
        to: To::Client,
        wake,
        ended: false,
    })
}

/// A watch that ends when its connection is to end soon: what is said after that could be lost.
struct Retiring {
    body: Body,
    retires: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

/// The answer of a watch, over the connection of a peer.
pub fn watch(body: Body, peer: Peer) -> Body {
    Body::new(Retiring {
        body,
        retires: Box::pin(async move { peer.retires().await }),
        ended: false,
    })
}

/// The end of an answer that has begun.
fn last_words(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

impl HttpBody for Retiring {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if this.retires.as_mut().poll(cx).is_ready() {
            this.ended = true;
            return Poll::Ready(Some(last_words(&status::unavailable(
                "the server ends this watch: its connection has reached its age, or the server stops; connect again",
            ))));
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Lasting {
    /// How the body ends for a caller who may not go on.
    fn end(&mut self, mut status: Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.ended = true;
        if self.to == To::Server {
            return Some(Err(status));
        }
        // What the call asked for may have been done before its answer broke off.
        let unknown = MetadataValue::from_static("unknown");
        status
            .metadata_mut()
            .insert("x-evidenceos-outcome", unknown);
        Some(last_words(&status))
    }
}

impl HttpBody for Lasting {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        // Until it is pending, so that this task is woken the next time.
        while let Some(wake) = &mut this.wake
            && wake.poll(cx).is_ready()
        {
            if let Err(status) = this.standing.check() {
                return Poll::Ready(this.end(status));
            }
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && frame.is_data()
            && let Err(status) = this.standing.check()
        {
            return Poll::Ready(this.end(status));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
