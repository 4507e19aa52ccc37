//! Tables, pragmas, and opening the database.
//!
//! State rows are opaque (see [`crate::row`]): the kernel owns their content, SQLite their order.
//! Claims, entries and the journal have integer keys and grow at the right edge; on the hot path
//! only the claim id and the create's remembered request are under random keys.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use evidenceos_failpoint::{self as failpoint, Point};
use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::facts;
use crate::StoreError;

/// "EvOS", so that another program's database is not mistaken for ours.
const APPLICATION_ID: i32 = 0x4576_4f53;
/// The database's name in a data directory. SQLite adds `-wal` and `-shm`.
pub const DATABASE: &str = "evidenceos.db";
/// The version of the tables below.
const SCHEMA_VERSION: i32 = 7;

const TABLES: &str = "
CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, row BLOB NOT NULL) STRICT;
CREATE TABLE holdouts (seq INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE claims (seq INTEGER PRIMARY KEY, claim_id BLOB NOT NULL UNIQUE, owner BLOB NOT NULL, row BLOB NOT NULL) STRICT;
CREATE INDEX claims_by_owner ON claims (owner);
CREATE TABLE pools (holdout BLOB NOT NULL, owner BLOB NOT NULL, row BLOB NOT NULL, PRIMARY KEY (holdout, owner)) STRICT, WITHOUT ROWID;
CREATE TABLE remembered_0 (key BLOB PRIMARY KEY, row BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE remembered_1 (key BLOB PRIMARY KEY, row BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE entries (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL, bytes BLOB NOT NULL) STRICT;
CREATE TABLE revocations (idx INTEGER PRIMARY KEY, claim_seq INTEGER NOT NULL) STRICT;
CREATE TABLE journal (seq INTEGER PRIMARY KEY, bytes BLOB NOT NULL, chain BLOB NOT NULL) STRICT;
CREATE TABLE modules (seq INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, bytes BLOB, claims INTEGER) STRICT;
CREATE INDEX displaced_modules ON modules (claims) WHERE claims = 0;
CREATE TABLE traces (claim_seq INTEGER PRIMARY KEY, hash BLOB NOT NULL, bytes BLOB) STRICT;
CREATE TABLE blobs (hash BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE log_keys (since_size INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE accounts (seq INTEGER PRIMARY KEY, owner BLOB NOT NULL UNIQUE, row BLOB NOT NULL) STRICT;
CREATE TABLE decisions (first INTEGER PRIMARY KEY, idx INTEGER NOT NULL, recorded_unix_ms INTEGER NOT NULL, records BLOB NOT NULL) STRICT;
CREATE TABLE questions (question BLOB PRIMARY KEY, claim_id BLOB NOT NULL) STRICT, WITHOUT ROWID;
";

/// The migration from each older version, from version 1 on.
const MIGRATIONS: [&str; 6] = [
    "CREATE TABLE log_keys (since_size INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;",
    "CREATE TABLE accounts (seq INTEGER PRIMARY KEY, owner BLOB NOT NULL UNIQUE, row BLOB NOT NULL) STRICT;",
    "CREATE TABLE decisions (first INTEGER PRIMARY KEY, idx INTEGER NOT NULL, recorded_unix_ms INTEGER NOT NULL, records BLOB NOT NULL) STRICT;",
    "CREATE TABLE questions (question BLOB PRIMARY KEY, claim_id BLOB NOT NULL) STRICT, WITHOUT ROWID;",
    // A restore may have added it to a backup of an older release.
    facts::TABLE,
    // Earlier releases did not count the claims that name a module, so their modules stay.
    "ALTER TABLE modules ADD COLUMN claims INTEGER;
     CREATE INDEX displaced_modules ON modules (claims) WHERE claims = 0;",
];

/// The path of the database in a data directory.
pub fn path_in(data_directory: &Path) -> PathBuf {
    data_directory.join(DATABASE)
}

/// Demands that a directory has a database.
pub fn must_be_there(data_directory: &Path) -> Result<(), StoreError> {
    let path = path_in(data_directory);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Ok(()),
        _ => Err(StoreError::refused(
            format!("{} is missing or empty", path.display()),
            "give the --data-dir of a daemon, or restore a backup",
        )),
    }
}

/// Demands that a directory without a database has no other data of ours: a log or blobs whose
/// database is gone must not start over.
pub fn must_not_be_lost(data_directory: &Path) -> Result<(), StoreError> {
    if must_be_there(data_directory).is_ok() {
        return Ok(());
    }
    must_be_alone(data_directory)
}

fn must_be_alone(data_directory: &Path) -> Result<(), StoreError> {
    for name in ["log", "blobs"] {
        let beside = data_directory.join(name);
        if is_filled(&beside) {
            return Err(StoreError::refused(
                format!(
                    "{} is missing or empty, but {} is not: the database was lost, and a new one would fork the log and forget what has leaked",
                    path_in(data_directory).display(),
                    beside.display()
                ),
                "Bring it back, or restore a backup into an empty directory (`evidenceos-daemon restore`) and recover the rest (`evidenceos-daemon log recover`); for a new server give another --data-dir",
            ));
        }
    }
    Ok(())
}

/// Whether a directory has any file below it.
fn is_filled(directory: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let path = entry.path();
        !path.is_dir() || is_filled(&path)
    })
}

/// Demands that the tables are those of this release.
pub fn must_be_current(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let (_, version, _) = identity(connection)?;
    if version == SCHEMA_VERSION {
        return Ok(());
    }
    Err(StoreError::refused(
        format!(
            "{} has version {version} of the tables, this program checks version {SCHEMA_VERSION}",
            path.display()
        ),
        "start the daemon of this release once, which brings them up to date",
    ))
}

/// Opens the writer's connection; creates the tables in a new database.
pub fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    make_private(path)?;
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    // 4 MiB of cache: most pages of a larger one are full and never read again, and SQLite scans all of it whenever
    // it has balanced a tree. No memory map, since a truncated file would be a SIGBUS. During the opening the last
    // connection of the previous process may still be closing.
    connection
        .execute_batch(
            "PRAGMA busy_timeout = 2000;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 0;
             PRAGMA journal_size_limit = -1;
             PRAGMA cache_size = -4096;
             PRAGMA mmap_size = 0;
             PRAGMA temp_store = MEMORY;
             PRAGMA cell_size_check = ON;
             PRAGMA trusted_schema = OFF;
             PRAGMA foreign_keys = OFF;",
        )
        .map_err(|error| not_a_database(path, error))?;
    connection.set_prepared_statement_cache_capacity(64);
    prepare_tables(&connection, path)?;
    Ok(connection)
}

/// Creates the file if it is missing, so that SQLite does not create one that all users can read:
/// the files beside it take over its mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(StoreError::io("create", path)(error))
        }
        _ => Ok(()),
    }
}

