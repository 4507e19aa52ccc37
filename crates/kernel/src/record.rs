//! Public records: the log entries about claims, holdouts and credit, byte for byte.
//!
//! Owns these records' fields, and the reading of canonical JSON field by field. [`crate::entry`]
//! owns the list of all kinds of entries. The records contain everything that an auditor needs to
//! recompute every charge, price and threshold; they contain no labels, names that submitters
//! chose, or principals.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a reader wants one kind of value and refuses every other"
)]

use thiserror::Error;

use crate::cj;

mod claim;
mod credit;
pub(crate) mod fields;
mod holdout;

pub use claim::{AnswerTally, Capsule, ClaimRevoked, Ledger, RunPlace, reason_codes};
pub use credit::{AccountsImported, CreditGranted};
pub use holdout::{
    BudgetsChanged, Compared, HoldoutOpened, HoldoutRetired, HoldoutWithdrawn, Registered,
    holdout_id,
};

/// The largest entry: a tile bundle counts its length in two bytes.
pub const MAX_ENTRY_LEN: usize = 65_535;

/// The reason why bytes are not the expected record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The bytes are not canonical JSON.
    #[error("not canonical JSON: {0}")]
    Json(#[from] cj::CjError),
    /// A field is missing, or not of its type.
    #[error("field {0:?} is missing or not of its kind")]
    Field(String),
    /// A field that the record does not have.
    #[error("unknown field {0:?}")]
    Unknown(String),
    /// A kind of entry that this release does not know.
    #[error("no kind of entry has the schema {0:?}")]
    Kind(String),
    /// A value out of its range.
    #[error("field {field:?}: {rule}")]
    Value {
        field: String,
        /// The rule for the field's value.
        rule: String,
    },
}

/// The schema of an entry, if it is canonical JSON and has one.
#[must_use]
pub fn schema_of(entry: &[u8]) -> Option<String> {
    fields::Fields::parse(entry).ok()?.string("schema").ok()
}

/// The latest of the times, in Unix milliseconds, that an entry states for itself.
#[must_use]
pub fn time_of(entry: &[u8]) -> Option<u64> {
    let cj::Value::Object(fields) = cj::parse(entry, MAX_ENTRY_LEN).ok()? else {
        return None;
    };
    fields
        .iter()
        .filter(|(name, _)| name.ends_with("_unix_ms"))
        .filter_map(|(_, value)| value.as_int())
        .max()
}
