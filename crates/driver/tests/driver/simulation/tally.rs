//! How often each fault was played: one that never was would be no test.

use std::collections::BTreeMap;

use evidenceos_store::memory::{Fault, Tail};

/// All that a simulation must have played, in many seeds.
const ALL: [&str; 12] = [
    "commit: disk full",
    "commit: constraint",
    "commit: in doubt, lost",
    "commit: in doubt, kept",
    "commit: in doubt, torn",
    "start: found nothing in doubt",
    "start: found a batch that nobody knew of",
    "start: found a torn batch",
    "death between two batches",
    "accounts.tmp torn",
    "accounts.json renamed, and the rename lost",
    "module torn",
];

#[derive(Default)]
pub(super) struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub(super) fn count(&mut self, what: &'static str) {
        assert!(ALL.contains(&what), "{what}");
        *self.0.entry(what).or_default() += 1;
    }

    pub(super) fn count_start(&mut self, tail: Tail) {
        self.count(match tail {
            Tail::Nothing => "start: found nothing in doubt",
            Tail::Whole => "start: found a batch that nobody knew of",
            Tail::Torn => "start: found a torn batch",
        });
    }

    pub(super) fn count_fault(&mut self, fault: Fault) {
        self.count(match fault {
            Fault::None => return,
            Fault::Full => "commit: disk full",
            Fault::Constraint => "commit: constraint",
            Fault::UnknownLost => "commit: in doubt, lost",
            Fault::UnknownKept => "commit: in doubt, kept",
            Fault::Torn(_) => "commit: in doubt, torn",
        });
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    /// Prints the counts.
    ///
    /// # Panics
    /// Where something was never played.
    pub(super) fn check_all_played(&self) {
        for what in ALL {
            let times = self.0.get(what).copied().unwrap_or_default();
            println!("{times:>9} {what}");
            assert!(times > 0, "never played: {what}");
        }
    }
}
