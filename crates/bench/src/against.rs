//! Compares two builds: the same load on a daemon of each, in turns.
//!
//! Both daemons run all the time, so the cost of an idle one falls on both. Turns are short, so a
//! disturbance of the machine that lasts a minute also falls on both. The result is the median of
//! the turns' ratios, each of two figures that were taken one right after the other.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::{
    charges::{Charges, Desk},
    child::{Program, Usage},
    error::{BenchError, failed},
    gate::{Asking, Calls, Gate},
    load::{Figures, HealthP95, Load, Round},
    measure::{LIVES, Parts, Plan, enough_claims, say},
    report::Report,
    stats::quartiles,
};

/// The factor by which a turn is shorter than other rounds.
const SHORTER: u32 = 4;

/// The better direction of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    /// More, as of a rate.
    More,
    /// Less, as of a time.
    Less,
}

/// One figure of two builds.
#[derive(Debug)]
pub struct Beside {
    /// The figure's name, with its unit.
    pub what: String,
    better: Better,
    /// This build's and the other one's figure, turn by turn.
    turns: Vec<[f64; 2]>,
}

impl Beside {
    fn new<T>(what: String, better: Better, turns: &[[T; 2]], figure: impl Fn(&T) -> f64) -> Self {
        let turns = turns.iter().map(|turn| turn.each_ref().map(&figure));
        Self {
            what,
            better,
            turns: turns.collect(),
        }
    }

    /// This build's figure relative to the other one's, above 1 if better: median over the turns.
    pub fn ratio(&self) -> f64 {
        self.ratios()[1]
    }

    /// Quartiles of the turns' ratios: above 1 if this build is the better one.
    fn ratios(&self) -> [f64; 3] {
        let ratio = |[this, other]: &[f64; 2]| match self.better {
            // Nothing against nothing counts as equal.
            _ if this == other => 1.0,
            Better::More => this / other,
            Better::Less => other / this,
        };
        quartiles(self.turns.iter().map(ratio).collect())
    }

    /// Medians over the turns, of this build and of the other one.
    fn medians(&self) -> [f64; 2] {
        [0, 1].map(|which| quartiles(self.turns.iter().map(|turn| turn[which]).collect())[1])
    }

    /// The result as text for a person.
    pub fn found(&self) -> String {
        let [low, ratio, high] = self.ratios();
        let [this, other] = self.medians().map(short);
        format!("{ratio:.2} × (half of {low:.2} to {high:.2}; {this} against {other})")
    }

    /// The result as JSON for a machine.
    pub fn to_json(&self) -> Value {
        json!({
            "what": self.what,
            "better": if self.better == Better::More { "more" } else { "less" },
            "ratio_quartiles": self.ratios(),
            "this_and_other": self.turns,
        })
    }
}

