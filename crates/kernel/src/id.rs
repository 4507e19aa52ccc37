//! Identifiers: digests, claim and holdout ids, owner tags, request keys.
//!
//! Every id is a SHA-256 or a truncated one; callers choose none. Domain separation is `D(domain,
//! payload) = SHA-256(domain ‖ 0x00 ‖ payload)` everywhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

macro_rules! bytes_newtype {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Reads exactly the right number of bytes; `None` for any other length.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Reads hex as records write it: lower-case, of exactly the right length.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                canonical_hex(text).map(Self)
            }

            /// Reads hex as people write it: in either case, of exactly the right length.
            #[must_use]
            pub fn from_typed_hex(text: &str) -> Option<Self> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(Self(bytes))
            }

            /// The bytes, in the order in which hex shows them.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// Lower-case hex, as in every public record.
            #[must_use]
            pub fn to_hex(&self) -> String {
                // Per byte: per character it would take as long as a tool call.
                let mut hex = vec![0; self.0.len() * 2];
                hex::encode_to_slice(self.0, &mut hex)
                    .unwrap_or_else(|error| unreachable!("there is room: {error}"));
                String::from_utf8(hex)
                    .unwrap_or_else(|error| unreachable!("hex is ASCII: {error}"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.to_hex())
            }
        }
    };
}

bytes_newtype!(
    /// A SHA-256 digest, of content or of a domain and content.
    Digest, 32
);
bytes_newtype!(
    /// A claim: the digest of everything that it is bound to, its owner included.
    ClaimId, 32
);
bytes_newtype!(
    /// A holdout: the digest of its public description.
    HoldoutId, 32
);
bytes_newtype!(
    /// An owner in public records: HMAC-SHA-256(log secret, principal), first 16 bytes. With a
    /// plain hash of a bearer principal, any reader could guess tokens offline.
    OwnerTag, 16
);
bytes_newtype!(
    /// A request: first 16 bytes of SHA-256(owner tag ‖ method ‖ request id).
    RequestKey, 16
);
bytes_newtype!(
    /// A claim's question: first 16 bytes of the digest of its owner, its module and its terms but
    /// name and credit.
    Question, 16
);
bytes_newtype!(
    /// A request's content: first 16 bytes of its digest.
    Fingerprint, 16
);

/// Reads hex as records write it. Upper case is refused: each byte string has one text, or a record
/// would have several.
pub(crate) fn canonical_hex<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    let mut bytes = [0; LEN];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    let is_lower_case = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    is_lower_case.then_some(bytes)
}

impl Digest {
    /// SHA-256 of `bytes`, without a domain before them.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// `D(domain, payload)`: SHA-256 of the domain, a zero byte and the payload.
    #[must_use]
    pub fn domain(domain: &str, payload: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(domain.as_bytes());
        // No domain contains a zero byte, so two different pairs of domain and payload never give
        // the same bytes.
        hasher.update([0]);
        hasher.update(payload);
        Self(hasher.finalize().into())
    }
}

impl Fingerprint {
    /// The fingerprint of a request's content.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let mut short = [0; 16];
        short.copy_from_slice(&Digest::of(content).0[..16]);
        Self(short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_digest_has_a_zero_byte_between() {
        assert_eq!(
            Digest::domain("evidenceos:test:v1", b"payload"),
            Digest::of(b"evidenceos:test:v1\0payload"),
        );
    }

    #[test]
    fn hex_round_trips_and_wrong_lengths_are_refused() {
        let id = ClaimId([0xab; 32]);
        assert_eq!(ClaimId::from_hex(&id.to_hex()), Some(id));
        assert_eq!(ClaimId::from_hex("ab"), None);
        assert_eq!(ClaimId::from_typed_hex("ab"), None);
        assert_eq!(OwnerTag::from_slice(&[0; 15]), None);
    }

    #[test]
    fn upper_case_is_read_where_people_write_and_not_in_records() {
        let id = ClaimId([0xab; 32]);
        let typed = id.to_hex().to_uppercase();
        assert_eq!(ClaimId::from_typed_hex(&typed), Some(id));
        assert_eq!(ClaimId::from_hex(&typed), None);
    }
}
