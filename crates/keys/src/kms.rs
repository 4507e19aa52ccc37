//! Keys that a cloud KMS guards.
//!
//! A KMS either unwraps 32 bytes that it wrapped before ([`Kms::unwrap`], [`Kms::wrap`]), or signs
//! with an Ed25519 key that never leaves it ([`Kms::signing_key`]). Owns the calls, their one
//! deadline and their error texts. Does not read our environment variables, and keeps no ring.
//!
//! Everything from the network is checked before it is used: a plaintext has exactly 32 bytes, and
//! a signature verifies under the public key. Our copies of secrets are wiped; the SDKs' buffers
//! cannot be.

#[cfg(feature = "kms-aws")]
mod aws;
#[cfg(feature = "kms-azure")]
mod azure;
mod backend;
mod error;
#[cfg(feature = "kms-gcp")]
mod gcp;
mod key_ref;
mod mock;
mod settings;

use std::fmt;
use std::sync::Arc;

use ed25519_dalek::{Signature, VerifyingKey};
use tokio::sync::OnceCell;

use crate::Secret;
use backend::Backend;
pub use error::{Fault, KmsError};
pub use key_ref::{KeyRef, KeyRefError, MAX_KEY_REF};
pub use settings::{
    Context, ContextError, DEFAULT_TIMEOUT, KmsSettings, Problem, Provider, UnknownProvider,
};

/// A KMS, connected at the first call. Cheap to clone.
#[derive(Clone)]
pub struct Kms(Arc<Inner>);

struct Inner {
    settings: KmsSettings,
    backend: OnceCell<Box<dyn Backend>>,
}

impl Kms {
    /// Checks the settings; sends nothing yet.
    ///
    /// # Errors
    /// [`KmsError::Settings`] with everything that [`KmsSettings::problems`] finds.
    pub fn new(settings: KmsSettings) -> Result<Self, KmsError> {
        let problems = settings.problems();
        if !problems.is_empty() {
            return Err(KmsError::Settings(problems));
        }
        Ok(Self(Arc::new(Inner {
            settings,
            backend: OnceCell::new(),
        })))
    }

    /// The 32 bytes that `key` wraps. Without a ciphertext only the mock has an answer: its own key.
    ///
    /// # Errors
    /// [`KmsError`] if the KMS refuses, does not answer within the timeout, or returns anything but 32 bytes.
    pub async fn unwrap(&self, key: &KeyRef) -> Result<Secret, KmsError> {
        let KeyRef {
            resource,
            ciphertext,
        } = key;
        self.call("unwrap", resource, async {
            let plaintext = self
                .backend(resource)
                .await?
                .unwrap(resource, ciphertext.as_deref())
                .await?;
            let mut secret = Secret::default();
            // The error states only the length, because the bytes may be a secret of another kind.
            if plaintext.len() != secret.len() {
                return Err(Fault::Length(plaintext.len()));
            }
            secret.copy_from_slice(&plaintext);
            Ok(secret)
        })
        .await
    }

    /// Wraps 32 bytes under the KMS key `resource`. The configuration takes the result; its
    /// resource differs from the given one if the KMS names the version it used (Azure).
    ///
    /// # Errors
    /// [`KmsError`] if the KMS refuses, or does not answer within the timeout.
    pub async fn wrap(&self, resource: &str, secret: &[u8; 32]) -> Result<KeyRef, KmsError> {
        self.call("wrap", resource, async {
            self.backend(resource).await?.wrap(resource, secret).await
        })
        .await
    }

    /// The Ed25519 key `resource`, which stays inside the KMS. Requests its public half, once.
    ///
    /// # Errors
    /// As [`Self::unwrap`], and if the key is of another kind or the provider has no Ed25519 (Azure).
    pub async fn signing_key(&self, resource: &str) -> Result<KmsSigningKey, KmsError> {
        let asking = async { self.backend(resource).await?.public_key(resource).await };
        let public = self.call("public key", resource, asking).await?;
        Ok(KmsSigningKey {
            kms: self.clone(),
            resource: resource.into(),
            public,
        })
    }

    /// The provider; the first caller connects it.
    async fn backend(&self, resource: &str) -> Result<&dyn Backend, Fault> {
        let Inner { settings, backend } = &*self.0;
        let backend = backend
            .get_or_try_init(|| backend::connect(settings, resource))
            .await?;
        Ok(&**backend)
    }

    /// Runs `work` under the one deadline, which also covers finding credentials, and adds the
    /// operation and the endpoint to its fault.
    async fn call<T>(
        &self,
        operation: &'static str,
        resource: &str,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, KmsError> {
        let Inner { settings, backend } = &*self.0;
        let outcome = tokio::time::timeout(settings.timeout, work)
            .await
            .unwrap_or(Err(Fault::Deadline(settings.timeout)));
        outcome.map_err(|fault| KmsError::Call {
            provider: settings.provider,
            operation,
            resource: resource.into(),
            endpoint: match (backend.get(), &settings.endpoint) {
                (Some(backend), _) => backend.endpoint(resource),
                (None, Some(endpoint)) => endpoint.clone(),
                (None, None) => "its default endpoint".into(),
            },
            fault,
        })
    }
}

impl fmt::Debug for Kms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kms").field(&self.0.settings).finish()
    }
}

/// An Ed25519 key that never leaves its KMS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KmsSigningKey {
    kms: Kms,
    resource: Arc<str>,
    public: VerifyingKey,
}

impl KmsSigningKey {
    /// The public half, as RFC 8032 encodes it.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.public.to_bytes()
    }

    /// The KMS resource that signs.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// A pure Ed25519 signature (RFC 8032) of `message`, already verified with the public key. AWS
    /// accepts at most 4096 bytes.
    ///
    /// # Errors
    /// [`KmsError`] if the KMS refuses, does not answer within the timeout, or returns a signature
    /// that does not verify.
    pub async fn sign(&self, message: &[u8]) -> Result<[u8; 64], KmsError> {
        let Self {
            kms,
            resource,
            public,
        } = self;
        kms.call("sign", resource, async {
            let bytes = kms.backend(resource).await?.sign(resource, message).await?;
            let signature = Signature::from_slice(&bytes).map_err(|_| Fault::BadSignature)?;
            // A head with a wrong signature would look like a forged log to every reader.
            public
                .verify_strict(message, &signature)
                .map_err(|_| Fault::BadSignature)?;
            Ok(signature.to_bytes())
        })
        .await
    }
}

/// The longest time for one attempt: with the SDKs' retries less than the whole deadline, so that a
/// lost connection is tried again, and a silent endpoint always ends as our deadline.
#[cfg(any(feature = "kms-aws", feature = "kms-gcp", feature = "kms-azure"))]
fn attempt_timeout(settings: &KmsSettings) -> std::time::Duration {
    settings.timeout / 3
}