/// A figure with as many digits as a reader needs.
fn short(figure: f64) -> String {
    let places = match figure {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{figure:.places$}")
}

/// Measures daemons of two builds, in turns.
///
/// # Errors
/// [`BenchError`] if a daemon does not start, or refuses a call.
pub async fn measure(plan: &Plan<'_>, other: &Program, parts: Parts) -> Result<Report, BenchError> {
    let mut report = plan.machine_alone()?;
    let builds = Builds {
        plan,
        programs: [&plan.program, other],
    };
    if parts == Parts::All {
        report.beside.extend(builds.lives().await?);
    }
    if matches!(parts, Parts::All | Parts::Charges) {
        let mut accounts = vec![1, plan.accounts];
        accounts.dedup();
        for accounts in accounts {
            report.beside.extend(builds.charges(accounts).await?);
        }
    }
    if matches!(parts, Parts::All | Parts::Gate) {
        report.beside.extend(builds.gate().await?);
    }
    Ok(report)
}

/// This build and the other one.
struct Builds<'p> {
    plan: &'p Plan<'p>,
    programs: [&'p Program; 2],
}

impl Builds<'_> {
    fn turns(&self) -> u32 {
        2 * SHORTER * self.plan.alternations
    }

    fn turn(&self) -> Duration {
        self.plan.round / SHORTER
    }

    /// Makes one value for each build, in a directory of its own.
    async fn each<T>(
        &self,
        name: &str,
        open: impl AsyncFn(&Program, &std::path::Path) -> Result<T, BenchError>,
    ) -> Result<[T; 2], BenchError> {
        let [this, other] = self.programs;
        let scratch = self.plan.scratch;
        Ok([
            open(this, &scratch.join(format!("this-{name}"))).await?,
            open(other, &scratch.join(format!("other-{name}"))).await?,
        ])
    }

    /// Takes a figure of each build, this many times.
    async fn in_turns<T>(
        &self,
        what: &str,
        turns: u32,
        mut figure: impl AsyncFnMut(usize) -> Result<T, BenchError>,
    ) -> Result<Vec<[T; 2]>, BenchError> {
        say(what);
        let mut taken = Vec::new();
        for turn in 0..turns {
            let mut next = async |which| {
                tokio::time::sleep(self.plan.rest / (2 * SHORTER)).await;
                figure(which).await
            };
            // The build that is second in one turn is first in the next: disks slow down within a
            // turn.
            taken.push(if turn % 2 == 0 {
                let this = next(0).await?;
                [this, next(1).await?]
            } else {
                let other = next(1).await?;
                [next(0).await?, other]
            });
        }
        Ok(taken)
    }

    /// Lives of claims; then, on the same daemons, Health, starts after a kill, and memory.
    async fn lives(&self) -> Result<Vec<Beside>, BenchError> {
        let mut daemons = self.each("lives", Program::start).await?;
        let loads = [
            Load::prepare(&daemons[0]).await?,
            Load::prepare(&daemons[1]).await?,
        ];
        let mut found = Vec::new();
        for (concurrency, modules) in LIVES {
            let what = format!("concurrency {concurrency}, {modules} modules");
            let lives = async |which: usize| {
                let before = daemons[which].usage().await?;
                let round = Round::Time(self.turn());
                let figures = loads[which].round(concurrency, modules, round).await?;
                Ok((figures, daemons[which].usage().await?.since(&before)))
            };
            let turns = self
                .in_turns(&format!("lifecycles, {what}"), self.turns(), lives)
                .await?;
            found.extend(of_lives(&what, &turns));
        }
        let health = async |which: usize| {
            let daemon = &daemons[which];
            loads[which].health_beside_writer(daemon, self.turn()).await
        };
        let turns = self
            .in_turns("Health beside a busy writer", self.turns(), health)
            .await?;
        found.extend(of_health(&turns));
        let memory = [
            daemons[0].usage().await?.rss_bytes,
            daemons[1].usage().await?.rss_bytes,
        ];
        found.push(of_memory("the lifecycles", memory));
        let kill = async |which: usize| daemons[which].kill_and_restart(&loads[which]).await;
        let kills = 2 * self.plan.alternations;
        let turns = self
            .in_turns("restart after SIGKILL under load", kills, kill)
            .await?;
        found.push(Beside::new(
            "ms from a start after SIGKILL to serving".to_owned(),
            Better::Less,
            &turns,
            |ms| *ms,
        ));
        for daemon in daemons {
            daemon.stop().await?;
        }
        Ok(found)
    }

    /// Grants and charged runs.
    async fn charges(&self, accounts: u64) -> Result<Vec<Beside>, BenchError> {
        let open = async |program: &Program, directory: &std::path::Path| {
            Ok(Arc::new(Desk::open(program, directory, accounts).await?))
        };
        let desks = self.each(&format!("charges-{accounts}"), open).await?;
        let mut found = Vec::new();
        // accounts.json is behind by up to a second, so these turns are longer, and fewer.
        let (turn, turns) = (2 * self.turn(), self.turns() / 2);
        for concurrency in [1, 64] {
            let what = format!("{accounts} accounts, concurrency {concurrency}");
            let charges = async |which: usize| {
                let desk: &Arc<Desk> = &desks[which];
                desk.seal(enough_claims(concurrency, turn)).await?;
                desk.round(concurrency, turn).await
            };
            let turns = self
                .in_turns(&format!("charges, {what}"), turns, charges)
                .await?;
            found.extend(of_charges(&what, &turns));
        }
        for desk in desks {
            let desk = Arc::into_inner(desk).ok_or_else(|| failed(&"a round goes on"))?;
            desk.close().await?;
        }
        Ok(found)
    }

    /// The gate for agents.
    async fn gate(&self) -> Result<Vec<Beside>, BenchError> {
        let gates = self.each("gate", Gate::open).await?;
        let mut found = Vec::new();
        for (connections, asking) in [
            (1, Asking::OneCaller),
            (64, Asking::Strangers),
            (64, Asking::OneCaller),
            (64, Asking::Durable),
        ] {
            let what = format!("{asking}, {connections} at a time");
            let calls =
                async |which: usize| gates[which].round(connections, asking, self.turn()).await;
            let turns = self
                .in_turns(&format!("the gate: {what}"), self.turns(), calls)
                .await?;
            found.extend(of_calls(&what, &turns));
        }
        let memory = [gates[0].rss_bytes().await?, gates[1].rss_bytes().await?];
        found.push(of_memory("the gate's calls", memory));
        for gate in gates {
            gate.close().await?;
        }
        Ok(found)
    }
}

