//! The store of releases: SQLite, one transaction a batch.
//!
//! `COMMIT` with WAL and `synchronous=FULL` returns after the log is synced: that is the commit
//! point. A commit has one of three fates (see [`Outcome`]); no sync is ever retried, since after a
//! failed one the kernel may have dropped the pages that it could not write. WAL checkpoints run
//! here, between batches, so that their time and their errors are seen.

mod at_rest;
mod copy;
mod error;
mod facts;
mod read;
mod rows;
mod schema;
mod transaction;
mod write;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    account::Account,
    claim::Claim,
    command::Remembered,
    holdout::PrincipalPool,
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    state::{Counters, REQUEST_WINDOW_MS},
};
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params, wal::CheckpointMode};

pub use self::{
    at_rest::{AtRest, exists, path_in},
    facts::{at_rest as facts_at_rest, beside, mark_restored},
    rows::SqliteRows,
    schema::DATABASE,
};
use self::{
    copy::OnlineCopy,
    transaction::{Transaction, WriteError, begin, may_fail},
};
use crate::{
    Batch, Copier, Done, Found, NotCommitted, Observer, OpenedStore, Outcome, Store, StoreEngine,
    StoreError,
    blobs::Blobs,
    error::DatabaseFault,
    room::Room,
    row,
    state::{StateRow, chain, journal_bytes},
};

/// A checkpoint runs between batches once the WAL has this many pages.
const CHECKPOINT_PAGES: i64 = 2_000;
/// The interval of retries on a full disk.
const PROBE: Duration = Duration::from_millis(250);
/// Once this many modules are replaced, they are released even between busy batches.
const DISPLACED: usize = 64;

/// Opens or creates the database of a data directory whose lock the caller holds, fences off every
/// earlier process, and opens the readers.
///
/// # Errors
/// As [`SqliteStore::open`], or [`StoreError`] if a reader cannot be opened.
pub fn open(data_directory: &Path) -> Result<OpenedStore, StoreError> {
    let (store, found) = SqliteStore::open(data_directory)?;
    Ok(OpenedStore {
        store: Box::new(store),
        rows: Arc::new(SqliteRows::open(data_directory)?),
        found,
    })
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
    /// The time of the first commit or probe that found the disk full, if none has succeeded since.
    full_since: Option<Instant>,
    /// Whether there was room for the batch that is being made, once it was checked.
    has_room: Option<bool>,
    observer: Option<Told>,
    /// Modules that no claim names any more, as far as this process knows.
    displaced: Vec<Digest>,
    /// The storage of large modules, and the record of which must stay.
    blobs: Option<Blobs>,
}

/// The observer, in a type that can be printed.
struct Told(Observer);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

impl SqliteStore {
    /// Opens or creates the database of a data directory whose lock the caller holds, and fences off every earlier
    /// process.
    ///
    /// # Errors
    /// [`StoreError::Database`] if it cannot be opened; [`StoreError::Refused`] if it belongs to another program or
    /// release, or was lost; [`StoreError::Damaged`] if rows that a start reads are damaged; [`StoreError::Locked`]
    /// or [`StoreError::Full`] if that is the cause.
    pub fn open(data_directory: &Path) -> Result<(Self, Found), StoreError> {
        Self::open_now(data_directory).map_err(|error| Room::new(data_directory).explain(error))
    }

