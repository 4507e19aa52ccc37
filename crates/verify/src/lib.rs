//! Offline verification: recompute everything that can be recomputed, and believe nothing else.
//!
//! Five questions, each answered from bytes alone:
//!
//! - [`verify_receipt`]: is this capsule in the log that this key signs, and does its own arithmetic hold?
//! - [`verify_log`]: do all entries hash to the signed root, and does every statement of an entry follow from the
//!   entries before it?
//! - [`audit`]: now that labels are public, do they match the commitment, and was every answer and verdict right?
//! - [`verify_decision`]: is this decision on a tool call in the log that this key signs?
//! - [`Known`]: does the log begin with the entries that were signed earlier?
//!
//! One more question is which keys to trust: [`Trust`] follows a log from one key to the next. [`Check`] names every
//! check; `docs/formats.md` states for each field of each record which check covers it. [`arithmetic`] states the
//! formulas again and does not call the kernel's.
//!
//! The crate fetches nothing, opens no files and trusts no server: the caller brings the bytes. Until a holdout is
//! opened, only the kernel vouches that its evidence reached the threshold; a report never claims more than was
//! recomputed.
//!
//! Invariant: a check passes only if it was made. Anything that is not understood is a finding.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

pub mod arithmetic;
mod audit;
mod capsule;
mod decision;
mod fault;
mod fields;
mod known;
mod log;
mod opening;
mod receipt;
mod trust;
mod verdict;

pub use audit::{AuditFinding, AuditReport, Audited, audit};
pub use capsule::check_capsule;
pub use decision::{DecisionFailure, VerifiedDecision, decision_from_json, verify_decision};
pub use fault::{Check, Fault};
pub use known::{Known, NotKnown};
pub use log::{
    Event, Finding, HoldoutLedger, KeyChain, LogReport, OwnerLedger, Revoked, verify_log,
};
pub use opening::{Opened, Opening, OpeningFailure, Replayed};
pub use receipt::{Failure, Receipt, Verified, verify_receipt};
pub use trust::{Distrust, Trust};
