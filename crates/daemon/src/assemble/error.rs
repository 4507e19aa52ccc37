//! Why a daemon, or a command on a stopped directory, does not start: one kind for each part that can
//! be at fault.

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
    /// The operator must change or decide something first.
    #[error("{}", remedied(.what, .remedy))]
    Refused { what: String, remedy: String },
    /// The log may not begin or go on beside its anchors.
    #[error(transparent)]
    Anchors(#[from] AnchorError),
    /// `accounts.json` is not taken.
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    /// A log elsewhere does not give what is missing here.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A holdout's charge is not stated as it must be.
    #[error(transparent)]
    Charge(#[from] ChargeError),
    /// The kernel refuses a command of the daemon's own.
    #[error("{what}: {refusal}")]
    NotEnacted {
        /// What the command was to do.
        what: String,
        refusal: Refusal,
    },
    /// The start would have to sign something, and may not.
    #[error("{what}, and that cannot be signed now: {why}")]
    NotSigned {
        what: &'static str,
        /// Why nothing may be signed, and what to do about it.
        why: String,
    },
    /// A key file cannot be read, or others can read it.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The owners' secret is another.
    #[error(transparent)]
    Owners(#[from] OwnersError),
    /// The log cannot be signed.
    #[error(transparent)]
    LogKeys(#[from] LogKeyError),
    /// The holdouts' keys are missing or damaged.
    #[error(transparent)]
    HoldoutKeys(#[from] HoldoutKeyError),
    /// A holdout's items do not open.
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
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {source}; give another {flag}")]
    Listen {
        address: SocketAddr,
        /// The flag that names it.
        flag: &'static str,
        source: io::Error,
    },
    /// Which signatures were used.
    #[error(
        "cannot read {}: {source}{}; signatures that were used could be used again. Make it readable; or wait 10 minutes, until all of them are over, and remove it",
        path.display(),
        denial(path, source)
    )]
    UsedSignatures { path: PathBuf, source: io::Error },
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// When calls are probing.
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
