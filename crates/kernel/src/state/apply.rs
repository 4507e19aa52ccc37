//! Applies events to the stage of a batch.

use crate::{
    account::{Account, CLAIM_BYTES, LastCredit},
    bits::MicroBits,
    claim::{Claim, ClaimState, Commitment, LastRequest},
    command::{Decision, Event, Remembered, RememberedResult},
    holdout::{Holdout, HoldoutStatus, InFlight, PrincipalPool},
    id::{ClaimId, HoldoutId, OwnerTag},
    state::{Held, REQUEST_WINDOW_MS, Stage},
};

impl Stage<'_> {
    /// Applies a decision's events and numbers its entries.
    pub fn enact(&mut self, decision: &Decision) {
        for event in &decision.events {
            self.apply(event);
        }
        self.counters.next_index += decision.entries.len() as u64;
    }

    /// Applies one event. Events come from decisions on this stage, or from the journal in its
    /// order, so the rows that they name exist.
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
                // A comparison reserves nothing: it is decided and charged in one event.
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
            Event::ClaimUncommitted(claim) => {
                let claim = self.claim_mut(claim);
                let owner = claim.terms.owner;
                claim.state = ClaimState::Uncommitted;
                claim.seal_hash = None;
                if let Some(before) = claim.commitment.take() {
                    self.displaced_modules.push(before.module.hash);
                    self.store_for(&owner, 0, before.stored_bytes());
                }
            }
            Event::ClaimSealed { claim, seal_hash } => {
                let claim = self.claim_mut(claim);
                claim.seal_hash = Some(*seal_hash);
                claim.state = ClaimState::Sealed;
            }
            Event::RunAdmitted { holdout, run } => self.admit(holdout, run),
            // A restarted run keeps all its facts.
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

    /// A recovered result ends its run, if it was under way in this state.
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
        // This state never admitted the run, but its number in the holdout's order is used.
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
        // The log does not state the credit burned: the reservation is refunded.
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

    /// Credit that an import adds counts as granted or, for a new account, as initial; credit that
    /// it takes counts as withdrawn.
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

    /// Counts bytes stored for a principal. Claims of releases without accounts may have an owner without an account,
    /// and then nothing is counted.
    fn store_for(&mut self, owner: &OwnerTag, more: u64, less: u64) {
        if self.account(owner).is_some() {
            self.change_account(owner, |account| {
                let stored = account.stored_bytes.saturating_add(more);
                account.stored_bytes = stored.saturating_sub(less);
            });
        }
    }

    /// Updates which modules claims name.
    fn name_module(&mut self, before: Option<&Commitment>, after: &Commitment) {
        let before = before.map(|before| before.module.hash);
        let after = after.module.hash;
        if before != Some(after) {
            self.named_modules.push(after);
            self.displaced_modules.extend(before);
        }
    }

    /// The last request of a method stays in the account's row, and the one before it is remembered
    /// by key, as on a claim.
    fn remember_on_account(&mut self, owner: &OwnerTag, request: &LastCredit) {
        let now = self.counters.now_unix_ms;
        let mut displaced = None;
        self.change_account(owner, |account| {
            let same = account.requests.iter();
            let at = same.clone().position(|last| last.limits == request.limits);
            // A retried request would displace itself and needs no second place.
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
        // Only policies with a sealed budget per principal need this sum: without one, no row is
        // written for it.
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

    /// A claim's row keeps one request per method. The displaced request is remembered by key, so a
    /// late retry of it still finds its reply.
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
}
