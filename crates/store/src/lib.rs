//! Durable state: one commit point, and the projections of its rows.
//!
//! - [`engine`] is the interface: [`Store`] writes, with [`Store::commit`] as the one commit point, [`Rows`] reads
//!   beside it, [`blobs`] keeps bytes that are too large for a row.
//! - [`sqlite`] is the engine of releases: one transaction a batch, WAL, `synchronous=FULL`. [`memory`] is the engine
//!   for tests, with injected faults. No statement and no database type is outside an engine.
//! - [`log`] projects the entries into C2SP tiles and a checkpoint. [`accounts`] projects the accounts into
//!   `accounts.json`.
//! - [`decisions`] packs the records of decisions on tool calls; the log has their roots.
//! - [`backup`] copies a data directory while it is served, and restores a copy.
//! - [`fsck`] reads a whole data directory and reports its errors.
//! - [`lock`] keeps a second process out of the directory.
//! - [`error`] states the party at fault, and the remedy.
//!
//! Invariants: a batch that was answered with [`Outcome::Committed`] survives any crash; a batch is in the store
//! whole or not at all; the store serves no row whose checksum does not match.

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

/// Larger data is a file of its own, not a row: 16 KiB.
pub const MAX_ROW_BYTES: usize = 16 * 1_024;

/// The engine of a store, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A database of SQLite in this data directory.
    Sqlite(PathBuf),
}

impl Location {
    /// The store of a data directory, with the engine of releases.
    #[must_use]
    pub fn in_directory(data_directory: &Path) -> Self {
        Self::Sqlite(data_directory.to_owned())
    }

    /// Opens the store. The caller holds the lock of its data directory.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if it belongs to another program or a later release, [`StoreError::Damaged`] if rows
    /// that start-up reads are damaged, and the engine's error if it cannot be opened.
    pub fn open(&self) -> Result<OpenedStore, StoreError> {
        match self {
            Self::Sqlite(directory) => sqlite::open(directory),
        }
    }

    /// Whether a store exists here.
    #[must_use]
    pub fn exists(&self) -> bool {
        match self {
            Self::Sqlite(directory) => sqlite::exists(directory),
        }
    }
}
