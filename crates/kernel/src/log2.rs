//! Binary logarithms of rationals, in integers, rounded in a stated direction.
//!
//! Owns ⌈·⌉ and ⌊·⌋ of `log2(num/den)` in microbits and in units of 2^−40 bit. Does not own the meaning of the
//! numbers. Prices and thresholds take the upper end, evidence the lower.
//!
//! Method (repeated squaring; Knuth, The Art of Computer Programming, vol. 1, §1.2.2): scale the ratio to `x ∈ [1,
//! 2)`; squaring `x` doubles its logarithm, so the next binary digit is 1 iff `x² ≥ 2`. The chain is run twice, once
//! with every step rounded down and once with every step rounded up; the two digit strings enclose the logarithm.
//!
//! Invariant: the rounding is *true*, not "within one unit". A machine word decides nearly always; if its enclosure
//! straddles an integer, the logarithm is computed again with four limbs, and then with twice as many each time. That
//! ends: `c·log2(num/den)` is an integer only if `num/den` is a power of two whenever `c` is a whole number (else 2
//! would have a rational root), and powers of two are answered exactly before.

use crate::bits::{MICROBITS_PER_BIT, MicroBits};
use crate::wide;

/// Units of [`log2_fixed40_up`] and [`log2_fixed40_down`] in one bit: 2^40.
pub const FIXED40_PER_BIT: u64 = 1 << 40;

/// ⌈10⁶·log2(num/den)⌉.
///
/// # Panics
/// Unless `num ≥ den ≥ 1`: a price is never negative.
#[must_use]
pub fn log2_microbits_up(num: u128, den: u128) -> MicroBits {
    MicroBits(nonnegative(scaled_log2(num, den, MICROBITS_PER_BIT).up()))
}

/// ⌊10⁶·log2(num/den)⌋.
///
/// # Panics
/// Unless `num ≥ den ≥ 1`.
#[must_use]
pub fn log2_microbits_down(num: u128, den: u128) -> MicroBits {
    MicroBits(nonnegative(scaled_log2(num, den, MICROBITS_PER_BIT).down))
}

/// ⌈2⁴⁰·log2(num/den)⌉; negative if `num < den`.
///
/// # Panics
/// If `num` or `den` is zero.
#[must_use]
pub fn log2_fixed40_up(num: u128, den: u128) -> i64 {
    scaled_log2(num, den, FIXED40_PER_BIT).up()
}

/// ⌊2⁴⁰·log2(num/den)⌋; negative if `num < den`.
///
/// # Panics
/// If `num` or `den` is zero.
#[must_use]
pub fn log2_fixed40_down(num: u128, den: u128) -> i64 {
    scaled_log2(num, den, FIXED40_PER_BIT).down
}

/// A logarithm times its scale: its floor, and whether the floor is exact.
struct Scaled {
    down: i64,
    exact: bool,
}

impl Scaled {
    fn up(&self) -> i64 {
        self.down + i64::from(!self.exact)
    }
}

fn nonnegative(log2: i64) -> u64 {
    assert!(
        log2 >= 0,
        "a price is the logarithm of a ratio of at least 1"
    );
    log2 as u64
}

fn scaled_log2(num: u128, den: u128, scale: u64) -> Scaled {
    assert!(num > 0 && den > 0, "a logarithm needs a positive ratio");
    // Shift the smaller number until both leading bits are in the same place. Neither can overflow, and the
    // comparison of the two gives the rest of the exponent.
    let shift = num.ilog2() as i32 - den.ilog2() as i32;
    let (num, den) = if shift >= 0 {
        (num, den << shift)
    } else {
        (num << -shift, den)
    };
    let exponent = if num < den { shift - 1 } else { shift };
    // |exponent| ≤ 128 and scale ≤ 2^40, so the whole part fits in 48 bits.
    let whole = i64::from(exponent) * scale as i64;
    if num == den {
        return Scaled {
            down: whole,
            exact: true,
        };
    }
    if let Some(fraction) = word_floor(num, den, scale) {
        return Scaled {
            down: whole + fraction as i64,
            exact: false,
        };
    }
    let mut limbs = 4;
    loop {
        if let Some(fraction) = fraction_floor(num, den, scale, limbs) {
            return Scaled {
                down: whole + fraction as i64,
                exact: false,
            };
        }
        limbs *= 2;
    }
}

