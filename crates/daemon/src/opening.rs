//! Opening a data directory: what must be there, and in which order it comes to life.
//!
//! Lock, database, keys, log, then the writer. A key that takes over the log is linked here,
//! before anything else is signed. Runs found unfinished are begun again by the writer.

use std::{
    fs::DirBuilder,
    ops::ControlFlow,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use evidenceos_driver::{
    Driver, Fatal, Limits, Publisher, Signing,
    mailbox::{self, Inbox, Mailbox},
};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    account::Account,
    holdout::HoldoutStatus,
    log_key::LogKey,
    record,
    state::{Changes, Counters, Resident},
};
use evidenceos_keys::{kms::Kms, secrets};
use evidenceos_sandbox::Sandbox;
use evidenceos_store::{
    AccountsFiles, Batch, Done, Entry, Head, StoreError,
    blobs::sync_directory,
    lock::DirectoryLock,
    log::{Integrator, LogView, Released},
    reader::Readers,
    sqlite::{Found, SqliteStore},
};
use evidenceos_tlog::{Tile, Tree, leaf_hash};
use tokio::{
    runtime::Handle,
    sync::{broadcast, watch},
};

use crate::{
    accounts::{self, AtStart},
    anchors::{self, Anchors, Own, Verdict},
    clock::Clock,
    config::{Config, KeySource},
    decisions,
    grpc::{Catalog, ClaimProbes, Edge, Rekeying},
    holdout_keys::{HoldoutKeyError, KeyShelf},
    keys::{self, InMemory, Keys, LogKeyError, LogKeys},
    metrics::Metrics,
    own_work::{OwnWork, must_commit},
    policies,
    rotation::{self, RemoteHeads},
    runner::{Guests, Pool, yield_to_serving},
    server::{StartError, unix_ms},
    vault::Vault,
};

/// How often tiles are written while entries come.
const INTEGRATE_EVERY: Duration = Duration::from_millis(500);
/// How often anchors that do not answer are asked again.
const ASK_ANCHORS_EVERY: Duration = Duration::from_secs(1);
/// Leaves read at once.
const LEAVES: usize = 4_096;
/// Changes of accounts that a slow watcher may be behind before it reads them all again.
const WATCHED_CHANGES: usize = 256;

/// A data directory that has come to life.
pub struct Opened {
    /// What the edges need.
    pub edge: Arc<Edge>,
    /// The writer.
    pub driver: JoinHandle<Result<SqliteStore, Fatal>>,
    /// Writes the log's files.
    pub integrator: Following,
    /// Writes `accounts.json`.
    pub accounts: accounts::Following,
    /// Puts decisions into the log.
    pub decisions: decisions::Following,
    /// Nobody else has the directory.
    pub lock: DirectoryLock,
}

/// Opens a data directory. Blocks; `runtime` is where a KMS is asked.
pub fn open(
    config: &Config,
    metrics: &Arc<Metrics>,
    runtime: &Handle,
) -> Result<Opened, StartError> {
    let directory = config.data_dir.as_path();
    prepare_directory(directory)?;
    let lock = DirectoryLock::take(directory)?;
    failpoint::pass(Point::StartupLocked);
    open_locked(config, metrics, runtime, lock)
        .inspect_err(|_| failpoint::pass(Point::StartupFailedAfterLock))
}

