//! Guests and policy oracles: the admission of Wasm modules, and their runs.
//!
//! The crate owns admission ([`check()`]), compilation with its caches ([`Sandbox::prepare`]), metered runs
//! ([`Sandbox::run`]), the modules that wrap a list of predictions ([`pack()`]), the votes of policy oracles
//! ([`PolicyModule`]), and the processes in which modules are compiled and run. It deliberately knows nothing of
//! holdouts, labels, prices or verdicts: the caller that runs a guest implements [`Oracle`], which sees a vector and
//! answers with a symbol.
//!
//! Invariants. The process that has the sandbox compiles and runs no code of a stranger. Its children do: the same
//! program ([`serve_if_child`]), limited in memory and processor time, and behind the kernel's walls. Everything in a
//! [`Ran`] is a function of the module's bytes, the [`Limits`], the oracle's answers and [`Sandbox::engine_id`].
//! There is no clock, no randomness, no parallelism, no file and no environment in a guest's world; NaNs have one bit
//! pattern; everything that could run for long costs fuel. So an observer of a run learns nothing about a holdout
//! beyond the answers, and a run can be repeated anywhere.
//!
//! ```no_run
//! use evidenceos_sandbox::{AskError, End, Limits, Mode, Oracle, PackOptions, Sandbox, pack};
//!
//! struct Silent;
//! impl Oracle for Silent {
//!     fn ask(&mut self, _vector: &[u8]) -> Result<u32, AskError> {
//!         Err(AskError::AllowanceExhausted)
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // In a child this is all that happens.
//!     if evidenceos_sandbox::serve_if_child().is_some() {
//!         return Ok(());
//!     }
//!     let sandbox = Sandbox::new(Default::default())?;
//!     let module = pack(&PackOptions::new(&[1, 0, 1], Mode::Judge))?;
//!     let prepared = sandbox.prepare(&module)?;
//!     let limits = Limits { fuel: 10_000, memory_bytes: 1 << 20, oracle_calls: 0, items: 3, epoch_size: 0 };
//!     let report = sandbox.run(&prepared, &limits, false, &mut Silent)?;
//!     assert_eq!(report.end, End::Emitted(vec![0]));
//!     assert_eq!(report.judged.as_deref(), Some(&[1, 0, 1][..]));
//!     Ok(())
//! }
//! ```
//!
//! Spec: the WebAssembly Core Specification 2.0 without SIMD and `externref`, and the guest interface in
//! docs/guests.md.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

mod abi;
mod artifact;
mod cache;
mod check;
mod child;
mod pack;
mod policy;
mod pool;
mod process;
mod rule;
mod run;
mod sandbox;
mod wire;

pub use check::{ModuleInfo, check, check_policy, export_names};
pub use child::serve_if_child;
pub use pack::{MAX_PACKED_ITEMS, Mode, PackError, PackOptions, output_len, pack, packed_symbols};
pub use policy::{PolicyFailure, PolicyLimits, PolicyModule, Vote};
pub use process::{Cost, Program};
pub use rule::{Rule, Violation, Warning, bounds};
pub use run::{AskError, Broken, End, HostFault, Limits, Oracle, Ran, TrapCause};
pub use sandbox::{AdmitError, Config, EngineError, Prepared, Sandbox};
pub use wire::Walls;
