//! What a decision must have loaded, and how the stage is given it.

use crate::{
    account::Account,
    claim::Claim,
    command::{Command, Remembered, Request},
    decide::continuity,
    holdout::PrincipalPool,
    id::{ClaimId, HoldoutId, OwnerTag, Question, RequestKey},
    state::{Held, Stage},
};

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

impl Stage<'_> {
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
}
