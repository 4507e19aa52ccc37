//! Long calls: the caller's rights are checked again while the call lasts.
//!
//! Before each message of a streamed request or answer, the daemon checks whether access rules have
//! changed, and whether the client's certificate is still valid. A watch may have nothing to say
//! for long: a change, or the end of that validity, wakes it.
//!
//! A watch also ends with its connection, early enough to send its last message.

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

/// The caller's right to make a call, which is checked again while the call lasts.
#[derive(Clone)]
pub struct Standing {
    callers: Arc<Callers>,
    principal: Principal,
    needs: Needs,
    peer: Option<Peer>,
    /// The end of the client certificate's validity, in Unix seconds.
    not_after_unix: u64,
    changes: watch::Receiver<u64>,
}

impl Standing {
    /// The standing of an admitted call. `changes` must have been taken before the call was
    /// admitted. `lasts`: the call may outlive the certificate, so its end of validity is read.
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
        // A sender that is gone belongs to a daemon that ends: no more changes come.
        let has_changed = self.changes.has_changed().unwrap_or(false);
        if !has_changed && unix_ms() / 1_000 <= self.not_after_unix {
            return Ok(());
        }
        // The change is marked before the roles are read, so that a change in between is noticed
        // the next time.
        self.changes.mark_unchanged();
        let roles = self
            .callers
            .roles_now(&self.principal, self.peer.as_ref())
            .map_err(|denied| status::unauthenticated(&denied.to_string()))?;
        // The handler may have relied on any role that the caller had when the call began.
        if !self.needs.met_by(roles) || roles.union(self.principal.roles) != roles {
            return Err(status::role_required(
                self.needs.roles(),
                &self.principal.name,
            ));
        }
        Ok(())
    }
}

/// The direction of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Server,
    Client,
}

/// A body that goes on only while its caller may make the call.
struct Lasting {
    body: Body,
    standing: Standing,
    to: To,
    /// Wakes a body that may be silent for long.
    wake: Option<Wake>,
    ended: bool,
}

/// Wakes a silent body when the caller must be checked again.
struct Wake {
    changes: Option<WatchStream<u64>>,
    /// The end of the certificate's validity, if there is a certificate.
    expiry: Option<Pin<Box<Sleep>>>,
}

impl Wake {
    fn new(standing: &Standing) -> Self {
        // The certificate is valid through its last second.
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

    /// Ready if the caller must be checked. Otherwise the task is woken later.
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
            // Timers and certificates use different clocks.
            expiry
                .as_mut()
                .reset(Instant::now() + Duration::from_secs(1));
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// A request that breaks off once its caller may no longer make it.
pub fn request(body: Body, standing: Standing) -> Body {
    Body::new(Lasting {
        body,
        standing,
        to: To::Server,
        wake: None,
        ended: false,
    })
}

/// An answer that ends once its caller may no longer read it. `waits`: it may be silent for long.
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

/// A watch that ends shortly before its connection: anything sent later could be lost.
struct Retiring {
    body: Body,
    retires: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

/// The answer of a watch on the connection of `peer`.
pub fn watch(body: Body, peer: Peer) -> Body {
    Body::new(Retiring {
        body,
        retires: Box::pin(async move { peer.retires().await }),
        ended: false,
    })
}

/// The end of an answer that has already begun.
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
    /// Ends the body of a caller who may not go on.
    fn end(&mut self, mut status: Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.ended = true;
        if self.to == To::Server {
            return Some(Err(status));
        }
        // The requested change may have been made before its answer broke off.
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
        // Polled until it is pending, so that it wakes this task the next time.
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
