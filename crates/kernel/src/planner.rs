//! Advice on what a holdout can certify, for people who are about to spend one.
//!
//! Owns forecasts: the accuracy that would be certified with a given power, the items needed, a proposed budget. Owns
//! no decision: nothing here is hashed, logged, charged or compared with evidence, and another machine may compute
//! another last digit. That is why floats are allowed here and nowhere else in the kernel.
//!
//! Invariant: a forecast asks the *real* rule ([`BetTable::fewest_right`]) which counts certify, and uses floats only
//! for the probability of such a count.
//!
//! Tails of the binomial are exact up to rounding, by the continued fraction of the incomplete beta function (DLMF
//! 8.17.22). It takes O(√n) steps, so for a million items a tail takes some tens of microseconds and needs no normal
//! approximation.
#![allow(
    clippy::float_arithmetic,
    reason = "advice only: no float reaches a decision or a record"
)]

use crate::bits::MicroBits;
use crate::evidence::{BetTable, CHANCE_WHOLE_MICROS, EvidenceError, Strategy};
use crate::holdout::{Policy, Record};

/// The power of forecasts if the caller names none: 90 %.
pub const DEFAULT_POWER: f64 = 0.9;

/// The most items that [`items_needed`] considers.
pub const MAX_ITEMS: u64 = 1 << 40;

/// The least and the largest sealed budget that the planner proposes.
const PROPOSED_BITS: (u64, u64) = (16, 64);

/// P(Bin(n, p) ≥ s), for p in [0, 1].
#[must_use]
pub fn binomial_tail(n: u64, p: f64, s: u64) -> f64 {
    if s == 0 {
        return 1.0;
    }
    if s > n {
        return 0.0;
    }
    // P(Bin(n, p) ≥ s) = I_p(s, n − s + 1), DLMF 8.17.5.
    regularised_beta(p, s as f64, (n - s + 1) as f64)
}

/// The least accuracy that reaches `threshold` on this many items with probability `power`, to 1e-9; `None` if not even
/// a perfect vector would be certified.
#[must_use]
pub fn accuracy_certified_with_power(
    table: &BetTable,
    items: u64,
    threshold: MicroBits,
    power: f64,
) -> Option<f64> {
    let fewest = table.fewest_right(items, threshold)?;
    let (mut too_low, mut enough) = (0.0, 1.0);
    while enough - too_low > 1e-9 {
        let middle = f64::midpoint(too_low, enough);
        if binomial_tail(items, middle, fewest) >= power {
            enough = middle;
        } else {
            too_low = middle;
        }
    }
    Some(enough)
}

/// The number of sealed items that certify a model of this `accuracy` with probability `power`; `None` if it exceeds
/// [`MAX_ITEMS`], or if the accuracy is no better than the null.
///
/// The power is a saw-tooth in the number of items, because counts are whole. The result has the power and one item
/// less has not; for a few numbers around it the reverse may hold.
///
/// # Errors
/// As [`BetTable::new`].
pub fn items_needed(
    p0_micros: u32,
    strategy: Strategy,
    accuracy: f64,
    threshold: MicroBits,
    power: f64,
) -> Result<Option<u64>, EvidenceError> {
    let table = BetTable::new(p0_micros, strategy)?;
    // At or below the null no number of items suffices; this saves the search for one.
    if accuracy * f64::from(CHANCE_WHOLE_MICROS) <= f64::from(p0_micros) {
        return Ok(None);
    }
    let suffice = |items| {
        let fewest = table.fewest_right(items, threshold);
        fewest.is_some_and(|fewest| binomial_tail(items, accuracy, fewest) >= power)
    };
    let mut enough = 1;
    while !suffice(enough) {
        enough *= 2;
        if enough > MAX_ITEMS {
            return Ok(None);
        }
    }
    let mut too_few = enough / 2;
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        if suffice(middle) {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    Ok(Some(enough))
}

/// The sealed budget that the planner proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The budget: 16 to 64 bits.
    pub budget: MicroBits,
    /// The items are too few for the effect: even the first claim could hardly be certified.
    pub hardly_certifiable: bool,
}

