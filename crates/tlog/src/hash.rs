//! The 32-byte hash and the three ways the log computes one.
//!
//! Owns the prefixes that keep leaves, nodes and other signed objects apart; knows nothing of tree shapes. Invariant:
//! no two kinds of object share a preimage, because a leaf starts with 0x00, a node with 0x01, and a domain string
//! starts with neither.
//!
//! Spec: RFC 6962 §2.1 (unchanged in RFC 9162 §2.1.1).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::text;

/// A SHA-256 value: of a leaf, an inner node, a root or another log object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; Hash::LEN]);

/// The reason why a text is not a [`struct@Hash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashParseError {
    /// The text is not 64 lower-case hexadecimal digits.
    #[error("a hash is 64 lower-case hexadecimal digits")]
    Hex,
    /// The text is not the padded standard base64 of 32 bytes.
    #[error("a hash is the standard base64 of 32 bytes")]
    Base64,
}

impl Hash {
    /// Length of a hash in bytes.
    pub const LEN: usize = 32;

    /// The raw bytes, in the order in which hex shows them.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Lower-case hexadecimal, 64 digits.
    pub fn to_hex(&self) -> String {
        self.to_string()
    }

    /// Reads 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`HashParseError::Hex`] for anything else, upper-case digits included: one hash has one spelling.
    pub fn from_hex(hex: &str) -> Result<Self, HashParseError> {
        let digits = hex.as_bytes();
        let mut bytes = [0; Self::LEN];
        // Zipped with 32 bytes, a longer text would be read as its prefix.
        if digits.len() != 2 * Self::LEN {
            return Err(HashParseError::Hex);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (hex_digit(pair[0])? << 4) | hex_digit(pair[1])?;
        }
        Ok(Self(bytes))
    }

    /// Standard padded base64, 44 characters: the spelling of checkpoints and proofs.
    pub fn to_base64(&self) -> String {
        text::base64_encode(&self.0)
    }

    /// Reads standard padded base64.
    ///
    /// # Errors
    /// [`HashParseError::Base64`] unless the text is the one canonical encoding of 32 bytes.
    pub fn from_base64(base64: &str) -> Result<Self, HashParseError> {
        let bytes = text::base64_decode(base64).ok_or(HashParseError::Base64)?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| HashParseError::Base64)
    }
}

fn hex_digit(digit: u8) -> Result<u8, HashParseError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(HashParseError::Hex),
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl FromStr for Hash {
    type Err = HashParseError;

    fn from_str(hex: &str) -> Result<Self, Self::Err> {
        Self::from_hex(hex)
    }
}

impl From<[u8; Hash::LEN]> for Hash {
    fn from(bytes: [u8; Hash::LEN]) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Hash {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// SHA-256(0x00 ‖ entry): the hash of a leaf.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    // RFC 6962 §2.1: without different prefixes an inner node could be presented as an entry.
    sha256(&[&[0x00], entry])
}

/// SHA-256(0x01 ‖ left ‖ right): the hash of an inner node.
pub fn node_hash(left: Hash, right: Hash) -> Hash {
    sha256(&[&[0x01], &left.0, &right.0])
}

/// SHA-256 of nothing: the root of the tree without leaves.
pub fn empty_root() -> Hash {
    sha256(&[])
}

/// SHA-256(domain ‖ 0x00 ‖ payload): the hash of an object that is not part of the tree.
///
/// `domain` is printable text without a zero byte, so that no payload can move the border between the two.
pub fn domain_hash(domain: &str, payload: &[u8]) -> Hash {
    debug_assert!(!domain.is_empty() && !domain.contains('\0'));
    sha256(&[domain.as_bytes(), &[0x00], payload])
}

pub(crate) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    Hash(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_root_and_empty_leaf_are_those_of_rfc_6962() {
        for (got, hex) in [
            (
                empty_root(),
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                leaf_hash(b""),
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            ),
        ] {
            assert_eq!(got.to_hex(), hex);
        }
    }

    #[test]
    fn hash_has_one_spelling_in_each_alphabet() {
        let hash = leaf_hash(b"spelling");
        assert_eq!(Hash::from_hex(&hash.to_hex()), Ok(hash));
        assert_eq!(Hash::from_base64(&hash.to_base64()), Ok(hash));
        let hex = hash.to_hex();
        for bad in [
            hex.to_uppercase(),
            hex[1..].to_owned(),
            format!("{hex}0"),
            format!("+{}", &hex[1..]),
        ] {
            assert_eq!(bad.parse::<Hash>(), Err(HashParseError::Hex), "{bad}");
        }
        let base64 = hash.to_base64();
        for bad in [
            base64.trim_end_matches('=').to_owned(),
            format!("{base64}\n"),
            format!("AAAA{base64}"),
        ] {
            assert_eq!(
                Hash::from_base64(&bad),
                Err(HashParseError::Base64),
                "{bad}"
            );
        }
    }

    #[test]
    fn domain_and_payload_do_not_run_into_each_other() {
        assert_eq!(domain_hash("ab", b"c"), sha256(&[b"ab\0c"]));
        assert_ne!(domain_hash("ab", b"c"), domain_hash("a", b"bc"));
    }
}
