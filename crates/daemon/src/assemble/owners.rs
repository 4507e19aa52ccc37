//! The owners' secret: it must be the one that the accounts were named with.

use evidenceos_access::Owners;
use evidenceos_keys::{Directory, KeyError, secrets};
use evidenceos_store::{Rows, StoreError};
use thiserror::Error;

/// Why nobody's tag can be made.
#[derive(Debug, Error)]
pub enum OwnersError {
    /// It is not the secret that the tags of the accounts were made with.
    #[error(
        "owners.secret is not the one that this directory was served with: every principal would be somebody else. Bring secrets/owners.secret back from a backup"
    )]
    Other,
    /// The first account cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The secret that keys the owner tags.
///
/// # Errors
/// Where it is open to others, or missing although there is a log.
pub fn open(
    own: &Directory,
    imported: Option<&Directory>,
    first_start: bool,
) -> Result<Owners, KeyError> {
    secrets::open(imported, own, secrets::OWNERS, first_start).map(Owners::new)
}

/// Another owners' secret would give every principal another tag: nobody would find their claims
/// and credit again. The first account tells.
///
/// # Errors
/// [`OwnersError::Other`] if the secret is another; [`OwnersError::Store`] if the account cannot be
/// read.
pub fn must_be_these(owners: &Owners, rows: &dyn Rows) -> Result<(), OwnersError> {
    let first = rows.accounts(0, 1)?.pop();
    match first.filter(|account| account.is_named()) {
        Some(account) if owners.tag(&account.principal) != account.owner => Err(OwnersError::Other),
        _ => Ok(()),
    }
}
