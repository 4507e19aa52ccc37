//! The store that ships: SQLite, one transaction a batch.
//!
//! `COMMIT` with WAL and `synchronous=FULL` returns after the log is synced: that is the commit
//! point. The fate of a commit is one of three (see [`Outcome`]); no sync is ever retried, since
//! after a failed one the kernel may have dropped the pages that it could not write. WAL
//! checkpoints run here, between batches, so that their time and their errors are seen.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    account::{Account, Totals},
    claim::{Claim, ClaimState},
    command::Remembered,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
    state::{Changes, Counters, REQUEST_WINDOW_MS},
};
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _,
    backup::{Backup, StepResult},
    params,
    wal::CheckpointMode,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    AccountsFiles, Batch, Copier, Done, Head, ModuleBytes, NotCommitted, Outcome, Pages, Store,
    StoreError,
    blobs::Blobs,
    decisions,
    facts::{self, Fact, Facts},
    room::Room,
    row, schema,
};

/// Pages in the WAL from which a checkpoint runs between batches.
const CHECKPOINT_PAGES: i64 = 2_000;
/// How often a full disk is tried again.
const PROBE: Duration = Duration::from_millis(250);
/// Modules that other ones took the place of, from which they are let go of between batches.
const DISPLACED: usize = 64;
/// Pages that a copy takes at a time.
const COPY_PAGES: i32 = 256;

/// What the one state row holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct StateRow {
    pub(crate) counters: Counters,
    pub(crate) head: Option<Head>,
    /// Number of the last journal row.
    pub(crate) journal_seq: u64,
    /// SHA-256 over all journal rows: H(previous ‖ bytes).
    pub(crate) journal_chain: [u8; 32],
    /// Which of the two tables new requests are remembered in, and since when.
    remembered_table: u8,
    remembered_since_unix_ms: u64,
    /// Sums over all accounts.
    pub(crate) totals: Totals,
    /// Number of the last journal row that changed an account.
    pub(crate) accounts_seq: u64,
    pub(crate) accounts_files: AccountsFiles,
}

/// The writer's side of the database.
#[derive(Debug)]
pub struct SqliteStore {
    /// Only the writer's thread takes it. Reentrant, since a copy holds it from its first step to
    /// its last, and batches commit through it between the steps.
    connection: Arc<ReentrantMutex<Connection>>,
    epoch: i64,
    state: StateRow,
    wal_pages: Arc<AtomicI64>,
    done: Arc<Done>,
    room: Room,
    /// When the last commit or probe found the disk full, if none has succeeded since.
    full_since: Option<Instant>,
    /// Whether there was room when it was looked at for the batch that is being made.
    has_room: Option<bool>,
    observer: Option<Observer>,
    /// Modules that no claim names any more, as far as this process has seen.
    displaced: Vec<Digest>,
    /// Where large modules are, and what must stay.
    blobs: Option<Blobs>,
}

/// Is told of each batch that is durable, and how long the sync took.
type Told = dyn FnMut(&Batch, Duration) + Send;

/// The function that hears of durable batches.
struct Observer(Box<Told>);

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// What a start finds in the store.
#[derive(Debug)]
pub struct Found {
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
    /// What may lie there as `accounts.json`.
    pub accounts_files: AccountsFiles,
    /// What the database remembers about itself.
    pub facts: Facts,
    /// The policies that the log stated last.
    pub in_force: InForce,
}

impl SqliteStore {
    /// Whether a data directory has a database.
    #[must_use]
    pub fn exists(data_directory: &Path) -> bool {
        schema::path_in(data_directory).exists()
    }

    /// Opens or creates the database of a data directory whose lock is held, and fences off
    /// every earlier process.
    ///
    /// # Errors
    /// Where it cannot be opened, is another program's, or is damaged in what start-up reads.
    pub fn open(data_directory: &Path) -> Result<(Self, Found), StoreError> {
        Self::open_now(data_directory).map_err(|error| Room::new(data_directory).explain(error))
    }

