//! An opened holdout: with its labels and a run's trace, a reader can recompute every answer and every verdict.
//!
//! Owns the file format of an opening, and the check of its labels against the commitment that was public from
//! registration on. Does not own the log's ledger (`log.rs`), or the check of a trace (`verdict.rs`).
//!
//! Format: `{"format":"evidenceos.opening.v1","holdout_id":hex,"secret":hex,"labels":"<base64>","units":[…]}`; one
//! byte a label; without `units` every item is its own unit.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use evidenceos_kernel::{
    id::{Digest, HoldoutId},
    record::{Capsule, Registered},
    trace::TraceError,
};
use evidenceos_tlog::{Tree, leaf_hash};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    arithmetic::{
        evidence::Bets,
        split::{self, Parts},
    },
    fault::{Check, Fault},
    verdict,
};

/// The value of an opening's `format`.
const FORMAT: &str = "evidenceos.opening.v1";

/// The secret, labels and units that make a holdout public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    pub holdout_id: HoldoutId,
    /// Its secret: split and salts follow from it.
    pub secret: [u8; 32],
    /// One byte an item, 0 or 1.
    pub labels: Vec<u8>,
    /// The unit of each item; if absent, each item is its own unit.
    pub units: Option<Vec<u64>>,
}

/// The reason why an opening, or a trace under it, is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpeningFailure {
    /// The file is not an opening.
    #[error("not an opening: {0}")]
    Format(String),
    /// The opening does not match the commitment.
    #[error("the opening does not match the commitment at registration: {0}")]
    Commitment(Fault),
    /// The bytes are not the trace that the capsule names.
    #[error("the trace has hash {found}, but the capsule names {wanted}")]
    TraceHash {
        /// The hash of the bytes.
        found: Digest,
        /// The hash in the capsule.
        wanted: Digest,
    },
    /// The bytes are not a trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// An answer is not the one that the labels give.
    #[error("question {question} was answered {stated}, but the labels give {computed}")]
    Answer {
        /// The question, from 0.
        question: u32,
        /// The symbol in the trace.
        stated: u32,
        /// The symbol that the labels give.
        computed: u32,
    },
    /// The trace or the verdict breaks a rule.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl OpeningFailure {
    /// The check that failed.
    #[must_use]
    pub fn check(&self) -> Check {
        match self {
            Self::Format(_) | Self::Commitment(_) => Check::Commitment,
            Self::TraceHash { .. } | Self::Trace(_) => Check::Trace,
            Self::Answer { .. } => Check::AnswersAgain,
            Self::Fault(fault) => fault.check(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    holdout_id: String,
    secret: String,
    labels: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    units: Option<Vec<u64>>,
}

impl Opening {
    /// Reads an opening; checks only its form.
    ///
    /// # Errors
    /// [`OpeningFailure::Format`] if the file is not an opening.
    pub fn from_json(json: &[u8]) -> Result<Self, OpeningFailure> {
        let format = |what: String| OpeningFailure::Format(what);
        let file: File = serde_json::from_slice(json).map_err(|error| format(error.to_string()))?;
        if file.format != FORMAT {
            return Err(format(format!(
                "its format is {:?}, not {FORMAT:?}",
                file.format
            )));
        }
        let mut secret = [0; 32];
        hex::decode_to_slice(&file.secret, &mut secret)
            .map_err(|error| format(format!("secret: {error}")))?;
        Ok(Self {
            holdout_id: HoldoutId::from_hex(&file.holdout_id)
                .ok_or_else(|| format("holdout_id is 64 hex digits".to_owned()))?,
            secret,
            labels: STANDARD
                .decode(&file.labels)
                .map_err(|error| format(format!("labels: {error}")))?,
            units: file.units,
        })
    }

    /// The content of the file: one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        let file = File {
            format: FORMAT.to_owned(),
            holdout_id: self.holdout_id.to_hex(),
            secret: hex::encode(self.secret),
            labels: STANDARD.encode(&self.labels),
            units: self.units.clone(),
        };
        serde_json::to_string(&file).expect("strings and integers always serialise")
    }

    /// Checks secret, split and labels against the public description.
    ///
    /// # Errors
    /// [`OpeningFailure::Commitment`] names the difference.
    pub fn check<'r>(&self, registered: &'r Registered) -> Result<Opened<'r>, OpeningFailure> {
        self.compare(registered).map_err(OpeningFailure::Commitment)
    }

    fn compare<'r>(&self, registered: &'r Registered) -> Result<Opened<'r>, Fault> {
        let description = &registered.description;
        let check = Check::Commitment;
        check.equal("holdout_id", self.holdout_id, registered.id)?;
        check.equal(
            "secret_commitment_hex",
            description.secret_commitment,
            split::secret_commitment(&self.secret),
        )?;
        let items = self.labels.len() as u64;
        check.equal("items", description.items, items)?;
        let units = match &self.units {
            Some(units) => units.clone(),
            None => (0..items).collect(),
        };
        check.equal("items", description.items, units.len() as u64)?;
        check.holds(
            self.labels.iter().all(|&label| label <= 1),
            "labels are 0 or 1",
        )?;
        let parts = split::split(&self.secret, &units, description.policy.answer_share_micros);
        let answer_items = parts.part.iter().map(|&part| u64::from(part)).sum();
        check.equal("answer_items", description.answer_items, answer_items)?;
        check.equal(
            "sealed_items",
            description.sealed_items,
            items - answer_items,
        )?;
        check.equal("sealed_units", description.sealed_units, parts.sealed_units)?;
        check.equal(
            "units",
            description.units,
            parts.answer_units + parts.sealed_units,
        )?;
        // Each leaf contains the item's unit and part, so the root binds the split too.
        let root = commitment_root(&self.secret, &units, &parts.part, &self.labels);
        check.equal("commitment_root_hex", description.commitment_root, root)?;
        let bets = Bets::of(&description.null_spec)
            .map_err(|_| Fault::rule(check, "the null spec can be bet against"))?;
        let Parts { part, .. } = parts;
        Ok(Opened {
            registered,
            labels: self.labels.clone(),
            units,
            part,
            bets,
        })
    }
}

