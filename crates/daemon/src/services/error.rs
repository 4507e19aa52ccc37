//! Errors of services, by cause. Each protocol renders them in one place.

use std::{borrow::Cow, time::Duration};

use evidenceos_custody::{HoldoutKeyError, VaultError};
use evidenceos_driver::Failure;
use evidenceos_kernel::refusal::Refusal;
use evidenceos_store::{StoreError, log::LogError};
use thiserror::Error;

/// Why a call has no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel's rules, or the form of the request, do not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The driver did not commit it, or cannot tell whether it did.
    #[error(transparent)]
    Failed(Failure),
    /// The decision is durable, but no anchor remembers it yet, so it must not be shown.
    #[error("no anchor covers the answer yet")]
    NotShownYet {
        /// Whether the call asked for a change, which may have been made.
        changed: bool,
    },
    /// The answer's entry is durable, but the KMS has not signed a head over it.
    #[error("the log's key is in a KMS that does not answer; the result is durable, ask again")]
    NotSignedYet,
    /// The caller creates and executes too many claims for now.
    #[error("probing: to be asked again in {} ms", retry_after.as_millis())]
    Throttled {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The caller creates and executes far too many claims.
    #[error("probing: frozen")]
    Frozen,
    /// A named thing does not exist.
    #[error("{message}")]
    Absent {
        /// The stable code that the reply carries.
        code: &'static str,
        /// What is missing, for the caller.
        message: Cow<'static, str>,
    },
    /// The claim's state does not allow it.
    #[error("{message}")]
    WrongState {
        /// The stable code that the reply carries.
        code: &'static str,
        /// The state, and what helps.
        message: String,
    },
    /// The caller has used its share for now.
    #[error("{0}")]
    Busy(String),
    /// A part of the server is not available for now.
    #[error("{0}")]
    Unavailable(String),
    /// A proof that cannot be given.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A row or a file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The labels of a holdout cannot be read or written.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The holdouts' keys failed.
    #[error(transparent)]
    HoldoutKeys(#[from] HoldoutKeyError),
    /// A fault of the daemon.
    #[error("{0}")]
    Fault(String),
}

impl Error {
    /// A field that breaks a rule.
    #[must_use]
    pub fn field(field: &str, rule: &str) -> Self {
        Refusal::field(field, rule).into()
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => Self::Refused(refusal),
            other => Self::Failed(other),
        }
    }
}
