//! A transaction of SQLite, and the meaning of a failed one.

use evidenceos_failpoint::{self as failpoint, Point};
use rusqlite::{Connection, ErrorCode};

use crate::{NotCommitted, Outcome, StoreError};

pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    if connection.is_autocommit() {
        connection.prepare_cached("BEGIN")?.execute([])?;
    }
    Ok(())
}

/// A transaction that began with the reads for its batch. Dropping it rolls it back.
pub(super) struct Transaction<'c>(&'c Connection);

impl<'c> Transaction<'c> {
    pub(super) fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        begin(connection)?;
        Ok(Self(connection))
    }

    pub(super) fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // If this fails too, the connection reports that it is still inside: the fate is
            // unknown.
            let _ = self.0.execute_batch("ROLLBACK");
        }
    }
}

impl std::ops::Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

pub(super) enum WriteError {
    Database(rusqlite::Error),
    Fence,
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl WriteError {
    /// The fate of a batch whose write failed. Only a full disk and a broken rule leave no doubt,
    /// and only after SQLite has rolled the transaction back.
    pub(super) fn fate(self, rolled_back: bool) -> Outcome {
        let error = match self {
            Self::Fence => {
                // `NotCommitted` would let this process go on beside the one that took over.
                return Outcome::Unknown(StoreError::locked(
                    "another process has taken over the database",
                    "stop one of the two",
                ));
            }
            Self::Database(error) => error,
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) if rolled_back => Outcome::NotCommitted(NotCommitted::Full),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch)
                if rolled_back =>
            {
                Outcome::NotCommitted(NotCommitted::Constraint(error.into()))
            }
            _ => Outcome::Unknown(error.into()),
        }
    }
}

/// A failpoint at which a crash test injects a full or a broken disk, as SQLite reports it.
pub(super) fn may_fail(point: Point) -> Result<(), rusqlite::Error> {
    failpoint::reach(point).map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::StorageFull {
            rusqlite::ffi::SQLITE_FULL
        } else {
            rusqlite::ffi::SQLITE_IOERR
        };
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
    })
}