/// The RFC 9162 root over the salted leaves.
fn commitment_root(secret: &[u8; 32], units: &[u64], part: &[u8], labels: &[u8]) -> Digest {
    let mut tree = Tree::new();
    for (index, ((unit, part), label)) in (0u64..).zip(units.iter().zip(part).zip(labels)) {
        tree.append(leaf_hash(&split::leaf(secret, index, *unit, *part, *label)));
        // Only the root is needed: drop the completed tiles, so that they do not pile up.
        drop(tree.take_full_tiles());
    }
    Digest(tree.root().0)
}

/// A holdout whose labels match the commitment.
#[derive(Debug, Clone)]
pub struct Opened<'r> {
    pub(crate) registered: &'r Registered,
    pub(crate) labels: Vec<u8>,
    pub(crate) units: Vec<u64>,
    /// One byte an item: 1 in the answer part.
    pub(crate) part: Vec<u8>,
    pub(crate) bets: Bets,
}

/// The results of checking a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Answers that were recomputed.
    pub answers: u32,
    /// The evidence in microbits, rounded down, if the claim was judged.
    pub evidence_microbits: Option<i64>,
    /// The reason why this trace does not determine the outcome, if it does not.
    pub not_checkable: Option<&'static str>,
}

impl Opened<'_> {
    /// Recomputes a run's answers and its whole outcome. `tainted` states whether its claim had a revoked ancestor
    /// when it settled, as the log shows (`LogReport::tainted`). An aborted claim and a duplicate left no trace, and
    /// none is read.
    ///
    /// # Errors
    /// [`OpeningFailure`] of the first check that fails.
    pub fn check_trace(
        &self,
        capsule: &Capsule,
        tainted: bool,
        bytes: &[u8],
    ) -> Result<Replayed, OpeningFailure> {
        verdict::check(self, capsule, tainted, bytes)
    }
}
