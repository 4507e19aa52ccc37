//! Why a service gives nothing, by whose doing. Each protocol renders it in one place.

use std::{borrow::Cow, time::Duration};

use evidenceos_custody::{HoldoutKeyError, VaultError};
use evidenceos_driver::Failure;
use evidenceos_kernel::refusal::Refusal;
use evidenceos_store::{StoreError, log::LogError};
use thiserror::Error;

/// Why a call has no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel's rules, or the form of what was sent, do not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The driver did not commit it, or does not know whether it did.
    #[error(transparent)]
    Failed(Failure),
    /// What was decided is durable, and no anchor remembers it yet, so that it must not be shown.
    #[error("no anchor covers the answer yet")]
    NotShownYet {
        /// Whether the call asked for a change, which may have been made.
        changed: bool,
    },
    /// The entry of the answer is durable, and the KMS has not signed a head over it.
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
    /// Something that was named is not there.
    #[error("{message}")]
    Absent {
        /// The stable code that the reply carries.
        code: &'static str,
        /// What is missing, for the caller.
        message: Cow<'static, str>,
    },
    /// It is not possible in the state that the claim is in.
    #[error("{message}")]
    WrongState {
        /// The stable code that the reply carries.
        code: &'static str,
        /// Which state that is, and what helps.
        message: String,
    },
    /// The caller has had as much as one may have for now.
    #[error("{0}")]
    Busy(String),
    /// A part of the server cannot do it for now.
    #[error("{0}")]
    Unavailable(String),
    /// A proof that cannot be given.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A row or a file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The private items of a holdout.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The keys of the holdouts.
    #[error(transparent)]
    HoldoutKeys(#[from] HoldoutKeyError),
    /// A fault of ours.
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
