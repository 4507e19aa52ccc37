//! An opened holdout: with its labels and a run's trace, every answer and every verdict can be computed again.
//!
//! Owns the file format of an opening, the check of its labels against the commitment that was public from
//! registration on, and the replay of one trace. Does not own the log's ledger (`log.rs`).
//!
//! Format: `{"format":"evidenceos.opening.v1","holdout_id":hex,"secret":hex,"labels":"<base64>","units":[…]}`; one
//! byte a label; without `units` every item is its own unit.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use evidenceos_kernel::{
    claim::Outcome,
    id::{Digest, HoldoutId},
    price,
    record::{Capsule, Registered},
    score::{self, Classes},
    split::{self, Salts, Split},
    trace::{self, Record, TraceError},
};
use evidenceos_tlog::{Tree, leaf_hash};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{capsule::Expected, fault::Fault};

/// The value of an opening's `format`.
const FORMAT: &str = "evidenceos.opening.v1";

/// What makes a holdout public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The holdout.
    pub holdout_id: HoldoutId,
    /// Its secret: split and salts follow from it.
    pub secret: [u8; 32],
    /// One byte an item, 0 or 1.
    pub labels: Vec<u8>,
    /// The unit of each item; absent: each item is its own.
    pub units: Option<Vec<u64>>,
}

/// Why an opening, or a trace under it, is not believed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpeningFailure {
    /// The file is not an opening.
    #[error("not an opening: {0}")]
    Format(String),
    /// The opening is not what was committed to.
    #[error("the opening is not what was committed to at registration: {0}")]
    Commitment(Fault),
    /// The bytes are not the trace that the capsule names.
    #[error("the trace has hash {found}, but the capsule names {wanted}")]
    TraceHash {
        /// Of the bytes.
        found: Digest,
        /// In the capsule.
        wanted: Digest,
    },
    /// The bytes are not a trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// An answer is not what the labels give.
    #[error("question {question} was answered {stated}, but the labels give {computed}")]
    Answer {
        /// The question, from 0.
        question: u32,
        /// The symbol in the trace.
        stated: u32,
        /// The symbol computed.
        computed: u32,
    },
    /// The trace or the verdict breaks a rule.
    #[error(transparent)]
    Fault(#[from] Fault),
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
    /// Reads an opening; judges nothing.
    ///
    /// # Errors
    /// [`OpeningFailure::Format`].
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

    /// The file's content: one line.
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
    /// [`OpeningFailure::Commitment`] names what differs.
    pub fn check<'r>(&self, registered: &'r Registered) -> Result<Opened<'r>, OpeningFailure> {
        self.compare(registered).map_err(OpeningFailure::Commitment)
    }

    fn compare<'r>(&self, registered: &'r Registered) -> Result<Opened<'r>, Fault> {
        let description = &registered.description;
        Fault::unless_equal("holdout_id", self.holdout_id, registered.id)?;
        Fault::unless_equal(
            "secret_commitment_hex",
            description.secret_commitment,
            Digest(split::secret_commitment(&self.secret)),
        )?;
        let items = self.labels.len() as u64;
        Fault::unless_equal("items", description.items, items)?;
        let units = match &self.units {
            Some(units) => units.clone(),
            None => (0..items).collect(),
        };
        Fault::unless_equal("items", description.items, units.len() as u64)?;
        Fault::unless(
            self.labels.iter().all(|&label| label <= 1),
            "labels are 0 or 1",
        )?;
        let split = split::split(&self.secret, &units, description.policy.answer_share_micros);
        Fault::unless_equal("answer_items", description.answer_items, split.answer_items)?;
        Fault::unless_equal("sealed_items", description.sealed_items, split.sealed_items)?;
        Fault::unless_equal("sealed_units", description.sealed_units, split.sealed_units)?;
        let root = commitment_root(&self.secret, &units, &split, &self.labels);
        Fault::unless_equal("commitment_root_hex", description.commitment_root, root)?;
        let classes = Classes::new(&units, &split.part_mask)
            .ok_or(Fault::Rule("units have at most 65536 sizes"))?;
        Ok(Opened {
            registered,
            labels: self.labels.clone(),
            split,
            classes,
        })
    }
}

/// The RFC 9162 root over the salted leaves.
fn commitment_root(secret: &[u8; 32], units: &[u64], split: &Split, labels: &[u8]) -> Digest {
    let salts = Salts::new(secret);
    let mut tree = Tree::new();
    for (index, label) in (0u64..).zip(labels) {
        let at = index as usize;
        let leaf = split::commitment_leaf_bytes(
            index,
            units[at],
            split.part_mask[at],
            &salts.salt(index),
            *label,
        );
        tree.append(leaf_hash(&leaf));
        drop(tree.take_full_tiles());
    }
    Digest(tree.root().0)
}

