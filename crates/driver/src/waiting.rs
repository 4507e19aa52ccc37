//! Calls that wait for reservations or slots, in the order in which they came.
//!
//! One queue for all holdouts, so that none starves another; within a [`Line`] nobody overtakes,
//! which the attempt sees to. Whenever something of ours has ended all of them are looked at
//! again: a call that is left then waits for a run that is still under way.

use std::collections::{HashMap, VecDeque};

use evidenceos_kernel::id::{ClaimId, HoldoutId, OwnerTag};

use crate::Call;

/// What a call waits for, and so which later calls wait behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Line {
    /// Something that every run on the holdout needs: later calls on it wait too.
    Holdout(HoldoutId),
    /// Something of one owner's on a holdout: other owners pass.
    Own(HoldoutId, OwnerTag),
    /// The end of a claim that asks the same: everybody else passes.
    Same(ClaimId),
}

/// All calls that wait, in the order in which they came.
pub(crate) struct Waiting {
    most: usize,
    calls: VecDeque<(Line, Call)>,
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
    pub(crate) fn push(&mut self, line: Line, call: Call) {
        *self.by_caller.entry(call.request.caller.tag).or_insert(0) += 1;
        self.calls.push_back((line, call));
    }

    /// Takes all, in order.
    pub(crate) fn take(&mut self) -> VecDeque<(Line, Call)> {
        self.by_caller.clear();
        std::mem::take(&mut self.calls)
    }

    /// The lines that somebody waits in.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line> + '_ {
        self.calls.iter().map(|(line, _)| *line)
    }
}
