//! That an operator wants an edited `accounts.json` imported: a file that the next start finds.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use evidenceos_store::{
    StoreError,
    blobs::{sync_directory, write_durably},
};
use serde::{Deserialize, Serialize};

/// That an operator wants a file imported; the next start does it.
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
    /// The approval that waits, if there is one.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged.
    pub fn waiting(directory: &Path) -> Result<Option<Self>, StoreError> {
        let path = path(directory);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            StoreError::Unusable(format!(
                "{} is damaged ({error}); run `accounts import` or `accounts export` again",
                path.display()
            ))
        })
    }

    /// Lays the approval down for the next start.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn give(&self, directory: &Path) -> Result<(), StoreError> {
        let approval = serde_json::to_vec(self)
            .unwrap_or_else(|error| unreachable!("a digest and a text are JSON: {error}"));
        write_durably(&path(directory), &approval)
    }

    /// Removes the approval, if there is one.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn withdraw(directory: &Path) -> Result<(), StoreError> {
        let path = path(directory);
        match fs::remove_file(&path) {
            Ok(()) => sync_directory(directory),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("remove", path)(error)),
        }
    }
}
