//! The rules that a log, or one entry of it, can break.
//!
//! Owns the names of the checks and the sentences. A fault carries the stated and the computed value, so that a
//! reader can check the checker. `docs/formats.md` states which check covers each field.

use evidenceos_kernel::{
    id::{ClaimId, Digest, HoldoutId},
    record::RecordError,
};
use evidenceos_tlog::Hash;
use thiserror::Error;

macro_rules! checks {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The checks, by the names that `docs/formats.md` uses.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check {
            $($(#[$doc])* $variant,)*
        }

        impl Check {
            /// Every check, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The check's name in reports and in `docs/formats.md`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

checks! {
    /// Canonical JSON, each field of its type and range, no other field.
    Form = "form",
    /// The kind of entry is known.
    Kind = "kind",
    /// Entry 0, and no other, starts the log.
    Start = "start",
    /// Entries hash to the signed root.
    Head = "head",
    /// The log's name is the one that was signed.
    Origin = "origin",
    /// No entry is older than the one before.
    Time = "time",
    /// Each key takes over from the one before, from entry 0 on, and signs only its own trees.
    Keys = "keys",
    /// A restart binds the log before it and charges every holdout.
    Restart = "restart",
    /// A continuation binds the log before it.
    Continuation = "continuation",
    /// A holdout's description adds up, and its id and name are its own.
    Registration = "registration",
    /// A registration is compared with every earlier holdout, and each answer charged.
    Comparison = "comparison",
    /// Only a holdout that released nothing is withdrawn, and nothing follows.
    Withdrawal = "withdrawal",
    /// Budgets change, and never beyond the registered ones.
    BudgetChange = "budget-change",
    /// A holdout is retired once, and opened once after that.
    Retirement = "retirement",
    /// A revocation names a settled claim and its capsule, once.
    Revocation = "revocation",
    /// A capsule names its holdout, topic, policy, null spec and parts.
    Identity = "identity",
    /// A claim has one capsule.
    Once = "once",
    /// A run's number is the next one, and the run could be admitted at its place.
    Admission = "admission",
    /// k, m, s, the ordinal, α and the threshold.
    Ledger = "ledger",
    /// The charge of the settlement.
    Price = "price",
    /// The tally of answers and their charge.
    Answers = "answers",
    /// The outcome, its reasons and the released e-value.
    Outcome = "outcome",
    /// Whether any vector could be certified.
    Reach = "reach",
    /// Parents come before, sorted, none twice.
    Dependencies = "dependencies",
    /// A claim with a revoked ancestor is not judged, and no other is called tainted.
    Taint = "taint",
    /// A duplicate names the claim that was judged.
    Duplicate = "duplicate",
    /// The log keeps all budgets, also those of each principal.
    Budget = "budget",
    /// Batches of decisions are numbered without a gap.
    Decisions = "decisions",
    /// Policies are stated only if they changed.
    Policies = "policies",
    /// Grants and imports are possible.
    Credit = "credit",
    /// An opening matches the commitment.
    Commitment = "commitment",
    /// A trace is the one that its capsule names.
    Trace = "trace",
    /// A trace and its capsule are of the same run.
    Run = "run",
    /// The answers of a trace follow from the labels.
    AnswersAgain = "answers-again",
    /// The outcome follows from the trace and the labels.
    Verdict = "verdict",
    /// Every trace in the directory belongs to a capsule, and every capsule has its trace.
    Traces = "traces",
    /// The log begins with the entries that were signed earlier.
    Known = "known",
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A broken rule, with the stated and the computed value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// There are more or fewer entries than the checkpoint covers.
    #[error(
        "there are {entries} entries, but the checkpoint covers {signed}: the log is cut or padded"
    )]
    Size {
        /// Entries that were given.
        entries: u64,
        /// Entries that the checkpoint covers.
        signed: u64,
    },
    /// The entries do not hash to the signed root.
    #[error(
        "the entries hash to root {computed}, but {signed} was signed: an entry was changed, moved or left out"
    )]
    Root {
        /// The root of the entries.
        computed: Hash,
        /// The root that was signed.
        signed: Hash,
    },
    /// An entry is not the record that its kind demands.
    #[error("the entry is not well formed: {0}")]
    Record(#[from] RecordError),
    /// A kind of entry that this release does not know.
    #[error("this program does not know entries of kind {0:?}; use a newer release")]
    UnknownKind(String),
    /// Entry 0, and no other, starts a log.
    #[error("entry 0, and no other, is `log_started`")]
    Start,
    /// A field does not have the value that follows from the entries before, or from the capsule
    /// itself.
    #[error("{field} is {stated}, but {computed} follows")]
    Mismatch {
        check: Check,
        /// The field's name in the record.
        field: &'static str,
        /// The value in the entry.
        stated: String,
        /// The value that follows.
        computed: String,
    },
    /// A broken rule that is not about a single value.
    #[error("{rule}")]
    Rule {
        check: Check,
        /// The broken rule, as a sentence.
        rule: &'static str,
    },
    /// The entry names a holdout that was not registered before.
    #[error("holdout {0} was not registered before")]
    UnknownHoldout(HoldoutId),
    /// The same description was registered before.
    #[error("holdout {0} is registered twice")]
    RegisteredTwice(HoldoutId),
    /// A claim has two capsules.
    #[error("claim {0} was settled before")]
    SettledTwice(ClaimId),
    /// A dependency names a capsule that did not come before.
    #[error("no capsule before this entry has hash {0}")]
    UnknownCapsule(Digest),
    /// A claim is revoked twice.
    #[error("claim {0} was revoked before")]
    RevokedTwice(ClaimId),
    /// A budget was exceeded.
    #[error("{budget}: {charged} microbits are charged or reserved, {allowed} are allowed")]
    Budget {
        /// The budget's name in the policy.
        budget: &'static str,
        /// All that was charged or reserved, this entry included.
        charged: u64,
        /// Limit of the budget, in microbits.
        allowed: u64,
    },
}

impl Fault {
    /// The check that failed.
    #[must_use]
    pub fn check(&self) -> Check {
        match self {
            Self::Size { .. } | Self::Root { .. } => Check::Head,
            Self::Record(_) => Check::Form,
            Self::UnknownKind(_) => Check::Kind,
            Self::Start => Check::Start,
            Self::Mismatch { check, .. } | Self::Rule { check, .. } => *check,
            Self::UnknownHoldout(_) => Check::Identity,
            Self::RegisteredTwice(_) => Check::Registration,
            Self::SettledTwice(_) => Check::Once,
            Self::UnknownCapsule(_) => Check::Dependencies,
            Self::RevokedTwice(_) => Check::Revocation,
            Self::Budget { .. } => Check::Budget,
        }
    }

    /// The fault of a broken rule that is not about a single value.
    pub(crate) fn rule(check: Check, rule: &'static str) -> Self {
        Self::Rule { check, rule }
    }
}

impl Check {
    /// Demands that a field has the value that follows.
    pub(crate) fn equal<T: PartialEq + std::fmt::Display>(
        self,
        field: &'static str,
        stated: T,
        computed: T,
    ) -> Result<(), Fault> {
        if stated == computed {
            Ok(())
        } else {
            Err(Fault::Mismatch {
                check: self,
                field,
                stated: stated.to_string(),
                computed: computed.to_string(),
            })
        }
    }

    /// Demands that a rule holds.
    pub(crate) fn holds(self, holds: bool, rule: &'static str) -> Result<(), Fault> {
        if holds {
            Ok(())
        } else {
            Err(Fault::rule(self, rule))
        }
    }
}
