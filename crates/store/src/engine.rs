//! The interface of a storage engine to the other crates.
//!
//! - [`Store`] writes: keyed reads for decisions, and [`Store::commit`], the one commit point.
//! - [`StoreEngine`] adds the calls that a start and an operator's commands need from the writer.
//! - [`Rows`] reads committed rows, beside the writer and from many threads.
//! - [`crate::blobs::BlobStorage`] keeps bytes that are too large for a row.
//!
//! No database type and no statement crosses this interface. A new engine implements these traits and a function that
//! returns [`OpenedStore`]; it must pass the contract suite (`tests/store/contract.rs`) like the others.

use std::{
    ops::{ControlFlow, RangeInclusive},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use evidenceos_kernel::{
    account::{Account, Accounting, Totals},
    claim::Claim,
    command::Remembered,
    decision::DecisionId,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
    state::{Changes, Counters, Resident},
};
use evidenceos_tlog::Hash;

use crate::{
    AccountsFiles, Batch, Entry, Head, StoreError,
    blobs::Blobs,
    decisions::FoundDecision,
    facts::{Fact, Facts},
    row,
};

/// An opened store: its writer, its readers, and the state that was found.
pub struct OpenedStore {
    pub store: Box<dyn StoreEngine>,
    pub rows: Arc<dyn Rows>,
    pub found: Found,
}

impl std::fmt::Debug for OpenedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedStore")
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

/// The state that a start finds in the store.
#[derive(Debug, Clone)]
pub struct Found {
    /// Holdouts in the order of registration.
    pub holdouts: Vec<Holdout>,
    /// The counters of the last batch.
    pub counters: Counters,
    /// The last signed head.
    pub head: Option<Head>,
    /// The keys that signed the log, in order.
    pub log_keys: Vec<LogKey>,
    /// Sums over all accounts.
    pub totals: Totals,
    /// Number of the last journal row that changed an account.
    pub accounts_seq: u64,
    /// The versions of `accounts.json` that may be in place.
    pub accounts_files: AccountsFiles,
    /// Facts that the store keeps about itself.
    pub facts: Facts,
    /// The policies that the log stated last.
    pub in_force: InForce,
}

impl Found {
    /// The state on which commands are decided, as found; `engine` names the guest engine.
    #[must_use]
    pub fn resident(&self, accounting: Accounting, engine: String) -> Resident {
        Resident::new(self.holdouts.clone(), self.counters, engine)
            .with_accounts(accounting, self.totals)
            .with_in_force(self.in_force)
    }
}

/// Counts of the store's work since it was opened, which no noise can affect in a measurement.
#[derive(Debug, Default)]
pub struct Done {
    /// Transactions that were made durable.
    pub commits: AtomicU64,
    /// Copies of the write-ahead log into the database.
    pub checkpoints: AtomicU64,
    /// Rows that decisions read.
    pub rows_read: AtomicU64,
    /// Files of the log that were synced.
    pub log_files_synced: AtomicU64,
    /// Entries that tiles, bundles and the published checkpoint cover.
    pub integrated: AtomicU64,
    /// 1 while the disk has too little space for new work.
    pub short_of_space: AtomicU64,
    /// The last change of an account: the number of its journal row.
    pub accounts_seq: AtomicU64,
    /// Entries of the log that a reader may have seen: raised before a commit, lowered again if it
    /// failed. See [`Done::seen`].
    pub(crate) visible: AtomicU64,
}

impl Done {
    /// The number of entries whose effect a reader of rows may have seen. The daemon must not show rows before
    /// anchors cover this many entries. During a commit the number may be too large for a moment, so a caller that
    /// waits long asks again.
    #[must_use]
    pub fn seen(&self) -> u64 {
        // Acquire pairs with the release before a commit: a reader of the batch's rows counts its
        // entries.
        self.visible.load(Ordering::Acquire)
    }

    pub(crate) fn count(counter: &AtomicU64, by: u64) {
        // People read these numbers, and no code orders by them.
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// The fate of a commit.
#[derive(Debug)]
pub enum Outcome {
    /// It is durable: a crash does not undo it.
    Committed,
    /// It is certainly not in the store; the store goes on.
    NotCommitted(NotCommitted),
    /// Only the next start can tell: the process must end without another reply.
    Unknown(StoreError),
}

impl Outcome {
    /// Demands that the commit is durable; `what` names the written data.
    ///
    /// # Errors
    /// [`StoreError`] if it is not durable, or if that is unknown.
    pub fn must_be_durable(self, what: &str) -> Result<(), StoreError> {
        match self {
            Self::Committed => Ok(()),
            Self::NotCommitted(NotCommitted::Full) => Err(StoreError::full(what)),
            Self::NotCommitted(NotCommitted::Constraint(error)) | Self::Unknown(error) => {
                Err(error)
            }
        }
    }
}

/// The reason why a batch is certainly not in the store.
#[derive(Debug)]
pub enum NotCommitted {
    /// The disk is full.
    Full,
    /// The batch breaks a rule of the store: our bug.
    Constraint(StoreError),
}

/// Keyed reads, and the one commit point.
pub trait Store: Send {
    /// A claim by id.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read or the row is damaged.
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

    /// The claim whose verdict answers a question, if one asked it.
    ///
    /// # Errors
    /// As [`Store::claim`].
    fn question(&mut self, question: &Question) -> Result<Option<ClaimId>, StoreError>;

    /// Makes a batch durable, all of it or none. Its holdouts must be registered in it or before
    /// it.
    fn commit(&mut self, batch: &Batch) -> Outcome;

    /// Does deferred work between batches; called when no caller waits for a reply. `idle`: no
    /// command is waiting either.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot go on.
    fn maintain(&mut self, idle: bool) -> Result<(), StoreError>;

    /// Whether there is room for new work; work under way can end without it.
    fn takes_new_work(&mut self) -> bool {
        true
    }

    /// Whether the last look found too little space for new work. While this holds, call
    /// [`Store::maintain`] about every 250 ms: it notices when there is space again.
    fn is_short_of_space(&self) -> bool {
        false
    }

    /// Copies the store while batches go on; `None` if the engine cannot.
    fn copier(&self) -> Option<Box<dyn Copier>> {
        None
    }
}

/// A callback for each durable batch, with the time that its sync took.
pub type Observer = Box<dyn FnMut(&Batch, Duration) + Send>;

/// The writer's side of an engine, beyond single batches: the calls of a start and of an operator's commands.
pub trait StoreEngine: Store {
    /// The number of times that the store was opened to be served, this time included.
    fn epoch(&self) -> u64;

    /// Makes this start later than `epoch`: recovered entries may belong to starts that this store
    /// does not know, and numbers of decisions count the starts.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be written, or another process opened it since.
    fn be_later_than(&mut self, epoch: u64) -> Result<(), StoreError>;

    /// The counters of the last batch.
    fn counters(&self) -> Counters;

    /// Sets the space that must be free for new work, in bytes; 0: no minimum. An engine that does not use this
    /// machine's disk ignores it.
    fn keep_free(&mut self, bytes: u64);

    /// From now on releases data that nothing names any more, unless a keeper of the blobs holds it: replaced
    /// modules, and blobs of uploads that were not committed.
    fn release_through(&mut self, blobs: Blobs);

    /// From now on tells `observer` about each durable batch, and the time that its sync took.
    fn observe(&mut self, observer: Observer);

    /// The counts of work so far, shared with readers.
    fn done(&self) -> Arc<Done>;

    /// Commits the version of `accounts.json` that is about to be put in place, and nothing else.
    fn announce(&mut self, files: AccountsFiles) -> Outcome {
        let batch = Batch {
            accounts_files: Some(files),
            ..unchanged(self.counters())
        };
        self.commit(&batch)
    }

    /// Commits facts, and nothing else.
    fn remember(&mut self, facts: Vec<Fact>) -> Outcome {
        let batch = Batch {
            facts,
            ..unchanged(self.counters())
        };
        self.commit(&batch)
    }
}

/// A batch that changes no row.
fn unchanged(counters: Counters) -> Batch {
    Batch {
        changes: Changes {
            counters,
            ..Changes::default()
        },
        ..Batch::default()
    }
}

impl<S: Store + ?Sized> Store for Box<S> {
    fn claim(&mut self, id: &ClaimId) -> Result<Option<Claim>, StoreError> {
        (**self).claim(id)
    }

    fn pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        (**self).pool(holdout, owner)
    }

    fn remembered(&mut self, key: &RequestKey) -> Result<Option<Remembered>, StoreError> {
        (**self).remembered(key)
    }

    fn account(&mut self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        (**self).account(owner)
    }

    fn question(&mut self, question: &Question) -> Result<Option<ClaimId>, StoreError> {
        (**self).question(question)
    }

    fn commit(&mut self, batch: &Batch) -> Outcome {
        (**self).commit(batch)
    }

    fn maintain(&mut self, idle: bool) -> Result<(), StoreError> {
        (**self).maintain(idle)
    }

    fn takes_new_work(&mut self) -> bool {
        (**self).takes_new_work()
    }

    fn is_short_of_space(&self) -> bool {
        (**self).is_short_of_space()
    }

    fn copier(&self) -> Option<Box<dyn Copier>> {
        (**self).copier()
    }
}

/// The place of bytes that belong to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowBytes {
    /// In the row.
    Here(Vec<u8>),
    /// In the blob of their digest.
    Blob,
}

/// A callback for rows one after the other: number, and the bytes of [`crate::row::encode`]. An error stops the
/// reading.
pub type TakeRow<'t> = dyn FnMut(u64, &[u8]) -> Result<(), StoreError> + 't;

/// Reads committed rows beside the writer: each call sees all of a batch or nothing of it. Calls may block, and come
/// from many threads at once.
///
/// # Errors
/// Every method fails with [`StoreError::Damaged`] if a row's bytes do not match its checksum, and with the engine's
/// error if it cannot be read.
#[allow(
    clippy::missing_errors_doc,
    reason = "all methods fail alike, as the trait says"
)]
pub trait Rows: Send + Sync + std::fmt::Debug {
    /// The blobs beside the rows.
    fn blobs(&self) -> &Blobs;

