//! A claim and its life.
//!
//! ```text
//! create ─► Uncommitted ─commit─► Committed ─seal─► Sealed ─execute─► Executing ─settle─► Settled | Certified ─revoke─► Revoked
//!                 └──────commit──────┘ (again, until sealed)
//! ```
//!
//! [`ClaimState::after`] is the whole of it: a total function. *Tainted* and *stale* are no
//! states of their own but read off the ancestors and the clock: see [`crate::state::Stage`].

mod commitment;
mod reason;
mod terms;

use std::borrow::Borrow;

pub use commitment::{
    Artifact, Commitment, MAX_ANCESTORS, MAX_DEPTH, MAX_PARENTS, ModuleFacts, stored_bytes,
};
pub use reason::{PolicyCode, Reason};
pub use terms::{Lane, Terms};

use serde::{Deserialize, Serialize};

use crate::{
    bits::MicroBits,
    cj,
    id::{ClaimId, Digest, Fingerprint, Question, RequestKey},
    refusal::{Refusal, Step},
};

/// Where a claim is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClaimState {
    /// Created; has no module.
    Uncommitted,
    /// Has a module and artifacts, which may still be replaced.
    Committed,
    /// Its owner bound it: nothing of it can be replaced any more.
    Sealed,
    /// Has its place in the holdout's order; runs, or waits for its turn to settle.
    Executing,
    /// The run ended without a certificate.
    Settled,
    /// The run ended and the claim holds a certificate.
    Certified,
    /// Withdrawn by its owner or an operator.
    Revoked,
}

impl ClaimState {
    /// Every state, in the order of a claim's life.
    pub const ALL: [Self; 7] = [
        Self::Uncommitted,
        Self::Committed,
        Self::Sealed,
        Self::Executing,
        Self::Settled,
        Self::Certified,
        Self::Revoked,
    ];

    /// The state after a step (a settlement leads to `Settled`; the verdict may raise it to
    /// `Certified`). Steps that find their work done leave the state as it is.
    ///
    /// # Errors
    /// [`Refusal::WrongState`] where the step is not allowed.
    pub fn after(self, step: Step) -> Result<Self, Refusal> {
        match (self, step) {
            (Self::Uncommitted | Self::Committed, Step::Commit) => Ok(Self::Committed),
            (Self::Committed | Self::Sealed, Step::Seal) => Ok(Self::Sealed),
            (Self::Sealed | Self::Executing, Step::Execute) => Ok(Self::Executing),
            // A client that lost the reply executes again: it gets the result, and nothing runs.
            (Self::Settled | Self::Certified, Step::Execute) => Ok(self),
            (Self::Executing, Step::Settle) => Ok(Self::Settled),
            (Self::Settled | Self::Certified, Step::Revoke) => Ok(Self::Revoked),
            (state, step) => Err(Refusal::WrongState { step, state }),
        }
    }
}

impl std::fmt::Display for ClaimState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Uncommitted => "uncommitted",
            Self::Committed => "committed",
            Self::Sealed => "sealed",
            Self::Executing => "executing",
            Self::Settled => "settled",
            Self::Certified => "certified",
            Self::Revoked => "revoked",
        })
    }
}

/// How a run ended, in the capsule's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The evidence reached the threshold.
    Certified,
    /// The sealed part was looked at, and the evidence stayed below the threshold.
    NotCertified,
    /// The sealed part was not looked at.
    NotJudged,
    /// The guest's process died three times while it ran, or the run could not be repeated.
    Aborted,
}

impl Outcome {
    /// The state of a claim that ended so.
    #[must_use]
    pub fn state(self) -> ClaimState {
        match self {
            Self::Certified => ClaimState::Certified,
            Self::NotCertified | Self::NotJudged | Self::Aborted => ClaimState::Settled,
        }
    }

    /// The word in the capsule.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certified => "certified",
            Self::NotCertified => "not_certified",
            Self::NotJudged => "not_judged",
            Self::Aborted => "aborted",
        }
    }

    /// Reads the capsule's word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [
            Self::Certified,
            Self::NotCertified,
            Self::NotJudged,
            Self::Aborted,
        ]
        .into_iter()
        .find(|outcome| outcome.as_str() == word)
    }
}

