//! The reason why a measurement could not be made, in one sentence.

use std::path::PathBuf;

use thiserror::Error;
use tonic::Status;

/// A measurement that could not be made.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The arguments are invalid; nothing was measured.
    #[error("{0}")]
    Usage(String),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The daemon refused a call.
    #[error("the daemon refused a call: {0}")]
    Refused(#[from] Box<Status>),
    /// Any other failure, with its description.
    #[error("{0}")]
    Failed(String),
}

impl BenchError {
    /// For `map_err` on file operations.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            _ => 1,
        }
    }
}

impl From<Status> for BenchError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// A measurement that could not be made, for this reason.
pub fn failed(reason: &dyn std::fmt::Display) -> BenchError {
    BenchError::Failed(reason.to_string())
}
