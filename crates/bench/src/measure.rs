//! The measurements, their order, and their daemons.

use std::{path::Path, sync::Arc, time::Duration};

use crate::{
    charges::Desk,
    child::{Daemon, Program},
    error::{BenchError, failed},
    gate,
    limits::{self, Machine},
    load::{Load, Modules, Round},
    proofs,
    report::{Bracketed, Report},
};

/// The sizes, durations and repetitions of a benchmark.
pub struct Plan<'s> {
    /// The build that is measured.
    pub program: Program,
    /// The place of data directories.
    pub scratch: &'s Path,
    /// Claims in the large store.
    pub claims: u64,
    /// Entries in the large log.
    pub entries: u64,
    /// Accounts of the daemon that charges.
    pub accounts: u64,
    /// Rest before each figure.
    pub rest: Duration,
    /// The length of a round.
    pub round: Duration,
    /// The time for which one caller keeps the gate busy.
    pub busy: Duration,
    /// The number of turns of two stores.
    pub alternations: u32,
}

impl Plan<'_> {
    /// A report with the figures of the machine alone.
    pub fn machine_alone(&self) -> Result<Report, BenchError> {
        Ok(Report {
            machine: Machine::measure(self.scratch)?,
            ..Report::default()
        })
    }
}

/// The parts of a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// All figures.
    All,
    /// Only charges: grants and runs over many accounts.
    Charges,
    /// Only the gate for agents.
    Gate,
    /// Only the parts without a daemon: a log of many entries, and a cached guest.
    Log,
}

/// Measures one build.
///
/// # Errors
/// [`BenchError`] if a daemon does not start, or refuses a call.
pub async fn measure(plan: &Plan<'_>, parts: Parts) -> Result<Report, BenchError> {
    say("the machine: fdatasync, Ed25519");
    let mut report = plan.machine_alone()?;
    if matches!(parts, Parts::All | Parts::Log) {
        measure_log(plan, &mut report)?;
    }
    if parts == Parts::All {
        measure_claims(plan, &mut report).await?;
    }
    if matches!(parts, Parts::All | Parts::Charges) {
        measure_charges(plan, &mut report).await?;
    }
    if matches!(parts, Parts::All | Parts::Gate) {
        measure_gate(plan, &mut report).await?;
    }
    Ok(report)
}

fn measure_log(plan: &Plan<'_>, report: &mut Report) -> Result<(), BenchError> {
    say("a log of many entries, a cached guest");
    report.proofs = Some(proofs::measure(&plan.scratch.join("log"), plan.entries)?);
    report.sandbox = Some(limits::sandbox()?);
    Ok(())
}

/// Measures lives of claims, the effect of a full store on them, and other figures of their daemon.
async fn measure_claims(plan: &Plan<'_>, report: &mut Report) -> Result<(), BenchError> {
    let small = plan.program.start(&plan.scratch.join("small")).await?;
    let few = Load::prepare(&small).await?;
    // Growth is measured against this store of 100 claims.
    few.round(1, Modules::Shared, Round::Lifecycles(100))
        .await?;
    report.noop = Some(few.noop(plan.round / 2).await?);

    let mut large = plan.program.start(&plan.scratch.join("large")).await?;
    let many = Load::prepare(&large).await?;
    measure_lifecycles(plan, &large, &many, report).await?;
    fill(plan, &many).await?;
    report.claims = many.lifecycles_done();
    report.rss_bytes = large.usage().await?.rss_bytes;
    measure_growth(plan, (&small, &few), (&large, &many), report).await?;

    say("Health beside a busy writer");
    report.health = Some(many.health_beside_writer(&large, plan.round).await?);
    say("restart after SIGKILL under load");
    for _ in 0..plan.alternations {
        report.restart_ms.push(large.kill_and_restart(&many).await?);
    }
    small.stop().await?;
    large.stop().await
}

/// The number of simultaneous lives, and the modules that they bring.
pub const LIVES: [(usize, Modules); 4] = [
    (1, Modules::Shared),
    (16, Modules::Shared),
    (64, Modules::Shared),
    (16, Modules::Distinct),
];

