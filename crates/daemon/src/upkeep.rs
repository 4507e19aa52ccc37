//! What an operator does with a data directory: back it up, bring it back, check it, recover its log.
//!
//! These are commands of their own, beside serving. A running daemon is asked over its control
//! socket; a directory that nobody serves is locked first.

pub mod backup;
pub mod fsck;
pub mod log;