fn open_locked(
    config: &Config,
    metrics: &Arc<Metrics>,
    runtime: &Handle,
    lock: DirectoryLock,
) -> Result<Opened, StartError> {
    let directory = config.data_dir.as_path();
    let sandbox = Sandbox::new(Default::default())?;
    let policies = policies::at_start(config, &sandbox)?;
    let (mut store, found) = SqliteStore::open(directory)?;
    store.keep_free(config.min_free_bytes);
    let watching = Arc::clone(metrics);
    store.observe(move |batch, took| watching.committed(batch, took));
    let done = store.done();
    let accounts_json = accounts::look(directory, &found)?;
    let Found {
        holdouts,
        counters,
        head,
        log_keys,
        totals,
        ..
    } = found;
    let first_start = head.is_none();
    let anchor_state = Arc::new(anchors::State::default());
    metrics.keeps(Arc::clone(&done), Arc::clone(&anchor_state));
    let anchors = Anchors::new(
        &config.anchors,
        config.anchor_optional,
        runtime,
        Arc::clone(&anchor_state),
    );
    if config.anchors.is_empty() {
        tracing::warn!(
            "no --anchor: a data directory restored from an older state will not be noticed"
        );
    }
    if first_start {
        anchors.must_be_new()?;
    }
    let own = secrets::directory(directory)?;
    let imported = keys::imported(config)?;
    let found_keys = LogKeys::find(config, head.as_ref(), runtime)?;
    let owners = keys::owners(&own, imported.as_ref(), first_start)?;
    let shelf = KeyShelf::new(own, imported, kms(config)?, runtime.clone());
    let mut holdout_keys = shelf.load(first_start)?;
    let (head, counters) = match head {
        Some(head) => (head, counters),
        None => start_log(&mut store, &found_keys, counters, runtime)?,
    };
    let readers = Arc::new(Readers::open(directory)?);
    let mut integrator = Integrator::recover(directory, Arc::clone(&readers), Some(&head))?;
    // Before anything is signed over what is here.
    let former = former_origins(&readers)?;
    let own = OwnLog {
        log: Arc::new(LogView::new(&integrator, head.clone())),
        head: head.clone(),
        former,
    };
    let free = first_start || own.is_free(&anchors)?;
    if !free && matches!(accounts_json, AtStart::Import(_)) {
        return Err(StoreError::Unusable(
            "no anchor answers, and accounts.json is to be imported: that cannot be signed now. Make an anchor reachable".to_owned(),
        )
        .into());
    }
    if !free && found_keys.predecessor.is_some() {
        return Err(StoreError::Unusable(
            "no anchor answers, and another key is to take over the log: that cannot be signed now. Make an anchor reachable, or start with the key that signed before".to_owned(),
        )
        .into());
    }
    let anchors = Arc::new(anchors);
    let hold = (!free).then(|| Hold {
        own,
        anchors: Arc::clone(&anchors),
    });
    let mut tree = integrator.tree().clone();
    append_unsigned(&mut tree, &readers, counters.next_index)?;

    let clock = Arc::new(Clock::start(counters.now_unix_ms));
    let catalog = Catalog::new(&holdouts);
    let mut resident = Resident::new(holdouts, counters, sandbox.engine_id().to_owned())
        .with_accounts(config.accounting.clone(), totals);
    let (mut head, history) = follow_keys(
        &mut store,
        &mut resident,
        &mut tree,
        (head, log_keys),
        &found_keys,
        runtime,
    )?;
    let keys = Arc::new(Keys::new(owners, found_keys, history));
    must_know_owners(&readers, &keys)?;
    let in_place = match accounts_json {
        AtStart::Current(file) => file,
        AtStart::Behind(file) => accounts::write_now(&mut store, directory, &readers, file)?,
        AtStart::Import(import) => {
            let mut work = OwnWork {
                store: &mut store,
                resident: &mut resident,
                tree: &mut tree,
                runtime,
            };
            let known = AccountsFiles {
                announced: Some(import.file()),
                before: None,
            };
            let what = "the import of accounts.json";
            head = work.enact(import.command(&keys), &keys.signer(), what, Some(known))?;
            import.done(directory)?;
            accounts::write_now(&mut store, directory, &readers, known.announced)?
        }
    };
    if free {
        anchors.remember(&head)?;
    }
    integrator.integrate(&head)?;

    let vault = Vault::new(holdout_keys.clone(), readers.blobs().clone());
    // The items of a withdrawn holdout are gone.
    let kept = resident
        .holdouts()
        .find(|holdout| holdout.status != HoldoutStatus::Withdrawn);
    let in_use = match kept {
        Some(holdout) => vault.tag_of(&holdout.blob)?,
        None => None,
    };
    shelf.settle(&mut holdout_keys, in_use)?;
    if let Some(tag) = in_use {
        let key = holdout_keys.of(&tag).cloned();
        vault.follow(key.ok_or_else(|| HoldoutKeyError::Another(shelf.place()))?);
    }
    let log = Arc::new(LogView::new(&integrator, head.clone()));
    done.integrated
        .store(integrator.tree().size(), Ordering::Relaxed);
    let guests = Arc::new(Guests {
        sandbox,
        vault,
        readers: Arc::clone(&readers),
        policies: Arc::clone(&policies),
        metrics: Arc::clone(metrics),
    });
    let (mailbox, inbox) = mailbox::mailbox();
    let integrator = Following::start(
        integrator,
        Arc::clone(&log),
        Arc::clone(&readers),
        Arc::clone(&done),
        Remembering {
            anchors,
            mailbox: mailbox.clone(),
        },
    )?;
    let accounts = accounts::Following::start(
        directory,
        Arc::clone(&readers),
        Arc::clone(&done),
        mailbox.clone(),
        in_place,
    )
    .map_err(StartError::Thread)?;
    let (recorder, decisions) = decisions::Following::start(
        store.epoch(),
        config.preflight.keep,
        mailbox.clone(),
        Arc::clone(&readers),
    )
    .map_err(StartError::Thread)?;
    let recorder = Arc::new(recorder);
    metrics.records(Arc::clone(&recorder));
    let changed_accounts = broadcast::channel(WATCHED_CHANGES).0;
    let released = watch::channel(head.size).0;
    let publishing = Publishing {
        log: Arc::clone(&log),
        wake: integrator.wake.clone(),
        wake_accounts: accounts.waker(),
        changed_accounts: changed_accounts.clone(),
        keys: Arc::clone(&keys),
        metrics: Arc::clone(metrics),
        released: released.clone(),
    };
    metrics.head(head.size, unix_ms());
    let driver = Writer {
        store,
        resident,
        tree,
        signed_size: head.size,
        keys: &keys,
        guests: &guests,
        runtime,
        metrics,
        clock: &clock,
        hold,
    }
    .start(&mailbox, inbox, Box::new(publishing))?;
    let edge = Arc::new(Edge {
        keys,
        mailbox,
        guests,
        readers,
        log,
        catalog,
        stored_modules: Default::default(),
        done,
        revoked: watch::channel(0).0,
        recorder,
        probes: config
            .preflight
            .probe_claims
            .map(|rules| ClaimProbes::new(rules, config.preflight.probe_retry_after))
            .transpose()?,
        released,
        accounts_shown: accounts.shown(),
        changed_accounts,
        clock,
        accounting: config.accounting.clone(),
        rekeying: tokio::sync::Mutex::new(Rekeying::new(shelf)),
        serves: crate::grpc::Serves::new(config, anchor_state),
        policies,
    });
    Ok(Opened {
        edge,
        driver,
        integrator,
        accounts,
        decisions,
        lock,
    })
}

