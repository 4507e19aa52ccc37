//! The number of certifications that a record of verdicts still carries.
//!
//! Owns the count that `GetHoldout` returns and that the planner shows before a holdout exists. It depends on prices
//! and sums alone, never on labels, so showing it releases nothing.

use super::Policy;
use crate::{bits::MicroBits, price};

/// The most certifications that are counted: each read of a holdout counts them again.
pub const MOST_CERTIFICATIONS: u32 = 1_000;

/// How many certifications in a row a holdout still carries, each at most [`MOST_CERTIFICATIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificationsLeft {
    /// For all its submitters together.
    pub all: u32,
    /// For one submitter, within the rest of its own budget.
    pub own: u32,
}

/// The verdicts of a sealed part so far, and their leakage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record {
    /// The leakage that is charged.
    pub k: MicroBits,
    /// m: claims that were judged.
    pub settled: u64,
    /// s: claims that were certified, s ≤ m.
    pub certified: u64,
}

impl Record {
    /// The evidence that the next claim needs for a certificate.
    #[must_use]
    pub fn threshold(&self, policy: &Policy) -> MicroBits {
        let quote = policy.settlement_prices.quote(self.settled, self.certified);
        let divisor = policy.multiplicity.divisor(self.certified + 1);
        price::threshold(self.k, quote.certified, policy.alpha_micros, divisor)
    }

    /// Whether one more claim without levels is admitted on a sealed budget of `budget`, with no other run under way.
    #[must_use]
    pub fn carries_another(&self, policy: &Policy, budget: MicroBits) -> bool {
        let (settled, certified) = (self.settled, self.certified);
        let worst = policy
            .settlement_prices
            .worst_case(settled, certified, 0, 0);
        self.k.saturating_add(worst) <= budget
    }

    /// The record after one more verdict.
    #[must_use]
    pub fn after(mut self, policy: &Policy, is_certified: bool) -> Self {
        let quote = policy.settlement_prices.quote(self.settled, self.certified);
        let price = if is_certified {
            quote.certified
        } else {
            quote.not_certified
        };
        self.k = self.k.saturating_add(price);
        self.settled += 1;
        self.certified += u64::from(is_certified);
        self
    }

    /// The largest t such that the next t claims in a row can be certified: the worst case of each fits what is left,
    /// and its threshold is within `reach`, the evidence of a perfect vector. Counted for all submitters, who have
    /// `left`, and for one of them, with `own_left` of it. Assumes claims without levels. Takes at most three
    /// logarithms for each certification.
    #[must_use]
    pub fn certifications_left(
        mut self,
        policy: &Policy,
        reach: MicroBits,
        mut left: MicroBits,
        own_left: MicroBits,
    ) -> CertificationsLeft {
        let mut own_left = left.min(own_left);
        let (mut bar, mut last_divisor) = (MicroBits::ZERO, 0);
        let mut own = None;
        for t in 0..MOST_CERTIFICATIONS {
            let quote = policy.settlement_prices.quote(self.settled, self.certified);
            let divisor = policy.multiplicity.divisor(self.certified + 1);
            // With `each` the divisor is always 1, and the logarithm is taken once.
            if divisor != last_divisor {
                let none = MicroBits::ZERO;
                bar = price::threshold(none, none, policy.alpha_micros, divisor);
                last_divisor = divisor;
            }
            // A run reserves the dearer verdict, whichever it turns out to be.
            let worst = quote.certified.max(quote.not_certified);
            if worst > own_left {
                own = own.or(Some(t));
            }
            // The threshold of a certification includes its own price.
            self.k = self.k.saturating_add(quote.certified);
            if worst > left || self.k.saturating_add(bar) > reach {
                return CertificationsLeft {
                    all: t,
                    own: own.unwrap_or(t),
                };
            }
            left = left.saturating_sub(quote.certified);
            own_left = own_left.saturating_sub(quote.certified);
            self.settled += 1;
            self.certified += 1;
        }
        CertificationsLeft {
            all: MOST_CERTIFICATIONS,
            own: own.unwrap_or(MOST_CERTIFICATIONS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // "Certified" costs log2((2m + 16)/(2s + 1)) bits, rounded up, and α = 0.05 takes log2(20).
    #[test]
    fn a_record_follows_the_learned_prices() {
        let policy = Policy::with_sealed_budget(MicroBits::from_bits(64));
        let first = Record::default();
        let significance = 4_321_929;
        assert_eq!(first.threshold(&policy).0, 4_000_000 + significance);
        let failed = first.after(&policy, false);
        assert_eq!(
            (failed.k.0, failed.settled, failed.certified),
            (93_110, 1, 0)
        );
        assert_eq!(
            failed.threshold(&policy).0,
            93_110 + 4_169_926 + significance
        );
        let certified = first.after(&policy, true);
        assert_eq!(certified.k.0, 4_000_000);
        assert_eq!((certified.settled, certified.certified), (1, 1));
    }

    #[test]
    fn a_claim_is_admitted_by_its_worst_case() {
        let policy = Policy::with_sealed_budget(MicroBits::from_bits(64));
        let first = Record::default();
        assert!(first.carries_another(&policy, MicroBits::from_bits(4)));
        assert!(!first.carries_another(&policy, MicroBits(3_999_999)));
    }
}