    fn open_now(data_directory: &Path) -> Result<(Self, Found), StoreError> {
        let path = schema::path_in(data_directory);
        // Check before a file is created: a new database must not take the place of a lost one.
        schema::must_not_be_lost(data_directory)?;
        let mut connection = schema::open_writer(&path)?;
        let wal_pages = Arc::new(AtomicI64::new(0));
        let seen = Arc::clone(&wal_pages);
        // Automatic checkpoints are off. The hook tells `maintain` the length of the WAL.
        connection.wal_hook(Some(move |_: &mut _, pages| {
            seen.store(i64::from(pages), Ordering::Relaxed);
            Ok(())
        }))?;
        // From this commit on no earlier process can commit: its epoch is older than the row's.
        let (epoch, state) = raise_epoch(&mut connection)?;
        schema::fence_off(&connection)?;
        let holdouts = read::read_holdouts(&connection)?;
        read::check_journal_tail(&connection, &state)?;
        let found = Found {
            holdouts,
            counters: state.counters,
            head: state.head.clone(),
            log_keys: read::read_log_keys(&connection)?,
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
        let displaced = read::read_displaced(&connection)?;
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

    /// Releases data that nothing names any more.
    fn release(&mut self, idle: bool) -> Result<(), StoreError> {
        let Some(blobs) = &self.blobs else {
            return Ok(());
        };
        let connection = self.connection.lock();
        // Sweep even when calls wait: a caller whose uploads are refused keeps the writer from
        // being idle.
        blobs.sweep_doubtful(|name| read::is_blob_named(&connection, name))?;
        // Each release takes a commit.
        if self.displaced.is_empty() || !(idle || self.displaced.len() >= DISPLACED) {
            return Ok(());
        }
        blobs.release(&mut self.displaced, |free| {
            write::forget_modules(&connection, self.epoch, free)
        })
    }

    /// Tries a commit that changes nothing, to see whether there is room again.
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

    /// Logs once when room for new work ends and when it returns.
    fn note_room(&self, short: bool) {
        let was = self
            .done
            .short_of_space
            .swap(u64::from(short), Ordering::Relaxed);
        match (was != 0, short) {
            (false, true) => tracing::error!(
                keep_free = self.room.wanted(),
                "the disk is short of space: the daemon refuses new work, reads and settlements go on; free some space"
            ),
            (true, false) => tracing::info!("there is space again: the daemon takes new work"),
            _ => {}
        }
    }

    /// The connection, for reading: a batch's rows are read in the transaction that writes it, so that SQLite takes
    /// its locks once.
    fn reading(&self) -> Result<ReentrantMutexGuard<'_, Connection>, StoreError> {
        Done::count(&self.done.rows_read, 1);
        let connection = self.connection.lock();
        begin(&connection)?;
        Ok(connection)
    }

    /// Ends the transaction of a batch that changed nothing.
    fn end_reading(&self) -> Result<(), StoreError> {
        let connection = self.connection.lock();
        if !connection.is_autocommit() {
            connection.prepare_cached("ROLLBACK")?.execute([])?;
        }
        Ok(())
    }

    /// Writes a batch. Returns the state after it, and the time that the sync took.
    fn write(&mut self, batch: &Batch) -> Result<(StateRow, Duration), WriteError> {
        let next = self.next_state(batch);
        let connection = self.connection.lock();
        let transaction = Transaction::begin(&connection)?;
        failpoint::pass(Point::StoreBegin);
        write::write_rows(&transaction, batch)?;
        write::write_accounts(&transaction, batch)?;
        may_fail(Point::StoreRowsHalf)?;
        write::write_modules(&transaction, batch)?;
        write::write_log(&transaction, batch)?;
        write::write_decisions(&transaction, batch)?;
        write::write_journal(&transaction, batch, &next)?;
        self.write_remembered(&transaction, batch, &next)?;
        for fact in &batch.facts {
            facts::write(&transaction, fact)?;
        }
        if let Some(in_force) = &batch.changes.in_force {
            facts::write_in_force(&transaction, in_force)?;
        }
        // Check the epoch last in the transaction: if a later start has raised it, nothing of this
        // batch commits.
        let fenced = transaction
            .prepare_cached("UPDATE state SET row = ?1 WHERE id = 1 AND epoch = ?2")?
            .execute(params![row::encode(&next), self.epoch])?;
        if fenced != 1 {
            return Err(WriteError::Fence);
        }
        may_fail(Point::StoreCommitBefore)?;
        let started = Instant::now();
        // Raise the number before any reader can see the batch.
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

    /// New requests go to one of two tables. Once it covers a whole window, the other, whose
    /// requests are all older, is emptied and takes over.
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
        read::read_claim(&*self.reading()?, id, None)
    }

    fn pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        read::read_pool(&*self.reading()?, holdout, owner)
    }

    fn remembered(&mut self, key: &RequestKey) -> Result<Option<Remembered>, StoreError> {
        // A key that was used again after its window is in both tables: the younger row counts.
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
        read::read_account(&*self.reading()?, owner)
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
                if let Some(Told(observer)) = &mut self.observer {
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
                // The batch is certainly not in the store, so no reader has seen its entries. If
                // its fate is unknown, the number stays.
                if matches!(fate, Outcome::NotCommitted(_)) {
                    let entries = self.state.counters.next_index;
                    self.done.visible.store(entries, Ordering::Release);
                }
                if matches!(fate, Outcome::NotCommitted(NotCommitted::Full)) {
                    // Keep the time of the first failure: later failures do not delay the next
                    // probe.
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
            // On a full disk unnamed data stays until the next attempt.
            Err(error) if is_full(&error) => {}
            released => released?,
        }
        let pages = self.wal_pages.load(Ordering::Relaxed);
        if pages < CHECKPOINT_PAGES && !(idle && pages > 0) {
            return Ok(());
        }
        // PASSIVE waits for no reader, so a long read does not delay the writer.
        match self
            .connection
            .lock()
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE)
        {
            Ok((logged, done)) => {
                Done::count(&self.done.checkpoints, 1);
                // A reader may pin the rest; it is tried again after the next batch.
                self.wal_pages
                    .store(i64::from(logged.max(0) - done.max(0)), Ordering::Relaxed);
                Ok(())
            }
            // A full disk is the writer's normal refusal; the WAL keeps the committed batches.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn copier(&self) -> Option<Box<dyn Copier>> {
        Some(Box::new(OnlineCopy(Arc::clone(&self.connection))))
    }
}

impl StoreEngine for SqliteStore {
    fn epoch(&self) -> u64 {
        self.epoch as u64
    }

    fn be_later_than(&mut self, epoch: u64) -> Result<(), StoreError> {
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
            return Err(StoreError::locked(
                "another process opened the database",
                "stop it first",
            ));
        }
        self.epoch = next;
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.state.counters
    }

    fn keep_free(&mut self, bytes: u64) {
        self.room.floor = bytes;
    }

    fn release_through(&mut self, blobs: Blobs) {
        self.blobs = Some(blobs);
    }

    fn observe(&mut self, observer: Observer) {
        self.observer = Some(Told(observer));
    }

    fn done(&self) -> Arc<Done> {
        Arc::clone(&self.done)
    }
}

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(error) if error.fault == DatabaseFault::Full)
}

fn raise_epoch(connection: &mut Connection) -> Result<(i64, StateRow), StoreError> {
    let transaction = connection.transaction()?;
    let (epoch, state) = match read::read_state(&transaction)? {
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
