//! Calls that wait for reservations or slots, in order of arrival.
//!
//! One queue for all holdouts, so that none starves another; the attempt ensures that no call
//! overtakes another within a [`Line`]. Whenever work of the driver has ended, it looks at all of
//! them again: a call that still waits then waits for a run that is still under way.

use std::collections::{HashMap, VecDeque};

use evidenceos_kernel::id::{ClaimId, HoldoutId, OwnerTag};

use crate::Call;

/// The resource that a call waits for; later calls that need it wait behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Line {
    /// A resource that every run on the holdout needs: later calls on it wait too.
    Holdout(HoldoutId),
    /// A resource of one owner on a holdout: other owners pass.
    Own(HoldoutId, OwnerTag),
    /// The end of a claim that asks the same: all other calls pass.
    Same(ClaimId),
}

/// All calls that wait, in order of arrival.
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

    /// Whether a caller may wait with another call: at most a quarter of the queue is one caller's.
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

    /// The lines in which calls wait.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line> + '_ {
        self.calls.iter().map(|(line, _)| *line)
    }
}
