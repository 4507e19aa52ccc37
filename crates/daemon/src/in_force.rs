//! The rules in force: policy modules and roles. The log states them before they decide anything.
//!
//! A start states the rules that it finds before the writer takes its first call. A reload has the
//! writer state the new ones, and takes them over once that is durable.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use arc_swap::ArcSwap;
use evidenceos_access::{Authenticator, Owners};
use evidenceos_driver::{Stated, mailbox::Mailbox};
use evidenceos_gate::policies::Policies;
use evidenceos_kernel::in_force::InForce;
use thiserror::Error;

/// How long a reload waits for the writer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The statement for the log about policy modules and the role policy.
#[must_use]
pub fn of(policies: &Policies, authenticator: &Authenticator, owners: &Owners) -> InForce {
    let roles = authenticator.role_policy();
    InForce {
        policies: policies.digest(),
        // A plain digest in the public log would let any reader test a guess of the roles.
        roles: roles.map(|text| owners.keyed("roles", text.as_bytes())),
    }
}

/// The log could not state the new policy modules or roles.
#[derive(Debug, Error)]
#[error(
    "the log cannot state the new policy modules and role policy, so the old ones stay in force; free some space, and reload again"
)]
pub struct NotStated;

/// Has the log state the rules in force.
pub struct Stating {
    /// The rules that the writer states when it begins. While a start is held, nothing is signed.
    wanted: Arc<ArcSwap<InForce>>,
    mailbox: Mailbox,
}

impl Stating {
    /// `wanted` is what the writer reads when it begins.
    #[must_use]
    pub fn new(wanted: Arc<ArcSwap<InForce>>, mailbox: Mailbox) -> Self {
        Self { wanted, mailbox }
    }

    /// Returns once the log states these rules; a held start states them when it is free. Blocks.
    ///
    /// # Errors
    /// [`NotStated`]: the old rules must stay in force.
    pub fn state(&self, in_force: InForce) -> Result<(), NotStated> {
        // A writer that begins from now on must state the new rules, not the old ones.
        let before = self.wanted.swap(Arc::new(in_force));
        let (committed, stated) = mpsc::channel();
        self.mailbox.state(Stated {
            in_force,
            committed,
        });
        if stated.recv_timeout(PATIENCE).is_ok() {
            return Ok(());
        }
        // A writer that begins later must state what is in force then: the old rules.
        self.wanted.store(before);
        Err(NotStated)
    }
}
