//! The part of a store in memory that outlives it: it is opened, read beside the writer, and opened
//! again.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::Claim,
    decision::DecisionId,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
};
use evidenceos_tlog::Hash;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{
    MemoryStore,
    committed::{Committed, Row},
};
use crate::{
    Entry, OpenedStore, RowBytes, Rows, StoreError, TakeRow,
    blobs::{BlobStorage, Blobs, Lying},
    decisions::{self, FoundDecision, KeptDecisions},
    row,
};

/// The disk of a store in memory. A clone is the same disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    committed: Arc<RwLock<Committed>>,
    epoch: Arc<AtomicU64>,
    blobs: Arc<MemoryBlobs>,
}

impl MemoryDisk {
    /// Opens the store, and fences off every earlier one.
    #[must_use]
    pub fn open(&self) -> OpenedStore {
        // Earlier stores have a lower epoch, and commit nothing from here on.
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let committed = self.read().clone();
        let found = committed.found();
        let store = MemoryStore {
            committed,
            disk: Some(self.clone()),
            epoch,
            ..MemoryStore::default()
        };
        let (accounts_seq, entries) = (found.accounts_seq, found.counters.next_index);
        store
            .done
            .accounts_seq
            .store(accounts_seq, Ordering::Relaxed);
        store.done.visible.store(entries, Ordering::Release);
        let storage: Arc<dyn BlobStorage> = self.blobs.clone();
        OpenedStore {
            store: Box::new(store),
            rows: Arc::new(MemoryRows {
                committed: Arc::clone(&self.committed),
                blobs: Blobs::over(storage),
            }),
            found,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(super) fn raise_epoch_to(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    pub(super) fn keep(&self, rows: Vec<Row>) {
        // One lock for the batch: a reader sees all of it or nothing.
        let mut committed = self.write();
        rows.into_iter().for_each(|row| committed.keep(row));
    }

    pub(super) fn forget(&self, modules: &[Digest]) {
        self.write().forget(modules);
    }

    fn read(&self) -> RwLockReadGuard<'_, Committed> {
        self.committed.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Committed> {
        self.committed.write()
    }
}

/// Blobs in memory.
#[derive(Debug, Default)]
pub struct MemoryBlobs(Mutex<HashMap<Digest, Vec<u8>>>);

impl MemoryBlobs {
    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<Digest, Vec<u8>>> {
        self.0.lock()
    }
}

impl BlobStorage for MemoryBlobs {
    fn put(&self, name: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        self.lock().insert(*name, bytes.to_vec());
        Ok(())
    }

    fn get(&self, name: &Digest) -> Result<Vec<u8>, StoreError> {
        self.lock().get(name).cloned().ok_or_else(|| {
            let missing = std::io::ErrorKind::NotFound.into();
            StoreError::io("read", name.to_hex())(missing)
        })
    }

    fn remove(&self, name: &Digest) -> Result<(), StoreError> {
        self.lock().remove(name);
        Ok(())
    }

    fn list(&self, shelf: u8) -> Result<Vec<Lying>, StoreError> {
        let blobs = self.lock();
        let names = blobs.keys().filter(|name| name.0[0] == shelf);
        Ok(names.copied().map(Lying::Blob).collect())
    }

    fn discard(&self, _shelf: u8, lying: &Lying) -> Result<(), StoreError> {
        if let Lying::Blob(name) = lying {
            self.lock().remove(name);
        }
        Ok(())
    }
}

/// Reads a store in memory beside its writer.
#[derive(Debug)]
struct MemoryRows {
    committed: Arc<RwLock<Committed>>,
    blobs: Blobs,
}

impl MemoryRows {
    fn read(&self) -> RwLockReadGuard<'_, Committed> {
        self.committed.read()
    }
}

fn is_of(claim: &Claim, owner: Option<OwnerTag>) -> bool {
    owner.is_none_or(|owner| claim.terms.owner == owner)
}

/// Accounts in the order of their opening, from a number on.
fn accounts_from(committed: &Committed, from: u64, limit: usize) -> Vec<Account> {
    let all = committed.accounts.values();
    let mut accounts: Vec<Account> = all.filter(|account| account.seq >= from).cloned().collect();
    accounts.sort_by_key(|account| account.seq);
    accounts.truncate(limit);
    accounts
}

fn entries_from(committed: &Committed, start: u64, count: usize) -> &[Entry] {
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let rest = committed.entries.get(start..).unwrap_or_default();
    &rest[..count.min(rest.len())]
}

impl Rows for MemoryRows {
    fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    fn claim_of(&self, id: &ClaimId, owner: Option<OwnerTag>) -> Result<Option<Claim>, StoreError> {
        let committed = self.read();
        let claim = committed.claims.get(id).filter(|claim| is_of(claim, owner));
        Ok(claim.cloned())
    }

    fn has_claim(&self, id: &ClaimId, owner: Option<OwnerTag>) -> Result<bool, StoreError> {
        Ok(self.claim_of(id, owner)?.is_some())
    }

    fn claim_and_entry(
        &self,
        id: &ClaimId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<(Claim, Option<Entry>)>, StoreError> {
        let committed = self.read();
        let claim = committed.claims.get(id).filter(|claim| is_of(claim, owner));
        Ok(claim.map(|claim| {
            let index = claim.settlement.as_ref().map(|settlement| settlement.index);
            let entry = index.and_then(|index| entries_from(&committed, index, 1).first());
            (claim.clone(), entry.cloned())
        }))
    }

    fn claim_by_seq(&self, seq: u64) -> Result<Option<Claim>, StoreError> {
        let committed = self.read();
        let id = committed.claims_by_seq.get(&seq);
        Ok(id.and_then(|id| committed.claims.get(id)).cloned())
    }

    fn claims(
        &self,
        owner: Option<OwnerTag>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Claim>, StoreError> {
        let committed = self.read();
        let older = committed.claims_by_seq.range(..before).rev();
        let claims = older.filter_map(|(_, id)| committed.claims.get(id));
        let own = claims.filter(|claim| is_of(claim, owner));
        Ok(own.take(limit).cloned().collect())
    }

    fn claims_by_id(
        &self,
        owner: Option<OwnerTag>,
        ids: &RangeInclusive<ClaimId>,
        limit: usize,
    ) -> Result<Vec<Claim>, StoreError> {
        let committed = self.read();
        let within = committed
            .claims
            .values()
            .filter(|claim| ids.contains(&claim.id));
        let mut claims: Vec<Claim> = within
            .filter(|claim| is_of(claim, owner))
            .cloned()
            .collect();
        claims.sort_by_key(|claim| claim.id);
        claims.truncate(limit);
        Ok(claims)
    }

    fn revoked(&self, after: u64, limit: usize) -> Result<Vec<Claim>, StoreError> {
        let committed = self.read();
        let later = committed.revocations.range(after.saturating_add(1)..);
        let claims = later.filter_map(|(_, id)| committed.claims.get(id));
        Ok(claims.take(limit).cloned().collect())
    }

    fn holdout(&self, seq: u64) -> Result<Option<Holdout>, StoreError> {
        let committed = self.read();
        let holdout = committed
            .holdouts
            .values()
            .find(|holdout| holdout.seq == seq);
        Ok(holdout.cloned())
    }

    fn pool(
        &self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        Ok(self.read().pools.get(&(holdout, owner)).copied())
    }

    fn account(&self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        Ok(self.read().accounts.get(owner).cloned())
    }

    fn accounts(&self, from: u64, limit: usize) -> Result<Vec<Account>, StoreError> {
        Ok(accounts_from(&self.read(), from, limit))
    }

    fn accounts_and_totals(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<(Vec<Account>, Totals), StoreError> {
        let committed = self.read();
        Ok((accounts_from(&committed, from, limit), committed.totals))
    }

    fn all_account_rows(&self, take: &mut TakeRow<'_>) -> Result<u64, StoreError> {
        // Release the lock here: `take` may itself read or write the store.
        let (accounts, seq) = {
            let committed = self.read();
            let all = accounts_from(&committed, 0, usize::MAX);
            (all, committed.accounts_seq)
        };
        for account in accounts {
            take(account.seq, &row::encode(&account))?;
        }
        Ok(seq)
    }

    fn entries(&self, start: u64, count: usize) -> Result<Vec<Entry>, StoreError> {
        Ok(entries_from(&self.read(), start, count).to_vec())
    }

    fn leaves(&self, start: u64, count: usize) -> Result<Vec<Hash>, StoreError> {
        let committed = self.read();
        let entries = entries_from(&committed, start, count).iter();
        Ok(entries.map(|entry| entry.leaf).collect())
    }

    fn decision(
        &self,
        id: DecisionId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<FoundDecision>, StoreError> {
        let committed = self.read();
        let Some((first, kept)) = committed.decisions.range(..=id.0).next_back() else {
            return Ok(None);
        };
        let row = KeptDecisions {
            first: *first,
            index: kept.index,
            records: &kept.records,
        };
        decisions::find(&row, id, owner, || {
            let entry = entries_from(&committed, kept.index, 1).first();
            Ok(entry.map(|entry| entry.bytes.clone()))
        })
    }

    fn decisions_before(
        &self,
        unix_ms: u64,
        at_most: usize,
    ) -> Result<Option<DecisionId>, StoreError> {
        let committed = self.read();
        let oldest = committed.decisions.iter().take(at_most);
        let mut before = oldest.filter(|(_, kept)| kept.recorded_unix_ms < unix_ms);
        Ok(before.next_back().map(|(first, _)| DecisionId(*first)))
    }

    fn module_row(&self, hash: &Digest) -> Result<Option<RowBytes>, StoreError> {
        let committed = self.read();
        let module = committed.modules.get(hash);
        Ok(module.map(|(bytes, _)| bytes.clone()))
    }

    fn has_module(&self, hash: &Digest) -> Result<bool, StoreError> {
        Ok(self.read().modules.contains_key(hash))
    }

    fn trace_row(&self, claim_seq: u64) -> Result<Option<RowBytes>, StoreError> {
        Ok(self.read().traces.get(&claim_seq).cloned())
    }

    fn names_blob(&self, hash: &Digest) -> Result<bool, StoreError> {
        Ok(self.read().named_blobs.contains(hash))
    }
}
