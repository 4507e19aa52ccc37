//! What must hold after each step of the simulation, and at its end.

use std::collections::HashMap;

use evidenceos_kernel::{
    account::Account,
    bits::MicroBits,
    claim::{ClaimState, Outcome},
    command::{ClaimCommand, Command, CreditCommand, Event, Reply},
    entry::Entry,
    id::Digest,
};
use evidenceos_store::Store as _;

use super::Simulation;
use crate::heads::assert_heads_sound;

impl Simulation {
    /// No credit came from nowhere, none was lost, and the log has every grant.
    pub(super) fn check_credit(&mut self) {
        let memory = &self.bench.driver.store_mut().memory;
        let totals = memory.totals();
        assert!(totals.balance_out(), "{totals:?}");
        let sum = |of: fn(&Account) -> u64| memory.accounts().map(|a| u128::from(of(a))).sum();
        assert_eq!(totals.balances, sum(|account| account.balance));
        assert_eq!(totals.reserved, sum(|account| account.reserved));
        assert_eq!(totals.burned, sum(|account| account.burned_total));
        assert_eq!(totals.granted, self.granted.values().sum());
        for account in memory.accounts() {
            // What people were told is what is stored.
            assert_eq!(self.told.get(&account.owner).unwrap_or(account), account);
        }
        let main = self.bench.main();
        assert_eq!(u128::from(main.credit_burned), totals.burned);
        assert_eq!(u128::from(main.credit_reserved), totals.reserved);
    }

    pub(super) fn check_heads(&mut self) {
        let heads = self.bench.heads();
        assert_heads_sound(&heads, self.bench.driver.store_mut().memory.entries());
    }

    /// The log only grows, and leakage is what its capsules say.
    pub(super) fn check_log(&mut self) {
        let entries = self.bench.driver.store_mut().memory.entries();
        let known = self.log.len();
        assert_eq!(entries[..known], self.log);
        self.log.extend_from_slice(&entries[known..]);
        for entry in &self.log[known..] {
            let entry = Entry::parse(&entry.bytes).expect("our own entry");
            if let Entry::ClaimCapsule(capsule) = entry {
                self.capsules.push(capsule);
            } else if let Entry::CreditGranted(grant) = entry {
                // A reason belongs to one request: twice in the log, it was granted twice.
                let before = self.granted.insert(grant.reason, u128::from(grant.amount));
                assert_eq!(before, None);
            }
        }
        let capsules = &self.capsules;
        let main = self.bench.main();
        let mut k = MicroBits::ZERO;
        for capsule in capsules {
            assert_eq!(capsule.ledger.k, k);
            k = k.saturating_add(capsule.ledger.price);
        }
        assert_eq!(main.sealed.charged, k);
        let answers = capsules.iter().map(|capsule| capsule.answers.charged);
        assert_eq!(main.answers.charged, answers.sum());
        // Settlement order is admission order: the ended are the first so many admitted.
        assert_eq!(
            main.admitted,
            (capsules.len() + main.in_flight.len()) as u64
        );
        let first = main
            .in_flight
            .front()
            .map_or(main.admitted, |run| run.number);
        assert_eq!(first, capsules.len() as u64);
    }

    /// What was acknowledged is there.
    pub(super) fn check_acknowledged(&mut self) {
        for asked in self.asked.values() {
            let Some(Ok(reply)) = &asked.answer else {
                continue;
            };
            if let Command::Credit(CreditCommand::Grant { reason, amount, .. }) = &asked.command {
                assert_eq!(self.granted.get(reason), Some(&u128::from(*amount)));
            }
            if let Command::Claim(ClaimCommand::Revoke { claim, .. }) = &asked.command {
                let memory = &mut self.bench.driver.store_mut().memory;
                let stored = memory.claim(claim);
                let stored = stored.expect("readable").expect("stored");
                assert_eq!(stored.state, ClaimState::Revoked);
            }
            if let Reply::Settled(claim) = reply {
                let settlement = claim.settlement.as_ref().expect("a result");
                let entry = &self.log[settlement.index as usize];
                let hash = Digest::of(&entry.bytes);
                assert_eq!(hash, settlement.capsule_hash);
                let memory = &mut self.bench.driver.store_mut().memory;
                let stored = memory.claim(&claim.id);
                let stored = stored.expect("readable").expect("stored");
                assert_eq!(stored.settlement, claim.settlement);
            }
        }
    }

    /// Every run that ended burned once; one that a fault of ours ended, nothing.
    pub(super) fn check_burned(&mut self) {
        let torn = self.torn_modules.clone();
        let memory = &mut self.bench.driver.store_mut().memory;
        let mut burned = HashMap::new();
        for event in memory.recorded().iter().flat_map(|row| &row.events) {
            if let Event::CreditBurned { claim, amount, .. } = event {
                assert_eq!(burned.insert(*claim, *amount), None, "{claim} burned twice");
            }
        }
        let sum: u128 = burned.values().map(|amount| u128::from(*amount)).sum();
        assert_eq!(memory.totals().burned, sum);
        assert_eq!(burned.len(), self.capsules.len());
        for (id, amount) in burned {
            let claim = memory.claim(&id).expect("readable").expect("stored");
            let outcome = claim.settlement.expect("it burned").outcome;
            assert_eq!(amount == 0, outcome == Outcome::Aborted, "{id}");
            assert!(!torn.contains(&id) || outcome == Outcome::Aborted, "{id}");
        }
    }
}
