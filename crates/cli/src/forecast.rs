//! What a holdout can still certify, as numbers and in words: the planner's advice to a custodian.
//!
//! Owns sentences and the steps at which a forecast is shown; the kernel's planner computes the numbers. Nothing
//! here decides anything.

use evidenceos_kernel::{
    bits::MicroBits,
    evidence::BetTable,
    holdout::{CertificationsLeft, Policy, Record},
    planner::{DEFAULT_POWER, accuracy_certified_with_power},
};
use evidenceos_proto as proto;
use serde_json::{Value, json};

use crate::{
    budgets, null_spec,
    output::{bits, grouped},
};

/// How many further failures a sentence assumes.
const FAILURES: u64 = 1_000;

/// A sealed part and the verdicts so far: all that a forecast depends on.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// The bets against the null.
    pub bets: BetTable,
    /// Units of the sealed part.
    pub sealed_units: u64,
    /// Prices, α and budgets.
    pub policy: Policy,
    /// The verdicts so far.
    pub record: Record,
}

/// What the next claim needs after some verdicts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Further claims that were judged: all failed, or all certified.
    pub verdicts: u64,
    /// Units of the sealed part.
    pub units: u64,
    /// The evidence that it takes, in microbits.
    pub threshold: MicroBits,
    /// The fewest units that must be right; `None`: not even a perfect prediction is certified.
    pub fewest_right: Option<u64>,
    /// The accuracy that is certified with 90 % probability; `None` as for `fewest_right`.
    pub accuracy: Option<f64>,
}

impl Step {
    /// The share of the units that must be right, from 0 to 1.
    pub fn share_right(&self) -> Option<f64> {
        let right = self.fewest_right?;
        Some(right as f64 / self.units.max(1) as f64)
    }
}

impl Outlook {
    /// The outlook from a holdout's public facts; `None` if the server left some out, or uses words of a later
    /// release.
    pub fn of(holdout: &proto::Holdout) -> Option<Self> {
        let (policy, spec) = (holdout.policy.as_ref()?, holdout.null_spec.as_ref()?);
        let asked = budgets::asked(policy)?;
        // A default in place of a missing value would give another holdout's forecast.
        asked.alpha_micros.and(asked.sealed_budget)?;
        let spec = null_spec::parse(spec)?;
        let (policy, _) = asked.for_units(&spec, holdout.sealed_units).ok()?;
        Some(Self {
            bets: null_spec::bets_of(&spec).clone(),
            sealed_units: holdout.sealed_units,
            policy,
            record: Record {
                k: MicroBits(holdout.sealed_charged_microbits),
                settled: holdout.settled,
                certified: holdout.certified.min(holdout.settled),
            },
        })
    }

    /// The needs of the next claim after `verdicts` that led to `record`.
    pub fn step(&self, verdicts: u64, record: Record) -> Step {
        let threshold = record.threshold(&self.policy);
        let units = self.sealed_units;
        let power = DEFAULT_POWER;
        Step {
            verdicts,
            units,
            threshold,
            fewest_right: self.bets.fewest_right(units, threshold),
            accuracy: accuracy_certified_with_power(&self.bets, units, threshold, power),
        }
    }

    /// How many certifications in a row fit: for all submitters, and for a new one.
    pub fn certifications_left(&self) -> CertificationsLeft {
        let reach = self.bets.reach(self.sealed_units);
        let left = self.policy.sealed_budget.saturating_sub(self.record.k);
        let fence = self.policy.principal_sealed_budget.unwrap_or(left);
        self.record
            .certifications_left(&self.policy, reach, left, fence)
    }

    /// The records after 0, 1, 2 … further verdicts, while the budget carries one more claim; at most `most` of them.
    pub fn records(
        &self,
        are_certified: bool,
        most: u64,
    ) -> impl Iterator<Item = (u64, Record)> + use<'_> {
        let next = move |record: &Record| Some(record.after(&self.policy, are_certified));
        std::iter::successors(Some(self.record), next)
            .take_while(|record| record.carries_another(&self.policy, self.policy.sealed_budget))
            .zip(0..=most)
            .map(|(record, verdicts)| (verdicts, record))
    }
}

