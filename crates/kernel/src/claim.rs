//! A claim and its life.
//!
//! ```text
//! create ─► Uncommitted ─commit─► Committed ─seal─► Sealed ─execute─► Executing ─settle─► Settled | Certified ─revoke─► Revoked
//!                 └──────commit──────┘ (again, until sealed)
//! ```
//!
//! [`ClaimState::after`] is the whole of it: a total function. *Tainted* and *stale* are no
//! states of their own but read off the ancestors and the clock: see [`crate::state::Stage`].

use std::borrow::Borrow;

use serde::{Deserialize, Serialize};

use crate::{
    bits::MicroBits,
    cj,
    id::{ClaimId, Digest, Fingerprint, HoldoutId, OwnerTag, Question, RequestKey},
    refusal::{Refusal, Step},
};

/// Where a claim is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClaimState {
    /// Created; has no module.
    Uncommitted,
    /// Has a module and artifacts, which may still be replaced.
    Committed,
    /// Bound.
    Sealed,
    /// Has its place in the holdout's order; runs, or waits for its turn to settle.
    Executing,
    /// Ended, not certified.
    Settled,
    /// Ended, certified.
    Certified,
    /// Withdrawn by its owner or an operator.
    Revoked,
}

impl ClaimState {
    /// Every state.
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

/// A resource class; never changes a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// 10⁸ fuel, 64 MiB, 64 oracle calls.
    Fast,
    /// 10⁹ fuel, 512 MiB, 1,024 oracle calls.
    Heavy,
}

impl Lane {
    /// The most fuel that a run may use.
    #[must_use]
    pub fn max_fuel(self) -> u64 {
        match self {
            Self::Fast => 100_000_000,
            Self::Heavy => 1_000_000_000,
        }
    }

    /// The most memory that a run may have, in bytes.
    #[must_use]
    pub fn max_memory_bytes(self) -> u64 {
        match self {
            Self::Fast => 64 << 20,
            Self::Heavy => 512 << 20,
        }
    }

    /// The same in Wasm pages of 64 KiB.
    #[must_use]
    pub fn max_memory_pages(self) -> u64 {
        self.max_memory_bytes() / (64 << 10)
    }

    /// The most oracle calls that a run may make.
    #[must_use]
    pub fn max_oracle_calls(self) -> u32 {
        match self {
            Self::Fast => 64,
            Self::Heavy => 1_024,
        }
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Heavy => "heavy",
        }
    }
}

/// What a claim is created with: everything that its id covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Who owns it.
    pub owner: OwnerTag,
    /// The submitter's name for it, 1–128 bytes; never public.
    pub claim_name: String,
    /// The holdout that it is judged on.
    pub holdout: HoldoutId,
    /// The null spec that it is pinned to.
    pub null_spec_hash: Digest,
    /// The significance level that it asks for, in millionths; the stricter of it and the
    /// policy's counts.
    pub alpha_micros: u32,
    /// Levels of the e-value that it may release.
    pub levels: u8,
    /// The oracle.
    pub oracle_id: String,
    /// The oracle's alphabet.
    pub oracle_num_symbols: u32,
    /// Fuel an epoch lasts; 0: the epoch never advances.
    pub epoch_size: u64,
    /// The epoch configuration's name, or empty.
    pub epoch_config_ref: String,
    /// Resource class.
    pub lane: Lane,
    /// The most credit that it may burn; 0: no limit of its own.
    pub access_credit: u64,
    /// The most that its questions may be charged, if declared.
    pub max_answer_microbits: Option<u64>,
    /// The schema of its output.
    pub output_schema_id: String,
    /// The Merkle root of its dependencies, if it has any.
    pub dependency_merkle_root: Option<Digest>,
}

impl Terms {
    /// The claim id: `D("evidenceos:claim_id:v3", CJ(terms))`.
    #[must_use]
    pub fn claim_id(&self) -> ClaimId {
        let terms = self
            .judged_terms()
            .put("claim_name", self.claim_name.as_str())
            .put("access_credit", self.access_credit);
        ClaimId(Digest::domain("evidenceos:claim_id:v3", &terms.to_bytes()).0)
    }

    /// What a verdict can depend on: all terms but the name and the credit.
    fn judged_terms(&self) -> cj::Object {
        let mut terms = cj::Object::new()
            .put("owner_tag", self.owner.to_hex())
            .put("holdout_id", self.holdout.to_hex())
            .put("null_spec_hash", self.null_spec_hash.to_hex())
            .put("alpha_micros", u64::from(self.alpha_micros))
            .put("levels", u64::from(self.levels))
            .put("oracle_id", self.oracle_id.as_str())
            .put("oracle_num_symbols", u64::from(self.oracle_num_symbols))
            .put("epoch_size", self.epoch_size)
            .put("epoch_config_ref", self.epoch_config_ref.as_str())
            .put("lane", self.lane.as_str())
            .put("output_schema_id", self.output_schema_id.as_str());
        if let Some(most) = self.max_answer_microbits {
            terms = terms.put("max_answer_microbits", most);
        }
        if let Some(root) = self.dependency_merkle_root {
            terms = terms.put("dependency_merkle_root", root.to_hex());
        }
        terms
    }

