//! The assembly of the daemon: start, reload and stop.
//!
//! `start` has the whole life of the process, from bound ports to the end. `open` opens a data
//! directory in steps: `data` (the database), `keyring`, `log` (begun or found, free or `held`),
//! then `writer`, `integrating`, the other threads, and the services over them. `own` commits the
//! daemon's own entries before it serves. `listeners` has its ports.

pub mod data;
pub mod entries;
mod error;
pub mod health;
mod held;
mod integrating;
mod keyring;
mod listeners;
mod log;
mod open;
pub mod own;
mod owners;
mod start;
mod writer;

pub use self::{
    error::StartError,
    start::{Running, start},
};
