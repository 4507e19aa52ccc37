//! A store in memory with injected faults, for tests.
//!
//! A batch goes through a write-ahead log, as on a real disk: a commit that fails without doubt
//! leaves nothing there; one in doubt leaves what came to the disk of it, and only the restart
//! reads that. It takes a batch whose every row is there up to the mark of its end, and no other.
//! After a commit in doubt nobody may use the store: that is a panic.

use std::collections::{HashMap, VecDeque};

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::Claim,
    command::Remembered,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
    state::Counters,
};

use crate::{
    AccountsFiles, Batch, Entry, Head, NotCommitted, Outcome, Recorded, Store, StoreError,
};

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The commit succeeds and is durable.
    None,
    /// The disk is full: not there.
    Full,
    /// A broken rule of the store: not there.
    Constraint,
    /// In doubt; nothing of it is there after the restart.
    UnknownLost,
    /// In doubt; all of it is found after the restart, and not before.
    UnknownKept,
    /// In doubt; of its rows the nth did not come to the disk (counted round), all others did.
    Torn(usize),
}

/// What a restart finds behind the last commit that was not in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing of a batch in doubt is there.
    Nothing,
    /// A batch that nobody knew to be there.
    Whole,
    /// Rows of a batch that are not the whole of it.
    Torn,
}

/// A row in the write-ahead log.
#[derive(Debug, Clone)]
enum Row {
    Claim(Box<Claim>),
    Holdout(Box<Holdout>),
    Pool(HoldoutId, OwnerTag, PrincipalPool),
    Remembered(RequestKey, Box<Remembered>),
    Account(Account),
    Question(Question, ClaimId),
    Totals(Totals),
    Entry(Entry),
    Trace(u64, Digest),
    Recorded(Recorded),
    Counters(Counters),
    LogKey(LogKey),
    Head(Head),
    AccountsFiles(AccountsFiles),
    InForce(InForce),
    /// What was written since the last one belongs together.
    End,
}

fn rows(batch: &Batch) -> Vec<Row> {
    let changes = &batch.changes;
    let mut rows = Vec::new();
    let claims = changes.new_claims.iter().chain(&changes.claims);
    rows.extend(claims.map(|claim| Row::Claim(Box::new(claim.clone()))));
    let holdouts = changes.holdouts.iter().cloned();
    rows.extend(holdouts.map(|holdout| Row::Holdout(Box::new(holdout))));
    let pools = changes.pools.iter();
    rows.extend(pools.map(|(holdout, owner, pool)| Row::Pool(*holdout, *owner, *pool)));
    let remembered = changes.remembered.iter().cloned();
    rows.extend(remembered.map(|(key, value)| Row::Remembered(key, Box::new(value))));
    let accounts = changes.new_accounts.iter().chain(&changes.accounts);
    rows.extend(accounts.cloned().map(Row::Account));
    let questions = changes.questions.iter();
    rows.extend(questions.map(|(question, claim)| Row::Question(*question, *claim)));
    rows.extend(changes.totals.map(Row::Totals));
    rows.extend(batch.entries.iter().cloned().map(Row::Entry));
    let traces = batch.traces.iter();
    rows.extend(traces.map(|trace| Row::Trace(trace.claim_seq, trace.hash)));
    rows.extend(batch.recorded.iter().cloned().map(Row::Recorded));
    rows.push(Row::Counters(changes.counters));
    rows.extend(changes.log_keys.iter().copied().map(Row::LogKey));
    rows.extend(batch.head.clone().map(Row::Head));
    rows.extend(batch.accounts_files.map(Row::AccountsFiles));
    rows.extend(changes.in_force.map(Row::InForce));
    rows.push(Row::End);
    rows
}

/// A store in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    claims: HashMap<ClaimId, Claim>,
    holdouts: HashMap<HoldoutId, Holdout>,
    pools: HashMap<(HoldoutId, OwnerTag), PrincipalPool>,
    remembered: HashMap<RequestKey, Remembered>,
    accounts: HashMap<OwnerTag, Account>,
    questions: HashMap<Question, ClaimId>,
    totals: Totals,
    entries: Vec<Entry>,
    traces: HashMap<u64, Digest>,
    recorded: Vec<Recorded>,
    head: Option<Head>,
    counters: Counters,
    log_keys: Vec<LogKey>,
    accounts_files: AccountsFiles,
    in_force: InForce,
    faults: VecDeque<Fault>,
    played: Vec<Fault>,
    /// The log behind the last commit, once one is in doubt; `None`: a row that is not there.
    tail: Option<Vec<Option<Row>>>,
}

impl MemoryStore {
    /// The fates of the next commits; none after the last.
    pub fn inject(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
    }

    /// Faults that commits met, in order; restarts keep them.
    #[must_use]
    pub fn played(&self) -> &[Fault] {
        &self.played
    }

