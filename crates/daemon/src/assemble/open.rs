//! Opening a data directory: what must be there, and the order in which its parts start.
//!
//! The order is lock, database, keys, log, then the writer and its followers. The writer restarts
//! runs that it finds unfinished. If the opened directory ends, by a stop, an error or a drop, its
//! threads end first and the lock is released last.

use std::sync::{Arc, mpsc::Sender};

use arc_swap::ArcSwap;
use evidenceos_access::{Authenticator, Owners};
use evidenceos_custody::{Guests, KeyShelf};
use evidenceos_driver::{
    clock::{Clock, unix_ms},
    mailbox::{self, Inbox, Mailbox},
};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_gate::{
    policies::{self, Policies},
    recorder::{self, Recorder, RecorderCollector},
};
use evidenceos_kernel::{account::Account, in_force::InForce};
use evidenceos_notary::{
    anchors,
    keys::Keys,
    release::{Anchored, Releasing, Shows},
};
use evidenceos_sandbox::{Sandbox, Walls};
use evidenceos_store::{
    AccountsFile, Done, OpenedStore, Rows,
    lock::DirectoryLock,
    log::{Integrator, LogView},
};
use tokio::{
    runtime::Handle,
    sync::{broadcast, watch},
};

use super::{
    StartError,
    data::{Data, prepare_directory},
    integrating::Integrating,
    keyring::Keyring,
    log::Log,
    owners,
    writer::{DriverThread, Writer},
};
use crate::{
    accounts,
    config::Config,
    guarded,
    in_force::{self, Stating},
    metrics::Metrics,
    overseeing::Overseeing,
    protection,
    services::{
        Accounts, Bounds, Catalog, Claims, Holdouts, Log as ShownLog, Names, Probing, Rekeying,
        Server, Services, ServicesCollector, Setup, ShownRows, Writer as WayToWriter,
        uncommit_forever,
    },
};

/// Changes of accounts that a slow watcher may lag behind before it reads all accounts again.
const WATCHED_CHANGES: usize = 256;

/// An opened data directory, ready to serve.
pub struct Opened {
    /// The calls that it answers.
    pub services: Arc<Services>,
    /// The parts that the gate, a reload and a stop also need.
    pub parts: Parts,
    /// Authenticates callers by the rules that the log states.
    pub authenticator: Authenticator,
    /// Has the log state changed rules.
    pub stating: Arc<Stating>,
    /// The threads that work on the directory.
    pub threads: Threads,
}

/// The daemon's parts that are needed outside of the services.
#[derive(Clone)]
pub struct Parts {
    pub mailbox: Mailbox,
    pub keys: Arc<Keys>,
    pub owners: Arc<Owners>,
    pub guests: Arc<Guests>,
    pub policies: Arc<ArcSwap<Policies>>,
    pub recorder: Arc<Recorder>,
    pub clock: Arc<Clock>,
    pub log: Arc<LogView>,
    pub released: watch::Sender<u64>,
    pub readers: Arc<dyn Rows>,
    pub done: Arc<Done>,
    pub accounts_shown: watch::Receiver<u64>,
}

/// The threads that work on an opened directory, in the order in which they end.
pub struct Threads {
    /// Puts decisions into the log.
    pub decisions: recorder::Following,
    /// Decides, commits and publishes.
    pub driver: DriverThread,
    /// Has anchors remember heads, and shows them.
    pub releasing: Releasing,
    /// Writes the log's files.
    pub integrator: Integrating,
    /// Writes `accounts.json` after each change.
    pub accounts: accounts::Following,
    /// The lock of the directory, which no other process can take.
    pub lock: DirectoryLock,
}

/// Rules from files beside the data, read before anything is opened.
struct Rules {
    sandbox: Sandbox,
    policies: Arc<ArcSwap<Policies>>,
    authenticator: Authenticator,
}

/// Parts of which many others have a handle.
struct Shared {
    keys: Arc<Keys>,
    owners: Arc<Owners>,
    guests: Arc<Guests>,
    clock: Arc<Clock>,
    done: Arc<Done>,
    metrics: Arc<Metrics>,
}

/// An opened directory before any thread works on it.
struct Ready {
    shared: Shared,
    log: Log,
    shelf: KeyShelf,
    catalog: Arc<Catalog>,
    accounts_json: AccountsFile,
    walls: Walls,
}

/// The threads, and the handles by which the services reach them.
struct Working {
    threads: Threads,
    ways: Ways,
    recorder: Arc<Recorder>,
    stating: Stating,
    state: Arc<anchors::State>,
}