/// ⌊scale·log2(x)⌋ for the `x` in (1, 2) that is num/den or twice that, or `None` if one word does not decide.
fn word_floor(num: u128, den: u128, scale: u64) -> Option<u64> {
    let start = mantissa(num, den, 1)[0];
    let low = word_chain(start, Rounding::Down);
    // The digits of the upper chain are themselves a floor: its logarithm lies below the next value.
    let high = word_chain(start + 1, Rounding::Up) + 1;
    if high >> WORD_DIGITS != 0 {
        return None;
    }
    let scaled = |log: u64| (u128::from(log) * u128::from(scale)) >> WORD_DIGITS;
    (scaled(low) == scaled(high)).then_some(scaled(low) as u64)
}

/// The digits of a logarithm that a word's 62 places determine, with some to spare.
const WORD_DIGITS: u32 = 56;

/// The first digits of log2 of a number in [1, 2] with 62 places, every square rounded one way.
fn word_chain(mut x: u64, rounding: Rounding) -> u64 {
    let mut log = 0;
    for _ in 0..WORD_DIGITS {
        // In [1, 4], with 124 places.
        let square = u128::from(x) * u128::from(x);
        let reaches_two = square >> 125 != 0;
        let shift = 62 + u32::from(reaches_two);
        let inexact = square & ((1 << shift) - 1) != 0;
        x = (square >> shift) as u64 + u64::from(inexact && rounding == Rounding::Up);
        log = log << 1 | u64::from(reaches_two);
    }
    log
}

/// The same, or `None` if this many limbs do not decide.
fn fraction_floor(num: u128, den: u128, scale: u64, limbs: usize) -> Option<u64> {
    // Each squaring doubles the error, so that half of the bits are spent on it.
    let digits = limbs / 2;
    let start = mantissa(num, den, limbs);
    let mut above = start.clone();
    // The mantissa was rounded down: one unit more is an upper bound.
    wide::add_small(&mut above, 1);
    let mut low = chain(start, digits, Rounding::Down);
    let mut high = chain(above, digits, Rounding::Up);
    // The digits of the upper chain are themselves a floor: its logarithm lies below the next value.
    if wide::add_small(&mut high, 1) {
        return None;
    }
    let low = wide::mul_small(&mut low, scale);
    let high = wide::mul_small(&mut high, scale);
    (low == high).then_some(low)
}

/// Numbers in a chain have two bits before the point: they lie in [1, 2], the upper end included.
fn fraction_bits(limbs: usize) -> usize {
    64 * limbs - 2
}

/// ⌊x·2^F⌋ for the `x` in (1, 2) that is num/den or twice that, by long division.
fn mantissa(num: u128, den: u128, limbs: usize) -> Vec<u64> {
    let mut quotient = vec![0; limbs];
    let (mut rest, places) = if num < den {
        (num, fraction_bits(limbs) + 1)
    } else {
        quotient[0] = 1;
        (num - den, fraction_bits(limbs))
    };
    for _ in 0..places {
        // The rest is below `den`, but twice the rest may need 129 bits: the bit that is lost means
        // that `den` fits.
        let overflow = rest >> 127 == 1;
        rest <<= 1;
        let digit = overflow || rest >= den;
        if digit {
            rest = rest.wrapping_sub(den);
        }
        wide::shift_in(&mut quotient, digit);
    }
    quotient
}

#[derive(Clone, Copy, PartialEq)]
enum Rounding {
    Down,
    Up,
}

