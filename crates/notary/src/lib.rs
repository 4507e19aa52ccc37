//! Signs the log, and makes signatures final.
//!
//! - [`keys`] finds the key that signs and those before it, in files or a KMS; [`rotation`]
//!   replaces the signing key while the log is served.
//! - [`anchors`] remembers the newest head outside of the data directory, and says whether a start
//!   may sign; [`fetch`] reads an anchor, or any other log, over HTTP.
//! - [`release`] shows what is durable once an anchor covers it.
//!
//! Does not decide what goes into the log, and does not keep it.
//!
//! Invariant: nothing that an entry is about is shown before an anchor covers the entry.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

pub mod anchors;
mod config;
pub mod fetch;
pub mod keys;
pub mod release;
pub mod rotation;
mod shown;

pub use config::{KeyConfig, KeySource, KmsKeys};
pub use keys::{InMemory, Keys, LogKeyError, LogKeys, LogSigner};
pub use shown::{ShownHead, ShownHeadCollector};
