//! A holdout policy as an operator asks for it, and the defaults for the rest.
//!
//! Owns the defaults that depend on the number of items. Registration and the planner both use them, so a plan
//! matches what a registration would do.

use super::{MICROS, Policy, PolicyError};
use crate::{
    bits::MicroBits,
    null::NullSpec,
    price::{AnswerPrices, Multiplicity, SettlementPrices},
};

/// A policy as it is requested; the kernel proposes the fields that are left out.
#[derive(Debug, Clone, Default)]
pub struct AskedPolicy {
    pub answer_share_micros: Option<u32>,
    pub answer_budget: Option<MicroBits>,
    pub principal_answer_budget: Option<MicroBits>,
    pub sealed_budget: Option<MicroBits>,
    pub principal_sealed_budget: Option<MicroBits>,
    /// Prices of some alphabets; all others are uniform.
    pub answer_prices: AnswerPrices,
    pub settlement_prices: Option<SettlementPrices>,
    pub levels: u8,
    pub level_width: Option<MicroBits>,
    pub alpha_micros: Option<u32>,
    pub multiplicity: Multiplicity,
    pub max_symbols: Option<u32>,
}

impl AskedPolicy {
    /// The share of the units from which questions are answered, in millionths below 10⁶.
    ///
    /// # Errors
    /// [`PolicyError`] if no unit would stay sealed: ask for a smaller share.
    pub fn answer_share_micros(&self) -> Result<u32, PolicyError> {
        let default = Policy::with_sealed_budget(MicroBits::ZERO).answer_share_micros;
        let share = self.answer_share_micros.unwrap_or(default);
        if share < MICROS {
            return Ok(share);
        }
        Err(PolicyError {
            field: "answer_share_micros",
            rule: "must be below 1000000: some items must stay sealed".to_owned(),
        })
    }

    /// The policy for this many sealed units, and warnings for the operator.
    ///
    /// # Errors
    /// [`PolicyError`] names the field that breaks a rule, and the rule.
    pub fn for_units(
        &self,
        null_spec: &NullSpec,
        sealed_units: u64,
    ) -> Result<(Policy, Vec<String>), PolicyError> {
        let default = Policy::with_sealed_budget(MicroBits::ZERO);
        let mut policy = Policy {
            answer_share_micros: self.answer_share_micros()?,
            answer_budget: self.answer_budget.unwrap_or(default.answer_budget),
            principal_answer_budget: self
                .principal_answer_budget
                .unwrap_or(default.principal_answer_budget),
            settlement_prices: self.settlement_prices.unwrap_or(default.settlement_prices),
            levels: self.levels,
            level_width: self.level_width.unwrap_or(default.level_width),
            alpha_micros: self.alpha_micros.unwrap_or(default.alpha_micros),
            multiplicity: self.multiplicity,
            max_symbols: self.max_symbols.unwrap_or(default.max_symbols),
            answer_prices: default.answer_prices,
            sealed_budget: self.sealed_budget.unwrap_or(default.sealed_budget),
            principal_sealed_budget: self.principal_sealed_budget,
        };
        let stated = self.answer_prices.0.clone();
        policy.answer_prices.0.extend(stated);
        // The planner takes a valid policy; the defaults set below break no rule.
        policy.validate()?;
        let proposal = null_spec.proposed_sealed_budget(sealed_units, &policy);
        policy.sealed_budget = self.sealed_budget.unwrap_or(proposal.budget);
        let fence = self.principal_sealed_budget;
        policy.principal_sealed_budget = Some(fence.unwrap_or_else(|| policy.proposed_fence()));
        let mut warnings = Vec::new();
        if proposal.hardly_certifiable {
            warnings.push(format!(
                "{sealed_units} sealed units are few: even an accuracy halfway between p0 and 1 would be certified with less than 90 % probability. Register more items, or choose a lower p0"
            ));
        }
        Ok((policy, warnings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Strategy;

    fn null_spec() -> NullSpec {
        NullSpec::accuracy(500_000, Strategy::Grid, None).expect("in range")
    }

    #[test]
    fn a_stricter_share_of_alpha_is_taken_from_the_proposed_budget() {
        let budget = |multiplicity| {
            let asked = AskedPolicy {
                multiplicity,
                ..AskedPolicy::default()
            };
            let (policy, _) = asked.for_units(&null_spec(), 400).expect("valid");
            policy.sealed_budget.0
        };
        // The first certification is judged at α/2 under both, which takes one bit of evidence.
        let each = budget(Multiplicity::Each);
        assert_eq!(budget(Multiplicity::Fwer), each - 1_000_000);
        assert_eq!(budget(Multiplicity::Fdr), each - 1_000_000);
    }

    #[test]
    fn a_field_that_breaks_a_rule_is_named() {
        let field = |asked: AskedPolicy| {
            let refused = asked.for_units(&null_spec(), 100).expect_err("refused");
            refused.field
        };
        let all = AskedPolicy {
            answer_share_micros: Some(MICROS),
            ..AskedPolicy::default()
        };
        assert_eq!(field(all), "answer_share_micros");
        let never = AskedPolicy {
            alpha_micros: Some(0),
            ..AskedPolicy::default()
        };
        assert_eq!(field(never), "alpha_micros");
    }

    #[test]
    fn what_is_asked_for_stays_as_it_is() {
        let asked = AskedPolicy {
            sealed_budget: Some(MicroBits::from_bits(7)),
            principal_sealed_budget: Some(MicroBits::from_bits(3)),
            ..AskedPolicy::default()
        };
        let (policy, warnings) = asked.for_units(&null_spec(), 10_000).expect("valid");
        assert_eq!(policy.sealed_budget, MicroBits::from_bits(7));
        let fence = policy.principal_sealed_budget;
        assert_eq!(fence, Some(MicroBits::from_bits(3)));
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}
