//! The changes of a batch, for the store and then for memory.

use crate::{
    account::{Account, Totals},
    claim::Claim,
    command::Remembered,
    decision::DecisionId,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
    state::{Counters, Stage},
};

/// The changes of a batch, to be written and then merged.
#[derive(Debug, Default)]
pub struct Changes {
    /// Claims that this batch created.
    pub new_claims: Vec<Claim>,
    /// Changed claims that existed before this batch.
    pub claims: Vec<Claim>,
    /// Holdouts that this batch registered or changed.
    pub holdouts: Vec<Holdout>,
    /// Principals' pools that this batch charged or reserved from.
    pub pools: Vec<(HoldoutId, OwnerTag, PrincipalPool)>,
    pub remembered: Vec<(RequestKey, Remembered)>,
    /// Accounts that this batch opened.
    pub new_accounts: Vec<Account>,
    /// Changed accounts that existed before this batch.
    pub accounts: Vec<Account>,
    /// Sums over all accounts after the batch; `None` if it leaves them unchanged.
    pub totals: Option<Totals>,
    /// Questions, and the claims whose verdicts answer them.
    pub questions: Vec<(Question, ClaimId)>,
    /// Keys that took over the log.
    pub log_keys: Vec<LogKey>,
    /// Blobs of holdout items that are referenced now.
    pub named_blobs: Vec<Digest>,
    /// Blobs of holdout items that nothing references any more.
    pub dropped_blobs: Vec<Digest>,
    /// Modules of claims that got one, or another one, in this batch.
    pub named_modules: Vec<Digest>,
    /// The module that each such claim had before, if it had one.
    pub displaced_modules: Vec<Digest>,
    /// Records of decisions up to this one are deleted.
    pub forgotten_decisions: Option<DecisionId>,
    /// The policies in force from now on, if they changed.
    pub in_force: Option<InForce>,
    /// The counters after the batch.
    pub counters: Counters,
}

impl Stage<'_> {
    /// The changes of the batch.
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
        // The store gets rows in the order of their keys: neighbours share pages.
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
