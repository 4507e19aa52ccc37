//! Kills the daemon or cuts its power, and checks what is left.
//!
//! [`world`] leads the real daemon, as a child process, through rounds of load, death and restart: at random moments,
//! or at every point that `evidenceos-failpoint` names. [`power`] builds, from a record of all of a daemon's file
//! operations, the directories that a power cut could have left, and starts a daemon on each. Both compare with
//! [`ledger`], which knows the replies that clients got.
//!
//! The claim: after any of it the daemon starts without help, and everything that was acknowledged is there exactly
//! once. Everything random comes from a seed, which is printed if something fails.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

pub mod campaign;
pub mod check;
pub mod client;
pub mod copies;
pub mod daemon;
pub mod dice;
pub mod ledger;
pub mod load;
pub mod modules;
pub mod power;
pub mod recorder;
pub mod world;

use std::fmt::Display;

/// A check that does not hold.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

/// A failure with this reason.
pub fn fail(why: impl Display) -> Failed {
    Failed(why.to_string())
}
