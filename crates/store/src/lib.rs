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
//! - [`error`] says whose fault it is, and what mends it.
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
pub mod error;
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

use std::path::{Path, PathBuf};

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
    error::{DatabaseError, DatabaseFault, FileError, StoreError},
};

/// What is larger than this is a file of its own, not a row: 16 KiB.
pub const MAX_ROW_BYTES: usize = 16 * 1_024;

/// Which engine keeps a store, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A database of SQLite in this data directory.
    Sqlite(PathBuf),
}

impl Location {
    /// The store of a data directory, by the engine that ships.
    #[must_use]
    pub fn in_directory(data_directory: &Path) -> Self {
        Self::Sqlite(data_directory.to_owned())
    }

    /// Opens the store. The lock of its data directory is held.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if it is another program's or of a later release,
    /// [`StoreError::Damaged`] if it is damaged in what start-up reads, and what the engine says if it
    /// cannot be opened.
    pub fn open(&self) -> Result<OpenedStore, StoreError> {
        match self {
            Self::Sqlite(directory) => sqlite::open(directory),
        }
    }

    /// Whether there is a store.
    #[must_use]
    pub fn exists(&self) -> bool {
        match self {
            Self::Sqlite(directory) => sqlite::exists(directory),
        }
    }
}
