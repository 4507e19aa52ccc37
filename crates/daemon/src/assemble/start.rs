//! Start, reload and stop of the whole daemon.
//!
//! Ports are bound first, so that a port in use is reported before anything is changed. HTTP and
//! metrics answer as soon as the process lives. gRPC listens once everything that was acknowledged
//! before can be served again, so that a probe of its port tests exactly that. A stop goes the
//! other way: the daemon reports itself not ready, serves on for a pause, closes gRPC, waits for
//! runs under way, publishes the log, and closes HTTP last.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use evidenceos_access::{Callers, Uses};
use evidenceos_driver::{Fatal, clock::unix_ms};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_gate::{
    policies,
    preflight::{self, Front},
};
use evidenceos_notary::rotation;
use evidenceos_store::StoreError;
use evidenceos_telemetry::Registry;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinHandle as Task,
};

use super::{
    StartError,
    health::Health,
    listeners::{self, Listeners, end_within},
    open::{self, Opened, Parts, Threads},
};
use crate::{
    accounts,
    config::Config,
    control::{Control, ReloadAsked},
    grpc::{CallersLayer, CountLayer},
    in_force::{self, Stating},
    metrics::Metrics,
    services::{Names, Services},
};

/// The file in the data directory that records used signatures.
const USED_SIGNATURES: &str = "used-signatures";

/// A running daemon. A drop without a stop leaves what a crash leaves, but its threads have ended
/// and the data directory's lock is released when the drop returns.
pub struct Running {
    config: Config,
    listeners: Listeners,
    services: Arc<Services>,
    parts: Parts,
    callers: Arc<Callers>,
    stating: Arc<Stating>,
    health: Arc<Health>,
    stop: watch::Sender<bool>,
    servers: listeners::Servers,
    stop_http: watch::Sender<bool>,
    http_servers: listeners::Servers,
    control: Option<Task<()>>,
    reloads: mpsc::Receiver<ReloadAsked>,
    threads: Threads,
}

/// Starts a daemon; returns once its ports serve.
///
/// # Errors
/// [`StartError`] names the part that failed and how to mend it.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let registry = Arc::new(Registry::new());
    let metrics = Arc::new(Metrics::new(Arc::clone(&registry)));
    let listeners = Listeners::bind(&config.listeners, &metrics)?;
    let (stop, stopped) = watch::channel(false);
    let (stop_http, http_stopped) = watch::channel(false);
    let health = Arc::new(Health::default());
    let front = Front::default();
    let http_servers = listeners.serve_http(&health, &front, &registry, &http_stopped)?;
    // Files and a KMS are waited for on a separate thread, so that health is answered meanwhile.
    let opened = {
        let (config, metrics, runtime) = (config.clone(), Arc::clone(&metrics), Handle::current());
        blocking(move || open::open(&config, &metrics, &runtime)).await?
    };
    let Opened {
        services,
        parts,
        authenticator,
        stating,
        threads,
    } = opened;
    let callers = Arc::new(Callers::new(
        authenticator,
        Arc::clone(&parts.owners),
        used_signatures(&config.data_dir)?,
        &registry,
    ));
    let api = agents_gate(&config, &parts, &callers, &registry)?;
    // This comes before calls are served, so that the task misses no replacement of the files.
    listeners.tell_of_exchanges(Arc::clone(&callers), stopped.clone());
    let layers = (
        CountLayer::new(&registry),
        CallersLayer::new(Arc::clone(&callers)),
    );
    let servers = listeners
        .serve_grpc(&config.listeners, &services, layers, &stopped)
        .await?;
    front.open(api);
    let (reload, reloads) = mpsc::channel(1);
    let control = control(&config, &parts, &health, reload, stopped);
    // This comes last: a probe that finds the daemon ready finds every port open.
    health.serves();
    Ok(Running {
        config,
        listeners,
        services,
        parts,
        callers,
        stating,
        health,
        stop,
        servers,
        stop_http,
        http_servers,
        control,
        reloads,
        threads,
    })
}

