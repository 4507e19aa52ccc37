//! The rows of a store that no daemon serves, as they are stored: `fsck` and backups read them.
//!
//! Nothing is decoded here, so that a damaged row is a finding and hides no other. An engine implements [`Tables`];
//! the checks are written once over it.

use evidenceos_kernel::{
    id::{ClaimId, Digest},
    in_force::InForce,
};

use crate::{StoreError, facts::Facts, state::StateRow};

/// The tables of a store, by the type of their rows. Rows are in the order of their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Number; the row.
    Holdouts,
    /// Number; id, owner, the row.
    Claims,
    /// Holdout and owner; the row.
    Pools,
    /// The request's key; the row. There are two tables: one fills, the other runs out.
    Remembered(Half),
    /// The question; the id of the claim whose verdict answers it.
    Questions,
    /// Index; leaf hash, bytes.
    Entries,
    /// Index of the entry; number of the claim.
    Revocations,
    /// Number, from 1; bytes, chain.
    Journal,
    /// Number; digest, bytes or nothing if they are a blob.
    Modules,
    /// Number of the claim; digest, bytes or nothing if they are a blob.
    Traces,
    /// Digest.
    Blobs,
    /// The size of the log from which the key signs; the row.
    LogKeys,
    /// Number; owner, the row.
    Accounts,
    /// The first decision; index of the entry, the records.
    Decisions,
    /// Name; value.
    Facts,
}

/// One of the two tables in which requests are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    First,
    Second,
}

/// A column of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        // No row has a number beyond `i64`, so any such number is past the end.
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// A row as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// The row's key; rows are in its order.
    pub key: Vec<Value>,
    /// The row's other columns.
    pub fields: Vec<Value>,
}

impl StoredRow {
    /// The number in its key; 0 if its table has no numbers.
    #[must_use]
    pub fn number(&self) -> u64 {
        match self.key.first() {
            Some(Value::Number(number)) => *number as u64,
            _ => 0,
        }
    }

    /// The bytes of a field; empty if it has none.
    #[must_use]
    pub fn bytes(&self, field: usize) -> &[u8] {
        bytes_of(self.fields.get(field))
    }

    /// The bytes of a part of its key; empty if it has none.
    #[must_use]
    pub fn key_bytes(&self, part: usize) -> &[u8] {
        bytes_of(self.key.get(part))
    }

    /// The number in a field; 0 if it has none.
    #[must_use]
    pub fn number_in(&self, field: usize) -> u64 {
        match self.fields.get(field) {
            Some(Value::Number(number)) => *number as u64,
            _ => 0,
        }
    }

    /// Whether a field is empty, as in a row whose bytes are a blob.
    #[must_use]
    pub fn is_null(&self, field: usize) -> bool {
        matches!(self.fields.get(field), None | Some(Value::Null))
    }
}

fn bytes_of(value: Option<&Value>) -> &[u8] {
    match value {
        Some(Value::Bytes(bytes)) => bytes,
        Some(Value::Text(text)) => text.as_bytes(),
        _ => &[],
    }
}

/// Reads a store that no daemon serves.
///
/// # Errors
/// Every method fails with the engine's error if it cannot read.
#[allow(
    clippy::missing_errors_doc,
    reason = "all methods fail alike, as the trait says"
)]
pub trait Tables {
    /// The row with the store's numbers; `None` before a daemon has served the store.
    fn state(&self) -> Result<Option<StateRow>, StoreError>;

    /// Facts that the store keeps about itself.
    fn facts(&self) -> Result<Facts, StoreError>;

    /// The policies that the log stated last.
    fn in_force(&self) -> Result<InForce, StoreError>;

    /// The engine's own check of its pages and indices: their number, and a sentence for each error.
    fn look_over(&self) -> Result<(u64, Vec<String>), StoreError>;

    /// The number of rows in a table.
    fn count(&self, table: Table) -> Result<u64, StoreError>;

    /// The number of the last row of a table of numbers.
    fn last(&self, table: Table) -> Result<Option<u64>, StoreError>;

    /// The rows after a key, or from the first on, in order; at most `limit`.
    fn page(
        &self,
        table: Table,
        after: Option<&[Value]>,
        limit: usize,
    ) -> Result<Vec<StoredRow>, StoreError>;

    /// The row with a key.
    fn row(&self, table: Table, key: &[Value]) -> Result<Option<StoredRow>, StoreError>;

    /// The row of the claim with this id, found by the engine's index.
    fn claim_row(&self, id: &ClaimId) -> Result<Option<Vec<u8>>, StoreError>;

    /// Whether a module with this digest exists, by the engine's index.
    fn has_module(&self, hash: &Digest) -> Result<bool, StoreError>;
}
