//! The state that decisions read: what stays in memory, and the stage of a batch over it.
//!
//! [`Resident`] is bounded by the number of holdouts, not by history. Claims, pools and
//! remembered requests are loaded into the [`Stage`] by key before a command is decided, and
//! leave memory with it. Within a batch each event is applied to the stage at once, so that the
//! next command sees it; after a failed commit the stage is dropped, and memory equals disk.

use std::{collections::HashMap, convert::Infallible};

use serde::{Deserialize, Serialize};

use crate::{
    account::{Account, Accounting, CLAIM_BYTES, LastCredit, Totals, unix_day},
    bits::MicroBits,
    claim::{Claim, ClaimState, Commitment, LastRequest},
    command::{Command, Decision, Event, Remembered, RememberedResult, Request},
    decide::continuity,
    decision::DecisionId,
    holdout::{Holdout, HoldoutStatus, InFlight, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
};

/// How long a request is remembered: 24 hours, in milliseconds.
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
    /// Events so far.
    pub events: u64,
}

/// What stays in memory.
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
    /// State as the store has it.
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

    /// The same with the policies that the log stated last.
    #[must_use]
    pub fn with_in_force(self, in_force: InForce) -> Self {
        Self { in_force, ..self }
    }

    /// The policies that the log stated last.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.in_force
    }

    /// The same with prices and limits as configured, and the sums over all accounts as the store
    /// has them.
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

    /// Every holdout, in no order.
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

    /// Takes over what a committed batch changed. Cannot fail.
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

/// Notes a holdout's name. A withdrawn holdout keeps its own only as long as no other has it.
fn name(by_reference: &mut HashMap<String, HoldoutId>, holdout: &Holdout) {
    if holdout.status == HoldoutStatus::Withdrawn {
        let named = by_reference.entry(holdout.reference.clone());
        named.or_insert(holdout.id);
    } else {
        by_reference.insert(holdout.reference.clone(), holdout.id);
    }
}

/// Something that the stage must hold before a command can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// A claim.
    Claim(ClaimId),
    /// A principal's pool on a holdout.
    Pool(HoldoutId, OwnerTag),
    /// A remembered request.
    Remembered(RequestKey),
    /// A principal's account.
    Account(OwnerTag),
    /// The claim that asked a question first.
    Question(Question),
}

/// A row that the stage holds: what the store had, or what became of it.
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

/// What a batch changed, to be written and then merged.
#[derive(Debug, Default)]
pub struct Changes {
    /// New claims.
    pub new_claims: Vec<Claim>,
    /// Claims that were there.
    pub claims: Vec<Claim>,
    /// Touched holdouts.
    pub holdouts: Vec<Holdout>,
    /// Touched pools.
    pub pools: Vec<(HoldoutId, OwnerTag, PrincipalPool)>,
    /// Newly remembered requests.
    pub remembered: Vec<(RequestKey, Remembered)>,
    /// New accounts.
    pub new_accounts: Vec<Account>,
    /// Accounts that were there.
    pub accounts: Vec<Account>,
    /// Sums over all accounts after the batch; none where it leaves them alone.
    pub totals: Option<Totals>,
    /// Questions, and the claims to whose verdicts they are referred.
    pub questions: Vec<(Question, ClaimId)>,
    /// Keys that took over the log.
    pub log_keys: Vec<LogKey>,
    /// Blobs of private items that are named now.
    pub named_blobs: Vec<Digest>,
    /// Blobs of private items that nothing names any more.
    pub dropped_blobs: Vec<Digest>,
    /// The module of each claim that was given one, in the place of none or of another.
    pub named_modules: Vec<Digest>,
    /// The module that each claim had before, if it had one.
    pub displaced_modules: Vec<Digest>,
    /// Decisions up to this one are not kept any longer.
    pub forgotten_decisions: Option<DecisionId>,
    /// The policies that are in force from now on, if they are others.
    pub in_force: Option<InForce>,
    /// The counters after the batch.
    pub counters: Counters,
}

