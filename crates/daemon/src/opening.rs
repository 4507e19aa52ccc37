//! Opening a data directory: what must be there, and in which order it comes to life.
//!
//! Lock, database, keys, log, then the writer. An empty directory begins a log only if its key can
//! have signed none; over one that is there nothing is signed before an anchor agrees. A key that
//! takes over the log is linked here, before anything else is signed. Runs found unfinished are
//! begun again by the writer.
//!
//! Whatever ends what was opened, by a stop, an error or a drop, ends its threads first and gives
//! the lock back last.

use std::{
    fs::DirBuilder,
    ops::ControlFlow,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use evidenceos_access::Authenticator;
use evidenceos_driver::{
    Driver, Fatal, Limits, Publisher, Signing,
    mailbox::{self, Inbox, Mailbox},
};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    continuity::{BegunBy, LogStarted},
    holdout::HoldoutStatus,
    in_force::InForce,
    log_key::LogKey,
    state::{Changes, Counters, Resident},
};
use evidenceos_keys::{kms::Kms, secrets};
use evidenceos_store::{
    AccountsFiles, Batch, Done, Entry, Head, Store as _, StoreError, backup,
    blobs::sync_directory,
    facts::{Beginning, Fact, Facts},
    lock::DirectoryLock,
    log::{self, Integrator, LogView, Released},
    reader::Readers,
    sqlite::{Found, SqliteStore},
};
use evidenceos_tlog::{Hash, Tile, Tree, leaf_hash};
use tokio::{
    runtime::Handle,
    sync::{broadcast, watch},
};

use crate::{
    accounts::{self, AtStart},
    anchors::{self, Anchors, Beginner, Own, Tip, Verdict},
    clock::Clock,
    clock::unix_ms,
    config::{Anchoring, Config, KeySource, guests_a_principal},
    decisions::{self, Recorder, RecorderCollector},
    guarded,
    holdout_keys::{HoldoutKeyError, KeyShelf},
    in_force::{self, Stating},
    keys::{self, InMemory, Keys, LogKeyError, LogKeys, NewKey},
    metrics::Metrics,
    own_work::{OwnWork, Told},
    policies::{self, Policies},
    priority::yield_to_serving,
    release::{Anchored, Releasing, Shows},
    rotation::{self, RemoteHeads},
    runner::{Guests, Pool},
    services::{
        Accounts, Catalog, Claims, Holdouts, Log, Probing, Rekeying, Rows, Server, Services,
        ServicesCollector, Setup, Writer as WayToWriter,
    },
    start_error::StartError,
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
    /// What can be asked of it.
    pub services: Arc<Services>,
    /// What the gate, a reload and a stop need beside.
    pub parts: Parts,
    /// Tells callers apart, as the log states it.
    pub authenticator: Authenticator,
    /// Has the log state other policies.
    pub stating: Arc<Stating>,
    /// What works on it.
    pub threads: Threads,
}

/// The daemon's parts that others than services need.
#[derive(Clone)]
pub struct Parts {
    pub mailbox: Mailbox,
    pub keys: Arc<Keys>,
    pub guests: Arc<Guests>,
    pub policies: Arc<ArcSwap<Policies>>,
    pub recorder: Arc<Recorder>,
    pub clock: Arc<Clock>,
    pub log: Arc<LogView>,
    pub released: watch::Sender<u64>,
    pub readers: Arc<Readers>,
    pub done: Arc<Done>,
    pub accounts_shown: watch::Receiver<u64>,
}