/// A holdout whose labels are those that were committed to.
#[derive(Debug, Clone)]
pub struct Opened<'r> {
    registered: &'r Registered,
    labels: Vec<u8>,
    split: Split,
    classes: Classes,
}

/// What a trace shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Answers that were computed again.
    pub answers: u32,
    /// The evidence in microbits, rounded down, where the claim was judged.
    pub evidence_microbits: Option<i64>,
}

impl Opened<'_> {
    /// Computes a run's answers and verdict again. An aborted run left no trace, and none is read.
    ///
    /// # Errors
    /// The first [`OpeningFailure`].
    pub fn check_trace(&self, capsule: &Capsule, bytes: &[u8]) -> Result<Replayed, OpeningFailure> {
        if capsule.outcome == Outcome::Aborted {
            return Ok(Replayed {
                answers: 0,
                evidence_microbits: None,
            });
        }
        let found = Digest::of(bytes);
        if found != capsule.trace_hash {
            return Err(OpeningFailure::TraceHash {
                found,
                wanted: capsule.trace_hash,
            });
        }
        let (items, records) = trace::parse(bytes)?;
        Fault::unless_equal("items", items, self.registered.description.items)?;
        let answers = self.check_answers(capsule, &records)?;
        let judged = records.iter().find_map(|record| match record {
            Record::Judged(vector) => Some(vector.as_slice()),
            _ => None,
        });
        Ok(Replayed {
            answers,
            evidence_microbits: self.check_verdict(capsule, judged)?,
        })
    }

    /// Every answer again, and the tally that was charged for.
    fn check_answers(&self, capsule: &Capsule, records: &[Record]) -> Result<u32, OpeningFailure> {
        let tally = &capsule.answers;
        let mut by_symbol = std::collections::BTreeMap::new();
        let (mut asked, mut replayed) = (0u32, 0u32);
        for record in records {
            match record {
                Record::Asked {
                    n_symbols,
                    symbol,
                    vector,
                } => {
                    Fault::unless_equal("answers.n_symbols", tally.n_symbols, *n_symbols)?;
                    Fault::unless(*n_symbols > 0, "an oracle has symbols")?;
                    let computed = score::answer(
                        vector,
                        &self.labels,
                        &self.split.part_mask,
                        *n_symbols,
                        self.split.answer_items,
                    );
                    if computed != *symbol {
                        return Err(OpeningFailure::Answer {
                            question: asked,
                            stated: *symbol,
                            computed,
                        });
                    }
                    *by_symbol.entry(*symbol).or_insert(0u32) += 1;
                    asked += 1;
                }
                Record::Replayed(first) => {
                    Fault::unless(*first < asked, "a replay repeats an earlier question")?;
                    replayed += 1;
                }
                Record::Free(_) => Fault::unless(
                    self.split.answer_items == 0,
                    "questions are free only where there is no answer part",
                )?,
                Record::Judged(_) | Record::Run(_) | Record::End(_) => {}
            }
        }
        let by_symbol: Vec<(u32, u32)> = by_symbol.into_iter().collect();
        Fault::unless(
            by_symbol == tally.by_symbol,
            "answers.by_symbol counts the answers of the trace",
        )?;
        Fault::unless_equal("answers.replayed", tally.replayed, replayed)?;
        Ok(asked)
    }

    /// The evidence again, and whether it reached the threshold and the level.
    fn check_verdict(
        &self,
        capsule: &Capsule,
        judged: Option<&[u8]>,
    ) -> Result<Option<i64>, OpeningFailure> {
        if matches!(capsule.outcome, Outcome::NotJudged | Outcome::Aborted) {
            return Ok(None);
        }
        let vector = judged.ok_or(Fault::Rule(
            "a judged claim's trace ends with the judged vector",
        ))?;
        let description = &self.registered.description;
        let score = self
            .classes
            .score(vector, &self.labels, &self.split.part_mask);
        let evidence = description.null_spec.bets.evidence_of(&score);
        let ledger = &capsule.ledger;
        let level_of = |levels| {
            price::level_reached(
                evidence,
                ledger.threshold,
                description.policy.level_width,
                levels,
            )
        };
        let outcome = match level_of(0) {
            Some(_) => Outcome::Certified,
            None => Outcome::NotCertified,
        };
        Fault::unless_equal("outcome", capsule.outcome.as_str(), outcome.as_str())?;
        if outcome == Outcome::Certified {
            let expected = Expected {
                description,
                k: ledger.k,
                settled: ledger.settled_before,
                certified: ledger.certified_before,
            };
            Fault::unless(
                expected
                    .levels_that_fit(capsule)
                    .any(|(levels, level)| level_of(levels) == Some(level)),
                "the released level is the one that the evidence reached",
            )?;
        }
        Ok(Some(evidence))
    }
}
