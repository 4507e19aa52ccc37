//! The state that decisions read: the resident part in memory, and the stage of a batch over it.
//!
//! [`Resident`] is bounded by the number of holdouts, not by history. Claims, pools and remembered
//! requests are loaded into the [`Stage`] by key before a command is decided, and leave memory with
//! it. Within a batch each event is applied to the stage at once, so the next command sees it;
//! after a failed commit the stage is dropped, and memory equals disk.

mod apply;
mod changes;
mod keys;

pub use changes::Changes;
pub use keys::Key;
pub(crate) use keys::Wanted;

use std::{collections::HashMap, convert::Infallible};

use serde::{Deserialize, Serialize};

use crate::{
    account::{Account, Accounting, Totals, unix_day},
    claim::Claim,
    command::Remembered,
    decision::DecisionId,
    holdout::{Holdout, HoldoutStatus, InFlight, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
};

/// The time for which a request is remembered: 24 hours, in milliseconds.
pub const REQUEST_WINDOW_MS: u64 = 24 * 60 * 60 * 1_000;

/// Numbers that commit with each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// The next claim's number.
    pub next_claim_seq: u64,
    /// The next holdout's number.
    pub next_holdout_seq: u64,
    /// The next entry's index: the size of the log.
    pub next_index: u64,
    /// Raised by each registration.
    pub holdouts_generation: u64,
    /// Time of the last command, in Unix milliseconds; never goes back.
    pub now_unix_ms: u64,
    /// Events that were ever applied.
    pub events: u64,
}

/// The state that stays in memory.
#[derive(Debug, Clone)]
pub struct Resident {
    holdouts: HashMap<HoldoutId, Holdout>,
    by_reference: HashMap<String, HoldoutId>,
    counters: Counters,
    engine: String,
    accounting: Accounting,
    totals: Totals,
    in_force: InForce,
}

impl Resident {
    /// The state as the store has it.
    #[must_use]
    pub fn new(holdouts: Vec<Holdout>, counters: Counters, engine: String) -> Self {
        let mut by_reference = HashMap::new();
        for holdout in &holdouts {
            name(&mut by_reference, holdout);
        }
        let holdouts = holdouts
            .into_iter()
            .map(|holdout| (holdout.id, holdout))
            .collect();
        Self {
            holdouts,
            by_reference,
            counters,
            engine,
            accounting: Accounting::default(),
            totals: Totals::default(),
            in_force: InForce::default(),
        }
    }

    /// The same state with the policies that the log stated last.
    #[must_use]
    pub fn with_in_force(self, in_force: InForce) -> Self {
        Self { in_force, ..self }
    }

    /// The policies that the log stated last.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.in_force
    }

    /// The same state with configured prices and limits, and the store's sums over all accounts.
    #[must_use]
    pub fn with_accounts(self, accounting: Accounting, totals: Totals) -> Self {
        Self {
            accounting,
            totals,
            ..self
        }
    }

    /// Sums over all accounts, as committed.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Prices, and the limits of new accounts.
    #[must_use]
    pub fn accounting(&self) -> &Accounting {
        &self.accounting
    }

    /// A holdout by id.
    #[must_use]
    pub fn holdout(&self, id: &HoldoutId) -> Option<&Holdout> {
        self.holdouts.get(id)
    }

    /// Every holdout, in no particular order.
    pub fn holdouts(&self) -> impl Iterator<Item = &Holdout> {
        self.holdouts.values()
    }

    /// The counters as committed.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The guest engine of this process.
    #[must_use]
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Merges the changes of a committed batch. Cannot fail.
    pub fn merge(&mut self, changes: Changes) {
        for holdout in changes.holdouts {
            name(&mut self.by_reference, &holdout);
            self.holdouts.insert(holdout.id, holdout);
        }
        self.counters = changes.counters;
        self.totals = changes.totals.unwrap_or(self.totals);
        self.in_force = changes.in_force.unwrap_or(self.in_force);
    }
}

/// Notes a holdout's name. A withdrawn holdout keeps its name only until another holdout takes it.
fn name(by_reference: &mut HashMap<String, HoldoutId>, holdout: &Holdout) {
    if holdout.status == HoldoutStatus::Withdrawn {
        let named = by_reference.entry(holdout.reference.clone());
        named.or_insert(holdout.id);
    } else {
        by_reference.insert(holdout.reference.clone(), holdout.id);
    }
}

/// A row in the stage: the store's version, or the batch's.
#[derive(Debug, Clone)]
struct Held<T> {
    value: Option<T>,
    fresh: bool,
    dirty: bool,
}

impl<T> Held<T> {
    fn loaded(value: Option<T>) -> Self {
        Self {
            value,
            fresh: false,
            dirty: false,
        }
    }

    fn created(value: T) -> Self {
        Self {
            value: Some(value),
            fresh: true,
            dirty: true,
        }
    }
}

