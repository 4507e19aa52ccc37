//! A call on its way to its handler: who makes it, what it asks, what makes it idempotent.

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

/// A call whose caller is known.
pub struct Call<M> {
    pub principal: Principal,
    pub message: M,
    /// Where the audit log looks for what the call is about.
    pub subject: Subject,
    metadata: MetadataMap,
}

/// An answer in pieces.
pub type Pieces<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl<M: Concerns> Call<M> {
    /// # Errors
    /// Without the layer that identifies callers there is none: a bug of ours, and nobody's call.
    pub fn of(request: Request<M>) -> Result<Self, Status> {
        let (metadata, mut extensions, message) = request.into_parts();
        // None if no such line is written: what is noted then goes nowhere.
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
    /// The idempotency key of the request, if it names itself. Methods of the published wire keep
    /// their names, which are part of it.
    pub fn key(&self, method: &'static str) -> Result<Option<RequestKey>, Status> {
        let id = self.metadata.get("x-request-id");
        let key = id.map(|id| request_key(&self.principal, method, id.as_encoded_bytes()));
        key.transpose().map_err(|refusal| refused(&refusal))
    }

    /// The same with a fingerprint of what is asked.
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
    /// The same for the message as it came.
    pub fn stamp(&self, method: &'static str) -> Result<Option<Stamp>, Status> {
        self.stamp_of(method, || Fingerprint::of(&self.message.encode_to_vec()))
    }
}
