//! The daemon: configuration, keys, holdouts' items, guests, gRPC.
//!
//! A library with a thin `main`, so that the demo and the tests run the real daemon in their own
//! process: [`start`] returns a [`Running`] daemon on a port of its own.
//!
//! Nothing here decides what is certified or charged: this crate parses and renders, the kernel
//! decides, the driver commits.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

mod accounts;
pub mod assemble;
pub mod config;
pub mod control;
pub mod grpc;
mod guarded;
pub mod http;
mod in_force;
pub mod metrics;
pub mod offline;
mod overseeing;
mod protection;
mod run;
mod services;
mod shares;
pub mod terminal;

/// The program's version and the start of the commit that it is built from, if known: `2.1.0 (0123456789ab)`.
pub const VERSION: &str = env!("EVIDENCEOS_VERSION");

pub use assemble::{Running, StartError, start};
pub use config::Config;
pub use run::{main, run, run_as};
