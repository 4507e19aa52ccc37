//! Why a command failed, in one sentence, and the exit code that it leaves.
//!
//! Owns the exit codes: 0 done, 1 failed, 2 wrong usage, 4 settled but not certified (only with
//! `--require-certified`). A refusal of the server keeps the server's own sentence and its stable code.

use std::path::PathBuf;

use thiserror::Error;
use tonic::{Code, Status};

use crate::output::value;

/// The metadata key under which the server puts its stable code.
const PUBLIC_CODE: &str = "x-evidenceos-public-error-code";

/// A command that failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// The arguments or an input file are invalid; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// No daemon answers at the endpoint.
    #[error("cannot reach a daemon at {endpoint}: {reason}")]
    Unreachable {
        endpoint: String,
        /// Why the connection failed.
        reason: String,
    },
    /// The server refused the call.
    #[error("{message} [{code}]")]
    Refused {
        /// The server's sentence for the caller.
        message: String,
        /// The server's stable code, otherwise that of gRPC.
        code: String,
    },
    /// The connection broke during a call, and again on each retry.
    #[error("the connection broke: {}{}", value(reason), if *may_have_run { "; the server may have done this anyway. Run a claim command again: it finds what was done. Before you repeat any other command, check with `show` or `list`" } else { "; run the command again once the server is back" })]
    Broken {
        /// Why it broke.
        reason: String,
        /// Whether the call changes something, so that it may have been done.
        may_have_run: bool,
    },
    /// A file could not be read or written.
    #[error("{}: {source}{}", path.display(), evidenceos_files::denial(path, source))]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A check failed; the text says which.
    #[error("{0}")]
    Failed(String),
    /// The server's answer breaks the protocol.
    #[error(
        "the server's answer breaks the protocol: {0}; check that client and server have the same version"
    )]
    Protocol(String),
}

impl CliError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// Whether the server demands authentication.
    pub fn is_unauthenticated(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "UNAUTHENTICATED")
    }

    /// A stable word for `--json`.
    pub fn code(&self) -> &str {
        match self {
            Self::Usage(_) => "USAGE",
            Self::Unreachable { .. } => "UNREACHABLE",
            Self::Broken { .. } => "BROKEN",
            Self::Refused { code, .. } => code,
            Self::File { .. } => "FILE",
            Self::Failed(_) => "FAILED",
            Self::Protocol(_) => "PROTOCOL",
        }
    }

    /// For `map_err` on file operations.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

impl From<evidenceos_keys::KeyError> for CliError {
    fn from(error: evidenceos_keys::KeyError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let public = status.metadata().get(PUBLIC_CODE);
        // Many refusals share a gRPC code; the server's own code distinguishes them.
        let code = public
            .and_then(|code| code.to_str().ok())
            .map_or_else(|| code_word(status.code()), str::to_owned);
        let message = match status.message() {
            "" => status.code().description().to_owned(),
            // A server's sentence is one line, whatever characters it contains.
            message => value(message),
        };
        Self::Refused { message, code }
    }
}

/// The gRPC code in the form of its specification: `NOT_FOUND`.
fn code_word(code: Code) -> String {
    let mut word = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(letter.to_ascii_uppercase());
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_the_servers_code() {
        let mut status = Status::not_found("no such claim");
        let bare = CliError::from(status.clone());
        assert_eq!(bare.to_string(), "no such claim [NOT_FOUND]");
        let forged = CliError::from(Status::internal("a\nverified\u{1b}[0m"));
        assert_eq!(forged.to_string(), "a\\u000averified\\u001b[0m [INTERNAL]");
        status
            .metadata_mut()
            .insert(PUBLIC_CODE, "UNKNOWN_CLAIM".parse().expect("ASCII"));
        assert_eq!(CliError::from(status).code(), "UNKNOWN_CLAIM");
    }
}
