//! What commits together: the batch, and the values in it.

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
    /// The root by RFC 9162.
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

/// Who caused which events, when: one command in the journal.
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
    /// Its bytes; empty where they are a blob.
    pub bytes: Vec<u8>,
}

/// A module that a claim was committed to.
#[derive(Debug, Clone)]
pub struct Module {
    /// The SHA-256 of its bytes.
    pub hash: Digest,
    /// Where its bytes are.
    pub bytes: ModuleBytes,
    /// Keeps what is stored already until the batch has committed.
    pub kept: Option<Kept>,
}

/// Where the bytes of a module are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleBytes {
    /// They are to be stored in its row.
    Row(Vec<u8>),
    /// They are a blob, which its row is to name.
    Blob,
    /// It has a row.
    Stored,
}

impl ModuleBytes {
    /// How many bytes come with the batch.
    #[must_use]
    pub fn brought(&self) -> usize {
        match self {
            Self::Row(bytes) => bytes.len(),
            Self::Blob | Self::Stored => 0,
        }
    }
}

/// Records of decisions about tool calls, and the log entry that has their root.
#[derive(Debug, Clone)]
pub struct StoredDecisions {
    /// What the log has of them.
    pub batch: DecisionBatch,
    /// The entry's index in the log, from 0.
    pub index: u64,
    /// When it was recorded.
    pub recorded_unix_ms: u64,
    /// As [`crate::decisions::pack`] makes them.
    pub records: Arc<[u8]>,
}

/// Everything that commits together.
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
    /// The signed head over all entries, where there are new ones.
    pub head: Option<Head>,
    /// The `accounts.json` that is about to be put in place, and the one that is there.
    pub accounts_files: Option<AccountsFiles>,
    /// What the database remembers about itself from now on.
    pub facts: Vec<Fact>,
}

/// The files of ours that a crash can leave as `accounts.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccountsFiles {
    /// The one that was announced last; it may be in place, or not yet.
    pub announced: Option<AccountsFile>,
    /// The one that was in place then.
    pub before: Option<AccountsFile>,
}

impl AccountsFiles {
    /// The one with a digest, if it is one of them.
    #[must_use]
    pub fn find(&self, sha256: &[u8; 32]) -> Option<AccountsFile> {
        let both = [self.announced, self.before].into_iter().flatten();
        both.into_iter().find(|file| file.sha256 == *sha256)
    }
}

/// What an `accounts.json` of ours holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountsFile {
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// The last change of an account that it shows: the number of its journal row.
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