fn kms(config: &Config) -> Result<Option<(Kms, Option<String>)>, LogKeyError> {
    match &config.keys {
        KeySource::Files(_) => Ok(None),
        KeySource::Kms(keys) => {
            let kms = Kms::new(keys.settings.clone())?;
            Ok(Some((kms, keys.holdout_key.clone())))
        }
    }
}

fn prepare_directory(directory: &Path) -> Result<(), StoreError> {
    if !directory.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(StoreError::io("create", directory))?;
        if let Some(parent) = directory
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            sync_directory(parent)?;
        }
    }
    if !directory.is_dir() {
        return Err(StoreError::Unusable(format!(
            "{} is not a directory; give a --data-dir that is one, or does not exist yet",
            directory.display()
        )));
    }
    Ok(())
}

/// Entry 0 of a new log, committed before anything else.
fn start_log(
    store: &mut SqliteStore,
    keys: &LogKeys,
    counters: Counters,
    runtime: &Handle,
) -> Result<(Head, Counters), StartError> {
    let now = unix_ms();
    let signer = &keys.signer;
    let software = concat!("evidenceosd/", env!("CARGO_PKG_VERSION"));
    let bytes = record::log_started(signer.origin(), signer.key_id(), software, now);
    let leaf = leaf_hash(&bytes);
    let mut tree = Tree::new();
    tree.append(leaf);
    let head = runtime
        .block_on(signer.sign_head(tree.size(), tree.root()))
        .map_err(LogKeyError::Kms)?;
    let counters = Counters {
        next_index: 1,
        now_unix_ms: now,
        ..counters
    };
    let batch = Batch {
        changes: Changes {
            counters,
            ..Changes::default()
        },
        entries: vec![Entry { leaf, bytes }],
        head: Some(head.clone()),
        ..Batch::default()
    };
    must_commit(store, &batch, "the first entry of the log")?;
    Ok((head, counters))
}

/// Another owners' secret would give every principal another tag: nobody would find his claims and
/// his credit again. The first account tells.
fn must_know_owners(readers: &Readers, keys: &Keys) -> Result<(), StoreError> {
    let first = readers.accounts(0, 1)?.pop();
    match first.filter(|account| account.is_named()) {
        Some(account) if keys.owner_tag(&account.principal) != account.owner => {
            Err(StoreError::Unusable(
                "owners.secret is not the one that this directory was served with: every principal would be somebody else. Bring secrets/owners.secret back from a backup".to_owned(),
            ))
        }
        _ => Ok(()),
    }
}

