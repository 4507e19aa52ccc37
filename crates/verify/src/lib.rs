//! Offline verification: believe nothing that can be computed again.
//!
//! Four questions, each answered from bytes alone:
//!
//! - [`verify_receipt`]: is this capsule in the log that this key signs, and does its own arithmetic hold?
//! - [`verify_log`]: do all entries hash to the signed root, and do every k, price, threshold and debit follow
//!   from the entries before?
//! - [`Opening::check`] and [`Opened::check_trace`]: now that the labels are public, were they the ones committed
//!   to, and was every answer and verdict right?
//!
//! - [`verify_decision`]: is what a tool call was told in the log that this key signs?
//!
//! Which keys to believe is a fifth: [`Trust`] follows a log from one key to the next.
//!
//! What it deliberately does not do: fetch anything, open files, or trust a server. Who reads bytes from disk or
//! network is the caller. Until a holdout is opened, that its evidence reached the threshold rests on the kernel;
//! a report never says more than was recomputed.
//!
//! Invariant: a check passes only if it was made. What is not understood and could matter is a finding.

pub mod arithmetic;
mod capsule;
mod decision;
mod fault;
mod log;
mod opening;
mod receipt;
mod trust;

pub use capsule::check_capsule;
pub use decision::{DecisionFailure, VerifiedDecision, decision_from_json, verify_decision};
pub use fault::Fault;
pub use log::{Finding, HoldoutLedger, LogReport, OwnerLedger, verify_log};
pub use opening::{Opened, Opening, OpeningFailure, Replayed};
pub use receipt::{Failure, Receipt, Verified, verify_receipt};
pub use trust::{Distrust, Trust};
