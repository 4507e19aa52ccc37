//! What a batch leaves for the store, and then for memory.

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

/// What a batch changed, to be written and then merged.
#[derive(Debug, Default)]
pub struct Changes {
    /// Claims that this batch created.
    pub new_claims: Vec<Claim>,
    /// Claims that were there.
    pub claims: Vec<Claim>,
    /// Holdouts that this batch registered or changed.
    pub holdouts: Vec<Holdout>,
    /// Principals' pools that this batch charged or reserved from.
    pub pools: Vec<(HoldoutId, OwnerTag, PrincipalPool)>,
    pub remembered: Vec<(RequestKey, Remembered)>,
    /// Accounts that this batch opened.
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

impl Stage<'_> {
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
