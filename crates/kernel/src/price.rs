//! Prices of symbols, and the evidence that a certification needs.
//!
//! Owns the prices of settlements and answers, their worst case, the multiplicity modes, the threshold and the
//! released e-value. Does not own the ledger that is charged, or the evidence.
//!
//! Invariant (Kraft): at every node of the transcript the masses 2^{−price} of the symbols sum to at most 1. With
//! Markov's inequality this gives, for the fixed e-variable of a node, P(E ≥ 2^{k+c}/α) summed over all nodes ≤ α.
//! Prices are therefore rounded up; equal prices are the metering of Dwork et al. 2015 (arXiv 1506.02629).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bits::{MICROBITS_PER_BIT, MicroBits};
use crate::kraft;
use crate::log2::log2_microbits_up;

/// Default of c₀ in [`SettlementPrices::Learned`]: the first certification costs 4 bits. Holdouts
/// registered with 8 keep 8.
pub const DEFAULT_C0_BITS: u8 = 4;

/// The most bits that a policy may charge for a first certification.
pub const MAX_CERTIFIED_BITS: u8 = 40;

/// The largest alphabet of an oracle.
pub const MAX_SYMBOLS: u32 = 65_536;

/// The most prices that one policy may list, over all alphabets.
pub const MAX_LISTED_PRICES: usize = MAX_SYMBOLS as usize;

/// The dearest single answer: 64 bits.
pub const MAX_ANSWER_PRICE: MicroBits = MicroBits::from_bits(64);

/// Millionths in a significance level of 1.
pub const ALPHA_WHOLE_MICROS: u32 = 1_000_000;

/// A policy whose prices cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PriceError {
    /// The bits of a certification are out of range.
    #[error("a certification costs 1 to 40 bits, not {bits}")]
    CertifiedBits {
        /// The requested number of bits.
        bits: u8,
    },
    /// The alphabet is too small or too large.
    #[error("an oracle has 2 to 65536 symbols, not {n_symbols}")]
    Alphabet {
        /// The requested size.
        n_symbols: u32,
    },
    /// The symbol is not in its alphabet.
    #[error("symbol {symbol} is not in an alphabet of {n_symbols}")]
    Symbol {
        /// The size of the alphabet.
        n_symbols: u32,
        /// The requested symbol.
        symbol: u32,
    },
    /// An alphabet's list of prices has another length than the alphabet.
    #[error("{listed} prices are listed for {n_symbols} symbols")]
    Length {
        /// The size of the alphabet.
        n_symbols: u32,
        /// The number of prices listed for it.
        listed: usize,
    },
    /// All lists together are too long.
    #[error("{listed} prices are listed, at most 65536 are allowed")]
    TooMany {
        /// The number of prices listed.
        listed: usize,
    },
    /// A price is above [`MAX_ANSWER_PRICE`].
    #[error("an answer of {n_symbols} costs {price}, at most 64 bits are allowed")]
    TooDear {
        /// The size of the alphabet.
        n_symbols: u32,
        price: MicroBits,
    },
    /// The prices are too low for the alphabet: Σ 2^{−price} > 1.
    #[error("the prices of {n_symbols} symbols are too low: their masses sum to more than 1")]
    Kraft {
        /// The size of the alphabet.
        n_symbols: u32,
    },
}

/// The rule that prices the two symbols that end a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SettlementPrices {
    /// After m settlements with s certifications, "certified" has mass (2s+1)/(2m+2^c0).
    ///
    /// With c0 = 1 this is the Krichevsky–Trofimov estimator; a larger c0 expects certifications to be rare,
    /// so that a long run of failures costs k only logarithmically.
    Learned {
        /// The bits that the first certification costs, 1 to 40.
        c0_bits: u8,
    },
    /// "Certified" has mass 2^{−certified_bits}, always.
    Fixed {
        /// The bits that every certification costs, 1 to 40.
        certified_bits: u8,
    },
}

impl Default for SettlementPrices {
    fn default() -> Self {
        Self::Learned {
            c0_bits: DEFAULT_C0_BITS,
        }
    }
}