    fn open_now(data_directory: &Path) -> Result<(Self, Found), StoreError> {
        let path = schema::path_in(data_directory);
        // Asked before a file is made: a new one must not take the place of a database that was
        // lost.
        schema::must_not_be_lost(data_directory)?;
        let mut connection = schema::open_writer(&path)?;
        let wal_pages = Arc::new(AtomicI64::new(0));
        let seen = Arc::clone(&wal_pages);
        // Automatic checkpoints are off. The hook tells `maintain` how long the WAL is.
        connection.wal_hook(Some(move |_: &mut _, pages| {
            seen.store(i64::from(pages), Ordering::Relaxed);
            Ok(())
        }))?;
        // From this commit on no earlier process can commit: its epoch is older than the row's.
        let (epoch, state) = raise_epoch(&mut connection)?;
        schema::fence_off(&connection)?;
        let holdouts = read_holdouts(&connection)?;
        check_journal_tail(&connection, &state)?;
        let found = Found {
            holdouts,
            counters: state.counters,
            head: state.head.clone(),
            log_keys: read_log_keys(&connection)?,
            totals: state.totals,
            accounts_seq: state.accounts_seq,
            accounts_files: state.accounts_files,
            facts: facts::read(&connection)?,
            in_force: facts::read_in_force(&connection)?,
        };
        if !state.totals.balance_out() {
            return Err(StoreError::Damaged {
                table: "state",
                key: "1".to_owned(),
                what: "the sums over all accounts do not balance",
            });
        }
        let displaced = read_displaced(&connection)?;
        let done = Done::default();
        done.accounts_seq
            .store(state.accounts_seq, Ordering::Relaxed);
        done.visible
            .store(state.counters.next_index, Ordering::Release);
        Ok((
            Self {
                connection: Arc::new(ReentrantMutex::new(connection)),
                epoch,
                state,
                wal_pages,
                done: Arc::new(done),
                room: Room::new(data_directory),
                full_since: None,
                has_room: None,
                observer: None,
                displaced,
                blobs: None,
            },
            found,
        ))
    }

