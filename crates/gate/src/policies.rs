//! Policy modules, called oracles here: Wasm modules by which operators veto a tool call or a
//! settlement.
//!
//! Owns the set of oracles of a data directory: how it is loaded, its name, and how votes are
//! combined. `directory` owns the files, `manifest` a manifest and its signature, `input` the
//! oracles' input; the sandbox runs the modules. `docs/policies.md` is the manual.
//!
//! Invariant: an oracle can only veto. A set that does not match its manifests in full does not
//! load, and an oracle that fails counts as a deferral; nothing here fails open.

mod directory;
mod input;
mod manifest;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use evidenceos_kernel::{claim::PolicyCode, id::Digest};
use evidenceos_sandbox::{PolicyFailure, PolicyModule, Sandbox, Vote};
use thiserror::Error;

pub use directory::{TRUSTED_KEYS, TrustedKeys};
pub use input::{Settling, preflight_input, settlement_input};
pub use manifest::{Manifest, bounds};

/// The directory of the policies in a data directory.
pub const DIRECTORY: &str = "policy-oracles";

pub use evidenceos_kernel::in_force::NO_POLICIES;

/// Every problem of a directory of policies, one a line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .0.join("\n"))]
pub struct PoliciesError(pub Vec<String>);

/// The oracles of a directory, in the order of their manifests' file names.
#[derive(Debug)]
pub struct Policies {
    oracles: Vec<Oracle>,
    digest: Digest,
}

/// A loaded policy module with its manifest.
pub struct Oracle {
    id: Arc<str>,
    code: PolicyCode,
    file: String,
    manifest: Manifest,
    module: PolicyModule,
    failures: AtomicU64,
}

/// The combined vote of a set of policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// None of the policies objects.
    Approve,
    /// A person must decide.
    Defer(Veto),
    /// It must not happen.
    Reject(Veto),
}

/// A veto and its oracle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veto {
    /// The oracle that objected.
    pub oracle_id: Arc<str>,
    /// The reason code of its manifest, 9000 to 9999.
    pub reason_code: PolicyCode,
}

impl Default for Policies {
    /// No oracles: everything is approved.
    fn default() -> Self {
        Self {
            oracles: Vec::new(),
            digest: NO_POLICIES,
        }
    }
}

impl Policies {
    /// Loads the oracles of `directory`; none if it does not exist. Blocks: reads files and
    /// compiles modules.
    ///
    /// # Errors
    /// Every problem, with the file, the rule and what to do. A set is never loaded in part.
    pub fn load(
        directory: &Path,
        sandbox: &Sandbox,
        allow_unsigned: bool,
    ) -> Result<Self, PoliciesError> {
        let loaded = directory::load(directory, sandbox, allow_unsigned)?;
        let mut hashes: Vec<[u8; 64]> = loaded.iter().map(Oracle::hashes).collect();
        // Sorted hashes identify the set independently of its files' names.
        hashes.sort_unstable();
        let digest = if hashes.is_empty() {
            NO_POLICIES
        } else {
            Digest::domain("evidenceos:policies:v1", hashes.as_flattened())
        };
        Ok(Self {
            oracles: loaded,
            digest,
        })
    }

    /// The identity of the set: a digest over the sorted hashes of manifests and modules, or
    /// [`NO_POLICIES`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Ids of oracles that another set lacks.
    #[must_use]
    pub fn missing_in(&self, other: &Self) -> Vec<&str> {
        let ids = self.oracles.iter().map(|oracle| &*oracle.id);
        ids.filter(|id| other.oracles.iter().all(|oracle| &*oracle.id != *id))
            .collect()
    }

    fn say(&self) {
        if !self.oracles.is_empty() {
            let ids: Vec<&str> = self.oracles.iter().map(|oracle| &*oracle.id).collect();
            tracing::info!(oracles = ids.join(" "), digest = %self.digest, "policy modules are in force");
        }
    }

    /// The oracles, in the order in which they are asked.
    #[must_use]
    pub fn oracles(&self) -> &[Oracle] {
        &self.oracles
    }

    /// Asks every oracle about `input`, in order: the first rejection wins, otherwise the last
    /// deferral. An oracle that fails defers; the reason is logged, the input never is.
    ///
    /// Computes on this thread, for as long as the oracles' fuel lasts.
    #[must_use]
    pub fn decide(&self, input: &[u8]) -> Verdict {
        let mut verdict = Verdict::Approve;
        for oracle in &self.oracles {
            match oracle.vote(input) {
                Ok(Vote::Pass) => {}
                Ok(Vote::Defer) => verdict = Verdict::Defer(oracle.veto()),
                Ok(Vote::Reject) => return Verdict::Reject(oracle.veto()),
                Err(failure) => {
                    oracle.note(&failure);
                    verdict = Verdict::Defer(oracle.veto());
                }
            }
        }
        verdict
    }
}

/// Loads the set with which a daemon starts.
///
/// # Errors
/// As [`Policies::load`].
pub fn at_start(
    directory: &Path,
    sandbox: &Sandbox,
    allow_unsigned: bool,
) -> Result<Arc<ArcSwap<Policies>>, PoliciesError> {
    let policies = Policies::load(directory, sandbox, allow_unsigned)?;
    policies.say();
    Ok(Arc::new(ArcSwap::from_pointee(policies)))
}

/// Loads the directory again: returns the set in force if nothing changed, otherwise a new set,
/// which is not in force yet.
///
/// # Errors
/// As [`Policies::load`].
pub fn read_again(
    directory: &Path,
    sandbox: &Sandbox,
    allow_unsigned: bool,
    in_force: &ArcSwap<Policies>,
) -> Result<Arc<Policies>, PoliciesError> {
    let loaded = Policies::load(directory, sandbox, allow_unsigned)?;
    let now = in_force.load_full();
    if loaded.digest == now.digest {
        return Ok(now);
    }
    let gone = now.missing_in(&loaded);
    if !gone.is_empty() {
        tracing::warn!(
            oracles = gone.join(" "),
            "the directory no longer has these policy modules: this reload removes them"
        );
    }
    loaded.say();
    Ok(Arc::new(loaded))
}

impl Oracle {
    /// The manifest by which it was loaded.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's file name.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Asks this oracle alone.
    ///
    /// # Errors
    /// If the module fails and casts no vote.
    pub fn vote(&self, input: &[u8]) -> Result<Vote, PolicyFailure> {
        self.module.decide(input)
    }

    /// Hash of the manifest, then of the module.
    fn hashes(&self) -> [u8; 64] {
        let mut both = [0; 64];
        both[..32].copy_from_slice(self.manifest.file_hash().as_bytes());
        both[32..].copy_from_slice(&self.module.info().sha256);
        both
    }

    fn veto(&self) -> Veto {
        Veto {
            oracle_id: Arc::clone(&self.id),
            reason_code: self.code,
        }
    }

    /// Logs failures 1, 2, 4, 8 and so on: a caller that can make an oracle fail must not fill the
    /// disk.
    fn note(&self, failure: &PolicyFailure) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures.is_power_of_two() {
            tracing::warn!(oracle = %self.id, cause = %failure, failures, "a policy oracle failed, which counts as a deferral");
        }
    }
}

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oracle")
            .field("id", &self.id)
            .field("module", &self.module)
            .finish_non_exhaustive()
    }
}
