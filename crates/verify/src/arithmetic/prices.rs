//! Prices of symbols, and the threshold of a certification.
//!
//! - Mass of "certified" after m settlements with s certifications: (2s+1)/(2m+2^c₀), or 2^−c if fixed.
//! - A price is ⌈10⁶·log2(1/mass)⌉ of one exact rational.
//! - threshold = k + c + ⌈10⁶·log2(10⁶·divisor/α)⌉.

use evidenceos_kernel::price::{AnswerPrices, Multiplicity, SettlementPrices};

use super::log2::microbits_up;

/// The mass num/den, kept exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mass {
    num: u128,
    den: u128,
}

fn mass_of_certified(prices: SettlementPrices, settled: u64, certified: u64) -> Mass {
    match prices {
        SettlementPrices::Learned { c0_bits } => Mass {
            num: u128::from(certified) * 2 + 1,
            den: u128::from(settled) * 2 + 2u128.pow(c0_bits.into()),
        },
        SettlementPrices::Fixed { certified_bits } => Mass {
            num: 1,
            den: 2u128.pow(certified_bits.into()),
        },
    }
}

/// The inverse of a level's share in the mass of "certified": (j+1)(j+2) for all but the last, L for the last, so
/// that the shares sum to 1. Without levels, and with one, the only level has all of it.
fn inverse_share(levels: u8, level: u8) -> u128 {
    let (all, j) = (u128::from(levels), u128::from(level));
    if all <= 1 {
        1
    } else if j + 1 == all {
        all
    } else {
        (j + 1) * (j + 2)
    }
}

/// The price of "certified" at a level, given (m, s); without levels it is c.
#[must_use]
pub fn certified(prices: SettlementPrices, m: u64, s: u64, levels: u8, level: u8) -> u64 {
    let mass = mass_of_certified(prices, m, s);
    microbits_up(mass.den * inverse_share(levels, level), mass.num)
}

/// The price of "not certified", given (m, s).
#[must_use]
pub fn not_certified(prices: SettlementPrices, m: u64, s: u64) -> u64 {
    let mass = mass_of_certified(prices, m, s);
    microbits_up(mass.den, mass.den - mass.num)
}

/// The most that a settlement can cost if `ahead` runs end before it: the dearest symbol over every (m′, s′) that it
/// may meet, m ≤ m′ ≤ m + ahead, s ≤ s′ ≤ s + m′ − m.
#[must_use]
pub fn worst_case(prices: SettlementPrices, m: u64, s: u64, ahead: u64, levels: u8) -> u64 {
    let dearest_share = (0..levels.max(1))
        .map(|level| inverse_share(levels, level))
        .max()
        .unwrap_or(1);
    let mut dearest = (1u128, 1u128);
    let mut consider = |num: u128, den: u128| {
        // num/den > dearest, without a division.
        if num.saturating_mul(dearest.1) > dearest.0.saturating_mul(den) {
            dearest = (num, den);
        }
    };
    // With fixed prices every (m′, s′) has the same two prices.
    let steps = match prices {
        SettlementPrices::Learned { .. } => ahead,
        SettlementPrices::Fixed { .. } => 0,
    };
    // Try each place: the kernel's closed formula would repeat an error of its derivation, if there
    // is one.
    for more in 0..=steps {
        let met = m.saturating_add(more);
        // Fewest certifications make "certified" dearest, most make "not certified" dearest.
        let fewest = mass_of_certified(prices, met, s);
        let most = mass_of_certified(prices, met, s.saturating_add(more));
        consider(fewest.den * dearest_share, fewest.num);
        consider(most.den, most.den - most.num);
    }
    microbits_up(dearest.0, dearest.1)
}

/// α/α_i for the i-th certification.
#[must_use]
pub fn alpha_divisor(mode: Multiplicity, ordinal: u64) -> Option<u64> {
    match mode {
        Multiplicity::Each => Some(1),
        Multiplicity::Fwer => ordinal.checked_mul(ordinal.checked_add(1)?),
        Multiplicity::Fdr => ordinal.checked_add(1),
    }
}

/// k + c + ⌈10⁶·log2(10⁶·divisor/alpha_micros)⌉, if it fits.
#[must_use]
pub fn threshold(k: u64, c: u64, alpha_micros: u32, divisor: u64) -> Option<u64> {
    let significance = microbits_up(1_000_000 * u128::from(divisor), alpha_micros.into());
    k.checked_add(c)?.checked_add(significance)
}

/// The exponent released at a level: the largest whole e with 2^e ≤ 10⁶·divisor/alpha_micros, plus the whole bits in
/// level·width.
#[must_use]
pub fn released_exponent(alpha_micros: u32, divisor: u64, level: u8, width: u64) -> u64 {
    let inverse_alpha = 1_000_000 * u128::from(divisor);
    let mut power = u128::from(alpha_micros);
    let mut exponent = 0;
    // The kernel takes the logarithm of a quotient; doubling reaches the same number in another
    // way.
    while power * 2 <= inverse_alpha {
        power *= 2;
        exponent += 1;
    }
    exponent + u64::from(level) * width / 1_000_000
}

/// The level that evidence reaches: the largest j < max(levels, 1) with evidence ≥ threshold + j·width.
#[must_use]
pub fn level_reached(evidence: i128, threshold: u64, width: u64, levels: u8) -> Option<u8> {
    (0..levels.max(1))
        .rev()
        .find(|&level| evidence >= i128::from(threshold) + i128::from(level) * i128::from(width))
}

/// The price of an answer: the listed price, or else ⌈10⁶·log2 n⌉. `None` for a symbol outside the
/// alphabet.
#[must_use]
pub fn answer(prices: &AnswerPrices, n_symbols: u32, symbol: u32) -> Option<u64> {
    if !(2..=65_536).contains(&n_symbols) || symbol >= n_symbols {
        return None;
    }
    match prices.0.get(&n_symbols) {
        Some(listed) => listed.get(symbol as usize).map(|price| price.get()),
        None => Some(microbits_up(n_symbols.into(), 1)),
    }
}

/// The dearest answer of an alphabet.
#[must_use]
pub fn dearest_answer(prices: &AnswerPrices, n_symbols: u32) -> Option<u64> {
    match prices.0.get(&n_symbols) {
        Some(listed) => listed.iter().map(|price| price.get()).max(),
        None => answer(prices, n_symbols, 0),
    }
}
