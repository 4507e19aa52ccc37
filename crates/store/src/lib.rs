//! Durable state: one commit point, and what is projected from it.
//!
//! - [`Store`] is the seam: keyed reads, and [`Store::commit`], the one commit point. No SQL and
//!   no closures cross it, so that another engine can stand behind it.
//! - [`sqlite`] is the engine that ships: one transaction a batch, WAL, `synchronous=FULL`.
//!   [`memory`] is the one for tests, with injected faults.
//! - [`reader`] reads beside the writer. [`blobs`] keeps what is too large for a row, as files
//!   named by their digest. [`log`] projects the entries into C2SP tiles and a checkpoint.
//! - [`accounts`] projects the accounts into `accounts.json`.
//! - [`decisions`] keeps what tool calls were told, beside the log that has the roots of it.
//! - [`backup`] copies a data directory while it is served, and brings a copy back.
//! - [`fsck`] reads all of a data directory and says what is wrong with it.
//! - [`lock`] keeps a second process out of the directory.
//!
//! Invariants: what [`Outcome::Committed`] was answered for survives any crash; a batch is in the
//! store whole or not at all; no row is served whose checksum does not fit.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

pub mod accounts;
pub mod backup;
pub mod blobs;
pub mod decisions;
pub mod facts;
pub mod fsck;
pub mod guard;
pub mod lock;
pub mod log;
pub mod memory;
pub mod reader;
pub mod room;
mod row;
mod schema;
pub mod sqlite;

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use evidenceos_kernel::{
    account::Account,
    claim::Claim,
    command::{Event, Remembered},
    decision::DecisionBatch,
    holdout::PrincipalPool,
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    state::Changes,
};
use evidenceos_tlog::Hash;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use crate::blobs::Kept;
use crate::facts::Fact;

/// What is larger than this is a file of its own, not a row: 16 KiB.
pub const MAX_ROW_BYTES: usize = 16 * 1_024;

/// A store could not do what was asked of it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file or directory.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// SQLite reported an error.
    #[error("database: {0}{hint}", hint = hint(.0))]
    Database(#[from] rusqlite::Error),
    /// A row is not what was written.
    #[error(
        "{table} row {key} is damaged: {what}; stop, keep a copy of the data directory, and restore a backup"
    )]
    Damaged {
        table: &'static str,
        /// The row's key, as its table has it.
        key: String,
        what: &'static str,
    },
    /// The data directory is not ours to use.
    #[error("{0}")]
    Unusable(String),
}

/// What an operator can do about an error of the database.
fn hint(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            "; it is damaged: stop, keep a copy of the data directory, see what `evidenceos-daemon fsck` says, and restore a backup"
        }
        Some(rusqlite::ErrorCode::DiskFull) => "; the disk is full: free some space",
        Some(rusqlite::ErrorCode::ReadOnly) => {
            "; the data directory is read-only: remount it for writing, or correct its owner and mode"
        }
        Some(rusqlite::ErrorCode::SystemIoFailure | rusqlite::ErrorCode::CannotOpen) => {
            "; look for disk errors in the kernel's log and at the owner, mode and mount of the data directory"
        }
        _ => "",
    }
}

impl StoreError {
    /// Whether nothing but space on the disk is missing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            Self::Database(error) => {
                error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::Damaged { .. } | Self::Unusable(_) => false,
        }
    }

    /// Whether the file system takes no writes at all.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }

    /// Wraps an I/O error with what was tried on which path.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}

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
    /// As [`decisions::pack`] makes them.
    pub records: Arc<[u8]>,
}

/// What a store has done since it was opened: what noise cannot touch in a measurement.
#[derive(Debug, Default)]
pub struct Done {
    /// Transactions that were made durable.
    pub commits: AtomicU64,
    /// Write-ahead log copied into the database.
    pub checkpoints: AtomicU64,
    /// Rows that decisions read.
    pub rows_read: AtomicU64,
    /// Files of the log that were synced.
    pub log_files_synced: AtomicU64,
    /// Entries that tiles, bundles and the published checkpoint have.
    pub integrated: AtomicU64,
    /// 1 while new work is refused for want of space on the disk.
    pub short_of_space: AtomicU64,
    /// The last change of an account: the number of its journal row.
    pub accounts_seq: AtomicU64,
    /// Entries of the log that a reader may have seen: raised before a commit, taken back where it
    /// failed. See [`Done::seen`].
    pub(crate) visible: AtomicU64,
}

