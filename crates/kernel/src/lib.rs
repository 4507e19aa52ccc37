//! The kernel: what may be certified, what it costs, and what is recorded of it.
//!
//! Everything here is pure. No clock, no randomness, no files, no sockets, no environment, no
//! floats (but for [`planner`], which only advises): time, random bytes and digests of bulk data
//! come inside commands. The same commands in the same order give the same bytes on any machine.
//!
//! - **Rules.** [`state::Stage`] holds what a batch of commands may read, [`decide::decide`] says
//!   what becomes of each, [`command::Event`]s are all that changes state. [`claim`] and
//!   [`holdout`] are the entities.
//! - **Credit.** [`account`]: what runs cost, and who pays.
//! - **Leakage and evidence.** [`bits`], [`log2`], [`price`], [`null`], [`evidence`], [`score`]: integers,
//!   leakage rounded up, evidence rounded down.
//! - **Probing.** [`probe`]: who asks too much, too variously. [`decision`]: what tool calls were told.
//! - **Public bytes.** [`cj`] (canonical JSON), [`entry`] (log entries of every kind), [`record`]
//!   (what they say of claims, holdouts and credit), [`log_key`] (which keys sign the log),
//!   [`continuity`] (how it began and went on), [`trace`], [`split`] (which item is in which part, and the commitment to the labels).
//!
//! What it must guarantee: the probability that an i-th claim is certified on a holdout and that
//! it is false is at most α, however cleverly and however often submitters asked before.

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