/// The result of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    pub outcome: Outcome,
    /// Sorted; a certified claim has [`Reason::Approved`] alone.
    pub reasons: Vec<Reason>,
    /// What the guest emitted, where it was valid.
    pub output: Vec<u8>,
    /// The released e-value's exponent, where certified.
    pub e_value_log2: Option<u64>,
    /// Charged to the answer pools.
    pub answers_charged: MicroBits,
    /// Charged to the sealed pool.
    pub price: MicroBits,
    /// What the evidence had to reach.
    pub threshold: MicroBits,
    /// Units of fuel that the run used.
    pub fuel: u64,
    /// Digest of the trace.
    pub trace_hash: Digest,
    /// Length of the trace in bytes.
    pub trace_len: u64,
    /// Digest of the capsule.
    pub capsule_hash: Digest,
    /// Where the capsule stands in the log.
    pub index: u64,
    pub settled_unix_ms: u64,
}

/// The withdrawal of a result by the claim's owner or an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Why, in the revoker's words; 1–256 bytes.
    pub reason: String,
    pub revoked_unix_ms: u64,
    /// Where the revocation stands in the log.
    pub index: u64,
}

/// The calls on a claim that remember their last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    Commit,
    /// Freeze, FreezeGates, Seal, SealClaim.
    Seal,
    Execute,
    Revoke,
}

/// The last request of one method on a claim. It lives in the claim's row, so that the hot path
/// writes no row under a random key for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRequest {
    pub method: Method,
    pub key: RequestKey,
    /// Tells a repeated request from another one under the same key.
    pub fingerprint: Fingerprint,
    /// When it was remembered.
    pub at_unix_ms: u64,
    /// How it was refused, if it was.
    pub refusal: Option<Refusal>,
}

/// A submission and its state, from its creation to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Number in order of creation; the store's key.
    pub seq: u64,
    /// The digest of the terms, as `terms.claim_id()` computes it.
    pub id: ClaimId,
    /// What it was created with.
    pub terms: Terms,
    pub state: ClaimState,
    /// When it was created.
    pub created_unix_ms: u64,
    /// What it was committed to.
    pub commitment: Option<Commitment>,
    /// The digest of everything bound, once sealed.
    pub seal_hash: Option<Digest>,
    /// `None` until its run has settled.
    pub settlement: Option<Settlement>,
    /// `None` unless its owner or an operator withdrew it.
    pub revocation: Option<Revocation>,
    /// Last request of each method.
    pub requests: Vec<LastRequest>,
    /// Whether an earlier request of this claim is remembered elsewhere.
    pub displaced_requests: bool,
    /// What its run may burn, and has burned.
    pub credit: RunCredit,
}

/// What a run may burn, and has burned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunCredit {
    /// Credits set aside at its admission.
    pub reserved: u64,
    /// The fuel that they pay for; 0, as in runs from before there was credit: its lane's.
    pub max_fuel: u64,
    /// Credits burned with its settlement.
    pub burned: u64,
}

impl Claim {
    /// The most fuel that its run may use.
    #[must_use]
    pub fn max_fuel(&self) -> u64 {
        match self.credit.max_fuel {
            0 => self.terms.lane.max_fuel(),
            fuel => fuel,
        }
    }

