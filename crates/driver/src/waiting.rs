//! Calls that wait for reservations or slots, in the order in which they came.
//!
//! One queue for all holdouts, so that none starves another; within a holdout nobody overtakes,
//! which the attempt sees to. Whenever something of ours has ended all of them are looked at
//! again: who is left then waits for a run that is still under way.

use std::collections::{HashMap, VecDeque};

use evidenceos_kernel::id::{HoldoutId, OwnerTag};

use crate::Call;

/// The queue.
pub(crate) struct Waiting {
    most: usize,
    calls: VecDeque<(HoldoutId, Call)>,
    by_caller: HashMap<OwnerTag, usize>,
}

impl Waiting {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            calls: VecDeque::new(),
            by_caller: HashMap::new(),
        }
    }

    /// Whether a caller may wait with another call: a quarter of the queue is the most for one.
    pub(crate) fn admits(&self, caller: OwnerTag) -> bool {
        let own = self.by_caller.get(&caller).copied().unwrap_or(0);
        self.calls.len() < self.most && own < (self.most / 4).max(1)
    }

    /// Puts a call behind the others.
    pub(crate) fn push(&mut self, holdout: HoldoutId, call: Call) {
        *self.by_caller.entry(call.request.caller.tag).or_insert(0) += 1;
        self.calls.push_back((holdout, call));
    }

    /// Takes all, in order.
    pub(crate) fn take(&mut self) -> VecDeque<(HoldoutId, Call)> {
        self.by_caller.clear();
        std::mem::take(&mut self.calls)
    }

    /// The holdouts that somebody waits for.
    pub(crate) fn holdouts(&self) -> impl Iterator<Item = HoldoutId> + '_ {
        self.calls.iter().map(|(holdout, _)| *holdout)
    }
}
