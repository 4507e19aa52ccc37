//! A claim and its life.
//!
//! ```text
//! create ─► Uncommitted ─commit─► Committed ─seal─► Sealed ─execute─► Executing ─settle─► Settled | Certified ─revoke─► Revoked
//!                 └──────commit──────┘ (again, until sealed)
//! ```
//!
//! [`ClaimState::after`] defines every transition: a total function. *Tainted* and *stale* are not states; they
//! follow from the ancestors and the clock: see [`crate::state::Stage`].

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

/// The position of a claim in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClaimState {
    /// Created; has no module.
    Uncommitted,
    /// Has a module and artifacts, which may still be replaced.
    Committed,
    /// Its owner bound it: no part of it can be replaced any more.
    Sealed,
    /// Has its number in the holdout's order; runs, or waits for its turn to settle.
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
    /// `Certified`). A step whose work is already done leaves the state as it is.
    ///
    /// # Errors
    /// [`Refusal::WrongState`] if the state does not allow the step.
    pub fn after(self, step: Step) -> Result<Self, Refusal> {
        match (self, step) {
            (Self::Uncommitted | Self::Committed, Step::Commit) => Ok(Self::Committed),
            (Self::Committed | Self::Sealed, Step::Seal) => Ok(Self::Sealed),
            (Self::Sealed | Self::Executing, Step::Execute) => Ok(Self::Executing),
            // A client that lost the reply executes again: it gets the result, and no run starts.
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
    /// The settlement looked at the sealed part, and the evidence stayed below the threshold.
    NotCertified,
    /// The settlement did not look at the sealed part.
    NotJudged,
    /// The guest's process died three times while it ran, or the run could not be repeated.
    Aborted,
}

impl Outcome {
    /// The state of a claim whose run ended this way.
    #[must_use]
    pub fn state(self) -> ClaimState {
        match self {
            Self::Certified => ClaimState::Certified,
            Self::NotCertified | Self::NotJudged | Self::Aborted => ClaimState::Settled,
        }
    }

    /// The outcome's word in the capsule.
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
    /// The guest's output, if it was valid.
    pub output: Vec<u8>,
    /// The released e-value's exponent, if the claim is certified.
    pub e_value_log2: Option<u64>,
    /// Charged to the answer pools.
    pub answers_charged: MicroBits,
    /// Charged to the sealed pool.
    pub price: MicroBits,
    /// The evidence that was needed.
    pub threshold: MicroBits,
    /// Units of fuel that the run used.
    pub fuel: u64,
    /// Digest of the trace.
    pub trace_hash: Digest,
    /// Length of the trace in bytes.
    pub trace_len: u64,
    /// Digest of the capsule.
    pub capsule_hash: Digest,
    /// Index of the capsule in the log.
    pub index: u64,
    pub settled_unix_ms: u64,
}

/// The withdrawal of a result by the claim's owner or an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The revoker's reason; 1–256 bytes.
    pub reason: String,
    pub revoked_unix_ms: u64,
    /// Index of the revocation in the log.
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

/// The last request of one method on a claim. It is kept in the claim's row, so that the hot path
/// writes no row under a random key for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRequest {
    pub method: Method,
    pub key: RequestKey,
    /// Distinguishes a repeated request from another one under the same key.
    pub fingerprint: Fingerprint,
    /// When it was remembered.
    pub at_unix_ms: u64,
    /// The refusal, if the request was refused.
    pub refusal: Option<Refusal>,
}

/// A submission and its state, from its creation to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Number in order of creation; the store's key.
    pub seq: u64,
    /// The digest of the terms, as `terms.claim_id()` computes it.
    pub id: ClaimId,
    /// The terms of its creation.
    pub terms: Terms,
    pub state: ClaimState,
    /// When it was created.
    pub created_unix_ms: u64,
    /// Its module, artifacts and parents, once committed.
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
    /// Credit that its run reserved and burned.
    pub credit: RunCredit,
}

/// Credit that a run reserves and burns, and the fuel it pays for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunCredit {
    /// Credits reserved at its admission.
    pub reserved: u64,
    /// The fuel that the reserved credits pay for. 0 in runs of releases without credit: then the
    /// lane's limit holds.
    pub max_fuel: u64,
    /// Credits burned at its settlement.
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

    /// When its owner used it last, in Unix milliseconds: its creation, or the newest request with an id.
    #[must_use]
    pub fn last_used_unix_ms(&self) -> u64 {
        let requests = self.requests.iter().map(|request| request.at_unix_ms);
        requests.fold(self.created_unix_ms, u64::max)
    }

    /// The claims that it directly depends on.
    pub fn parents(&self) -> impl Iterator<Item = ClaimId> + '_ {
        self.commitment
            .iter()
            .flat_map(|commitment| commitment.parents.iter().map(|(id, _)| *id))
    }

    /// A revoked ancestor, if there is one: as long as there is, the claim is tainted. Taint is not
    /// stored; this walk of at most [`MAX_ANCESTORS`] look-ups computes it. The walk skips a claim
    /// that `look_up` does not find.
    ///
    /// # Errors
    /// The error of a look-up that fails.
    pub fn revoked_ancestor<C: Borrow<Self>, E>(
        &self,
        mut look_up: impl FnMut(&ClaimId) -> Result<Option<C>, E>,
    ) -> Result<Option<ClaimId>, E> {
        let mut open: Vec<ClaimId> = self.parents().collect();
        // The commitment counted an ancestor once for each path to it, and this walk takes each
        // path, so it ends within the bound.
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

    /// The claim's question, if its module asks no oracle: a second verdict on the same question
    /// would release the same bits about the same labels. `None` before the claim is committed.
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

    /// Whether the claim was judged and its result is not revoked.
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
