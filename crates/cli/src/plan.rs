//! `evidenceos plan`: what a holdout could certify, before it is registered. Calls no server.
//!
//! Owns the steps that the table shows. The kernel has the rules, the same as for a registration and a settlement.

use std::path::PathBuf;

use clap::Args;
use evidenceos_kernel::{
    holdout::{MAX_ITEMS, MOST_CERTIFICATIONS, Record},
    split,
};
use serde_json::{Value, json};

use crate::{
    budgets::{self, PolicyArgs},
    chart::{self, Panel, Point},
    error::CliError,
    forecast::{Outlook, Step},
    items::Columns,
    labels::Labels,
    null_spec::{self, NullArgs},
    output::{Output, bits, facts, grouped, progress, table},
    render::decimal,
};

/// The most failed claims that a plan looks ahead: at a claim a minute, two months.
const MOST_FAILURES: u64 = 100_000;

/// The size and policy of a planned holdout.
#[derive(Debug, Args)]
#[command(
    after_help = "Give the label file, or the number of items. It prints the least accuracy that is certified with 90 % probability.\n\n\
    Examples:\n  \
    evidenceos plan --items 440 --p0 0.8\n  \
    evidenceos plan labels.csv --p0 0.8 --multiplicity fwer --svg plan.svg\n  \
    evidenceos plan --items 10000 --units 2500 --p0 0.5 --sealed-budget-bits 20 --json"
)]
pub struct PlanArgs {
    /// The label file, as for `holdout add`.
    #[arg(conflicts_with_all = ["items", "units"])]
    labels: Option<PathBuf>,
    /// The number of items.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_ITEMS))]
    items: Option<u64>,
    /// The number of units, if several items are one unit [default: the number of items].
    #[arg(long, value_name = "N", requires = "items", value_parser = clap::value_parser!(u64).range(1..=MAX_ITEMS))]
    units: Option<u64>,
    #[command(flatten)]
    columns: Columns,
    /// The column that tells which items belong together [default: `unit`].
    #[arg(long, value_name = "NAME")]
    unit_column: Option<String>,
    #[command(flatten)]
    null_spec: NullArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Write the plot to this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl PlanArgs {
    /// Runs the command and returns what it prints.
    pub fn run(self) -> Result<Output, CliError> {
        let (items, units) = self.size()?;
        let plan = Plan::new(items, units, &self.null_spec, &self.policy)?;
        let panels = plan.panels();
        let mut json = plan.json();
        let mut text = format!("{}\n\n{}", plan.text(), chart::blocks(&panels, plan.p0()));
        if let Some(path) = &self.svg {
            let title = format!(
                "Least accuracy that is certified: {} sealed units, p0 = {}",
                grouped(plan.outlook.sealed_units),
                decimal(plan.p0_micros)
            );
            let drawn = chart::svg(&title, &panels, plan.p0());
            std::fs::write(path, drawn).map_err(CliError::file(path))?;
            text = format!("{text}\n\nplot: {}", path.display());
            json["svg"] = json!(path);
        }
        Ok(Output::new(json, text))
    }

    /// The numbers of items and of units.
    fn size(&self) -> Result<(u64, u64), CliError> {
        let Some(path) = &self.labels else {
            let items = self.items.ok_or_else(|| {
                CliError::Usage(
                    "give the label file, or the number of items with --items N".to_owned(),
                )
            })?;
            let units = self.units.unwrap_or(items);
            if units > items {
                return Err(CliError::Usage(format!(
                    "--units {units} is more than --items {items}: a unit has at least one item"
                )));
            }
            return Ok((items, units));
        };
        let (labels, notes) = Labels::read(path, &self.columns, self.unit_column.as_deref())?;
        notes.iter().for_each(|note| progress(note));
        Ok((labels.labels.len() as u64, labels.distinct_units()))
    }
}

/// A planned holdout, with what it could certify.
pub struct Plan {
    items: u64,
    units: u64,
    answer_units: u64,
    null_spec: String,
    p0_micros: u32,
    has_own_budget: bool,
    warnings: Vec<String>,
    outlook: Outlook,
    failures: Vec<(u64, Record)>,
    certifications: Vec<(u64, Record)>,
}

impl Plan {
    /// The plan for a number of items in a number of units.
    ///
    /// # Errors
    /// [`CliError::Usage`] names the argument that a registration would refuse.
    pub fn new(
        items: u64,
        units: u64,
        null_args: &NullArgs,
        policy_args: &PolicyArgs,
    ) -> Result<Self, CliError> {
        let on_wire = null_args.to_wire()?;
        let spec = null_spec::parse(&on_wire)
            .ok_or_else(|| CliError::Usage("--p0 and --strategy are out of range".to_owned()))?;
        let broken = |error: evidenceos_kernel::holdout::PolicyError| {
            CliError::Usage(format!(
                "--{}: {}",
                error.field.replace('_', "-"),
                error.rule
            ))
        };
        let asked = budgets::asked(&policy_args.to_wire())
            .ok_or_else(|| CliError::Usage("--levels and prices are below 256".to_owned()))?;
        let share = asked.answer_share_micros().map_err(broken)?;
        let answer_units = split::answer_units(units, share);
        let sealed_units = units - answer_units;
        let (policy, warnings) = asked.for_units(&spec, sealed_units).map_err(broken)?;
        let outlook = Outlook {
            bets: null_spec::bets_of(&spec).clone(),
            sealed_units,
            policy,
            record: Record::default(),
        };
        let most = u64::from(outlook.certifications_left().all);
        Ok(Self {
            items,
            units,
            answer_units,
            null_spec: null_spec::to_text(&on_wire),
            p0_micros: on_wire.p0_micros,
            has_own_budget: policy_args.sealed_budget_bits.is_some(),
            warnings,
            failures: outlook.records(false, MOST_FAILURES).collect(),
            // The last certification that fits comes after most − 1 others.
            certifications: outlook.records(true, most.saturating_sub(1)).collect(),
            outlook,
        })
    }

