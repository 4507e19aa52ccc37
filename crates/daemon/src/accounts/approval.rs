//! An operator's approval to import an edited `accounts.json`. It is a file that the next start
//! reads.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use evidenceos_store::{
    FileError,
    blobs::{sync_directory, write_durably},
};
use serde::{Deserialize, Serialize};

use super::error::AccountsError;

/// An operator's approval to import a file at the next start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Approval {
    /// Digest of the file.
    pub sha256: [u8; 32],
    /// In the operator's words; 1–256 bytes.
    pub reason: String,
}

fn path(directory: &Path) -> PathBuf {
    directory.join("accounts.import")
}

impl Approval {
    /// The approval that the next start would use, if there is one.
    ///
    /// # Errors
    /// [`AccountsError::Io`] if it cannot be read, [`AccountsError::Approval`] if it is damaged.
    pub fn waiting(directory: &Path) -> Result<Option<Self>, AccountsError> {
        let path = path(directory);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::of("read", path)(error).into()),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| AccountsError::Approval { path, source })
    }

    /// Writes the approval for the next start.
    ///
    /// # Errors
    /// [`AccountsError::Store`] if it cannot be written.
    pub fn give(&self, directory: &Path) -> Result<(), AccountsError> {
        let approval = serde_json::to_vec(self)
            .unwrap_or_else(|error| unreachable!("a digest and a text are JSON: {error}"));
        Ok(write_durably(&path(directory), &approval)?)
    }

    /// Removes the approval, if there is one.
    ///
    /// # Errors
    /// [`AccountsError::Io`] if it cannot be removed.
    pub fn withdraw(directory: &Path) -> Result<(), AccountsError> {
        let path = path(directory);
        match fs::remove_file(&path) {
            Ok(()) => Ok(sync_directory(directory)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(FileError::of("remove", path)(error).into()),
        }
    }
}
