//! Log entries: the closed list of their kinds, and one parser for all of them.
//!
//! An entry is a canonical JSON object. Its `schema` names its kind: `evidenceos.v2.` and a word.
//! Each row of the table below defines a kind: its name, its word, and the type of its record. The
//! table generates [`Kind`], [`Entry`], and the `parse` and `to_bytes` of each record. Each record
//! defines its other fields, in `read` and `write`, in the module of its subject:
//! [`crate::record`], [`crate::continuity`], [`crate::log_key`], [`crate::decision`],
//! [`crate::in_force`].
//!
//! Invariant: a reader that asks for an entry's kind matches [`Entry`] or [`Kind`] without a
//! wildcard if another kind could concern it, so that the compiler lists such readers when a kind
//! is added. `docs/formats.md` states every field.

use crate::{
    bits::MicroBits,
    cj,
    continuity::{HoldoutCharged, LogContinued, LogRestarted, LogStarted},
    decision::BatchRecorded,
    id::HoldoutId,
    in_force::PoliciesStated,
    log_key::KeyRotated,
    record::{
        AccountsImported, BudgetsChanged, Capsule, ClaimRevoked, Compared, CreditGranted,
        HoldoutOpened, HoldoutRetired, HoldoutWithdrawn, RecordError, Registered, fields::Fields,
        schema_of,
    },
};

macro_rules! entries {
    ($($(#[$doc:meta])* $kind:ident($record:ident) = $word:literal,)*) => {
        /// The kinds of entries.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The `schema` of entries of this kind.
            #[must_use]
            pub fn schema(self) -> &'static str {
                match self {
                    $(Self::$kind => concat!("evidenceos.v2.", $word),)*
                }
            }
        }

        /// An entry of any kind, parsed.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(
            clippy::large_enum_variant,
            reason = "a reader holds one entry at a time, and most entries are capsules"
        )]
        pub enum Entry {
            $($(#[$doc])* $kind($record),)*
        }

        impl Entry {
            /// Reads an entry of any kind.
            ///
            /// # Errors
            /// [`RecordError::Kind`] if no kind has the entry's schema. Any other [`RecordError`]
            /// if the bytes are not exactly an entry of their kind.
            pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
                let mut fields = Fields::parse(bytes)?;
                let schema = fields.string("schema")?;
                let kind = Kind::named(&schema).ok_or(RecordError::Kind(schema))?;
                let entry = match kind {
                    $(Kind::$kind => Self::$kind($record::read(&mut fields)?),)*
                };
                // An unread field would be signed, but no reader would check it.
                fields.finish()?;
                Ok(entry)
            }

            /// The canonical bytes. They are the bytes that it was read from, unless a registration
            /// lists its answer prices in another order than the kernel writes them.
            #[must_use]
            pub fn to_bytes(&self) -> Vec<u8> {
                match self {
                    $(Self::$kind(record) => record.to_bytes(),)*
                }
            }
        }

        $(
            impl $record {
                /// Reads an entry of this kind.
                ///
                /// # Errors
                /// [`RecordError`] if the bytes are not exactly such an entry.
                pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
                    let mut fields = Fields::parse(bytes)?;
                    fields.expect("schema", Kind::$kind.schema())?;
                    let record = Self::read(&mut fields)?;
                    fields.finish()?;
                    Ok(record)
                }

                /// The entry's canonical bytes.
                #[must_use]
                pub fn to_bytes(&self) -> Vec<u8> {
                    let object: cj::Object = self.write();
                    object.put("schema", Kind::$kind.schema()).to_bytes()
                }
            }
        )*
    };
}

entries! {
    /// Entry 0: the log's name and its first key.
    LogStarted(LogStarted) = "log_started",
    /// The log goes on under another name, because its end was lost.
    LogRestarted(LogRestarted) = "log_restarted",
    /// An operator states that the log was signed nowhere else since its newest entry.
    LogContinued(LogContinued) = "log_continued",
    /// Another key signs the log from the next entry on.
    KeyRotated(KeyRotated) = "key_rotated",
    /// A holdout's public description.
    HoldoutRegistered(Registered) = "holdout_registered",
    /// A holdout has other budgets from this entry on.
    HoldoutPolicy(BudgetsChanged) = "holdout_policy",
    /// A new column of labels was compared with a holdout's.
    HoldoutCompared(Compared) = "holdout_compared",
    /// A holdout that released nothing takes no claims, and its labels may be registered again.
    HoldoutWithdrawn(HoldoutWithdrawn) = "holdout_withdrawn",
    /// A holdout takes no more claims.
    HoldoutRetired(HoldoutRetired) = "holdout_retired",
    /// A holdout's labels are public.
    HoldoutOpened(HoldoutOpened) = "holdout_opened",
    /// A holdout was charged for entries that were lost.
    HoldoutCharged(HoldoutCharged) = "holdout_charged",
    /// A claim was settled.
    ClaimCapsule(Capsule) = "claim_capsule",
    /// A settled claim was revoked.
    ClaimRevoked(ClaimRevoked) = "claim_revoked",
    /// A principal was given credit.
    CreditGranted(CreditGranted) = "credit_granted",
    /// Accounts were set to a file's numbers.
    AccountsImported(AccountsImported) = "accounts_imported",
    /// A batch of decisions about tool calls.
    DecisionBatch(BatchRecorded) = "decision_batch",
    /// Other policy modules, or another role policy, are in force.
    PoliciesInForce(PoliciesStated) = "policies_in_force",
}

impl Kind {
    /// The kind with this schema.
    #[must_use]
    pub fn named(schema: &str) -> Option<Self> {
        let mut kinds = Self::ALL.iter().copied();
        kinds.find(|kind| kind.schema() == schema)
    }

    /// The kind that an entry names; the other fields may be malformed.
    #[must_use]
    pub fn of(entry: &[u8]) -> Option<Self> {
        Self::named(&schema_of(entry)?)
    }
}

/// The charge of an entry to a holdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The holdout that is charged.
    pub holdout: HoldoutId,
    /// To its answer part.
    pub answers: MicroBits,
    /// To its sealed part.
    pub sealed: MicroBits,
}

impl Entry {
    /// The entry's charge, if its kind has one: a holdout's meters are the sums of these over the
    /// log.
    #[must_use]
    pub fn charge(&self) -> Option<Charge> {
        match self {
            Self::ClaimCapsule(capsule) => Some(Charge {
                holdout: capsule.holdout_id,
                answers: capsule.answers.charged,
                sealed: capsule.ledger.price,
            }),
            Self::HoldoutCompared(compared) => Some(Charge {
                holdout: compared.holdout,
                answers: compared.answers,
                sealed: compared.sealed,
            }),
            Self::HoldoutCharged(charged) => Some(Charge {
                holdout: charged.holdout,
                answers: charged.answers,
                sealed: charged.sealed,
            }),
            Self::LogStarted(_)
            | Self::LogRestarted(_)
            | Self::LogContinued(_)
            | Self::KeyRotated(_)
            | Self::HoldoutRegistered(_)
            | Self::HoldoutPolicy(_)
            | Self::HoldoutWithdrawn(_)
            | Self::HoldoutRetired(_)
            | Self::HoldoutOpened(_)
            | Self::ClaimRevoked(_)
            | Self::CreditGranted(_)
            | Self::AccountsImported(_)
            | Self::DecisionBatch(_)
            | Self::PoliciesInForce(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