    fn p0(&self) -> f64 {
        f64::from(self.p0_micros) / 1e6
    }

    /// The rows of the table: now, after 10, 100 … failures, and after 1, 2, 5, 10 … certifications.
    fn steps(&self) -> Vec<(String, Step)> {
        let at = |(verdicts, record): &(u64, Record)| self.outlook.step(*verdicts, *record);
        let rows = |records: &[(u64, Record)], is_shown: fn(u64) -> bool, word: &str| {
            let last = records.len().saturating_sub(1);
            let shown = records.iter().enumerate();
            let shown = shown
                .filter(|(n, (verdicts, _))| *verdicts > 0 && (*n == last || is_shown(*verdicts)));
            let named = shown.map(|(_, record)| {
                let plural = if record.0 == 1 { "" } else { "s" };
                (
                    format!("after {} {word}{plural}", grouped(record.0)),
                    at(record),
                )
            });
            named.collect::<Vec<_>>()
        };
        let mut steps = vec![("now".to_owned(), at(&(0, self.outlook.record)))];
        steps.extend(rows(
            &self.failures,
            |n| n >= 10 && is_power_of_ten(n),
            "failed claim",
        ));
        steps.extend(rows(&self.certifications, is_round, "certified claim"));
        steps
    }

    /// The plan for users, without the plot.
    pub fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self.steps().iter().map(row).collect();
        let headers = [
            "to be certified",
            "evidence>",
            "units right>",
            "share right>",
            "least accuracy>",
        ];
        let warnings = self.warnings.iter();
        let warnings: String = warnings
            .map(|warning| format!("\nwarning: {warning}"))
            .collect();
        let of_units = if self.units < self.items {
            "\nThe accuracies assume that the items of a unit are right or wrong together. If they are not, less is needed."
        } else {
            ""
        };
        let table = table(&headers, &rows);
        format!("{}\n\n{table}{of_units}{warnings}", self.head())
    }

