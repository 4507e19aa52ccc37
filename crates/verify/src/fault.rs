//! The rules that a log, or one entry of it, can break.
//!
//! Owns the names of the checks and the sentences. A fault carries what was stated and what was computed, so that a
//! reader can check the checker. `docs/formats.md` says for each field which check covers it.

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
    /// The log bears the name that was signed.
    Origin = "origin",
    /// No entry is older than the one before.
    Time = "time",
    /// Keys follow one another from entry 0 on, and the one whose turn it is signs.
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
    /// A run's number, and that it could be admitted when it was.
    Admission = "admission",
    /// k, m, s, the ordinal, α and the threshold.
    Ledger = "ledger",
    /// What the settlement was charged.
    Price = "price",
    /// The tally of answers and what they were charged.
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
    /// Budgets and fences are kept.
    Budget = "budget",
    /// Batches of decisions are numbered without a gap.
    Decisions = "decisions",
    /// Policies are stated only if they are others than before.
    Policies = "policies",
    /// Grants and imports are possible ones.
    Credit = "credit",
    /// An opening is what was committed to.
    Commitment = "commitment",
    /// A trace is the one that its capsule names.
    Trace = "trace",
    /// A trace is of the run that its capsule is of.
    Run = "run",
    /// The answers of a trace are what the labels give.
    AnswersAgain = "answers-again",
    /// The outcome follows from the trace and the labels.
    Verdict = "verdict",
    /// Every trace in the directory belongs to a capsule, and every capsule has its trace.
    Traces = "traces",
    /// The log begins with what was signed earlier.
    Known = "known",
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A rule that is broken.
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
        /// What the entries hash to.
        computed: Hash,
        /// The root that was signed.
        signed: Hash,
    },
    /// An entry is not the record that its kind demands.
    #[error("the entry is not well formed: {0}")]
    Record(#[from] RecordError),
    /// A kind of entry that is not known here.
    #[error("entries of kind {0:?} are not known to this program; use a newer one")]
    UnknownKind(String),
    /// Entry 0, and no other, starts a log.
    #[error("entry 0, and no other, is `log_started`")]
    Start,
    /// A field does not say what follows from the entries before, or from the capsule itself.
    #[error("{field} is {stated}, but {computed} follows")]
    Mismatch {
        check: Check,
        /// The field, as the record names it.
        field: &'static str,
        /// What the entry says.
        stated: String,
        /// The value that follows.
        computed: String,
    },
    /// A rule that a single value cannot show.
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
    /// A claim is withdrawn twice.
    #[error("claim {0} was revoked before")]
    RevokedTwice(ClaimId),
    /// A budget was exceeded.
    #[error("{budget}: {charged} microbits are charged or reserved, {allowed} are allowed")]
    Budget {
        /// The budget, as the policy names it.
        budget: &'static str,
        /// All that was charged or reserved, this entry included.
        charged: u64,
        /// In microbits; what the budget allows.
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

    /// A rule that a single value cannot show is broken.
    pub(crate) fn rule(check: Check, rule: &'static str) -> Self {
        Self::Rule { check, rule }
    }
}

impl Check {
    /// Demands that a field says what follows.
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