/// Entries whose head was not signed yet: the KMS was slow when the process ended.
pub(crate) fn append_unsigned(
    tree: &mut Tree,
    readers: &Readers,
    size: u64,
) -> Result<(), StoreError> {
    while tree.size() < size {
        let leaves = readers.leaves(tree.size(), LEAVES)?;
        if leaves.is_empty() {
            return Err(StoreError::Damaged {
                table: "entries",
                key: tree.size().to_string(),
                what: "entries are missing",
            });
        }
        for leaf in leaves {
            tree.append(leaf);
        }
    }
    Ok(())
}

/// Brings the history of keys up to date, and links the key that signs now to the one before.
fn follow_keys(
    store: &mut SqliteStore,
    resident: &mut Resident,
    tree: &mut Tree,
    (mut head, mut history): (Head, Vec<LogKey>),
    keys: &LogKeys,
    runtime: &Handle,
) -> Result<(Head, Vec<LogKey>), StartError> {
    let before = keys.predecessor.as_ref().unwrap_or(&keys.signer);
    if history.is_empty() {
        let first = LogKey::new(before.public_key(), 0);
        let batch = Batch {
            changes: Changes {
                log_keys: vec![first],
                counters: resident.counters(),
                ..Changes::default()
            },
            ..Batch::default()
        };
        must_commit(store, &batch, "the log's first key")?;
        history.push(first);
    }
    if let Some(old) = &keys.predecessor {
        let since = tree.size() + 1;
        head = rotation::link(store, resident, tree, old, &keys.signer, runtime)?;
        history.push(LogKey::new(keys.signer.public_key(), since));
    }
    Ok((head, history))
}

/// What the writer is wired from.
struct Writer<'o> {
    store: SqliteStore,
    resident: Resident,
    tree: Tree,
    signed_size: u64,
    keys: &'o Keys,
    guests: &'o Arc<Guests>,
    runtime: &'o Handle,
    metrics: &'o Arc<Metrics>,
    clock: &'o Arc<Clock>,
    /// Why nothing may be signed yet, if it may not.
    hold: Option<Hold>,
}

/// The log as an anchor is compared with it.
struct OwnLog {
    log: Arc<LogView>,
    head: Head,
    former: Vec<String>,
}

impl OwnLog {
    /// Whether signing may begin.
    fn is_free(&self, anchors: &Anchors) -> Result<bool, StoreError> {
        let verdict = anchors.compare(&Own {
            origin: self.head.checkpoint.lines().next().unwrap_or_default(),
            former: &self.former,
            head: &self.head,
            root_at: &|size| anchors::root_at(&self.log, size, self.head.size),
        })?;
        Ok(verdict == Verdict::Free)
    }
}

/// Waits for an anchor.
struct Hold {
    own: OwnLog,
    anchors: Arc<Anchors>,
}

impl Hold {
    /// Sends calls away until an anchor answers. Breaks where the daemon is to stop first.
    fn wait(self, inbox: &Inbox) -> Result<ControlFlow<()>, Fatal> {
        tracing::error!(
            "no anchor answers: reads are served, nothing is signed or charged until one does"
        );
        let flow = mailbox::hold(inbox, ASK_ANCHORS_EVERY, || {
            let free = self.own.is_free(&self.anchors)?;
            if free {
                self.anchors.remember(&self.own.head)?;
            }
            Ok(free)
        })?;
        if flow.is_continue() {
            tracing::info!("an anchor answers: signing begins");
        }
        Ok(flow)
    }
}

/// Has anchors follow the log.
struct Remembering {
    anchors: Arc<Anchors>,
    mailbox: Mailbox,
}

/// The name that the log began under: another than today's, if it was begun anew.
fn former_origins(readers: &Readers) -> Result<Vec<String>, StoreError> {
    let first = readers.entries(0, 1)?;
    let origin = first
        .first()
        .and_then(|entry| record::started_as(&entry.bytes));
    Ok(origin.into_iter().collect())
}

