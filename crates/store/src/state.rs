//! The row with the store's numbers, and the chain of the journal.

use evidenceos_kernel::{account::Totals, state::Counters};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{AccountsFiles, Batch, Head};

/// The content of the one state row.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StateRow {
    pub counters: Counters,
    pub head: Option<Head>,
    /// Number of the last journal row.
    pub journal_seq: u64,
    /// SHA-256 over all journal rows: H(previous ‖ bytes).
    pub journal_chain: [u8; 32],
    /// The table that remembers new requests, and the time since when.
    pub remembered_table: u8,
    pub remembered_since_unix_ms: u64,
    /// Sums over all accounts.
    pub totals: Totals,
    /// Number of the last journal row that changed an account.
    pub accounts_seq: u64,
    pub accounts_files: AccountsFiles,
}

/// The journal's next link: SHA-256(previous ‖ bytes).
pub fn chain(previous: &[u8], bytes: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(previous)
        .chain_update(bytes)
        .finalize()
        .into()
}

pub(crate) fn journal_bytes(batch: &Batch) -> Vec<u8> {
    postcard::to_allocvec(&batch.recorded)
        .unwrap_or_else(|error| unreachable!("events of ours encode into memory: {error}"))
}