    /// How often the database was opened to be served, this time included.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch as u64
    }

    /// Counts a start as a later one than `epoch`: entries that came back from elsewhere may be of
    /// starts that this database does not know, and numbers of decisions count the starts.
    ///
    /// # Errors
    /// If the database cannot be written, or somebody else opened it since.
    pub fn be_later_than(&mut self, epoch: u64) -> Result<(), StoreError> {
        let next = i64::try_from(epoch.saturating_add(1)).unwrap_or(i64::MAX);
        if next <= self.epoch {
            return Ok(());
        }
        // Within a batch's transaction this update would be lost with the batch.
        self.end_reading()?;
        let rows = self.connection.lock().execute(
            "UPDATE state SET epoch = ?1 WHERE id = 1 AND epoch = ?2",
            [next, self.epoch],
        )?;
        if rows != 1 {
            return Err(StoreError::Unusable(
                "another process opened the database; stop it first".to_owned(),
            ));
        }
        self.epoch = next;
        Ok(())
    }

    /// Commits which `accounts.json` is about to be put in place, and nothing else.
    pub fn announce(&mut self, files: AccountsFiles) -> Outcome {
        self.commit(&Batch {
            changes: Changes {
                counters: self.state.counters,
                ..Changes::default()
            },
            accounts_files: Some(files),
            ..Batch::default()
        })
    }

    /// Commits facts, and nothing else.
    pub fn remember(&mut self, facts: Vec<Fact>) -> Outcome {
        self.commit(&Batch {
            changes: Changes {
                counters: self.state.counters,
                ..Changes::default()
            },
            facts,
            ..Batch::default()
        })
    }

    /// Sets how much of the disk must be free for new work, in bytes; 0: anything will do.
    pub fn keep_free(&mut self, bytes: u64) {
        self.room.floor = bytes;
    }

    /// From now on lets go of what nothing names any more, unless these are kept: modules that other ones
    /// took the place of, and blobs of uploads that were not committed.
    pub fn release_through(&mut self, blobs: Blobs) {
        self.blobs = Some(blobs);
    }

    /// Lets go of what nothing names any more.
    fn release(&mut self, idle: bool) -> Result<(), StoreError> {
        let Some(blobs) = &self.blobs else {
            return Ok(());
        };
        let connection = self.connection.lock();
        // Also when calls wait: whoever sends what is refused keeps the writer from being idle.
        blobs.sweep_doubtful(|name| is_blob_named(&connection, name))?;
        // This takes a commit each time.
        if self.displaced.is_empty() || !(idle || self.displaced.len() >= DISPLACED) {
            return Ok(());
        }
        blobs.release(&mut self.displaced, |free| {
            forget_modules(&connection, self.epoch, free)
        })
    }

    /// From now on tells this of each batch that is durable, and how long its `COMMIT` took, which
    /// is the sync of the write-ahead log.
    pub fn observe(&mut self, observer: impl FnMut(&Batch, Duration) + Send + 'static) {
        self.observer = Some(Observer(Box::new(observer)));
    }

    /// Tries a commit that changes nothing: whether there is room again.
    fn probe(&mut self) -> Result<(), StoreError> {
        self.end_reading()?;
        failpoint::pass(Point::StoreFullProbe);
        let probed = self
            .connection
            .lock()
            .execute(
                "UPDATE state SET epoch = epoch WHERE id = 1 AND epoch = ?1",
                [self.epoch],
            )
            .map_err(WriteError::from)
            .and_then(|rows| (rows == 1).then_some(()).ok_or(WriteError::Fence));
        match probed {
            Ok(()) => {
                self.full_since = None;
                Ok(())
            }
            Err(error) => match error.fate(self.connection.lock().is_autocommit()) {
                Outcome::Unknown(error) => Err(error),
                Outcome::Committed | Outcome::NotCommitted(_) => {
                    self.full_since = Some(Instant::now());
                    Ok(())
                }
            },
        }
    }

    /// Says once when room for new work goes and when it comes back.
    fn note_room(&self, short: bool) {
        let was = self
            .done
            .short_of_space
            .swap(u64::from(short), Ordering::Relaxed);
        match (was != 0, short) {
            (false, true) => tracing::error!(
                keep_free = self.room.wanted(),
                "the disk is short of space: new work is refused, reads and settlements go on; free some"
            ),
            (true, false) => tracing::info!("there is space again: new work is taken"),
            _ => {}
        }
    }

    /// What was done so far, for others to read.
    #[must_use]
    pub fn done(&self) -> Arc<Done> {
        Arc::clone(&self.done)
    }

    /// The connection, to read from: what a batch needs is read in the transaction that writes it, so
    /// that SQLite takes its locks once.
    fn reading(&self) -> Result<ReentrantMutexGuard<'_, Connection>, StoreError> {
        Done::count(&self.done.rows_read, 1);
        let connection = self.connection.lock();
        begin(&connection)?;
        Ok(connection)
    }

    /// Ends the transaction of a batch that came to nothing.
    fn end_reading(&self) -> Result<(), StoreError> {
        let connection = self.connection.lock();
        if !connection.is_autocommit() {
            connection.prepare_cached("ROLLBACK")?.execute([])?;
        }
        Ok(())
    }

    /// The state after the batch, and how long the sync took.
    fn write(&mut self, batch: &Batch) -> Result<(StateRow, Duration), WriteError> {
        let next = self.next_state(batch);
        let connection = self.connection.lock();
        let transaction = Transaction::begin(&connection)?;
        failpoint::pass(Point::StoreBegin);
        write_rows(&transaction, batch)?;
        write_accounts(&transaction, batch)?;
        may_fail(Point::StoreRowsHalf)?;
        write_modules(&transaction, batch)?;
        write_log(&transaction, batch)?;
        decisions::write(&transaction, batch)?;
        write_journal(&transaction, batch, &next)?;
        self.write_remembered(&transaction, batch, &next)?;
        for fact in &batch.facts {
            facts::write(&transaction, fact)?;
        }
        if let Some(in_force) = &batch.changes.in_force {
            facts::write_in_force(&transaction, in_force)?;
        }
        // Last in the transaction: if a later start has raised the epoch, nothing of this batch
        // commits.
        let fenced = transaction
            .prepare_cached("UPDATE state SET row = ?1 WHERE id = 1 AND epoch = ?2")?
            .execute(params![row::encode(&next), self.epoch])?;
        if fenced != 1 {
            return Err(WriteError::Fence);
        }
        may_fail(Point::StoreCommitBefore)?;
        let started = Instant::now();
        // Before any reader can see it.
        self.done
            .visible
            .store(next.counters.next_index, Ordering::Release);
        transaction.commit()?;
        let took = started.elapsed();
        failpoint::pass(Point::StoreCommitSynced);
        Ok((next, took))
    }

    fn next_state(&self, batch: &Batch) -> StateRow {
        let mut next = self.state.clone();
        next.counters = batch.changes.counters;
        if let Some(head) = &batch.head {
            next.head = Some(head.clone());
        }
        if !batch.recorded.is_empty() {
            next.journal_seq += 1;
            next.journal_chain = chain(&self.state.journal_chain, &journal_bytes(batch));
        }
        next.totals = batch.changes.totals.unwrap_or(next.totals);
        if !batch.changes.new_accounts.is_empty() || !batch.changes.accounts.is_empty() {
            next.accounts_seq = next.journal_seq;
        }
        next.accounts_files = batch.accounts_files.unwrap_or(next.accounts_files);
        let now = batch.changes.counters.now_unix_ms;
        if now.saturating_sub(next.remembered_since_unix_ms) >= REQUEST_WINDOW_MS {
            next.remembered_table ^= 1;
            next.remembered_since_unix_ms = now;
        }
        next
    }

    /// New requests go to one of two tables. When that has covered a whole window the other,
    /// which then holds only what is older, is emptied and takes over.
    fn write_remembered(
        &self,
        connection: &Connection,
        batch: &Batch,
        next: &StateRow,
    ) -> Result<(), WriteError> {
        let table = next.remembered_table;
        if table != self.state.remembered_table {
            failpoint::pass(Point::IdemRotateBeforeDrop);
            connection.execute(&format!("DELETE FROM remembered_{table}"), [])?;
            failpoint::pass(Point::IdemRotateDropped);
        }
        if batch.changes.remembered.is_empty() {
            return Ok(());
        }
        let mut insert = connection.prepare_cached(&format!(
            "INSERT OR REPLACE INTO remembered_{table} (key, row) VALUES (?1, ?2)"
        ))?;
        for (key, remembered) in &batch.changes.remembered {
            insert.execute(params![key.as_bytes(), row::encode(remembered)])?;
        }
        Ok(())
    }
}