impl Writer<'_> {
    fn start(
        self,
        mailbox: &Mailbox,
        inbox: Inbox,
        publisher: Box<dyn Publisher>,
    ) -> Result<JoinHandle<Result<SqliteStore, Fatal>>, StartError> {
        let threads = thread::available_parallelism().map_or(2, usize::from);
        let pool = Pool::start(self.guests, mailbox, threads).map_err(StartError::Thread)?;
        let signer = self.keys.signer();
        let signing = match InMemory::of(&signer) {
            Some(local) => Signing::Inside(Box::new(local)),
            None => Signing::Elsewhere(Box::new(RemoteHeads::new(
                signer,
                mailbox.clone(),
                self.runtime.clone(),
                Arc::clone(self.metrics),
            ))),
        };
        let Self {
            store,
            resident,
            tree,
            signed_size,
            hold,
            ..
        } = self;
        let clock = Arc::clone(self.clock);
        thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || {
                if let Some(hold) = hold
                    && hold.wait(&inbox)?.is_break()
                {
                    return Ok(store);
                }
                let driver = Driver::new(
                    store,
                    resident,
                    tree,
                    signing,
                    signed_size,
                    Box::new(pool),
                    publisher,
                    Limits::default(),
                );
                mailbox::run(driver, &inbox, || clock.now_unix_ms())
            })
            .map_err(StartError::Thread)
    }
}

/// The thread that follows the commits and writes tiles.
pub struct Following {
    wake: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Following {
    fn start(
        mut integrator: Integrator,
        log: Arc<LogView>,
        readers: Arc<Readers>,
        done: Arc<Done>,
        remembering: Remembering,
    ) -> Result<Self, StartError> {
        let (wake, woken) = mpsc::channel();
        let follow = move || {
            yield_to_serving();
            match readers.blobs().sweep(|blob| readers.names_blob(blob)) {
                Ok(0) => {}
                Ok(swept) => tracing::info!(swept, "removed blobs of uploads that never committed"),
                Err(error) => tracing::warn!(%error, "cannot sweep blobs"),
            }
            let mut publish = || {
                let head = log.released().head;
                if head.size == integrator.tree().size() {
                    return;
                }
                // Before the checkpoint: what is published is remembered.
                if let Err(error) = remembering.anchors.remember(&head) {
                    tracing::error!(%error, "nothing more is signed");
                    remembering.mailbox.halt(error);
                    return;
                }
                match integrator.integrate(&head) {
                    Ok(()) => {
                        log.integrated(head.size);
                        done.integrated.store(head.size, Ordering::Relaxed);
                        done.log_files_synced
                            .store(integrator.synced(), Ordering::Relaxed);
                    }
                    // The rows are the truth and proofs come from memory meanwhile; what could
                    // not be written is tried again with the next entries.
                    Err(error) => tracing::error!(%error, "cannot write log tiles"),
                }
            };
            while woken.recv().is_ok() {
                publish();
                // Commits come in hundreds a second; tiles need not.
                thread::sleep(INTEGRATE_EVERY);
                while woken.try_recv().is_ok() {}
                publish();
            }
            publish();
        };
        let thread = thread::Builder::new()
            .name("integrator".to_owned())
            .spawn(follow)
            .map_err(StartError::Thread)?;
        Ok(Self { wake, thread })
    }

    /// Publishes what is left and ends. Every publisher must be gone before.
    pub async fn end(self) {
        drop(self.wake);
        let thread = self.thread;
        // A panic there has been reported; nothing is left to publish.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

struct Publishing {
    log: Arc<LogView>,
    wake: mpsc::Sender<()>,
    wake_accounts: mpsc::Sender<()>,
    changed_accounts: broadcast::Sender<Arc<[Account]>>,
    keys: Arc<Keys>,
    metrics: Arc<Metrics>,
    released: watch::Sender<u64>,
}

impl Publisher for Publishing {
    fn release(&self, released: Released, full: Vec<Tile>) {
        let size = released.head.size;
        self.log.release(released, full);
        self.metrics.head(size, unix_ms());
        self.released.send_replace(size);
        let _ = self.wake.send(());
    }

    fn rotated(&self, key: &LogKey) {
        self.keys.took_over(key);
        tracing::info!(key = %key.id, since_size = key.since_size, "another key signs the log");
    }

    fn accounts_changed(&self, accounts: &mut dyn Iterator<Item = &Account>) {
        let _ = self.wake_accounts.send(());
        if self.changed_accounts.receiver_count() > 0 {
            // Nobody may be left who watches.
            let _ = self.changed_accounts.send(accounts.cloned().collect());
        }
    }
}
