//! What a database remembers about itself, beside its rows and its log.
//!
//! One value a name: where the log's anchors are, whether the directory was restored from a
//! backup and nobody has said yet what happened since, that a log is about to begin with a key
//! which this start makes, and which policies its log has stated last. They travel with every copy of the database, which is the point: a copy
//! at another path looks at the same anchors, and a copy of a backup is known as one.

use std::path::{Path, PathBuf};

use evidenceos_kernel::in_force::InForce;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{StoreError, row, schema};

/// The table, also where a copy of an older database is marked.
pub(crate) const TABLE: &str = "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;";

const ANCHORS: &str = "anchors";
const RESTORED: &str = "restored";
const BEGINNING: &str = "beginning";
const FORMER: &str = "former";
const IN_FORCE: &str = "in_force";

/// A place that remembers the log's newest head, as the last start that signed had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RememberedAnchor {
    /// One file, by its absolute path.
    File(Vec<u8>),
    /// A directory with a file for each log, by its absolute path.
    Directory(Vec<u8>),
    /// The URL of a published checkpoint.
    Url(String),
}

/// The database is a copy that a backup made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When the backup was made, in Unix milliseconds.
    pub made_unix_ms: u64,
    /// Entries that its log had.
    pub entries: u64,
}

/// A log is about to begin with a key that this very start makes. Noted before the key lies
/// anywhere: if the start dies in between, the next one knows that the key has signed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    /// SHA-256 of the public key.
    pub key_id: [u8; 32],
}

/// Everything that a database remembers about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where anchors are; none: no start has signed beside one yet.
    pub anchors: Option<Vec<RememberedAnchor>>,
    /// Whether it is a copy of which nobody has said what happened since.
    pub restored: Option<Restored>,
    /// Whether a log was about to begin.
    pub beginning: Option<Beginning>,
    /// The names that the log had before it was restarted, the last one last.
    pub former: Vec<String>,
}

/// One of them, as it is to be from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// Replaces [`Facts::anchors`], whatever was there.
    Anchors(Vec<RememberedAnchor>),
    /// Replaces [`Facts::restored`]; `None` clears it.
    Restored(Option<Restored>),
    /// Replaces [`Facts::beginning`]; `None` clears it.
    Beginning(Option<Beginning>),
    /// Replaces [`Facts::former`], whatever was there.
    Former(Vec<String>),
}

impl Facts {
    /// Takes over a fact that was committed.
    pub fn note(&mut self, fact: &Fact) {
        match fact {
            Fact::Anchors(anchors) => self.anchors = Some(anchors.clone()),
            Fact::Restored(restored) => self.restored = *restored,
            Fact::Beginning(beginning) => self.beginning = *beginning,
            Fact::Former(former) => self.former.clone_from(former),
        }
    }
}

/// Reads all facts from their rows; a missing row is the default.
pub(crate) fn read(connection: &Connection) -> Result<Facts, StoreError> {
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
pub(crate) fn read_in_force(connection: &Connection) -> Result<InForce, StoreError> {
    Ok(read_one(connection, IN_FORCE)?.unwrap_or_default())
}

/// Writes the policies that the log states in this transaction.
pub(crate) fn write_in_force(connection: &Connection, in_force: &InForce) -> rusqlite::Result<()> {
    put(connection, IN_FORCE, &row::encode(in_force))
}

/// Writes one within a transaction.
pub(crate) fn write(connection: &Connection, fact: &Fact) -> rusqlite::Result<()> {
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

/// Notes in a database that nobody has open that it is a copy of a backup. One of an older release
/// keeps its version, so that this release and that one can both take it. The file is not synced.
pub(crate) fn mark_restored(database: &Path, restored: Restored) -> Result<(), StoreError> {
    // The flags lack CREATE: a database that is missing must not become an empty one.
    let connection = Connection::open_with_flags(
        database,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    // Nothing is synced here: each caller syncs the file once it is complete.
    connection.execute_batch(&format!(
        "PRAGMA synchronous = OFF; PRAGMA mmap_size = 0; {TABLE}"
    ))?;
    write(&connection, &Fact::Restored(Some(restored)))?;
    // What was written must be in this file, and not in one beside it.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
        row.get::<_, i64>(0)
    })?;
    connection
        .close()
        .map_err(|(_, error)| StoreError::Database(error))
}

/// What lies beside a database as long as it is open, or was not closed.
pub(crate) fn beside(database: &Path) -> [PathBuf; 2] {
    ["-wal", "-shm"].map(|suffix| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// The facts of a data directory that no daemon serves, as they are.
///
/// # Errors
/// Where there is no database, or it cannot be read.
pub fn at_rest(data_directory: &Path) -> Result<Facts, StoreError> {
    let connection = schema::open_at_rest(&schema::path_in(data_directory))?;
    // Nothing is migrated at rest, and a database of an older release has no such table.
    let has_table = connection
        .prepare("SELECT 1 FROM sqlite_schema WHERE name = 'facts'")?
        .exists([])?;
    if has_table {
        read(&connection)
    } else {
        Ok(Facts::default())
    }
}