/// The handles by which the threads and the services reach one another.
struct Ways {
    mailbox: Mailbox,
    readers: Arc<dyn Rows>,
    view: Arc<LogView>,
    anchored: Anchored,
    released: watch::Sender<u64>,
    changed_accounts: broadcast::Sender<Arc<[Account]>>,
}

/// Opens a data directory. Blocks; calls to a KMS run on `runtime`.
pub fn open(
    config: &Config,
    metrics: &Arc<Metrics>,
    runtime: &Handle,
) -> Result<Opened, StartError> {
    let directory = config.data_dir.as_path();
    prepare_directory(directory)?;
    // The daemon believes nothing in the directory, the lock included, before it knows that no
    // other user can write there.
    for warning in guarded::must_be_closed(config)? {
        tracing::warn!("{warning}");
    }
    let lock = DirectoryLock::take(directory)?;
    failpoint::pass(Point::StartupLocked);
    protection::must_hold(config)?;
    let opened = open_locked(config, metrics, runtime, lock)
        .inspect_err(|_| failpoint::pass(Point::StartupFailedAfterLock))?;
    // This comes before a port serves, so that no call is answered that the directory does not
    // remember.
    protection::remember(config)?;
    Ok(opened)
}

fn open_locked(
    config: &Config,
    metrics: &Arc<Metrics>,
    runtime: &Handle,
    lock: DirectoryLock,
) -> Result<Opened, StartError> {
    let rules = Rules::read(config)?;
    let policies = Arc::clone(&rules.policies);
    let Ready {
        shared,
        log,
        shelf,
        catalog,
        accounts_json,
        walls,
    } = Ready::prepare(config, rules.sandbox, &policies, metrics, runtime)?;
    let wanted = in_force::of(&policies.load(), &rules.authenticator, &shared.owners);
    let wanted = Arc::new(ArcSwap::from_pointee(wanted));
    let working = Working::start(config, log, &shared, accounts_json, wanted, runtime, lock)?;
    let names = Arc::new(Names::new(Arc::clone(&shared.owners), &rules.authenticator));
    let services = services(config, &working, &shared, catalog, shelf, walls, names)?;
    metrics
        .registry()
        .collect(ServicesCollector::new(&services));
    if let Some(keep) = config.claims_keep {
        let clock = Arc::clone(&shared.clock);
        runtime.spawn(uncommit_forever(
            Arc::downgrade(&services.claims),
            clock,
            keep,
        ));
    }
    Ok(Opened {
        services,
        parts: Parts {
            mailbox: working.ways.mailbox,
            keys: shared.keys,
            owners: shared.owners,
            guests: shared.guests,
            policies,
            recorder: working.recorder,
            clock: shared.clock,
            log: working.ways.view,
            released: working.ways.released,
            readers: working.ways.readers,
            done: shared.done,
            accounts_shown: working.threads.accounts.shown(),
        },
        authenticator: rules.authenticator,
        stating: Arc::new(working.stating),
        threads: working.threads,
    })
}

impl Rules {
    fn read(config: &Config) -> Result<Self, StartError> {
        let sandbox = config.sandbox()?;
        let policies = policies::at_start(
            &config.policies_path(),
            &sandbox,
            config.allow_unsigned_policies,
        )?;
        let authenticator = config.identity.load().map_err(StartError::Identity)?;
        Ok(Self {
            sandbox,
            policies,
            authenticator,
        })
    }
}

