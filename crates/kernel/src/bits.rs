//! The unit of leakage, prices, budgets and thresholds.
//!
//! Owns [`MicroBits`], a millionth of a bit, and its arithmetic. Does not own how prices are computed (`price.rs`) or
//! logarithms (`log2.rs`).
//!
//! Invariant: nothing here wraps. Sums either report overflow or saturate at the maximum, which is the safe side for
//! a charge or a threshold.

use std::fmt;
use std::iter::Sum;

use serde::{Deserialize, Serialize};

/// Microbits in one bit.
pub const MICROBITS_PER_BIT: u64 = 1_000_000;

/// An amount of information, in millionths of a bit.
///
/// Leakage and thresholds are rounded up to this unit, evidence is rounded down to it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MicroBits(pub u64);

impl MicroBits {
    /// No leakage, or no evidence.
    pub const ZERO: Self = Self(0);

    /// The largest amount; no evidence reaches it as a threshold.
    pub const MAX: Self = Self(u64::MAX);

    /// This many whole bits; saturates at [`MicroBits::MAX`].
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits.saturating_mul(MICROBITS_PER_BIT))
    }

    /// The number of microbits.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum, or `None` if it does not fit.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or `None` if `other` is more.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// This amount times a factor, or `None` if it does not fit.
    #[must_use]
    pub fn checked_mul(self, times: u64) -> Option<Self> {
        self.0.checked_mul(times).map(Self)
    }

    /// The sum, at most [`MicroBits::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sum for MicroBits {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Self::saturating_add)
    }
}

/// At most six decimals, without trailing zeros: `12.712 bits`, `1 bit`; `0.000640 bits` becomes `0.00064 bits`.
impl fmt::Display for MicroBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0 / MICROBITS_PER_BIT;
        let fraction = format!("{:06}", self.0 % MICROBITS_PER_BIT);
        let fraction = fraction.trim_end_matches('0');
        match (whole, fraction) {
            (1, "") => write!(f, "1 bit"),
            (_, "") => write!(f, "{whole} bits"),
            _ => write!(f, "{whole}.{fraction} bits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_in_bits_without_idle_zeros() {
        let check = |microbits, shown: &str| assert_eq!(MicroBits(microbits).to_string(), shown);
        check(0, "0 bits");
        check(640, "0.00064 bits");
        check(1_000_000, "1 bit");
        check(12_712_000, "12.712 bits");
        check(64_000_000, "64 bits");
    }

    #[test]
    fn sums_never_wrap() {
        let top = MicroBits::MAX;
        assert_eq!(top.checked_add(MicroBits(1)), None);
        assert_eq!(MicroBits(2).checked_add(MicroBits(3)), Some(MicroBits(5)));
        assert_eq!(MicroBits(5).checked_sub(MicroBits(3)), Some(MicroBits(2)));
        assert_eq!(top.saturating_add(MicroBits(1)), top);
        assert_eq!([top, top].into_iter().sum::<MicroBits>(), top);
        assert_eq!(MicroBits(1).checked_sub(MicroBits(2)), None);
        assert_eq!(MicroBits(1).saturating_sub(MicroBits(2)), MicroBits::ZERO);
        assert_eq!(MicroBits::from_bits(u64::MAX), top);
    }
}