/// Everything that works on an opened directory, in the order in which it ends.
pub struct Threads {
    /// Puts decisions into the log.
    pub decisions: decisions::Following,
    /// The writer.
    pub driver: DriverThread,
    /// Has anchors remember heads, and shows them.
    pub releasing: Releasing,
    /// Writes the log's files.
    pub integrator: Following,
    /// Writes `accounts.json`.
    pub accounts: accounts::Following,
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
    warn(guarded::must_be_closed(config)?);
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
    let sandbox = config.sandbox()?;
    let policies = policies::at_start(
        &config.policies_path(),
        &sandbox,
        config.allow_unsigned_policies,
    )?;
    let authenticator = config.identity.load().map_err(StartError::Identity)?;
    let (mut store, mut found) = SqliteStore::open(directory)?;
    store.keep_free(config.min_free_bytes);
    note_backup(directory, &mut store, &mut found.facts)?;
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
        facts,
        in_force,
        ..
    } = found;
    let first_start = head.is_none();
    let anchor_state = Arc::new(anchors::State::default());
    metrics.keeps(Arc::clone(&done));
    metrics.collect(anchors::StateCollector(Arc::clone(&anchor_state)));
    warn(guarded::anchors_must_be_closed(
        facts.anchors.as_deref().unwrap_or_default(),
    )?);
    let anchors = Anchors::new(config, &facts, runtime, Arc::clone(&anchor_state))?;
    if config.anchors == Anchoring::Off {
        tracing::warn!(
            "--anchor none: a data directory restored from an older state will not be noticed"
        );
    }
    let own = secrets::directory(directory)?;
    let made_key = first_start && make_key(config, &facts, &mut store)?;
    let imported = keys::imported(config)?;
    let found_keys = LogKeys::find(config, head.as_ref(), runtime)?;
    let made_key = made_key || (first_start && is_own(&facts, &found_keys));
    let owners = keys::owners(&own, imported.as_ref(), first_start)?;
    let shelf = KeyShelf::new(own, imported, kms(config)?, runtime.clone());
    let mut holdout_keys = shelf.load(first_start)?;
    let (head, counters) = match head {
        Some(head) => {
            must_be_named(config, &head)?;
            (head, counters)
        }
        None => {
            let begun = anchors.begin(&Beginner {
                origin: found_keys.signer.origin(),
                keys: found_keys.public_keys(),
                made_key,
                stated: config.begin_log.as_deref(),
            })?;
            let started = start_log(&mut store, &found_keys, begun.by, counters, runtime)?;
            // Until an anchor has it, another start beside the anchor could begin as well.
            anchors.remember(&Tip::from(&started.0))?;
            started
        }
    };
    let readers = Arc::new(Readers::open(directory)?);
    store.release_through(readers.blobs().clone());
    let published = log::published_tree(directory, &readers, &head)?;
    let mut tree = published.clone();
    append_unsigned(&mut tree, &readers, counters.next_index)?;
    // Before anything is signed over what is here, or shown of it that was not before.
    let mut own = OwnLog {
        published,
        readers: Arc::clone(&readers),
        origin: found_keys.signer.origin().to_owned(),
        former: former_origins(&readers, &facts)?,
        head: head.clone(),
        tip: (tree.size(), tree.root()),
    };
    if !first_start
        && facts.restored.is_none()
        && let Err(error) = anchors.make_default()
    {
        tracing::error!(%error, "the log has no anchor");
    }
    let tip = anchors.tip_of(&head, &tree, &found_keys.signer);
    let mut free = own.is_free(&anchors)?;
    if free && !anchors.remember(&tip)? {
        anchor_state.hold(CANNOT_WRITE);
        free = false;
    }
    must_need_no_signature(free, &anchor_state, &accounts_json, &found_keys)?;
    let shown = if free {
        head.clone()
    } else {
        own.shown_head(config, &found_keys, &log_keys, runtime)?
    };
    let mut integrator = Integrator::recover(directory, Arc::clone(&readers), Some(&shown))?;
    let mut tree = integrator.tree().clone();
    append_unsigned(&mut tree, &readers, counters.next_index)?;
    let anchors = Arc::new(anchors);

    let clock = Arc::new(Clock::start(counters.now_unix_ms));
    let catalog = Arc::new(Catalog::new(&holdouts));
    let mut resident = Resident::new(holdouts, counters, sandbox.engine_id().to_owned())
        .with_accounts(config.accounting.clone(), totals)
        .with_in_force(in_force);
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
            let told = Told {
                files: Some(known),
                facts: Vec::new(),
            };
            head = work
                .enact(import.command(&keys), &keys.signer(), what, told)?
                .head;
            import.done(directory)?;
            accounts::write_now(&mut store, directory, &readers, known.announced)?
        }
    };
    let tip = anchors.tip_of(&head, &tree, &keys.signer());
    let shown = if free {
        // What the start itself has signed.
        free = anchors.remember(&tip)?;
        own.head = head.clone();
        own.tip = (tree.size(), tree.root());
        head.clone()
    } else {
        shown
    };
    integrator.integrate(&shown)?;
    if free {
        settle(&mut store, &anchors, &facts)?;
    } else if anchor_state.held_because().is_none() {
        anchor_state.hold(CANNOT_WRITE);
    }

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
    let log = Arc::new(LogView::new(&integrator, shown.clone()));
    done.integrated
        .store(integrator.tree().size(), Ordering::Relaxed);
    let walls = sandbox.walls();
    let guests = Arc::new(Guests {
        sandbox,
        vault,
        readers: Arc::clone(&readers),
        policies: Arc::clone(&policies),
        metrics: Arc::clone(metrics),
    });
    let covered = if free {
        tree.size()
    } else {
        integrator.tree().size()
    };
    let anchored = if anchors.are_written() || !free {
        Anchored::from(Arc::clone(&done), covered, free)
    } else {
        Anchored::off(Arc::clone(&done))
    };
    if anchored.is_on() {
        metrics.wait_for_anchors(covered);
    }
    runtime.spawn(anchored.clone().look_after());
    let hold = (!free).then(|| Hold {
        own,
        tip,
        tree: tree.clone(),
        anchors: Arc::clone(&anchors),
        anchored: anchored.clone(),
        state: Arc::clone(&anchor_state),
        facts,
    });
    let (mailbox, inbox) = mailbox::mailbox();
    let integrator = Following::start(
        integrator,
        Arc::clone(&log),
        Arc::clone(&readers),
        Arc::clone(&done),
    )?;
    let accounts = accounts::Following::start(
        directory,
        Arc::clone(&readers),
        Arc::clone(&done),
        mailbox.clone(),
        in_place,
    )
    .map_err(StartError::Thread)?;
    let changed_accounts = broadcast::channel(WATCHED_CHANGES).0;
    let released = watch::channel(shown.size).0;
    let shows = Shows {
        log: Arc::clone(&log),
        wake: integrator.waker(),
        changed_accounts: changed_accounts.clone(),
        metrics: Arc::clone(metrics),
        released: released.clone(),
        anchored: anchored.clone(),
    };
    metrics.head(shown.size, unix_ms());
    let (releasing, publishing) = Releasing::start(
        anchors,
        Arc::clone(&anchor_state),
        mailbox.clone(),
        Arc::clone(&keys),
        accounts.waker(),
        shows,
    )
    .map_err(StartError::Thread)?;
    let epoch = store.epoch();
    let wanted = in_force::of(&policies.load(), &authenticator, &keys);
    let wanted = Arc::new(ArcSwap::from_pointee(wanted));
    let stating = Stating::new(Arc::clone(&wanted), mailbox.clone());
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
        in_force: wanted,
        hold,
    }
    .start(&mailbox, inbox, Box::new(publishing))?;
    let (recorder, decisions) = decisions::Following::start(
        epoch,
        config.preflight.keep,
        mailbox.clone(),
        Arc::clone(&readers),
    )
    .map_err(StartError::Thread)?;
    let recorder = Arc::new(recorder);
    metrics.collect(RecorderCollector(Arc::clone(&recorder)));
    let writer = Arc::new(WayToWriter::new(mailbox, anchored.clone()));
    let rows = Rows {
        readers: Arc::clone(&readers),
        anchored,
    };
    let probing = config
        .preflight
        .probe_claims
        .map(|rules| {
            let retry_after = config.preflight.probe_retry_after;
            Probing::new(
                rules,
                retry_after,
                Arc::clone(&recorder),
                Arc::clone(&clock),
            )
        })
        .transpose()?;
    let shown_log = Arc::new(Log::new(
        Arc::clone(&keys),
        Arc::clone(&log),
        rows.clone(),
        released.clone(),
    ));
    let services = Arc::new(Services {
        claims: Arc::new(Claims::new(
            Arc::clone(&writer),
            rows.clone(),
            Arc::clone(&catalog),
            Arc::clone(&shown_log),
            Arc::clone(&guests),
            config.accounting.clone(),
            probing,
        )),
        holdouts: Arc::new(Holdouts::new(
            Arc::clone(&writer),
            rows.clone(),
            catalog,
            Arc::clone(&keys),
            Arc::clone(&guests),
            Rekeying::new(shelf),
        )),
        log: shown_log,
        accounts: Arc::new(Accounts {
            writer: Arc::clone(&writer),
            rows,
            keys: Arc::clone(&keys),
            clock: Arc::clone(&clock),
            accounting: config.accounting.clone(),
            done: Arc::clone(&done),
            in_file: accounts.shown(),
            changed: changed_accounts,
        }),
        server: Arc::new(Server::new(
            Setup::new(config, walls),
            Arc::clone(&writer),
            Arc::clone(&clock),
            Arc::clone(&keys),
            Arc::clone(&guests),
            Arc::clone(&done),
            anchor_state,
        )),
    });
    metrics.collect(ServicesCollector::new(&services));
    let parts = Parts {
        mailbox: writer.mailbox().clone(),
        keys,
        guests,
        policies,
        recorder,
        clock,
        log,
        released,
        readers,
        done,
        accounts_shown: accounts.shown(),
    };
    Ok(Opened {
        services,
        parts,
        authenticator,
        stating: Arc::new(stating),
        threads: Threads {
            decisions,
            driver,
            releasing,
            integrator,
            accounts,
            lock,
        },
    })
}

