//! Guests from text to report: admission, runs and packed modules, each through the public interface alone.

mod admission;
mod children;
mod packed;
mod policies;
mod runs;

use std::sync::LazyLock;

use evidenceos_sandbox::{AskError, Config, Limits, Oracle, Program, Ran, Sandbox};

/// Ones at these positions agree with the labels that nobody else sees; the symbol is how many do, at most 255.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Labels {
    labels: Vec<u8>,
    allowance: u32,
    asked: Vec<Vec<u8>>,
}

impl Labels {
    fn new(labels: &[u8]) -> Self {
        Self {
            labels: labels.to_vec(),
            allowance: u32::MAX,
            asked: Vec::new(),
        }
    }
}

impl Oracle for Labels {
    fn ask(&mut self, vector: &[u8]) -> Result<u32, AskError> {
        if self.asked.len() as u32 == self.allowance {
            return Err(AskError::AllowanceExhausted);
        }
        self.asked.push(vector.to_vec());
        Ok(self
            .labels
            .iter()
            .zip(vector)
            .filter(|(label, guess)| label == guess)
            .count()
            .min(255) as u32)
    }
}

const LABELS: [u8; 16] = [1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn config() -> Config {
    Config {
        program: Program(env!("CARGO_BIN_EXE_evidenceos-sandbox-child").into()),
        ..Config::default()
    }
}

/// One for all tests: a child is a process.
fn sandbox() -> &'static Sandbox {
    static SANDBOX: LazyLock<Sandbox> =
        LazyLock::new(|| Sandbox::new(config()).expect("children can be started here"));
    &SANDBOX
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("the test's text is WebAssembly")
}

fn limits(items: u64) -> Limits {
    Limits {
        fuel: 1_000_000,
        memory_bytes: 1 << 20,
        oracle_calls: 64,
        items,
        epoch_size: 0,
    }
}

fn run_with(wasm: &[u8], limits: &Limits, mut labels: Labels) -> (Ran, Labels) {
    let prepared = sandbox()
        .prepare(wasm)
        .unwrap_or_else(|error| panic!("{error}"));
    let report = sandbox()
        .run(&prepared, limits, false, &mut labels)
        .expect("the host does not fail");
    (report, labels)
}

fn run(wasm: &[u8]) -> Ran {
    run_with(wasm, &limits(16), Labels::new(&LABELS)).0
}
