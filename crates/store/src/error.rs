//! Errors of the store: a variant for each party at fault, with the failed operation and the
//! remedy.

use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind},
    path::PathBuf,
};

use evidenceos_files::denial;
use thiserror::Error;

/// The file system refused an operation on a path.
#[derive(Debug, Error)]
#[error("{operation} {path}: {source}{}", denial(path, source))]
pub struct FileError {
    /// The failed operation, as a verb.
    pub operation: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl FileError {
    /// Wraps an I/O error with the failed operation and its path.
    pub fn of(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self {
            operation,
            path,
            source,
        }
    }
}

/// The reason why the store refused or failed, by the party at fault.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file system refused an operation.
    #[error("{operation} {path}: {source}{}", denial(path, source))]
    Io {
        /// The failed operation, as a verb.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The storage engine failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A row does not match its checksum or its type.
    #[error(
        "{table} row {key} is damaged: {what}; stop, keep a copy of the data directory, and restore a backup"
    )]
    Damaged {
        table: &'static str,
        /// The row's key in its table.
        key: String,
        what: &'static str,
    },
    /// Another process holds a resource that this one needs.
    #[error("{}", remedied(.what, .remedy))]
    Locked { what: String, remedy: String },
    /// The operator must change or decide something first: the store does not use the state that it
    /// found.
    #[error("{}", remedied(.what, .remedy))]
    Refused { what: String, remedy: String },
    /// The disk has no room.
    #[error("{what}; free some space, then start again")]
    Full { what: String },
}

impl StoreError {
    /// Wraps an I/O error with the failed operation and its path.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    /// [`StoreError::Locked`]: the held resource, and how to get it.
    #[must_use]
    pub fn locked(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Locked {
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// [`StoreError::Refused`]: the finding, and what the operator can do.
    #[must_use]
    pub fn refused(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused {
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// [`StoreError::Full`]: `subject` could not be written.
    #[must_use]
    pub fn full(subject: &str) -> Self {
        Self::Full {
            what: format!("{subject} cannot be written: the disk is full"),
        }
    }

    /// Whether only disk space is missing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded
            ),
            Self::Database(error) => error.fault == DatabaseFault::Full,
            Self::Full { .. } => true,
            Self::Damaged { .. } | Self::Locked { .. } | Self::Refused { .. } => false,
        }
    }

    /// Whether the file system takes no writes at all.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem)
    }
}

/// The storage engine failed.
#[derive(Debug, Error)]
#[error("database: {source}{}", .fault.hint())]
pub struct DatabaseError {
    /// The kind of failure, as far as the engine knows it.
    pub fault: DatabaseFault,
    /// The engine's own error.
    pub source: Box<dyn Error + Send + Sync>,
}

impl DatabaseError {
    /// An error of an engine.
    pub fn new(fault: DatabaseFault, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            fault,
            source: source.into(),
        }
    }
}

/// The kind of failure of a storage engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseFault {
    /// The disk is full.
    Full,
    /// It may not write its file.
    ReadOnly,
    /// Its file is damaged, or belongs to another program.
    Damaged,
    /// The disk failed, or the file cannot be opened.
    Disk,
    /// Anything else: a bug, or a request that breaks one of its rules.
    Other,
}

impl DatabaseFault {
    /// The operator's remedy, to be appended to the engine's own words.
    fn hint(self) -> &'static str {
        match self {
            Self::Full => "; the disk is full: free some space",
            Self::ReadOnly => {
                "; the data directory is read-only: remount it for writing, or correct its owner and mode"
            }
            Self::Damaged => {
                "; it is damaged: stop, keep a copy of the data directory, run `evidenceos-daemon fsck`, and restore a backup"
            }
            Self::Disk => {
                "; look for disk errors in the kernel's log and at the owner, mode and mount of the data directory"
            }
            Self::Other => "",
        }
    }
}

/// The failure and its remedy as one text: a remedy that begins with a small letter continues the
/// sentence, any other one is a sentence of its own.
pub fn remedied(what: &str, remedy: &str) -> impl fmt::Display {
    let joint = if remedy.starts_with(char::is_lowercase) {
        "; "
    } else {
        ". "
    };
    fmt::from_fn(move |f| write!(f, "{what}{joint}{remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_party_is_told_what_failed_and_what_mends_it() {
        let engine = |fault| StoreError::from(DatabaseError::new(fault, "it failed"));
        for (error, what, remedy) in [
            (
                StoreError::locked("process 7 has it", "stop it"),
                "process 7 has it",
                "; stop it",
            ),
            (
                StoreError::refused("it is not empty", "name another"),
                "it is not empty",
                "; name another",
            ),
            (
                StoreError::refused("it was lost", "Bring it back"),
                "it was lost",
                ". Bring it back",
            ),
            (
                StoreError::refused("it is of another log", "`fsck` says which"),
                "it is of another log",
                ". `fsck` says which",
            ),
            (
                StoreError::full("a digest"),
                "a digest cannot be written: the disk is full",
                "; free some space, then start again",
            ),
            (
                StoreError::Damaged {
                    table: "claims",
                    key: "3".to_owned(),
                    what: "its checksum does not match",
                },
                "claims row 3 is damaged: its checksum does not match",
                "; stop, keep a copy of the data directory, and restore a backup",
            ),
            (
                engine(DatabaseFault::Full),
                "database: it failed",
                "; the disk is full: free some space",
            ),
            (
                engine(DatabaseFault::ReadOnly),
                "database: it failed",
                "; the data directory is read-only: remount it for writing, or correct its owner and mode",
            ),
            (
                engine(DatabaseFault::Damaged),
                "database: it failed",
                "; it is damaged: stop, keep a copy of the data directory, run `evidenceos-daemon fsck`, and restore a backup",
            ),
            (
                engine(DatabaseFault::Disk),
                "database: it failed",
                "; look for disk errors in the kernel's log and at the owner, mode and mount of the data directory",
            ),
        ] {
            assert_eq!(error.to_string(), format!("{what}{remedy}"), "{error:?}");
        }
    }

    #[test]
    fn what_nobody_can_mend_by_a_rule_is_told_as_it_is() {
        let denied = StoreError::io("open", "/data/LOCK")(ErrorKind::PermissionDenied.into());
        let told = denied.to_string();
        assert!(
            told.starts_with("open /data/LOCK: permission denied; "),
            "{told}"
        );
        let other = StoreError::from(DatabaseError::new(DatabaseFault::Other, "it failed"));
        assert_eq!(other.to_string(), "database: it failed");
    }

    #[test]
    fn only_a_full_disk_is_full() {
        let io = |kind: ErrorKind| StoreError::io("write", "/data/x")(kind.into());
        let engine = |fault| StoreError::from(DatabaseError::new(fault, "it failed"));
        for (error, full) in [
            (io(ErrorKind::StorageFull), true),
            (io(ErrorKind::QuotaExceeded), true),
            (io(ErrorKind::ReadOnlyFilesystem), false),
            (engine(DatabaseFault::Full), true),
            (engine(DatabaseFault::ReadOnly), false),
            (engine(DatabaseFault::Disk), false),
            (StoreError::full("it"), true),
            (StoreError::refused("it", "go"), false),
            (StoreError::locked("it", "go"), false),
        ] {
            assert_eq!(error.is_full(), full, "{error:?}");
        }
        assert!(io(ErrorKind::ReadOnlyFilesystem).is_read_only());
        assert!(!engine(DatabaseFault::ReadOnly).is_read_only());
    }
}