/// The prices of one settlement's two symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// c: the price of "certified", which is also part of the threshold.
    pub certified: MicroBits,
    /// The price of "not certified".
    pub not_certified: MicroBits,
}

/// A mass num/den, exact until its price is rounded once.
#[derive(Clone, Copy)]
struct Mass {
    num: u128,
    den: u128,
}

impl Mass {
    /// The price in microbits, ⌈10⁶·log2(divisor/mass)⌉.
    fn price(self, divisor: u128) -> MicroBits {
        log2_microbits_up(self.den * divisor, self.num)
    }

    fn complement(self) -> Self {
        Self {
            num: self.den - self.num,
            den: self.den,
        }
    }
}

impl SettlementPrices {
    /// Checks the range of the parameter.
    ///
    /// # Errors
    /// [`PriceError::CertifiedBits`] outside 1..=[`MAX_CERTIFIED_BITS`]: with 0 bits nothing would be left for
    /// "not certified".
    pub fn validate(&self) -> Result<(), PriceError> {
        let bits = self.first_certified_bits();
        if (1..=MAX_CERTIFIED_BITS).contains(&bits) {
            Ok(())
        } else {
            Err(PriceError::CertifiedBits { bits })
        }
    }

    /// The prices after `settled` (m) settlements, `certified` (s) of them with a certificate, s ≤
    /// m.
    #[must_use]
    pub fn quote(&self, settled: u64, certified: u64) -> Quote {
        let mass = self.certified_mass(settled, certified);
        Quote {
            certified: mass.price(1),
            not_certified: mass.complement().price(1),
        }
    }

    /// The price of "certified at level `level`" out of `levels` (0: only certified or not is released).
    ///
    /// Level j < L−1 has mass(certified)/((j+1)(j+2)) and the last has mass(certified)/L: the sum telescopes
    /// to mass(certified). One rational, rounded up once.
    ///
    /// A level beyond the last counts as the last.
    #[must_use]
    pub fn level_price(&self, settled: u64, certified: u64, levels: u8, level: u8) -> MicroBits {
        self.certified_mass(settled, certified)
            .price(level_divisor(levels, level))
    }

    /// The most that a settlement can cost if its run is admitted at (m, s) with `ahead` (j) runs still under way
    /// before it.
    ///
    /// It will meet some (m', s') with m ≤ m' ≤ m+j and s ≤ s' ≤ s+(m'−m). Write t = m'−m and D = 2m+2^c0.
    ///
    /// - *Certified* costs log2 of d·(D+2t)/(2s'+1), d the divisor of the dearest level: largest at t = j, s' = s.
    /// - *Not certified* costs log2 of 1/(1−q) with q = (2s'+1)/(D+2t): largest if q is. For a given t that is s'
    ///   = s+t, and (2s+1+2t)/(D+2t) grows with t because 2s+1 < D. So t = j again, and 1/(1−q) = (D+2j)/(D−2s−1).
    ///
    /// Both have the numerator D+2j: the one with the smaller denominator is dearer. With fixed prices nothing
    /// depends on (m', s').
    #[must_use]
    pub fn worst_case(&self, settled: u64, certified: u64, ahead: u64, levels: u8) -> MicroBits {
        let mass = self.certified_mass(settled, certified);
        let ahead = match self {
            Self::Learned { .. } => 2 * u128::from(ahead),
            Self::Fixed { .. } => 0,
        };
        let den = mass.den + ahead;
        let dearest_level = log2_microbits_up(den * dearest_level_divisor(levels), mass.num);
        dearest_level.max(log2_microbits_up(den, mass.complement().num))
    }

    /// c before the first settlement, in whole bits.
    #[must_use]
    pub fn first_certified_bits(&self) -> u8 {
        match *self {
            Self::Learned { c0_bits } => c0_bits,
            Self::Fixed { certified_bits } => certified_bits,
        }
    }