/// The gate for agents over an opened directory.
fn agents_gate(
    config: &Config,
    parts: &Parts,
    callers: &Arc<Callers>,
    registry: &Arc<Registry>,
) -> Result<preflight::Api, StartError> {
    let parts = preflight::Parts {
        callers: Arc::clone(callers),
        recorder: Arc::clone(&parts.recorder),
        policies: Arc::clone(&parts.policies),
        clock: Arc::clone(&parts.clock),
        log: Arc::clone(&parts.log),
        released: parts.released.clone(),
        readers: Arc::clone(&parts.readers),
        done: Arc::clone(&parts.done),
        accounts_shown: parts.accounts_shown.clone(),
        registry: Arc::clone(registry),
    };
    let needs_certificate = config.listeners.http_needs_certificate();
    Ok(preflight::Api::new(
        &config.preflight,
        needs_certificate,
        parts,
    )?)
}

/// The control socket, if the file system takes one: serving does not depend on it.
fn control(
    config: &Config,
    parts: &Parts,
    health: &Arc<Health>,
    reload: mpsc::Sender<ReloadAsked>,
    stopped: watch::Receiver<bool>,
) -> Option<Task<()>> {
    match Control::bind(&config.data_dir) {
        Ok(control) => Some(control.serve(
            config.data_dir.clone(),
            parts.mailbox.clone(),
            parts.readers.blobs().clone(),
            health,
            reload,
            stopped,
        )),
        Err(error) => {
            tracing::warn!(%error, "no control socket in the data directory; backups need the daemon stopped, reloads need SIGHUP, and healthcheck fails");
            None
        }
    }
}

impl Running {
    /// The address of gRPC.
    #[must_use]
    pub fn grpc_address(&self) -> SocketAddr {
        self.listeners.grpc_address()
    }

