//! The committed rows of a store in memory, and the rows of a batch.

use std::collections::{BTreeMap, HashMap, HashSet};

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::{Claim, ClaimState},
    command::Remembered,
    decision::DecisionId,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
    state::Counters,
};

use crate::{
    AccountsFiles, Batch, Entry, Found, Head, ModuleBytes, Recorded, RowBytes, StoreError,
    StoredDecisions,
    facts::{Fact, Facts},
};

/// A row in the write-ahead log.
#[derive(Debug, Clone)]
pub(super) enum Row {
    Claim(Box<Claim>),
    Holdout(Box<Holdout>),
    Pool(HoldoutId, OwnerTag, PrincipalPool),
    Remembered(RequestKey, Box<Remembered>),
    Account(Account),
    Question(Question, ClaimId),
    Totals(Totals),
    Entry(Entry),
    Trace(u64, RowBytes),
    Module(Digest, RowBytes),
    /// The number of claims that name a module changes.
    Named(Digest, i64),
    Blob(Digest),
    BlobGone(Digest),
    Decisions(StoredDecisions),
    DecisionsGone(DecisionId),
    Recorded(Recorded),
    Journal {
        accounts_changed: bool,
    },
    Counters(Counters),
    LogKey(LogKey),
    Head(Head),
    AccountsFiles(AccountsFiles),
    InForce(InForce),
    Fact(Fact),
    /// Ends a batch: all rows since the previous end belong together.
    End,
}

/// The rows of a batch, in the order in which they reach the disk.
pub(super) fn rows(batch: &Batch) -> Vec<Row> {
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
    rows.extend(bytes_of(batch));
    rows.extend(batch.decisions.iter().cloned().map(Row::Decisions));
    rows.extend(changes.forgotten_decisions.map(Row::DecisionsGone));
    rows.extend(batch.recorded.iter().cloned().map(Row::Recorded));
    if !batch.recorded.is_empty() {
        rows.push(Row::Journal {
            accounts_changed: !changes.new_accounts.is_empty() || !changes.accounts.is_empty(),
        });
    }
    rows.push(Row::Counters(changes.counters));
    rows.extend(changes.log_keys.iter().copied().map(Row::LogKey));
    rows.extend(batch.head.clone().map(Row::Head));
    rows.extend(batch.accounts_files.map(Row::AccountsFiles));
    rows.extend(changes.in_force.map(Row::InForce));
    rows.extend(batch.facts.iter().cloned().map(Row::Fact));
    rows.push(Row::End);
    rows
}

/// Modules and traces, and the blobs that rows name.
fn bytes_of(batch: &Batch) -> Vec<Row> {
    let changes = &batch.changes;
    let mut rows = Vec::new();
    for trace in &batch.traces {
        if trace.bytes.is_empty() {
            rows.push(Row::Blob(trace.hash));
            rows.push(Row::Trace(trace.claim_seq, RowBytes::Blob));
        } else {
            let bytes = RowBytes::Here(trace.bytes.clone());
            rows.push(Row::Trace(trace.claim_seq, bytes));
        }
    }
    for hash in &changes.named_modules {
        let brought = batch.modules.iter().find(|module| module.hash == *hash);
        match brought.map(|module| &module.bytes) {
            Some(ModuleBytes::Row(bytes)) => {
                rows.push(Row::Module(*hash, RowBytes::Here(bytes.clone())));
            }
            Some(ModuleBytes::Blob) => {
                rows.push(Row::Blob(*hash));
                rows.push(Row::Module(*hash, RowBytes::Blob));
            }
            Some(ModuleBytes::Stored) | None => {}
        }
        rows.push(Row::Named(*hash, 1));
    }
    let displaced = changes.displaced_modules.iter();
    rows.extend(displaced.map(|hash| Row::Named(*hash, -1)));
    rows.extend(changes.named_blobs.iter().copied().map(Row::Blob));
    rows.extend(changes.dropped_blobs.iter().copied().map(Row::BlobGone));
    rows
}

