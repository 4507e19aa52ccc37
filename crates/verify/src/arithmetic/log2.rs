//! Binary logarithms of rationals, rounded truly in a stated direction.
//!
//! Method: the series of the inverse hyperbolic tangent. With y = num/den brought into [3/4, 3/2) by a power of two,
//! ln y = 2·artanh z, z = (y − 1)/(y + 1), |z| ≤ 1/5. ln 2 comes from Machin's formula
//! 18·artanh(1/26) − 2·artanh(1/4801) + 8·artanh(1/8749). Each sum is enclosed between two integers over 2^F; if the
//! enclosure does not settle the rounding, F is doubled. (The kernel squares repeatedly.)

use std::{cell::RefCell, collections::HashMap, sync::OnceLock};

use num_bigint::BigUint;

/// The most logarithms that are cached: a log asks for the same ones again and again.
const KEPT: usize = 1 << 16;

/// (numerator, denominator, scale) to (rounded up, rounded down).
type Known = HashMap<(u128, u128, u64), (i128, i128)>;

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Fraction bits of the first attempt.
const FIRST_PRECISION: u64 = 256;

/// ⌈scale·log2(num/den)⌉ and ⌊scale·log2(num/den)⌋, in this order.
///
/// # Panics
/// If `num` or `den` is 0.
#[must_use]
pub fn scaled(num: u128, den: u128, scale: u64) -> (i128, i128) {
    assert!(num > 0 && den > 0, "a logarithm needs a positive ratio");
    // In lowest terms a power of two is recognised, and equal ratios share a cache entry.
    let shared = gcd(num, den);
    let (num, den) = (num / shared, den / shared);
    if num.is_power_of_two() && den.is_power_of_two() {
        let exponent = i128::from(num.trailing_zeros()) - i128::from(den.trailing_zeros());
        let exact = exponent * i128::from(scale);
        return (exact, exact);
    }
    KNOWN.with_borrow_mut(|known| {
        // The log of a stranger must not fill the memory with ratios.
        if known.len() >= KEPT {
            known.clear();
        }
        *known
            .entry((num, den, scale))
            .or_insert_with(|| computed(num, den, scale))
    })
}

/// Computes without the cache. Only the logarithm of a power of two, times a whole number, is whole (2 has no
/// rational root), so this ends.
fn computed(num: u128, den: u128, scale: u64) -> (i128, i128) {
    let mut precision = FIRST_PRECISION;
    loop {
        if let Some(floor) = settled_floor(num, den, scale, precision) {
            return (floor + 1, floor);
        }
        precision *= 2;
    }
}

/// ⌈10⁶·log2(num/den)⌉, for num ≥ den.
#[must_use]
pub fn microbits_up(num: u128, den: u128) -> u64 {
    assert!(num >= den, "a price is not negative");
    u64::try_from(scaled(num, den, 1_000_000).0).unwrap_or(u64::MAX)
}

/// The floor, if this many fraction bits settle it.
fn settled_floor(num: u128, den: u128, scale: u64, precision: u64) -> Option<i128> {
    // 3/4 ≤ y < 3/2.
    let (mut top, mut bottom) = (BigUint::from(num), BigUint::from(den));
    let mut exponent = 0i128;
    while &top * 2u32 >= &bottom * 3u32 {
        bottom <<= 1;
        exponent += 1;
    }
    while &top * 4u32 < &bottom * 3u32 {
        top <<= 1;
        exponent -= 1;
    }
    let below_one = top < bottom;
    let distance = if below_one {
        &bottom - &top
    } else {
        &top - &bottom
    };
    let half_ln = artanh(&distance, &(&top + &bottom), precision);
    let ln2 = ln2(precision);
    // |log2 y| = 2·artanh|z| / ln 2, between floors of the outermost quotients.
    let factor = BigUint::from(scale) * 2u32;
    let low = (&half_ln.low * &factor) / &ln2.high;
    let high = (&half_ln.high * &factor) / &ln2.low;
    if low != high {
        return None;
    }
    let magnitude = i128::try_from(low).ok()?;
    let whole = exponent * i128::from(scale);
    // The logarithm is not a whole number, so ⌊−x⌋ = −⌊x⌋ − 1.
    Some(if below_one {
        whole - magnitude - 1
    } else {
        whole + magnitude
    })
}

/// A number between two integers over 2^F.
#[derive(Clone)]
struct Enclosed {
    low: BigUint,
    high: BigUint,
}

/// artanh(num/den) = Σ z^(2i+1)/(2i+1) for 0 < z ≤ 1/5.
fn artanh(num: &BigUint, den: &BigUint, precision: u64) -> Enclosed {
    let (square_num, square_den) = (num * num, den * den);
    let mut power = (num << precision) / den;
    let mut sum = BigUint::default();
    let mut terms = 0u64;
    while power != BigUint::default() {
        sum += &power / (2 * terms + 1);
        power = &power * &square_num / &square_den;
        terms += 1;
    }
    // A power is short of the true one by less than 2 units (its own rounding, and a 25th of the previous one's), so
    // a term by less than 3; the omitted tail is less than 1 more.
    let high = &sum + (3 * terms + 3);
    Enclosed { low: sum, high }
}

/// ln 2, cached for the precision that nearly every logarithm needs.
fn ln2(precision: u64) -> Enclosed {
    static FIRST: OnceLock<Enclosed> = OnceLock::new();
    if precision == FIRST_PRECISION {
        FIRST.get_or_init(|| computed_ln2(precision)).clone()
    } else {
        computed_ln2(precision)
    }
}

fn computed_ln2(precision: u64) -> Enclosed {
    let of = |den: u32| artanh(&BigUint::from(1u32), &BigUint::from(den), precision);
    let (a, b, c) = (of(26), of(4_801), of(8_749));
    Enclosed {
        // A subtracted term contributes its opposite end.
        low: a.low * 18u32 + c.low * 8u32 - b.high * 2u32,
        high: a.high * 18u32 + c.high * 8u32 - b.low * 2u32,
    }
}

pub(crate) fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