    /// The address of HTTP, if it is served.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.listeners.http_address()
    }

    /// The address of metrics, if they are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.listeners.metrics_address()
    }

    /// The log's key as a C2SP verifier key, for verifiers.
    #[must_use]
    pub fn log_vkey(&self) -> String {
        self.services.server.log_vkey()
    }

    /// Whether the server is read-only until an anchor answers or an operator acts.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.services.server.is_held()
    }

    /// Whether the writer has ended. It ends by itself only if the store failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.threads.driver.has_ended()
    }

    /// Frees the memory of unused modules: `evidenceos_sandbox::Sandbox::forget_unused`.
    pub fn forget_unused(&self) {
        self.parts.guests.sandbox.forget_unused();
    }

    /// Reads certificates, revocation lists, the role policy, secret files, the active key and
    /// policy modules again. If a part cannot be read or is invalid, its old state stays in force
    /// and the problem is reported.
    ///
    /// # Errors
    /// One line for each part that was not taken over.
    pub async fn reload(&self) -> Result<(), Vec<String>> {
        let reload_tls = self.listeners.reloading_tls();
        let (config, parts) = (self.config.clone(), self.parts.clone());
        let (callers, stating) = (Arc::clone(&self.callers), Arc::clone(&self.stating));
        let names = Arc::clone(&self.services.names);
        let taken_over = tokio::task::spawn_blocking(move || {
            // Each part is tried, also after one that failed, so that the operator sees all
            // problems at once.
            let mut problems = Vec::new();
            problems.extend(reload_tls().err().map(|error| error.to_string()));
            let keys = rotation::reload(&config.log_keys(), &parts.keys, &parts.mailbox);
            problems.extend(keys.err().map(|error| error.to_string()));
            problems.extend(reload_rules(&config, &parts, &callers, &names, &stating));
            problems
        });
        let problems = match taken_over.await {
            Ok(problems) => problems,
            Err(panic) => vec![panic.to_string()],
        };
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// Waits for a client of the control socket that asks for a [`Running::reload`]. Never returns
    /// if there is no control socket.
    pub async fn reload_asked(&mut self) -> ReloadAsked {
        match self.reloads.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }

    /// Drains and ends. The daemon reports itself not ready and takes no new calls after the drain
    /// delay. Runs under way settle until the drain time is over. Then it publishes the log and
    /// closes HTTP last.
    ///
    /// # Errors
    /// If the writer had failed.
    pub async fn stop(self) -> Result<(), Fatal> {
        // Probes learn of the stop first: load balancers go elsewhere while everything is still
        // served.
        self.health.stops();
        // A writer that has failed takes no more calls.
        if !self.has_failed() {
            tokio::time::sleep(self.config.drain_delay).await;
        }
        let deadline = Instant::now() + self.config.drain;
        // If the servers have ended already, there is no receiver.
        let _ = self.stop.send(true);
        let Threads {
            mut decisions,
            driver,
            mut releasing,
            mut integrator,
            mut accounts,
            lock,
        } = self.threads;
        // Decisions that still wait for the log must reach it while the writer takes calls.
        blocking(move || decisions.end()).await;
        self.parts.mailbox.stop(deadline);
        let driver = blocking(move || driver.join()).await;
        // The last decisions are anchored and shown while callers still wait for them.
        blocking(move || releasing.end()).await;
        let grace = deadline
            .saturating_duration_since(Instant::now())
            .min(Duration::from_secs(2));
        self.servers.end(grace).await;
        if let Some(control) = self.control {
            end_within(grace, control).await;
        }
        failpoint::pass(Point::ShutdownDrainedBeforeFlush);
        // The last head is published before the lock is given back.
        blocking(move || integrator.end()).await;
        failpoint::pass(Point::ShutdownFlushed);
        // A failure of the writer is raised only here, once the other threads have ended.
        let mut store = driver?;
        let (parts, directory) = (self.parts, self.config.data_dir);
        let flushed = blocking(move || {
            let before = accounts.end();
            let newest = parts.done.accounts_seq.load(Ordering::Acquire);
            if before.is_none_or(|file| file.seq < newest) {
                accounts::write_now(&mut *store, &directory, &*parts.readers, before)?;
            }
            Ok::<_, StoreError>(())
        })
        .await;
        if let Err(error) = flushed {
            // The database has everything; the next start writes the file.
            tracing::error!(%error, "cannot write accounts.json; the next start writes it from the database");
        }
        let _ = self.stop_http.send(true);
        self.http_servers.end(grace).await;
        failpoint::pass(Point::ShutdownBeforeUnlock);
        // The lock goes last: the next start must find nothing of this one at work.
        drop(lock);
        Ok(())
    }
}

/// The signatures that were used before this start. The directory's lock is held.
fn used_signatures(data_dir: &Path) -> Result<Uses, StartError> {
    let path = data_dir.join(USED_SIGNATURES);
    Uses::kept(path.clone(), unix_ms() / 1_000)
        .map_err(|source| StartError::UsedSignatures { path, source })
}

/// Runs blocking work beside the threads that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Takes over roles, secrets and policy modules from their files once the log states them. A part
/// that cannot be read stays as it was. Returns the problems. Blocks.
fn reload_rules(
    config: &Config,
    parts: &Parts,
    callers: &Callers,
    names: &Names,
    stating: &Stating,
) -> Vec<String> {
    let mut problems = Vec::new();
    let read_again = config.identity.load();
    let authenticator = read_again.map_or_else(
        |wrong| {
            problems.extend(wrong);
            callers.authenticator()
        },
        Arc::new,
    );
    let policies = policies::read_again(
        &config.policies_path(),
        &parts.guests.sandbox,
        config.allow_unsigned_policies,
        &parts.policies,
    )
    .unwrap_or_else(|wrong| {
        problems.extend(wrong.0);
        parts.policies.load_full()
    });
    // The log states the new rules before any call is judged by them. If it cannot, the old rules
    // stay in force.
    match stating.state(in_force::of(&policies, &authenticator, &parts.owners)) {
        Ok(()) => {
            names.follow(&authenticator);
            callers.follow(authenticator);
            parts.policies.store(policies);
        }
        Err(not_stated) => problems.push(not_stated.to_string()),
    }
    problems
}