    /// The topic id, a label: `D("evidenceos:topic:v3", holdout_id ‖ null_spec_hash)`.
    #[must_use]
    pub fn topic_id(&self) -> Digest {
        let mut payload = self.holdout.0.to_vec();
        payload.extend_from_slice(&self.null_spec_hash.0);
        Digest::domain("evidenceos:topic:v3", &payload)
    }
}

/// Something that a claim is committed to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Artifact {
    /// What it is: `wasm`, `dependency`, or a label of the submitter's. 1–64 bytes.
    pub kind: String,
    /// Its digest.
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
    /// Length in bytes.
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
    /// The module.
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

/// How a run ended, in the capsule's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The evidence reached the threshold.
    Certified,
    /// It did not.
    NotCertified,
    /// The sealed part was not looked at.
    NotJudged,
    /// The run brought the process down twice, or could not be repeated.
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

/// The reason code of a policy oracle's veto: 9000 to 9999, chosen by whoever made the oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct PolicyCode(u16);

impl PolicyCode {
    /// The code, if it is one of a policy's.
    #[must_use]
    pub fn new(code: u16) -> Option<Self> {
        (9_000..=9_999).contains(&code).then_some(Self(code))
    }

    /// The number on the wire.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl From<PolicyCode> for u16 {
    fn from(code: PolicyCode) -> Self {
        code.0
    }
}

impl TryFrom<u16> for PolicyCode {
    type Error = &'static str;

    fn try_from(code: u16) -> Result<Self, Self::Error> {
        Self::new(code).ok_or("a policy's reason code is 9000 to 9999")
    }
}

/// Why a run ended as it did. The codes are on the wire and in capsules; rows hold the position in
/// this list, so that what is new comes at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// The published code of an approval.
    Approved,
    /// The published code of a rejection.
    Rejected,
    /// The evidence stayed below the threshold.
    BelowThreshold,
    /// No vector, not even a perfect one, could reach the threshold.
    OutOfReach,
    /// The module trapped.
    Trap,
    /// It ran out of fuel.
    OutOfFuel,
    /// It asked for more memory, or a deeper stack, than its lane has.
    OutOfMemory,
    /// It passed a vector of a wrong length or with a value other than 0 and 1.
    InvalidVector,
    /// A question no longer fitted what it may be charged.
    AllowanceExhausted,
    /// It made more oracle calls than its lane has.
    TooManyCalls,
    /// It passed a pointer outside its memory.
    OutOfBounds,
    /// It emitted twice.
    EmittedTwice,
    /// It ended without emitting.
    NoOutput,
    /// What it emitted does not fit the output schema.
    InvalidOutput,
    /// It submitted no vector to judge.
    NothingToJudge,
    /// An ancestor was revoked.
    AncestorRevoked,
    /// The run was aborted.
    Aborted,
    /// The published code of a deferral.
    Deferred,
    /// A policy oracle's veto, under its own code.
    Policy(PolicyCode),
    /// The same claim was judged before.
    Duplicate,
}

