//! Commands of the daemon's own, before it serves and in a stopped directory.
//!
//! They go the way of every command: decided against a stage, in one batch with the head over them, committed,
//! merged. Two things differ, so they are not an [`Input`](crate::Input): such a command may be refused, and only its
//! caller can be told; and a KMS may fail to sign its head, at a time at which the daemon can still stop without
//! consequences.

use evidenceos_kernel::{
    command::{Caller, Command, Request},
    refusal::Refusal,
    state::Resident,
};
use evidenceos_store::{
    AccountsFiles, Head, NotCommitted, Outcome, Store, StoreError, facts::Fact, log::Released,
};
use evidenceos_tlog::{Hash, Tile, Tree};
use thiserror::Error;

use crate::{
    Driver, Limits, Publisher, Runner, Signing, Work,
    attempt::{Attempt, NotDecided},
};

/// Commands that commit together, and facts that the store notes in their commit.
#[derive(Debug, Default)]
pub struct OwnWork {
    /// Commands in the order in which they are decided.
    pub commands: Vec<Command>,
    /// The versions of `accounts.json` that may be in place from then on.
    pub files: Option<AccountsFiles>,
    /// Facts that the database stores about itself from then on.
    pub facts: Vec<Fact>,
}

impl OwnWork {
    /// Work that consists of one command.
    #[must_use]
    pub fn command(command: impl Into<Command>) -> Self {
        Self {
            commands: vec![command.into()],
            ..Self::default()
        }
    }
}

/// The result of commands of the daemon's own.
#[derive(Debug)]
pub struct Enacted {
    /// The head over them, if one was signed.
    pub head: Option<Head>,
    /// Canonical bytes of the entries that they appended, in order.
    pub entries: Vec<Vec<u8>>,
}

/// The reason why commands of the daemon's own are not enacted. Nothing of them is durable, except
/// perhaps after [`NotEnacted::Store`].
#[derive(Debug, Error)]
pub enum NotEnacted<E> {
    /// The kernel refused one of them.
    #[error("{refusal}")]
    Refused {
        /// The refused command's place in the work, from 0.
        nth: usize,
        refusal: Refusal,
    },
    /// The head could not be signed.
    #[error("{0}")]
    Unsigned(E),
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The store failed; if it failed in the commit, the next start determines what is durable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A runner and publisher that does nothing.
struct Idle;

impl Runner for Idle {
    fn start(&self, _: Work) {
        unreachable!("a driver that is alone admits no runs");
    }
}

impl Publisher for Idle {
    fn release(&self, _: Released, _: Vec<Tile>) {}
    fn rotated(&self, _: &evidenceos_kernel::log_key::LogKey) {}
    fn accounts_changed(&self, _: &mut dyn Iterator<Item = &evidenceos_kernel::account::Account>) {}
}

/// A driver without callers: it takes commands of the daemon's own, and leaves runs under way
/// alone.
pub struct Alone<S>(Driver<S>);

impl<S: Store> Alone<S> {
    /// A driver over the store's state, with the tree of its entries.
    #[must_use]
    pub fn new(store: S, resident: Resident, tree: Tree) -> Self {
        let signing = Signing::ByCaller;
        let signed_size = tree.size();
        Self(Driver::over(
            store,
            resident,
            tree,
            signing,
            signed_size,
            Box::new(Idle),
            Box::new(Idle),
            Limits::default(),
        ))
    }

    /// The committed state that stays in memory.
    #[must_use]
    pub fn resident(&self) -> &Resident {
        &self.0.resident
    }

    /// The tree of all entries.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.0.tree
    }

    /// The store, for work between commands.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.0.store
    }

    /// The parts, for a driver that serves.
    #[must_use]
    pub fn into_parts(self) -> (S, Resident, Tree) {
        let Driver {
            store,
            resident,
            tree,
            ..
        } = self.0;
        (store, resident, tree)
    }

    /// Enacts commands that append entries, in one commit with the head that `sign` makes over the
    /// grown tree; if it makes none, the entries wait for one.
    ///
    /// # Errors
    /// [`NotEnacted`] if a command is refused, the head cannot be signed, or the store fails.
    pub fn enact<E>(
        &mut self,
        wall_unix_ms: u64,
        work: OwnWork,
        sign: impl FnOnce(u64, Hash) -> Result<Option<Head>, E>,
    ) -> Result<Enacted, NotEnacted<E>> {
        let driver = &mut self.0;
        let requests: Vec<Request> = work.commands.into_iter().map(own_request).collect();
        let mut attempt =
            driver
                .attempt_own(wall_unix_ms, &requests)
                .map_err(|error| match error {
                    NotDecided::Refused { nth, refusal } => NotEnacted::Refused { nth, refusal },
                    NotDecided::Store(error) => NotEnacted::Store(error),
                })?;
        // The head is signed before the commit: if the KMS fails, nothing of the work is durable.
        if let Some(tree) = &attempt.tree {
            attempt.batch.head = sign(tree.size(), tree.root()).map_err(NotEnacted::Unsigned)?;
        }
        attempt.batch.accounts_files = work.files;
        attempt.batch.facts = work.facts;
        match driver.store.commit(&attempt.batch) {
            Outcome::Committed => Ok(self.concluded(attempt)),
            Outcome::NotCommitted(NotCommitted::Full) => Err(NotEnacted::Full),
            Outcome::NotCommitted(NotCommitted::Constraint(error)) | Outcome::Unknown(error) => {
                Err(NotEnacted::Store(error))
            }
        }
    }

    fn concluded(&mut self, mut attempt: Attempt) -> Enacted {
        let enacted = Enacted {
            head: attempt.batch.head.clone(),
            entries: std::mem::take(&mut attempt.batch.entries)
                .into_iter()
                .map(|entry| entry.bytes)
                .collect(),
        };
        self.0.conclude(attempt, Vec::new());
        enacted
    }
}

/// A request for a command of the daemon's own.
pub(crate) fn own_request(command: Command) -> Request {
    Request {
        caller: Caller::DRIVER,
        stamp: None,
        command,
    }
}