    /// A claim by id, of one owner or of any. The row of another owner's claim is not read, so the
    /// call takes no longer than for a claim that does not exist, however large the row is.
    fn claim_of(&self, id: &ClaimId, owner: Option<OwnerTag>) -> Result<Option<Claim>, StoreError>;

    /// Whether a claim with this id exists; of one owner, or of any. Does not read its row.
    fn has_claim(&self, id: &ClaimId, owner: Option<OwnerTag>) -> Result<bool, StoreError>;

    /// A claim as by [`Rows::claim_of`], with its log entry if it has settled: everything that a
    /// fetch needs, in one look.
    fn claim_and_entry(
        &self,
        id: &ClaimId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<(Claim, Option<Entry>)>, StoreError>;

    /// A claim by number.
    fn claim_by_seq(&self, seq: u64) -> Result<Option<Claim>, StoreError>;

    /// A page of claims, newest first, older than `before`; of one owner or of all.
    fn claims(
        &self,
        owner: Option<OwnerTag>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Claim>, StoreError>;

    /// Claims with ids in a range, in the order of their ids; of one owner or of all.
    fn claims_by_id(
        &self,
        owner: Option<OwnerTag>,
        ids: &RangeInclusive<ClaimId>,
        limit: usize,
    ) -> Result<Vec<Claim>, StoreError>;

    /// Revoked claims in the order of their revocations, after a log index.
    fn revoked(&self, after: u64, limit: usize) -> Result<Vec<Claim>, StoreError>;

    /// A holdout by number.
    fn holdout(&self, seq: u64) -> Result<Option<Holdout>, StoreError>;

    /// A principal's pool on a holdout.
    fn pool(
        &self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError>;

    /// A principal's account.
    fn account(&self, owner: &OwnerTag) -> Result<Option<Account>, StoreError>;

    /// A page of accounts in the order of their opening, from a number on.
    fn accounts(&self, from: u64, limit: usize) -> Result<Vec<Account>, StoreError>;

    /// Reads a page of accounts, as [`Rows::accounts`] does, and the sums over all accounts at that moment.
    fn accounts_and_totals(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<(Vec<Account>, Totals), StoreError>;

    /// Every account as of one moment, in the order of their opening: number, and the row as [`crate::row::encode`]
    /// makes it. Returns the number of the last journal row that changed one. Fails if `take` fails.
    fn all_account_rows(&self, take: &mut TakeRow<'_>) -> Result<u64, StoreError>;

    /// Consecutive entries from an index on, each checked against its leaf hash; fewer at the end.
    fn entries(&self, start: u64, count: usize) -> Result<Vec<Entry>, StoreError>;

    /// Leaf hashes of consecutive entries, without their bytes; fewer at the end.
    fn leaves(&self, start: u64, count: usize) -> Result<Vec<Hash>, StoreError>;

    /// A decision about a tool call, by number; of one owner, or of any.
    fn decision(
        &self,
        id: DecisionId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<FoundDecision>, StoreError>;

    /// The last decision of the oldest batches, at most `at_most` of them, that were recorded
    /// before a time.
    fn decisions_before(
        &self,
        unix_ms: u64,
        at_most: usize,
    ) -> Result<Option<DecisionId>, StoreError>;

    /// The place of a module's bytes.
    fn module_row(&self, hash: &Digest) -> Result<Option<RowBytes>, StoreError>;

    /// Whether a module is stored.
    fn has_module(&self, hash: &Digest) -> Result<bool, StoreError>;

    /// The place of a trace's bytes, by the claim's number.
    fn trace_row(&self, claim_seq: u64) -> Result<Option<RowBytes>, StoreError>;

    /// Whether a row names a blob.
    fn names_blob(&self, hash: &Digest) -> Result<bool, StoreError>;

    /// Every account, as by [`Rows::all_account_rows`].
    fn all_accounts(
        &self,
        take: &mut dyn FnMut(Account) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        self.all_account_rows(&mut |seq, bytes| take(row::decode("accounts", seq, bytes)?))
    }

    /// A claim by id, of any owner.
    fn claim(&self, id: &ClaimId) -> Result<Option<Claim>, StoreError> {
        self.claim_of(id, None)
    }

    /// A module by digest.
    fn module(&self, hash: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        resolve(self.module_row(hash)?, hash, self.blobs())
    }

    /// The trace of a claim, by number and digest.
    fn trace(&self, claim_seq: u64, hash: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        resolve(self.trace_row(claim_seq)?, hash, self.blobs())
    }
}

/// Reads bytes by their digest, from their row or their blob.
fn resolve(
    found: Option<RowBytes>,
    hash: &Digest,
    blobs: &Blobs,
) -> Result<Option<Vec<u8>>, StoreError> {
    match found {
        None => Ok(None),
        Some(RowBytes::Blob) => blobs.get(hash).map(Some),
        // A row's checksum does not cover these bytes: their own digest does, at every read.
        Some(RowBytes::Here(bytes)) if Digest::of(&bytes) == *hash => Ok(Some(bytes)),
        Some(RowBytes::Here(_)) => Err(StoreError::Damaged {
            table: "modules or traces",
            key: hash.to_hex(),
            what: "its content has another digest",
        }),
    }
}

/// The progress of a copy, in pages of the database. The total grows with writes during the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Pages that were copied.
    pub copied: u64,
    /// Pages that the database has now.
    pub total: u64,
}

/// Copies a store, a few pages per step.
pub trait Copier {
    /// Copies into a directory that has no copy yet. `between` runs after each step but the last:
    /// batches may commit in it and are in the copy too. The copy has the state of the last step.
    /// It is not synced. Stops if `between` fails.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read, or the copy cannot be written.
    fn copy(
        self: Box<Self>,
        to: &Path,
        between: &mut dyn FnMut(Pages) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StoreError>;
}
