//! Secrets of the daemon's own: one file each, 32 random bytes.
//!
//! | file | what | if lost |
//! |---|---|---|
//! | `owners.secret` | keys the owner tags in public records | the claims have no owners any more |
//! | `holdouts.secret` | encrypts the holdouts | the holdouts are gone |
//!
//! The daemon creates them in `<data-dir>/secrets/`, since the key directory may be read-only and
//! reserved for signing keys. It also uses secrets in the key directory (imported, or copied there
//! by an operator).

use std::path::Path;

use crate::{Directory, KeyError, Secret, draw};

/// The secret that keys the owner tags.
pub const OWNERS: &str = "owners.secret";
/// The key that encrypts the holdouts' blobs.
pub const HOLDOUTS: &str = "holdouts.secret";
/// Every secret of a data directory, by its file name.
pub const NAMES: [&str; 2] = [OWNERS, HOLDOUTS];

/// A secret of the data directory: from the key directory, or else from our own, or else new if
/// nothing depends on it yet.
///
/// # Errors
/// [`KeyError`] if it is open to others, or missing although there is a log.
pub fn open(
    keys: Option<&Directory>,
    own: &Directory,
    name: &str,
    first_start: bool,
) -> Result<Secret, KeyError> {
    if let Some(keys) = keys
        && let Some(secret) = keys.read(name)?
    {
        return Ok(secret);
    }
    if let Some(secret) = own.read(name)? {
        return Ok(secret);
    }
    // A new secret in place of a lost one would leave claims without owners, or holdouts
    // unreadable.
    if !first_start {
        return Err(KeyError::Missing(own.path().join(name)));
    }
    let secret = draw()?;
    // Make the secret durable before anything is tagged or encrypted under it.
    own.write(name, &secret)?;
    Ok(secret)
}

/// The directory of the daemon's own secrets.
///
/// # Errors
/// [`KeyError`] if it cannot be created, or is open to others.
pub fn directory(data_directory: &Path) -> Result<Directory, KeyError> {
    Directory::open_or_create(&data_directory.join("secrets"))
}
