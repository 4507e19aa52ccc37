//! Coins, and how sure a count of runs makes us.

use evidenceos_kernel::planner::binomial_tail;

pub(super) const ALPHA: f64 = 0.05;
pub(super) const RUNS: u64 = 100_000;

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and good enough to toss coins.
pub(super) struct Coins(pub(super) u64);

impl Coins {
    pub(super) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 * 2f64.powi(-53)
    }
}

/// The upper end of the one-sided 99 % interval of Clopper and Pearson (1934).
pub(super) fn upper_bound(successes: u64, runs: u64) -> f64 {
    let (mut low, mut high) = (successes as f64 / runs as f64, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        let at_most = 1.0 - binomial_tail(runs, middle, successes + 1);
        if at_most > 0.01 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

pub(super) fn assert_holds(falsely_certified: u64, runs: u64, what: &str) {
    assert!(runs >= RUNS, "{what}: too few runs");
    let bound = upper_bound(falsely_certified, runs);
    assert!(
        bound < ALPHA,
        "{what}: {falsely_certified} of {runs}, bound {bound}"
    );
}

pub(super) fn assert_broken(falsely_certified: u64, runs: u64, what: &str) {
    let right = runs - falsely_certified;
    let lower_bound = 1.0 - upper_bound(right, runs);
    assert!(
        lower_bound > ALPHA,
        "{what} survives: {falsely_certified} of {runs}"
    );
}
