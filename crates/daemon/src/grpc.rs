//! The edge: parse, call the driver or read, render. Nothing here decides anything.
//!
//! Aliases of the published wire (`Freeze`, `Seal`, `GetCapsule`) end in `service`; statuses are
//! made in [`status`] alone. Reads never pass the writer.

mod accounts;
mod compiling;
mod counting;
mod fields;
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod lasting;
mod pace;
mod parse;
mod places;
mod probing;
mod reads;
mod registration;
mod rekey;
mod render;
pub mod rules;
mod service;
pub mod status;
mod writes;

use std::{
    collections::HashMap,
    hash::Hash,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use evidenceos_driver::{Answer, Call, Failure, ReplyTo, mailbox::Mailbox};
use evidenceos_kernel::{
    account::{Account, Accounting},
    claim::ClaimState,
    command::{Command, Reply, Request, Stamp},
    holdout::{Holdout, HoldoutStatus},
    id::{ClaimId, Digest, Fingerprint, HoldoutId, OwnerTag, RequestKey},
    refusal::Refusal,
    state::REQUEST_WINDOW_MS,
};
use evidenceos_sandbox::Walls;
use evidenceos_store::{Done, Module, log::LogView, reader::Readers};
use lru::LruCache;
use tokio::sync::{broadcast, oneshot, watch};
use tonic::Status;

use crate::{
    anchors,
    auth::Principal,
    clock::Clock,
    config::{Anchoring, Config},
    decisions::Recorder,
    keys::Keys,
    policies::Policies,
    release::{Anchored, NotCovered},
    runner::Guests,
};

/// Claims whose owners are remembered, in some 2 MiB.
const KNOWN_CLAIMS: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Modules remembered as stored.
const KNOWN_MODULES: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");

/// Requests remembered by their ids, in some 8 MiB.
const NAMED_REQUESTS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// As long as the store remembers requests.
const REMEMBERED_FOR: Duration = Duration::from_millis(REQUEST_WINDOW_MS);

/// What the edge needs of the daemon.
pub struct Edge {
    /// Keys and tags.
    pub keys: Arc<Keys>,
    /// The way to the writer.
    pub mailbox: Mailbox,
    /// The engine and the private items.
    pub guests: Arc<Guests>,
    /// Committed rows.
    pub readers: Arc<Readers>,
    /// Proofs.
    pub log: Arc<LogView>,
    /// Holdouts by name.
    pub catalog: Catalog,
    /// Modules that need not be stored again.
    pub stored_modules: StoredModules,
    /// Who may have a module compiled now.
    pub compiling: Compiling,
    /// Claims and their owners.
    pub known_claims: KnownClaims,
    /// Which request each request id named.
    pub named: NamedRequests,
    /// What the store has done since the start.
    pub done: Arc<Done>,
    /// How far anchors remember the log: what follows from rows is shown once they cover it.
    pub anchored: Anchored,
    /// The log index of the newest revocation.
    pub revoked: watch::Sender<u64>,
    /// The size of the newest head that is shown.
    pub released: watch::Sender<u64>,
    /// Where decisions are handed in.
    pub recorder: Arc<Recorder>,
    /// Who creates and executes too many claims; none: nobody does.
    pub probes: Option<ClaimProbes>,
    /// Where the holdouts' keys lie.
    pub rekeying: tokio::sync::Mutex<Rekeying>,
    /// The last change that `accounts.json` shows.
    pub accounts_shown: watch::Receiver<u64>,
    /// Accounts as they change.
    pub changed_accounts: broadcast::Sender<Arc<[Account]>>,
    /// The time that decisions are made at.
    pub clock: Arc<Clock>,
    /// What new accounts start with.
    pub accounting: Accounting,
    /// How the daemon is set up, as far as callers may know.
    pub serves: Serves,
    /// What may veto tool calls and settlements; another set after a reload.
    pub policies: Arc<ArcSwap<Policies>>,
}

/// How the daemon is set up, as far as callers may know.
pub struct Serves {
    /// Nobody is asked who he is.
    pub development: bool,
    /// gRPC is served under TLS.
    pub tls: bool,
    /// Client certificates are verified.
    pub client_certificates: bool,
    /// What an operator should know, whatever the anchors do.
    warnings: Vec<String>,
    /// What is known of the anchors.
    anchors: Arc<anchors::State>,
}

impl Serves {
    /// From the configuration, and what keeps guests in.
    #[must_use]
    pub fn new(config: &Config, walls: Walls, anchors: Arc<anchors::State>) -> Self {
        let tls = config.listeners.tls.as_ref();
        let mut warnings = Vec::new();
        if tls.is_none() && !config.listeners.grpc.ip().is_loopback() {
            warnings.push("gRPC is served beyond loopback without TLS, as a flag demands: whoever sees the network sees tokens and answers".to_owned());
        }
        if config.anchors == Anchoring::Off {
            warnings.push(
                "no anchor (--anchor none): a data directory restored from an older state will not be noticed"
                    .to_owned(),
            );
        }
        if !walls.seccomp {
            warnings.push("guests run without the kernel's filter of system calls (seccomp), which it does not have or somebody took away: limits, Wasm and their process's own rights keep them in".to_owned());
        }
        Self {
            development: config.is_development(),
            tls: tls.is_some(),
            client_certificates: tls
                .is_some_and(|tls| tls.clients != evidenceos_access::ClientCertificates::None),
            warnings,
            anchors,
        }
    }

    /// Whether only reads are served.
    pub fn is_held(&self) -> bool {
        self.anchors.held_because().is_some()
    }

    /// What an operator should know at this moment.
    fn warnings(&self) -> Vec<String> {
        let held = self.anchors.held_because();
        let mut warnings = Vec::new();
        if self.development {
            let what = if held.is_some() { "read" } else { "do" };
            warnings.push(format!(
                "development server: no credentials are checked, every caller without a bearer token may {what} everything"
            ));
        }
        warnings.extend(self.warnings.iter().cloned());
        warnings.extend(held);
        warnings
    }
}

/// Facts that never change, the latest few.
pub struct Latest<K: Eq + Hash, V>(Mutex<LruCache<K, V>>);

impl<K: Eq + Hash, V: Copy> Latest<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).copied()
    }

    fn add(&self, key: K, value: V) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.put(key, value);
    }
}