/// The rule that a batch breaks, whatever the disk does.
pub(super) enum Breach {
    /// It inserts a row that exists.
    Twice(StoreError),
    /// It changes a row that does not exist: a row was lost.
    Gone(StoreError),
}

/// All committed rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Committed {
    pub(super) claims: HashMap<ClaimId, Claim>,
    pub(super) claims_by_seq: BTreeMap<u64, ClaimId>,
    pub(super) holdouts: HashMap<HoldoutId, Holdout>,
    pub(super) pools: HashMap<(HoldoutId, OwnerTag), PrincipalPool>,
    pub(super) remembered: HashMap<RequestKey, Remembered>,
    pub(super) accounts: HashMap<OwnerTag, Account>,
    pub(super) questions: HashMap<Question, ClaimId>,
    pub(super) totals: Totals,
    pub(super) entries: Vec<Entry>,
    pub(super) revocations: BTreeMap<u64, ClaimId>,
    pub(super) traces: HashMap<u64, RowBytes>,
    pub(super) modules: HashMap<Digest, (RowBytes, i64)>,
    pub(super) named_blobs: HashSet<Digest>,
    pub(super) decisions: BTreeMap<u64, StoredDecisions>,
    pub(super) recorded: Vec<Recorded>,
    pub(super) journal_seq: u64,
    pub(super) accounts_seq: u64,
    pub(super) head: Option<Head>,
    pub(super) counters: Counters,
    pub(super) log_keys: Vec<LogKey>,
    pub(super) accounts_files: AccountsFiles,
    pub(super) in_force: InForce,
    pub(super) facts: Facts,
}

impl Committed {
    pub(super) fn keep(&mut self, row: Row) {
        match row {
            Row::Claim(claim) => self.keep_claim(*claim),
            Row::Holdout(holdout) => drop(self.holdouts.insert(holdout.id, *holdout)),
            Row::Pool(holdout, owner, pool) => drop(self.pools.insert((holdout, owner), pool)),
            Row::Remembered(key, value) => drop(self.remembered.insert(key, *value)),
            Row::Account(account) => drop(self.accounts.insert(account.owner, account)),
            Row::Question(question, claim) => drop(self.questions.insert(question, claim)),
            Row::Totals(totals) => self.totals = totals,
            Row::Entry(entry) => self.entries.push(entry),
            Row::Trace(claim_seq, bytes) => drop(self.traces.insert(claim_seq, bytes)),
            // Another claim may have stored it: one digest has one content.
            Row::Module(hash, bytes) => drop(self.modules.entry(hash).or_insert((bytes, 0))),
            Row::Named(hash, by) => {
                if let Some((_, claims)) = self.modules.get_mut(&hash) {
                    *claims += by;
                }
            }
            Row::Blob(name) => drop(self.named_blobs.insert(name)),
            Row::BlobGone(name) => drop(self.named_blobs.remove(&name)),
            Row::Decisions(kept) => drop(self.decisions.insert(kept.batch.first.0, kept)),
            Row::DecisionsGone(through) => self.decisions.retain(|first, _| *first > through.0),
            Row::Recorded(recorded) => self.recorded.push(recorded),
            Row::Journal { accounts_changed } => {
                self.journal_seq += 1;
                if accounts_changed {
                    self.accounts_seq = self.journal_seq;
                }
            }
            Row::Counters(counters) => self.counters = counters,
            Row::LogKey(key) => self.log_keys.push(key),
            Row::Head(head) => self.head = Some(head),
            Row::AccountsFiles(files) => self.accounts_files = files,
            Row::InForce(in_force) => self.in_force = in_force,
            Row::Fact(fact) => self.facts.note(&fact),
            Row::End => {}
        }
    }

