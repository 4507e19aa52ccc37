//! What an operator watches, as OpenMetrics text.
//!
//! Values are read when they are asked for, from counters and rows that the parts keep anyway;
//! nothing here is on the way of a call but a counter or an observation. Labels come from closed
//! sets, or are the first 8 hex digits of holdouts' ids; of these so many are shown.
//!
//! What is counted here is in this file; `log`, `ports` and `process` read what the process and its
//! listeners keep. Other parts hand in collectors of their own: nothing here knows them.

pub mod classic;
mod log;
mod ports;
mod process;
pub mod write;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};

use evidenceos_access::{Denied, Stats, Tls};
use evidenceos_kernel::{claim::ClaimState, command::Event, id::ClaimId};
use evidenceos_sandbox::End;
use evidenceos_store::{Batch, Done};
use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use tonic::Code;

use self::{
    log::{LogCollector, LogState, StoreCollector},
    ports::{Port, PortCollector, Ports},
    process::ProcessCollector,
};

/// What every name but those of the process begins with.
const PREFIX: &str = "evidenceos";

/// The metrics of a daemon.
pub struct Metrics {
    registry: RwLock<Registry>,
    calls: Family<Identified, Counter>,
    log: Arc<LogState>,
    ports: Arc<Ports>,
    decisions: Family<Decided, Counter>,
    failures: Family<Failed, Counter>,
    decision_seconds: Family<AtGate, Histogram, Bounds>,
    rpcs: Family<Called, Counter>,
    rpc_seconds: Family<OfMethod, Histogram, Bounds>,
    credit_denied: Family<DeniedBy, Counter>,
    claims: Family<InState, Counter>,
    commit_changes: Histogram,
    commit_sync_seconds: Histogram,
    run_seconds: Family<Ended, Histogram, Bounds>,
    run_fuel: Counter,
    prepared: Family<Prepared, Counter>,
    vetoes: Family<Vetoed, Counter>,
    waiting: Mutex<Waiting>,
}

/// What was counted and may not be shown yet: it tells of runs whose settlements no anchor covers.
#[derive(Default)]
struct Waiting {
    /// How runs that were executed went, until they settle.
    ran: HashMap<ClaimId, RunCount>,
    /// What settled, by the entries that must be covered.
    settled: VecDeque<(u64, Counted)>,
    /// How far anchors go; none: nothing waits.
    anchored: Option<u64>,
}

/// Counts that are shown together.
#[derive(Default)]
struct Counted {
    states: Vec<ClaimState>,
    runs: Vec<RunCount>,
}

/// How a run of a guest went, as it is counted.
#[derive(Debug, Clone, Copy)]
pub struct RunCount {
    end: &'static str,
    fuel: u64,
    took: Duration,
    /// Whether a policy kept it from being judged, and only for now.
    vetoed: Option<bool>,
}

impl RunCount {
    /// A run that ended so.
    #[must_use]
    pub fn new(end: &End, fuel: u64, took: Duration) -> Self {
        let end = match end {
            End::Emitted(_) => "emitted",
            End::NoOutput => "no_output",
            End::Trapped(_) => "trapped",
        };
        Self {
            end,
            fuel,
            took,
            vetoed: None,
        }
    }

