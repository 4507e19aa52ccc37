//! How much room the disk of a data directory has.
//!
//! New work is refused while there is still enough for what was begun: runs under way must settle,
//! the WAL must be copied into the database, and `accounts.json` needs a second copy of itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{StoreError, sqlite};

/// Bytes that stay free unless told otherwise: 64 MiB.
pub const KEEP_FREE: u64 = 64 << 20;

/// The disk of a data directory.
#[derive(Debug)]
pub(crate) struct Room {
    directory: PathBuf,
    wal: PathBuf,
    accounts: PathBuf,
    /// Bytes that must be free for new work; 0: anything will do.
    pub(crate) floor: u64,
}

impl Room {
    pub(crate) fn new(data_directory: &Path) -> Self {
        let mut wal = sqlite::path_in(data_directory).into_os_string();
        wal.push("-wal");
        Self {
            directory: data_directory.to_owned(),
            wal: wal.into(),
            accounts: data_directory.join("accounts.json"),
            floor: KEEP_FREE,
        }
    }

    /// What must be free: the floor, or twice what is written again.
    pub(crate) fn wanted(&self) -> u64 {
        let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        self.floor
            .max(2 * (length(&self.wal) + length(&self.accounts)))
    }

    /// An error of the database, and that the disk is full if it is: SQLite cannot tell where it
    /// failed to make room for its index of the WAL.
    pub(crate) fn explain(&self, error: StoreError) -> StoreError {
        const HARDLY_ANY: u64 = 64 << 10;
        // If the disk does not say, the error is told as it is.
        let free = rustix::fs::statvfs(&self.directory)
            .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        match error {
            StoreError::Database(error) if free < HARDLY_ANY => StoreError::Full {
                what: format!(
                    "the disk of {} is full ({free} bytes are free; the database says: {})",
                    self.directory.display(),
                    error.source
                ),
            },
            error => error,
        }
    }

    /// Whether there is room for new work. A disk that does not say is taken to have it.
    pub(crate) fn suffices(&self) -> bool {
        if self.floor == 0 {
            return true;
        }
        match rustix::fs::statvfs(&self.directory) {
            Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize) >= self.wanted(),
            Err(_) => true,
        }
    }
}
