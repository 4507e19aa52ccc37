//! The gate: what stands between an agent and its tools, and between a run and its settlement.
//!
//! - [`preflight`] answers agents over HTTP before and after a tool call.
//! - [`policies`] are Wasm oracles of the operator, which can only take away.
//! - [`probes`] notices callers who probe, [`recorder`] has every decision in the log.
//!
//! Does not bind a port: its routes are part of one that the daemon serves.
//!
//! Invariant: what stops something is in the log before it is answered, or is answered with a
//! status that says that it is not.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

mod config;
pub mod policies;
pub mod preflight;
pub mod probes;
pub mod recorder;

pub use config::{DurableDecisions, PreflightConfig, ProbeProfile, RateLimit};