/// From now on no other process writes: a busy database means a broken fence, and waiting would
/// hide it.
pub fn fence_off(connection: &Connection) -> Result<(), StoreError> {
    Ok(connection.busy_timeout(Duration::ZERO)?)
}

/// Opens a connection that only reads. Its cache is small: every commit of the writer empties it,
/// and emptying a large one takes longer than reading a few pages again.
pub fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    // Readers write marks into the index of the WAL, so they need the right to write; `query_only`
    // protects the data from them.
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.execute_batch(
        "PRAGMA query_only = ON;
         PRAGMA busy_timeout = 1000;
         PRAGMA cache_size = -256;
         PRAGMA mmap_size = 0;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;",
    )?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Opens a database that no process has open, to read it as it is: no table is created or changed,
/// and the WAL keeps its content.
pub fn open_at_rest(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    // If there is a WAL, SQLite must index it. If there is none, not even that file is created.
    let opened = if has_wal(path) {
        Connection::open_with_flags(path, flags)
    } else {
        Connection::open_with_flags(immutable(path), flags | OpenFlags::SQLITE_OPEN_URI)
    };
    let connection = opened.map_err(|error| not_a_database(path, error))?;
    // Without this, closing the last connection would copy the WAL into the database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection
        .execute_batch(
            "PRAGMA busy_timeout = 2000;
             PRAGMA cache_size = -32768;
             PRAGMA mmap_size = 0;
             PRAGMA temp_store = MEMORY;
             PRAGMA trusted_schema = OFF;
             PRAGMA cell_size_check = ON;",
        )
        .map_err(|error| not_a_database(path, error))?;
    connection.set_prepared_statement_cache_capacity(64);
    let (application, version, _) =
        identity(&connection).map_err(|error| not_a_database(path, error))?;
    check_application(path, application)?;
    if !(1..=SCHEMA_VERSION).contains(&version) {
        return Err(other_version(path, version));
    }
    Ok(connection)
}

