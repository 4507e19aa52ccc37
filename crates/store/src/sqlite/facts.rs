//! The table of facts that a database stores about itself.

use std::path::{Path, PathBuf};

use evidenceos_kernel::in_force::InForce;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use serde::de::DeserializeOwned;

use super::schema;
use crate::{
    StoreError,
    facts::{Fact, Facts, Restored},
    row,
};

/// The table; also created in a copy of an older database when it is marked.
pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;";

const ANCHORS: &str = "anchors";
const RESTORED: &str = "restored";
const BEGINNING: &str = "beginning";
const FORMER: &str = "former";
const IN_FORCE: &str = "in_force";

/// Reads all facts from their rows; a missing row is the default.
pub(super) fn read(connection: &Connection) -> Result<Facts, StoreError> {
    Ok(Facts {
        anchors: read_one(connection, ANCHORS)?,
        restored: read_one(connection, RESTORED)?,
        beginning: read_one(connection, BEGINNING)?,
        former: read_one(connection, FORMER)?.unwrap_or_default(),
    })
}

fn read_one<T: DeserializeOwned>(
    connection: &Connection,
    name: &'static str,
) -> Result<Option<T>, StoreError> {
    let bytes: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| {
            row.get(0)
        })
        .optional()?;
    bytes
        .map(|bytes| row::decode("facts", name, &bytes))
        .transpose()
}

/// The policies that the log stated last.
pub(super) fn read_in_force(connection: &Connection) -> Result<InForce, StoreError> {
    Ok(read_one(connection, IN_FORCE)?.unwrap_or_default())
}

/// Writes the policies that the log states in this transaction.
pub(super) fn write_in_force(connection: &Connection, in_force: &InForce) -> rusqlite::Result<()> {
    put(connection, IN_FORCE, &row::encode(in_force))
}

/// Writes one fact within a transaction.
pub(super) fn write(connection: &Connection, fact: &Fact) -> rusqlite::Result<()> {
    let (name, bytes) = match fact {
        Fact::Anchors(anchors) => (ANCHORS, Some(row::encode(anchors))),
        Fact::Restored(restored) => (RESTORED, restored.as_ref().map(row::encode)),
        Fact::Beginning(beginning) => (BEGINNING, beginning.as_ref().map(row::encode)),
        Fact::Former(former) => (FORMER, Some(row::encode(former))),
    };
    match bytes {
        Some(bytes) => put(connection, name, &bytes),
        None => connection
            .execute("DELETE FROM facts WHERE name = ?1", [name])
            .map(drop),
    }
}

fn put(connection: &Connection, name: &str, bytes: &[u8]) -> rusqlite::Result<()> {
    let statement = "INSERT INTO facts (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = ?2";
    connection
        .execute(statement, params![name, bytes])
        .map(drop)
}

/// Notes in a database that no process has open that it is a copy made by a backup. A database of an older release
/// keeps its version, so that both that release and this one can open it. The file is not synced.
///
/// # Errors
/// [`StoreError`] if it cannot be opened or written.
pub fn mark_restored(database: &Path, restored: Restored) -> Result<(), StoreError> {
    // The flags lack CREATE: a missing database must not become an empty one.
    let connection = Connection::open_with_flags(
        database,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    // Nothing is synced here: each caller syncs the file once it is complete.
    connection.execute_batch(&format!(
        "PRAGMA synchronous = OFF; PRAGMA mmap_size = 0; {TABLE}"
    ))?;
    write(&connection, &Fact::Restored(Some(restored)))?;
    // The written data must be in this file, not in one beside it.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
        row.get::<_, i64>(0)
    })?;
    connection.close().map_err(|(_, error)| error.into())
}

/// The files beside a database that is open, or was not closed: its WAL, and the index of it.
pub fn beside(database: &Path) -> [PathBuf; 2] {
    ["-wal", "-shm"].map(|suffix| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// The facts of a data directory that no daemon serves, unchanged.
///
/// # Errors
/// [`StoreError`] if there is no database, or it cannot be read.
pub fn at_rest(data_directory: &Path) -> Result<Facts, StoreError> {
    let connection = schema::open_at_rest(&schema::path_in(data_directory))?;
    // Nothing is migrated at rest, and a database of an older release lacks this table.
    let has_table = connection
        .prepare("SELECT 1 FROM sqlite_schema WHERE name = 'facts'")?
        .exists([])?;
    if has_table {
        read(&connection)
    } else {
        Ok(Facts::default())
    }
}
