//! The interface of a provider. The parent enforces the rules that hold for all providers.

use std::pin::Pin;

use async_trait::async_trait;
use ed25519_dalek::VerifyingKey;
use zeroize::Zeroizing;

use super::error::Fault;
use super::key_ref::KeyRef;
use super::mock::Mock;
use super::settings::{KmsSettings, Provider};

/// The calls that a connected provider answers.
#[async_trait]
pub(super) trait Backend: Send + Sync {
    /// The endpoint to which requests about `resource` go, for errors.
    fn endpoint(&self, resource: &str) -> String;

    /// The plaintext of `ciphertext`, of any length.
    async fn unwrap(
        &self,
        resource: &str,
        ciphertext: Option<&[u8]>,
    ) -> Result<Zeroizing<Vec<u8>>, Fault>;

    /// Encrypts `secret` under the key that `resource` names.
    async fn wrap(&self, resource: &str, secret: &[u8; 32]) -> Result<KeyRef, Fault>;

    /// The public half of a key that signs inside.
    async fn public_key(&self, resource: &str) -> Result<VerifyingKey, Fault>;

    /// A signature that is not verified yet.
    async fn sign(&self, resource: &str, message: &[u8]) -> Result<Vec<u8>, Fault>;
}

/// A backend that is being connected.
type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Backend>, Fault>> + Send + 'a>>;

/// Connects by valid `settings`. `resource` may name the region.
// A future of a known type is compiled again in every crate that polls it, and this one holds the
// clients of three clouds: without the box the program has 41 MB instead of 35.
#[inline(never)]
pub(super) fn connect<'a>(settings: &'a KmsSettings, resource: &'a str) -> Connecting<'a> {
    Box::pin(connected(settings, resource))
}

async fn connected(settings: &KmsSettings, resource: &str) -> Result<Box<dyn Backend>, Fault> {
    let _ = resource;
    Ok(match settings.provider {
        Provider::Mock => Box::new(Mock::new(settings)?),
        #[cfg(feature = "kms-aws")]
        Provider::Aws => Box::new(super::aws::Aws::connect(settings, resource).await?),
        #[cfg(feature = "kms-gcp")]
        Provider::Gcp => Box::new(super::gcp::Gcp::connect(settings).await?),
        #[cfg(feature = "kms-azure")]
        Provider::Azure => Box::new(super::azure::Azure::connect(settings)?),
        #[allow(
            unreachable_patterns,
            reason = "with all features built in, every provider is above"
        )]
        _ => return Err(Fault::Unsupported("not built in")),
    })
}

/// The ciphertext of the two-part key id, without which a cloud KMS has nothing to unwrap.
#[cfg(any(feature = "kms-aws", feature = "kms-gcp", feature = "kms-azure"))]
pub(super) fn required(ciphertext: Option<&[u8]>) -> Result<&[u8], Fault> {
    ciphertext.ok_or(Fault::Unsupported(
        "the key id has no ciphertext to unwrap; write <kms-key-resource>|<base64-ciphertext>, as `keys wrap` prints it",
    ))
}
