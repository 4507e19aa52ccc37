//! Errors of commands on a data directory.

use std::{io, path::PathBuf};

use evidenceos_driver::mailbox::CopyError;
use evidenceos_files::denial;
use evidenceos_notary::fetch::FetchError;
use evidenceos_store::StoreError;
use evidenceos_tlog::{BundleId, TileError};
use thiserror::Error;

use crate::control::ControlError;

/// Why a backup or a restore failed.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The directory or the backup cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon's writer failed to copy the database.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The daemon that serves the directory did not make the backup.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The current directory cannot be found, so a path cannot be made absolute.
    #[error("find {path}: {source}{}", denial(path, source))]
    NoPlace { path: PathBuf, source: io::Error },
    /// A path whose meaning depends on where the daemon was started.
    #[error("{0} is relative, and the daemon may run in another directory; give an absolute path")]
    NotAbsolute(PathBuf),
    /// There is nothing to back up.
    #[error("{} is no data directory; name the daemon's own with --data-dir", _0.display())]
    NoData(PathBuf),
    /// The destination is in the data directory, and would be lost with it.
    #[error(
        "{0} is in the data directory, and would be lost with it; name a place elsewhere, best on another disk"
    )]
    WithTheData(PathBuf),
    /// Another process holds the directory and takes no orders.
    #[error(
        "{held}, and it does not answer at its control socket ({source}); wait until it serves, or stop it"
    )]
    Deaf {
        /// The error that names the process.
        held: StoreError,
        source: ControlError,
    },
    /// Another backup is being made.
    #[error("another backup is being made; wait until it is done")]
    Busy,
    /// The daemon was told to stop during the backup.
    #[error(
        "the daemon is stopping, so the backup is not complete; back up again once it has stopped"
    )]
    Stopping,
    /// The daemon's writer ended during the backup.
    #[error(
        "the daemon's writer has ended, so the backup is not complete; back up again once the daemon has stopped"
    )]
    WriterEnded,
    /// The client that asked for the backup has gone.
    #[error(
        "the client that asked for the backup has gone, so the backup is not complete; ask for another"
    )]
    Abandoned,
}

/// Why another log does not supply the missing entries.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A file of a log in a directory cannot be read.
    #[error("read {path}: {source}{}", denial(path, source))]
    Io { path: PathBuf, source: io::Error },
    /// A server does not answer.
    #[error("{url}: {source}")]
    Fetch { url: String, source: FetchError },
    /// A bundle cannot be decoded.
    #[error("{log} has a bad {id}: {source}; name another copy of the log")]
    BadBundle {
        /// The other log's path or URL.
        log: String,
        id: BundleId,
        source: TileError,
    },
    /// The log has no such file, or it is too short.
    #[error("{log} has no {what}; name the log of a mirror, a backup or the published one")]
    Lacks {
        /// The other log's path or URL.
        log: String,
        what: String,
    },
}

/// What is wrong with a stated charge.
#[derive(Debug, Error)]
pub enum ChargeError {
    /// It is not of the form `HOLDOUT=BITS`.
    #[error("--charged {0}: write HOLDOUT=BITS")]
    Form(String),
    /// The log has no such holdout.
    #[error("--charged {text}: no holdout is named {name:?}; give a name or an id of this log")]
    Holdout { text: String, name: String },
    /// The number is not exact in millionths of a bit.
    #[error("--charged {0}: bits are a decimal number with at most six digits after the point")]
    Bits(String),
}
