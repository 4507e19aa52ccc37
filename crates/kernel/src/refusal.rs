//! The reasons why a command is refused: a closed list, each with a stable code and a sentence for
//! the caller.
//!
//! A refusal depends on the command and on what was already released, never on labels.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    bits::MicroBits,
    claim::ClaimState,
    id::{ClaimId, Digest},
};

/// The kind of action that a refusal asks for: the edges map it to their status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request can never succeed unchanged.
    Invalid,
    /// Something that the request names does not exist, or belongs to another principal.
    NotFound,
    /// The caller's role does not allow the request.
    Forbidden,
    /// The request does not fit the present state.
    Precondition,
    /// A budget is spent; no retry helps.
    Exhausted,
    /// The request conflicts with something that exists.
    Conflict,
    /// Only others' work in progress blocks the request: retry.
    Retry,
}

/// The kernel's refusal of a command. The text is the sentence for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// No claim with this id belongs to the caller.
    #[error(
        "claim {0} not found among your claims; check the id, or list yours with `evidenceos claim list`"
    )]
    UnknownClaim(ClaimId),
    #[error("holdout {0:?} not found; `evidenceos holdout list` shows what is registered")]
    UnknownHoldout(String),
    /// The caller lacks a role.
    #[error("this call needs the {0} role; ask an operator to add you to it in the role policy")]
    RoleRequired(Role),
    /// The claim's state does not allow the step.
    #[error("cannot {step} a claim that is {state}; {}", hint(*.state))]
    WrongState {
        step: Step,
        /// The claim's present state.
        state: ClaimState,
    },
    /// A field of the request breaks a rule.
    #[error("{field}: {rule}")]
    Field {
        /// The field's name on the wire.
        field: String,
        /// The rule, and what the caller can do.
        rule: String,
    },
    /// The request reuses an idempotency key with other content.
    #[error("this x-request-id was used for another request in the last 24 hours; use a new one")]
    RequestIdReused,
    /// A dependency artifact names a parent that does not exist or has not settled.
    #[error(
        "dependency {0} names no settled claim of yours; give the parent's claim id and the hash of its capsule"
    )]
    UnknownDependency(Digest),
    /// The dependency artifacts are not those that the claim was created with.
    #[error(
        "the dependency artifacts hash to {found}, but the claim was created with {wanted}; create a claim for these dependencies"
    )]
    DependencyRoot {
        /// Hash of the given artifacts.
        found: Digest,
        /// Hash that the claim is bound to.
        wanted: Digest,
    },
    /// The claim has too many ancestors or generations.
    #[error(
        "too many ancestors: at most {max_ancestors} claims and {max_depth} generations may stand behind a claim"
    )]
    TooManyAncestors {
        /// The most claims among the ancestors.
        max_ancestors: u16,
        /// The most generations from the claim to its farthest ancestor.
        max_depth: u8,
    },
    /// The claim depends on a revoked one.
    #[error("claim {ancestor}, on which this one depends, was revoked")]
    Tainted {
        /// The ancestor that was revoked.
        ancestor: ClaimId,
    },
    /// The claim's null spec has expired.
    #[error(
        "the null spec that this claim was created for has expired, and a holdout has one for its life; create the claim on another holdout"
    )]
    Stale,
    /// The holdout takes no more runs.
    #[error("holdout {0:?} is retired; it takes no new claims and runs")]
    HoldoutRetired(String),
    /// The holdout's name or labels are taken.
    #[error("{0}")]
    HoldoutExists(String),
    /// Another holdout was registered between a check and this registration.
    #[error("another holdout was registered meanwhile; register again")]
    HoldoutsChanged,
    /// Runs are still under way.
    #[error("{0} runs are still under way on this holdout; wait until they have settled")]
    RunsInFlight(usize),
    /// A budget cannot carry this, whatever is reserved.
    #[error("{pool} is exhausted: {needed} needed, {left} left; nothing was charged")]
    BudgetExhausted {
        pool: Pool,
        /// Worst case of this request.
        needed: MicroBits,
        /// Budget less what is charged.
        left: MicroBits,
    },
    /// The budget could carry this if other runs had reserved nothing.
    #[error("{pool} is reserved by runs under way; ask again when they have settled")]
    Reserved { pool: Pool },
    /// No run slot is free, or the caller has used its share of them.
    #[error("every run slot is taken; ask again later")]
    NoSlot,
    /// The queue before the writer is full, or the caller has used its share of it.
    #[error("the server is busy; ask again after a second")]
    QueueFull,
    /// A principal's credit does not cover the worst case of a run.
    #[error(
        "insufficient credit: this run may cost up to {needed}, {left} left; ask an operator for a grant, wait for the next day's mint, or raise the claim's access_credit if that is what limits it"
    )]
    InsufficientCredit {
        /// The least credit that would suffice.
        needed: u64,
        /// Credit that is left in the account, or that the claim may still burn.
        left: u64,
    },
    /// The holdout's credit budget is spent.
    #[error(
        "the holdout's credit budget is exhausted: {needed} needed, {left} left; nothing was charged"
    )]
    HoldoutCreditExhausted {
        /// Worst case of this run.
        needed: u64,
        /// Budget less what is burned.
        left: u64,
    },
    /// A grant beyond the account's limit.
    #[error(
        "a grant of {amount} exceeds the credit limit: {unburned} of {limit} are there; grant at most {}, or raise the limit first (`evidenceos account limit`)", limit.saturating_sub(*unburned)
    )]
    BeyondCreditLimit {
        /// Credits that the operator asked for.
        amount: u64,
        /// Credits in the account, reservations included.
        unburned: u64,
        /// In credits; the account's limit.
        limit: u64,
    },
    /// The same claim was admitted before and has no result yet.
    #[error(
        "claim {0} asks the same and is being judged; ask again when it has settled, and its verdict stands for this one"
    )]
    SameClaimRunning(ClaimId),
    /// The holdout was withdrawn.
    #[error("holdout {0:?} was withdrawn; it takes no claims")]
    HoldoutWithdrawn(String),
    /// The holdout released something, or may have, and cannot be withdrawn.
    #[error(
        "holdout {reference:?} cannot be withdrawn: {why}; retire it instead (`evidenceos holdout retire`)"
    )]
    NotWithdrawable {
        reference: String,
        /// The reason why it may have released something.
        why: String,
    },
    /// An earlier holdout's budgets do not carry the answer of a comparison of labels.
    #[error(
        "holdout {reference:?} cannot pay for the comparison with these labels: {needed} needed, {left} left in {pool}. Nothing was compared or charged. If no item is in both, register with fresh items declared (`evidenceos holdout add --fresh-items`), which is public; else retire that holdout first"
    )]
    CannotCompare {
        /// The earlier holdout's name.
        reference: String,
        /// The pool that does not carry it.
        pool: Pool,
        /// The most that the comparison can release.
        needed: MicroBits,
        /// The bits that the pool carries.
        left: MicroBits,
    },
    /// The request would write an entry longer than the log allows.
    #[error(
        "{what} would take {bytes} bytes in the log, a log entry has at most {}; {remedy}",
        crate::record::MAX_ENTRY_LEN
    )]
    EntryTooLong {
        /// The part that is too long.
        what: String,
        bytes: u64,
        /// The remedy, as the end of the sentence.
        remedy: String,
    },
    /// The principal would exceed its storage limit.
    #[error(
        "this takes {more} bytes of storage; {stored} of the {limit} bytes that one principal may have are taken. What claims keep is evidence and is not given back; ask an operator for a higher limit (EVIDENCEOS_PRINCIPAL_STORAGE_LIMIT)"
    )]
    StorageLimit {
        /// Bytes stored for the principal so far.
        stored: u64,
        /// Bytes that this request would add.
        more: u64,
        /// Bytes that one principal may store.
        limit: u64,
    },
}

