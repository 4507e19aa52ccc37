//! Telemetry for operators: counts as OpenMetrics text, lines of the log, spans for a collector.
//!
//! Knows no other part of the system: each part registers its counts with a [`Registry`], and
//! writes lines and spans by `tracing`. A call costs only an addition here.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

pub mod classic;
mod process;
mod registry;
pub mod trace;
pub mod write;

pub use registry::{Bounds, Registry};
