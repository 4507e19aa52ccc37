//! The gate decides on agents' tool calls, and on runs before their settlement.
//!
//! - [`preflight`] answers agents over HTTP before and after a tool call.
//! - [`policies`] are the operator's Wasm modules, which can only veto.
//! - [`probes`] detects callers that probe, [`recorder`] puts decisions into the log.
//!
//! Does not bind a port: its routes are part of one that the daemon serves.
//!
//! Invariant: a decision that stops something is in the log before it is answered, or the answer's
//! status says that it is not.

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
