//! Errors of `accounts.json` and of the commands about it.

use std::path::PathBuf;

use evidenceos_store::{FileError, StoreError};
use thiserror::Error;

/// Why the daemon refuses `accounts.json`, or why a command about it failed.
#[derive(Debug, Error)]
pub enum AccountsError {
    /// The database or the file fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file that the operator named, or the approval, cannot be read or removed.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A crash of the daemon cannot have left this file.
    #[error(
        "{path} is not one of the last two files that this daemon wrote: it was edited, or brought back from a backup. Nothing was changed. Either import it, which the log records:\n  evidenceos-daemon accounts import --data-dir {directory} --because TEXT\nor write it again from the database; a copy of the edited file stays:\n  evidenceos-daemon accounts export --data-dir {directory}"
    )]
    Foreign {
        path: PathBuf,
        /// The data directory.
        directory: PathBuf,
    },
    /// A file that a start is to import does not list accounts.
    #[error("{path} is not a file of accounts: {source}; mend it, or move it away")]
    NotAccounts {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// A file that an operator wants imported does not list accounts.
    #[error("the file is not a file of accounts: {0}; mend it, or name another file")]
    NotImportable(serde_json::Error),
    /// The operator's approval of an edited file.
    #[error("{path} is damaged ({source}); run `accounts import` or `accounts export` again")]
    Approval {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// No daemon has served the directory yet.
    #[error("{0} has no database; start a daemon on it, which imports the accounts.json in it")]
    NoDatabase(PathBuf),
    /// The operator's reason is empty, too long, or has control characters.
    #[error("--because: 1 to 256 bytes of text; it goes into the public log")]
    Because,
    /// There is no file to import.
    #[error("{0} does not exist; name the file to import")]
    Missing(PathBuf),
}
