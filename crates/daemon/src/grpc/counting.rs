//! The layer around all of gRPC that counts calls by method and code, gives them ids, and logs and
//! traces them.
//!
//! A call ends with its status: in the head of the answer if it failed at once, otherwise in the
//! trailers. If the client goes away before, the call is counted as cancelled. An answer carries
//! the call's `x-request-id`, or one that the daemon made, so that a line of the log can be found.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use evidenceos_kernel::id::OwnerTag;
use evidenceos_telemetry::{Registry, trace};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

use super::{callers::CalledBy, counts::Counts, rules, subject::Subject};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Counts the calls of a service.
#[derive(Clone)]
pub struct CountLayer(Arc<Counts>);

impl CountLayer {
    /// Counts what `registry` shows.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self(Arc::new(Counts::new(registry)))
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Counted<S> {
    counts: Arc<Counts>,
    inner: S,
}

impl<S> Layer<S> for CountLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            counts: Arc::clone(&self.0),
            inner,
        }
    }
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = rules::label(request.uri().path());
        let request_id = request_id(request.headers());
        let span = tracing::debug_span!(
            target: trace::TARGET,
            "rpc",
            otel.name = method,
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.grpc.status_code = tracing::field::Empty,
            request_id = request_id.to_str().unwrap_or_default(),
        );
        trace::follow(&span, request.headers());
        let is_audited = tracing::enabled!(target: trace::AUDIT, tracing::Level::DEBUG);
        let subject = is_audited.then(Subject::default);
        if let Some(subject) = &subject {
            request.extensions_mut().insert(subject.clone());
        }
        let call = UnderWay {
            counts: Arc::clone(&self.counts),
            method,
            request_id,
            caller: None,
            subject,
            began: Instant::now(),
            end: Code::Cancelled,
            span: span.clone(),
        };
        let answer = self.inner.call(request).instrument(span);
        Box::pin(async move { answer.await.map(|answer| call.follow(answer)) })
    }
}

/// The id that the client sent, or a new unique one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // The id is repeated in logs and headers, so only safe characters are accepted.
    let sent = headers.get(REQUEST_ID).filter(|id| {
        (1..=128).contains(&id.len()) && id.as_bytes().iter().all(|b| (0x21..=0x7e).contains(b))
    });
    sent.cloned().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let own = format!("own-{:x}-{number:x}", std::process::id());
        HeaderValue::from_str(&own).unwrap_or_else(|_| unreachable!("it is plain ASCII"))
    })
}

/// A call that has not ended. It is counted when it is dropped, so that each call is counted
/// exactly once.
struct UnderWay {
    counts: Arc<Counts>,
    method: &'static str,
    request_id: HeaderValue,
    /// `None` if the call was not authenticated.
    caller: Option<OwnerTag>,
    /// The subject of the call; `None` if no audit line is written.
    subject: Option<Subject>,
    began: Instant,
    end: Code,
    span: Span,
}

impl UnderWay {
    /// Counts a call whose status is in the answer's head, and follows the body of any other.
    fn follow(mut self, mut answer: Response<Body>) -> Response<Body> {
        // The tag is taken out: it is for this layer's line of the log alone.
        self.caller = answer.extensions_mut().remove::<CalledBy>().map(|by| by.0);
        let id = self.request_id.clone();
        answer.headers_mut().insert(REQUEST_ID, id);
        match code(answer.headers()) {
            Some(code) => {
                self.end = code;
                self.counts.refused_call(answer.headers());
                answer
            }
            None => answer.map(|body| {
                Body::new(Followed {
                    body,
                    call: Some(self),
                })
            }),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // A watch lasts as long as its client wants, so its time says nothing about the server.
        let took = (!rules::is_watch(self.method)).then(|| self.began.elapsed());
        self.counts.called(self.method, self.end, took);
        self.span.record("rpc.grpc.status_code", self.end as i32);
        let subject = self.subject.as_ref();
        // The message is left out: it may hold what others must not see.
        tracing::debug!(
            target: trace::AUDIT,
            request_id = self.request_id.to_str().unwrap_or_default(),
            caller = self.caller.map(tracing::field::display),
            method = self.method,
            claim = subject.and_then(Subject::claim).map(tracing::field::display),
            holdout = subject.and_then(Subject::holdout),
            code = ?self.end,
            took_us = self.began.elapsed().as_micros() as u64,
            "rpc"
        );
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    let value = headers.get(Status::GRPC_STATUS)?;
    Some(Code::from_bytes(value.as_bytes()))
}

/// A body that ends a call.
struct Followed {
    body: Body,
    call: Option<UnderWay>,
}

impl Followed {
    fn ends(&mut self, code: Code) {
        if let Some(mut call) = self.call.take() {
            call.end = code;
        }
    }
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.ends(code(trailers).unwrap_or(Code::Unknown));
                }
            }
            Some(Err(status)) => this.ends(status.code()),
            // An answer without a status is not gRPC.
            None => this.ends(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
