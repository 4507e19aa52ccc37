//! The tags by which public records name callers.
//!
//! A tag is a keyed digest: a reader of the log sees which claims belong to the same caller, but
//! cannot test a guess of the name.

use evidenceos_kernel::id::{Digest, OwnerTag};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Makes tags and keyed digests with the owners' secret of a data directory. With another secret,
/// every caller gets another tag.
pub struct Owners(Zeroizing<[u8; 32]>);

impl Owners {
    /// Tags that are made with this secret.
    #[must_use]
    pub fn new(secret: Zeroizing<[u8; 32]>) -> Self {
        Self(secret)
    }

    /// The tag of a principal in public records.
    #[must_use]
    pub fn tag(&self, principal: &str) -> OwnerTag {
        let mut tag = OwnerTag([0; 16]);
        tag.0
            .copy_from_slice(&self.keyed("owner", principal.as_bytes()).0[..16]);
        tag
    }

    /// A digest that only a holder of the owners' secret can compute: HMAC-SHA-256 of the purpose,
    /// a zero byte and the bytes.
    #[must_use]
    pub fn keyed(&self, purpose: &str, bytes: &[u8]) -> Digest {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_slice())
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(purpose.as_bytes());
        // No purpose contains a zero byte, so no two pairs of purpose and content give the same
        // bytes.
        mac.update(&[0]);
        mac.update(bytes);
        Digest(mac.finalize().into_bytes().into())
    }
}
