//! The crash tests as a program, and the daemon that they kill.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use clap::{Parser, Subcommand};
use evidenceos_crash::{
    Failed,
    campaign::{CHOOSE_KEY, ROUNDS_OF_A_WORLD, Tools},
    daemon::AS_DAEMON,
    fail,
    power::CUTS_OF_A_HISTORY,
    recorder::Recorder,
    world::Tally,
};
use evidenceos_keys::Ring;

/// Kills the daemon and takes its power away, and looks at what is left
#[derive(Parser)]
struct Arguments {
    /// The first seed; the time, if it is not given
    #[arg(long, global = true)]
    seed: Option<u64>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Deaths at random moments
    Rounds {
        /// How many
        rounds: u64,
    },
    /// Every point in its turn
    Points,
    /// A directory that becomes read-only under load
    ReadOnly {
        /// How often
        rounds: u64,
    },
    /// Power cuts at random moments
    Power {
        /// How many
        cuts: u64,
    },
}

fn main() -> ExitCode {
    // The daemon that is killed is this program, and so are its children.
    if let Some(status) = evidenceos_sandbox::serve_if_child() {
        return status;
    }
    // The daemon has arguments of its own, which must not be parsed as those of the tests.
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let role = arguments.get(1).and_then(|role| role.to_str());
    let done = match role {
        Some(AS_DAEMON) => {
            arguments.remove(1);
            return evidenceos_daemon::run(arguments);
        }
        Some(CHOOSE_KEY) => match arguments.get(2) {
            Some(directory) => choose_key(Path::new(directory)),
            None => Err(fail("in which data directory?")),
        },
        _ => test(&Arguments::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Creates a key and lets it sign from the next start on.
fn choose_key(data_directory: &Path) -> Result<(), Failed> {
    let mut ring = Ring::open(&data_directory.join("keys")).map_err(fail)?;
    let id = ring.generate().map_err(fail)?;
    ring.activate(id).map_err(fail)
}

fn test(arguments: &Arguments) -> Result<(), Failed> {
    let home = tempfile::tempdir().map_err(fail)?;
    let recorder = Recorder::build(home.path())?;
    let program: PathBuf = std::env::current_exe().map_err(fail)?;
    let tools = Tools {
        program: &program,
        recorder: &recorder,
    };
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    let seed = arguments.seed.unwrap_or_else(now);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(fail)?;
    let began = Instant::now();
    runtime.block_on(async {
        match arguments.what {
            What::Rounds { rounds } => rounds_of(&tools, seed, rounds).await,
            What::Points => {
                println!("every point: {}", tools.every_point(seed).await?);
                Ok(())
            }
            What::ReadOnly { rounds } => {
                println!("read-only: {}", tools.read_only_world(seed, rounds).await?);
                Ok(())
            }
            What::Power { cuts } => power_of(&tools, seed, cuts).await,
        }
    })?;
    println!("{} s", began.elapsed().as_secs());
    Ok(())
}

async fn rounds_of(tools: &Tools<'_>, seed: u64, rounds: u64) -> Result<(), Failed> {
    let mut all = Tally::default();
    while all.rounds < rounds {
        let seed = seed + all.rounds / ROUNDS_OF_A_WORLD;
        let some = ROUNDS_OF_A_WORLD.min(rounds - all.rounds);
        let tally = tools.random_world(seed, some).await?;
        println!("seed {seed}: {tally}");
        all.add(&tally);
    }
    println!("all: {all}");
    Ok(())
}

async fn power_of(tools: &Tools<'_>, seed: u64, cuts: u64) -> Result<(), Failed> {
    let mut done = 0;
    while done < cuts {
        let seed = seed + done / CUTS_OF_A_HISTORY;
        let some = CUTS_OF_A_HISTORY.min(cuts - done);
        println!("seed {seed}: {}", tools.power(seed, some).await?);
        done += some;
    }
    println!("all: {done} power cuts");
    Ok(())
}
