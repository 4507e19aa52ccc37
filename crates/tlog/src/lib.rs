//! The transparency log as mathematics and text: RFC 6962 hashing, C2SP tiles, RFC 9162 proofs, signed notes,
//! checkpoints, cosignatures and the offline proof format.
//!
//! This crate is pure: it opens no file, reads no clock, draws no random number and spawns no task. Code that stores
//! tiles implements [`TileSource`]; code that appends clones a [`Tree`], appends a batch and keeps the copy only
//! after the batch is durable.
//!
//! ```
//! use evidenceos_tlog::{Tree, leaf_hash};
//!
//! let mut tree = Tree::new();
//! let index = tree.append(leaf_hash(b"an entry"));
//! assert_eq!((index, tree.size(), tree.root()), (0, 1, leaf_hash(b"an entry")));
//! ```
//!
//! Invariant throughout: a decoder accepts exactly the bytes that the matching encoder can produce, so that
//! parse-then-format is the identity and two different texts never mean the same object.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

pub mod checkpoint;
pub mod cosignature;
pub mod hash;
pub mod note;
pub mod proof;
pub mod small;
pub mod sth;
pub mod tile;
pub mod tlog_proof;
pub mod tree;

mod text;

#[cfg(test)]
mod testing;

pub use checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
pub use hash::{Hash, HashParseError, domain_hash, empty_root, leaf_hash, node_hash};
pub use note::{KeyId, Note, NoteError, NoteSignature, OpenedNote, SignerKey, VerifierKey};
pub use proof::{
    ProofError, TileNodes, TileSource, VerifyError, consistency_proof, inclusion_proof, root_at,
    verify_consistency, verify_inclusion,
};
pub use tile::{BundleId, TileError, TileId};
pub use tlog_proof::{TlogProof, TlogProofError};
pub use tree::{Tile, Tree, TreeError};