/// A backup that was put into place as it is, by a copy of its files, is marked here: those of the
/// releases before do not say in the database what they are.
pub(crate) fn note_backup(
    directory: &Path,
    store: &mut SqliteStore,
    facts: &mut Facts,
) -> Result<(), StoreError> {
    let Some(restored) = backup::put_into_place(directory)? else {
        return Ok(());
    };
    if facts.restored.is_none() {
        let fact = Fact::Restored(Some(restored));
        facts.note(&fact);
        let noted = store.remember(vec![fact]);
        noted.must_be_durable("that this is a backup")?;
    }
    backup::no_backup_any_more(directory)
}

/// Makes the signing key, if there is none and one may be made. That this start makes it is
/// durable before the key is: a crash in between leaves no key that could have signed a log.
fn make_key(config: &Config, facts: &Facts, store: &mut SqliteStore) -> Result<bool, StartError> {
    let Some(new) = NewKey::wanted(config)? else {
        return Ok(false);
    };
    let beginning = Beginning { key_id: new.id() };
    if facts.beginning != Some(beginning) {
        let fact = Fact::Beginning(Some(beginning));
        let noted = store.remember(vec![fact]);
        noted.must_be_durable("that a key is being made")?;
    }
    new.save()?;
    Ok(true)
}

/// Whether the key is the one that a start made which died before it began the log.
fn is_own(facts: &Facts, keys: &LogKeys) -> bool {
    let id = keys.signer.key_id().0;
    !keys.signer.is_remote() && facts.beginning == Some(Beginning { key_id: id })
}

