//! A claim's commitment: its module, artifacts and parents.

use serde::{Deserialize, Serialize};

use crate::id::{ClaimId, Digest};

/// One item of a claim's commitment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Artifact {
    /// The kind: `wasm`, `dependency`, or a label that the submitter chose. 1–64 bytes.
    pub kind: String,
    /// For a module: SHA-256 of its bytes. For a dependency: the hash of the parent's capsule.
    pub hash: Digest,
    /// The parent claim, for a dependency.
    pub parent: Option<ClaimId>,
}

impl Artifact {
    /// Whether it names a parent claim.
    #[must_use]
    pub fn is_dependency(&self) -> bool {
        self.kind == "dependency"
    }

    /// Whether it is the claim's module.
    #[must_use]
    pub fn is_module(&self) -> bool {
        matches!(self.kind.as_str(), "wasm" | "wasm_module")
    }

    /// The parent claim of a dependency: the named claim, or else the digest read as a claim id.
    #[must_use]
    pub fn parent_claim(&self) -> ClaimId {
        self.parent.unwrap_or(ClaimId(self.hash.0))
    }
}

/// Facts about a validated module, known without running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleFacts {
    /// Digest of the bytes.
    pub hash: Digest,
    /// The length in bytes.
    pub len: u32,
    /// Whether it can ask an oracle.
    pub asks: bool,
    /// Whether the module itself submits the vector to judge.
    pub submits: bool,
}

/// A claim's module, artifacts and parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// Sorted by kind and hash.
    pub artifacts: Vec<Artifact>,
    pub module: ModuleFacts,
    /// Parents, each with the hash of its capsule.
    pub parents: Vec<(ClaimId, Digest)>,
    /// An upper bound on the number of ancestors.
    pub ancestors: u16,
    /// Generations of ancestors.
    pub depth: u8,
}

impl Commitment {
    /// The bytes that it counts in its principal's storage.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        stored_bytes(&self.artifacts, self.module.len)
    }

    /// Capsule hashes of the parents, sorted. The parents are kept in the order of their claim ids,
    /// which no reader of the log knows.
    #[must_use]
    pub fn capsules_of_parents(&self) -> Vec<Digest> {
        let mut capsules: Vec<Digest> = self.parents.iter().map(|(_, capsule)| *capsule).collect();
        capsules.sort();
        capsules
    }
}

/// The bytes that a module and its artifacts count in their principal's storage.
#[must_use]
pub fn stored_bytes(artifacts: &[Artifact], module_len: u32) -> u64 {
    let artifacts = artifacts.iter().map(|artifact| {
        let ids = 1 + usize::from(artifact.parent.is_some());
        artifact.kind.len() + ids * size_of::<Digest>()
    });
    artifacts.sum::<usize>() as u64 + u64::from(module_len)
}

/// The most ancestors that a claim may have.
pub const MAX_ANCESTORS: u16 = 256;
/// The most generations of ancestors that a claim may have.
pub const MAX_DEPTH: u8 = 32;
/// The most parents that a claim may have.
pub const MAX_PARENTS: usize = 64;