    /// The claims that it directly depends on.
    pub fn parents(&self) -> impl Iterator<Item = ClaimId> + '_ {
        self.commitment
            .iter()
            .flat_map(|commitment| commitment.parents.iter().map(|(id, _)| *id))
    }

    /// A revoked ancestor, if there is one: while there is, the claim is tainted. Taint is not
    /// stored; this walk, of at most [`MAX_ANCESTORS`] look-ups, is the whole of it. A claim that
    /// `look_up` does not find is passed over.
    ///
    /// # Errors
    /// Where a look-up fails.
    pub fn revoked_ancestor<C: Borrow<Self>, E>(
        &self,
        mut look_up: impl FnMut(&ClaimId) -> Result<Option<C>, E>,
    ) -> Result<Option<ClaimId>, E> {
        let mut open: Vec<ClaimId> = self.parents().collect();
        // An ancestor was counted once for each path to it when the claim was committed, and this
        // walk takes each path, so that it ends within the bound.
        for _ in 0..MAX_ANCESTORS {
            let Some(id) = open.pop() else { break };
            let Some(found) = look_up(&id)? else { continue };
            let ancestor: &Self = found.borrow();
            if ancestor.state == ClaimState::Revoked {
                return Ok(Some(id));
            }
            open.extend(ancestor.parents());
        }
        Ok(None)
    }

    /// What this claim asks to be judged, if its module asks no oracle: then the verdict on the
    /// same question again would be the same bits about the same labels. None before the claim is
    /// committed.
    #[must_use]
    pub fn question(&self) -> Option<Question> {
        let module = &self.commitment.as_ref()?.module;
        if module.asks {
            return None;
        }
        let asked = self
            .terms
            .judged_terms()
            .put("wasm_hash", module.hash.to_hex());
        let digest = Digest::domain("evidenceos:question:v1", &asked.to_bytes());
        Question::from_slice(&digest.0[..16])
    }

    /// Whether the claim was judged and its result stands.
    #[must_use]
    pub fn has_standing_verdict(&self) -> bool {
        self.revocation.is_none()
            && self.settlement.as_ref().is_some_and(|settlement| {
                matches!(
                    settlement.outcome,
                    Outcome::Certified | Outcome::NotCertified
                )
            })
    }

    /// The bytes that one output symbol takes under the legacy schema: ⌈⌈log2 n⌉ / 8⌉.
    #[must_use]
    pub fn output_len(&self) -> usize {
        let bits = u32::BITS - (self.terms.oracle_num_symbols - 1).leading_zeros();
        (bits.max(1) as usize).div_ceil(8)
    }

    /// Whether `output` is one big-endian symbol of the claim's alphabet.
    #[must_use]
    pub fn accepts_output(&self, output: &[u8]) -> bool {
        output.len() == self.output_len()
            && output
                .iter()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
                < u64::from(self.terms.oracle_num_symbols)
    }

    /// `D("evidenceos:seal:v3", CJ{…})` over everything that is bound.
    #[must_use]
    pub fn seal_hash_of(&self, commitment: &Commitment, policy_hash: Digest) -> Digest {
        let artifacts: Vec<cj::Value> = commitment
            .artifacts
            .iter()
            .map(|artifact| {
                let mut object = cj::Object::new()
                    .put("kind", artifact.kind.as_str())
                    .put("hash", artifact.hash.to_hex());
                if let Some(parent) = artifact.parent {
                    object = object.put("claim_id", parent.to_hex());
                }
                object.into()
            })
            .collect();
        let bound = cj::Object::new()
            .put("claim_id", self.id.to_hex())
            .put("artifacts", artifacts)
            .put("wasm_hash", commitment.module.hash.to_hex())
            .put("policy_hash", policy_hash.to_hex())
            .put("null_spec_hash", self.terms.null_spec_hash.to_hex());
        Digest::domain("evidenceos:seal:v3", &bound.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_of_a_claim_is_a_total_function() {
        use ClaimState::*;
        // Rows: states in order. Columns: commit, seal, execute, settle, revoke.
        let table: [[Option<ClaimState>; 5]; 7] = [
            [Some(Committed), None, None, None, None],
            [Some(Committed), Some(Sealed), None, None, None],
            [None, Some(Sealed), Some(Executing), None, None],
            [None, None, Some(Executing), Some(Settled), None],
            [None, None, Some(Settled), None, Some(Revoked)],
            [None, None, Some(Certified), None, Some(Revoked)],
            [None, None, None, None, None],
        ];
        let steps = [
            Step::Commit,
            Step::Seal,
            Step::Execute,
            Step::Settle,
            Step::Revoke,
        ];
        for (state, row) in ClaimState::ALL.into_iter().zip(table) {
            for (step, wanted) in steps.into_iter().zip(row) {
                assert_eq!(state.after(step).ok(), wanted, "{state:?} {step:?}");
            }
        }
    }
}