/// The first `64·digits` binary digits of log2 of a number in [1, 2], every square rounded one way.
fn chain(mut x: Vec<u64>, digits: usize, rounding: Rounding) -> Vec<u64> {
    let point = fraction_bits(x.len());
    let mut square = vec![0; 2 * x.len()];
    let mut log = vec![0; digits];
    for _ in 0..64 * digits {
        wide::mul(&mut square, &x, &x);
        // The square is in [1, 4] with 2F fraction bits: at least 2 iff bit 2F+1 or bit 2F+2 is set.
        let top = square[square.len() - 1] >> (2 * point % 64);
        let reaches_two = top >= 2;
        let inexact = wide::shift_right_into(&mut x, &square, point + usize::from(reaches_two));
        if inexact && rounding == Rounding::Up {
            wide::add_small(&mut x, 1);
        }
        wide::shift_in(&mut log, reaches_two);
    }
    log
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn powers_of_two_are_exact_in_both_directions() {
        for exponent in 0..128 {
            let ratio = 1u128 << exponent;
            let bits = MicroBits::from_bits(exponent);
            assert_eq!(log2_microbits_up(ratio, 1), bits);
            assert_eq!(log2_microbits_down(ratio, 1), bits);
            let unit = (exponent as i64) << 40;
            assert_eq!(log2_fixed40_up(1, ratio), -unit);
            assert_eq!(log2_fixed40_down(1, ratio), -unit);
        }
    }

    #[test]
    fn known_prices_are_hit_to_the_microbit() {
        let check = |num, den, up| {
            assert_eq!(
                log2_microbits_up(num, den),
                MicroBits(up),
                "log2({num}/{den})"
            );
            assert_eq!(
                log2_microbits_down(num, den),
                MicroBits(up - 1),
                "log2({num}/{den})"
            );
        };
        check(256, 255, 5_647);
        check(258, 257, 5_603);
        check(258, 255, 16_874);
        check(2_256, 1, 11_139_552);
        check(3, 2, 584_963);
    }

    #[test]
    fn a_ratio_a_hair_from_a_power_of_two_is_still_rounded_truly() {
        let top = u128::MAX;
        assert_eq!(log2_microbits_up(top, top - 1), MicroBits(1));
        assert_eq!(log2_microbits_down(top, top - 1), MicroBits(0));
        assert_eq!(log2_fixed40_up(top - 1, top), 0);
        assert_eq!(log2_fixed40_down(top - 1, top), -1);
        assert_eq!(log2_microbits_up(top, 1), MicroBits::from_bits(128));
        assert_eq!(log2_microbits_down(top, 1), MicroBits(127_999_999));
        assert_eq!(log2_fixed40_down(1, top), -(128 << 40));
        assert_eq!(log2_fixed40_up(1, top), -(128 << 40) + 1);
    }

    proptest! {
        #[test]
        fn turning_the_ratio_round_turns_the_rounding_round(num in 1u128.., den in 1u128..) {
            prop_assert_eq!(log2_fixed40_up(num, den), -log2_fixed40_down(den, num));
            let exact = log2_fixed40_up(num, den) == log2_fixed40_down(num, den);
            let reduced = num.max(den) / num.min(den);
            let power = num.max(den).is_multiple_of(num.min(den)) && reduced.is_power_of_two();
            prop_assert_eq!(exact, power);
        }

        #[test]
        fn more_is_never_less(num in 1u128..u128::MAX, den in 1u128..) {
            prop_assert!(log2_fixed40_down(num, den) <= log2_fixed40_down(num + 1, den));
            prop_assert!(log2_fixed40_up(num, den) <= log2_fixed40_up(num + 1, den));
        }
    }

    /// A ratio in (1, 2), or half of it, as `scaled_log2` makes it.
    fn aligned() -> impl Strategy<Value = (u128, u128)> {
        (1u128.., 1u128.., 0u32..127, 0u32..127)
            .prop_map(|(num, den, less, fewer)| {
                let (num, den) = ((num >> less).max(1), (den >> fewer).max(1));
                (num << num.leading_zeros(), den << den.leading_zeros())
            })
            .prop_filter("equal", |(num, den)| num != den)
    }

    proptest! {
        #[test]
        fn a_word_decides_as_many_limbs_do((num, den) in aligned(), scale in prop_oneof![Just(MICROBITS_PER_BIT), Just(FIXED40_PER_BIT), 1u64..=FIXED40_PER_BIT]) {
            let wide = (1..).find_map(|doubled| fraction_floor(num, den, scale, 2 << doubled));
            if let Some(word) = word_floor(num, den, scale) {
                prop_assert_eq!(Some(word), wide);
            }
        }
    }

    #[test]
    fn a_word_leaves_open_what_it_cannot_tell() {
        let top = u128::MAX;
        // A hair beside a power of two lies within one place of a word.
        assert_eq!(word_floor(top, top - 1, MICROBITS_PER_BIT), Some(0));
        assert_eq!(word_floor(top - 1, top, MICROBITS_PER_BIT), None);
        assert_eq!(
            word_floor(3 << 126, 1 << 127, FIXED40_PER_BIT),
            Some(643_173_071_355)
        );
    }

    #[test]
    #[should_panic(expected = "ratio of at least 1")]
    fn a_ratio_below_one_has_no_price() {
        let _ = log2_microbits_up(1, 2);
    }

    /// Ratios whose 10⁶·log2 lies less than 10⁻⁶⁶ beside a whole number, with its floor: convergents of 2^(j/10⁶),
    /// computed with 260 decimal digits. The last digit of a word also ends near the first four of these numbers, and
    /// that of four limbs near the last two, so a chain that is rounded the wrong way decides for the other side.
    const BESIDE_A_WHOLE_NUMBER: [(u128, u128, u64); 6] = [
        (
            1_485_865_453_290_434_126_630_440_210_715_462_993,
            1_084_518_365_529_823_012_475_723_611_103_730_942,
            454_249,
        ),
        (
            4_925_318_866_301_001_730_227_316_529_160_019_801,
            3_405_444_518_564_147_656_464_626_733_222_440_212,
            532_374,
        ),
        (
            11_157_087_802_843_867_683_508_587_016_812_978_148,
            5_705_141_236_345_058_161_205_985_154_034_838_529,
            967_625,
        ),
        (
            49_295_764_097_421_138_294_594_343_971_511_806_634,
            25_759_198_125_120_237_339_785_341_687_558_162_843,
            936_375,
        ),
        (
            218_967_852_322_976_444_905_742_247_355_030_930_245,
            127_409_166_510_692_605_849_838_740_337_556_448_768,
            781_249,
        ),
        (
            337_183_449_765_766_033_466_217_043_345_363_163_707,
            183_850_579_648_157_660_456_199_311_685_708_922_999,
            874_999,
        ),
    ];

    #[test]
    fn beside_a_whole_number_the_true_side_is_found() {
        for (num, den, floor) in BESIDE_A_WHOLE_NUMBER {
            assert_eq!(log2_microbits_down(num, den), MicroBits(floor));
            assert_eq!(log2_microbits_up(num, den), MicroBits(floor + 1));
        }
    }

    #[test]
    fn the_square_root_of_two_is_told_from_its_convergents() {
        // p/q approaches √2 from both sides: p² = 2q² − 1 and p² = 2q² + 1 in turn.
        let (mut p, mut q, mut above) = (1u128, 1u128, false);
        while p < 1 << 126 {
            // From here on nearer than a unit of 2^−40.
            if q > 1 << 21 {
                let below = u64::from(!above);
                let microbits = MicroBits(500_000 - below);
                assert_eq!(log2_microbits_down(p, q), microbits, "{p}/{q}");
                let fixed40 = (1 << 39) - below as i64;
                assert_eq!(log2_fixed40_down(p, q), fixed40, "{p}/{q}");
            }
            (p, q, above) = (p + 2 * q, p + q, !above);
        }
        assert!(q > 1 << 125);
    }
}