/// The k at which an accuracy halfway between p0 and 1 is still certified with 90 % probability, clamped to 16 to 64
/// bits. `table` bets against p0. `items` are those of the sealed part. The valid `policy` gives the price of the
/// first certification and its significance level.
#[must_use]
pub fn proposed_sealed_budget(
    items: u64,
    p0_micros: u32,
    table: &BetTable,
    policy: &Policy,
) -> Proposal {
    let p0 = f64::from(p0_micros) / f64::from(CHANCE_WHOLE_MICROS);
    let right = count_reached_with_power(items, f64::midpoint(p0, 1.0), DEFAULT_POWER);
    let first = Record::default().threshold(policy);
    let evidence = u64::try_from(table.evidence_microbits(right, items)).unwrap_or(0);
    let spare = evidence.checked_sub(first.get());
    let (least, most) = PROPOSED_BITS;
    let (least, most) = (MicroBits::from_bits(least), MicroBits::from_bits(most));
    Proposal {
        budget: MicroBits(spare.unwrap_or(0)).clamp(least, most),
        hardly_certifiable: spare.is_none(),
    }
}

/// The largest s with P(Bin(n, p) ≥ s) ≥ power.
fn count_reached_with_power(n: u64, p: f64, power: f64) -> u64 {
    let (mut reached, mut beyond) = (0, n + 1);
    while beyond - reached > 1 {
        let middle = reached + (beyond - reached) / 2;
        if binomial_tail(n, p, middle) >= power {
            reached = middle;
        } else {
            beyond = middle;
        }
    }
    reached
}

/// I_x(a, b) for a, b ≥ 1.
fn regularised_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast below the mean; above it, use the symmetry I_x(a, b) = 1 − I_{1−x}(b, a).
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - regularised_beta(1.0 - x, b, a);
    }
    let log_beta = ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b);
    let log_front = a * x.ln() + b * (-x).ln_1p() - log_beta;
    (log_front.exp() / a * beta_fraction(x, a, b)).clamp(0.0, 1.0)
}

/// The continued fraction of DLMF 8.17.22, by Lentz's method as modified by Thompson and Barnett.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    // Denominators are kept away from zero by this much; a fraction that needs more steps has long converged.
    const TINY: f64 = 1e-300;
    const MAX_STEPS: u32 = 1_000_000;
    let away_from_zero = |value: f64| if value.abs() < TINY { TINY } else { value };

    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for step in 1..MAX_STEPS {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for coefficient in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + coefficient * d);
            c = away_from_zero(1.0 + coefficient / c);
            fraction *= d * c;
        }
        if (fraction / before - 1.0).abs() < 1e-14 {
            break;
        }
    }
    fraction
}

