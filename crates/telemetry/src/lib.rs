//! What an operator watches: counts as OpenMetrics text, lines of the log, spans for a collector.
//!
//! Knows no other part of the system: each part registers what it counts with a [`Registry`] of
//! its own accord, and writes lines and spans by `tracing`. Nothing here is on the way of a call
//! but an addition.

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