impl Store for SqliteStore {
    fn claim(&mut self, id: &ClaimId) -> Result<Option<Claim>, StoreError> {
        read_claim(&*self.reading()?, id, None)
    }

    fn pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        read_pool(&*self.reading()?, holdout, owner)
    }

    fn remembered(&mut self, key: &RequestKey) -> Result<Option<Remembered>, StoreError> {
        // A key that was used again after its window is in both: the younger row counts.
        let current = self.state.remembered_table;
        let connection = self.reading()?;
        for table in [current, current ^ 1] {
            let bytes: Option<Vec<u8>> = connection
                .prepare_cached(&format!(
                    "SELECT row FROM remembered_{table} WHERE key = ?1"
                ))?
                .query_row([key.as_bytes()], |row| row.get(0))
                .optional()?;
            if let Some(bytes) = bytes {
                return row::decode("remembered", key, &bytes).map(Some);
            }
        }
        Ok(None)
    }

    fn account(&mut self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        read_account(&*self.reading()?, owner)
    }

    fn question(&mut self, question: &Question) -> Result<Option<ClaimId>, StoreError> {
        let claim: Option<[u8; 32]> = self
            .reading()?
            .prepare_cached("SELECT claim_id FROM questions WHERE question = ?1")?
            .query_row([question.as_bytes()], |row| row.get(0))
            .optional()?;
        Ok(claim.map(ClaimId))
    }

    fn commit(&mut self, batch: &Batch) -> Outcome {
        self.has_room = None;
        match self.write(batch) {
            Ok((next, took)) => {
                self.state = next;
                self.displaced
                    .extend_from_slice(&batch.changes.displaced_modules);
                if let Some(Observer(observer)) = &mut self.observer {
                    observer(batch, took);
                }
                self.done
                    .accounts_seq
                    .store(self.state.accounts_seq, Ordering::Relaxed);
                Done::count(&self.done.commits, 1);
                self.full_since = None;
                Outcome::Committed
            }
            Err(error) => {
                let fate = error.fate(self.connection.lock().is_autocommit());
                // The batch is certainly not there, so that no reader has seen its entries. If its
                // fate is unknown, the number stays.
                if matches!(fate, Outcome::NotCommitted(_)) {
                    let entries = self.state.counters.next_index;
                    self.done.visible.store(entries, Ordering::Release);
                }
                if matches!(fate, Outcome::NotCommitted(NotCommitted::Full)) {
                    // Since the first that failed: those that follow do not put the look off.
                    self.full_since.get_or_insert_with(Instant::now);
                    self.note_room(true);
                }
                fate
            }
        }
    }

    fn takes_new_work(&mut self) -> bool {
        let has_room = *self.has_room.get_or_insert_with(|| self.room.suffices());
        let takes = self.full_since.is_none() && has_room;
        self.note_room(!takes);
        takes
    }

    fn is_short_of_space(&self) -> bool {
        self.done.short_of_space.load(Ordering::Relaxed) != 0
    }

    fn maintain(&mut self, idle: bool) -> Result<(), StoreError> {
        self.end_reading()?;
        self.has_room = None;
        if self.full_since.is_some_and(|at| at.elapsed() >= PROBE) {
            self.probe()?;
        }
        if self.is_short_of_space() {
            self.takes_new_work();
        }
        match self.release(idle) {
            // On a full disk what nothing names stays where it is, until the next look.
            Err(error) if is_full(&error) => {}
            released => released?,
        }
        let pages = self.wal_pages.load(Ordering::Relaxed);
        if pages < CHECKPOINT_PAGES && !(idle && pages > 0) {
            return Ok(());
        }
        // PASSIVE waits for no reader, so that a long read does not hold up the writer.
        match self
            .connection
            .lock()
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE)
        {
            Ok((logged, done)) => {
                Done::count(&self.done.checkpoints, 1);
                // A reader may pin the rest; what is left is tried again after the next batch.
                self.wal_pages
                    .store(i64::from(logged.max(0) - done.max(0)), Ordering::Relaxed);
                Ok(())
            }
            // A full disk is the writer's normal refusal; the WAL keeps what was committed.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn copier(&self) -> Option<Box<dyn Copier>> {
        Some(Box::new(OnlineCopy(Arc::clone(&self.connection))))
    }
}

