//! A holdout's budgets, prices and significance level, as command line flags.
//!
//! Owns the flags that `holdout add` and `plan` share, and the conversion of a policy on the wire into the
//! kernel's.

use clap::Args;
use evidenceos_kernel::{
    bits::MicroBits,
    holdout::AskedPolicy,
    price::{Multiplicity, SettlementPrices},
};
use evidenceos_proto as proto;

use crate::units;

/// The policy of a registration; the server proposes values for flags that are not given.
#[derive(Debug, Clone, Default, Args)]
pub struct PolicyArgs {
    /// Share of the units from which questions are answered; 0: no questions [default: 0.2].
    #[arg(long, value_parser = units::share, value_name = "SHARE")]
    pub answer_share: Option<u32>,
    /// The most bits that answers may release, to all submitters [default: 64].
    #[arg(long, value_parser = units::millionths, value_name = "BITS")]
    pub answer_budget_bits: Option<u64>,
    /// The most bits that answers may release to one submitter [default: 16].
    #[arg(long, value_parser = units::millionths, value_name = "BITS")]
    pub principal_answer_budget_bits: Option<u64>,
    /// The most bits that verdicts may release about the sealed part [default: 16 to 64, by the number of units].
    #[arg(long, value_parser = units::millionths, value_name = "BITS")]
    pub sealed_budget_bits: Option<u64>,
    /// The most bits that verdicts about one submitter's claims may release [default: a quarter of the sealed budget,
    /// at least 8].
    #[arg(long, value_parser = units::millionths, value_name = "BITS")]
    pub principal_sealed_budget_bits: Option<u64>,
    /// The most levels of the e-value that a claim may choose to release.
    #[arg(long, default_value_t = 0)]
    pub levels: u32,
    /// The significance level α [default: 0.05].
    #[arg(long, value_parser = units::chance)]
    pub alpha: Option<u32>,
    /// What alpha bounds: the chance that `each` certificate is false, that any one is (`fwer`), or the expected share of
    /// false ones (`fdr`) [default: each].
    #[arg(long, value_parser = ["each", "fwer", "fdr"])]
    pub multiplicity: Option<String>,
    /// Charge every certification this many bits, instead of learning the price from earlier
    /// verdicts.
    #[arg(long, value_name = "BITS")]
    pub fixed_settlement_bits: Option<u32>,
    /// The largest alphabet that a claim may use [default: 256].
    #[arg(long, value_name = "N")]
    pub max_symbols: Option<u32>,
}

impl PolicyArgs {
    /// The policy in the form of a registration request.
    pub fn to_wire(&self) -> proto::HoldoutPolicy {
        proto::HoldoutPolicy {
            answer_share_micros: self.answer_share,
            answer_budget_microbits: self.answer_budget_bits,
            principal_answer_budget_microbits: self.principal_answer_budget_bits,
            sealed_budget_microbits: self.sealed_budget_bits,
            principal_sealed_budget_microbits: self.principal_sealed_budget_bits,
            fixed_settlement_bits: self.fixed_settlement_bits,
            levels: self.levels,
            alpha_micros: self.alpha,
            multiplicity: self.multiplicity.clone().unwrap_or_default(),
            max_symbols: self.max_symbols,
            ..Default::default()
        }
    }
}

/// A policy on the wire in the kernel's form, without the prices of answers, which no forecast needs. `None` if this
/// release does not know one of its numbers or words.
pub fn asked(policy: &proto::HoldoutPolicy) -> Option<AskedPolicy> {
    let bits = |bits: u32| u8::try_from(bits).ok();
    let settlement_prices = match (policy.fixed_settlement_bits, policy.learned_settlement_bits) {
        (Some(fixed), _) => Some(SettlementPrices::Fixed {
            certified_bits: bits(fixed)?,
        }),
        (None, Some(learned)) => Some(SettlementPrices::Learned {
            c0_bits: bits(learned)?,
        }),
        (None, None) => None,
    };
    Some(AskedPolicy {
        answer_share_micros: policy.answer_share_micros,
        answer_budget: policy.answer_budget_microbits.map(MicroBits),
        principal_answer_budget: policy.principal_answer_budget_microbits.map(MicroBits),
        sealed_budget: policy.sealed_budget_microbits.map(MicroBits),
        principal_sealed_budget: policy.principal_sealed_budget_microbits.map(MicroBits),
        settlement_prices,
        levels: bits(policy.levels)?,
        level_width: policy.level_width_microbits.map(MicroBits),
        alpha_micros: policy.alpha_micros,
        multiplicity: match policy.multiplicity.as_str() {
            "" => Multiplicity::default(),
            name => Multiplicity::parse(name)?,
        },
        max_symbols: policy.max_symbols,
        ..AskedPolicy::default()
    })
}
