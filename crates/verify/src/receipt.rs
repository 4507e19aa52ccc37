//! A receipt: one capsule, its place in the log, and the signed head that covers it.
//!
//! Owns the file format and the checks from the file inwards: signature, origin, inclusion, canonical bytes,
//! arithmetic. Does not own whether k is right: that check needs the whole log (`log.rs`).
//!
//! Format: `{"format":"evidenceos.receipt.v1","capsule":"<base64>","index":n,"inclusion":["<base64>",…],
//! "checkpoint":"<signed note>"}`; proofs as in RFC 9162 §2.1.3, the note as in C2SP tlog-checkpoint. Any change of a
//! significant byte fails a check.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use evidenceos_kernel::{
    id::Digest,
    record::{Capsule, RecordError},
};
use evidenceos_tlog::{Checkpoint, Hash, VerifyError, leaf_hash, verify_inclusion};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    capsule::check_capsule,
    fault::Fault,
    trust::{Distrust, Trust},
};

/// The value of a receipt's `format`.
const FORMAT: &str = "evidenceos.receipt.v1";

/// A capsule with everything that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The canonical bytes of the capsule's log entry.
    pub capsule: Vec<u8>,
    /// Its index in the log, from 0.
    pub index: u64,
    /// The audit path from the leaf to the root.
    pub inclusion: Vec<Hash>,
    /// The signed note that states the log's root.
    pub checkpoint: String,
}

/// A check that failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// The file is not a receipt.
    #[error("not a receipt: {0}")]
    Format(String),
    /// The checkpoint is not signed by this key.
    #[error("the checkpoint is not one that this key has signed: {0}")]
    Signature(Distrust),
    /// The checkpoint is of another log than the key.
    #[error("the checkpoint is of another log: {0}")]
    Origin(Distrust),
    /// The signed tree does not have the capsule at its place.
    #[error("the capsule is not in the signed log: {0}")]
    Inclusion(#[from] VerifyError),
    /// The bytes are in the log, but are not a capsule.
    #[error("the entry is not a capsule: {0}")]
    Capsule(#[from] RecordError),
    /// The capsule contradicts itself.
    #[error("the capsule's arithmetic does not hold: {0}")]
    Arithmetic(#[from] Fault),
}

impl Failure {
    /// The name of the check: `format`, `signature`, `origin`, `inclusion`, `capsule` or `arithmetic`.
    #[must_use]
    pub fn check(&self) -> &'static str {
        match self {
            Self::Format(_) => "format",
            Self::Signature(_) => "signature",
            Self::Origin(_) => "origin",
            Self::Inclusion(_) => "inclusion",
            Self::Capsule(_) => "capsule",
            Self::Arithmetic(_) => "arithmetic",
        }
    }
}

/// The file, field by field.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    capsule: String,
    index: u64,
    inclusion: Vec<String>,
    checkpoint: String,
}

impl Receipt {
    /// Reads a receipt; checks only its form.
    ///
    /// # Errors
    /// [`Failure::Format`] if the file is not a receipt.
    pub fn from_json(json: &[u8]) -> Result<Self, Failure> {
        let file: File =
            serde_json::from_slice(json).map_err(|error| Failure::Format(error.to_string()))?;
        if file.format != FORMAT {
            return Err(Failure::Format(format!(
                "its format is {:?}, not {FORMAT:?}",
                file.format
            )));
        }
        let capsule = STANDARD
            .decode(&file.capsule)
            .map_err(|error| Failure::Format(format!("capsule: {error}")))?;
        let inclusion = file
            .inclusion
            .iter()
            .map(|hash| Hash::from_base64(hash))
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::Format(format!("inclusion: {error}")))?;
        Ok(Self {
            capsule,
            index: file.index,
            inclusion,
            checkpoint: file.checkpoint,
        })
    }

    /// The content of the file: one line without white space.
    #[must_use]
    pub fn to_json(&self) -> String {
        let file = File {
            format: FORMAT.to_owned(),
            capsule: STANDARD.encode(&self.capsule),
            index: self.index,
            inclusion: self.inclusion.iter().map(Hash::to_base64).collect(),
            checkpoint: self.checkpoint.clone(),
        };
        serde_json::to_string(&file).expect("strings and integers always serialise")
    }
}

/// The facts that a receipt proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub capsule: Capsule,
    /// SHA-256 of its bytes.
    pub capsule_hash: Digest,
    /// Its index in the log.
    pub index: u64,
    /// The signed head that covers it.
    pub checkpoint: Checkpoint,
}

/// Checks a receipt against the trusted keys: signature, origin, inclusion, canonical bytes, arithmetic, in this
/// order.
///
/// # Errors
/// [`Failure`] of the first check that fails.
pub fn verify_receipt(receipt: &Receipt, trust: &Trust) -> Result<Verified, Failure> {
    let checkpoint = open_checkpoint(receipt.checkpoint.as_bytes(), trust)?;
    verify_inclusion(
        leaf_hash(&receipt.capsule),
        receipt.index,
        checkpoint.size(),
        &receipt.inclusion,
        checkpoint.root(),
    )?;
    let capsule = Capsule::parse(&receipt.capsule)?;
    check_capsule(&capsule)?;
    Ok(Verified {
        capsule,
        capsule_hash: Digest::of(&receipt.capsule),
        index: receipt.index,
        checkpoint,
    })
}

fn open_checkpoint(note: &[u8], trust: &Trust) -> Result<Checkpoint, Failure> {
    match trust.open(note) {
        Ok(signed) => Ok(signed.checkpoint().clone()),
        Err(error @ Distrust::Origin(_)) => Err(Failure::Origin(error)),
        Err(error) => Err(Failure::Signature(error)),
    }
}
