//! The part of a request's body that its answer left unread.
//!
//! Most refusals need no body. If a server refuses and drops the body, it cuts the client's upload
//! off, and some clients report the cut instead of the answer: curl 7 over HTTP/2 ends with error
//! 92, and over HTTP/1.1 the connection is closed. So the daemon reads and drops a little of the
//! rest before any answer leaves, once the handler has released everything that it held. A client
//! that sends more, or too slowly, is cut off after all.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
    header::EXPECT,
};
use tokio::sync::oneshot;

/// The most that is read and dropped: four bodies of the usual limit.
const MOST: usize = 64 << 10;
/// The longest time that the rest may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request's body, which is handed back if its reader drops it before its end.
struct Lent {
    body: Option<Incoming>,
    back: Option<oneshot::Sender<Incoming>>,
}

/// The place to which a body is handed back.
pub struct Unread(Option<oneshot::Receiver<Incoming>>);

/// Watches a request's body. A body that its client sends only if asked to is left alone: reading
/// it would ask for it.
pub fn watch(request: Request<Incoming>) -> (Request<Body>, Unread) {
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return (request.map(Body::new), Unread(None));
    }
    let (back, unread) = oneshot::channel();
    let lent = |body| Lent {
        body: Some(body),
        back: Some(back),
    };
    (
        request.map(|body| Body::new(lent(body))),
        Unread(Some(unread)),
    )
}

impl Unread {
    /// Reads the rest if it is small and arrives soon.
    pub async fn read(self) {
        // If the reader still holds the body, this does not wait: the answer must leave.
        let Some(Ok(body)) = self.0.map(|mut back| back.try_recv()) else {
            return;
        };
        if body.size_hint().lower() > MOST as u64 {
            return;
        }
        let mut left = Limited::new(body, MOST);
        let to_its_end = async { while let Some(Ok(_)) = left.frame().await {} };
        let _ = tokio::time::timeout(PATIENCE, to_its_end).await;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !body.is_end_stream());
        if let (Some(body), Some(back)) = (unread, self.back.take()) {
            // The connection may be gone, and the body with it.
            let _ = back.send(body);
        }
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if frame.is_none() {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}