impl Done {
    /// Entries that whoever has just read rows may have seen the effect of: what is shown from
    /// those rows must not leave before this many entries are anchored. May be more for a moment,
    /// while a commit is under way, and is asked again by who waits long.
    #[must_use]
    pub fn seen(&self) -> u64 {
        // Acquire pairs with the release before a commit: a reader of the batch's rows sees its
        // entries counted.
        self.visible.load(Ordering::Acquire)
    }

    fn count(counter: &AtomicU64, by: u64) {
        // These numbers are read by people, and nothing is ordered by them.
        counter.fetch_add(by, Ordering::Relaxed);
    }
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

/// The fate of a commit.
#[derive(Debug)]
pub enum Outcome {
    /// It is durable: a crash does not undo it.
    Committed,
    /// Certainly not there; the store goes on.
    NotCommitted(NotCommitted),
    /// Nobody knows until the next start: the process must end without another word.
    Unknown(StoreError),
}

impl Outcome {
    /// Demands that it is durable; `what` was to be written.
    ///
    /// # Errors
    /// If it is not, or nobody knows.
    pub fn must_be_durable(self, what: &str) -> Result<(), StoreError> {
        match self {
            Self::Committed => Ok(()),
            Self::NotCommitted(NotCommitted::Full) => Err(StoreError::Unusable(format!(
                "{what} cannot be written: the disk is full"
            ))),
            Self::NotCommitted(NotCommitted::Constraint(error)) | Self::Unknown(error) => {
                Err(error)
            }
        }
    }
}

/// Why a batch is certainly not there.
#[derive(Debug)]
pub enum NotCommitted {
    /// The disk is full.
    Full,
    /// The batch breaks a rule of the store: a bug of ours.
    Constraint(StoreError),
}

/// Keyed reads, and the one commit point.
pub trait Store: Send {
    /// A claim by id.
    ///
    /// # Errors
    /// Where the store cannot be read or the row is damaged.
    fn claim(&mut self, id: &ClaimId) -> Result<Option<Claim>, StoreError>;

    /// A principal's pool on a holdout.
    ///
    /// # Errors
    /// As [`Store::claim`].
    fn pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError>;

    /// A remembered request.
    ///
    /// # Errors
    /// As [`Store::claim`].
    fn remembered(&mut self, key: &RequestKey) -> Result<Option<Remembered>, StoreError>;

    /// A principal's account.
    ///
    /// # Errors
    /// As [`Store::claim`].
    fn account(&mut self, owner: &OwnerTag) -> Result<Option<Account>, StoreError>;

    /// The claim to whose verdict a question is referred, if one asked it.
    ///
    /// # Errors
    /// As [`Store::claim`].
    fn question(&mut self, question: &Question) -> Result<Option<ClaimId>, StoreError>;

    /// Makes a batch durable, whole or not at all. The batch's holdouts must be registered in it
    /// or before it.
    fn commit(&mut self, batch: &Batch) -> Outcome;

    /// Does what waits between batches; called when nobody waits for a reply. `idle`: no command
    /// is waiting either.
    ///
    /// # Errors
    /// Where the store cannot go on.
    fn maintain(&mut self, idle: bool) -> Result<(), StoreError>;

    /// Whether there is room for new work; what was begun can end without.
    fn takes_new_work(&mut self) -> bool {
        true
    }

    /// Whether new work was refused for want of space when it was last looked at. While it is,
    /// [`Store::maintain`] must be called every 250 ms or so: it finds out when there is space
    /// again.
    fn is_short_of_space(&self) -> bool {
        false
    }

    /// What copies the store while batches go on; none where it cannot be copied.
    fn copier(&self) -> Option<Box<dyn Copier>> {
        None
    }
}

/// How far a copy is, in pages of the database. The total grows with what is written meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Pages that were copied.
    pub copied: u64,
    /// Pages that the database has now.
    pub total: u64,
}

/// Copies a store, a few pages at a time.
pub trait Copier {
    /// Copies into a directory that has no copy yet. `between` runs after each step but the last:
    /// batches may commit in it and are in the copy too. The copy is as of the last step. It is
    /// not synced. Breaks off where `between` does.
    ///
    /// # Errors
    /// Where the store cannot be read, or the copy not be written.
    fn copy(
        self: Box<Self>,
        to: &Path,
        between: &mut dyn FnMut(Pages) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StoreError>;
}
