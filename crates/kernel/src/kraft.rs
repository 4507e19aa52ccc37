//! Whether the masses 2^{−price} of an alphabet sum to at most 1, decided exactly.
//!
//! Owns that one question. There are at most 2^16 prices, each at most 64 bits, in microbits (checked by `price.rs`).
//!
//! The question is decidable: the numbers 2^{−r/10⁶} for r in 0..10⁶ are linearly independent over the rationals
//! (x^{10⁶} − 2 is irreducible by Eisenstein's criterion). A sum of masses can hence equal 1 only if all prices are
//! whole bits, and then it is a dyadic rational. In every other case the sum differs from 1, and an interval around
//! it that is narrowed far enough shows on which side it lies.

use std::collections::BTreeMap;

use crate::bits::{MICROBITS_PER_BIT, MicroBits};
use crate::wide;

/// The largest exponent that [`masses_sum_to_at_most_one`] is given.
const MAX_WHOLE_BITS: u64 = 64;

/// Σ 2^{−price} ≤ 1.
pub(crate) fn masses_sum_to_at_most_one(prices: &[MicroBits]) -> bool {
    let whole = |price: &MicroBits| price.get().is_multiple_of(MICROBITS_PER_BIT);
    if prices.iter().all(whole) {
        return dyadic_sum_is_at_most_one(prices);
    }
    // One exponential series is computed for each different price, however many symbols share it.
    let mut counts = BTreeMap::<u64, u64>::new();
    for price in prices {
        *counts.entry(price.get()).or_default() += 1;
    }
    let mut limbs = 3;
    loop {
        if let Some(decided) = interval_sum_is_at_most_one(&counts, limbs) {
            return decided;
        }
        limbs *= 2;
    }
}

/// In units of 2^−64: each of at most 2^16 masses is at most 2^64, so the sum fits.
fn dyadic_sum_is_at_most_one(prices: &[MicroBits]) -> bool {
    let mass = |price: &MicroBits| 1u128 << (MAX_WHOLE_BITS - price.get() / MICROBITS_PER_BIT);
    prices.iter().map(mass).sum::<u128>() <= 1 << MAX_WHOLE_BITS
}

/// The comparison with this many limbs, or `None` if they do not decide.
///
/// Numbers have one limb, the top one, before the point: room for 2^16 masses of at most 1.
fn interval_sum_is_at_most_one(counts: &BTreeMap<u64, u64>, limbs: usize) -> Option<bool> {
    let ln2 = ln2_floor(limbs);
    let mut low = vec![0; limbs];
    let mut slack_ulp = 0;
    for (&price, &count) in counts {
        let (mut mass, error_ulp) = exp2_minus(price, &ln2);
        wide::mul_small(&mut mass, count);
        wide::add(&mut low, &mass);
        slack_ulp += count * error_ulp;
    }
    let at_least_one = |sum: &[u64]| sum[limbs - 1] >= 1;
    let mut high = low.clone();
    wide::add_small(&mut high, slack_ulp);
    match (at_least_one(&low), at_least_one(&high)) {
        // Equality is impossible, so a lower end of 1 means more than 1.
        (true, _) => Some(false),
        (false, false) => Some(true),
        (false, true) => None,
    }
}

/// A lower bound of 2^{−price}, and the most units of the last place by which the value exceeds it.
///
/// 2^{−f} = 2^{1−f}/2 = e^{(1−f)·ln 2}/2, by the exponential series: all its terms are positive, so that cutting off
/// every term and the tail can only lower the sum.
fn exp2_minus(price: u64, ln2: &[u64]) -> (Vec<u64>, u64) {
    let limbs = ln2.len();
    let (whole, fraction) = (price / MICROBITS_PER_BIT, price % MICROBITS_PER_BIT);
    let mut exponent = ln2.to_vec();
    wide::mul_small(&mut exponent, MICROBITS_PER_BIT - fraction);
    wide::div_small(&mut exponent, MICROBITS_PER_BIT);

    let mut sum = one(limbs);
    let mut term = one(limbs);
    let mut product = vec![0; 2 * limbs];
    let mut terms = 0;
    while term.iter().any(|&limb| limb != 0) {
        terms += 1;
        wide::mul(&mut product, &term, &exponent);
        wide::shift_right_into(&mut term, &product, 64 * (limbs - 1));
        wide::div_small(&mut term, terms);
        wide::add(&mut sum, &term);
    }
    let mut mass = vec![0; limbs];
    wide::shift_right_into(&mut mass, &sum, 1 + whole as usize);
    // ln 2 is `LN2_ERROR_ULP_PER_LIMB` per limb short, the exponent one more, and e^x grows no faster than
    // 2. A term is short by less than 3 (its own two roundings, and what it inherits shrinks with every
    // division), and the tail is less than 1. Halving makes up for the last rounding.
    (mass, ln2_error_ulp(limbs) + 3 + 2 * terms + 2)
}

/// ln 2 = 2·Σ 1/((2i+1)·3^{2i+1}), every term rounded down.
fn ln2_floor(limbs: usize) -> Vec<u64> {
    let mut power = one(limbs);
    wide::mul_small(&mut power, 2);
    wide::div_small(&mut power, 3);
    let mut sum = vec![0; limbs];
    let mut odd = 1;
    while power.iter().any(|&limb| limb != 0) {
        let mut term = power.clone();
        wide::div_small(&mut term, odd);
        wide::add(&mut sum, &term);
        wide::div_small(&mut power, 9);
        odd += 2;
    }
    sum
}