/// The copy of a database through the connection that writes it: what is written between two
/// steps is carried over, where from another connection each commit would begin the copy anew.
struct OnlineCopy(Arc<ReentrantMutex<Connection>>);

impl Copier for OnlineCopy {
    fn copy(
        self: Box<Self>,
        to: &Path,
        between: &mut dyn FnMut(Pages) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StoreError> {
        copy_pages(&self.0.lock(), to, between)
    }
}

/// Copies a database page by page into the directory `to`. The copy is not durable yet: whoever
/// ordered it syncs it, so that nobody waits for that here.
pub(crate) fn copy_pages(
    from: &Connection,
    to: &Path,
    between: &mut dyn FnMut(Pages) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, StoreError> {
    let mut target = schema::open_copy(to)?;
    let backup = Backup::new(from, &mut target)?;
    loop {
        let step = backup.step(COPY_PAGES)?;
        failpoint::pass(Point::BackupStep);
        let progress = backup.progress();
        if step == StepResult::Done {
            return Ok(ControlFlow::Continue(()));
        }
        let total = u64::try_from(progress.pagecount).unwrap_or(0);
        let left = u64::try_from(progress.remaining).unwrap_or(0);
        let pages = Pages {
            copied: total.saturating_sub(left),
            total,
        };
        if between(pages).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull))
}

fn begin(connection: &Connection) -> rusqlite::Result<()> {
    if connection.is_autocommit() {
        connection.prepare_cached("BEGIN")?.execute([])?;
    }
    Ok(())
}

/// A transaction, which has begun with what was read for it. Dropped: it came to nothing.
struct Transaction<'c>(&'c Connection);

impl<'c> Transaction<'c> {
    fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        begin(connection)?;
        Ok(Self(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // If this fails too, the connection says that it is still inside: nothing is known.
            let _ = self.0.execute_batch("ROLLBACK");
        }
    }
}

impl std::ops::Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

enum WriteError {
    Database(rusqlite::Error),
    Fence,
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl WriteError {
    /// The fate of a batch whose write failed. Only a full disk and a broken rule leave no doubt,
    /// and only once SQLite has rolled the transaction back.
    fn fate(self, rolled_back: bool) -> Outcome {
        let error = match self {
            Self::Fence => {
                // `NotCommitted` would let this process go on beside the one that took over.
                return Outcome::Unknown(StoreError::Unusable(
                    "another process has taken over the database".to_owned(),
                ));
            }
            Self::Database(error) => error,
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) if rolled_back => Outcome::NotCommitted(NotCommitted::Full),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch)
                if rolled_back =>
            {
                Outcome::NotCommitted(NotCommitted::Constraint(error.into()))
            }
            _ => Outcome::Unknown(error.into()),
        }
    }
}

/// A point where a crash test plays a full or a broken disk, in SQLite's words.
fn may_fail(point: Point) -> Result<(), rusqlite::Error> {
    failpoint::reach(point).map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::StorageFull {
            rusqlite::ffi::SQLITE_FULL
        } else {
            rusqlite::ffi::SQLITE_IOERR
        };
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
    })
}

/// The epoch and the state row, if there is one yet.
pub(crate) fn read_state(connection: &Connection) -> Result<Option<(i64, StateRow)>, StoreError> {
    let found: Option<(i64, Vec<u8>)> = connection
        .query_row("SELECT epoch, row FROM state WHERE id = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    found
        .map(|(epoch, bytes)| Ok((epoch, row::decode("state", 1, &bytes)?)))
        .transpose()
}

/// Rows of a table.
pub(crate) fn count(connection: &Connection, table: &str) -> Result<u64, StoreError> {
    let rows: i64 = connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
        row.get(0)
    })?;
    Ok(rows as u64)
}

/// A page of the names of blobs, in order.
pub(crate) fn blob_names(
    connection: &Connection,
    after: &[u8],
    limit: usize,
) -> Result<Vec<Digest>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT hash FROM blobs WHERE hash > ?1 ORDER BY hash LIMIT ?2")?;
    let names = statement
        .query_map(params![after, limit as i64], |row| {
            row.get::<_, [u8; 32]>(0).map(Digest)
        })?
        .collect::<Result<_, _>>()?;
    Ok(names)
}

