//! Counts calls of gRPC by method and code, around everything that answers them.
//!
//! A call ends with its status: in the head of the answer where it failed at once, else in the
//! trailers. Whoever goes away before has cancelled it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::rules;
use crate::metrics::Metrics;

/// Counts the calls of a service.
#[derive(Clone)]
pub struct CountLayer(pub Arc<Metrics>);

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Counted<S> {
    metrics: Arc<Metrics>,
    inner: S,
}

impl<S> Layer<S> for CountLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            metrics: Arc::clone(&self.0),
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = UnderWay {
            metrics: Arc::clone(&self.metrics),
            method: rules::label(request.uri().path()),
            began: Instant::now(),
            end: Code::Cancelled,
        };
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map(|answer| call.follow(answer)) })
    }
}

/// A call that has no end yet. It is counted when it is dropped, so that each is, and once.
struct UnderWay {
    metrics: Arc<Metrics>,
    method: &'static str,
    began: Instant,
    end: Code,
}

impl UnderWay {
    /// Counts a call whose status is in the answer's head, and follows the body of any other.
    fn follow(mut self, answer: Response<Body>) -> Response<Body> {
        match code(answer.headers()) {
            Some(code) => {
                self.end = code;
                self.metrics.refused_call(answer.headers());
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
        let took = (!rules::is_watch(self.method)).then(|| self.began.elapsed());
        self.metrics.called(self.method, self.end, took);
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
            // An answer without a status is none of gRPC.
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
