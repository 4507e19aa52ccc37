//! Why a command on a data directory does not do its work.

use std::{io, path::PathBuf};

use evidenceos_driver::mailbox::CopyError;
use evidenceos_files::denial;
use evidenceos_notary::fetch::FetchError;
use evidenceos_store::StoreError;
use evidenceos_tlog::{BundleId, TileError};
use thiserror::Error;

use crate::control::ControlError;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The directory cannot be read, the backup not be written, or the reverse.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon's writer makes no copy of the database.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The daemon that serves the directory does not make it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The present directory cannot be found, to make a path absolute.
    #[error("find {path}: {source}{}", denial(path, source))]
    NoPlace { path: PathBuf, source: io::Error },
    /// A path whose meaning depends on where the daemon was started.
    #[error(
        "{0} is not absolute, and the daemon's own directory is not meant; give an absolute path"
    )]
    NotAbsolute(PathBuf),
    /// There is nothing to back up.
    #[error("{} is no data directory; name the daemon's own with --data-dir", _0.display())]
    NoData(PathBuf),
    /// What loses the data directory would lose the backup.
    #[error(
        "{0} is in the data directory, and would be lost with it; name a place elsewhere, best on another disk"
    )]
    WithTheData(PathBuf),
    /// A process has the directory, and does not take orders.
    #[error(
        "{held}, and it does not answer at its control socket ({source}); wait until it serves, or stop it"
    )]
    Deaf {
        /// Which process has it.
        held: StoreError,
        source: ControlError,
    },
    /// One backup is made at a time.
    #[error("another backup is being made; wait until it is done")]
    Busy,
    /// The daemon is told to stop while it makes one.
    #[error("the daemon stops; the backup is not complete; back up again once it has stopped")]
    Stopping,
    /// The daemon's writer has ended while it made one.
    #[error(
        "the daemon's writer has ended; the backup is not complete; back up again once the daemon has stopped"
    )]
    WriterEnded,
    /// Nobody listens to the daemon that makes one.
    #[error(
        "the client that asked for the backup has gone, so the backup is not complete; ask for another"
    )]
    Abandoned,
}

/// Why a log elsewhere does not give what is missing.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A file of a log in a directory cannot be read.
    #[error("read {path}: {source}{}", denial(path, source))]
    Io { path: PathBuf, source: io::Error },
    /// A server does not answer.
    #[error("{url}: {source}")]
    Fetch { url: String, source: FetchError },
    /// A bundle cannot be taken apart.
    #[error("{log} has a bad {id}: {source}; name another copy of the log")]
    BadBundle {
        /// Where the log is.
        log: String,
        id: BundleId,
        source: TileError,
    },
    /// The log has no such file, or it is too short.
    #[error("{log} has no {what}; name the log of a mirror, a backup or the published one")]
    Lacks {
        /// Where the log is.
        log: String,
        what: String,
    },
}

/// What is wrong with a stated charge.
#[derive(Debug, Error)]
pub enum ChargeError {
    /// It is not of the form.
    #[error("--charged {0}: write HOLDOUT=BITS")]
    Form(String),
    /// The log has no such holdout.
    #[error("--charged {text}: no holdout is named {name:?}; give a name or an id of this log")]
    Holdout { text: String, name: String },
    /// The number is not exact.
    #[error("--charged {0}: bits are a decimal number with at most six digits after the point")]
    Bits(String),
}
