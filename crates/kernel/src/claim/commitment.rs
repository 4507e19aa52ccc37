//! What a claim is committed to.

use serde::{Deserialize, Serialize};

use crate::id::{ClaimId, Digest};

/// Something that a claim is committed to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Artifact {
    /// What it is: `wasm`, `dependency`, or a label of the submitter's. 1–64 bytes.
    pub kind: String,
    /// Of a module: SHA-256 of its bytes. Of a dependency: the hash of the parent's capsule.
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

    /// The parent claim of a dependency: the one named, else the digest taken for a claim id.
    #[must_use]
    pub fn parent_claim(&self) -> ClaimId {
        self.parent.unwrap_or(ClaimId(self.hash.0))
    }
}

/// What is known of a validated module without running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleFacts {
    /// Digest of the bytes.
    pub hash: Digest,
    /// The length in bytes.
    pub len: u32,
    /// Whether it can ask an oracle.
    pub asks: bool,
    /// Whether it says itself what is judged.
    pub submits: bool,
}

/// What a claim was committed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// Sorted by kind and hash.
    pub artifacts: Vec<Artifact>,
    pub module: ModuleFacts,
    /// Parents, each with the hash of its capsule.
    pub parents: Vec<(ClaimId, Digest)>,
    /// An upper bound on the number of ancestors.
    pub ancestors: u16,
    /// Generations behind this claim.
    pub depth: u8,
}

impl Commitment {
    /// What it counts as in its principal's storage.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        stored_bytes(&self.artifacts, self.module.len)
    }

    /// Capsule hashes of the parents, sorted: the order of claim ids, in which they are kept, is
    /// one that no reader of the log knows.
    #[must_use]
    pub fn capsules_of_parents(&self) -> Vec<Digest> {
        let mut capsules: Vec<Digest> = self.parents.iter().map(|(_, capsule)| *capsule).collect();
        capsules.sort();
        capsules
    }
}

/// What a module and its artifacts count as in their principal's storage.
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
/// The most generations that may stand behind a claim.
pub const MAX_DEPTH: u8 = 32;
/// The most parents that a claim may have.
pub const MAX_PARENTS: usize = 64;