/// The accuracy that would be certified next on a holdout, now and after failures.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    units: u64,
    /// The needs of the next claim.
    now: Step,
    /// Its needs after further failed claims: as many as the budget carries, up to a limit.
    later: Option<Step>,
}

impl Forecast {
    /// The forecast from a holdout's public facts; `None` as for [`Outlook::of`].
    pub fn of(holdout: &proto::Holdout) -> Option<Self> {
        Outlook::of(holdout).map(|outlook| Self::at(&outlook))
    }

    /// The forecast for an outlook.
    pub fn at(outlook: &Outlook) -> Self {
        let failed = outlook.records(false, FAILURES).last();
        Self {
            units: outlook.sealed_units,
            now: outlook.step(0, outlook.record),
            later: failed.map(|(failures, record)| outlook.step(failures, record)),
        }
    }

    /// The forecast for machines: accuracies as floats, since they are advice.
    pub fn json(&self) -> Value {
        json!({
            "sealed_units": self.units,
            "power": DEFAULT_POWER,
            "accuracy_now": self.now.accuracy,
            "failures": self.later.map_or(0, |later| later.verdicts),
            "accuracy_after_failures": self.later.and_then(|later| later.accuracy),
        })
    }

    /// The forecast as sentences for a terminal.
    pub fn text(&self) -> String {
        let units = grouped(self.units);
        let Some(accuracy) = self.now.accuracy else {
            return format!(
                "on these {units} sealed units not even a perfect prediction could be certified"
            );
        };
        let now = format!(
            "on these {units} sealed units an accuracy of {:.1} % would be certified with 90 % probability",
            100.0 * accuracy
        );
        let Some(later) = self.later else {
            return format!("{now}; the sealed budget carries no further claim");
        };
        let failures = grouped(later.verdicts);
        let then = match later.accuracy {
            Some(accuracy) => format!(
                "after {failures} more failed claims, {:.1} %",
                100.0 * accuracy
            ),
            None => format!("after {failures} more failed claims, none would be"),
        };
        let end = if later.verdicts < FAILURES {
            ", and one more claim spends the sealed budget"
        } else {
            ""
        };
        format!("{now}; {then}{end}")
    }
}

/// How far a judged accuracy stayed below the threshold, in words. A claim without a certificate may be told this
/// without a look at secrets.
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
        let later = forecast.later.expect("the budget carries claims");
        assert_eq!((forecast.units, later.verdicts), (1_000, 1_000));
        let (now, then) = (forecast.now.accuracy, later.accuracy);
        let (now, then) = now.zip(then).expect("in reach");
        assert!(0.58 < now && now < then && then < 0.65, "{now} {then}");
        assert!(forecast.text().contains("1,000 more failed claims"));
    }

    #[test]
    fn a_small_budget_ends_before_the_forecast_does() {
        let mut small = holdout();
        if let Some(policy) = &mut small.policy {
            policy.sealed_budget_microbits = Some(9_000_000);
        }
        let forecast = Forecast::of(&small).expect("complete");
        let later = forecast.later.expect("the budget carries claims");
        assert!(later.verdicts < 200, "{forecast:?}");
        assert!(forecast.text().contains("spends the sealed budget"));
        assert_eq!(Forecast::of(&proto::Holdout::default()), None);
    }

    #[test]
    fn a_forecast_counts_certifications_as_the_server_does() {
        let outlook = Outlook::of(&holdout()).expect("complete");
        let left = outlook.certifications_left();
        // Without a fence on the wire a quarter of the budget is proposed: 16 bits.
        assert!(left.own < left.all, "{left:?}");
        let certified = outlook.records(true, 1_000).count() as u32;
        assert!(left.all <= certified, "{left:?} {certified}");
    }
}
