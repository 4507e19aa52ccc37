//! The free space on the disk of a data directory.
//!
//! New work is refused while there is still enough for work under way: runs must settle, the WAL
//! must be copied into the database, and `accounts.json` needs a second copy of itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{StoreError, sqlite};

/// The default of bytes that stay free: 64 MiB.
pub const KEEP_FREE: u64 = 64 << 20;

/// The disk of a data directory.
#[derive(Debug)]
pub(crate) struct Room {
    directory: PathBuf,
    wal: PathBuf,
    accounts: PathBuf,
    /// Bytes that must be free for new work; 0: no minimum.
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

    /// The bytes that must be free: the floor, or twice the bytes to be rewritten.
    pub(crate) fn wanted(&self) -> u64 {
        let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        self.floor
            .max(2 * (length(&self.wal) + length(&self.accounts)))
    }

    /// An error of the database, replaced by "the disk is full" if it is: SQLite does not say so if
    /// it failed to make room for its index of the WAL.
    pub(crate) fn explain(&self, error: StoreError) -> StoreError {
        const HARDLY_ANY: u64 = 64 << 10;
        // If the free space is unknown, the error is reported as it is.
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

    /// Whether there is room for new work. If the free space is unknown, there is.
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
