//! The tree head in the wire's signed form: a 32-byte digest of size and root, beside the checkpoint note.
//!
//! Owns the digest and the key's name on the wire. A key may sign both digests and notes: a digest is 32 raw bytes, a
//! note's text is a checkpoint body, which is never that short.

use ed25519_dalek::{Signature, VerifyingKey};

use crate::hash::{Hash, domain_hash, sha256};

/// The domain string of a tree head.
pub const STH_DOMAIN: &str = "evidenceos:sth:v1";

/// The message that a tree head's Ed25519 signature covers: the domain hash of `size` (64 bits, big-endian) ‖ `root`.
pub fn sth_digest(size: u64, root: Hash) -> Hash {
    let mut payload = [0; 8 + Hash::LEN];
    payload[..8].copy_from_slice(&size.to_be_bytes());
    payload[8..].copy_from_slice(&root.0);
    domain_hash(STH_DOMAIN, &payload)
}

/// The wire's name of an Ed25519 key: SHA-256 of its 32 bytes. Not the four-byte id of a note.
pub fn key_id(public_key: &[u8; 32]) -> Hash {
    sha256(&[public_key])
}

/// Whether `signature` is this key's over the tree head.
pub fn verify_sth(public_key: &[u8; 32], size: u64, root: Hash, signature: &[u8; 64]) -> bool {
    let digest = sth_digest(size, root);
    // Strict as for notes: encodings and keys on which verifiers disagree are refused.
    VerifyingKey::from_bytes(public_key).is_ok_and(|key| {
        key.verify_strict(&digest.0, &Signature::from_bytes(signature))
            .is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::empty_root;
    use crate::note::SignerKey;

    #[test]
    fn digest_is_the_published_concatenation() {
        let mut preimage = b"evidenceos:sth:v1\0\0\0\0\0\0\0\x01\x02".to_vec();
        preimage.extend_from_slice(&empty_root().0);
        assert_eq!(sth_digest(0x102, empty_root()), sha256(&[&preimage]));
    }

    #[test]
    fn signature_binds_key_size_and_root() {
        let signer = SignerKey::from_seed("sth.example", [3; 32]).expect("a valid name");
        let other = SignerKey::from_seed("sth.example", [4; 32]).expect("a valid name");
        let root = empty_root();
        let signature = signer.sign_bytes(&sth_digest(5, root).0);
        for (key, size, root, holds) in [
            (&signer, 5, root, true),
            (&signer, 6, root, false),
            (&signer, 5, Hash([0; 32]), false),
            (&other, 5, root, false),
        ] {
            assert_eq!(
                verify_sth(&key.public_key(), size, root, &signature),
                holds,
                "{size} {root}"
            );
        }
        assert_ne!(key_id(&signer.public_key()), key_id(&other.public_key()));
    }
}
