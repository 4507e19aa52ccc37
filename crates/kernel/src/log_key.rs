//! The keys that sign the log, one after the other.
//!
//! A log outlives its keys. When another key takes over, an entry states it, and both keys sign the same statement
//! about the tree just before that entry: a reader that trusts the old key learns from it alone which key came next,
//! and from which size on. The kernel fixes the signed bytes; the signer signs them and the reader checks the
//! signatures.

use serde::{Deserialize, Serialize};

use crate::{
    cj,
    id::Digest,
    record::{RecordError, fields::Fields},
};

/// A public key that signs heads, or once did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogKey {
    /// SHA-256 of the public key.
    pub id: Digest,
    /// The raw Ed25519 key, 32 bytes.
    pub public_key: [u8; 32],
    /// It signs trees of this size and larger, until another key takes over.
    pub since_size: u64,
}

impl LogKey {
    /// A key that signs trees from this size on.
    #[must_use]
    pub fn new(public_key: [u8; 32], since_size: u64) -> Self {
        Self {
            id: Digest::of(&public_key),
            public_key,
            since_size,
        }
    }
}

/// The statement that both keys sign when one follows the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLink {
    /// The name of the log that both keys sign.
    pub origin: String,
    /// The Ed25519 key that signed until now.
    pub old_public_key: [u8; 32],
    /// The Ed25519 key that signs from the next entry on.
    pub new_public_key: [u8; 32],
    /// Entries before this one: the last tree that the old key vouches for.
    pub tree_size: u64,
    /// The root of that tree.
    pub root: [u8; 32],
}

impl KeyLink {
    /// The 32 bytes that both keys sign: `D("evidenceos:key_rotation:v1", CJ)` over the statement's
    /// fields as the entry has them.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::domain("evidenceos:key_rotation:v1", &self.to_object().to_bytes())
    }

    pub(crate) fn to_object(&self) -> cj::Object {
        cj::Object::new()
            .put("origin", self.origin.as_str())
            .put("old_public_key_hex", Digest(self.old_public_key).to_hex())
            .put("new_public_key_hex", Digest(self.new_public_key).to_hex())
            .put("tree_size", self.tree_size)
            .put("root_hash_hex", Digest(self.root).to_hex())
    }
}

/// A link with both signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedKeyLink {
    /// The statement that both keys sign.
    pub link: KeyLink,
    /// Ed25519 by the old key over [`KeyLink::digest`].
    pub old_signature: [u8; 64],
    /// Ed25519 by the new key over the same.
    pub new_signature: [u8; 64],
}

/// `key_rotated`: the statement and both signatures over its digest. Reading does not check the
/// signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRotated {
    /// The link, signed by both keys.
    pub signed: SignedKeyLink,
    /// When, in Unix milliseconds.
    pub rotated_unix_ms: u64,
}

impl KeyRotated {
    pub(crate) fn write(&self) -> cj::Object {
        let signed = &self.signed;
        signed
            .link
            .to_object()
            .put("old_signature_hex", hex::encode(signed.old_signature))
            .put("new_signature_hex", hex::encode(signed.new_signature))
            .put("rotated_unix_ms", self.rotated_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            signed: SignedKeyLink {
                link: KeyLink {
                    origin: fields.string("origin")?,
                    old_public_key: fields.digest("old_public_key_hex")?.0,
                    new_public_key: fields.digest("new_public_key_hex")?.0,
                    tree_size: fields.int("tree_size")?,
                    root: fields.digest("root_hash_hex")?.0,
                },
                old_signature: fields.signature("old_signature_hex")?,
                new_signature: fields.signature("new_signature_hex")?,
            },
            rotated_unix_ms: fields.int("rotated_unix_ms")?,
        })
    }
}