impl<'a> Stage<'a> {
    /// An empty stage.
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

    /// The counters as the batch has them.
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

    /// Every holdout.
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

    /// Sums over all accounts, as the batch has them.
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

    /// A principal's pool; empty where the store has none.
    #[must_use]
    pub fn pool(&self, holdout: HoldoutId, owner: OwnerTag) -> PrincipalPool {
        self.pools
            .get(&(holdout, owner))
            .and_then(|held| held.value)
            .unwrap_or_default()
    }

    /// The claim to whose verdict a question that was loaded is referred, if there is one.
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

    /// Whether something remembered then is remembered still.
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

    /// What must still be loaded before a request can be decided. Asked again after each load,
    /// since one row names the next; bounded by the ancestors of a claim.
    #[must_use]
    pub fn missing(&self, request: &Request) -> Vec<Key> {
        let mut missing = Vec::new();
        let mut want = |key: Key| {
            if !self.holds(&key) {
                missing.push(key);
            }
        };
        let stamp = request.stamp.map(|stamp| Key::Remembered(stamp.key));
        match &request.command {
            Command::PutHoldout(_)
            | Command::RetireHoldout { .. }
            | Command::OpenHoldout { .. }
            | Command::WithdrawHoldout { .. }
            | Command::BeginAgain { .. }
            | Command::BeginLog(_)
            | Command::KnowFirstKey(_)
            | Command::RotateKey(_)
            | Command::ContinueLog(_)
            | Command::RekeyHoldouts { .. }
            | Command::SetBudgets { .. }
            | Command::StatePolicies(_)
            | Command::RecordDecisions(_)
            | Command::ForgetDecisions { .. }
            | Command::ConfirmClock { .. } => stamp.into_iter().for_each(want),
            Command::RestartLog(_) => {
                // It aborts every run under way.
                for holdout in self.holdouts() {
                    for run in &holdout.in_flight {
                        want(Key::Claim(run.claim));
                        want(Key::Account(run.owner));
                        want(Key::Pool(holdout.id, run.owner));
                    }
                }
            }
            Command::CreateClaim { id, terms, .. } => {
                stamp.into_iter().for_each(&mut want);
                want(Key::Claim(*id));
                want(Key::Account(terms.owner));
            }
            Command::GrantCredit { owner, .. } | Command::SetCreditLimit { owner, .. } => {
                want(Key::Account(*owner));
            }
            Command::ImportAccounts { accounts, .. } => {
                let owners = accounts.iter().map(|account| Key::Account(account.owner));
                owners.for_each(want);
            }
            Command::CommitArtifacts {
                claim, artifacts, ..
            } => {
                want(Key::Claim(*claim));
                for artifact in artifacts.iter().filter(|artifact| artifact.is_dependency()) {
                    want(Key::Claim(artifact.parent_claim()));
                }
            }
            Command::SealClaim { claim }
            | Command::ExecuteClaim { claim }
            | Command::RevokeClaim { claim, .. } => want(Key::Claim(*claim)),
            Command::RecoverEntry(entry) => {
                let (claim, capsule) = continuity::subject(entry);
                claim.map(Key::Claim).into_iter().for_each(&mut want);
                if let Some(capsule) = capsule {
                    want(Key::Pool(capsule.holdout_id, capsule.owner_tag));
                    want(Key::Account(capsule.owner_tag));
                }
            }
            Command::Settle {
                holdout, number, ..
            }
            | Command::Abort { holdout, number }
            | Command::SettleDuplicate { holdout, number } => {
                if let Some(run) = self.run(holdout, *number) {
                    want(Key::Claim(run.claim));
                    want(Key::Account(run.owner));
                    want(Key::Pool(*holdout, run.owner));
                }
            }
        }
        if missing.is_empty() {
            self.missing_behind_claim(request, &mut missing);
        }
        missing
    }

