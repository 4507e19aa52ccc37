//! The rules that a log, or one entry of it, can break.
//!
//! Owns their names and sentences. A fault carries what was stated and what was computed, so that a reader can
//! check the checker.

use evidenceos_kernel::{
    id::{ClaimId, Digest, HoldoutId},
    record::RecordError,
};
use evidenceos_tlog::Hash;
use thiserror::Error;

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// There are more or fewer entries than the checkpoint covers.
    #[error(
        "there are {entries} entries, but the checkpoint covers {signed}: the log is cut or padded"
    )]
    Size {
        /// Entries given.
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
        /// What was signed.
        signed: Hash,
    },
    /// An entry is not the record that its kind demands.
    #[error("the entry is not well formed: {0}")]
    Record(#[from] RecordError),
    /// A kind of entry that is not known here and may change a holdout's ledger.
    #[error(
        "entries of kind {0:?} are not known to this program and name a holdout; use a newer one"
    )]
    UnknownKind(String),
    /// Entry 0, and no other, starts a log.
    #[error("entry 0, and no other, is `log_started`")]
    Start,
    /// A field does not say what follows from the entries before, or from the capsule itself.
    #[error("{field} is {stated}, but {computed} follows")]
    Mismatch {
        /// The field, as the record names it.
        field: &'static str,
        /// What the entry says.
        stated: String,
        /// What was computed.
        computed: String,
    },
    /// A rule that a single value cannot show.
    #[error("{0}")]
    Rule(&'static str),
    /// The entry names a holdout that was not registered before.
    #[error("holdout {0} was not registered before")]
    UnknownHoldout(HoldoutId),
    /// The same description was registered before.
    #[error("holdout {0} is registered twice")]
    RegisteredTwice(HoldoutId),
    /// A claim has two capsules.
    #[error("claim {0} was settled before")]
    SettledTwice(ClaimId),
    /// A revocation or dependency names a capsule that did not come before.
    #[error("no capsule before this entry has hash {0}")]
    UnknownCapsule(Digest),
    /// A claim is withdrawn twice.
    #[error("claim {0} was revoked before")]
    RevokedTwice(ClaimId),
    /// A budget that the policy fixed was exceeded.
    #[error("{budget}: {charged} microbits are charged, {allowed} are allowed")]
    Budget {
        /// The budget, as the policy names it.
        budget: &'static str,
        /// All that was charged, this entry included.
        charged: u64,
        /// What the policy allows.
        allowed: u64,
    },
}

impl Fault {
    /// Demands that a field says what follows.
    pub(crate) fn unless_equal<T: PartialEq + std::fmt::Display>(
        field: &'static str,
        stated: T,
        computed: T,
    ) -> Result<(), Self> {
        if stated == computed {
            Ok(())
        } else {
            Err(Self::Mismatch {
                field,
                stated: stated.to_string(),
                computed: computed.to_string(),
            })
        }
    }

    /// Demands that a rule holds.
    pub(crate) fn unless(holds: bool, rule: &'static str) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::Rule(rule)) }
    }
}
