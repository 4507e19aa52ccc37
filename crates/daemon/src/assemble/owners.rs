//! The owners' secret. It must be the secret that made the tags of the accounts.

use evidenceos_access::Owners;
use evidenceos_keys::{Directory, KeyError, secrets};
use evidenceos_store::{Rows, StoreError};
use thiserror::Error;

/// Why the owners' secret cannot be used.
#[derive(Debug, Error)]
pub enum OwnersError {
    /// The accounts' tags were made with another secret.
    #[error(
        "owners.secret differs from the one that the daemon last used: every principal would have another name. Bring secrets/owners.secret back from a backup"
    )]
    Other,
    /// The first account cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The secret that keys the owner tags.
///
/// # Errors
/// If other users can read it, or if it is missing although there is a log.
pub fn open(
    own: &Directory,
    imported: Option<&Directory>,
    first_start: bool,
) -> Result<Owners, KeyError> {
    secrets::open(imported, own, secrets::OWNERS, first_start).map(Owners::new)
}

/// Compares the secret with the first account. Another secret would give every principal another
/// tag, and they would lose their claims and credit.
///
/// # Errors
/// [`OwnersError::Other`] if the secret is another one: bring the old one back.
/// [`OwnersError::Store`] if the account cannot be read.
pub fn must_be_these(owners: &Owners, rows: &dyn Rows) -> Result<(), OwnersError> {
    let first = rows.accounts(0, 1)?.pop();
    match first.filter(|account| account.is_named()) {
        Some(account) if owners.tag(&account.principal) != account.owner => Err(OwnersError::Other),
        _ => Ok(()),
    }
}
