//! A store in memory with injected faults, for tests.
//!
//! A fault comes in three forms, as on a real disk: certainly not there, in doubt and gone, in
//! doubt and found there after the restart.

use std::collections::{HashMap, VecDeque};

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::Claim,
    command::Remembered,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, RequestKey},
    log_key::LogKey,
    state::Counters,
};

use crate::{Batch, Entry, Head, NotCommitted, Outcome, Recorded, Store, StoreError};

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing bad.
    None,
    /// The disk is full: not there.
    Full,
    /// A broken rule of the store: not there.
    Constraint,
    /// In doubt, and gone after a restart.
    UnknownLost,
    /// In doubt, and there after a restart.
    UnknownKept,
}

/// A store in memory. A clone is what a restart finds.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    claims: HashMap<ClaimId, Claim>,
    holdouts: HashMap<HoldoutId, Holdout>,
    pools: HashMap<(HoldoutId, OwnerTag), PrincipalPool>,
    remembered: HashMap<RequestKey, Remembered>,
    accounts: HashMap<OwnerTag, Account>,
    totals: Totals,
    entries: Vec<Entry>,
    traces: HashMap<u64, Digest>,
    recorded: Vec<Recorded>,
    head: Option<Head>,
    counters: Counters,
    log_keys: Vec<LogKey>,
    faults: VecDeque<Fault>,
}

impl MemoryStore {
    /// The fates of the next commits; none after the last.
    pub fn inject(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
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

    /// The log.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The keys that signed the log, in order.
    #[must_use]
    pub fn log_keys(&self) -> &[LogKey] {
        &self.log_keys
    }

    /// The journal.
    #[must_use]
    pub fn recorded(&self) -> &[Recorded] {
        &self.recorded
    }

    fn keep(&mut self, batch: &Batch) {
        let changes = &batch.changes;
        for claim in changes.new_claims.iter().chain(&changes.claims) {
            self.claims.insert(claim.id, claim.clone());
        }
        for holdout in &changes.holdouts {
            self.holdouts.insert(holdout.id, holdout.clone());
        }
        for (holdout, owner, pool) in &changes.pools {
            self.pools.insert((*holdout, *owner), *pool);
        }
        self.remembered.extend(changes.remembered.iter().cloned());
        for account in changes.new_accounts.iter().chain(&changes.accounts) {
            self.accounts.insert(account.owner, account.clone());
        }
        self.totals = changes.totals.unwrap_or(self.totals);
        self.entries.extend(batch.entries.iter().cloned());
        self.traces.extend(
            batch
                .traces
                .iter()
                .map(|trace| (trace.claim_seq, trace.hash)),
        );
        self.recorded.extend(batch.recorded.iter().cloned());
        self.counters = changes.counters;
        self.log_keys.extend(&changes.log_keys);
        if let Some(head) = &batch.head {
            self.head = Some(head.clone());
        }
    }
}

impl Store for MemoryStore {
    fn claim(&mut self, id: &ClaimId) -> Result<Option<Claim>, StoreError> {
        Ok(self.claims.get(id).cloned())
    }

    fn pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        Ok(self.pools.get(&(holdout, owner)).copied())
    }

    fn remembered(&mut self, key: &RequestKey) -> Result<Option<Remembered>, StoreError> {
        Ok(self.remembered.get(key).cloned())
    }

    fn account(&mut self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        Ok(self.accounts.get(owner).cloned())
    }

    fn commit(&mut self, batch: &Batch) -> Outcome {
        let doubt = || StoreError::Unusable("an injected fault".to_owned());
        match self.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => {
                self.keep(batch);
                Outcome::Committed
            }
            Fault::Full => Outcome::NotCommitted(NotCommitted::Full),
            Fault::Constraint => Outcome::NotCommitted(NotCommitted::Constraint(doubt())),
            Fault::UnknownLost => Outcome::Unknown(doubt()),
            Fault::UnknownKept => {
                self.keep(batch);
                Outcome::Unknown(doubt())
            }
        }
    }

    fn maintain(&mut self, _idle: bool) -> Result<(), StoreError> {
        Ok(())
    }
}