    /// What the claim of a request names: its owner's pool, its ancestors, a displaced request.
    fn missing_behind_claim(&self, request: &Request, missing: &mut Vec<Key>) {
        let (id, runs) = match &request.command {
            Command::CommitArtifacts { claim, .. }
            | Command::SealClaim { claim }
            | Command::RevokeClaim { claim, .. } => (*claim, false),
            Command::ExecuteClaim { claim } => (*claim, true),
            Command::Settle {
                holdout, number, ..
            } => match self.run(holdout, *number) {
                Some(run) => (run.claim, true),
                None => return,
            },
            Command::GrantCredit { owner, .. } | Command::SetCreditLimit { owner, .. } => {
                let displaced = self.account(owner).is_some_and(|a| a.displaced_requests);
                let key = request.stamp.map(|stamp| Key::Remembered(stamp.key));
                missing.extend(key.filter(|key| displaced && !self.holds(key)));
                return;
            }
            Command::PutHoldout(_)
            | Command::RetireHoldout { .. }
            | Command::OpenHoldout { .. }
            | Command::WithdrawHoldout { .. }
            | Command::CreateClaim { .. }
            | Command::BeginAgain { .. }
            | Command::Abort { .. }
            | Command::SettleDuplicate { .. }
            | Command::BeginLog(_)
            | Command::KnowFirstKey(_)
            | Command::RotateKey(_)
            | Command::RestartLog(_)
            | Command::ContinueLog(_)
            | Command::RecoverEntry(_)
            | Command::RekeyHoldouts { .. }
            | Command::ImportAccounts { .. }
            | Command::SetBudgets { .. }
            | Command::StatePolicies(_)
            | Command::RecordDecisions(_)
            | Command::ForgetDecisions { .. }
            | Command::ConfirmClock { .. } => return,
        };
        let own = self
            .claim(&id)
            .filter(|claim| request.caller.may_act_on(claim));
        let commits = matches!(request.command, Command::CommitArtifacts { .. });
        let mut want = |key: Key| {
            if !self.holds(&key) {
                missing.push(key);
            }
        };
        if let Some(stamp) = request.stamp
            && own.is_some_and(|claim| claim.displaced_requests)
        {
            want(Key::Remembered(stamp.key));
        }
        if let Some(claim) = own.filter(|_| commits) {
            want(Key::Account(claim.terms.owner));
        }
        if let Some(claim) = own.filter(|_| runs) {
            want(Key::Pool(claim.terms.holdout, claim.terms.owner));
            want(Key::Account(claim.terms.owner));
            if let Command::ExecuteClaim { .. } = request.command
                && let Some(question) = claim.question()
            {
                want(Key::Question(question));
                if let Some(earlier) = self.asked_before(&question) {
                    want(Key::Claim(earlier));
                }
            }
            let mut open: Vec<ClaimId> = claim.parents().collect();
            while let Some(id) = open.pop() {
                want(Key::Claim(id));
                if let Some(ancestor) = self.claim(&id) {
                    open.extend(ancestor.parents());
                }
            }
        }
    }

    fn holds(&self, key: &Key) -> bool {
        match key {
            Key::Claim(id) => self.claims.contains_key(id),
            Key::Pool(holdout, owner) => self.pools.contains_key(&(*holdout, *owner)),
            Key::Remembered(key) => self.remembered.contains_key(key),
            Key::Account(owner) => self.accounts.contains_key(owner),
            Key::Question(question) => self.questions.contains_key(question),
        }
    }

    /// Gives the stage a claim, or its absence, as the store has it.
    pub fn supply_claim(&mut self, id: ClaimId, claim: Option<Claim>) {
        self.claims.entry(id).or_insert(Held::loaded(claim));
    }

