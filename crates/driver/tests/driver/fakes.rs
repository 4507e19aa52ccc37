//! What stands around the driver on the bench: a store with faults, and a watch that sees what
//! is committed, released, started and answered, in order.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use evidenceos_driver::{Answer, Publisher, RemoteSigner, ReplyTo, Runner, Signer, Work};
use evidenceos_kernel::{
    account::Account,
    claim::Claim,
    command::Remembered,
    holdout::PrincipalPool,
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question, RequestKey},
    log_key::LogKey,
};
use evidenceos_store::{
    Batch, DatabaseError, DatabaseFault, Head, NotCommitted, Outcome, Store, StoreError,
    log::Released, memory::MemoryStore,
};
use evidenceos_tlog::{Checkpoint, Hash, SignedCheckpoint, SignerKey, Tile, sth};

pub(crate) const ORIGIN: &str = "example.org/log";

pub(crate) fn key() -> SignerKey {
    SignerKey::from_seed(ORIGIN, [7; 32]).expect("a valid name")
}

/// What happened, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happened {
    Committed,
    NotCommitted,
    Replied(Ticket),
    Released(u64),
    Started(HoldoutId, u64),
    Rotated,
}

/// A call that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) usize);

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) timeline: Vec<Happened>,
    pub(crate) answers: HashMap<Ticket, Answer>,
    pub(crate) works: Vec<Work>,
    pub(crate) heads: Vec<Head>,
    /// Accounts as they were last told.
    pub(crate) accounts: HashMap<OwnerTag, Account>,
    /// Trees whose heads were to be signed elsewhere.
    pub(crate) asked: Vec<(u64, Hash)>,
}

#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Seen>>);

impl Watch {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The store in memory, with faults that belong to a claim instead of a moment.
pub(crate) struct Shelf {
    pub(crate) memory: MemoryStore,
    /// No batch that writes this claim can be stored.
    pub(crate) rejected: Option<ClaimId>,
    /// This claim's row cannot be read.
    pub(crate) unreadable: Option<ClaimId>,
    pub(crate) watch: Watch,
}

fn injected() -> StoreError {
    DatabaseError::new(DatabaseFault::Other, "an injected fault").into()
}

impl Store for Shelf {
    fn claim(&mut self, id: &ClaimId) -> Result<Option<Claim>, StoreError> {
        if self.unreadable == Some(*id) {
            return Err(injected());
        }
        self.memory.claim(id)
    }

    fn pool(
        &mut self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        self.memory.pool(holdout, owner)
    }

    fn remembered(&mut self, key: &RequestKey) -> Result<Option<Remembered>, StoreError> {
        self.memory.remembered(key)
    }

    fn account(&mut self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        self.memory.account(owner)
    }

    fn question(&mut self, question: &Question) -> Result<Option<ClaimId>, StoreError> {
        self.memory.question(question)
    }

    fn commit(&mut self, batch: &Batch) -> Outcome {
        let changes = &batch.changes;
        let mut written = changes.new_claims.iter().chain(&changes.claims);
        let outcome = if written.any(|claim| self.rejected == Some(claim.id)) {
            Outcome::NotCommitted(NotCommitted::Constraint(injected()))
        } else {
            self.memory.commit(batch)
        };
        let happened = match outcome {
            Outcome::Committed => Happened::Committed,
            Outcome::NotCommitted(_) | Outcome::Unknown(_) => Happened::NotCommitted,
        };
        self.watch.with(|seen| seen.timeline.push(happened));
        outcome
    }

    fn maintain(&mut self, idle: bool) -> Result<(), StoreError> {
        self.memory.maintain(idle)
    }
}

pub(crate) struct Waiter {
    pub(crate) ticket: Ticket,
    pub(crate) gone: Arc<AtomicBool>,
    pub(crate) watch: Watch,
}

impl ReplyTo for Waiter {
    fn send(self: Box<Self>, answer: Answer) {
        self.watch.with(|seen| {
            seen.timeline.push(Happened::Replied(self.ticket));
            seen.answers.insert(self.ticket, answer);
        });
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

pub(crate) struct Collector(pub(crate) Watch);

impl Runner for Collector {
    fn start(&self, work: Work) {
        self.0.with(|seen| {
            let started = Happened::Started(work.holdout, work.number);
            seen.timeline.push(started);
            seen.works.push(work);
        });
    }
}

impl Publisher for Collector {
    fn release(&self, released: Released, _full: Vec<Tile>) {
        self.0.with(|seen| {
            seen.timeline.push(Happened::Released(released.head.size));
            seen.heads.push(Head::clone(&released.head));
        });
    }

    fn rotated(&self, _key: &LogKey) {
        self.0.with(|seen| seen.timeline.push(Happened::Rotated));
    }

    fn accounts_changed(&self, accounts: &mut dyn Iterator<Item = &Account>) {
        let changed = accounts.map(|account| (account.owner, account.clone()));
        self.0.with(|seen| seen.accounts.extend(changed));
    }
}

pub(crate) struct LocalKey(pub(crate) SignerKey);

impl Signer for LocalKey {
    fn sign(&self, size: u64, root: Hash) -> Head {
        let checkpoint = Checkpoint::new(ORIGIN, size, root).expect("a valid origin");
        let signed = SignedCheckpoint::sign(checkpoint, &self.0).expect("our own origin");
        let digest = sth::sth_digest(size, root);
        Head {
            size,
            root: root.0,
            signature: self.0.sign_bytes(digest.as_bytes()).to_vec(),
            key_id: Digest(sth::key_id(&self.0.public_key()).0),
            checkpoint: signed.to_string(),
        }
    }

    fn origin(&self) -> &str {
        ORIGIN
    }

    fn public_key(&self) -> [u8; 32] {
        self.0.public_key()
    }

    fn sign_bytes(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign_bytes(bytes)
    }
}

/// A signer elsewhere: it only notes what it was asked for.
pub(crate) struct Elsewhere(pub(crate) Watch);

impl RemoteSigner for Elsewhere {
    fn start(&self, size: u64, root: Hash) {
        self.0.with(|seen| seen.asked.push((size, root)));
    }
}
