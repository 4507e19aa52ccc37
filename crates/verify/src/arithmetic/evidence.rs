//! The e-variables: their integer constants, and the evidence of a score.
//!
//! H0: the average chance of the units to be right is at most p0. A bet λ multiplies 1 + λ(X − p0) over the units.
//!
//! - Grid: λ_g = (9/10)·2^−g/p0 for g = 0…7, E = 2^−3·max_g of the products.
//! - Fixed alternative: the likelihood ratio of p1 against p0.
//!
//! In units of 2^−40 bit: a gain for a right item, rounded down; a loss for a wrong one, rounded up. A unit of n
//! items with r right adds (r·gain − (n − r)·loss)/n, and the sum over all units of one size is rounded down.
//! Evidence in microbits is ⌊ℓ·10⁶/2^40⌋.

use evidenceos_kernel::{cj, evidence::Strategy, id::Digest, null::NullSpec, record::RecordError};

use super::log2::scaled;
use crate::fields::value;

const UNITS_PER_BIT: u64 = 1 << 40;
const WHOLE: u128 = 1_000_000;

/// The constants of one bet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bet {
    /// Added for a right item, in 2⁻⁴⁰ bits, rounded down.
    pub gain: i128,
    /// Subtracted for a wrong item, in 2⁻⁴⁰ bits, rounded up.
    pub loss: i128,
}

/// The constants of a null spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bets {
    bets: Vec<Bet>,
    penalty: i128,
}

/// The sealed units of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitsOfSize {
    /// Items of each unit.
    pub size: u64,
    pub units: u64,
    /// Right items in all of them.
    pub right: u64,
}

impl Bets {
    /// The constants of a null spec.
    ///
    /// # Errors
    /// [`RecordError::Value`] if a chance that it names is out of its range.
    pub fn of(null_spec: &NullSpec) -> Result<Self, RecordError> {
        match null_spec {
            NullSpec::Accuracy(accuracy) => Self::new(accuracy.p0_micros, accuracy.strategy)
                .ok_or_else(|| match accuracy.strategy {
                    Strategy::Grid => value("p0_micros", "must be between 1 and 999999"),
                    Strategy::FixedAlternative { .. } => {
                        value("p1_micros", "must be between p0 and 999999")
                    }
                }),
        }
    }

    /// The constants against accuracies of at most p0, or `None` unless 0 < p0 < 1 and, if there is a p1, p0 < p1 <
    /// 1.
    #[must_use]
    pub fn new(p0_micros: u32, strategy: Strategy) -> Option<Self> {
        let p0 = u128::from(p0_micros);
        if !(1..WHOLE).contains(&p0) {
            return None;
        }
        match strategy {
            Strategy::Grid => {
                let bets = (0..8u32).map(|g| {
                    // λ = 9/(d·p0) with d = 10·2^g and p0 in millionths: 1 + λ(1 − p0) and 1 − λ·p0 over d·p0.
                    let d = 10 * 2u128.pow(g);
                    let right = (d * p0 + 9 * WHOLE - 9 * p0, d * p0);
                    let wrong = (d * p0 - 9 * p0, d * p0);
                    Bet {
                        gain: scaled(right.0, right.1, UNITS_PER_BIT).1,
                        // The logarithm is negative: its negated floor is the loss rounded up.
                        loss: -scaled(wrong.0, wrong.1, UNITS_PER_BIT).1,
                    }
                });
                Some(Self {
                    bets: bets.collect(),
                    penalty: 3 * i128::from(UNITS_PER_BIT),
                })
            }
            Strategy::FixedAlternative { p1_micros } => {
                let p1 = u128::from(p1_micros);
                if !(p0 + 1..WHOLE).contains(&p1) {
                    return None;
                }
                let bet = Bet {
                    gain: scaled(p1, p0, UNITS_PER_BIT).1,
                    loss: -scaled(WHOLE - p1, WHOLE - p0, UNITS_PER_BIT).1,
                };
                Some(Self {
                    bets: vec![bet],
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

    /// SHA-256 of the constants as canonical JSON: the `constants_hash` of a null spec.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let int = |value: i128| u64::try_from(value).unwrap_or(u64::MAX);
        let bets: cj::Value = self
            .bets
            .iter()
            .map(|bet| {
                cj::Object::new()
                    .put("gain", int(bet.gain))
                    .put("loss", int(bet.loss))
            })
            .collect();
        let constants = cj::Object::new()
            .put("bets", bets)
            .put("penalty", int(self.penalty))
            .put("units_per_bit", UNITS_PER_BIT);
        Digest::of(&constants.to_bytes())
    }

    /// ℓ: log2 E in units of 2^−40 bit, rounded down.
    #[must_use]
    pub fn log2_e(&self, score: &[UnitsOfSize]) -> i128 {
        let of_bet = |bet: &Bet| -> i128 {
            score
                .iter()
                .map(|class| {
                    let items = i128::from(class.units) * i128::from(class.size);
                    let right = i128::from(class.right);
                    let sum = right * bet.gain - (items - right) * bet.loss;
                    // Rounded down also below zero, so that no rounding adds evidence.
                    sum.div_euclid(i128::from(class.size))
                })
                .sum()
        };
        self.bets.iter().map(of_bet).max().unwrap_or(0) - self.penalty
    }

    /// The evidence in microbits, rounded down; negative if the null does better.
    #[must_use]
    pub fn evidence(&self, score: &[UnitsOfSize]) -> i128 {
        (self.log2_e(score) * 1_000_000).div_euclid(i128::from(UNITS_PER_BIT))
    }

    /// The evidence of a vector without a wrong item: the most that this many units can show.
    #[must_use]
    pub fn most(&self, units: u64) -> i128 {
        self.evidence(&[UnitsOfSize {
            size: 1,
            units,
            right: units,
        }])
    }
}