fn of_lives(what: &str, turns: &[[(Figures, Usage); 2]]) -> [Beside; 4] {
    let a_life = |amount: f64, figures: &Figures| amount / figures.lifecycles as f64;
    [
        Beside::new(
            format!("lifecycles/s, {what}"),
            Better::More,
            turns,
            |(figures, _)| figures.per_s(),
        ),
        Beside::new(
            format!("µs for an execution, p99, {what}"),
            Better::Less,
            turns,
            |(figures, _)| figures.calls[3].percentiles()[2],
        ),
        Beside::new(
            format!("µs of the daemon's processor a lifecycle, {what}"),
            Better::Less,
            turns,
            |(figures, usage)| a_life(usage.cpu_s * 1e6, figures),
        ),
        Beside::new(
            format!("KiB written a lifecycle, {what}"),
            Better::Less,
            turns,
            |(figures, usage)| a_life(usage.written_bytes as f64 / 1_024.0, figures),
        ),
    ]
}

fn of_health(turns: &[[HealthP95; 2]]) -> [Beside; 2] {
    [
        Beside::new(
            "µs for Health alone, p95".to_owned(),
            Better::Less,
            turns,
            |health| health.idle_us,
        ),
        Beside::new(
            "µs for Health beside a busy writer, p95".to_owned(),
            Better::Less,
            turns,
            |health| health.beside_writer_us,
        ),
    ]
}

fn of_charges(what: &str, turns: &[[Charges; 2]]) -> [Beside; 4] {
    [
        Beside::new(
            format!("charges/s, {what}"),
            Better::More,
            turns,
            Charges::per_s,
        ),
        Beside::new(
            format!("µs for a grant, p99, {what}"),
            Better::Less,
            turns,
            |charges| charges.grants.percentiles()[2],
        ),
        Beside::new(
            format!("µs for a charged run, p99, {what}"),
            Better::Less,
            turns,
            |charges| charges.runs.percentiles()[2],
        ),
        Beside::new(
            format!("ms that accounts.json is behind, {what}"),
            Better::Less,
            turns,
            |charges| charges.behind_ms,
        ),
    ]
}

fn of_calls(what: &str, turns: &[[Calls; 2]]) -> [Beside; 2] {
    [
        Beside::new(
            format!("decisions/s, {what}"),
            Better::More,
            turns,
            Calls::per_s,
        ),
        Beside::new(
            format!("µs for a decision, p99, {what}"),
            Better::Less,
            turns,
            |calls| calls.times.percentiles()[2],
        ),
    ]
}

fn of_memory(after: &str, bytes: [u64; 2]) -> Beside {
    Beside::new(
        format!("MiB of memory after {after}"),
        Better::Less,
        &[bytes],
        |bytes| *bytes as f64 / f64::from(1 << 20),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(better: Better, turns: &[[f64; 2]]) -> Beside {
        Beside::new("a figure".to_owned(), better, turns, |figure| *figure)
    }

    #[test]
    fn a_turn_in_which_the_machine_is_slow_has_the_ratio_of_the_others() {
        let turns = [[95.0, 100.0], [9.5, 10.0], [950.0, 1_000.0]];
        assert_eq!(beside(Better::More, &turns).ratio(), 0.95);
    }

    #[test]
    fn less_time_is_the_better_figure() {
        let turns = [[50.0, 100.0]];
        assert_eq!(beside(Better::Less, &turns).ratio(), 2.0);
        assert_eq!(beside(Better::More, &turns).ratio(), 0.5);
    }

    #[test]
    fn nothing_against_nothing_is_as_good() {
        for better in [Better::Less, Better::More] {
            assert_eq!(beside(better, &[[0.0, 0.0]]).ratio(), 1.0);
        }
    }

    #[test]
    fn what_was_found_says_both_figures_and_how_far_the_turns_differ() {
        let turns = [[90.0, 100.0], [100.0, 100.0], [110.0, 100.0]];
        assert_eq!(
            beside(Better::More, &turns).found(),
            "1.00 × (half of 0.90 to 1.10; 100 against 100)"
        );
    }
}
