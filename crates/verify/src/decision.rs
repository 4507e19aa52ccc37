//! A decision receipt: a decision on a tool call, its place in a batch, and the batch's place in
//! the log.
//!
//! Owns the checks from the file inwards: signature, origin, inclusion of the batch, inclusion of
//! the record, canonical bytes. [`DecisionReceipt`] defines the format. Does not own whether the
//! decision was right: the policy modules and the detector's memory are not public.

use evidenceos_kernel::{
    decision::{BatchRecorded, DecisionReceipt, DecisionRecord, RECEIPT_FORMAT},
    id::Digest,
    record::RecordError,
};
use evidenceos_tlog::{Checkpoint, Hash, VerifyError, leaf_hash, verify_inclusion};
use thiserror::Error;

use crate::trust::{Distrust, Trust};

/// A check that failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecisionFailure {
    /// The file is not a decision receipt.
    #[error("not a decision receipt: {0}")]
    Format(String),
    /// The checkpoint is of another log, or not signed by its key.
    #[error("the checkpoint is not one that this key has signed for this log: {0}")]
    Signature(#[from] Distrust),
    /// The signed tree does not have the batch at its place.
    #[error("the batch is not in the signed log: {0}")]
    Inclusion(VerifyError),
    /// The entry is in the log, but is not a batch of decisions.
    #[error("the entry is not a batch of decisions: {0}")]
    Batch(RecordError),
    /// The batch does not have the record at its place.
    #[error("the decision is not in the batch: {0}")]
    Position(VerifyError),
    /// The bytes are in the batch, but are not a record with its number.
    #[error("the record is not one of this place: {0}")]
    Record(String),
}

impl DecisionFailure {
    /// The name of the check: `format`, `signature`, `inclusion`, `batch`, `position` or `record`.
    #[must_use]
    pub fn check(&self) -> &'static str {
        match self {
            Self::Format(_) => "format",
            Self::Signature(_) => "signature",
            Self::Inclusion(_) => "inclusion",
            Self::Batch(_) => "batch",
            Self::Position(_) => "position",
            Self::Record(_) => "record",
        }
    }
}

/// The facts that a decision receipt proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedDecision {
    /// The decision and its subject.
    pub record: DecisionRecord,
    /// Its leaf: the `receiptHash` of a preflight's reply.
    pub leaf: Digest,
    /// The time of the batch's entry in the log, in Unix milliseconds.
    pub recorded_unix_ms: u64,
    /// The index of its batch's entry.
    pub index: u64,
    /// The signed head that covers it.
    pub checkpoint: Checkpoint,
}

/// Reads a decision receipt; checks only its form.
///
/// # Errors
/// [`DecisionFailure::Format`] if the file is not a decision receipt.
pub fn decision_from_json(json: &[u8]) -> Result<DecisionReceipt, DecisionFailure> {
    let receipt: DecisionReceipt =
        serde_json::from_slice(json).map_err(|error| DecisionFailure::Format(error.to_string()))?;
    if receipt.format == RECEIPT_FORMAT {
        Ok(receipt)
    } else {
        Err(DecisionFailure::Format(format!(
            "its format is {:?}, not {RECEIPT_FORMAT:?}",
            receipt.format
        )))
    }
}

/// Checks a decision receipt against the trusted keys.
///
/// # Errors
/// [`DecisionFailure`] of the first check that fails.
pub fn verify_decision(
    receipt: &DecisionReceipt,
    trust: &Trust,
) -> Result<VerifiedDecision, DecisionFailure> {
    let (batch_path, inclusion) = (hashes(&receipt.batch_path)?, hashes(&receipt.inclusion)?);
    // Without a signature the rest of the file proves nothing about any log.
    let signed = trust.open(receipt.checkpoint.as_bytes())?;
    let checkpoint = signed.checkpoint().clone();
    verify_inclusion(
        leaf_hash(receipt.entry.as_bytes()),
        receipt.index,
        checkpoint.size(),
        &inclusion,
        checkpoint.root(),
    )
    .map_err(DecisionFailure::Inclusion)?;
    let BatchRecorded {
        batch,
        recorded_unix_ms,
    } = BatchRecorded::parse(receipt.entry.as_bytes()).map_err(DecisionFailure::Batch)?;
    let leaf = leaf_hash(receipt.record.as_bytes());
    verify_inclusion(
        leaf,
        u64::from(receipt.position),
        u64::from(batch.count),
        &batch_path,
        Hash(batch.root.0),
    )
    .map_err(DecisionFailure::Position)?;
    let record = DecisionRecord::parse(receipt.record.as_bytes())
        .map_err(|error| DecisionFailure::Record(error.to_string()))?;
    // The root binds the records and their places, not the numbers in them. The sum fits: the
    // position is below the count, and `parse` made sure that the batch has a last number.
    if record.id.0 != batch.first.0 + u64::from(receipt.position) {
        return Err(DecisionFailure::Record(format!(
            "it says that it is decision {}, but another decision belongs in its place",
            record.id
        )));
    }
    Ok(VerifiedDecision {
        record,
        leaf: Digest(leaf.0),
        recorded_unix_ms,
        index: receipt.index,
        checkpoint,
    })
}

fn hashes(texts: &[String]) -> Result<Vec<Hash>, DecisionFailure> {
    texts
        .iter()
        .map(|text| {
            Hash::from_hex(text).map_err(|error| DecisionFailure::Format(error.to_string()))
        })
        .collect()
}