/// `--begin-log` over a log that is there must mean that log.
fn must_be_named(config: &Config, head: &Head) -> Result<(), StoreError> {
    let origin = head.checkpoint.lines().next().unwrap_or_default();
    match config.begin_log.as_deref() {
        Some(stated) if stated != origin => Err(StoreError::Unusable(format!(
            "--begin-log {stated:?}: the data directory has the log {origin:?}; leave the flag out, or give another --data-dir"
        ))),
        _ => Ok(()),
    }
}

/// While nothing may be signed, a start that would have to sign something first is none.
fn must_need_no_signature(
    free: bool,
    state: &anchors::State,
    accounts: &AtStart,
    keys: &LogKeys,
) -> Result<(), StoreError> {
    if free {
        return Ok(());
    }
    let what = if matches!(accounts, AtStart::Import(_)) {
        "accounts.json is to be imported"
    } else if keys.predecessor.is_some() {
        "another key is to take over the log (start with the key that signed before)"
    } else {
        return Ok(());
    };
    let why = state.held_because().unwrap_or_default();
    Err(StoreError::Unusable(format!(
        "{what}, and that cannot be signed now: {why}"
    )))
}

/// An anchor agrees: the database remembers which ones there are, and that nothing is open.
fn settle(store: &mut SqliteStore, anchors: &Anchors, facts: &Facts) -> Result<(), StoreError> {
    let mut changed = Vec::new();
    let places = anchors.to_remember();
    if !places.is_empty() && facts.anchors.as_ref() != Some(&places) {
        changed.push(Fact::Anchors(places));
    }
    if facts.restored.is_some() {
        tracing::info!("an anchor remembers exactly this log: the restored directory goes on");
        changed.push(Fact::Restored(None));
    }
    if changed.is_empty() {
        return Ok(());
    }
    let remembered = store.remember(changed);
    remembered.must_be_durable("where the anchors are")
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

fn warn(warnings: Vec<String>) {
    for warning in warnings {
        tracing::warn!("{warning}");
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
    begun_by: BegunBy,
    counters: Counters,
    runtime: &Handle,
) -> Result<(Head, Counters), StartError> {
    let now = unix_ms();
    let signer = &keys.signer;
    let software = concat!("evidenceosd/", env!("CARGO_PKG_VERSION"));
    let started = LogStarted {
        origin: signer.origin().to_owned(),
        key_id: signer.key_id(),
        software: software.to_owned(),
        begun_by: Some(begun_by),
        started_unix_ms: now,
    };
    let bytes = started.to_bytes();
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
        facts: vec![Fact::Beginning(None)],
        ..Batch::default()
    };
    let committed = store.commit(&batch);
    committed.must_be_durable("the first entry of the log")?;
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

/// Brings a tree to a size by the entries that follow: those whose head was not signed yet, since
/// the KMS was slow when the process ended, or those that no file of the log has.
pub(crate) fn append_unsigned(
    tree: &mut Tree,
    readers: &Readers,
    size: u64,
) -> Result<(), StoreError> {
    while tree.size() < size {
        // No more than that: there may be entries beyond.
        let left = usize::try_from(size - tree.size()).unwrap_or(LEAVES);
        let leaves = readers.leaves(tree.size(), left.min(LEAVES))?;
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
        let committed = store.commit(&batch);
        committed.must_be_durable("the log's first key")?;
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
    /// The policies that the log is to state when the writer begins.
    in_force: Arc<ArcSwap<InForce>>,
    /// Why nothing may be signed yet, if it may not.
    hold: Option<Hold>,
}

/// The log as an anchor is compared with it.
struct OwnLog {
    /// The tree that the log's files have: all of it was shown before.
    published: Tree,
    readers: Arc<Readers>,
    origin: String,
    former: Vec<String>,
    /// The newest signed head.
    head: Head,
    /// All entries, and their root: a KMS may not have signed the last ones.
    tip: (u64, Hash),
}

impl OwnLog {
    /// Whether signing may begin.
    fn is_free(&self, anchors: &Anchors) -> Result<bool, StoreError> {
        let verdict = anchors.compare(&Own {
            origin: &self.origin,
            former: &self.former,
            tip: self.tip,
            root_at: &|size| Ok(self.tree_at(size)?.root()),
        })?;
        Ok(verdict == Verdict::Free)
    }

    /// The tree of a size. From the published one on it takes only what came since: an anchor is
    /// not behind that, but for one that was away.
    fn tree_at(&self, size: u64) -> Result<Tree, StoreError> {
        let mut tree = if size >= self.published.size() {
            self.published.clone()
        } else {
            Tree::new()
        };
        append_unsigned(&mut tree, &self.readers, size)?;
        Ok(tree)
    }

    /// The head that may be shown while nothing is known of anchors: over what was shown before.
    /// A crash may have come before an anchor knew of more, of another key that took over as well.
    /// Signed again by the key of that time it has the same bytes.
    fn shown_head(
        &self,
        config: &Config,
        keys: &LogKeys,
        history: &[LogKey],
        runtime: &Handle,
    ) -> Result<Head, StartError> {
        let size = self.published.size().max(1);
        if size >= self.head.size {
            return Ok(self.head.clone());
        }
        let then = history.iter().rfind(|key| key.since_size <= size);
        let signer = match then.filter(|key| key.id != keys.signer.key_id()) {
            Some(key) => keys::earlier(config, &self.origin, key, runtime)?,
            None => keys.signer.clone(),
        };
        let root = self.tree_at(size)?.root();
        let signed = runtime.block_on(signer.sign_head(size, root));
        Ok(signed.map_err(LogKeyError::Kms)?)
    }

    /// What is to be shown once an anchor knows it: the tree of the newest head, and the tiles that
    /// no file has yet.
    fn unshown(&self) -> Result<(Tree, Vec<Tile>), StoreError> {
        let mut tree = self.published.clone();
        append_unsigned(&mut tree, &self.readers, self.head.size)?;
        let tiles = tree.take_full_tiles();
        Ok((tree, tiles))
    }
}

/// Why a start is held whose anchors agree.
const CANNOT_WRITE: &str = "no anchor can be written: reads are served, nothing is signed or charged until one can be; see the server's log for which, and why";

/// Waits for an anchor.
struct Hold {
    own: OwnLog,
    tip: Tip,
    /// All entries.
    tree: Tree,
    anchors: Arc<Anchors>,
    anchored: Anchored,
    state: Arc<anchors::State>,
    facts: Facts,
}

impl Hold {
    /// Sends calls away until an anchor answers, and shows then what none knew. Breaks if the
    /// daemon is to stop first.
    fn wait(
        self,
        inbox: &Inbox,
        store: &mut SqliteStore,
        publisher: &dyn Publisher,
    ) -> Result<ControlFlow<()>, Fatal> {
        tracing::error!("{}", self.state.held_because().unwrap_or_default());
        let flow = mailbox::hold(inbox, ASK_ANCHORS_EVERY, || {
            if !self.own.is_free(&self.anchors)? {
                return Ok(false);
            }
            if !self.anchors.remember(&self.tip)? {
                self.state.hold(CANNOT_WRITE);
                return Ok(false);
            }
            settle(store, &self.anchors, &self.facts)?;
            Ok(true)
        })?;
        if flow.is_continue() {
            tracing::info!("an anchor answers: signing begins");
            self.anchored.is_free();
            let (tree, tiles) = self.own.unshown()?;
            publisher.grown(self.tree.size(), self.tree.root());
            publisher.release(Released::new(self.own.head, tree), tiles);
        }
        Ok(flow)
    }
}

/// The names that the log had: others than today's, if it was begun anew.
pub(crate) fn former_origins(readers: &Readers, facts: &Facts) -> Result<Vec<String>, StoreError> {
    let first = readers.entries(0, 1)?;
    let started = first
        .first()
        .and_then(|entry| LogStarted::parse(&entry.bytes).ok());
    Ok(started
        .map(|started| started.origin)
        .into_iter()
        .chain(facts.former.iter().cloned())
        .collect())
}

/// The writer's thread.
pub struct DriverThread {
    mailbox: Mailbox,
    thread: Option<JoinHandle<Result<SqliteStore, Fatal>>>,
}

impl DriverThread {
    /// Whether it has ended, which it does by itself only if the store failed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end, and gives the store back. Blocks.
    ///
    /// # Errors
    /// If the store failed.
    pub fn join(mut self) -> Result<SqliteStore, Fatal> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("the writer is waited for once"),
        }
    }
}

impl Drop for DriverThread {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.mailbox.stop(Instant::now());
            // How it ended is said by who is told to stop; this is a start that failed, or a drop.
            let _ = thread.join();
        }
    }
}