fn has_wal(path: &Path) -> bool {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    std::fs::metadata(wal).is_ok_and(|metadata| metadata.len() > 0)
}

/// The URI of a database that no process writes.
fn immutable(path: &Path) -> String {
    use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _};
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        // In a URI, `?` or `#` would end the path.
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02x}");
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// Opens the database that a copy is made into. It is not synced here, and needs no journal: an
/// interrupted copy is thrown away.
pub fn open_copy(directory: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(
        path_in(directory),
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.execute_batch(
        "PRAGMA journal_mode = OFF;
         PRAGMA synchronous = OFF;
         PRAGMA mmap_size = 0;",
    )?;
    Ok(connection)
}

/// Application id, version of the tables, number of tables.
fn identity(connection: &Connection) -> rusqlite::Result<(i32, i32, i64)> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0));
    let (application, version): (i32, i32) = (pragma("application_id")?, pragma("user_version")?);
    let tables =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok((application, version, tables))
}

fn check_application(path: &Path, application: i32) -> Result<(), StoreError> {
    if application == APPLICATION_ID {
        return Ok(());
    }
    Err(StoreError::refused(
        format!("{} is a database of another program", path.display()),
        "give the daemon a --data-dir of its own",
    ))
}

fn other_version(path: &Path, version: i32) -> StoreError {
    StoreError::refused(
        format!(
            "{} has version {version} of the tables, this program knows version {SCHEMA_VERSION}",
            path.display()
        ),
        "run the release that wrote it, or a newer one",
    )
}

fn prepare_tables(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let (application, version, tables) = identity(connection)?;
    if tables == 0 {
        // A database whose WAL was lost before its first checkpoint looks like a new one.
        must_be_alone(path.parent().unwrap_or(Path::new("")))?;
        // One transaction creates all tables: a crash in it leaves a database without any, which
        // the next start takes for a new one.
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {TABLES}
             {}
             PRAGMA application_id = {APPLICATION_ID};
             PRAGMA user_version = {SCHEMA_VERSION};
             COMMIT;",
            facts::TABLE
        ))?;
        return Ok(());
    }
    check_application(path, application)?;
    if (1..SCHEMA_VERSION).contains(&version) {
        let steps = MIGRATIONS[version as usize - 1..].concat();
        // The version changes in the transaction of the migrations, so a crash leaves the old
        // version with its own tables.
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {steps}"))?;
        failpoint::pass(Point::SchemaMigrateMid);
        connection.execute_batch(&format!("PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"))?;
        return Ok(());
    }
    if version != SCHEMA_VERSION {
        return Err(other_version(path, version));
    }
    Ok(())
}

fn not_a_database(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            StoreError::refused(
                format!(
                    "{} is damaged, or no database at all ({error})",
                    path.display()
                ),
                "keep a copy, then restore the data directory from a backup",
            )
        }
        Some(rusqlite::ErrorCode::DatabaseBusy) => StoreError::locked(
            format!("{} is held by another program", path.display()),
            "stop it first",
        ),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pragma(connection: &Connection, name: &str) -> String {
        connection
            .query_row(&format!("PRAGMA {name}"), [], |row| {
                row.get_ref(0).map(|value| match value.as_str() {
                    Ok(text) => text.to_owned(),
                    Err(_) => value.as_i64().unwrap_or(-1).to_string(),
                })
            })
            .expect("a pragma of SQLite")
    }

    #[test]
    fn connections_are_set_up_for_durable_commits_and_no_surprises() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = path_in(directory.path());
        let writer = open_writer(&path).expect("a new database");
        let reader = open_reader(&path).expect("the writer made it");
        fence_off(&writer).expect("a setting");
        let check = |connection: &Connection, name: &str, value: &str| {
            assert_eq!(pragma(connection, name), value, "{name}");
        };
        check(&writer, "journal_mode", "wal");
        check(&writer, "synchronous", "2");
        check(&writer, "wal_autocheckpoint", "0");
        check(&writer, "foreign_keys", "0");
        check(&writer, "busy_timeout", "0");
        check(&writer, "page_size", "4096");
        check(&writer, "auto_vacuum", "0");
        check(&writer, "application_id", &APPLICATION_ID.to_string());
        check(&reader, "query_only", "1");
        for connection in [&writer, &reader] {
            check(connection, "mmap_size", "0");
            check(connection, "trusted_schema", "0");
            check(connection, "cell_size_check", "1");
        }
        assert!(reader.execute("DELETE FROM claims", []).is_err());
    }
}
