//! What a holdout can still certify, in words: the planner's advice for the one who registers it.
//!
//! Owns sentences; the numbers are the kernel's planner's. Nothing here decides anything.

use evidenceos_kernel::{
    bits::MicroBits,
    planner::{DEFAULT_POWER, accuracy_certified_with_power},
    price::{DEFAULT_C0_BITS, Multiplicity, SettlementPrices, threshold},
};
use evidenceos_proto as proto;
use serde_json::{Value, json};

use crate::{
    null_spec,
    output::{bits, grouped},
};

/// How many further failures the second forecast assumes.
const FAILURES: u64 = 1_000;

/// What accuracy would be certified next on a holdout, and after failures.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Units of the sealed part.
    pub units: u64,
    /// The accuracy that would be certified next with 90 % probability; none: not even a perfect prediction.
    pub accuracy_now: Option<f64>,
    /// The same after further failed claims.
    pub accuracy_after_failures: Option<f64>,
    /// How many further failures the sealed budget carries, if fewer than the forecast assumes.
    pub failures_left: u64,
}

impl Forecast {
    /// Forecasts from what is public of a holdout; `None` where the server said less than that.
    pub fn of(holdout: &proto::Holdout) -> Option<Self> {
        let (policy, spec) = (holdout.policy.as_ref()?, holdout.null_spec.as_ref()?);
        let bets = null_spec::bets_of(spec)?;
        let units = holdout.sealed_units;
        let alpha_micros = policy.alpha_micros?;
        let prices = prices_of(policy);
        let multiplicity = Multiplicity::parse(&policy.multiplicity)?;
        let accuracy = |k, settled| {
            let c = prices.quote(settled, holdout.certified).certified;
            // What counts is the certification that the next claim would be.
            let divisor = multiplicity.divisor(holdout.certified + 1);
            accuracy_certified_with_power(
                &bets,
                units,
                threshold(k, c, alpha_micros, divisor),
                DEFAULT_POWER,
            )
        };
        let budget = MicroBits(policy.sealed_budget_microbits?);
        let k = MicroBits(holdout.sealed_charged_microbits);
        let (mut k_then, mut failures) = (k, 0);
        while failures < FAILURES {
            let settled = holdout.settled + failures;
            // A claim is admitted by its worst case, and charged less for a verdict.
            let worst = prices.worst_case(settled, holdout.certified, 0, 0);
            if k_then.saturating_add(worst) > budget {
                break;
            }
            k_then = k_then.saturating_add(prices.quote(settled, holdout.certified).not_certified);
            failures += 1;
        }
        Some(Self {
            units,
            accuracy_now: accuracy(k, holdout.settled),
            accuracy_after_failures: accuracy(k_then, holdout.settled + failures),
            failures_left: failures,
        })
    }

    /// For machines: accuracies as floats, since they are advice.
    pub fn json(&self) -> Value {
        json!({
            "sealed_units": self.units,
            "power": DEFAULT_POWER,
            "accuracy_now": self.accuracy_now,
            "failures": self.failures_left,
            "accuracy_after_failures": self.accuracy_after_failures,
        })
    }

    /// The forecast as sentences for a terminal.
    pub fn text(&self) -> String {
        let units = grouped(self.units);
        let now = match self.accuracy_now {
            Some(accuracy) => format!(
                "on these {units} sealed units an accuracy of {:.1} % would be certified with 90 % probability",
                100.0 * accuracy
            ),
            None => format!(
                "on these {units} sealed units not even a perfect prediction could be certified"
            ),
        };
        let failures = grouped(self.failures_left);
        let then = match (self.failures_left, self.accuracy_after_failures) {
            (0, _) => "; the sealed budget carries no further claim".to_owned(),
            (FAILURES, Some(accuracy)) => {
                format!(
                    "; after {failures} more failed claims, of {:.1} %",
                    100.0 * accuracy
                )
            }
            (_, Some(accuracy)) => format!(
                "; after {failures} more failed claims, of {:.1} %, and then the sealed budget is used up",
                100.0 * accuracy
            ),
            (_, None) => format!("; after {failures} more failed claims, none would be"),
        };
        format!("{now}{then}")
    }
}

/// How far a judged accuracy stayed below, in words: what a claim that was not certified can be told without a look at
/// anything secret.
pub fn shortfall(
    threshold_microbits: u64,
    items_needed: Option<u64>,
    accuracy: f64,
    units: u64,
) -> String {
    let threshold = bits(threshold_microbits);
    match items_needed {
        Some(needed) if needed > units => format!(
            "a model of accuracy {:.1} % would need {} sealed units to reach {threshold} bits with 90 % probability; there are {}",
            100.0 * accuracy,
            grouped(needed),
            grouped(units)
        ),
        Some(_) => format!(
            "a model of accuracy {:.1} % had a fair chance of {threshold} bits here",
            100.0 * accuracy
        ),
        None => format!(
            "a model of accuracy {:.1} % is no better than the null: no number of items would certify it",
            100.0 * accuracy
        ),
    }
}

fn prices_of(policy: &proto::HoldoutPolicy) -> SettlementPrices {
    let as_u8 = |bits: u32| u8::try_from(bits).unwrap_or(DEFAULT_C0_BITS);
    match policy.fixed_settlement_bits {
        Some(bits) => SettlementPrices::Fixed {
            certified_bits: as_u8(bits),
        },
        None => SettlementPrices::Learned {
            c0_bits: policy
                .learned_settlement_bits
                .map_or(DEFAULT_C0_BITS, as_u8),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holdout() -> proto::Holdout {
        proto::Holdout {
            items: 1_250,
            units: 1_250,
            sealed_units: 1_000,
            policy: Some(proto::HoldoutPolicy {
                answer_share_micros: Some(200_000),
                sealed_budget_microbits: Some(64_000_000),
                alpha_micros: Some(50_000),
                multiplicity: "each".to_owned(),
                ..Default::default()
            }),
            null_spec: Some(proto::NullSpec {
                kind: "accuracy".to_owned(),
                p0_micros: 500_000,
                strategy: "grid".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn failures_make_certification_slowly_harder() {
        let forecast = Forecast::of(&holdout()).expect("complete");
        assert_eq!((forecast.units, forecast.failures_left), (1_000, 1_000));
        let now = forecast.accuracy_now.expect("in reach");
        let later = forecast.accuracy_after_failures.expect("in reach");
        assert!(0.58 < now && now < later && later < 0.65, "{now} {later}");
        assert!(forecast.text().contains("1,000 more failed claims"));
    }

    #[test]
    fn a_small_budget_ends_before_the_forecast_does() {
        let mut small = holdout();
        if let Some(policy) = &mut small.policy {
            policy.sealed_budget_microbits = Some(9_000_000);
        }
        let forecast = Forecast::of(&small).expect("complete");
        assert!(forecast.failures_left < 200, "{forecast:?}");
        assert!(forecast.text().contains("used up"));
        assert_eq!(Forecast::of(&proto::Holdout::default()), None);
    }
}
