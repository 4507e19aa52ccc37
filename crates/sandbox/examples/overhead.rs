//! What the sandbox costs: `cargo run --release -p evidenceos-sandbox --example overhead`.
//!
//! Prints the 50th and 99th percentile of each step, for packed modules of 1,000 items unless it says otherwise, and
//! how much memory the process holds at the end.

use std::hint::black_box;
use std::time::{Duration, Instant};

use evidenceos_sandbox::{
    AskError, Config, Limits, Mode, Oracle, PackOptions, Prepared, Ran, Sandbox, check, pack,
};

const ROUNDS: u32 = 2_000;
const ITEMS: usize = 1_000;

/// Answers with the parity of the ones.
struct Parity;

impl Oracle for Parity {
    fn ask(&mut self, vector: &[u8]) -> Result<u32, AskError> {
        Ok(vector.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 2)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if evidenceos_sandbox::serve_if_child().is_some() {
        return Ok(());
    }
    let sandbox = Sandbox::new(Config::default())?;
    println!("{}", sandbox.engine_id());
    let trivial = packed(0, ITEMS, Mode::AskAndJudge)?;
    let large = packed(0, 1_000_000, Mode::AskAndJudge)?;

    measure("check", ROUNDS, || check(&trivial).is_ok());
    measure("set up a sandbox", 20, || {
        Sandbox::new(Config::default()).is_ok()
    });
    let sandboxes: Vec<_> = (0..20)
        .map(|_| Sandbox::new(Config::default()))
        .collect::<Result<_, _>>()?;
    let mut fresh = sandboxes.iter();
    measure("prepare, code never seen", 20, || {
        fresh
            .next()
            .map(|sandbox| sandbox.prepare(&trivial).is_ok())
    });
    drop(sandboxes);

    let modules: Vec<_> = (0..ROUNDS)
        .map(|seed| packed(seed, ITEMS, Mode::AskAndJudge))
        .collect::<Result<_, _>>()?;
    let mut distinct = modules.iter();
    measure("prepare, distinct predictions", ROUNDS, || {
        distinct
            .next()
            .map(|module| sandbox.prepare(module).is_ok())
    });
    measure("prepare, module seen", ROUNDS, || {
        sandbox.prepare(&trivial).is_ok()
    });

    let prepared = sandbox.prepare(&trivial)?;
    measure("run", ROUNDS, || run(&sandbox, &prepared, ITEMS));
    let prepared = sandbox.prepare(&large)?;
    measure("run, 1,000,000 items", 200, || {
        run(&sandbox, &prepared, 1_000_000)
    });

    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status
            .lines()
            .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
            .for_each(|line| println!("{line}"));
    }
    Ok(())
}

fn packed(seed: u32, items: usize, mode: Mode) -> Result<Vec<u8>, evidenceos_sandbox::PackError> {
    let predictions: Vec<u8> = (0..items)
        .map(|item| (seed >> (item % 32) & 1) as u8)
        .collect();
    pack(&PackOptions::new(&predictions, mode))
}

fn run(sandbox: &Sandbox, prepared: &Prepared, items: usize) -> Option<Ran> {
    let limits = Limits {
        fuel: 100_000_000,
        memory_bytes: 64 << 20,
        oracle_calls: 64,
        items: items as u64,
        epoch_size: 0,
    };
    sandbox.run(prepared, &limits, false, &mut Parity).ok()
}

fn measure<T>(what: &str, rounds: u32, mut step: impl FnMut() -> T) {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            black_box(step());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    println!(
        "{what:32} p50 {:10.1} µs   p99 {:10.1} µs",
        percentile(50),
        percentile(99)
    );
}