impl Reason {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Approved => 1,
            Self::Rejected => 2,
            Self::BelowThreshold => 101,
            Self::OutOfReach => 102,
            Self::Trap => 110,
            Self::OutOfFuel => 111,
            Self::OutOfMemory => 112,
            Self::InvalidVector => 113,
            Self::AllowanceExhausted => 114,
            Self::TooManyCalls => 115,
            Self::OutOfBounds => 116,
            Self::EmittedTwice => 117,
            Self::NoOutput => 118,
            Self::InvalidOutput => 119,
            Self::NothingToJudge => 120,
            Self::AncestorRevoked => 121,
            Self::Aborted => 130,
            Self::Deferred => 3,
            Self::Policy(code) => code.get(),
            Self::Duplicate => 122,
        }
    }

    /// The reason of a number.
    #[must_use]
    pub fn of_code(code: u16) -> Option<Self> {
        [
            Self::Approved,
            Self::Rejected,
            Self::BelowThreshold,
            Self::OutOfReach,
            Self::Trap,
            Self::OutOfFuel,
            Self::OutOfMemory,
            Self::InvalidVector,
            Self::AllowanceExhausted,
            Self::TooManyCalls,
            Self::OutOfBounds,
            Self::EmittedTwice,
            Self::NoOutput,
            Self::InvalidOutput,
            Self::NothingToJudge,
            Self::AncestorRevoked,
            Self::Aborted,
            Self::Deferred,
            Self::Duplicate,
        ]
        .into_iter()
        .find(|reason| reason.code() == code)
        .or_else(|| PolicyCode::new(code).map(Self::Policy))
    }

    /// What happened, in a sentence.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Approved => "Certified: the evidence reached the threshold.",
            Self::Rejected => "Not certified.",
            Self::BelowThreshold => "The evidence on the sealed part stayed below the threshold.",
            Self::OutOfReach => {
                "After all that has leaked, no prediction on these items, not even a perfect one, could be certified; the sealed part was not looked at."
            }
            Self::Trap => "The module trapped.",
            Self::OutOfFuel => {
                "The module ran out of fuel: it does too much work for its lane, or loops for ever."
            }
            Self::OutOfMemory => "The module asked for more memory or stack than its lane has.",
            Self::InvalidVector => {
                "The module passed a prediction vector of a wrong length, or with a value other than 0 and 1."
            }
            Self::AllowanceExhausted => {
                "The module asked a question that no longer fitted into what this claim may be charged."
            }
            Self::TooManyCalls => "The module asked more questions than its lane allows.",
            Self::OutOfBounds => "The module passed a pointer outside its memory.",
            Self::EmittedTwice => "The module emitted its claim twice.",
            Self::NoOutput => "The module ended without emitting a claim.",
            Self::InvalidOutput => {
                "What the module emitted is not one big-endian symbol of the claim's alphabet."
            }
            Self::NothingToJudge => "The module submitted no predictions to judge.",
            Self::AncestorRevoked => "A claim on which this one depends was revoked.",
            Self::Aborted => {
                "The run could not be completed or repeated; its worst case was charged to the holdout, no credit to you."
            }
            Self::Deferred => "Not certified: left for somebody to decide.",
            Self::Policy(_) => {
                "A policy of this server does not allow the claim to be judged; the sealed part was not looked at."
            }
            Self::Duplicate => {
                "You had the same module judged under the same terms before; the verdict of that claim stands, and nothing was charged but one credit."
            }
        }
    }
}

/// The result of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, sorted.
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
    /// Fuel used.
    pub fuel: u64,
    /// Digest of the trace.
    pub trace_hash: Digest,
    /// Length of the trace in bytes.
    pub trace_len: u64,
    /// Digest of the capsule.
    pub capsule_hash: Digest,
    /// Where the capsule stands in the log.
    pub index: u64,
    /// When.
    pub settled_unix_ms: u64,
}

/// A withdrawn result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Why, in the revoker's words; 1–256 bytes.
    pub reason: String,
    /// When.
    pub revoked_unix_ms: u64,
    /// Where the revocation stands in the log.
    pub index: u64,
}

/// The calls on a claim that remember their last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// CommitArtifacts.
    Commit,
    /// Freeze, FreezeGates, Seal, SealClaim.
    Seal,
    /// ExecuteClaimV2.
    Execute,
    /// RevokeClaim.
    Revoke,
}

/// The last request of one method on a claim. It lives in the claim's row, so that the hot path
/// writes no row under a random key for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRequest {
    /// The method.
    pub method: Method,
    /// The request's key.
    pub key: RequestKey,
    /// What it asked.
    pub fingerprint: Fingerprint,
    /// When it was remembered.
    pub at_unix_ms: u64,
    /// How it was refused, if it was.
    pub refusal: Option<Refusal>,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Number in order of creation; the store's key.
    pub seq: u64,
    /// Its id.
    pub id: ClaimId,
    /// What it was created with.
    pub terms: Terms,
    /// Where it is.
    pub state: ClaimState,
    /// When it was created.
    pub created_unix_ms: u64,
    /// What it was committed to.
    pub commitment: Option<Commitment>,
    /// The digest of everything bound, once sealed.
    pub seal_hash: Option<Digest>,
    /// Its result.
    pub settlement: Option<Settlement>,
    /// Its withdrawal.
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
    fn every_code_of_a_reason_reads_back() {
        let codes: Vec<u16> = (0..=u16::MAX)
            .filter(|&code| Reason::of_code(code).is_some_and(|reason| reason.code() == code))
            .collect();
        let named = [
            1, 2, 3, 101, 102, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 130,
        ];
        let wanted: Vec<u16> = named.into_iter().chain(9_000..=9_999).collect();
        assert_eq!(codes, wanted);
    }

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

    #[test]
    fn a_lane_has_the_memory_that_the_documentation_promises() {
        assert_eq!(Lane::Fast.max_memory_bytes(), 67_108_864);
        assert_eq!(Lane::Heavy.max_memory_bytes(), 536_870_912);
        assert_eq!(Lane::Fast.max_memory_pages(), 1_024);
        assert_eq!(Lane::Heavy.max_memory_pages(), 8_192);
    }

    #[test]
    fn a_policys_code_is_its_number() {
        assert_eq!(PolicyCode::new(9_017).map(u16::from), Some(9_017));
    }
}
