//! The daemon: configuration, keys, private items, running guests, gRPC.
//!
//! A library with a thin `main`, so that the demo and the tests run the real thing in process:
//! [`start`] gives a [`Running`] daemon on a port of its own.
//!
//! Nothing here decides what is certified or charged: the edge parses and renders, the kernel
//! decides, the driver commits.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

mod accounts;
mod agreement;
pub mod anchors;
pub mod assemble;
pub mod auth;
pub mod clock;
pub mod config;
pub mod control;
pub mod decisions;
pub mod fetch;
pub mod grpc;
mod guarded;
pub mod holdout_keys;
pub mod http;
mod in_force;
pub mod keys;
pub mod metrics;
pub mod offline;
mod once;
pub mod policies;
pub mod preflight;
mod priority;
mod probes;
mod release;
mod rotation;
mod run;
pub mod runner;
mod services;
mod shares;
pub mod terminal;
mod trace;
pub mod vault;

pub use assemble::{Running, StartError, start};
pub use config::Config;
pub use run::{main, run, run_as};
