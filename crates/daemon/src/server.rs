//! Start-up and shutdown: the order in which parts come to life, and end.
//!
//! Lock, database, keys, log, then the writer, and last the port: when it opens, everything that
//! was acknowledged before is served again. Runs found unfinished are begun again after that.

use std::{
    fs::DirBuilder,
    io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use evidenceos_driver::{
    Driver, Fatal, Limits, Publisher, Signer as _,
    mailbox::{self, Mailbox},
};
use evidenceos_kernel::{
    record,
    state::{Changes, Counters, Resident},
};
use evidenceos_proto::{DESCRIPTORS, evidence_os_server::EvidenceOsServer};
use evidenceos_sandbox::{EngineError, Sandbox};
use evidenceos_store::{
    Batch, Done, Entry, Head, Outcome, Store as _, StoreError,
    blobs::sync_directory,
    lock::DirectoryLock,
    log::{Integrator, LogView, Released},
    reader::Readers,
    sqlite::{Found, SqliteStore},
};
use evidenceos_tlog::{Tile, Tree, leaf_hash};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle as Task};
use tonic::transport::server::TcpIncoming;

use crate::{
    config::Config,
    grpc::{Catalog, Edge, Service},
    keys::{KeyError, Keys},
    runner::{Guests, Pool, yield_to_serving},
    vault::Vault,
};

/// The largest message, so that a module of 5 MiB gets our sentence and not the transport's.
const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// How often tiles are written while entries come.
const INTEGRATE_EVERY: Duration = Duration::from_millis(500);

/// Why the daemon does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The guest engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The port.
    #[error("cannot listen on {address}: {source}; give another --listen")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The schema for reflection.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A running daemon.
pub struct Running {
    address: SocketAddr,
    edge: Arc<Edge>,
    stop: watch::Sender<bool>,
    server: Task<Result<(), tonic::transport::Error>>,
    driver: JoinHandle<Result<(), Fatal>>,
    integrator: Following,
    drain: Duration,
    _lock: DirectoryLock,
}

/// Starts a daemon; returns once its port is open.
///
/// # Errors
/// Where anything that it needs is not there, or not ours.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| StartError::Listen {
            address: config.listen,
            source,
        })?;
    let address = listener.local_addr().map_err(|source| StartError::Listen {
        address: config.listen,
        source,
    })?;
    let opened = tokio::task::spawn_blocking(move || open(&config).map(|opened| (opened, config)))
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let (opened, config) = opened?;
    let Opened {
        edge,
        driver,
        integrator,
        lock,
    } = opened;
    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(listener, Arc::clone(&edge), stopped).await?);
    Ok(Running {
        address,
        edge,
        stop,
        server,
        driver,
        integrator,
        drain: config.drain,
        _lock: lock,
    })
}

impl Running {
    /// Where gRPC is served.
    #[must_use]
    pub fn grpc_address(&self) -> SocketAddr {
        self.address
    }

    /// What verifiers need, as a C2SP verifier key.
    #[must_use]
    pub fn log_vkey(&self) -> String {
        self.edge.keys.signer.verifier().to_string()
    }

