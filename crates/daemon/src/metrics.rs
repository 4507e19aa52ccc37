//! The daemon's metrics, as OpenMetrics text.
//!
//! Values are read when they are asked for, from counters and rows that the parts keep anyway; a
//! call itself costs only a counter or an observation. Labels come from closed sets, or are the
//! first 8 hex digits of holdouts' ids; the number of holdouts shown is limited.
//!
//! Commits and runs are counted here; `store` and `ports` read what the store and the listeners
//! keep. Other parts register their own counts: nothing here knows them.

mod ports;
mod store;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use evidenceos_access::{Stats, Tls};
use evidenceos_kernel::{claim::ClaimState, command::Event, id::ClaimId};
use evidenceos_notary::{ShownHead, ShownHeadCollector};
use evidenceos_sandbox::End;
use evidenceos_store::{Batch, Done};
use evidenceos_telemetry::{Bounds, Registry};
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};

use self::{
    ports::{Port, PortCollector, Ports},
    store::StoreCollector,
};

/// Bounds of the time that a guest runs, in seconds.
const RUN: Bounds = Bounds(&[
    30e-6, 100e-6, 300e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3, 300e-3, 1.0, 3.0, 10.0, 30.0, 120.0,
]);
/// Bounds of the time that the disk takes to sync, in seconds.
const SYNC: Bounds = Bounds(&[
    30e-6, 100e-6, 300e-6, 1e-3, 2e-3, 5e-3, 10e-3, 30e-3, 100e-3, 300e-3, 1.0, 3.0,
]);
/// Bounds of the number of changes in one commit.
const CHANGES: Bounds = Bounds(&[
    0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0,
]);

/// The metrics of a daemon.
pub struct Metrics {
    registry: Arc<Registry>,
    shown: Arc<ShownHead>,
    ports: Arc<Ports>,
    claims: Family<InState, Counter>,
    commit_changes: Histogram,
    commit_sync_seconds: Histogram,
    run_seconds: Family<Ended, Histogram, Bounds>,
    run_fuel: Counter,
    prepared: Family<Prepared, Counter>,
    vetoes: Family<Vetoed, Counter>,
    waiting: Mutex<Waiting>,
}

/// Counts that may not be shown yet: they tell of runs whose settlements no anchor covers.
#[derive(Default)]
struct Waiting {
    /// Counts of executed runs, until they settle.
    ran: HashMap<ClaimId, RunCount>,
    /// Counts of settlements, each with the number of entries that anchors must cover first.
    settled: VecDeque<(u64, Counted)>,
    /// The number of entries that anchors cover; `None`: nothing waits.
    anchored: Option<u64>,
}

/// Counts that become visible together.
#[derive(Default)]
struct Counted {
    states: Vec<ClaimState>,
    runs: Vec<RunCount>,
}

/// The counts of one run of a guest.
#[derive(Debug, Clone, Copy)]
pub struct RunCount {
    end: &'static str,
    fuel: u64,
    took: Duration,
    /// `Some` if a policy module vetoed the run; `true` if it only deferred it.
    vetoed: Option<bool>,
}

impl RunCount {
    /// The counts of a run with this end. `vetoed`: a policy module vetoed it; `true` if it only
    /// deferred it.
    #[must_use]
    pub fn new(end: &End, fuel: u64, took: Duration, vetoed: Option<bool>) -> Self {
        let end = match end {
            End::Emitted(_) => "emitted",
            End::NoOutput => "no_output",
            End::Trapped(_) => "trapped",
        };
        Self {
            end,
            fuel,
            took,
            vetoed,
        }
    }
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
    /// `hit` if the module was compiled before, otherwise `miss`.
    cache: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Vetoed {
    /// The vote of the policy modules: `defer` or `reject`.
    vote: &'static str,
}

impl Metrics {
    /// Metrics that `registry` shows.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        let shown = Arc::new(ShownHead::default());
        registry.collect(ShownHeadCollector(Arc::clone(&shown)));
        let ports = Arc::new(Ports::default());
        registry.collect(PortCollector(Arc::clone(&ports)));
        Self {
            claims: registry.counters(
                "claims",
                "Changes of claims to a state since the daemon started",
            ),
            commit_changes: registry.histogram(
                "commit_changes",
                "Changes that became durable by one commit; 0 for a commit of the server's own",
                CHANGES,
            ),
            commit_sync_seconds: registry.timing(
                "commit_sync",
                "Time that a commit takes to sync the write-ahead log",
                SYNC,
            ),
            run_seconds: registry.timings("run", "Time that a guest ran, by how it ended", RUN),
            run_fuel: registry.counter("run_fuel", "Fuel that guests used"),
            prepared: registry.counters(
                "modules_prepared",
                "Modules that a run needed, by whether they were already compiled",
            ),
            vetoes: registry.counters(
                "settlement_vetoes",
                "Claims that a policy module kept from being judged",
            ),
            registry,
            shown,
            ports,
            waiting: Mutex::default(),
        }
    }

    /// The registry, in which parts register their own counts, and which shows all of them.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Counts the changes of one commit, and how long its sync took.
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

    /// Counts what has waited, up to the number of entries that anchors now cover.
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
        self.waiting.lock()
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

    /// Counts a run of a guest once it settles: before that, no metric may tell how it ended.
    pub fn ran(&self, claim: ClaimId, run: RunCount) {
        self.waiting().ran.insert(claim, run);
    }

    /// Counts a module that a run needed, and whether it was compiled already.
    pub fn needed_module(&self, was_compiled: bool) {
        let cache = if was_compiled { "hit" } else { "miss" };
        self.prepared.get_or_create(&Prepared { cache }).inc();
    }

    /// Holds back counts of settlements until anchors cover them. `entries` are covered now.
    pub fn wait_for_anchors(&self, entries: u64) {
        self.waiting().anchored = Some(entries);
    }

    /// The newest shown head, for the parts that report it.
    #[must_use]
    pub fn shown(&self) -> &Arc<ShownHead> {
        &self.shown
    }

    /// Shows the store's counts.
    pub fn keeps(&self, done: Arc<Done>) {
        let shown = Arc::clone(&self.shown);
        self.registry.collect(StoreCollector { done, shown });
    }

    /// Adds a listener whose connections the metrics count from now on.
    pub fn listens(&self, name: &'static str, stats: Arc<Stats>, tls: Option<Arc<Tls>>) {
        let mut ports = self.ports.0.lock();
        ports.push(Port { name, stats, tls });
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

/// The name of a state in lower case.
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
