//! `evidenceos-bench`: the daemon's performance, compared with the limits of the machine.
//!
//! It drives a daemon of its own (a child process: durable, as shipped) over gRPC on loopback, with the load on the
//! same cores. Every figure that contains a sync is bracketed by the disk's own: rate-limited disks have two speeds,
//! and a figure whose brackets differ more than twofold is marked invalid. Counts that noise cannot affect (syncs,
//! bytes written, rows read a lifecycle) are reported beside it.
//!
//! No release ships it: it is a tool for developers of the daemon, and for operators who choose a machine.

mod against;
mod charges;
mod child;
mod error;
mod gate;
mod limits;
mod load;
mod measure;
mod proofs;
mod report;
mod stats;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;

use crate::{
    child::Program,
    error::BenchError,
    measure::{Parts, Plan},
    report::Report,
};

/// Measure a daemon against the limits of this machine.
#[derive(Debug, Parser)]
#[command(
    name = "evidenceos-bench",
    version,
    after_help = "Examples:
  evidenceos-bench                        all figures; some ten minutes
  evidenceos-bench --quick                smaller stores and shorter rounds; two minutes
  evidenceos-bench --against ./old/evidenceos
                                          figures of one build beside those of another, in turns; some fifteen
                                          minutes, six with --quick
  evidenceos-bench --program ./new/evidenceos --against ./old/evidenceos
  evidenceos-bench --json > figures.json  for machines

The daemon is `evidenceos` beside this program, else the one on the PATH; build it with
`cargo build --release -p evidenceos`."
)]
struct Arguments {
    /// Smaller stores and shorter rounds
    #[arg(long)]
    quick: bool,
    /// The build of `evidenceos` that is measured [default: beside this program, else on the PATH]
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,
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
    /// Only a log of many entries and a cached guest, which this program runs without a daemon
    #[arg(long, conflicts_with_all = ["charges_only", "gate_only"])]
    log_only: bool,
    /// What daemons do, of the measured build and of another one, in turns
    #[arg(long, value_name = "PROGRAM", conflicts_with = "log_only")]
    against: Option<PathBuf>,
    /// Seconds of rest before each figure
    #[arg(long, value_name = "SECONDS")]
    rest: Option<u64>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
    /// Be the server that does nothing
    #[arg(long, hide = true)]
    serve_noop: bool,
}

fn main() -> ExitCode {
    // The figure of a cached guest needs a child, which is this program.
    if let Some(status) = evidenceos_sandbox::serve_if_child() {
        return status;
    }
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the system gives no timers or sockets: {error}");
            return ExitCode::FAILURE;
        }
    };
    let as_json = arguments.json;
    match runtime.block_on(arguments.run()) {
        Ok(report) if as_json => println!("{}", report.to_json()),
        Ok(report) => println!("{}", report.to_table()),
        Err(error) => {
            eprintln!("error: bench: {error}");
            return ExitCode::from(error.exit_code());
        }
    }
    ExitCode::SUCCESS
}

impl Arguments {
    async fn run(self) -> Result<Report, BenchError> {
        if self.serve_noop {
            gate::serve_noop().await?;
        }
        let program = Program::find(self.program.as_deref())?;
        let scratch = Scratch::within(&self.dir)?;
        let plan = self.plan(program, &scratch);
        match &self.against {
            Some(other) => {
                against::measure(&plan, &Program::find(Some(other))?, self.parts()).await
            }
            None => measure::measure(&plan, self.parts()).await,
        }
    }

    fn parts(&self) -> Parts {
        match (self.charges_only, self.gate_only, self.log_only) {
            (true, _, _) => Parts::Charges,
            (_, true, _) => Parts::Gate,
            (_, _, true) => Parts::Log,
            _ => Parts::All,
        }
    }

    fn plan<'s>(&self, program: Program, scratch: &'s Scratch) -> Plan<'s> {
        let (claims, entries, rest, round, alternations) = if self.quick {
            (5_000, 100_000, 3, 4, 2)
        } else {
            (100_000, 1_000_000, 12, 8, 4)
        };
        Plan {
            program,
            scratch: &scratch.0,
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

/// A directory that is removed when its owner is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn within(directory: &Path) -> Result<Self, BenchError> {
        // Two benchmarks in one place must not share a directory.
        let path = directory.join(format!("evidenceos-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(BenchError::file(path.clone()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover costs only disk space, and its name shows its origin.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
