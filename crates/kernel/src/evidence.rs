//! The evidence in a count of right predictions.
//!
//! Owns the e-variables for unit scores of 0 and 1 as tables of integer constants, the evidence of a count, and the
//! least count that reaches a threshold. Does not own the threshold (`price.rs`) or the counting (`score.rs`).
//!
//! H0: the average chance of the units to be right is at most p0. Units are independent but need not be identically
//! distributed: submitters see the items, so they know on which items they are right. A bet λ fixed in advance
//! multiplies 1 + λ(X_i − p0) over the units; by the inequality of arithmetic and geometric means the product's
//! expectation under H0 is at most 1. (Bets that adapt to earlier items are not valid here.)
//!
//! - *Grid*: λ_g = (9/10)·2^{−g}/p0 for g = 0…7. E = 2^{−3}·max_g ∏(1 + λ_g(X_i − p0)) is at most the uniform mixture
//!   of the eight, hence an e-variable. It needs no estimate of the accuracy.
//! - *Fixed alternative*: ∏ (p1/p0)^X ((1−p1)/(1−p0))^{1−X}, the likelihood ratio, which is the bet λ = (p1 −
//!   p0)/(p0(1 − p0)). The most powerful if p1 is right.
//!
//! Invariant: constants are rounded against the submitter once, when the null spec is registered; the rest is exact.
//! No float decides a certification.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bits::{MICROBITS_PER_BIT, MicroBits};
use crate::cj::{Object, Value};
use crate::log2::{log2_fixed40_down, log2_fixed40_up};
use crate::score::Score;

/// Millionths in a chance of 1.
pub const CHANCE_WHOLE_MICROS: u32 = 1_000_000;

/// Bets on the grid.
pub const GRID_BETS: u32 = 8;

/// The cost of choosing the best of the grid's bets: log2 of 8, in units of 2^−40 bit.
const GRID_PENALTY: i64 = 3 << 40;

/// The bet against an accuracy null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Strategy {
    /// The best of eight bets, less three bits.
    #[default]
    Grid,
    /// The likelihood ratio of one alternative.
    FixedAlternative {
        /// p1 in millionths, above p0 and below 10⁶.
        p1_micros: u32,
    },
}

/// The word of [`Strategy::Grid`].
const GRID: &str = "grid";
/// The word of [`Strategy::FixedAlternative`].
pub(crate) const FIXED_ALTERNATIVE: &str = "fixed_alternative";

impl Strategy {
    /// The strategy with this word, in public records and on the wire; `p1_micros` matters only if
    /// the strategy has an alternative.
    #[must_use]
    pub fn named(word: &str, p1_micros: u32) -> Option<Self> {
        match word {
            GRID => Some(Self::Grid),
            FIXED_ALTERNATIVE => Some(Self::FixedAlternative { p1_micros }),
            _ => None,
        }
    }

    /// The strategy's word in public records and on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Grid => GRID,
            Self::FixedAlternative { .. } => FIXED_ALTERNATIVE,
        }
    }

    /// The alternative in millionths, if it has one.
    #[must_use]
    pub fn p1_micros(self) -> Option<u32> {
        match self {
            Self::Grid => None,
            Self::FixedAlternative { p1_micros } => Some(p1_micros),
        }
    }
}

/// A null hypothesis or strategy that cannot be bet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EvidenceError {
    /// p0 is not strictly between 0 and 1.
    #[error("p0 must be strictly between 0 and 1000000 millionths, not {p0_micros}")]
    NullChance {
        /// The requested p0.
        p0_micros: u32,
    },
    /// p1 is not strictly between p0 and 1.
    #[error("p1 must be strictly between p0 ({p0_micros}) and 1000000 millionths, not {p1_micros}")]
    Alternative {
        p0_micros: u32,
        /// The requested p1.
        p1_micros: u32,
    },
}

/// One bet: what a unit adds to log2 E, in units of 2^−40 bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bet {
    /// u: added for a right unit, rounded down. Not negative.
    pub gain: i64,
    /// w: subtracted for a wrong unit, rounded up. Positive.
    pub loss: i64,
}

/// The integer constants of an e-variable: log2 E ≥ max over bets of (s·gain − (n−s)·loss) − penalty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BetTable {
    bets: Vec<Bet>,
    penalty: i64,
}

impl BetTable {
    /// The constants of `strategy` against accuracies of at most `p0_micros` millionths.
    ///
    /// # Errors
    /// [`EvidenceError`] unless 0 < p0 < 1 and, if there is a p1, p0 < p1 < 1.
    pub fn new(p0_micros: u32, strategy: Strategy) -> Result<Self, EvidenceError> {
        if p0_micros == 0 || p0_micros >= CHANCE_WHOLE_MICROS {
            return Err(EvidenceError::NullChance { p0_micros });
        }
        match strategy {
            Strategy::Grid => Ok(Self {
                bets: (0..GRID_BETS).map(|g| grid_bet(p0_micros, g)).collect(),
                penalty: GRID_PENALTY,
            }),
            Strategy::FixedAlternative { p1_micros } => {
                // Only with p1 above p0 is the likelihood ratio an e-variable for every accuracy up
                // to p0.
                if p1_micros <= p0_micros || p1_micros >= CHANCE_WHOLE_MICROS {
                    return Err(EvidenceError::Alternative {
                        p0_micros,
                        p1_micros,
                    });
                }
                Ok(Self {
                    bets: vec![likelihood_ratio(p0_micros, p1_micros)],
                    penalty: 0,
                })
            }
        }
    }

    /// The bets; the best one counts.
    #[must_use]
    pub fn bets(&self) -> &[Bet] {
        &self.bets
    }