    fn certified_mass(&self, settled: u64, certified: u64) -> Mass {
        assert!(certified <= settled, "a certification is a settlement");
        match *self {
            Self::Learned { c0_bits } => Mass {
                num: 2 * u128::from(certified) + 1,
                den: 2 * u128::from(settled) + (1 << c0_bits),
            },
            Self::Fixed { certified_bits } => Mass {
                num: 1,
                den: 1 << certified_bits,
            },
        }
    }
}

fn level_divisor(levels: u8, level: u8) -> u128 {
    let (levels, level) = (u128::from(levels), u128::from(level));
    if level + 1 < levels {
        (level + 1) * (level + 2)
    } else {
        levels.max(1)
    }
}

/// The price of the dearest of `levels` beyond the certification itself: ⌈10⁶·log2 d⌉ with d its
/// divisor; 0 for at most one level.
#[must_use]
pub fn dearest_level_extra(levels: u8) -> MicroBits {
    log2_microbits_up(dearest_level_divisor(levels), 1)
}

/// The last level but one has the least mass: (L−1)L ≥ L for L ≥ 2.
fn dearest_level_divisor(levels: u8) -> u128 {
    level_divisor(levels, levels.saturating_sub(2))
}

/// The price of each symbol of each alphabet. An alphabet that is not listed is uniform: ⌈10⁶·log2 n⌉.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AnswerPrices(pub BTreeMap<u32, Vec<MicroBits>>);

impl AnswerPrices {
    /// The price of `symbol` in an alphabet of `n_symbols`.
    ///
    /// # Errors
    /// [`PriceError::Alphabet`] and [`PriceError::Symbol`] if there is no such symbol.
    pub fn price(&self, n_symbols: u32, symbol: u32) -> Result<MicroBits, PriceError> {
        check_alphabet(n_symbols)?;
        let missing = PriceError::Symbol { n_symbols, symbol };
        match self.0.get(&n_symbols) {
            Some(prices) => prices.get(symbol as usize).copied().ok_or(missing),
            None if symbol < n_symbols => Ok(uniform_price(n_symbols)),
            None => Err(missing),
        }
    }

    /// The price of the dearest symbol of an alphabet of `n_symbols`: an answer reserves it.
    ///
    /// # Errors
    /// [`PriceError::Alphabet`] if there is no such alphabet.
    pub fn dearest(&self, n_symbols: u32) -> Result<MicroBits, PriceError> {
        check_alphabet(n_symbols)?;
        let listed = self.0.get(&n_symbols);
        let dearest = listed.and_then(|prices| prices.iter().copied().max());
        Ok(dearest.unwrap_or_else(|| uniform_price(n_symbols)))
    }

    /// Checks that every list has a price for each symbol and that the masses of each alphabet sum to at most 1,
    /// exactly.
    ///
    /// # Errors
    /// [`PriceError`] for the first rule that a list breaks.
    pub fn validate(&self) -> Result<(), PriceError> {
        let listed = self.0.values().map(Vec::len).sum();
        if listed > MAX_LISTED_PRICES {
            return Err(PriceError::TooMany { listed });
        }
        for (&n_symbols, prices) in &self.0 {
            check_alphabet(n_symbols)?;
            if prices.len() != n_symbols as usize {
                return Err(PriceError::Length {
                    n_symbols,
                    listed: prices.len(),
                });
            }
            if let Some(&price) = prices.iter().find(|&&price| price > MAX_ANSWER_PRICE) {
                return Err(PriceError::TooDear { n_symbols, price });
            }
            // Below Kraft's bound the answers would release more than they are charged for.
            if !kraft::masses_sum_to_at_most_one(prices) {
                return Err(PriceError::Kraft { n_symbols });
            }
        }
        Ok(())
    }
}

fn check_alphabet(n_symbols: u32) -> Result<(), PriceError> {
    if (2..=MAX_SYMBOLS).contains(&n_symbols) {
        Ok(())
    } else {
        Err(PriceError::Alphabet { n_symbols })
    }
}

fn uniform_price(n_symbols: u32) -> MicroBits {
    log2_microbits_up(u128::from(n_symbols), 1)
}

