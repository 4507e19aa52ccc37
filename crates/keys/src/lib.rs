//! Keys: the ring of signing keys in files, the KMS providers, and the daemon's own secrets.
//!
//! Owns the places of secrets, the users that may read them, and their creation and removal. Does
//! not know the log, checkpoints or holdouts. Secrets are [`zeroize`]d when dropped and never
//! shown.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

mod directory;
mod error;
mod import;
pub mod kms;
mod ring;
pub mod secrets;

pub use directory::Directory;
pub use error::KeyError;
pub use import::{Imported, import};
pub use ring::{KeyId, Ring, public_key};

/// 32 secret bytes, which are overwritten when they are dropped.
pub type Secret = zeroize::Zeroizing<[u8; 32]>;

/// 32 random bytes from the operating system.
///
/// # Errors
/// [`KeyError::Random`] if it has none.
pub fn draw() -> Result<Secret, KeyError> {
    let mut secret = Secret::default();
    getrandom::fill(secret.as_mut_slice()).map_err(KeyError::Random)?;
    Ok(secret)
}
