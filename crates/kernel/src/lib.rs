//! The kernel decides which claims are certified, computes charges, and writes the public records.
//!
//! Everything here is pure. No clock, no randomness, no files, no sockets, no environment, no floats (but for
//! [`planner`], which only advises): time, random bytes and digests of bulk data come inside commands. The same
//! commands in the same order give the same bytes on any machine.
//!
//! - **Rules.** [`state::Stage`] holds what a batch of commands may read, [`decide::decide`] decides each, and only
//!   [`command::Event`]s change state. [`claim`] and [`holdout`] are the entities.
//! - **Credit.** [`account`]: the prices of runs, and the accounts that pay.
//! - **Leakage and evidence.** [`bits`], [`log2`], [`price`], [`null`], [`evidence`], [`score`]: integers, leakage
//!   rounded up, evidence rounded down.
//! - **Probing.** [`probe`]: principals that ask too much, or too many different things. [`decision`]: the records of
//!   decisions on tool calls.
//! - **Public bytes.** [`cj`] (canonical JSON), [`entry`] (log entries of every kind), [`record`] (entries about
//!   claims, holdouts and credit), [`log_key`] (the keys that sign the log), [`continuity`] (its beginning, recovery
//!   and restart), [`trace`], [`split`] (the two parts of a holdout, and the commitment to its labels).
//!
//! The guarantee: for every i, the probability that a holdout's i-th certificate is issued and false is at most α,
//! however many submitters there are and however they adapt.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]
#![deny(clippy::float_arithmetic, clippy::wildcard_enum_match_arm)]

pub mod account;
pub mod bits;
pub mod cj;
pub mod claim;
pub mod command;
pub mod continuity;
pub mod decide;
pub mod decision;
pub mod entry;
pub mod evidence;
pub mod holdout;
pub mod id;
pub mod in_force;
mod kraft;
pub mod log2;
pub mod log_key;
pub mod null;
pub mod planner;
pub mod price;
pub mod probe;
pub mod record;
pub mod refusal;
pub mod score;
pub mod split;
pub mod state;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trace;
mod wide;