    /// Gives the stage a pool, or its absence.
    pub fn supply_pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
        pool: Option<PrincipalPool>,
    ) {
        self.pools
            .entry((holdout, owner))
            .or_insert(Held::loaded(pool));
    }

    /// Gives the stage a remembered request, or its absence.
    pub fn supply_remembered(&mut self, key: RequestKey, remembered: Option<Remembered>) {
        self.remembered
            .entry(key)
            .or_insert(Held::loaded(remembered));
    }

    /// Gives the stage an account, or its absence.
    pub fn supply_account(&mut self, owner: OwnerTag, account: Option<Account>) {
        self.accounts.entry(owner).or_insert(Held::loaded(account));
    }

    /// Gives the stage the claim that a question is referred to, or that there is none.
    pub fn supply_question(&mut self, question: Question, claim: Option<ClaimId>) {
        self.questions
            .entry(question)
            .or_insert(Held::loaded(claim));
    }

    /// A run under way.
    #[must_use]
    pub fn run(&self, holdout: &HoldoutId, number: u64) -> Option<&InFlight> {
        self.holdout(holdout)?
            .in_flight
            .iter()
            .find(|run| run.number == number)
    }

    /// Makes a decision so: applies its events, numbers its entries.
    pub fn enact(&mut self, decision: &Decision) {
        for event in &decision.events {
            self.apply(event);
        }
        self.counters.next_index += decision.entries.len() as u64;
    }

    /// Applies one event. Events come from decisions on this stage, or from the journal in its
    /// order, so that what they name is there.
    pub fn apply(&mut self, event: &Event) {
        self.counters.events += 1;
        match event {
            Event::HoldoutRegistered(holdout) => {
                self.named_blobs.push(holdout.blob);
                self.references
                    .insert(holdout.reference.clone(), holdout.id);
                self.holdouts.insert(holdout.id, (**holdout).clone());
                self.counters.next_holdout_seq = holdout.seq + 1;
                self.counters.holdouts_generation += 1;
            }
            Event::HoldoutRetired(id) => self.holdout_mut(id).status = HoldoutStatus::Retired,
            Event::HoldoutOpened(id) => self.holdout_mut(id).status = HoldoutStatus::Opened,
            Event::HoldoutTold { holdout, later } => {
                let held = self.holdout_mut(holdout);
                *held = held.clone().with_later((**later).clone());
            }
            Event::HoldoutWithdrawn(id) => {
                let held = self.holdout_mut(id);
                held.status = HoldoutStatus::Withdrawn;
                let blob = held.blob;
                self.dropped_blobs.push(blob);
            }
            Event::HoldoutCompared {
                holdout,
                answers,
                sealed,
            } => {
                let held = self.holdout_mut(holdout);
                held.answers.recover(MicroBits::ZERO, *answers);
                held.sealed.recover(MicroBits::ZERO, *sealed);
            }
            Event::LogCarriedOn => {
                let all: Vec<HoldoutId> = self.holdouts().map(|holdout| holdout.id).collect();
                for id in all {
                    self.holdout_mut(&id).carried_on = true;
                }
            }
            Event::RunPlaced {
                holdout,
                number,
                place,
            } => {
                let runs = &mut self.holdout_mut(holdout).in_flight;
                if let Some(run) = runs.iter_mut().find(|run| run.number == *number) {
                    run.place = Some(*place);
                }
            }
            Event::QuestionAsked { question, claim } => {
                self.questions.insert(*question, Held::created(*claim));
            }
            Event::ClaimCreated(claim) => {
                self.counters.next_claim_seq = claim.seq + 1;
                self.store_for(&claim.terms.owner, CLAIM_BYTES, 0);
                self.claims
                    .insert(claim.id, Held::created((**claim).clone()));
            }
            Event::ArtifactsCommitted { claim, commitment } => {
                let claim = self.claim_mut(claim);
                let owner = claim.terms.owner;
                let before = claim.commitment.replace((**commitment).clone());
                claim.state = ClaimState::Committed;
                self.name_module(before.as_ref(), commitment);
                let released = before.map_or(0, |before| before.stored_bytes());
                self.store_for(&owner, commitment.stored_bytes(), released);
            }
            Event::ClaimSealed { claim, seal_hash } => {
                let claim = self.claim_mut(claim);
                claim.seal_hash = Some(*seal_hash);
                claim.state = ClaimState::Sealed;
            }
            Event::RunAdmitted { holdout, run } => self.admit(holdout, run),
            // Begun again, a run is what it was.
            Event::RunBegunAgain { .. } => {}
            Event::RunFailed { holdout, number } => {
                let runs = &mut self.holdout_mut(holdout).in_flight;
                if let Some(run) = runs.iter_mut().find(|run| run.number == *number) {
                    run.attempt = run.attempt.saturating_add(1);
                }
            }
            Event::RunSettled {
                holdout,
                claim,
                settlement,
            } => {
                self.settle(holdout, settlement);
                let claim = self.claim_mut(claim);
                claim.state = settlement.outcome.state();
                claim.settlement = Some((**settlement).clone());
                let owner = claim.terms.owner;
                self.store_for(&owner, settlement.trace_len, 0);
            }
            Event::ClaimRevoked { claim, revocation } => {
                let claim = self.claim_mut(claim);
                claim.revocation = Some(revocation.clone());
                claim.state = ClaimState::Revoked;
            }
            Event::ClaimRequestRemembered { claim, request } => {
                self.remember_on_claim(claim, request);
            }
            Event::RequestRemembered { key, remembered } => {
                self.remembered
                    .insert(*key, Held::created(remembered.clone()));
            }
            Event::KeyRotated(key) => self.log_keys.push(*key),
            Event::PoliciesStated(in_force) => self.in_force = Some(*in_force),
            Event::HoldoutsRekeyed(blobs) => {
                for (id, blob) in blobs {
                    let old = std::mem::replace(&mut self.holdout_mut(id).blob, *blob);
                    self.named_blobs.push(*blob);
                    self.dropped_blobs.push(old);
                }
            }
            Event::AccountOpened(account) => {
                self.totals.initial += u128::from(account.balance);
                self.put_account(account);
            }
            Event::CreditMinted { owner, day, amount } => {
                self.totals.minted += u128::from(*amount);
                self.change_account(owner, |account| account.mint(*day, *amount));
            }
            Event::CreditReserved {
                owner,
                claim,
                amount,
                max_fuel,
            } => self.reserve_credit(owner, claim, *amount, *max_fuel),
            Event::CreditBurned {
                owner,
                claim,
                amount,
            } => self.burn_credit(owner, claim, *amount),
            Event::CreditDenied(owner) => {
                self.change_account(owner, |account| account.denied_total += 1);
            }
            Event::CreditGranted { owner, amount, .. } => {
                self.totals.granted += u128::from(*amount);
                self.change_account(owner, |account| account.add(*amount));
            }
            Event::CreditLimitSet { owner, limit } => {
                let mut withdrawn = 0;
                self.change_account(owner, |account| withdrawn = account.limit(*limit));
                self.totals.withdrawn += u128::from(withdrawn);
            }
            Event::AccountImported(account) => self.import(account),
            Event::AccountRequestRemembered { owner, request } => {
                self.remember_on_account(owner, request);
            }
            Event::BudgetsNarrowed { holdout, narrower } => {
                self.holdout_mut(holdout).narrower = *narrower;
            }
            Event::ClockConfirmed { .. } | Event::DecisionsRecorded { .. } => {}
            Event::DecisionsForgotten { through } => self.forgotten_decisions = Some(*through),
            Event::HoldoutCharged {
                holdout,
                answers,
                sealed,
            } => {
                let held = self.holdout_mut(holdout);
                held.answers.recover(MicroBits::ZERO, *answers);
                held.sealed.recover(MicroBits::ZERO, *sealed);
            }
            Event::RunRecovered {
                holdout,
                owner,
                claim,
                settlement,
            } => self.recover_run(holdout, *owner, claim, settlement),
        }
    }

    /// A result that came back: its run, if it was under way in this state, has ended.
    fn recover_run(
        &mut self,
        holdout: &HoldoutId,
        owner: OwnerTag,
        claim: &ClaimId,
        settlement: &crate::claim::Settlement,
    ) {
        let held = self.holdout_mut(holdout);
        let under_way = held.in_flight.iter().position(|run| run.claim == *claim);
        let run = under_way.and_then(|at| held.in_flight.remove(at));
        let reserved = |of: fn(&InFlight) -> MicroBits| run.as_ref().map_or(MicroBits::ZERO, of);
        let (answers, sealed) = (
            reserved(|run| run.answers_reserved),
            reserved(|run| run.sealed_reserved),
        );
        held.answers.recover(answers, settlement.answers_charged);
        held.sealed.recover(sealed, settlement.price);
        if run.is_none() {
            held.admitted += 1;
        }
        held.count(settlement.outcome);
        let fenced = held.description.policy.principal_sealed_budget.is_some();
        if answers > MicroBits::ZERO || settlement.answers_charged > MicroBits::ZERO {
            self.pool_mut(*holdout, owner)
                .answers
                .recover(answers, settlement.answers_charged);
        }
        if fenced {
            self.pool_mut(*holdout, owner)
                .sealed
                .recover(sealed, settlement.price);
        }
        if self.claim(claim).is_none() {
            return;
        }
        // What it burned is not in the log: what was set aside goes back.
        if run.is_some() && self.account(&owner).is_some() {
            self.burn_credit(&owner, claim, 0);
        }
        let row = self.claim_mut(claim);
        row.state = settlement.outcome.state();
        row.settlement = Some(settlement.clone());
    }

    fn reserve_credit(&mut self, owner: &OwnerTag, claim: &ClaimId, amount: u64, max_fuel: u64) {
        self.change_account(owner, |account| account.reserve(amount));
        let claim = self.claim_mut(claim);
        claim.credit.reserved = amount;
        claim.credit.max_fuel = max_fuel;
        let holdout = claim.terms.holdout;
        self.holdout_mut(&holdout).credit_reserved += amount;
    }

    fn burn_credit(&mut self, owner: &OwnerTag, claim: &ClaimId, amount: u64) {
        let claim = self.claim_mut(claim);
        claim.credit.burned = amount;
        let (reserved, holdout) = (claim.credit.reserved, claim.terms.holdout);
        self.change_account(owner, |account| account.settle(reserved, amount));
        self.totals.burned += u128::from(amount);
        let holdout = self.holdout_mut(&holdout);
        holdout.credit_reserved -= reserved;
        holdout.credit_burned += amount;
    }

    /// What an import adds counts as granted or, to a new account, as initial; what it takes, as
    /// withdrawn.
    fn import(&mut self, after: &Account) {
        let after_balance = u128::from(after.balance);
        match self.account(&after.owner).map(|b| u128::from(b.balance)) {
            None => self.totals.initial += after_balance,
            Some(before) => {
                self.totals.granted += after_balance.saturating_sub(before);
                self.totals.withdrawn += before.saturating_sub(after_balance);
            }
        }
        self.put_account(after);
    }

    fn put_account(&mut self, after: &Account) {
        let before = self.account(&after.owner).cloned();
        self.totals.follow(before.as_ref(), after);
        match self
            .accounts
            .get_mut(&after.owner)
            .filter(|_| before.is_some())
        {
            Some(held) => {
                held.value = Some(after.clone());
                held.dirty = true;
            }
            None => {
                let created = Held::created(after.clone());
                self.accounts.insert(after.owner, created);
            }
        }
    }

    fn change_account(&mut self, owner: &OwnerTag, change: impl FnOnce(&mut Account)) {
        let Some(mut account) = self.account(owner).cloned() else {
            unreachable!("an event names an account that was loaded")
        };
        change(&mut account);
        self.put_account(&account);
    }

    /// Counts what is stored for a principal. Claims from before there were accounts may have an owner without
    /// an account, which then counts nothing.
    fn store_for(&mut self, owner: &OwnerTag, more: u64, less: u64) {
        if self.account(owner).is_some() {
            self.change_account(owner, |account| {
                let stored = account.stored_bytes.saturating_add(more);
                account.stored_bytes = stored.saturating_sub(less);
            });
        }
    }

    /// Counts the claims that name a module.
    fn name_module(&mut self, before: Option<&Commitment>, after: &Commitment) {
        let before = before.map(|before| before.module.hash);
        let after = after.module.hash;
        if before != Some(after) {
            self.named_modules.push(after);
            self.displaced_modules.extend(before);
        }
    }

    /// As on a claim: the last request of a method stays in the row, the one before it is
    /// remembered by key.
    fn remember_on_account(&mut self, owner: &OwnerTag, request: &LastCredit) {
        let now = self.counters.now_unix_ms;
        let mut displaced = None;
        self.change_account(owner, |account| {
            let same = account.requests.iter();
            let at = same.clone().position(|last| last.limits == request.limits);
            displaced = at.map(|at| account.requests.swap_remove(at)).filter(|old| {
                old.key != request.key && now.saturating_sub(old.at_unix_ms) < REQUEST_WINDOW_MS
            });
            account.requests.push(request.clone());
            account.displaced_requests |= displaced.is_some();
        });
        if let Some(old) = displaced {
            let remembered = Remembered {
                fingerprint: old.fingerprint,
                at_unix_ms: old.at_unix_ms,
                result: match old.result {
                    Ok(answered) => RememberedResult::Credit(answered),
                    Err(refusal) => RememberedResult::Refused(refusal),
                },
            };
            self.remembered.insert(old.key, Held::created(remembered));
        }
    }

    fn admit(&mut self, holdout: &HoldoutId, run: &InFlight) {
        let held = self.holdout_mut(holdout);
        held.admitted = run.number + 1;
        held.answers.reserve(run.answers_reserved);
        held.sealed.reserve(run.sealed_reserved);
        held.in_flight.push_back(run.clone());
        let fenced = held.description.policy.principal_sealed_budget.is_some();
        if run.answers_reserved > MicroBits::ZERO {
            self.pool_mut(*holdout, run.owner)
                .answers
                .reserve(run.answers_reserved);
        }
        if fenced && run.sealed_reserved > MicroBits::ZERO {
            self.pool_mut(*holdout, run.owner)
                .sealed
                .reserve(run.sealed_reserved);
        }
        self.claim_mut(&run.claim).state = ClaimState::Executing;
    }

    fn settle(&mut self, holdout: &HoldoutId, settlement: &crate::claim::Settlement) {
        let held = self.holdout_mut(holdout);
        let Some(run) = held.in_flight.pop_front() else {
            unreachable!("a settlement ends the oldest run under way")
        };
        held.answers
            .settle(run.answers_reserved, settlement.answers_charged);
        held.sealed.settle(run.sealed_reserved, settlement.price);
        held.count(settlement.outcome);
        let fenced = held.description.policy.principal_sealed_budget.is_some();
        if run.answers_reserved > MicroBits::ZERO {
            self.pool_mut(*holdout, run.owner)
                .answers
                .settle(run.answers_reserved, settlement.answers_charged);
        }
        if fenced && run.sealed_reserved > MicroBits::ZERO {
            self.pool_mut(*holdout, run.owner)
                .sealed
                .settle(run.sealed_reserved, settlement.price);
        }
    }

    /// A claim keeps one request a method. The one that it displaces is remembered by key, so
    /// that a late retry of it still finds its reply.
    fn remember_on_claim(&mut self, id: &ClaimId, request: &LastRequest) {
        let now = self.counters.now_unix_ms;
        let claim = self.claim_mut(id);
        let same_method = claim
            .requests
            .iter()
            .position(|last| last.method == request.method);
        let displaced = same_method.map(|at| claim.requests.swap_remove(at));
        claim.requests.push(request.clone());
        let Some(old) = displaced.filter(|old| {
            old.key != request.key && now.saturating_sub(old.at_unix_ms) < REQUEST_WINDOW_MS
        }) else {
            return;
        };
        claim.displaced_requests = true;
        let result = match old.refusal {
            Some(refusal) => RememberedResult::Refused(refusal),
            None => RememberedResult::Acted(old.method, *id),
        };
        self.remembered.insert(
            old.key,
            Held::created(Remembered {
                fingerprint: old.fingerprint,
                at_unix_ms: old.at_unix_ms,
                result,
            }),
        );
    }

    fn holdout_mut(&mut self, id: &HoldoutId) -> &mut Holdout {
        let resident = self.resident;
        self.holdouts
            .entry(*id)
            .or_insert_with(|| match resident.holdouts.get(id) {
                Some(holdout) => holdout.clone(),
                None => unreachable!("an event names a registered holdout"),
            })
    }

    fn claim_mut(&mut self, id: &ClaimId) -> &mut Claim {
        match self.claims.get_mut(id) {
            Some(Held {
                value: Some(claim),
                dirty,
                ..
            }) => {
                *dirty = true;
                claim
            }
            _ => unreachable!("an event names a claim that was loaded"),
        }
    }

    fn pool_mut(&mut self, holdout: HoldoutId, owner: OwnerTag) -> &mut PrincipalPool {
        let held = self
            .pools
            .entry((holdout, owner))
            .or_insert(Held::loaded(None));
        held.dirty = true;
        held.value.get_or_insert_default()
    }

    /// What the batch changed.
    #[must_use]
    pub fn into_changes(self) -> Changes {
        let mut changes = Changes {
            counters: self.counters,
            ..Changes::default()
        };
        for held in self.claims.into_values().filter(|held| held.dirty) {
            let into = if held.fresh {
                &mut changes.new_claims
            } else {
                &mut changes.claims
            };
            into.extend(held.value);
        }
        // Rows go to the store in the order of their keys: neighbours share pages.
        changes.new_claims.sort_unstable_by_key(|claim| claim.seq);
        changes.claims.sort_unstable_by_key(|claim| claim.seq);
        changes.holdouts = self.holdouts.into_values().collect();
        changes.holdouts.sort_unstable_by_key(|holdout| holdout.seq);
        changes.pools = self
            .pools
            .into_iter()
            .filter(|(_, held)| held.dirty)
            .filter_map(|((holdout, owner), held)| Some((holdout, owner, held.value?)))
            .collect();
        changes.remembered = self
            .remembered
            .into_iter()
            .filter(|(_, held)| held.dirty)
            .filter_map(|(key, held)| Some((key, held.value?)))
            .collect();
        for held in self.accounts.into_values().filter(|held| held.dirty) {
            let into = if held.fresh {
                &mut changes.new_accounts
            } else {
                &mut changes.accounts
            };
            into.extend(held.value);
        }
        changes
            .new_accounts
            .sort_unstable_by_key(|account| account.seq);
        changes.accounts.sort_unstable_by_key(|account| account.seq);
        changes.totals = Some(self.totals);
        changes.questions = self
            .questions
            .into_iter()
            .filter(|(_, held)| held.dirty)
            .filter_map(|(question, held)| Some((question, held.value?)))
            .collect();
        changes.log_keys = self.log_keys;
        changes.named_blobs = self.named_blobs;
        changes.dropped_blobs = self.dropped_blobs;
        changes.named_modules = self.named_modules;
        changes.displaced_modules = self.displaced_modules;
        changes.forgotten_decisions = self.forgotten_decisions;
        changes.in_force = self.in_force;
        changes
    }
}