/// The rule that shares α among the certifications of a holdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Multiplicity {
    /// α_i = α: each i-th certification is false with probability at most α.
    #[default]
    Each,
    /// α_i = α/(i(i+1)): the probability of any false certification is at most α.
    Fwer,
    /// α_i = α/(i+1): the largest share of false certifications is at most α in expectation.
    Fdr,
}

impl Multiplicity {
    /// The rule's name in public records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Each => "each",
            Self::Fwer => "fwer",
            Self::Fdr => "fdr",
        }
    }

    /// The rule with this name, or `None` if there is none.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Each, Self::Fwer, Self::Fdr]
            .into_iter()
            .find(|mode| mode.as_str() == name)
    }

    /// α/α_i for the i-th certification, i ≥ 1. Saturates at `u64::MAX`, which no holdout reaches.
    #[must_use]
    pub const fn divisor(self, ordinal: u64) -> u64 {
        match self {
            Self::Each => 1,
            Self::Fwer => ordinal.saturating_mul(ordinal.saturating_add(1)),
            Self::Fdr => ordinal.saturating_add(1),
        }
    }
}

/// The evidence that certifies: k + c + ⌈10⁶·log2(10⁶·divisor/alpha_micros)⌉.
///
/// `alpha_micros` is α in millionths, 1 to 10⁶. A sum that does not fit becomes a threshold that no evidence reaches.
///
/// # Panics
/// If `alpha_micros` is out of range or `divisor` is 0: both are checked when a policy is made.
#[must_use]
pub fn threshold(k: MicroBits, c: MicroBits, alpha_micros: u32, divisor: u64) -> MicroBits {
    let (num, den) = inverse_alpha(alpha_micros, divisor);
    k.saturating_add(c)
        .saturating_add(log2_microbits_up(num, den))
}

/// log2 of the e-value that is released for a certification at `level`: ⌊log2(1/α_i)⌋ + ⌊level·w⌋, in bits.
///
/// It is E deflated by 2^{−(k+c)} and rounded down, so that a reader may choose α afterwards (Koning, arXiv
/// 2312.08040). Arguments as in [`threshold`]; `level_width` is w.
#[must_use]
pub fn released_log2(alpha_micros: u32, divisor: u64, level: u8, level_width: MicroBits) -> u64 {
    let (num, den) = inverse_alpha(alpha_micros, divisor);
    // ⌊log2 x⌋ = ⌊log2 ⌊x⌋⌋ for x ≥ 1.
    let significance = u64::from((num / den).ilog2());
    let surplus = u128::from(level) * u128::from(level_width.get()) / u128::from(MICROBITS_PER_BIT);
    significance.saturating_add(u64::try_from(surplus).unwrap_or(u64::MAX))
}

/// The level that the evidence (in microbits, rounded down) reaches, or `None` if it does not certify.
///
/// Level j needs threshold + j·w. With `levels` 0 or 1 there is only level 0.
#[must_use]
pub fn level_reached(
    evidence_microbits: i64,
    threshold: MicroBits,
    level_width: MicroBits,
    levels: u8,
) -> Option<u8> {
    let evidence = u64::try_from(evidence_microbits).ok()?;
    let surplus = evidence.checked_sub(threshold.get())?;
    let last = levels.saturating_sub(1);
    // If levels have no width, evidence reaches all of them at once.
    let level = surplus.checked_div(level_width.get()).unwrap_or(u64::MAX);
    // Evidence beyond the last level is not released: nothing was charged for it.
    Some(level.min(u64::from(last)) as u8)
}

/// 1/α_i as a rational of at least 1.
fn inverse_alpha(alpha_micros: u32, divisor: u64) -> (u128, u128) {
    assert!(
        (1..=ALPHA_WHOLE_MICROS).contains(&alpha_micros) && divisor > 0,
        "α is above 0 and at most 1"
    );
    let num = u128::from(ALPHA_WHOLE_MICROS) * u128::from(divisor);
    (num, u128::from(alpha_micros))
}

#[cfg(test)]
mod tests;
