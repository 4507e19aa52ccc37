//! Why a daemon does not start: one kind for each part that can be at fault.

use std::{io, net::SocketAddr, path::PathBuf};

use evidenceos_keys::KeyError;
use evidenceos_sandbox::EngineError;
use evidenceos_store::StoreError;
use thiserror::Error;

use crate::{
    holdout_keys::HoldoutKeyError, keys::LogKeyError, policies::PoliciesError, vault::VaultError,
};

/// Why the daemon does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Key files.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The log's keys.
    #[error(transparent)]
    LogKeys(#[from] LogKeyError),
    /// The holdouts' keys.
    #[error(transparent)]
    HoldoutKeys(#[from] HoldoutKeyError),
    /// The holdouts.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] evidenceos_access::TlsError),
    /// Who may call.
    #[error("{}", .0.join("\n"))]
    Identity(Vec<String>),
    /// The policy oracles.
    #[error(transparent)]
    Policies(#[from] PoliciesError),
    /// The guest engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A port.
    #[error("cannot listen on {address}: {source}; give another {flag}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The flag that names it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Which signatures were used.
    #[error(
        "cannot read {}: {source}; signatures that were used could be used again. Make it readable; or wait 10 minutes, until all of them are over, and remove it",
        path.display()
    )]
    UsedSignatures {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// When calls are probing.
    #[error(transparent)]
    Probes(#[from] evidenceos_kernel::probe::RulesError),
    /// The schema for reflection.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