/// Digests of modules that are known to be stored, with the number of releases when they were: after
/// another one they may have gone.
pub type StoredModules = Latest<[u8; 32], u64>;

impl Default for StoredModules {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KNOWN_MODULES)))
    }
}

/// Whose claims are. Only a caller who finds itself here is spared a look into the database, so that
/// another's claim takes as long as one that does not exist.
pub type KnownClaims = Latest<ClaimId, OwnerTag>;

impl Default for KnownClaims {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KNOWN_CLAIMS)))
    }
}

/// Which request each request id named, the latest few.
///
/// The store remembers requests with the claim that they were about, so that it could not tell an id
/// that comes with another claim from a new one. For a signed call the signature is bound already.
pub struct NamedRequests(Mutex<LruCache<RequestKey, Named>>);

struct Named {
    fingerprint: Fingerprint,
    since: Instant,
}

impl Default for NamedRequests {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NAMED_REQUESTS)))
    }
}

impl NamedRequests {
    /// Refuses a stamp whose key named another request within the time that requests are remembered.
    fn must_be_the_same(&self, stamp: &Stamp) -> Result<(), Refusal> {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match named.get(&stamp.key) {
            Some(first) if now.duration_since(first.since) < REMEMBERED_FOR => {
                if first.fingerprint == stamp.fingerprint {
                    Ok(())
                } else {
                    Err(Refusal::RequestIdReused)
                }
            }
            _ => {
                let fingerprint = stamp.fingerprint;
                let since = now;
                named.put(stamp.key, Named { fingerprint, since });
                Ok(())
            }
        }
    }
}

/// What is fixed of each holdout, by id and by name. Its meters are read from the store.
#[derive(Default)]
pub struct Catalog {
    holdouts: RwLock<Cataloged>,
}

/// Two maps, so that no holdout's name can ever be taken for another's id.
#[derive(Default)]
struct Cataloged {
    by_id: HashMap<HoldoutId, Arc<Holdout>>,
    by_name: HashMap<String, HoldoutId>,
}

impl Catalog {
    /// A catalog of what the store holds.
    #[must_use]
    pub fn new(holdouts: &[Holdout]) -> Self {
        let catalog = Self::default();
        holdouts.iter().for_each(|holdout| catalog.add(holdout));
        catalog
    }

    fn add(&self, holdout: &Holdout) {
        let shared = Arc::new(holdout.clone());
        let mut holdouts = self
            .holdouts
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // A withdrawn holdout keeps its name only until another one takes it.
        let named = holdouts.by_name.entry(holdout.reference.clone());
        if holdout.status == HoldoutStatus::Withdrawn {
            named.or_insert(holdout.id);
        } else {
            named.insert_entry(holdout.id);
        }
        holdouts.by_id.insert(holdout.id, shared);
    }

    /// A holdout by id, if `name` is written as one (64 hex digits), else by name.
    fn find(&self, name: &str) -> Result<Arc<Holdout>, Status> {
        let holdouts = self.holdouts.read().unwrap_or_else(PoisonError::into_inner);
        let id = HoldoutId::from_typed_hex(name).or_else(|| holdouts.by_name.get(name).copied());
        id.and_then(|id| holdouts.by_id.get(&id).cloned())
            .ok_or_else(|| status::refused(&Refusal::UnknownHoldout(name.to_owned())))
    }

    /// Notes that a holdout's items are in another blob.
    fn moved(&self, id: HoldoutId, blob: Digest) {
        if let Some(holdout) = self.by_id(id) {
            self.add(&Holdout {
                blob,
                ..(*holdout).clone()
            });
        }
    }