/// The most by which [`ln2_floor`] may fall short: less than 3 in each of at most 64·limbs/log2(9) terms, and the
/// tail.
fn ln2_error_ulp(limbs: usize) -> u64 {
    64 * limbs as u64
}

fn one(limbs: usize) -> Vec<u64> {
    let mut one = vec![0; limbs];
    one[limbs - 1] = 1;
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(microbits: &[u64], fits: bool) {
        let prices: Vec<_> = microbits.iter().copied().map(MicroBits).collect();
        assert_eq!(masses_sum_to_at_most_one(&prices), fits, "{microbits:?}");
    }

    #[test]
    fn whole_bits_may_fill_the_sum_to_the_brim() {
        check(&[1_000_000, 2_000_000, 3_000_000, 3_000_000], true);
        check(&[1_000_000, 1_000_000, 64_000_000], false);
        check(&[0], true);
        check(&[0, 64_000_000], false);
        check(&[16_000_000; 1 << 16], true);
        check(&[0; 1 << 16], false);
    }

    #[test]
    fn uniform_prices_rounded_up_fit_and_one_microbit_less_does_not() {
        for n in [3, 5, 6, 7, 100, 1_000, 65_535] {
            let price = crate::log2::log2_microbits_up(n, 1).get();
            check(&vec![price; n as usize], true);
            check(&vec![price - 1; n as usize], false);
        }
    }

    #[test]
    fn sums_a_hair_from_one_are_decided() {
        // 0.499999653426.. + 0.5 and 0.500000346574.. + 0.5, then the same with a mass of 2^-64 on top.
        check(&[1_000_000, 1_000_001], true);
        check(&[1_000_000, 999_999], false);
        check(&[1_000_000, 1_000_001, 64_000_000], true);
        check(&[585_000, 1_585_000, 64_000_000], true);
        check(&[584_000, 1_585_000], false);
    }

    #[test]
    fn an_interval_never_decides_equality_which_is_why_whole_bits_are_summed_apart() {
        let counts = BTreeMap::from([(1_000_000, 2)]);
        for limbs in [2, 3, 6, 12] {
            assert_eq!(interval_sum_is_at_most_one(&counts, limbs), None);
        }
        let counts = BTreeMap::from([(1_000_000, 1), (1_000_001, 1)]);
        assert_eq!(interval_sum_is_at_most_one(&counts, 2), Some(true));
    }

    #[test]
    fn the_series_encloses_known_masses() {
        // 2^(-1/2) = 0.70710678118654752440..., times 2^64.
        let limbs = 3;
        let (mass, error_ulp) = exp2_minus(500_000, &ln2_floor(limbs));
        assert_eq!(mass[1], 0xb504_f333_f9de_6484);
        assert!(error_ulp < 1_000);
    }

    /// Alphabets of 15,259 and 15,139 symbols at the prices 13.600001 + 0.037003·i bits, so many at each: their
    /// masses sum to 1 − 2^−174.7 and 1 + 2^−175.5. Found by lattice reduction, summed with 200 decimal digits.
    const JUST_BELOW_ONE: [usize; 18] = [
        1026, 1101, 1225, 292, 1052, 903, 857, 960, 536, 675, 735, 529, 317, 752, 1050, 1105, 1145,
        999,
    ];
    const JUST_ABOVE_ONE: [usize; 18] = [
        1385, 939, 1457, 495, 781, 748, 440, 870, 697, 594, 878, 680, 706, 961, 841, 1139, 1041,
        487,
    ];

    #[test]
    fn what_128_places_leave_open_more_places_decide() {
        for (counts, fits) in [(JUST_BELOW_ONE, true), (JUST_ABOVE_ONE, false)] {
            let prices: Vec<MicroBits> = (0..)
                .zip(counts)
                .flat_map(|(i, count)| vec![MicroBits(13_600_001 + 37_003 * i); count])
                .collect();
            assert_eq!(masses_sum_to_at_most_one(&prices), fits);
        }
    }

    #[test]
    fn no_bound_is_closer_than_what_more_places_show() {
        // The higher half of a computation with twice the places is the value to the last unit.
        let upper = |limbs: &[u64], places: usize| limbs[limbs.len() - places..].to_vec();
        let reaches = |mut low: Vec<u64>, error: u64, value: &[u64]| {
            wide::add_small(&mut low, error);
            low.iter().rev().ge(value.iter().rev())
        };
        for limbs in [3, 6, 12] {
            let (ln2, finer) = (ln2_floor(limbs), ln2_floor(2 * limbs));
            assert!(reaches(
                ln2.clone(),
                ln2_error_ulp(limbs),
                &upper(&finer, limbs)
            ));
            for price in [
                1, 333_333, 500_000, 999_999, 1_000_001, 13_600_001, 63_999_999,
            ] {
                let (mass, error) = exp2_minus(price, &ln2);
                let (true_mass, _) = exp2_minus(price, &finer);
                assert!(
                    reaches(mass, error, &upper(&true_mass, limbs)),
                    "{price} with {limbs} limbs"
                );
            }
        }
    }
}