fn raise_epoch(connection: &mut Connection) -> Result<(i64, StateRow), StoreError> {
    let transaction = connection.transaction()?;
    let (epoch, state) = match read_state(&transaction)? {
        Some((epoch, state)) => (epoch + 1, state),
        None => (1, StateRow::default()),
    };
    transaction.execute(
        "INSERT INTO state (id, epoch, row) VALUES (1, ?1, ?2)
         ON CONFLICT (id) DO UPDATE SET epoch = ?1",
        params![epoch, row::encode(&state)],
    )?;
    transaction.commit()?;
    Ok((epoch, state))
}

fn read_holdouts(connection: &Connection) -> Result<Vec<Holdout>, StoreError> {
    let mut statement = connection.prepare("SELECT seq, row FROM holdouts ORDER BY seq")?;
    let mut rows = statement.query([])?;
    let mut holdouts = Vec::new();
    while let Some(found) = rows.next()? {
        let (seq, bytes): (i64, Vec<u8>) = (found.get(0)?, found.get(1)?);
        holdouts.push(row::decode_holdout(seq, &bytes)?);
    }
    Ok(holdouts)
}

fn read_log_keys(connection: &Connection) -> Result<Vec<LogKey>, StoreError> {
    let mut statement =
        connection.prepare("SELECT since_size, row FROM log_keys ORDER BY since_size")?;
    let mut rows = statement.query([])?;
    let mut keys = Vec::new();
    while let Some(found) = rows.next()? {
        let (since, bytes): (i64, Vec<u8>) = (found.get(0)?, found.get(1)?);
        keys.push(row::decode("log_keys", since, &bytes)?);
    }
    Ok(keys)
}

/// The last journal row must end the chain that the state row names.
fn check_journal_tail(connection: &Connection, state: &StateRow) -> Result<(), StoreError> {
    if state.journal_seq == 0 {
        return Ok(());
    }
    let seq = state.journal_seq as i64;
    let chain_at = |seq: i64| {
        connection
            .query_row(
                "SELECT bytes, chain FROM journal WHERE seq = ?1",
                [seq],
                |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)),
            )
            .optional()
    };
    let damaged = |what| StoreError::Damaged {
        table: "journal",
        key: seq.to_string(),
        what,
    };
    let (bytes, stored) = chain_at(seq)?.ok_or_else(|| damaged("it is missing"))?;
    let previous = match chain_at(seq - 1)? {
        Some((_, previous)) => previous,
        None => vec![0; 32],
    };
    if stored != state.journal_chain || chain(&previous, &bytes) != state.journal_chain {
        return Err(damaged("it does not end the chain of the journal"));
    }
    Ok(())
}

/// The journal's next link: SHA-256(previous ‖ bytes).
pub(crate) fn chain(previous: &[u8], bytes: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(previous)
        .chain_update(bytes)
        .finalize()
        .into()
}

fn journal_bytes(batch: &Batch) -> Vec<u8> {
    postcard::to_allocvec(&batch.recorded)
        .unwrap_or_else(|error| unreachable!("events of ours encode into memory: {error}"))
}

fn write_rows(connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
    let changes = &batch.changes;
    let mut insert = connection
        .prepare_cached("INSERT INTO claims (seq, claim_id, owner, row) VALUES (?1, ?2, ?3, ?4)")?;
    for claim in &changes.new_claims {
        insert.execute(params![
            claim.seq as i64,
            claim.id.as_bytes(),
            claim.terms.owner.as_bytes(),
            row::encode_growing(claim)
        ])?;
    }
    let mut update = connection.prepare_cached("UPDATE claims SET row = ?2 WHERE seq = ?1")?;
    for claim in &changes.claims {
        // A claim that was read and is gone: the database lost a row, and nothing may follow it.
        match update.execute(params![claim.seq as i64, row::encode_growing(claim)])? {
            1 => {}
            rows => return Err(rusqlite::Error::StatementChangedRows(rows).into()),
        }
    }
    let mut holdouts =
        connection.prepare_cached("INSERT OR REPLACE INTO holdouts (seq, row) VALUES (?1, ?2)")?;
    for holdout in &changes.holdouts {
        holdouts.execute(params![holdout.seq as i64, row::encode_holdout(holdout)])?;
    }
    for blob in &changes.named_blobs {
        name_blob(connection, blob.as_bytes())?;
    }
    for blob in &changes.dropped_blobs {
        connection
            .prepare_cached("DELETE FROM blobs WHERE hash = ?1")?
            .execute([blob.as_bytes()])?;
    }
    for key in &changes.log_keys {
        connection
            .prepare_cached("INSERT INTO log_keys (since_size, row) VALUES (?1, ?2)")?
            .execute(params![key.since_size as i64, row::encode(key)])?;
    }
    let mut questions = connection
        .prepare_cached("INSERT OR REPLACE INTO questions (question, claim_id) VALUES (?1, ?2)")?;
    for (question, claim) in &changes.questions {
        questions.execute(params![question.as_bytes(), claim.as_bytes()])?;
    }
    let mut pools = connection
        .prepare_cached("INSERT OR REPLACE INTO pools (holdout, owner, row) VALUES (?1, ?2, ?3)")?;
    for (holdout, owner, pool) in &changes.pools {
        pools.execute(params![
            holdout.as_bytes(),
            owner.as_bytes(),
            row::encode(pool)
        ])?;
    }
    Ok(())
}