    fn keep_claim(&mut self, claim: Claim) {
        // A claim that changes after its revocation passes here again, and its place in the feed stays.
        if claim.state == ClaimState::Revoked
            && let Some(revocation) = &claim.revocation
        {
            self.revocations.insert(revocation.index, claim.id);
        }
        self.claims_by_seq.insert(claim.seq, claim.id);
        self.claims.insert(claim.id, claim);
    }

    /// The rule of the store that a batch breaks, if it breaks one.
    pub(super) fn breaks(&self, batch: &Batch) -> Option<Breach> {
        self.inserts_twice(batch)
            .map(Breach::Twice)
            .or_else(|| self.misses(batch).map(Breach::Gone))
    }

    fn inserts_twice(&self, batch: &Batch) -> Option<StoreError> {
        let changes = &batch.changes;
        let there = |table, key: &dyn ToString| StoreError::Damaged {
            table,
            key: key.to_string(),
            what: "it is there already",
        };
        let (mut numbers, mut ids) = (HashSet::new(), HashSet::new());
        let claim = changes.new_claims.iter().find(|claim| {
            self.claims_by_seq.contains_key(&claim.seq)
                || self.claims.contains_key(&claim.id)
                || !numbers.insert(claim.seq)
                || !ids.insert(claim.id)
        });
        let mut owners = HashSet::new();
        let account = changes.new_accounts.iter().find(|account| {
            self.accounts.contains_key(&account.owner) || !owners.insert(account.owner)
        });
        let first = (changes.counters.next_index).saturating_sub(batch.entries.len() as u64);
        let is_entry_there = !batch.entries.is_empty() && first < self.entries.len() as u64;
        claim
            .map(|claim| there("claims", &claim.seq))
            .or_else(|| account.map(|account| there("accounts", &account.owner)))
            .or_else(|| is_entry_there.then(|| there("entries", &first)))
    }

    fn misses(&self, batch: &Batch) -> Option<StoreError> {
        let changes = &batch.changes;
        let missing = |table, key: &dyn ToString| StoreError::Damaged {
            table,
            key: key.to_string(),
            what: "it is missing",
        };
        let claim = changes.claims.iter().find(|claim| {
            let is_new = changes.new_claims.iter().any(|new| new.id == claim.id);
            !self.claims.contains_key(&claim.id) && !is_new
        });
        let module = changes.named_modules.iter().find(|hash| {
            let is_brought = batch
                .modules
                .iter()
                .any(|module| module.hash == **hash && module.bytes != ModuleBytes::Stored);
            !self.modules.contains_key(hash) && !is_brought
        });
        claim
            .map(|claim| missing("claims", &claim.seq))
            .or_else(|| module.map(|hash| missing("modules", hash)))
    }

    pub(super) fn found(&self) -> Found {
        let mut holdouts: Vec<Holdout> = self.holdouts.values().cloned().collect();
        holdouts.sort_by_key(|holdout| holdout.seq);
        Found {
            holdouts,
            counters: self.counters,
            head: self.head.clone(),
            log_keys: self.log_keys.clone(),
            totals: self.totals,
            accounts_seq: self.accounts_seq,
            accounts_files: self.accounts_files,
            facts: self.facts.clone(),
            in_force: self.in_force,
        }
    }

    /// Modules that no claim names any more.
    pub(super) fn displaced(&self) -> Vec<Digest> {
        let modules = self.modules.iter();
        let displaced = modules.filter(|(_, (_, claims))| *claims == 0);
        displaced.map(|(hash, _)| *hash).collect()
    }

    /// Removes modules; returns those whose bytes are blobs, whose names are removed too.
    pub(super) fn forget(&mut self, modules: &[Digest]) -> Vec<Digest> {
        let mut blobs = Vec::new();
        for hash in modules {
            if let Some((RowBytes::Blob, _)) = self.modules.remove(hash) {
                self.named_blobs.remove(hash);
                blobs.push(*hash);
            }
        }
        blobs
    }
}
