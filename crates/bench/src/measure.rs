//! `evidenceos bench`: what the daemon does, beside what the machine can do.
//!
//! It drives a daemon of its own (a child process: durable, as shipped) over gRPC on loopback, with the load on the
//! same cores. Every figure that contains a sync is bracketed by the disk's own: rate-limited disks have two speeds,
//! and a figure whose brackets differ more than twofold is marked invalid. What noise cannot touch (syncs, bytes
//! written, rows read a lifecycle) is counted beside it.

mod charges;
mod child;
mod gate;
mod limits;
mod load;
mod proofs;
mod report;
mod stats;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;

use crate::{error::CliError, output::Output};

use self::{
    charges::Desk,
    child::Daemon,
    limits::Machine,
    load::{Load, Modules, Round},
    report::{Beside, Bracketed, Report},
};

/// Measure a daemon against the limits of this machine.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  evidenceos bench                        all figures; some ten minutes
  evidenceos bench --quick                smaller stores and shorter rounds; two minutes
  evidenceos bench --against ./old/evidenceos
                                          lifecycles of this build beside those of another, in turn
  evidenceos --json bench > figures.json  for machines")]
pub struct BenchArgs {
    /// Smaller stores and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Where to put the data directories; they are removed afterwards
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Claims in the large store
    #[arg(long, value_name = "N")]
    claims: Option<u64>,
    /// Entries in the large log
    #[arg(long, value_name = "N")]
    entries: Option<u64>,
    /// Accounts of the daemon that charges
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    accounts: u64,
    /// Only what is charged: grants and runs over many accounts
    #[arg(long)]
    charges_only: bool,
    /// Only the gate for agents
    #[arg(long, conflicts_with = "charges_only")]
    gate_only: bool,
    /// Only lifecycles, of this build and of another one that is driven in turn
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["charges_only", "gate_only"])]
    against: Option<PathBuf>,
    /// Be the server that does nothing
    #[arg(long, hide = true)]
    serve_noop: bool,
    /// Seconds of rest before each figure
    #[arg(long, value_name = "SECONDS")]
    rest: Option<u64>,
}

struct Plan {
    claims: u64,
    entries: u64,
    accounts: u64,
    rest: Duration,
    round: Duration,
    /// How long one caller keeps the gate busy.
    busy: Duration,
    alternations: u32,
}

impl BenchArgs {
    /// Runs the benchmark and returns its report.
    pub async fn run(self) -> Result<Output, CliError> {
        if self.serve_noop {
            gate::serve_noop().await?;
        }
        let scratch = tempdir(&self.dir)?;
        let report = if self.gate_only {
            let mut report = Report {
                machine: Machine::measure(scratch.path())?,
                ..Report::default()
            };
            measure_gate(&self.plan(), scratch.path(), &mut report).await?;
            report
        } else if let Some(other) = &self.against {
            let mut report = Report {
                machine: Machine::measure(scratch.path())?,
                ..Report::default()
            };
            measure_against(&self.plan(), scratch.path(), other, &mut report).await?;
            report
        } else if self.charges_only {
            let mut report = Report {
                machine: Machine::measure(scratch.path())?,
                ..Report::default()
            };
            measure_charges(&self.plan(), scratch.path(), &mut report).await?;
            report
        } else {
            measure(&self.plan(), scratch.path()).await?
        };
        Ok(Output::new(report.to_json(), report.to_table()))
    }

    fn plan(&self) -> Plan {
        let (claims, entries, rest, round, alternations) = if self.quick {
            (5_000, 100_000, 3, 4, 2)
        } else {
            (100_000, 1_000_000, 12, 8, 4)
        };
        Plan {
            claims: self.claims.unwrap_or(claims),
            entries: self.entries.unwrap_or(entries),
            accounts: self.accounts,
            rest: Duration::from_secs(self.rest.unwrap_or(rest)),
            round: Duration::from_secs(round),
            busy: Duration::from_secs(if self.quick { 15 } else { 60 }),
            alternations,
        }
    }
}