    /// Whether the writer has ended, which it does by itself only where the store failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.driver.is_finished()
    }

    /// Drains and ends: no new calls, runs under way settle until the drain time is over, the log
    /// is published.
    ///
    /// # Errors
    /// Where the writer had failed.
    pub async fn stop(self) -> Result<(), Fatal> {
        let deadline = Instant::now() + self.drain;
        // Nobody listens any more where the server has ended already.
        let _ = self.stop.send(true);
        self.edge.mailbox.stop(deadline);
        let driver = tokio::task::spawn_blocking(move || self.driver.join()).await;
        let grace = deadline
            .saturating_duration_since(Instant::now())
            .min(Duration::from_secs(2));
        let abort = self.server.abort_handle();
        if tokio::time::timeout(grace, self.server).await.is_err() {
            abort.abort();
        }
        // The last head is published before the lock is given back.
        self.integrator.end().await;
        match driver {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// The time, in Unix milliseconds.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

struct Opened {
    edge: Arc<Edge>,
    driver: JoinHandle<Result<(), Fatal>>,
    integrator: Following,
    lock: DirectoryLock,
}

fn open(config: &Config) -> Result<Opened, StartError> {
    let started = SystemTime::now();
    let directory = config.data_dir.as_path();
    prepare_directory(directory)?;
    let lock = DirectoryLock::take(directory)?;
    let (mut store, found) = SqliteStore::open(directory)?;
    let done = store.done();
    let Found {
        holdouts,
        counters,
        head,
    } = found;
    let keys = Arc::new(Keys::open(
        directory,
        head.as_ref(),
        config.log_origin.as_deref(),
    )?);
    let (head, counters) = match head {
        Some(head) => (head, counters),
        None => start_log(&mut store, &keys, counters)?,
    };
    let readers = Arc::new(Readers::open(directory)?);
    let integrator = Integrator::recover(directory, Arc::clone(&readers), Some(&head))?;
    let tree = integrator.tree().clone();
    let log = Arc::new(LogView::new(&integrator, head));
    let guests = Arc::new(Guests {
        sandbox: Sandbox::new(Default::default())?,
        vault: Vault::new(keys.holdouts.clone(), readers.blobs().clone()),
        readers: Arc::clone(&readers),
    });
    let (mailbox, inbox) = mailbox::mailbox();
    let integrator = Following::start(
        integrator,
        Arc::clone(&log),
        Arc::clone(&readers),
        Arc::clone(&done),
        started,
    )?;
    let catalog = Catalog::new(&holdouts);
    let resident = Resident::new(holdouts, counters, guests.sandbox.engine_id().to_owned());
    let driver = start_driver(
        store,
        resident,
        tree,
        &keys,
        Arc::clone(&guests),
        mailbox.clone(),
        inbox,
        integrator.publisher(Arc::clone(&log)),
    )?;
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
        warnings: vec![
            "development server: loopback only, no credentials are checked, every caller without a bearer token may do everything".to_owned(),
            "no anchor: a data directory restored from an older state will not be noticed".to_owned(),
        ],
    });
    Ok(Opened {
        edge,
        driver,
        integrator,
        lock,
    })
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
    keys: &Keys,
    counters: Counters,
) -> Result<(Head, Counters), StartError> {
    let now = unix_ms();
    let signer = &keys.signer;
    let software = concat!("evidenceosd/", env!("CARGO_PKG_VERSION"));
    let bytes = record::log_started(signer.origin(), signer.key_id(), software, now);
    let leaf = leaf_hash(&bytes);
    let mut tree = Tree::new();
    tree.append(leaf);
    let head = signer.sign(tree.size(), tree.root());
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
    match store.commit(&batch) {
        Outcome::Committed => Ok((head, counters)),
        Outcome::NotCommitted(cause) => Err(StoreError::Unusable(format!(
            "the first entry of the log cannot be written: {cause:?}"
        ))
        .into()),
        Outcome::Unknown(error) => Err(error.into()),
    }
}

#[allow(
    clippy::too_many_arguments,
    reason = "the writer is wired from all of these, once"
)]
fn start_driver(
    store: SqliteStore,
    resident: Resident,
    tree: Tree,
    keys: &Keys,
    guests: Arc<Guests>,
    mailbox: Mailbox,
    inbox: mailbox::Inbox,
    publisher: Box<dyn Publisher>,
) -> Result<JoinHandle<Result<(), Fatal>>, StartError> {
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let pool = Pool::start(&guests, &mailbox, threads).map_err(StartError::Thread)?;
    let signer = Box::new(keys.signer.clone());
    let limits = Limits::default();
    thread::Builder::new()
        .name("writer".to_owned())
        .spawn(move || {
            let driver = Driver::new(
                store,
                resident,
                tree,
                signer,
                Box::new(pool),
                publisher,
                limits,
            );
            mailbox::run(driver, &inbox, unix_ms)
        })
        .map_err(StartError::Thread)
}

/// The thread that follows the commits and writes tiles.
struct Following {
    wake: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Following {
    fn start(
        mut integrator: Integrator,
        log: Arc<LogView>,
        readers: Arc<Readers>,
        done: Arc<Done>,
        started: SystemTime,
    ) -> Result<Self, StartError> {
        let (wake, woken) = mpsc::channel();
        let follow = move || {
            yield_to_serving();
            match readers
                .blobs()
                .sweep(started, |blob| readers.names_blob(blob))
            {
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

    fn publisher(&self, log: Arc<LogView>) -> Box<dyn Publisher> {
        Box::new(Publishing {
            log,
            wake: self.wake.clone(),
        })
    }

    /// Publishes what is left and ends. Every publisher must be gone before.
    async fn end(self) {
        drop(self.wake);
        let thread = self.thread;
        // A panic there has been reported; nothing is left to publish.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

struct Publishing {
    log: Arc<LogView>,
    wake: mpsc::Sender<()>,
}

impl Publisher for Publishing {
    fn release(&self, released: Released, full: Vec<Tile>) {
        self.log.release(released, full);
        let _ = self.wake.send(());
    }
}

async fn serve(
    listener: TcpListener,
    edge: Arc<Edge>,
    mut stopped: watch::Receiver<bool>,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>, StartError> {
    let service = EvidenceOsServer::new(Service::new(edge))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<EvidenceOsServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    // Without this a small reply waits for the peer's delayed acknowledgement: 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(Some(1_024))
        .add_service(service)
        .add_service(health)
        .add_service(reflection);
    Ok(server.serve_with_incoming_shutdown(incoming, async move {
        // An ended sender means that the daemon is gone.
        let _ = stopped.wait_for(|stopped| *stopped).await;
        drop(reporter);
    }))
}