    /// The canonical bytes whose hash pins the constants in a null spec.
    #[must_use]
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let bets: Value = self
            .bets
            .iter()
            .map(|bet| {
                Object::new()
                    .put("gain", bet.gain.unsigned_abs())
                    .put("loss", bet.loss.unsigned_abs())
            })
            .collect();
        Object::new()
            .put("bets", bets)
            .put("penalty", self.penalty.unsigned_abs())
            .put("units_per_bit", crate::log2::FIXED40_PER_BIT)
            .to_bytes()
    }

    /// ℓ: log2 E of `right` out of `items`, in units of 2^−40 bit, rounded down item by item.
    ///
    /// # Panics
    /// If `right > items`: such a count is a bug, and must not become evidence.
    #[must_use]
    pub fn log2_fixed40(&self, right: u64, items: u64) -> i128 {
        assert!(right <= items, "no more items are right than there are");
        let (right, wrong) = (i128::from(right), i128::from(items - right));
        let best = self
            .bets
            .iter()
            .map(|bet| right * i128::from(bet.gain) - wrong * i128::from(bet.loss))
            .max();
        best.unwrap_or(0) - i128::from(self.penalty)
    }

    /// The evidence in microbits: ⌊ℓ·10⁶/2^40⌋, negative if the null does better.
    ///
    /// Saturates at the ends of `i64`, beyond anything that fits in memory.
    ///
    /// # Panics
    /// As [`BetTable::log2_fixed40`].
    #[must_use]
    pub fn evidence_microbits(&self, right: u64, items: u64) -> i64 {
        to_microbits(self.log2_fixed40(right, items))
    }

    /// The evidence, in microbits, of a score over units of any sizes.
    ///
    /// A unit of n items of which s are right adds at least (s·gain − (n−s)·loss)/n: the log of
    /// 1 + λ(x − m0) is concave in the mean x, and that of a likelihood ratio is linear in it.
    #[must_use]
    pub fn evidence_of(&self, score: &Score) -> i64 {
        let best = self.bets.iter().map(|bet| {
            score
                .classes
                .iter()
                .map(|class| {
                    let wrong = class.units * class.size - class.right;
                    let sum = i128::from(class.right) * i128::from(bet.gain)
                        - i128::from(wrong) * i128::from(bet.loss);
                    // Rounded down also below zero, so that no rounding ever adds evidence.
                    sum.div_euclid(i128::from(class.size))
                })
                .sum::<i128>()
        });
        to_microbits(best.max().unwrap_or(0) - i128::from(self.penalty))
    }

    /// Whether a perfect vector over this many units would reach `threshold`.
    #[must_use]
    pub fn can_reach(&self, units: u64, threshold: MicroBits) -> bool {
        u64::try_from(self.evidence_microbits(units, units))
            .is_ok_and(|evidence| evidence >= threshold.get())
    }

    /// The evidence of a perfect vector over this many units; 0 if it is negative.
    #[must_use]
    pub fn reach(&self, units: u64) -> MicroBits {
        MicroBits(u64::try_from(self.evidence_microbits(units, units)).unwrap_or(0))
    }

    /// The least count of right items whose evidence reaches `threshold`; `None` if a perfect vector fails.
    ///
    /// Every bet grows with the count, so their maximum does too, and bisection finds the count.
    #[must_use]
    pub fn fewest_right(&self, items: u64, threshold: MicroBits) -> Option<u64> {
        let reaches = |right| {
            let evidence = u64::try_from(self.evidence_microbits(right, items));
            evidence.is_ok_and(|evidence| evidence >= threshold.get())
        };
        if !reaches(items) {
            return None;
        }
        let (mut enough, mut beyond_too_few) = (items, 0);
        while beyond_too_few < enough {
            let middle = beyond_too_few + (enough - beyond_too_few) / 2;
            if reaches(middle) {
                enough = middle;
            } else {
                beyond_too_few = middle + 1;
            }
        }
        Some(enough)
    }
}

/// ⌊ℓ·10⁶/2^40⌋, saturating at the ends of `i64`.
fn to_microbits(log2_fixed40: i128) -> i64 {
    // An arithmetic shift rounds down, also below zero.
    let microbits = log2_fixed40.saturating_mul(i128::from(MICROBITS_PER_BIT)) >> 40;
    let bounded = microbits.clamp(i64::MIN.into(), i64::MAX.into());
    bounded as i64
}

/// λ_g = 9/(10·2^g·p0), so that
/// 1 + λ_g(1 − p0) = (10·2^g·p0 + 9(1 − p0))/(10·2^g·p0) and 1 − λ_g·p0 = (10·2^g − 9)/(10·2^g).
fn grid_bet(p0_micros: u32, g: u32) -> Bet {
    let (p0, whole) = (u128::from(p0_micros), u128::from(CHANCE_WHOLE_MICROS));
    let tenths = 10u128 << g;
    Bet {
        // Gains are rounded down and losses up, so that the expectation under the null stays at
        // most 1.
        gain: log2_fixed40_down(tenths * p0 + 9 * (whole - p0), tenths * p0),
        loss: log2_fixed40_up(tenths, tenths - 9),
    }
}

fn likelihood_ratio(p0_micros: u32, p1_micros: u32) -> Bet {
    let [p0, p1, whole] = [p0_micros, p1_micros, CHANCE_WHOLE_MICROS].map(u128::from);
    Bet {
        gain: log2_fixed40_down(p1, p0),
        loss: log2_fixed40_up(whole - p0, whole - p1),
    }
}

#[cfg(test)]
mod tests;
