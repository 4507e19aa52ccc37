//! The batch that commits as one, and the values in it.

use std::sync::Arc;

use evidenceos_kernel::{
    command::Event,
    decision::DecisionBatch,
    id::{Digest, OwnerTag},
    state::Changes,
};
use evidenceos_tlog::Hash;
use serde::{Deserialize, Serialize};

use crate::{blobs::Kept, facts::Fact};

/// A signed tree head: the wire's form and the checkpoint note, of the same tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Entries that the head covers.
    pub size: u64,
    /// Root hash (RFC 9162).
    pub root: [u8; 32],
    /// Ed25519 over the wire's digest of size and root.
    pub signature: Vec<u8>,
    /// SHA-256 of the public key.
    pub key_id: Digest,
    /// The signed note over the same tree, in C2SP's format.
    pub checkpoint: String,
}

impl Head {
    /// The root as a hash.
    #[must_use]
    pub fn root(&self) -> Hash {
        Hash(self.root)
    }
}

/// A log entry with its leaf hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// RFC 9162 leaf hash of `bytes`.
    pub leaf: Hash,
    /// The canonical JSON of the record.
    pub bytes: Vec<u8>,
}

/// The events of one command, with the time of its batch: one row of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Time of the batch.
    pub at_unix_ms: u64,
    pub caller: OwnerTag,
    /// In the order in which they apply.
    pub events: Vec<Event>,
}

/// A trace, and the claim that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The claim's number, its key in the store.
    pub claim_seq: u64,
    /// The SHA-256 of the trace.
    pub hash: Digest,
    /// The trace's bytes; empty if they are in a blob.
    pub bytes: Vec<u8>,
}

/// A module that a claim was committed to.
#[derive(Debug, Clone)]
pub struct Module {
    /// The SHA-256 of its bytes.
    pub hash: Digest,
    /// The place of its bytes.
    pub bytes: ModuleBytes,
    /// Keeps bytes that are already stored until the batch has committed.
    pub kept: Option<Kept>,
}

/// The place of a module's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleBytes {
    /// In its row, to be stored with the batch.
    Row(Vec<u8>),
    /// In a blob, which its row will name.
    Blob,
    /// In a row that exists already.
    Stored,
}

impl ModuleBytes {
    /// The number of bytes that the batch stores for it.
    #[must_use]
    pub fn brought(&self) -> usize {
        match self {
            Self::Row(bytes) => bytes.len(),
            Self::Blob | Self::Stored => 0,
        }
    }
}

/// Records of decisions about tool calls, and the log entry with their root.
#[derive(Debug, Clone)]
pub struct StoredDecisions {
    /// The batch, as the log has it.
    pub batch: DecisionBatch,
    /// The entry's index in the log, from 0.
    pub index: u64,
    /// Time of the record, in Unix milliseconds.
    pub recorded_unix_ms: u64,
    /// The records, as [`crate::decisions::pack`] packs them.
    pub records: Arc<[u8]>,
}

/// All changes that commit together.
#[derive(Debug, Default)]
pub struct Batch {
    /// The rows to insert and to replace.
    pub changes: Changes,
    /// The journal's rows, one for each command.
    pub recorded: Vec<Recorded>,
    /// New entries, from index `changes.counters.next_index - entries.len()`.
    pub entries: Vec<Entry>,
    pub modules: Vec<Module>,
    pub traces: Vec<Trace>,
    pub decisions: Vec<StoredDecisions>,
    /// The signed head over all entries, if there are new ones.
    pub head: Option<Head>,
    /// The `accounts.json` that is about to be put in place, and the one in place.
    pub accounts_files: Option<AccountsFiles>,
    /// Facts that the database stores about itself from now on.
    pub facts: Vec<Fact>,
}

/// The versions of `accounts.json` that a crash can leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccountsFiles {
    /// The version that was announced last; it may be in place, or not yet.
    pub announced: Option<AccountsFile>,
    /// The version that the announced one replaces.
    pub before: Option<AccountsFile>,
}

impl AccountsFiles {
    /// The version with this digest, if there is one.
    #[must_use]
    pub fn find(&self, sha256: &[u8; 32]) -> Option<AccountsFile> {
        let both = [self.announced, self.before].into_iter().flatten();
        both.into_iter().find(|file| file.sha256 == *sha256)
    }
}

/// Facts about one version of `accounts.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountsFile {
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// Number of the journal row of the last account change in it.
    pub seq: u64,
}

impl Batch {
    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.recorded.is_empty()
            && self.head.is_none()
            && self.accounts_files.is_none()
            && self.facts.is_empty()
    }
}
