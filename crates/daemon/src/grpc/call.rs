//! A call on its way to its handler: its caller, its subject, and its idempotency key.

use std::pin::Pin;

use evidenceos_access::Principal;
use evidenceos_kernel::{
    command::Stamp,
    id::{Fingerprint, RequestKey},
};
use prost::Message;
use tokio_stream::Stream;
use tonic::{Request, Status, metadata::MetadataMap};

use super::{
    status::{refused, unauthenticated},
    subject::{Concerns, Subject},
};
use crate::services::request_key;

/// A call whose caller is authenticated.
pub struct Call<M> {
    pub principal: Principal,
    pub message: M,
    /// Where the handler notes the subject of the call for the audit log.
    pub subject: Subject,
    metadata: MetadataMap,
}

/// An answer that is streamed in several messages.
pub type Pieces<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl<M: Concerns> Call<M> {
    /// # Errors
    /// If the layer that identifies callers is missing, which is a fault of the daemon.
    pub fn of(request: Request<M>) -> Result<Self, Status> {
        let (metadata, mut extensions, message) = request.into_parts();
        // Absent if no audit line is written: the handler's notes are dropped then.
        let subject = extensions.remove::<Subject>().unwrap_or_default();
        subject.note(&message);
        let principal = extensions.get::<Principal>().cloned();
        Ok(Self {
            principal: principal.ok_or_else(|| unauthenticated("the caller was not identified"))?,
            message,
            subject,
            metadata,
        })
    }
}

impl<M> Call<M> {
    /// The idempotency key of the request, if it has a request id. The method's name is part of the
    /// key.
    pub fn key(&self, method: &'static str) -> Result<Option<RequestKey>, Status> {
        let id = self.metadata.get("x-request-id");
        let key = id.map(|id| request_key(&self.principal, method, id.as_encoded_bytes()));
        key.transpose().map_err(|refusal| refused(&refusal))
    }

    /// The idempotency key with a fingerprint of the request.
    pub fn stamp_of(
        &self,
        method: &'static str,
        fingerprint: impl FnOnce() -> Fingerprint,
    ) -> Result<Option<Stamp>, Status> {
        let key = self.key(method)?;
        Ok(key.map(|key| Stamp {
            key,
            fingerprint: fingerprint(),
        }))
    }
}

impl<M: Message> Call<M> {
    /// The idempotency key with a fingerprint of the whole message.
    pub fn stamp(&self, method: &'static str) -> Result<Option<Stamp>, Status> {
        self.stamp_of(method, || Fingerprint::of(&self.message.encode_to_vec()))
    }
}
