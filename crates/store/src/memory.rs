//! A store in memory with injected faults, for tests.
//!
//! A batch goes through a write-ahead log, as on a real disk: a commit that certainly fails leaves nothing; a commit
//! in doubt leaves the rows that reached the disk, and only the restart reads them. The restart takes a batch only if
//! every row up to its end mark is there. Using the store after a commit in doubt panics.
//!
//! [`MemoryDisk`] makes an engine of it that is opened, read beside the writer and opened again like the others: the
//! contract suite holds it to the same rules.

mod committed;
mod disk;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::Claim,
    command::Remembered,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
    state::Counters,
};

use self::committed::{Committed, Row, rows};
pub use self::disk::{MemoryBlobs, MemoryDisk};
use crate::{
    AccountsFiles, Batch, Done, Entry, Head, NotCommitted, Observer, Outcome, Recorded, Store,
    StoreEngine, StoreError,
    blobs::Blobs,
    error::{DatabaseError, DatabaseFault},
};

/// The injected fate of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The commit succeeds and is durable.
    None,
    /// The disk is full: the batch is not in the store.
    Full,
    /// The batch breaks a rule of the store: it is not in the store.
    Constraint,
    /// In doubt; the restart finds nothing of it.
    UnknownLost,
    /// In doubt; the restart finds all of it, and no reader before that.
    UnknownKept,
    /// In doubt; its nth row (modulo their number) did not reach the disk, all others did.
    Torn(usize),
}

/// The rows that a restart finds after the last certain commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing of a batch in doubt.
    Nothing,
    /// All of a batch in doubt.
    Whole,
    /// Some rows of a batch in doubt.
    Torn,
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    committed: Committed,
    faults: VecDeque<Fault>,
    played: Vec<Fault>,
    /// The rows after the last commit, once one is in doubt; `None`: a missing row.
    tail: Option<Vec<Option<Row>>>,
    /// The part that outlives the store and that readers share.
    disk: Option<MemoryDisk>,
    epoch: u64,
    done: Arc<Done>,
    observer: Option<Told>,
    blobs: Option<Blobs>,
}

/// The observer, in a type that can be printed.
struct Told(Observer);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

impl MemoryStore {
    /// The fates of the next commits; none after the last.
    pub fn inject(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
    }

    /// Faults that commits met so far, in order; restarts keep them.
    #[must_use]
    pub fn played(&self) -> &[Fault] {
        &self.played
    }

    /// The store as a restart finds it.
    #[must_use]
    pub fn restarted(&self) -> (Self, Tail) {
        let mut store = Self {
            committed: self.committed.clone(),
            faults: self.faults.clone(),
            played: self.played.clone(),
            ..Self::default()
        };
        let Some(tail) = self.tail.clone().filter(|tail| !tail.is_empty()) else {
            return (store, Tail::Nothing);
        };
        // Each row's checksum includes those before it, so a gap ends the log.
        let chain: Vec<Row> = tail.into_iter().map_while(|row| row).collect();
        if !matches!(chain.last(), Some(Row::End)) {
            return (store, Tail::Torn);
        }
        chain.into_iter().for_each(|row| store.committed.keep(row));
        (store, Tail::Whole)
    }

    /// The state that a start finds.
    #[must_use]
    pub fn found(&self) -> (Vec<Holdout>, Counters, Option<Head>) {
        let found = self.committed.found();
        (found.holdouts, found.counters, found.head)
    }

    /// Sums over all accounts.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.committed.totals
    }

    /// Every account, in no particular order.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.committed.accounts.values()
    }

    /// The log's entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.committed.entries
    }

    /// The keys that signed the log, in order.
    #[must_use]
    pub fn log_keys(&self) -> &[LogKey] {
        &self.committed.log_keys
    }

    /// The versions of `accounts.json` that a crash can leave.
    #[must_use]
    pub fn accounts_files(&self) -> AccountsFiles {
        self.committed.accounts_files
    }

    /// The policies that the log stated last.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.committed.in_force
    }

    /// The journal's rows, in order.
    #[must_use]
    pub fn recorded(&self) -> &[Recorded] {
        &self.committed.recorded
    }

    /// Makes a batch durable, and shows it to readers.
    fn keep(&mut self, batch: &Batch) {
        if let Some(disk) = &self.disk {
            // Raise the number before any reader can see the batch.
            let entries = batch.changes.counters.next_index;
            self.done.visible.store(entries, Ordering::Release);
            disk.keep(rows(batch));
        }
        for row in rows(batch) {
            self.committed.keep(row);
        }
        let accounts_seq = self.committed.accounts_seq;
        self.done
            .accounts_seq
            .store(accounts_seq, Ordering::Relaxed);
        Done::count(&self.done.commits, 1);
        if let Some(Told(observer)) = &mut self.observer {
            observer(batch, Duration::ZERO);
        }
    }

    /// The rule that a commit breaks, whatever fault is injected.
    fn refused(&self, batch: &Batch) -> Option<Outcome> {
        if self
            .disk
            .as_ref()
            .is_some_and(|disk| disk.epoch() != self.epoch)
        {
            return Some(Outcome::Unknown(StoreError::locked(
                "another process has taken over the store",
                "stop one of the two",
            )));
        }
        let what = self.committed.breaks(batch)?;
        Some(match what {
            committed::Breach::Twice(error) => {
                Outcome::NotCommitted(NotCommitted::Constraint(error))
            }
            committed::Breach::Gone(error) => Outcome::Unknown(error),
        })
    }

    fn in_doubt(&mut self, tail: Vec<Option<Row>>) -> Outcome {
        self.tail = Some(tail);
        Outcome::Unknown(injected())
    }

    fn must_not_be_in_doubt(&self) {
        assert!(
            self.tail.is_none(),
            "the store was used after a commit in doubt"
        );
    }
}

