//! Run slots: the number of runs executed at a time, in all and per principal.

use std::collections::HashMap;

use evidenceos_kernel::id::{HoldoutId, OwnerTag};

type Run = (HoldoutId, u64);

/// Slots taken, by run and by owner.
pub(crate) struct Slots {
    most: usize,
    runs: HashMap<Run, OwnerTag>,
    by_owner: HashMap<OwnerTag, usize>,
}

impl Slots {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            runs: HashMap::new(),
            by_owner: HashMap::new(),
        }
    }

    pub(crate) fn taken(&self) -> usize {
        self.runs.len()
    }

    pub(crate) fn free(&self) -> usize {
        self.most.saturating_sub(self.runs.len())
    }

    /// Whether another run has a slot beside the slots taken and the `pending` runs of a batch.
    pub(crate) fn admits(&self, pending: usize) -> bool {
        pending < self.free()
    }

    /// Whether an owner has its share with `own` runs of a batch beside the slots taken: at most a
    /// quarter of the slots.
    pub(crate) fn has_its_share(&self, owner: OwnerTag, own: usize) -> bool {
        let held = self.by_owner.get(&owner).copied().unwrap_or(0);
        // A quarter of fewer than four slots would be none, and then no principal could run
        // anything.
        held + own >= (self.most / 4).max(1)
    }

    pub(crate) fn take(&mut self, run: Run, owner: OwnerTag) {
        if self.runs.insert(run, owner).is_none() {
            *self.by_owner.entry(owner).or_insert(0) += 1;
        }
    }

    pub(crate) fn give_back(&mut self, run: Run) {
        let Some(owner) = self.runs.remove(&run) else {
            return;
        };
        if let Some(held) = self.by_owner.get_mut(&owner) {
            *held -= 1;
            if *held == 0 {
                self.by_owner.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_has_at_most_a_quarter() {
        let (holdout, owner, other) = (HoldoutId([0; 32]), OwnerTag([1; 16]), OwnerTag([2; 16]));
        let mut slots = Slots::new(8);
        slots.take((holdout, 0), owner);
        assert!(!slots.has_its_share(owner, 0));
        assert!(slots.has_its_share(owner, 1));
        slots.take((holdout, 1), owner);
        assert!(slots.has_its_share(owner, 0));
        assert!(slots.admits(5) && !slots.has_its_share(other, 1));
        assert!(!slots.admits(6));
        slots.give_back((holdout, 0));
        assert!(!slots.has_its_share(owner, 0));
        assert_eq!(slots.free(), 7);
    }
}