    fn head(&self) -> String {
        let policy = &self.outlook.policy;
        let left = self.outlook.certifications_left();
        let budget = if self.has_own_budget {
            ""
        } else {
            " (proposed)"
        };
        let fence = policy.principal_sealed_budget.unwrap_or_default();
        facts(&[
            (
                "items",
                format!("{} in {} units", grouped(self.items), grouped(self.units)),
            ),
            (
                "units",
                format!(
                    "{} answer questions, {} are sealed",
                    grouped(self.answer_units),
                    grouped(self.outlook.sealed_units)
                ),
            ),
            ("null", self.null_spec.clone()),
            (
                "alpha",
                format!(
                    "{} ({})",
                    decimal(policy.alpha_micros),
                    policy.multiplicity.as_str()
                ),
            ),
            (
                "sealed budget",
                format!(
                    "{} bits{budget}; for each submitter {} bits",
                    bits(policy.sealed_budget.get()),
                    bits(fence.get())
                ),
            ),
            (
                "certifications in a row",
                format!(
                    "{} fit; of one submitter {}",
                    or_more(left.all),
                    or_more(left.own)
                ),
            ),
            ("failed claims in a row", self.failures_that_fit()),
        ])
    }

    fn failures_that_fit(&self) -> String {
        match self.failures.last() {
            None => "none fits".to_owned(),
            Some((MOST_FAILURES, _)) => format!("{} or more fit", grouped(MOST_FAILURES)),
            Some((before, _)) => format!("{} fit", grouped(before + 1)),
        }
    }

    /// The plan for machines: accuracies as floats, since they are advice.
    pub fn json(&self) -> Value {
        let policy = &self.outlook.policy;
        let left = self.outlook.certifications_left();
        let step = |(at, step): &(String, Step)| {
            json!({
                "at": at,
                "verdicts": step.verdicts,
                "threshold_microbits": step.threshold.get(),
                "fewest_right": step.fewest_right,
                "accuracy": step.accuracy,
            })
        };
        json!({
            "items": self.items,
            "units": self.units,
            "answer_units": self.answer_units,
            "sealed_units": self.outlook.sealed_units,
            "p0_micros": self.p0_micros,
            "alpha_micros": policy.alpha_micros,
            "multiplicity": policy.multiplicity.as_str(),
            "sealed_budget_microbits": policy.sealed_budget.get(),
            "principal_sealed_budget_microbits": policy.principal_sealed_budget.map(|fence| fence.get()),
            "certifications_left": left.all,
            "own_certifications_left": left.own,
            "power": evidenceos_kernel::planner::DEFAULT_POWER,
            "steps": self.steps().iter().map(step).collect::<Vec<_>>(),
            "warnings": self.warnings,
        })
    }

    /// The two curves: after failed claims, on a logarithmic axis, and after certified claims.
    fn panels(&self) -> [Panel; 2] {
        let at = |(verdicts, record): &(u64, Record)| Point {
            x: *verdicts,
            y: self.outlook.step(*verdicts, *record).accuracy,
        };
        [
            Panel {
                title: "after failed claims",
                is_logarithmic: true,
                points: thinned(&self.failures, true).map(at).collect(),
            },
            Panel {
                title: "after certified claims",
                is_logarithmic: false,
                points: thinned(&self.certifications, false).map(at).collect(),
            },
        ]
    }
}

fn row((at, step): &(String, Step)) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let none = || "out of reach".to_owned();
    vec![
        at.clone(),
        format!("{} bits", bits(step.threshold.get())),
        step.fewest_right.map_or_else(none, grouped),
        step.share_right().map_or_else(String::new, percent),
        step.accuracy.map_or_else(String::new, percent),
    ]
}