    /// Whether the labels of any holdout are public.
    fn has_opened(&self) -> bool {
        let holdouts = self.holdouts.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = holdouts.by_id.values();
        all.any(|holdout| holdout.status == HoldoutStatus::Opened)
    }

    fn by_id(&self, id: HoldoutId) -> Option<Arc<Holdout>> {
        let holdouts = self.holdouts.read().unwrap_or_else(PoisonError::into_inner);
        holdouts.by_id.get(&id).cloned()
    }

    /// All, in the order of registration.
    pub(crate) fn all(&self) -> Vec<Arc<Holdout>> {
        let holdouts = self.holdouts.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Arc<Holdout>> = holdouts.by_id.values().cloned().collect();
        all.sort_unstable_by_key(|holdout| holdout.seq);
        all
    }
}

/// Somebody who waits for the fate of a command: told once an anchor covers what the answer says.
struct Waiting {
    told: oneshot::Sender<Result<Answer, NotCovered>>,
    anchored: Anchored,
}

impl ReplyTo for Waiting {
    fn send(self: Box<Self>, answer: Answer) {
        let Self { told, anchored } = *self;
        // Who has gone away gets no answer; what was decided stands.
        match must_be_covered(&answer, &anchored) {
            None => drop(told.send(Ok(answer))),
            Some(entries) => anchored.when_covered(entries, move |covered| {
                drop(told.send(covered.map(|()| answer)));
            }),
        }
    }

    fn is_gone(&self) -> bool {
        self.told.is_closed()
    }
}

/// The entries that an anchor must cover before an answer leaves, if it may say anything of a
/// verdict or of an answer to a question. What only says that something began does not.
fn must_be_covered(answer: &Answer, anchored: &Anchored) -> Option<u64> {
    match answer {
        Ok(Reply::Created { state, .. } | Reply::State(state)) => match state {
            ClaimState::Uncommitted
            | ClaimState::Committed
            | ClaimState::Sealed
            | ClaimState::Executing => None,
            ClaimState::Settled | ClaimState::Certified | ClaimState::Revoked => {
                Some(anchored.seen())
            }
        },
        Ok(Reply::Settled(claim)) => match &claim.settlement {
            Some(settlement) if claim.revocation.is_none() => Some(settlement.index + 1),
            _ => Some(anchored.seen()),
        },
        Ok(_) | Err(Failure::Refused(_)) => Some(anchored.seen()),
        Err(
            Failure::DiskFull
            | Failure::NotStored
            | Failure::Held
            | Failure::Stopping
            | Failure::Unknown,
        ) => None,
    }
}

impl Edge {
    /// What an operator should know, as things are.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.serves.warnings();
        if let Some(held) = self.clock.held() {
            warnings.push(format!(
                "the clock went from {} to {} ms since 1970 in no time; decisions are made as if it had not until an operator confirms it: evidenceos server confirm-clock",
                held.trusted_unix_ms, held.system_unix_ms
            ));
        }
        warnings
    }

    /// Hands a command to the writer and waits for its fate.
    async fn call(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        command: Command,
        module: Option<Module>,
    ) -> Result<Reply, Status> {
        if let Some(stamp) = &stamp {
            let same = self.named.must_be_the_same(stamp);
            same.map_err(|refusal| status::refused(&refusal))?;
        }
        let (told, answer) = oneshot::channel();
        self.mailbox.call(Call {
            request: Request {
                caller: principal.caller,
                stamp,
                command,
            },
            module,
            reply_to: Box::new(Waiting {
                told,
                anchored: self.anchored.clone(),
            }),
        });
        let answer = answer.await.unwrap_or(Ok(Err(Failure::Unknown)));
        let answer = answer.map_err(|NotCovered| status::not_shown_yet(true))?;
        answer.map_err(|failure| status::failed(&failure))
    }

    /// Gives what was read from rows once an anchor covers all that it may follow from.
    async fn covered<T>(&self, entries: u64, read: Result<T, Status>) -> Result<T, Status> {
        let covered = self.anchored.cover(entries).await;
        covered.map_err(|_| status::not_shown_yet(false))?;
        read
    }

    /// Reads rows beside the threads that serve, and gives what was read, be it a refusal, once an
    /// anchor covers it.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let (read, entries) = self
            .blocking(move |edge| {
                let read = read(edge);
                Ok((read, edge.anchored.seen()))
            })
            .await?;
        self.covered(entries, read).await
    }

    /// Runs something that blocks on files beside the threads that serve.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let edge = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&edge)).await {
            Ok(result) => result,
            Err(panic) => Err(status::internal(&panic)),
        }
    }
}

/// A reply of the wrong kind is a bug of ours.
fn unexpected(reply: &Reply) -> Status {
    status::internal(&format!("an unexpected reply: {reply:?}"))
}

pub use compiling::Compiling;
pub use counting::CountLayer;
pub use gate::GateLayer;
pub use probing::ClaimProbes;
pub use rekey::Rekeying;
pub use service::Service;
