//! The holdouts' labels, and all code that reads them.
//!
//! - [`vault`] encrypts and decrypts labels; [`keys`] has the keys for that, in files or wrapped by
//!   a KMS.
//! - [`agreement`] tests whether labels are those of a registered holdout.
//! - [`runs`] runs guests and meters their questions; an [`Overseer`] may veto their judgement.
//!
//! No other crate sees a label, except the edge that receives a registration.
//!
//! Invariant: no question is answered before it is paid for, and the only result of a run on the
//! sealed part is its score.

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
