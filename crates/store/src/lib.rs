//! Durable state: one commit point, and what is projected from it.
//!
//! - [`engine`] is the seam: [`Store`] writes, with [`Store::commit`] as the one commit point,
//!   [`Rows`] reads beside it, [`blobs`] keeps what is too large for a row.
//! - [`sqlite`] is the engine that ships: one transaction a batch, WAL, `synchronous=FULL`.
//!   [`memory`] is the one for tests, with injected faults. No statement and no type of a database
//!   is outside an engine.
//! - [`log`] projects the entries into C2SP tiles and a checkpoint. [`accounts`] projects the accounts
//!   into `accounts.json`.
//! - [`decisions`] packs what tool calls were told, beside the log that has the roots of it.
//! - [`backup`] copies a data directory while it is served, and brings a copy back.
//! - [`fsck`] reads all of a data directory and says what is wrong with it.
//! - [`lock`] keeps a second process out of the directory.
//!
//! Invariants: what [`Outcome::Committed`] was answered for survives any crash; a batch is in the
//! store whole or not at all; no row is served whose checksum does not fit.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

pub mod accounts;
pub mod backup;
mod batch;
pub mod blobs;
pub mod decisions;
pub mod engine;
pub mod facts;
pub mod fsck;
pub mod guard;
pub mod lock;
pub mod log;
pub mod memory;
pub mod room;
pub mod row;
pub mod sqlite;
pub mod state;
pub mod tables;

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use crate::{
    batch::{
        AccountsFile, AccountsFiles, Batch, Entry, Head, Module, ModuleBytes, Recorded,
        StoredDecisions, Trace,
    },
    blobs::Kept,
    engine::{
        Copier, Done, Found, NotCommitted, Observer, OpenedStore, Outcome, Pages, RowBytes, Rows,
        Store, StoreEngine, TakeRow,
    },
};

/// What is larger than this is a file of its own, not a row: 16 KiB.
pub const MAX_ROW_BYTES: usize = 16 * 1_024;

/// Opens the store of a data directory whose lock is held, by the engine that ships. This is the one place
/// that chooses an engine.
///
/// # Errors
/// If it cannot be opened, is another program's, or is damaged in what start-up reads.
pub fn open(data_directory: &Path) -> Result<OpenedStore, StoreError> {
    sqlite::open(data_directory)
}

/// Whether a data directory has a store.
#[must_use]
pub fn exists(data_directory: &Path) -> bool {
    sqlite::exists(data_directory)
}

/// A store could not do what was asked of it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file or directory.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// SQLite reported an error.
    #[error("database: {0}{hint}", hint = hint(.0))]
    Database(#[from] rusqlite::Error),
    /// A row is not what was written.
    #[error(
        "{table} row {key} is damaged: {what}; stop, keep a copy of the data directory, and restore a backup"
    )]
    Damaged {
        table: &'static str,
        /// The row's key, as its table has it.
        key: String,
        what: &'static str,
    },
    /// The data directory is not ours to use.
    #[error("{0}")]
    Unusable(String),
}

/// What an operator can do about an error of the database.
fn hint(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            "; it is damaged: stop, keep a copy of the data directory, see what `evidenceos-daemon fsck` says, and restore a backup"
        }
        Some(rusqlite::ErrorCode::DiskFull) => "; the disk is full: free some space",
        Some(rusqlite::ErrorCode::ReadOnly) => {
            "; the data directory is read-only: remount it for writing, or correct its owner and mode"
        }
        Some(rusqlite::ErrorCode::SystemIoFailure | rusqlite::ErrorCode::CannotOpen) => {
            "; look for disk errors in the kernel's log and at the owner, mode and mount of the data directory"
        }
        _ => "",
    }
}

impl StoreError {
    /// Whether nothing but space on the disk is missing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            Self::Database(error) => {
                error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::Damaged { .. } | Self::Unusable(_) => false,
        }
    }

    /// Whether the file system takes no writes at all.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }

    /// Wraps an I/O error with what was tried on which path.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}
