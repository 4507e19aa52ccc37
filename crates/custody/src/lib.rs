//! The custodian's private items, and whatever touches them.
//!
//! - [`vault`] keeps labels encrypted and opens them; [`keys`] has the keys that they are encrypted
//!   under, in files or wrapped by a KMS.
//! - [`agreement`] says whether labels are those of a holdout that is there.
//! - [`runs`] has guests run, whose questions are metered here; an [`Overseer`] watches.
//!
//! No other crate sees a label, but for the edge on which one is registered.
//!
//! Invariant: nothing is answered before it is paid for, and what a run says of the sealed part is
//! its score alone.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

pub mod agreement;
pub mod keys;
mod metered;
pub mod runs;
pub mod vault;

pub use keys::{HoldoutKey, HoldoutKeyError, HoldoutKeys, KeyShelf};
pub use runs::{Ended, Guests, Overseer, Pool, Vetoed};
pub use vault::{Binding, Items, OpenHoldout, Vault, VaultError};