fn write_accounts(connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
    let changes = &batch.changes;
    let mut insert =
        connection.prepare_cached("INSERT INTO accounts (seq, owner, row) VALUES (?1, ?2, ?3)")?;
    for account in &changes.new_accounts {
        insert.execute(params![
            account.seq as i64,
            account.owner.as_bytes(),
            row::encode(account)
        ])?;
    }
    let mut update = connection.prepare_cached("UPDATE accounts SET row = ?2 WHERE seq = ?1")?;
    for account in &changes.accounts {
        // As with claims: what was read and is gone must stop everything.
        match update.execute(params![account.seq as i64, row::encode(account)])? {
            1 => {}
            rows => return Err(rusqlite::Error::StatementChangedRows(rows).into()),
        }
    }
    Ok(())
}

fn write_log(connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
    let first = batch.changes.counters.next_index - batch.entries.len() as u64;
    let mut entries =
        connection.prepare_cached("INSERT INTO entries (idx, leaf, bytes) VALUES (?1, ?2, ?3)")?;
    for (index, entry) in (first..).zip(&batch.entries) {
        entries.execute(params![index as i64, entry.leaf.as_bytes(), entry.bytes])?;
    }
    let mut traces = connection
        .prepare_cached("INSERT INTO traces (claim_seq, hash, bytes) VALUES (?1, ?2, ?3)")?;
    for trace in &batch.traces {
        traces.execute(params![
            trace.claim_seq as i64,
            trace.hash.as_bytes(),
            row_bytes(&trace.bytes)
        ])?;
        if trace.bytes.is_empty() {
            name_blob(connection, trace.hash.as_bytes())?;
        }
    }
    let revoked = batch
        .changes
        .claims
        .iter()
        .filter(|claim| claim.state == ClaimState::Revoked);
    // A claim that changes after its revocation comes by again, and its row stays the same.
    for claim in revoked {
        if let Some(revocation) = &claim.revocation {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO revocations (idx, claim_seq) VALUES (?1, ?2)",
                )?
                .execute(params![revocation.index as i64, claim.seq as i64])?;
        }
    }
    Ok(())
}

/// Stores modules, and counts the claims that name each. Those of before there was a count have none.
fn write_modules(connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO modules (hash, bytes, claims) VALUES (?1, ?2, 1)
         ON CONFLICT (hash) DO UPDATE SET claims = claims + 1",
    )?;
    let mut count =
        connection.prepare_cached("UPDATE modules SET claims = claims + ?2 WHERE hash = ?1")?;
    let mut add = |hash: &Digest, by: i64| match count.execute(params![hash.as_bytes(), by])? {
        1 => Ok(()),
        // A claim would name a module that is not there.
        rows => Err(WriteError::from(rusqlite::Error::StatementChangedRows(
            rows,
        ))),
    };
    for hash in &batch.changes.named_modules {
        let brought = batch.modules.iter().find(|module| module.hash == *hash);
        match brought.map(|module| &module.bytes) {
            Some(ModuleBytes::Row(bytes)) => {
                insert.execute(params![hash.as_bytes(), bytes])?;
            }
            Some(ModuleBytes::Blob) => {
                insert.execute(params![hash.as_bytes(), None::<&[u8]>])?;
                name_blob(connection, hash.as_bytes())?;
            }
            Some(ModuleBytes::Stored) | None => add(hash, 1)?,
        }
    }
    for hash in &batch.changes.displaced_modules {
        add(hash, -1)?;
    }
    Ok(())
}