/// The roles of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Creates claims, runs them and reads their results.
    Submitter,
    /// Reads all public data and all capsules.
    Auditor,
    /// Administers holdouts, credit and keys.
    Operator,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Submitter => "submitter",
            Self::Auditor => "auditor",
            Self::Operator => "operator",
        })
    }
}

/// A step in a claim's life that a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Give it a module and artifacts.
    Commit,
    /// Bind the claim to everything it was given.
    Seal,
    /// Take the next number in the holdout's order and run.
    Execute,
    /// End a run with its result.
    Settle,
    Revoke,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Commit => "commit artifacts to",
            Self::Seal => "seal",
            Self::Execute => "execute",
            Self::Settle => "settle",
            Self::Revoke => "revoke",
        })
    }
}

/// A budget of leakage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pool {
    /// All answers about the answer part.
    Answers,
    /// Answers to one principal's questions on a holdout.
    PrincipalAnswers,
    /// Settlements, about the sealed part.
    Sealed,
    Credit,
    /// Credits burned on a holdout.
    HoldoutCredit,
    /// Settlements of one principal's claims.
    PrincipalSealed,
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Answers => "the holdout's answer budget",
            Self::PrincipalAnswers => "your answer budget on this holdout",
            Self::Sealed => "the holdout's settlement budget",
            Self::Credit => "your credit",
            Self::HoldoutCredit => "the holdout's credit budget",
            Self::PrincipalSealed => "your settlement budget on this holdout",
        })
    }
}