impl Writer<'_> {
    fn start(
        self,
        mailbox: &Mailbox,
        inbox: Inbox,
        publisher: Box<dyn Publisher>,
    ) -> Result<DriverThread, StartError> {
        let share = guests_a_principal();
        let pool = Pool::start(self.guests, mailbox, share).map_err(StartError::Thread)?;
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
            mut store,
            resident,
            tree,
            signed_size,
            in_force,
            hold,
            ..
        } = self;
        let clock = Arc::clone(self.clock);
        let thread = thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || {
                if let Some(hold) = hold
                    && hold
                        .wait(&inbox, &mut store, publisher.as_ref())?
                        .is_break()
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
                )
                .under(**in_force.load());
                mailbox::run(driver, &inbox, || clock.now_unix_ms())
            })
            .map_err(StartError::Thread)?;
        Ok(DriverThread {
            mailbox: mailbox.clone(),
            thread: Some(thread),
        })
    }
}

/// The thread that follows the heads that are shown, and writes tiles.
pub struct Following {
    wake: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Following {
    fn start(
        mut integrator: Integrator,
        log: Arc<LogView>,
        readers: Arc<Readers>,
        done: Arc<Done>,
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
                // Commits come in hundreds a second; tiles need not. A stop does not wait for it.
                let until = Instant::now() + INTEGRATE_EVERY;
                let left = || until.saturating_duration_since(Instant::now());
                while woken.recv_timeout(left()).is_ok() {}
                publish();
            }
            publish();
        };
        let thread = thread::Builder::new()
            .name("integrator".to_owned())
            .spawn(follow)
            .map_err(StartError::Thread)?;
        Ok(Self {
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// What wakes it: another head is shown. It ends once all of these are gone.
    fn waker(&self) -> mpsc::Sender<()> {
        match &self.wake {
            Some(wake) => wake.clone(),
            None => unreachable!("it goes with the thread"),
        }
    }

    /// Publishes what is left and ends. Whatever wakes it must be gone before. Blocks.
    pub fn end(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported; nothing is left to publish.
            let _ = thread.join();
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.end();
    }
}