fn read_displaced(connection: &Connection) -> Result<Vec<Digest>, StoreError> {
    let mut select = connection.prepare("SELECT hash FROM modules WHERE claims = 0")?;
    let hashes = select.query_map([], |row| row.get(0).map(Digest))?;
    Ok(hashes.collect::<rusqlite::Result<_>>()?)
}

/// Removes those of the modules that no claim names. Returns those whose bytes are blobs.
fn forget_modules(
    connection: &Connection,
    epoch: i64,
    modules: &[Digest],
) -> Result<Vec<Digest>, StoreError> {
    let transaction = Transaction::begin(connection)?;
    let mut blobs = Vec::new();
    {
        let mut delete = transaction.prepare_cached(
            "DELETE FROM modules WHERE hash = ?1 AND claims = 0 RETURNING bytes IS NULL",
        )?;
        let mut unname = transaction.prepare_cached("DELETE FROM blobs WHERE hash = ?1")?;
        for module in modules {
            let is_blob = delete
                .query_row([module.as_bytes()], |row| row.get(0))
                .optional()?;
            if is_blob == Some(true) {
                unname.execute([module.as_bytes()])?;
                blobs.push(*module);
            }
        }
        // This commit is fenced too: a process that was taken over must not remove what the other
        // one names.
        let fenced = transaction
            .prepare_cached("UPDATE state SET epoch = epoch WHERE id = 1 AND epoch = ?1")?
            .execute([epoch])?;
        if fenced != 1 {
            return Err(StoreError::Unusable(
                "another process has opened the database; only one may".to_owned(),
            ));
        }
    }
    transaction.commit()?;
    Ok(blobs)
}

pub(crate) fn is_blob_named(connection: &Connection, hash: &Digest) -> Result<bool, StoreError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM blobs WHERE hash = ?1")?
        .exists([hash.as_bytes()])?)
}

fn row_bytes(bytes: &[u8]) -> Option<&[u8]> {
    (!bytes.is_empty()).then_some(bytes)
}

fn name_blob(connection: &Connection, hash: &[u8]) -> Result<(), WriteError> {
    connection
        .prepare_cached("INSERT INTO blobs (hash) VALUES (?1) ON CONFLICT DO NOTHING")?
        .execute([hash])?;
    Ok(())
}

fn write_journal(
    connection: &Connection,
    batch: &Batch,
    next: &StateRow,
) -> Result<(), WriteError> {
    if batch.recorded.is_empty() {
        return Ok(());
    }
    connection
        .prepare_cached("INSERT INTO journal (seq, bytes, chain) VALUES (?1, ?2, ?3)")?
        .execute(params![
            next.journal_seq as i64,
            journal_bytes(batch),
            next.journal_chain
        ])?;
    Ok(())
}

pub(crate) fn read_claim(
    connection: &Connection,
    id: &ClaimId,
    owner: Option<OwnerTag>,
) -> Result<Option<Claim>, StoreError> {
    // The owner stands before the row: of another owner's claim nothing else is read.
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached(
            "SELECT row FROM claims WHERE claim_id = ?1 AND (?2 IS NULL OR owner = ?2)",
        )?
        .query_row(
            params![id.as_bytes(), owner.as_ref().map(OwnerTag::as_bytes)],
            |row| row.get(0),
        )
        .optional()?;
    bytes
        .map(|bytes| row::decode("claims", id, &bytes))
        .transpose()
}

pub(crate) fn read_account(
    connection: &Connection,
    owner: &OwnerTag,
) -> Result<Option<Account>, StoreError> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached("SELECT row FROM accounts WHERE owner = ?1")?
        .query_row([owner.as_bytes()], |row| row.get(0))
        .optional()?;
    bytes
        .map(|bytes| row::decode("accounts", owner, &bytes))
        .transpose()
}

/// The sums over all accounts, and the number of the last journal row that changed one.
pub(crate) fn read_totals(connection: &Connection) -> Result<(Totals, u64), StoreError> {
    let bytes: Vec<u8> = connection
        .prepare_cached("SELECT row FROM state WHERE id = 1")?
        .query_row([], |row| row.get(0))?;
    let state: StateRow = row::decode("state", 1, &bytes)?;
    Ok((state.totals, state.accounts_seq))
}

pub(crate) fn read_pool(
    connection: &Connection,
    holdout: HoldoutId,
    owner: OwnerTag,
) -> Result<Option<PrincipalPool>, StoreError> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached("SELECT row FROM pools WHERE holdout = ?1 AND owner = ?2")?
        .query_row(params![holdout.as_bytes(), owner.as_bytes()], |row| {
            row.get(0)
        })
        .optional()?;
    bytes
        .map(|bytes| row::decode("pools", owner, &bytes))
        .transpose()
}