async fn measure_lifecycles(
    plan: &Plan<'_>,
    daemon: &Daemon,
    load: &Load,
    report: &mut Report,
) -> Result<(), BenchError> {
    for (concurrency, modules) in LIVES {
        say(&format!(
            "lifecycles, concurrency {concurrency}, {modules} modules"
        ));
        let figure = bracketed(plan, || async move {
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
    Ok(())
}

async fn fill(plan: &Plan<'_>, load: &Load) -> Result<(), BenchError> {
    say(&format!("filling a store with {} claims", plan.claims));
    while load.lifecycles_done() < plan.claims {
        let missing = plan.claims - load.lifecycles_done();
        // In parts, so that it can report progress.
        load.round(64, Modules::Shared, Round::Lifecycles(missing.min(10_000)))
            .await?;
        say(&format!("  {} claims", load.lifecycles_done()));
    }
    Ok(())
}

async fn measure_growth(
    plan: &Plan<'_>,
    (small, few): (&Daemon, &Load),
    (large, many): (&Daemon, &Load),
    report: &mut Report,
) -> Result<(), BenchError> {
    say("growth: the same calls on a store of 100 claims and on the large one, in turn");
    // In turn, so that a change of the machine falls on both stores alike.
    for _ in 0..plan.alternations {
        tokio::time::sleep(plan.rest / 2).await;
        for (load, daemon, into) in [
            (few, small, &mut report.growth_small),
            (many, large, &mut report.growth_large),
        ] {
            // The daemon's counters continue over the rounds, so a round is a difference.
            let before = daemon.usage().await?;
            let mut round = load
                .round(1, Modules::Shared, Round::Lifecycles(400))
                .await?;
            round.usage = Some(daemon.usage().await?.since(&before));
            into.push(round);
        }
    }
    Ok(())
}

async fn measure_gate(plan: &Plan<'_>, report: &mut Report) -> Result<(), BenchError> {
    say("the gate for agents, and a server that does nothing");
    tokio::time::sleep(plan.rest).await;
    let figures = gate::measure(&plan.program, plan.scratch, plan.round, plan.busy).await?;
    report.gate = Some(figures);
    Ok(())
}

/// Charges on a daemon with one account and on one with many, in turn.
async fn measure_charges(plan: &Plan<'_>, report: &mut Report) -> Result<(), BenchError> {
    say(&format!(
        "charges: a daemon that takes over {} accounts",
        plan.accounts
    ));
    let one = Arc::new(Desk::open(&plan.program, &plan.scratch.join("one"), 1).await?);
    let many =
        Arc::new(Desk::open(&plan.program, &plan.scratch.join("many"), plan.accounts).await?);
    for concurrency in [1, 64] {
        let enough = enough_claims(concurrency, plan.round);
        for desk in [&one, &many] {
            // A claim is sealed before the clock starts: sealing does not belong to the figure.
            desk.seal(enough).await?;
            say(&format!(
                "  {} accounts, concurrency {concurrency}",
                desk.accounts()
            ));
            let figure = bracketed(plan, || desk.round(concurrency, plan.round)).await?;
            report.charges.push(figure);
        }
    }
    for desk in [one, many] {
        let desk = Arc::into_inner(desk).ok_or_else(|| failed(&"a round goes on"))?;
        desk.close().await?;
    }
    Ok(())
}

/// More claims than a round runs: it would end early if none is left.
pub fn enough_claims(concurrency: usize, time: Duration) -> usize {
    let runs_a_second = if concurrency == 1 { 1_000.0 } else { 3_000.0 };
    (runs_a_second * time.as_secs_f64()) as usize
}

/// Rests, measures the disk, the figure, and the disk again.
async fn bracketed<T, F: Future<Output = Result<T, BenchError>>>(
    plan: &Plan<'_>,
    figure: impl FnOnce() -> F,
) -> Result<Bracketed<T>, BenchError> {
    // Pending writes of the previous figure must not slow this one.
    tokio::time::sleep(plan.rest).await;
    let before = limits::fdatasync_p50_us(plan.scratch)?;
    let figure = figure().await?;
    let after = limits::fdatasync_p50_us(plan.scratch)?;
    Ok(Bracketed {
        figure,
        fdatasync_us: (before, after),
    })
}

/// Prints the current measurement on standard error.
pub fn say(what: &str) {
    eprintln!("bench: {what}");
}