    /// A policy kept it from being judged; `deferred`: for now.
    pub fn vetoed(&mut self, deferred: bool) {
        self.vetoed = Some(deferred);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Identified {
    /// `mtls`, `bearer`, `hmac`, `anonymous`, or `denied`.
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    /// The gate's call: `preflight` or `postflight`.
    gate: &'static str,
    decision: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AtGate {
    gate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    /// As the rule table names it.
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMethod {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeniedBy {
    /// Whose credit did not suffice: `account` or `holdout`.
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    /// `emitted`, `no_output` or `trapped`.
    end: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Prepared {
    /// `hit`, where the module was compiled before, or `miss`.
    cache: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Vetoed {
    /// The policies' vote: `defer` or `reject`.
    vote: &'static str,
}

/// Bounds of a histogram.
#[derive(Debug, Clone, Copy)]
struct Bounds(&'static [f64]);

impl Bounds {
    /// Time that a call takes, in seconds. Runs may take minutes.
    const RPC: Self = Self(&[
        300e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3, 300e-3, 1.0, 3.0, 10.0, 30.0, 120.0,
    ]);
    /// Time that a decision takes, in seconds.
    const DECISION: Self = Self(&[
        10e-6, 20e-6, 30e-6, 60e-6, 100e-6, 250e-6, 500e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3,
        300e-3, 1.0,
    ]);
    /// Time that a guest runs, in seconds.
    const RUN: Self = Self(&[
        30e-6, 100e-6, 300e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3, 300e-3, 1.0, 3.0, 10.0, 30.0,
        120.0,
    ]);
    /// Time that a disk takes to sync, in seconds.
    const SYNC: Self = Self(&[
        30e-6, 100e-6, 300e-6, 1e-3, 2e-3, 5e-3, 10e-3, 30e-3, 100e-3, 300e-3, 1.0, 3.0,
    ]);
    /// Changes that are committed together.
    const CHANGES: Self = Self(&[
        0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0,
    ]);
}

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Registers a family of counters.
fn counters<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter>
where
    L: Clone + Eq + std::hash::Hash + EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
{
    let family = Family::default();
    registry.register(name, help, Family::clone(&family));
    family
}

/// Registers a family of histograms of times.
fn timings<L>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    bounds: Bounds,
) -> Family<L, Histogram, Bounds>
where
    L: Clone + Eq + std::hash::Hash + EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
{
    let family = Family::new_with_constructor(bounds);
    registry.register_with_unit(name, help, Unit::Seconds, Family::clone(&family));
    family
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that nobody has counted yet.
    #[must_use]
    pub fn new() -> Self {
        let mut whole = Registry::default();
        whole.register_collector(Box::new(ProcessCollector::new()));
        let registry = whole.sub_registry_with_prefix(PREFIX);
        let log = Arc::new(LogState::default());
        let ports = Arc::new(Ports::default());
        registry.register_collector(Box::new(LogCollector(Arc::clone(&log))));
        registry.register_collector(Box::new(PortCollector(Arc::clone(&ports))));
        let commit_changes = Bounds::CHANGES.new_metric();
        registry.register(
            "commit_changes",
            "Changes that became durable by one commit; 0: one of the server's own",
            commit_changes.clone(),
        );
        let commit_sync_seconds = Bounds::SYNC.new_metric();
        registry.register_with_unit(
            "commit_sync",
            "Time that a commit took to sync the write-ahead log",
            Unit::Seconds,
            commit_sync_seconds.clone(),
        );
        let run_fuel = Counter::default();
        registry.register("run_fuel", "Fuel that guests used", run_fuel.clone());
        Self {
            calls: counters(
                registry,
                "identified_calls",
                "Calls by how the caller was identified; denied ones included",
            ),
            decisions: counters(
                registry,
                "decisions",
                "Decisions about tool calls, refusals of malformed requests included",
            ),
            failures: counters(
                registry,
                "preflight_failures",
                "Preflight requests that were not judged, and decisions that could not be recorded",
            ),
            decision_seconds: timings(
                registry,
                "decision",
                "Time from a request's head to its answer, as the server sees it",
                Bounds::DECISION,
            ),
            rpcs: counters(
                registry,
                "rpc_calls",
                "Calls of gRPC that ended, by method and status; denied ones included",
            ),
            rpc_seconds: timings(
                registry,
                "rpc",
                "Time from a call's head to its last word, without calls that last as long as their client likes",
                Bounds::RPC,
            ),
            credit_denied: counters(
                registry,
                "credit_denied_calls",
                "Calls refused for want of credit, of the account or of the holdout",
            ),
            claims: counters(
                registry,
                "claims",
                "Times that a claim came to a state since the daemon started",
            ),
            run_seconds: timings(
                registry,
                "run",
                "Time that a guest ran, by how it ended",
                Bounds::RUN,
            ),
            prepared: counters(
                registry,
                "modules_prepared",
                "Modules that a run needed, by whether they were compiled already",
            ),
            vetoes: counters(
                registry,
                "settlement_vetoes",
                "Claims that a policy kept from being judged",
            ),
            registry: RwLock::new(whole),
            commit_changes,
            commit_sync_seconds,
            run_fuel,
            log,
            ports,
            waiting: Mutex::default(),
        }
    }

    /// Counts a call that got an identity, or none.
    pub fn identified(&self, kind: Result<&'static str, &Denied>) {
        let by = kind.unwrap_or("denied");
        self.calls.get_or_create(&Identified { by }).inc();
    }

    /// Counts a decision before a tool call.
    pub fn preflight(&self, decision: &'static str, reason: &'static str, took: Duration) {
        self.decided("preflight", decision, reason, took);
    }

    /// Counts a decision after a tool call.
    pub fn postflight(&self, decision: &'static str, took: Duration) {
        self.decided("postflight", decision, "", took);
    }

    fn decided(
        &self,
        gate: &'static str,
        decision: &'static str,
        reason: &'static str,
        took: Duration,
    ) {
        let labels = Decided {
            gate,
            decision,
            reason,
        };
        self.decisions.get_or_create(&labels).inc();
        self.decision_seconds
            .get_or_create(&AtGate { gate })
            .observe(took.as_secs_f64());
    }

    /// Counts a preflight request that was not judged, or not recorded.
    pub fn preflight_failed(&self, kind: &'static str) {
        self.failures.get_or_create(&Failed { kind }).inc();
    }

    /// Shows what a part keeps by itself, read each time that metrics are asked for.
    pub fn collect(&self, collector: impl Collector) {
        self.registry
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .sub_registry_with_prefix(PREFIX)
            .register_collector(Box::new(collector));
    }

    /// Counts a call of gRPC that ended, and how long it took where that is the server's doing.
    pub fn called(&self, method: &'static str, code: Code, took: Option<Duration>) {
        let labels = Called {
            method,
            code: name_of(code),
        };
        self.rpcs.get_or_create(&labels).inc();
        if let Some(took) = took {
            self.rpc_seconds
                .get_or_create(&OfMethod { method })
                .observe(took.as_secs_f64());
        }
    }

    /// Looks at the head of an answer that is a refusal: some are counted apart.
    pub fn refused_call(&self, headers: &http::HeaderMap) {
        let own = headers.get("x-evidenceos-code").map(|code| code.as_bytes());
        let limit = match own {
            Some(b"INSUFFICIENT_CREDIT") => "account",
            Some(b"HOLDOUT_CREDIT_EXHAUSTED") => "holdout",
            _ => return,
        };
        self.credit_denied.get_or_create(&DeniedBy { limit }).inc();
    }

    /// Counts what became durable together, and how long the sync of it took.
    pub fn committed(&self, batch: &Batch, took: Duration) {
        self.commit_changes.observe(batch.recorded.len() as f64);
        self.commit_sync_seconds.observe(took.as_secs_f64());
        let changes = &batch.changes;
        let claims = changes.new_claims.iter().chain(&changes.claims);
        let mut counted = Counted {
            states: claims.map(|claim| claim.state).collect(),
            runs: Vec::new(),
        };
        let mut waiting = self.waiting();
        for settled in settled_claims(batch) {
            counted.runs.extend(waiting.ran.remove(&settled));
        }
        let entries = changes.counters.next_index;
        match waiting.anchored {
            Some(anchored) if anchored < entries => {
                waiting.settled.push_back((entries, counted));
            }
            _ => {
                drop(waiting);
                self.count(&counted);
            }
        }
    }

    /// What waits for anchors is counted once they cover so many entries.
    pub fn anchored(&self, entries: u64) {
        let mut waiting = self.waiting();
        if let Some(anchored) = &mut waiting.anchored {
            *anchored = entries.max(*anchored);
        }
        let mut shown = Vec::new();
        while let Some((_, counted)) = waiting
            .settled
            .pop_front_if(|(needed, _)| *needed <= entries)
        {
            shown.push(counted);
        }
        drop(waiting);
        shown.iter().for_each(|counted| self.count(counted));
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, counted: &Counted) {
        for &state in &counted.states {
            let state = state_name(state);
            self.claims.get_or_create(&InState { state }).inc();
        }
        for run in &counted.runs {
            self.run_seconds
                .get_or_create(&Ended { end: run.end })
                .observe(run.took.as_secs_f64());
            self.run_fuel.inc_by(run.fuel);
            if let Some(deferred) = run.vetoed {
                let vote = if deferred { "defer" } else { "reject" };
                self.vetoes.get_or_create(&Vetoed { vote }).inc();
            }
        }
    }

    /// Counts a run of a guest once it settles, in its turn: before that nobody may know how it
    /// ended.
    pub fn ran(&self, claim: ClaimId, run: RunCount) {
        self.waiting().ran.insert(claim, run);
    }

    /// Counts a module that a run needed.
    pub fn needed_module(&self, was_compiled: bool) {
        let cache = if was_compiled { "hit" } else { "miss" };
        self.prepared.get_or_create(&Prepared { cache }).inc();
    }

    /// Counts what tells of settlements only once anchors cover it: at first they cover so many entries.
    pub fn wait_for_anchors(&self, entries: u64) {
        self.waiting().anchored = Some(entries);
    }

    /// Notes the newest head that is shown.
    pub fn head(&self, size: u64, now_unix_ms: u64) {
        self.log.size.store(size, Ordering::Relaxed);
        self.log
            .released_unix_ms
            .store(now_unix_ms, Ordering::Relaxed);
        self.log.pending_since_unix_ms.store(0, Ordering::Relaxed);
    }

    /// Notes that a head waits for a signature from elsewhere. Only the first of those that fail
    /// one after the other counts.
    pub fn head_pending(&self, now_unix_ms: u64) {
        let pending = &self.log.pending_since_unix_ms;
        // Whoever was first stays.
        let _ = pending.compare_exchange(0, now_unix_ms, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Shows what the store has done.
    pub fn keeps(&self, done: Arc<Done>) {
        let log = Arc::clone(&self.log);
        self.collect(StoreCollector { done, log });
    }

    /// Adds a port whose connections the metrics count from now on.
    pub fn listens(&self, name: &'static str, stats: Arc<Stats>, tls: Option<Arc<Tls>>) {
        let mut ports = self.ports.0.lock().unwrap_or_else(PoisonError::into_inner);
        ports.push(Port { name, stats, tls });
    }

    /// Everything, as OpenMetrics text.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.read();
        encode(&mut text, &registry.unwrap_or_else(PoisonError::into_inner))
            .unwrap_or_else(|error| unreachable!("text is written into memory: {error}"));
        text
    }
}

/// The claims whose runs a batch settles.
fn settled_claims(batch: &Batch) -> impl Iterator<Item = ClaimId> {
    let events = batch.recorded.iter().flat_map(|recorded| &recorded.events);
    events.filter_map(|event| match event {
        Event::RunSettled { claim, .. } => Some(*claim),
        _ => None,
    })
}

/// A state in small letters.
fn state_name(state: ClaimState) -> &'static str {
    match state {
        ClaimState::Uncommitted => "uncommitted",
        ClaimState::Committed => "committed",
        ClaimState::Sealed => "sealed",
        ClaimState::Executing => "executing",
        ClaimState::Settled => "settled",
        ClaimState::Certified => "certified",
        ClaimState::Revoked => "revoked",
    }
}

/// A status by the name that the specification of gRPC gives it.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
