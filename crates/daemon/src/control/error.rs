//! Why an order at the control socket failed.

use std::path::PathBuf;

use evidenceos_store::FileError;
use thiserror::Error;

/// Why an order at the control socket failed.
#[derive(Debug, Error)]
pub enum ControlError {
    /// No daemon serves the directory.
    #[error(
        "no daemon answers at {socket}; check that {directory} is the directory of a running daemon"
    )]
    NobodyAnswers {
        socket: PathBuf,
        /// The data directory.
        directory: PathBuf,
    },
    /// The socket fails, or the daemon takes too long to answer.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The daemon closed the connection before its last line.
    #[error("{0}; try again")]
    HungUp(&'static str),
    /// The daemon's own report of its failure.
    #[error("{0}")]
    Failed(String),
    /// The daemon is of another release.
    #[error(
        "this release does not understand the daemon's answer {line:?} ({source}); use the daemon's own release"
    )]
    OtherRelease {
        line: String,
        source: serde_json::Error,
    },
}