impl Ready {
    /// Opens the database, the keys and the log, in this order.
    fn prepare(
        config: &Config,
        sandbox: Sandbox,
        policies: &Arc<ArcSwap<Policies>>,
        metrics: &Arc<Metrics>,
        runtime: &Handle,
    ) -> Result<Self, StartError> {
        let directory = config.data_dir.as_path();
        let mut data = Data::open(config, metrics)?;
        let keyring = Keyring::find(config, &mut data, runtime)?;
        let (done, found) = (data.done, data.found);
        let clock = Arc::new(Clock::start(found.counters.now_unix_ms));
        let catalog = Arc::new(Catalog::new(&found.holdouts));
        let opened = OpenedStore {
            store: data.store,
            rows: data.readers,
            found,
        };
        let (at_start, engine) = (data.accounts_json, sandbox.engine_id());
        let mut log = Log::open(
            config, opened, &at_start, &keyring, engine, metrics, runtime,
        )?;
        let (log_keys, owners, shelf, holdout_keys) = keyring.apart();
        // A new key is linked before the start signs anything else with it.
        log.follow_key(&log_keys, runtime)?;
        owners::must_be_these(&owners, &*log.readers)?;
        let keys = Arc::new(Keys::new(log_keys, log.history.clone()));
        let signer = keys.signer();
        let accounts_json = log.bring_accounts(directory, at_start, &owners, (&signer, runtime))?;
        // An anchor knows what the start has signed before anything works on the log.
        log.publish(&signer, &done)?;
        // Only the registered holdouts tell which key decrypts them, so the vault is opened after
        // the database.
        let blobs = log.readers.blobs();
        let holdouts = log.alone.resident().holdouts();
        let (vault, shelf) = Keyring::open_vault(shelf, holdout_keys, holdouts, blobs)?;
        let walls = sandbox.walls();
        let guests = Guests {
            sandbox,
            vault,
            readers: Arc::clone(&log.readers),
            overseer: overseer(policies, metrics),
        };
        let shared = Shared {
            keys,
            owners: Arc::new(owners),
            guests: Arc::new(guests),
            clock,
            done,
            metrics: Arc::clone(metrics),
        };
        Ok(Self {
            shared,
            log,
            shelf,
            catalog,
            accounts_json,
            walls,
        })
    }
}

/// Checks a run before its evidence counts: asks the policy modules and counts their votes.
fn overseer(policies: &Arc<ArcSwap<Policies>>, metrics: &Arc<Metrics>) -> Arc<Overseeing> {
    Arc::new(Overseeing {
        policies: Arc::clone(policies),
        metrics: Arc::clone(metrics),
    })
}

impl Working {
    /// Starts the threads. Those that follow the writer start first, since they must hear of
    /// everything that the writer does.
    fn start(
        config: &Config,
        log: Log,
        shared: &Shared,
        accounts_json: AccountsFile,
        wanted: Arc<ArcSwap<InForce>>,
        runtime: &Handle,
        lock: DirectoryLock,
    ) -> Result<Self, StartError> {
        let (ways, inbox) = Ways::of(&log, shared);
        runtime.spawn(ways.anchored.clone().look_after());
        let hold = log.hold(&ways.anchored, &shared.keys.signer());
        let (integrator, accounts) =
            ways.follow(config, log.integrator, accounts_json, &shared.done)?;
        let (releasing, publishing) = Releasing::start(
            log.anchors,
            Arc::clone(&log.state),
            ways.mailbox.clone(),
            Arc::clone(&shared.keys),
            accounts.waker(),
            ways.shows(integrator.waker(), &shared.metrics, log.shown.size),
        )
        .map_err(StartError::Thread)?;
        let mut alone = log.alone;
        let epoch = alone.store_mut().epoch();
        let driver = Writer {
            alone,
            signed_size: log.head.size,
            keys: &shared.keys,
            guests: &shared.guests,
            runtime,
            metrics: &shared.metrics,
            clock: &shared.clock,
            in_force: Arc::clone(&wanted),
            hold,
        }
        .start(&ways.mailbox, inbox, Box::new(publishing))?;
        let (recorder, decisions) = recorder(config, epoch, &ways, &shared.metrics)?;
        let threads = Threads {
            decisions,
            driver,
            releasing,
            integrator,
            accounts,
            lock,
        };
        Ok(Self {
            threads,
            stating: Stating::new(wanted, ways.mailbox.clone()),
            ways,
            recorder,
            state: log.state,
        })
    }
}

impl Ways {
    /// The handles into an opened log, and the receiving end of the writer's mailbox.
    fn of(log: &Log, shared: &Shared) -> (Self, Inbox) {
        let (mailbox, inbox) = mailbox::mailbox();
        let ways = Self {
            mailbox,
            readers: Arc::clone(&log.readers),
            view: Arc::new(LogView::new(&log.integrator, log.shown.clone())),
            anchored: log.anchored(&shared.done, &shared.metrics),
            released: watch::channel(log.shown.size).0,
            changed_accounts: broadcast::channel(WATCHED_CHANGES).0,
        };
        (ways, inbox)
    }

    /// Starts the threads that write files after each commit: the log's, and `accounts.json`.
    fn follow(
        &self,
        config: &Config,
        integrator: Integrator,
        accounts_json: AccountsFile,
        done: &Arc<Done>,
    ) -> Result<(Integrating, accounts::Following), StartError> {
        let readers = || Arc::clone(&self.readers);
        let view = Arc::clone(&self.view);
        let integrating = Integrating::start(integrator, view, readers(), Arc::clone(done))?;
        let accounts = accounts::Following::start(
            &config.data_dir,
            readers(),
            Arc::clone(done),
            self.mailbox.clone(),
            accounts_json,
        )
        .map_err(StartError::Thread)?;
        Ok((integrating, accounts))
    }