fn tempdir(within: &std::path::Path) -> Result<Scratch, CliError> {
    // Two benchmarks in one place must not share a directory.
    let path = within.join(format!("evidenceos-bench-{}", std::process::id()));
    std::fs::create_dir_all(&path).map_err(CliError::file(path.clone()))?;
    Ok(Scratch(path))
}

/// A directory that goes away with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is only disk space, and its name says whose it is.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn measure(plan: &Plan, scratch: &std::path::Path) -> Result<Report, CliError> {
    let mut report = Report::default();
    say("machine: fdatasync, Ed25519, a log of many entries, a cached guest");
    report.machine = Machine::measure(scratch)?;
    report.proofs = Some(proofs::measure(&scratch.join("log"), plan.entries)?);
    report.sandbox = Some(limits::sandbox()?);

    let small = Daemon::start(&scratch.join("small")).await?;
    let few = Load::prepare(&small).await?;
    // Growth is measured against this store of 100 claims.
    few.round(1, Modules::Shared, Round::Lifecycles(100))
        .await?;
    report.noop = Some(few.noop(plan.round / 2).await?);

    let mut large = Daemon::start(&scratch.join("large")).await?;
    let many = Load::prepare(&large).await?;
    for (concurrency, modules) in [
        (1, Modules::Shared),
        (16, Modules::Shared),
        (64, Modules::Shared),
        (16, Modules::Distinct),
    ] {
        say(&format!(
            "lifecycles, concurrency {concurrency}, {modules} modules"
        ));
        let (daemon, load) = (&large, &many);
        let figure = bracketed(plan, scratch, || async move {
            let before = daemon.usage().await?;
            let mut round = load
                .round(concurrency, modules, Round::Time(plan.round))
                .await?;
            round.usage = Some(daemon.usage().await?.since(&before));
            Ok(round)
        })
        .await?;
        report.lifecycles.push(figure);
    }

    say(&format!("filling a store with {} claims", plan.claims));
    while many.lifecycles_done() < plan.claims {
        let missing = plan.claims - many.lifecycles_done();
        // In parts, so that it can say how far it is.
        many.round(64, Modules::Shared, Round::Lifecycles(missing.min(10_000)))
            .await?;
        say(&format!("  {} claims", many.lifecycles_done()));
    }
    report.claims = many.lifecycles_done();
    report.rss_bytes = large.usage().await?.rss_bytes;

    say("growth: the same calls on a store of 100 claims and on the large one, in turn");
    // In turn, so that a change of the machine falls on both stores alike.
    for _ in 0..plan.alternations {
        tokio::time::sleep(plan.rest / 2).await;
        for (load, daemon, into) in [
            (&few, &small, &mut report.growth_small),
            (&many, &large, &mut report.growth_large),
        ] {
            // The daemon's counters go on over the rounds, so that a round is a difference.
            let before = daemon.usage().await?;
            let mut round = load
                .round(1, Modules::Shared, Round::Lifecycles(400))
                .await?;
            round.usage = Some(daemon.usage().await?.since(&before));
            into.push(round);
        }
    }

    say("Health beside a busy writer");
    report.health = Some(many.health_beside_writer(&large, plan.round).await?);

    say("restart after SIGKILL under load");
    for _ in 0..plan.alternations {
        report.restart_ms.push(large.kill_and_restart(&many).await?);
    }
    small.stop().await?;
    large.stop().await?;
    measure_charges(plan, scratch, &mut report).await?;
    measure_gate(plan, scratch, &mut report).await?;
    Ok(report)
}

/// How much shorter the turns of two builds are than other rounds.
const SHORTER: u32 = 4;

