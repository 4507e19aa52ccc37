//! Why a daemon, or a command on a stopped directory, does not start: one variant for each part
//! that can fail.

use std::{io, net::SocketAddr, path::PathBuf};

use evidenceos_custody::{HoldoutKeyError, VaultError};
use evidenceos_files::denial;
use evidenceos_gate::policies::PoliciesError;
use evidenceos_kernel::refusal::Refusal;
use evidenceos_keys::KeyError;
use evidenceos_notary::{anchors::AnchorError, keys::LogKeyError};
use evidenceos_sandbox::EngineError;
use evidenceos_store::{StoreError, error::remedied};
use thiserror::Error;

use super::owners::OwnersError;
use crate::{
    accounts::AccountsError,
    offline::error::{ChargeError, SourceError},
};

/// Why the daemon, or a command on a stopped directory, does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operator must change or decide something first; `remedy` says what.
    #[error("{}", remedied(.what, .remedy))]
    Refused { what: String, remedy: String },
    /// The log may not begin or continue, because of its anchors.
    #[error(transparent)]
    Anchors(#[from] AnchorError),
    /// `accounts.json` is refused.
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    /// Another log does not supply the missing entries.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A stated charge of a holdout is malformed.
    #[error(transparent)]
    Charge(#[from] ChargeError),
    /// The kernel refuses a command of the daemon's own.
    #[error("{what}: {refusal}")]
    NotEnacted {
        /// What the command was to do.
        what: String,
        refusal: Refusal,
    },
    /// The start would have to sign something while nothing may be signed.
    #[error("{what}, and the log cannot sign that now: {why}")]
    NotSigned {
        what: &'static str,
        /// Why nothing may be signed, and how to mend it.
        why: String,
    },
    /// A key file cannot be read, or other users can read it.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// `owners.secret` is not the one that the directory was served with.
    #[error(transparent)]
    Owners(#[from] OwnersError),
    /// The log cannot be signed.
    #[error(transparent)]
    LogKeys(#[from] LogKeyError),
    /// The holdouts' keys are missing or damaged.
    #[error(transparent)]
    HoldoutKeys(#[from] HoldoutKeyError),
    /// A holdout's items cannot be decrypted.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The TLS files of a listener cannot serve.
    #[error(transparent)]
    Tls(#[from] evidenceos_access::TlsError),
    /// The settings of authentication are wrong: one sentence a line.
    #[error("{}", .0.join("\n"))]
    Identity(Vec<String>),
    /// A policy module cannot be loaded.
    #[error(transparent)]
    Policies(#[from] PoliciesError),
    /// The engine that runs guests does not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The address cannot be bound or listened on.
    #[error("cannot listen on {address}: {source}; give another {flag}")]
    Listen {
        address: SocketAddr,
        /// The flag that sets the address.
        flag: &'static str,
        source: io::Error,
    },
    /// The list of used signatures cannot be read.
    #[error(
        "cannot read {}: {source}{}; used signatures could be used again. Make it readable; or wait 10 minutes, until all of them have expired, and remove it",
        path.display(),
        denial(path, source)
    )]
    UsedSignatures { path: PathBuf, source: io::Error },
    /// The system cannot start a thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The rules that detect probing are invalid.
    #[error(transparent)]
    Probes(#[from] evidenceos_kernel::probe::RulesError),
    /// The schema for reflection.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl StartError {
    /// [`StartError::Refused`]: what was found, and what the operator can do.
    pub(crate) fn refused(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused {
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}
