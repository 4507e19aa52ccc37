//! Kills the daemon and takes its power away, and looks at what is left.
//!
//! [`world`] leads the real daemon, as a child process, through rounds of load, death and restart: at
//! random moments, or at every point that `evidenceos-failpoint` names. [`power`] builds, from a record of
//! everything that a daemon did to its files, the directories that a power cut could have left, and
//! starts a daemon on each. Both compare with [`ledger`], which knows what the clients were told.
//!
//! What holds: after any of it the daemon starts without a hand, and everything that was acknowledged is
//! there exactly once. Everything random comes from a seed, which is printed where something fails.

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

/// Something that must hold does not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

/// Says what does not hold.
pub fn fail(why: impl Display) -> Failed {
    Failed(why.to_string())
}