fn hint(state: ClaimState) -> &'static str {
    match state {
        ClaimState::Uncommitted => "commit its artifacts first",
        ClaimState::Committed => "seal it first",
        ClaimState::Sealed => "it is bound; execute it, or create another claim",
        ClaimState::Executing => "wait until it has settled",
        ClaimState::Settled | ClaimState::Certified => "it has its result; create another claim",
        ClaimState::Revoked => "it was withdrawn; create another claim",
    }
}

impl Refusal {
    /// The refusal of a field that breaks a rule.
    #[must_use]
    pub fn field(field: &str, rule: impl Into<String>) -> Self {
        Self::Field {
            field: field.to_owned(),
            rule: rule.into(),
        }
    }

    /// The stable code of this refusal.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownClaim(_) => "CLAIM_NOT_FOUND",
            Self::UnknownHoldout(_) => "HOLDOUT_NOT_FOUND",
            Self::RoleRequired(_) => "ROLE_REQUIRED",
            Self::WrongState { .. } => "WRONG_STATE",
            Self::Field { .. } => "INVALID_FIELD",
            Self::RequestIdReused => "REQUEST_ID_REUSED",
            Self::UnknownDependency(_) => "DEPENDENCY_NOT_FOUND",
            Self::DependencyRoot { .. } => "DEPENDENCY_ROOT_MISMATCH",
            Self::TooManyAncestors { .. } => "TOO_MANY_ANCESTORS",
            Self::Tainted { .. } => "CLAIM_TAINTED",
            Self::Stale => "CLAIM_STALE",
            Self::HoldoutRetired(_) => "HOLDOUT_RETIRED",
            Self::HoldoutExists(_) => "HOLDOUT_EXISTS",
            Self::HoldoutsChanged => "HOLDOUTS_CHANGED",
            Self::RunsInFlight(_) => "RUNS_IN_FLIGHT",
            Self::BudgetExhausted { .. } => "LEAKAGE_BUDGET_EXHAUSTED",
            Self::Reserved {
                pool: Pool::Credit | Pool::HoldoutCredit,
            } => "CREDIT_RESERVED",
            Self::Reserved { .. } => "LEAKAGE_RESERVED",
            Self::NoSlot => "NO_RUN_SLOT",
            Self::QueueFull => "QUEUE_FULL",
            Self::InsufficientCredit { .. } => "INSUFFICIENT_CREDIT",
            Self::HoldoutCreditExhausted { .. } => "HOLDOUT_CREDIT_EXHAUSTED",
            Self::BeyondCreditLimit { .. } => "BEYOND_CREDIT_LIMIT",
            Self::StorageLimit { .. } => "STORAGE_LIMIT",
            Self::SameClaimRunning(_) => "SAME_CLAIM_RUNNING",
            Self::HoldoutWithdrawn(_) => "HOLDOUT_WITHDRAWN",
            Self::NotWithdrawable { .. } => "HOLDOUT_NOT_WITHDRAWABLE",
            Self::CannotCompare { .. } => "COMPARISON_UNPAID",
            Self::EntryTooLong { .. } => "ENTRY_TOO_LONG",
        }
    }

    /// The kind of action that the refusal asks for.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Field { .. } | Self::EntryTooLong { .. } => RefusalKind::Invalid,
            Self::UnknownClaim(_) | Self::UnknownHoldout(_) => RefusalKind::NotFound,
            Self::RoleRequired(_) => RefusalKind::Forbidden,
            Self::WrongState { .. }
            | Self::UnknownDependency(_)
            | Self::DependencyRoot { .. }
            | Self::TooManyAncestors { .. }
            | Self::Tainted { .. }
            | Self::Stale
            | Self::HoldoutRetired(_)
            | Self::HoldoutWithdrawn(_)
            | Self::NotWithdrawable { .. }
            | Self::RunsInFlight(_) => RefusalKind::Precondition,
            Self::RequestIdReused | Self::HoldoutExists(_) => RefusalKind::Conflict,
            Self::BudgetExhausted { .. }
            | Self::InsufficientCredit { .. }
            | Self::HoldoutCreditExhausted { .. }
            | Self::CannotCompare { .. }
            | Self::BeyondCreditLimit { .. }
            | Self::StorageLimit { .. } => RefusalKind::Exhausted,
            Self::HoldoutsChanged
            | Self::Reserved { .. }
            | Self::SameClaimRunning(_)
            | Self::NoSlot
            | Self::QueueFull => RefusalKind::Retry,
        }
    }

    /// Whether the same request may succeed later; such refusals are never remembered.
    #[must_use]
    pub fn asks_to_retry(&self) -> bool {
        self.kind() == RefusalKind::Retry
    }
}
