//! The rows that a decision must have loaded, and the calls that supply them.

use crate::{
    account::Account,
    claim::Claim,
    command::{Caller, Command, Remembered, RememberedOn, Request},
    decide::own,
    holdout::{InFlight, PrincipalPool},
    id::{ClaimId, HoldoutId, OwnerTag, Question, RequestKey},
    state::{Held, Stage},
};

/// A row that the stage must hold before a command can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    Claim(ClaimId),
    /// A principal's pool on a holdout.
    Pool(HoldoutId, OwnerTag),
    Remembered(RequestKey),
    Account(OwnerTag),
    /// The claim that asked a question first.
    Question(Question),
}

/// Collects the rows that a command needs and the stage does not hold yet.
#[derive(Debug)]
pub(crate) struct Wanted<'w> {
    stage: &'w Stage<'w>,
    caller: &'w Caller,
    missing: Vec<Key>,
}

impl<'w> Wanted<'w> {
    pub(crate) fn want(&mut self, key: Key) {
        if !self.stage.holds(&key) {
            self.missing.push(key);
        }
    }

    /// The stage with the rows loaded so far.
    pub(crate) fn stage(&self) -> &'w Stage<'w> {
        self.stage
    }

    /// The caller's claim, once it is loaded. For another principal's claim nothing more is loaded.
    pub(crate) fn own(&self, id: &ClaimId) -> Option<&'w Claim> {
        own(self.stage, self.caller, id).ok()
    }

    /// Wants the rows that the end of a run touches.
    pub(crate) fn want_run(&mut self, holdout: HoldoutId, run: &InFlight) {
        self.want(Key::Claim(run.claim));
        self.want(Key::Account(run.owner));
        self.want(Key::Pool(holdout, run.owner));
    }

    /// Wants the ancestors of a claim, as far as loaded ones name them.
    pub(crate) fn want_ancestors(&mut self, claim: &Claim) {
        let mut open: Vec<ClaimId> = claim.parents().collect();
        while let Some(id) = open.pop() {
            self.want(Key::Claim(id));
            if let Some(ancestor) = self.stage.claim(&id) {
                open.extend(ancestor.parents());
            }
        }
    }

    /// Whether a request may be remembered under its key. A row that remembers its last requests
    /// also knows whether it displaced one: if it did not, the hot path reads no row under a random
    /// key.
    fn may_be_remembered_by_key(&self, command: &Command) -> bool {
        match command.remembered_on() {
            RememberedOn::Claim(_, claim) => self
                .own(&claim)
                .is_some_and(|claim| claim.displaced_requests),
            RememberedOn::Account { owner, .. } => self
                .stage
                .account(&owner)
                .is_some_and(|account| account.displaced_requests),
            RememberedOn::Key => true,
        }
    }
}

impl Stage<'_> {
    /// The rows to load before a request can be decided. The caller asks again after each load,
    /// since one row names the next; the ancestors of a claim bound the number of rounds.
    #[must_use]
    pub fn missing(&self, request: &Request) -> Vec<Key> {
        let mut wanted = Wanted {
            stage: self,
            caller: &request.caller,
            missing: Vec::new(),
        };
        request.command.keys(&mut wanted);
        if let Some(stamp) = request.stamp
            && wanted.may_be_remembered_by_key(&request.command)
        {
            wanted.want(Key::Remembered(stamp.key));
        }
        wanted.missing
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
        // A claim that this batch has changed already must not go back to what the store has.
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

    /// Gives the stage the claim that answers a question, or its absence.
    pub fn supply_question(&mut self, question: Question, claim: Option<ClaimId>) {
        self.questions
            .entry(question)
            .or_insert(Held::loaded(claim));
    }
}
