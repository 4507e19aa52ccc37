//! The room that comparisons of labels found beside the reservations of runs under way.

/// Comparisons between two ends of runs. The reservations of runs admitted before the first of these ends must have
/// left the bits at which each comparison is priced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) ended: u64,
    pub(super) sealed: Tightest,
    pub(super) answers: Option<Tightest>,
    pub(super) sealed_reserved: u64,
    pub(super) answers_reserved: u64,
}

/// The comparison that leaves the least of a pool to reservations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tightest {
    pub(super) index: u64,
    pub(super) most_reserved: u64,
}

impl Tightest {
    /// The entry for a pool with this much left, if the comparison found this many bits free.
    pub(super) fn new(index: u64, left: u64, bits: u64) -> Self {
        Self {
            index,
            most_reserved: left.saturating_sub(bits * 1_000_000),
        }
    }

    pub(super) fn tighter(self, other: Self) -> Self {
        if other.most_reserved < self.most_reserved {
            other
        } else {
            self
        }
    }
}

impl Room {
    /// The comparison that found more room than there was, if there is one.
    pub(super) fn exceeded(&self) -> Option<u64> {
        let answers = self
            .answers
            .filter(|answers| self.answers_reserved > answers.most_reserved);
        let sealed = Some(self.sealed).filter(|sealed| self.sealed_reserved > sealed.most_reserved);
        sealed.or(answers).map(|tightest| tightest.index)
    }
}
