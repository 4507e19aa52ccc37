//! The daemon put together: started, reloaded, stopped.
//!
//! `start` is the life of the whole, from bound ports to the end; `open` brings a data directory to
//! life in steps: `data` (the database), `keyring`, `log` (begun or found, free or `held`), then
//! `writer`, `integrating` and the other threads, and the services over them. `own` enacts what the
//! daemon itself puts into the log before it serves. `listeners` are its ports.

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