/// The same load on a daemon of this build and on one of another, in turn.
async fn measure_against(
    plan: &Plan,
    scratch: &std::path::Path,
    other: &std::path::Path,
    report: &mut Report,
) -> Result<(), CliError> {
    let this = Daemon::start(&scratch.join("this")).await?;
    let other = Daemon::start_program(other, &scratch.join("other"), &[]).await?;
    let daemons = [&this, &other];
    let loads = [Load::prepare(&this).await?, Load::prepare(&other).await?];
    // Short turns: what the machine does for a minute falls on both.
    let round = plan.round / SHORTER;
    for concurrency in [16, 64] {
        let mut rounds = [Vec::new(), Vec::new()];
        for turn in 0..2 * SHORTER * plan.alternations {
            say(&format!(
                "lifecycles, concurrency {concurrency}, turn {turn}"
            ));
            // Whoever is second in one turn is first in the next: disks tire within a turn.
            let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
            for which in order {
                tokio::time::sleep(plan.rest / (2 * SHORTER)).await;
                let before = daemons[which].usage().await?;
                let round = Round::Time(round);
                let figures = loads[which].round(concurrency, Modules::Shared, round);
                let mut figures = figures.await?;
                figures.usage = Some(daemons[which].usage().await?.since(&before));
                rounds[which].push(figures);
            }
        }
        let [this, other] = rounds;
        report.beside.push(Beside { this, other });
    }
    this.stop().await?;
    other.stop().await
}

async fn measure_gate(
    plan: &Plan,
    scratch: &std::path::Path,
    report: &mut Report,
) -> Result<(), CliError> {
    say("the gate for agents, and a server that does nothing");
    tokio::time::sleep(plan.rest).await;
    let figures = gate::measure(scratch, plan.round, plan.busy).await?;
    report.gate = Some(figures);
    Ok(())
}

/// Charges on a daemon with one account and on one with many, in turn.
async fn measure_charges(
    plan: &Plan,
    scratch: &std::path::Path,
    report: &mut Report,
) -> Result<(), CliError> {
    say(&format!(
        "charges: a daemon that takes over {} accounts",
        plan.accounts
    ));
    let one = Arc::new(Desk::open(&scratch.join("one"), 1).await?);
    let many = Arc::new(Desk::open(&scratch.join("many"), plan.accounts).await?);
    // More claims than a round runs: it would end early where none is left.
    let runs_a_second = 3_000;
    for concurrency in [1, 64] {
        let enough = match concurrency {
            1 => 1_000,
            _ => runs_a_second,
        } * plan.round.as_secs() as usize;
        for desk in [&one, &many] {
            // A claim is sealed before the clock starts: sealing is no part of the figure.
            desk.seal(enough).await?;
            say(&format!(
                "  {} accounts, concurrency {concurrency}",
                desk.accounts()
            ));
            let figure = bracketed(plan, scratch, || desk.round(concurrency, plan.round)).await?;
            report.charges.push(figure);
        }
    }
    for desk in [one, many] {
        let desk = Arc::into_inner(desk).ok_or_else(|| failed(&"a round goes on"))?;
        desk.close().await?;
    }
    Ok(())
}

/// Rests, measures the disk, the figure, and the disk again.
async fn bracketed<T, F: Future<Output = Result<T, CliError>>>(
    plan: &Plan,
    scratch: &std::path::Path,
    figure: impl FnOnce() -> F,
) -> Result<Bracketed<T>, CliError> {
    // What the figure before has written must not slow this one.
    tokio::time::sleep(plan.rest).await;
    let before = limits::fdatasync_p50_us(scratch)?;
    let figure = figure().await?;
    let after = limits::fdatasync_p50_us(scratch)?;
    Ok(Bracketed {
        figure,
        fdatasync_us: (before, after),
    })
}

/// A measurement that could not be made.
fn failed(reason: &dyn std::fmt::Display) -> CliError {
    CliError::Failed(format!("bench: {reason}"))
}

fn say(what: &str) {
    eprintln!("bench: {what}");
}