    /// The parts that are told once an anchor covers a head: readers, the log's files, metrics.
    fn shows(&self, wake: Sender<()>, metrics: &Arc<Metrics>, size: u64) -> Shows {
        let gauge = Arc::clone(metrics.shown());
        gauge.shows(size, unix_ms());
        let counts = Arc::clone(metrics);
        Shows {
            log: Arc::clone(&self.view),
            wake,
            changed_accounts: self.changed_accounts.clone(),
            gauge,
            covered: Box::new(move |entries| counts.anchored(entries)),
            released: self.released.clone(),
            anchored: self.anchored.clone(),
        }
    }
}

/// The recorder of decisions, and the thread that puts them into the log.
fn recorder(
    config: &Config,
    epoch: u64,
    ways: &Ways,
    metrics: &Metrics,
) -> Result<(Arc<Recorder>, recorder::Following), StartError> {
    let keep = config.preflight.keep;
    let (mailbox, readers) = (ways.mailbox.clone(), Arc::clone(&ways.readers));
    let started = recorder::Following::start(epoch, keep, mailbox, readers);
    let (recorder, following) = started.map_err(StartError::Thread)?;
    let recorder = Arc::new(recorder);
    let collector = RecorderCollector(Arc::clone(&recorder));
    metrics.registry().collect(collector);
    Ok((recorder, following))
}

/// The services over the running threads.
fn services(
    config: &Config,
    working: &Working,
    shared: &Shared,
    catalog: Arc<Catalog>,
    shelf: KeyShelf,
    walls: Walls,
    names: Arc<Names>,
) -> Result<Arc<Services>, StartError> {
    let (guests, clock) = (|| Arc::clone(&shared.guests), || Arc::clone(&shared.clock));
    let ways = &working.ways;
    let (mailbox, anchored) = (ways.mailbox.clone(), ways.anchored.clone());
    let writer = Arc::new(WayToWriter::new(mailbox, anchored.clone()));
    let rows = ShownRows {
        readers: Arc::clone(&ways.readers),
        anchored,
    };
    let log = Arc::new(ShownLog::new(
        Arc::clone(&shared.keys),
        Arc::clone(&ways.view),
        rows.clone(),
        ways.released.clone(),
    ));
    Ok(Arc::new(Services {
        claims: Arc::new(Claims::new(
            Arc::clone(&writer),
            rows.clone(),
            Arc::clone(&catalog),
            Arc::clone(&log),
            guests(),
            Bounds {
                accounting: config.accounting.clone(),
                probing: probing(config, working, clock())?,
            },
            Arc::clone(&names),
        )),
        holdouts: Arc::new(Holdouts::new(
            Arc::clone(&writer),
            rows.clone(),
            catalog,
            Arc::clone(&shared.owners),
            guests(),
            Rekeying::new(shelf),
        )),
        accounts: Arc::new(accounts_service(
            config, working, shared, &writer, rows, &names,
        )),
        log,
        server: Arc::new(Server::new(
            Setup::new(config, walls),
            writer,
            clock(),
            Arc::clone(&shared.keys),
            guests(),
            Arc::clone(&shared.done),
            Arc::clone(&working.state),
        )),
        names,
    }))
}

/// The detector of callers that create and execute many claims, if one is configured.
fn probing(
    config: &Config,
    working: &Working,
    clock: Arc<Clock>,
) -> Result<Option<Probing>, StartError> {
    let gate = &config.preflight;
    let probing = gate.probe_claims.map(|rules| {
        let recorder = Arc::clone(&working.recorder);
        let (freezes, retry_after) = (gate.freezes_claimants, gate.probe_retry_after);
        Probing::new(rules, freezes, retry_after, recorder, clock)
    });
    Ok(probing.transpose()?)
}

fn accounts_service(
    config: &Config,
    working: &Working,
    shared: &Shared,
    writer: &Arc<WayToWriter>,
    rows: ShownRows,
    names: &Arc<Names>,
) -> Accounts {
    Accounts {
        writer: Arc::clone(writer),
        rows,
        owners: Arc::clone(&shared.owners),
        names: Arc::clone(names),
        clock: Arc::clone(&shared.clock),
        accounting: config.accounting.clone(),
        done: Arc::clone(&shared.done),
        in_file: working.threads.accounts.shown(),
        changed: working.ways.changed_accounts.clone(),
    }
}
