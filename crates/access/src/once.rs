//! One signature, one request: the end of a signed request's body binds its signature.
//!
//! Handlers act on a message only once its body has ended, so they never act on a body that ends in
//! an error. The digest is over surface, method, path with query, and the bytes of the body.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use sha2::{Digest as _, Sha256};

use crate::{Callers, Misused, Signature};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The listener on which a request came in.
#[derive(Debug, Clone, Copy)]
pub enum Surface {
    Grpc,
    Http,
}

/// The start of the digest to which a signature is bound: everything before the body.
#[must_use]
pub fn request(surface: Surface, method: &Method, uri: &Uri) -> Sha256 {
    let surface = match surface {
        Surface::Grpc => "grpc",
        Surface::Http => "http",
    };
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    // None of the parts contains a blank.
    [surface, " ", method.as_str(), " ", path, " "]
        .into_iter()
        .fold(Sha256::new(), Sha256::chain_update)
}

/// A body that ends in [`Misused`] if its signature was used for another request.
pub struct Once {
    body: Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>,
    callers: Arc<Callers>,
    signature: Signature,
    /// `None` once it is bound or refused.
    request: Option<Sha256>,
}

impl Once {
    /// Follows a body; `request` is the digest so far.
    pub fn new<B>(callers: Arc<Callers>, signature: Signature, request: Sha256, body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self {
            body: Box::pin(body.map_err(Into::into)),
            callers,
            signature,
            request: Some(request),
        }
    }
}

impl Body for Once {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        match (&frame, &mut this.request) {
            (Some(Ok(frame)), Some(request)) => {
                if let Some(data) = frame.data_ref() {
                    request.update(data);
                }
            }
            (None, request) => {
                if let Some(request) = request.take()
                    && let Err(misused) = this
                        .callers
                        .bind(&this.signature, &request.finalize().into())
                {
                    return Poll::Ready(Some(Err(misused.into())));
                }
            }
            _ => {}
        }
        Poll::Ready(frame)
    }

    /// False until the signature is bound: otherwise a reader that asks would not read to the end.
    fn is_end_stream(&self) -> bool {
        self.request.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a body ended in an error, if its signature was misused.
#[must_use]
pub fn misused(error: &(dyn std::error::Error + 'static)) -> Option<Misused> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(misused) = error.downcast_ref::<Misused>() {
            return Some(*misused);
        }
        cause = error.source();
    }
    None
}