fn injected() -> StoreError {
    DatabaseError::new(DatabaseFault::Other, "an injected fault").into()
}

impl Store for MemoryStore {
    fn claim(&mut self, id: &ClaimId) -> Result<Option<Claim>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.committed.claims.get(id).cloned())
    }

    fn pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.committed.pools.get(&(holdout, owner)).copied())
    }

    fn remembered(&mut self, key: &RequestKey) -> Result<Option<Remembered>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.committed.remembered.get(key).cloned())
    }

    fn account(&mut self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.committed.accounts.get(owner).cloned())
    }

    fn question(&mut self, question: &Question) -> Result<Option<ClaimId>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.committed.questions.get(question).copied())
    }

    fn commit(&mut self, batch: &Batch) -> Outcome {
        self.must_not_be_in_doubt();
        if let Some(refused) = self.refused(batch) {
            return refused;
        }
        let fault = self.faults.pop_front();
        self.played.extend(fault);
        match fault.unwrap_or(Fault::None) {
            Fault::None => {
                self.keep(batch);
                Outcome::Committed
            }
            Fault::Full => Outcome::NotCommitted(NotCommitted::Full),
            Fault::Constraint => Outcome::NotCommitted(NotCommitted::Constraint(injected())),
            Fault::UnknownLost => self.in_doubt(Vec::new()),
            Fault::UnknownKept => self.in_doubt(rows(batch).into_iter().map(Some).collect()),
            Fault::Torn(nth) => {
                let mut tail: Vec<Option<Row>> = rows(batch).into_iter().map(Some).collect();
                let missing = nth % tail.len();
                tail[missing] = None;
                self.in_doubt(tail)
            }
        }
    }

    fn maintain(&mut self, idle: bool) -> Result<(), StoreError> {
        let (Some(blobs), Some(disk)) = (&self.blobs, &self.disk) else {
            return Ok(());
        };
        blobs.sweep_doubtful(|name| Ok(self.committed.named_blobs.contains(name)))?;
        if !idle {
            return Ok(());
        }
        let mut displaced = self.committed.displaced();
        blobs.release(&mut displaced, |free| {
            disk.forget(free);
            Ok(self.committed.forget(free))
        })
    }
}

impl StoreEngine for MemoryStore {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn be_later_than(&mut self, epoch: u64) -> Result<(), StoreError> {
        if epoch < self.epoch {
            return Ok(());
        }
        self.epoch = epoch + 1;
        if let Some(disk) = &self.disk {
            disk.raise_epoch_to(self.epoch);
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.committed.counters
    }

    fn keep_free(&mut self, _bytes: u64) {}

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

#[cfg(test)]
mod tests {
    use evidenceos_kernel::state::Changes;

    use super::*;

    /// The batch that makes the nth entry.
    fn batch(nth: u64) -> Batch {
        let leaf = evidenceos_tlog::leaf_hash(b"entry");
        let bytes = b"entry".to_vec();
        let counters = Counters {
            next_index: nth,
            ..Counters::default()
        };
        Batch {
            changes: Changes {
                counters,
                ..Changes::default()
            },
            entries: vec![Entry { leaf, bytes }],
            ..Batch::default()
        }
    }

    #[test]
    fn a_batch_in_doubt_is_found_whole_or_not_at_all_and_only_by_the_restart() {
        let all = rows(&batch(1)).len();
        let torn = (0..all).map(|nth| (Fault::Torn(nth), Tail::Torn, 1));
        let others = [
            (Fault::UnknownLost, Tail::Nothing, 1),
            (Fault::UnknownKept, Tail::Whole, 2),
        ];
        for (fault, wanted, entries) in torn.chain(others) {
            let mut store = MemoryStore::default();
            store.inject([Fault::None, fault]);
            assert!(matches!(store.commit(&batch(1)), Outcome::Committed));
            assert!(matches!(store.commit(&batch(2)), Outcome::Unknown(_)));
            assert_eq!(store.entries().len(), 1, "{fault:?}");
            let (store, tail) = store.restarted();
            assert_eq!(
                (tail, store.entries().len()),
                (wanted, entries),
                "{fault:?}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "after a commit in doubt")]
    fn a_store_in_doubt_is_used_no_more() {
        let mut store = MemoryStore::default();
        store.inject([Fault::UnknownLost]);
        assert!(matches!(store.commit(&batch(1)), Outcome::Unknown(_)));
        store.commit(&batch(1));
    }
}
