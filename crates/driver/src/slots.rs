//! Run slots: how many runs are computed at a time, and how many of one principal.

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

    /// Whether an owner may have another run beside those taken and `pending` of a batch, of
    /// which `own` are his: a quarter of the slots is the most for one.
    pub(crate) fn admits(&self, owner: OwnerTag, pending: usize, own: usize) -> bool {
        let held = self.by_owner.get(&owner).copied().unwrap_or(0);
        pending < self.free() && held + own < (self.most / 4).max(1)
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
        assert!(slots.admits(owner, 0, 0));
        assert!(!slots.admits(owner, 1, 1));
        slots.take((holdout, 1), owner);
        assert!(!slots.admits(owner, 0, 0));
        assert!(slots.admits(other, 5, 1));
        assert!(!slots.admits(other, 6, 1));
        slots.give_back((holdout, 0));
        assert!(slots.admits(owner, 0, 0));
        assert_eq!(slots.free(), 7);
    }
}
