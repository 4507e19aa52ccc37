//! SQLite's errors in the store's words.

use rusqlite::ErrorCode;

use crate::error::{DatabaseError, DatabaseFault, StoreError};

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        DatabaseError::new(fault(&error), error).into()
    }
}

fn fault(error: &rusqlite::Error) -> DatabaseFault {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => DatabaseFault::Full,
        Some(ErrorCode::ReadOnly) => DatabaseFault::ReadOnly,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => DatabaseFault::Damaged,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => DatabaseFault::Disk,
        _ => DatabaseFault::Other,
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn each_code_of_sqlite_is_a_fault() {
        for (code, fault) in [
            (ffi::SQLITE_FULL, DatabaseFault::Full),
            (ffi::SQLITE_READONLY, DatabaseFault::ReadOnly),
            (ffi::SQLITE_READONLY_DIRECTORY, DatabaseFault::ReadOnly),
            (ffi::SQLITE_CORRUPT, DatabaseFault::Damaged),
            (ffi::SQLITE_NOTADB, DatabaseFault::Damaged),
            (ffi::SQLITE_IOERR, DatabaseFault::Disk),
            (ffi::SQLITE_IOERR_FSYNC, DatabaseFault::Disk),
            (ffi::SQLITE_CANTOPEN, DatabaseFault::Disk),
            (ffi::SQLITE_CONSTRAINT, DatabaseFault::Other),
            (ffi::SQLITE_BUSY, DatabaseFault::Other),
        ] {
            let sqlite = || rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            let StoreError::Database(error) = StoreError::from(sqlite()) else {
                panic!("{code} is not the engine's");
            };
            assert_eq!(error.fault, fault, "{code}");
            let said = error.to_string();
            assert!(
                said.starts_with(&format!("database: {}", sqlite())),
                "{said}"
            );
        }
    }

    #[test]
    fn an_error_without_a_code_is_a_fault_of_no_kind() {
        let StoreError::Database(error) = rusqlite::Error::QueryReturnedNoRows.into() else {
            panic!("it is the engine's");
        };
        assert_eq!(error.fault, DatabaseFault::Other);
    }
}