fn or_more(count: u32) -> String {
    match count {
        0 => "none".to_owned(),
        MOST_CERTIFICATIONS => format!("{} or more", grouped(MOST_CERTIFICATIONS.into())),
        count => grouped(count.into()),
    }
}

fn is_power_of_ten(n: u64) -> bool {
    n > 0 && 10u64.pow(n.ilog10()) == n
}

/// 1, 2, 5, 10, 20, 50 …
fn is_round(n: u64) -> bool {
    n > 0 && matches!(n as f64 / 10f64.powi(n.ilog10() as i32), 1.0 | 2.0 | 5.0)
}

/// At most about a hundred of the records, evenly spaced on their axis.
fn thinned(
    records: &[(u64, Record)],
    is_logarithmic: bool,
) -> impl Iterator<Item = &(u64, Record)> {
    let last = records.len().saturating_sub(1);
    let steps = 96usize;
    let mut shown: Vec<usize> = (0..=steps)
        .map(|n| {
            let share = n as f64 / steps as f64;
            if is_logarithmic {
                ((last as f64 + 1.0).powf(share) - 1.0).round() as usize
            } else {
                (last as f64 * share).round() as usize
            }
        })
        .collect();
    shown.dedup();
    shown.into_iter().filter_map(|n| records.get(n))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        plan: PlanArgs,
    }

    fn plan(arguments: &str) -> Plan {
        let words = ["plan"].into_iter().chain(arguments.split_whitespace());
        let args = Alone::try_parse_from(words).expect("understood").plan;
        let (items, units) = args.size().expect("a size");
        Plan::new(items, units, &args.null_spec, &args.policy).expect("a plan")
    }

    #[test]
    fn a_plan_has_the_numbers_of_the_rules() {
        let plan = plan("--items 1000 --p0 0.5 --answer-share 0");
        let json = plan.json();
        assert_eq!(json["sealed_units"], 1_000);
        // 4 bits for the certificate and log2(1/0.05), rounded up.
        assert_eq!(json["steps"][0]["threshold_microbits"], 8_321_929);
        let needed = json["steps"][0]["fewest_right"].as_u64();
        assert!(
            needed.is_some_and(|needed| (550..620).contains(&needed)),
            "{json}"
        );
        let rows: Vec<&str> = json["steps"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|step| step["at"].as_str())
            .collect();
        for row in ["now", "after 10 failed claims", "after 1 certified claim"] {
            assert!(rows.contains(&row), "{rows:?}");
        }
    }

    #[test]
    fn less_is_certified_of_fewer_units_and_under_a_stricter_alpha() {
        let accuracy = |arguments: &str| {
            let step = plan(arguments).steps()[0].1;
            step.accuracy.expect("in reach")
        };
        let base = accuracy("--items 1000 --p0 0.5");
        assert!(accuracy("--items 1000 --units 300 --p0 0.5") > base);
        assert!(accuracy("--items 1000 --p0 0.5 --multiplicity fwer") > base);
        assert!(accuracy("--items 1000 --p0 0.5 --alpha 0.01") > base);
        assert!(
            plan("--items 1000 --units 300 --p0 0.5")
                .text()
                .contains("items of a unit")
        );
    }

    #[test]
    fn what_cannot_be_certified_is_said() {
        let small = plan("--items 5 --p0 0.5");
        let text = small.text();
        assert!(text.contains("out of reach"), "{text}");
        assert!(text.contains("warning: "), "{text}");
        assert!(text.contains("none fit"), "{text}");
    }

    #[test]
    fn curves_have_few_points_and_keep_their_ends() {
        let plan = plan("--items 10000 --p0 0.5");
        for panel in plan.panels() {
            let (first, last) = (panel.points.first(), panel.points.last());
            assert_eq!(first.map(|point| point.x), Some(0));
            assert!(last.is_some_and(|point| point.x > 0));
            assert!(panel.points.len() <= 97);
        }
        assert!(is_round(500) && !is_round(300) && !is_round(0));
    }
}