    /// The store as a restart finds it.
    #[must_use]
    pub fn restarted(&self) -> (Self, Tail) {
        let mut store = self.clone();
        let Some(tail) = store.tail.take().filter(|tail| !tail.is_empty()) else {
            return (store, Tail::Nothing);
        };
        // Each row's checksum includes those before it, so a gap ends the log.
        let chain: Vec<Row> = tail.into_iter().map_while(|row| row).collect();
        if !matches!(chain.last(), Some(Row::End)) {
            return (store, Tail::Torn);
        }
        chain.into_iter().for_each(|row| store.keep(row));
        (store, Tail::Whole)
    }

    /// What a start finds.
    #[must_use]
    pub fn found(&self) -> (Vec<Holdout>, Counters, Option<Head>) {
        let mut holdouts: Vec<Holdout> = self.holdouts.values().cloned().collect();
        holdouts.sort_by_key(|holdout| holdout.seq);
        (holdouts, self.counters, self.head.clone())
    }

    /// Sums over all accounts.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Every account, in no order.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// The log's entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The keys that signed the log, in order.
    #[must_use]
    pub fn log_keys(&self) -> &[LogKey] {
        &self.log_keys
    }

    /// The files that a crash can leave as `accounts.json`.
    #[must_use]
    pub fn accounts_files(&self) -> AccountsFiles {
        self.accounts_files
    }

    /// The policies that the log stated last.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.in_force
    }

    /// The journal's rows, in order.
    #[must_use]
    pub fn recorded(&self) -> &[Recorded] {
        &self.recorded
    }

    fn keep(&mut self, row: Row) {
        match row {
            Row::Claim(claim) => drop(self.claims.insert(claim.id, *claim)),
            Row::Holdout(holdout) => drop(self.holdouts.insert(holdout.id, *holdout)),
            Row::Pool(holdout, owner, pool) => drop(self.pools.insert((holdout, owner), pool)),
            Row::Remembered(key, value) => drop(self.remembered.insert(key, *value)),
            Row::Account(account) => drop(self.accounts.insert(account.owner, account)),
            Row::Question(question, claim) => drop(self.questions.insert(question, claim)),
            Row::Totals(totals) => self.totals = totals,
            Row::Entry(entry) => self.entries.push(entry),
            Row::Trace(claim_seq, hash) => drop(self.traces.insert(claim_seq, hash)),
            Row::Recorded(recorded) => self.recorded.push(recorded),
            Row::Counters(counters) => self.counters = counters,
            Row::LogKey(key) => self.log_keys.push(key),
            Row::Head(head) => self.head = Some(head),
            Row::AccountsFiles(files) => self.accounts_files = files,
            Row::InForce(in_force) => self.in_force = in_force,
            Row::End => {}
        }
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
    StoreError::Unusable("an injected fault".to_owned())
}

impl Store for MemoryStore {
    fn claim(&mut self, id: &ClaimId) -> Result<Option<Claim>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.claims.get(id).cloned())
    }

    fn pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.pools.get(&(holdout, owner)).copied())
    }

    fn remembered(&mut self, key: &RequestKey) -> Result<Option<Remembered>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.remembered.get(key).cloned())
    }

    fn account(&mut self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.accounts.get(owner).cloned())
    }

    fn question(&mut self, question: &Question) -> Result<Option<ClaimId>, StoreError> {
        self.must_not_be_in_doubt();
        Ok(self.questions.get(question).copied())
    }

    fn commit(&mut self, batch: &Batch) -> Outcome {
        self.must_not_be_in_doubt();
        let fault = self.faults.pop_front();
        self.played.extend(fault);
        match fault.unwrap_or(Fault::None) {
            Fault::None => {
                rows(batch).into_iter().for_each(|row| self.keep(row));
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

    fn maintain(&mut self, _idle: bool) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let leaf = evidenceos_tlog::leaf_hash(b"entry");
        let bytes = b"entry".to_vec();
        Batch {
            entries: vec![Entry { leaf, bytes }],
            ..Batch::default()
        }
    }

    #[test]
    fn a_batch_in_doubt_is_found_whole_or_not_at_all_and_only_by_the_restart() {
        let all = rows(&batch()).len();
        let torn = (0..all).map(|nth| (Fault::Torn(nth), Tail::Torn, 1));
        let others = [
            (Fault::UnknownLost, Tail::Nothing, 1),
            (Fault::UnknownKept, Tail::Whole, 2),
        ];
        for (fault, wanted, entries) in torn.chain(others) {
            let mut store = MemoryStore::default();
            store.inject([Fault::None, fault]);
            assert!(matches!(store.commit(&batch()), Outcome::Committed));
            assert!(matches!(store.commit(&batch()), Outcome::Unknown(_)));
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
        assert!(matches!(store.commit(&batch()), Outcome::Unknown(_)));
        store.commit(&batch());
    }
}