/// A copy-on-write layer over the committed state, for one batch.
#[derive(Debug, Clone)]
pub struct Stage<'a> {
    resident: &'a Resident,
    counters: Counters,
    holdouts: HashMap<HoldoutId, Holdout>,
    references: HashMap<String, HoldoutId>,
    claims: HashMap<ClaimId, Held<Claim>>,
    pools: HashMap<(HoldoutId, OwnerTag), Held<PrincipalPool>>,
    remembered: HashMap<RequestKey, Held<Remembered>>,
    accounts: HashMap<OwnerTag, Held<Account>>,
    questions: HashMap<Question, Held<ClaimId>>,
    totals: Totals,
    log_keys: Vec<LogKey>,
    named_blobs: Vec<Digest>,
    dropped_blobs: Vec<Digest>,
    named_modules: Vec<Digest>,
    displaced_modules: Vec<Digest>,
    forgotten_decisions: Option<DecisionId>,
    in_force: Option<InForce>,
}

impl<'a> Stage<'a> {
    /// A stage that has loaded nothing and changed nothing yet.
    #[must_use]
    pub fn new(resident: &'a Resident) -> Self {
        Self {
            resident,
            counters: resident.counters,
            holdouts: HashMap::new(),
            references: HashMap::new(),
            claims: HashMap::new(),
            pools: HashMap::new(),
            remembered: HashMap::new(),
            accounts: HashMap::new(),
            questions: HashMap::new(),
            totals: resident.totals,
            log_keys: Vec::new(),
            named_blobs: Vec::new(),
            dropped_blobs: Vec::new(),
            named_modules: Vec::new(),
            displaced_modules: Vec::new(),
            forgotten_decisions: None,
            in_force: None,
        }
    }

    /// Advances the clock; it never goes back.
    pub fn advance_to(&mut self, wall_unix_ms: u64) {
        self.counters.now_unix_ms = self.counters.now_unix_ms.max(wall_unix_ms);
    }

    /// The time of this batch.
    #[must_use]
    pub fn now_unix_ms(&self) -> u64 {
        self.counters.now_unix_ms
    }

    /// The index of the next entry.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.counters.next_index
    }

    /// The counters as of this batch.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The guest engine of this process.
    #[must_use]
    pub fn engine(&self) -> &str {
        &self.resident.engine
    }

    /// A holdout by id.
    #[must_use]
    pub fn holdout(&self, id: &HoldoutId) -> Option<&Holdout> {
        self.holdouts
            .get(id)
            .or_else(|| self.resident.holdouts.get(id))
    }

    /// A holdout by name.
    #[must_use]
    pub fn holdout_by_reference(&self, reference: &str) -> Option<&Holdout> {
        let id = self
            .references
            .get(reference)
            .or_else(|| self.resident.by_reference.get(reference))?;
        self.holdout(id)
    }

    /// Every holdout, those of this batch included.
    pub fn holdouts(&self) -> impl Iterator<Item = &Holdout> {
        let committed = self
            .resident
            .holdouts
            .values()
            .filter(|h| !self.holdouts.contains_key(&h.id));
        self.holdouts.values().chain(committed)
    }

    /// A claim that was loaded.
    #[must_use]
    pub fn claim(&self, id: &ClaimId) -> Option<&Claim> {
        self.claims.get(id)?.value.as_ref()
    }

    /// Prices, and the limits of new accounts.
    #[must_use]
    pub fn accounting(&self) -> &Accounting {
        &self.resident.accounting
    }

    /// Sums over all accounts, as of this batch.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The policies that are in force.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.in_force.unwrap_or(self.resident.in_force)
    }

    /// The UTC day of this batch.
    #[must_use]
    pub fn today(&self) -> u64 {
        unix_day(self.counters.now_unix_ms)
    }

    /// An account that was loaded.
    #[must_use]
    pub fn account(&self, owner: &OwnerTag) -> Option<&Account> {
        self.accounts.get(owner)?.value.as_ref()
    }

    /// A principal's pool; empty if the store has none.
    #[must_use]
    pub fn pool(&self, holdout: HoldoutId, owner: OwnerTag) -> PrincipalPool {
        self.pools
            .get(&(holdout, owner))
            .and_then(|held| held.value)
            .unwrap_or_default()
    }

    /// The claim whose verdict answers this question, if there is one. The question must have been
    /// loaded.
    #[must_use]
    pub fn asked_before(&self, question: &Question) -> Option<ClaimId> {
        self.questions.get(question)?.value
    }

    /// A remembered request that was loaded and is still in its window.
    #[must_use]
    pub fn remembered(&self, key: &RequestKey) -> Option<&Remembered> {
        let remembered = self.remembered.get(key)?.value.as_ref()?;
        self.in_window(remembered.at_unix_ms).then_some(remembered)
    }

    /// Whether a request remembered at this time is still remembered.
    #[must_use]
    pub fn in_window(&self, at_unix_ms: u64) -> bool {
        self.counters.now_unix_ms.saturating_sub(at_unix_ms) < REQUEST_WINDOW_MS
    }

    /// A revoked ancestor of a claim, if there is one. Ancestors must have been loaded.
    #[must_use]
    pub fn revoked_ancestor(&self, claim: &Claim) -> Option<ClaimId> {
        let found = claim.revoked_ancestor(|id| Ok::<_, Infallible>(self.claim(id)));
        found.unwrap_or_else(|never| match never {})
    }

    /// A run under way.
    #[must_use]
    pub fn run(&self, holdout: &HoldoutId, number: u64) -> Option<&InFlight> {
        self.holdout(holdout)?
            .in_flight
            .iter()
            .find(|run| run.number == number)
    }
}