/// ln Γ(x) for x ≥ 1: Stirling's series (DLMF 5.11.1), after the recurrence has carried x to at least 16.
fn ln_gamma(x: f64) -> f64 {
    const HALF_LN_TAU: f64 = 0.918_938_533_204_672_7;
    let (mut x, mut product) = (x, 1.0);
    while x < 16.0 {
        product *= x;
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series = (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1_260.0 - r / 1_680.0))) / x;
    (x - 0.5) * x.ln() - x + HALF_LN_TAU + series - product.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::price::threshold;

    const ALPHA: u32 = 50_000;

    fn bar(k_bits: u64) -> MicroBits {
        threshold(
            MicroBits::from_bits(k_bits),
            MicroBits::from_bits(8),
            ALPHA,
            1,
        )
    }

    #[test]
    fn tails_agree_with_sums_of_their_terms() {
        let summed = |n: u64, p: f64, s: u64| {
            let mut term = (n as f64 * (-p).ln_1p()).exp();
            let mut tail = 0.0;
            for i in 0..=n {
                tail += if i >= s { term } else { 0.0 };
                term *= (n - i) as f64 / (i + 1) as f64 * p / (1.0 - p);
            }
            tail
        };
        for (n, p) in [(1, 0.5), (10, 0.1), (200, 0.5), (500, 0.7)] {
            for s in 0..=n + 1 {
                let (ours, terms) = (binomial_tail(n, p, s), summed(n, p, s));
                assert!((ours - terms).abs() < 1e-11, "{n} {p} {s}: {ours}, {terms}");
            }
        }
        assert_eq!(binomial_tail(10, 1.0, 10), 1.0);
        assert_eq!(binomial_tail(10, 0.0, 1), 0.0);
    }

    #[test]
    fn the_median_of_a_million_coins_is_half_a_million() {
        // P(Bin(n, ½) ≥ n/2) = ½ + ½·C(n, n/2)/2^n, and the last term is 1/√(2πn) to four digits.
        let n = 1_000_000;
        let expected = 0.5 + 0.5 / (std::f64::consts::FRAC_PI_2 * n as f64).sqrt();
        assert!((binomial_tail(n, 0.5, n / 2) - expected).abs() < 1e-6);
    }

    #[test]
    fn a_known_alternative_needs_the_items_of_the_specification() {
        let check = |p0_micros, p1_micros: u32, items: u64, tooth| {
            let strategy = Strategy::FixedAlternative { p1_micros };
            let accuracy = f64::from(p1_micros) / 1e6;
            let needed = items_needed(p0_micros, strategy, accuracy, bar(0), DEFAULT_POWER);
            let needed = needed.expect("in range").expect("few enough");
            assert!(needed.abs_diff(items) <= tooth, "{needed}, not {items}");
            // Both numbers have the power; they are on different teeth of the saw.
            let table = BetTable::new(p0_micros, strategy).expect("in range");
            for n in [needed, items] {
                let fewest = table.fewest_right(n, bar(0)).expect("certifiable");
                assert!(binomial_tail(n, accuracy, fewest) >= DEFAULT_POWER, "{n}");
            }
        };
        check(500_000, 550_000, 3_148, 24);
        check(500_000, 600_000, 781, 11);
        check(900_000, 950_000, 864, 42);
    }

    #[test]
    fn no_number_of_items_certifies_what_is_no_better_than_the_null() {
        let needed = |accuracy| items_needed(500_000, Strategy::Grid, accuracy, bar(0), 0.9);
        assert_eq!(needed(0.5), Ok(None));
        assert_eq!(needed(0.3), Ok(None));
        assert!(needed(0.51).expect("in range").is_some());
    }

    #[test]
    fn the_grid_certifies_accuracies_near_those_of_the_best_mixture() {
        // The table of the Beta mixture; the grid pays its three bits and a coarse choice of bets.
        let check = |p0_micros, items, k_bits, mixture: f64| {
            let table = BetTable::new(p0_micros, Strategy::Grid).expect("in range");
            let accuracy = accuracy_certified_with_power(&table, items, bar(k_bits), 0.9)
                .expect("certifiable");
            assert!((accuracy - mixture).abs() < 0.012, "{accuracy}, {mixture}");
        };
        check(500_000, 250, 0, 0.684);
        check(500_000, 1_000, 0, 0.595);
        check(500_000, 1_000, 60, 0.680);
        check(500_000, 10_000, 20, 0.543);
        check(800_000, 1_000, 10, 0.885);
        check(900_000, 1_000, 40, 0.978);
        let table = BetTable::new(500_000, Strategy::Grid).expect("in range");
        assert_eq!(accuracy_certified_with_power(&table, 10, bar(0), 0.9), None);
    }

    #[test]
    fn the_proposed_budget_stays_between_16_and_64_bits_and_warns_below() {
        let check = |items, bits: u64, hardly_certifiable| {
            let table = BetTable::new(500_000, Strategy::Grid).expect("in range");
            let policy = Policy::with_sealed_budget(MicroBits::ZERO);
            let proposal = proposed_sealed_budget(items, 500_000, &table, &policy);
            assert_eq!(proposal.budget.get() / 1_000_000, bits, "{items}");
            assert_eq!(proposal.hardly_certifiable, hardly_certifiable, "{items}");
        };
        check(0, 16, true);
        check(60, 16, true);
        check(160, 16, false);
        check(10_000, 64, false);
        check(1_000_000, 64, false);
    }
}
