//! SQLite's errors in the store's words.

use rusqlite::ErrorCode;

use crate::error::{EngineError, EngineFault, StoreError};

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        EngineError::new(fault(&error), error).into()
    }
}

fn fault(error: &rusqlite::Error) -> EngineFault {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => EngineFault::Full,
        Some(ErrorCode::ReadOnly) => EngineFault::ReadOnly,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => EngineFault::Damaged,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => EngineFault::Disk,
        _ => EngineFault::Other,
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn each_code_of_sqlite_is_a_fault() {
        for (code, fault) in [
            (ffi::SQLITE_FULL, EngineFault::Full),
            (ffi::SQLITE_READONLY, EngineFault::ReadOnly),
            (ffi::SQLITE_READONLY_DIRECTORY, EngineFault::ReadOnly),
            (ffi::SQLITE_CORRUPT, EngineFault::Damaged),
            (ffi::SQLITE_NOTADB, EngineFault::Damaged),
            (ffi::SQLITE_IOERR, EngineFault::Disk),
            (ffi::SQLITE_IOERR_FSYNC, EngineFault::Disk),
            (ffi::SQLITE_CANTOPEN, EngineFault::Disk),
            (ffi::SQLITE_CONSTRAINT, EngineFault::Other),
            (ffi::SQLITE_BUSY, EngineFault::Other),
        ] {
            let sqlite = || rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            let StoreError::Engine(error) = StoreError::from(sqlite()) else {
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
        let StoreError::Engine(error) = rusqlite::Error::QueryReturnedNoRows.into() else {
            panic!("it is the engine's");
        };
        assert_eq!(error.fault, EngineFault::Other);
    }
}
