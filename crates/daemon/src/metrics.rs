//! What an operator watches, as OpenMetrics text.
//!
//! Values are read when they are asked for, from counters and rows that the parts keep anyway;
//! nothing here is on the way of a call but a counter or an observation. Labels come from closed
//! sets, or are the names of holdouts, which operators give; of these so many are shown.

pub mod classic;
mod process;
mod served;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use evidenceos_access::{Denied, Stats, Tls};
use evidenceos_store::Done;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use tonic::Code;

use self::{process::ProcessCollector, served::ServedCollector};
use crate::{anchors, decisions::Recorder, grpc::Edge, server::unix_ms};

/// The metrics of a daemon.
pub struct Metrics {
    registry: Registry,
    calls: Family<Identified, Counter>,
    log: Arc<LogState>,
    ports: Arc<Ports>,
    durable: Arc<OnceLock<Durable>>,
    decisions: Family<Decided, Counter>,
    failures: Family<Failed, Counter>,
    decision_seconds: Family<AtGate, Histogram>,
    recorder: Arc<OnceLock<Arc<Recorder>>>,
    rpcs: Family<Called, Counter>,
    rpc_seconds: Family<OfMethod, Histogram>,
    credit_denied: Family<DeniedBy, Counter>,
    edge: Arc<OnceLock<Weak<Edge>>>,
}

/// What keeps the data.
#[derive(Debug)]
struct Durable {
    done: Arc<Done>,
    anchors: Arc<anchors::State>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Identified {
    /// `mtls`, `bearer`, `hmac`, `anonymous`, or `denied`.
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    /// `preflight` or `postflight`.
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
    /// `account` or `holdout`.
    limit: &'static str,
}

/// Bounds of the time that a call takes, in seconds. Runs may take minutes.
const RPC_SECONDS: [f64; 12] = [
    300e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3, 300e-3, 1.0, 3.0, 10.0, 30.0, 120.0,
];

/// Bounds of the time that a decision takes, in seconds.
const DECISION_SECONDS: [f64; 14] = [
    10e-6, 20e-6, 30e-6, 60e-6, 100e-6, 250e-6, 500e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3, 300e-3,
    1.0,
];

#[derive(Debug, Default)]
struct LogState {
    size: AtomicU64,
    released_unix_ms: AtomicU64,
    /// Since when a head is being signed elsewhere; 0: none is.
    pending_since_unix_ms: AtomicU64,
}

struct Port {
    name: &'static str,
    stats: Arc<Stats>,
    tls: Option<Arc<Tls>>,
}

#[derive(Default)]
struct Ports(Mutex<Vec<Port>>);

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
        let registry = whole.sub_registry_with_prefix("evidenceos");
        let calls = Family::<Identified, Counter>::default();
        registry.register(
            "identified_calls",
            "Calls by how the caller was identified; denied ones included",
            calls.clone(),
        );
        let log = Arc::new(LogState::default());
        let ports = Arc::new(Ports::default());
        registry.register_collector(Box::new(LogCollector(Arc::clone(&log))));
        registry.register_collector(Box::new(PortCollector(Arc::clone(&ports))));
        let decisions = Family::<Decided, Counter>::default();
        registry.register(
            "decisions",
            "Decisions about tool calls, refusals of malformed requests included",
            decisions.clone(),
        );
        let failures = Family::<Failed, Counter>::default();
        registry.register(
            "preflight_failures",
            "Preflight requests that were not judged, and decisions that could not be recorded",
            failures.clone(),
        );
        let decision_seconds =
            Family::<AtGate, Histogram>::new_with_constructor(|| Histogram::new(DECISION_SECONDS));
        registry.register_with_unit(
            "decision",
            "Time from a request's head to its answer, as the server sees it",
            Unit::Seconds,
            decision_seconds.clone(),
        );
        let recorder = Arc::default();
        registry.register_collector(Box::new(RecorderCollector(Arc::clone(&recorder))));
        let durable = Arc::default();
        registry.register_collector(Box::new(DurableCollector(Arc::clone(&durable))));
        let rpcs = Family::<Called, Counter>::default();
        registry.register(
            "rpc_calls",
            "Calls of gRPC that ended, by method and status; denied ones included",
            rpcs.clone(),
        );
        let rpc_seconds =
            Family::<OfMethod, Histogram>::new_with_constructor(|| Histogram::new(RPC_SECONDS));
        registry.register_with_unit(
            "rpc",
            "Time from a call's head to its last word, without calls that last as long as their client likes",
            Unit::Seconds,
            rpc_seconds.clone(),
        );
        let credit_denied = Family::<DeniedBy, Counter>::default();
        registry.register(
            "credit_denied_calls",
            "Calls refused for want of credit, of the account or of the holdout",
            credit_denied.clone(),
        );
        let edge = Arc::default();
        registry.register_collector(Box::new(ServedCollector(Arc::clone(&edge))));
        Self {
            registry: whole,
            rpcs,
            rpc_seconds,
            credit_denied,
            edge,
            calls,
            log,
            ports,
            durable,
            decisions,
            failures,
            decision_seconds,
            recorder,
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

    /// Watches where decisions are recorded; the first time counts.
    pub fn records(&self, recorder: Arc<Recorder>) {
        let _ = self.recorder.set(recorder);
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

    /// Watches what is served, as long as it is; the first time counts.
    pub fn serves(&self, edge: &Arc<Edge>) {
        let _ = self.edge.set(Arc::downgrade(edge));
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

    /// Watches what keeps the data; the first time counts.
    pub fn keeps(&self, done: Arc<Done>, anchors: Arc<anchors::State>) {
        let _ = self.durable.set(Durable { done, anchors });
    }

    /// Watches a port.
    pub fn listens(&self, name: &'static str, stats: Arc<Stats>, tls: Option<Arc<Tls>>) {
        let mut ports = self.ports.0.lock().unwrap_or_else(PoisonError::into_inner);
        ports.push(Port { name, stats, tls });
    }

    /// Everything, as OpenMetrics text.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry)
            .unwrap_or_else(|error| unreachable!("text is written into memory: {error}"));
        text
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

/// Writes a gauge without labels.
fn gauge<V>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: V,
) -> fmt::Result
where
    ConstGauge<V>: prometheus_client::encoding::EncodeMetric,
{
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
}

/// Writes a counter without labels.
fn counter<V>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: V,
) -> fmt::Result
where
    ConstCounter<V>: prometheus_client::encoding::EncodeMetric,
{
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)
}

#[derive(Debug)]
struct LogCollector(Arc<LogState>);

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let size = ConstGauge::new(self.0.size.load(Ordering::Relaxed));
        size.encode(encoder.encode_descriptor(
            "log_entries",
            "Entries that the newest published head covers",
            None,
            size.metric_type(),
        )?)?;
        let released = self.0.released_unix_ms.load(Ordering::Relaxed);
        let age = ConstGauge::new(unix_ms().saturating_sub(released) as f64 / 1_000.0);
        age.encode(encoder.encode_descriptor(
            "log_checkpoint_age",
            "Since the newest head was published, also while nothing happens",
            Some(&Unit::Seconds),
            age.metric_type(),
        )?)?;
        let since = self.0.pending_since_unix_ms.load(Ordering::Relaxed);
        let waits = match since {
            0 => 0,
            since => unix_ms().saturating_sub(since),
        };
        let pending = ConstGauge::new(waits as f64 / 1_000.0);
        pending.encode(encoder.encode_descriptor(
            "log_signature_pending",
            "How long entries have waited for a KMS to sign the head over them; 0 if none wait",
            Some(&Unit::Seconds),
            pending.metric_type(),
        )?)
    }
}

struct RecorderCollector(Arc<OnceLock<Arc<Recorder>>>);

impl fmt::Debug for RecorderCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecorderCollector")
    }
}

impl Collector for RecorderCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(recorder) = self.0.get() else {
            return Ok(());
        };
        let waiting = ConstGauge::new(recorder.waiting() as u64);
        waiting.encode(encoder.encode_descriptor(
            "decisions_waiting",
            "Decisions that are not in the log yet",
            None,
            waiting.metric_type(),
        )?)?;
        let unrecorded = ConstCounter::new(recorder.unrecorded());
        unrecorded.encode(encoder.encode_descriptor(
            "decisions_unrecorded",
            "Decisions that let a tool without harm through and are not in the log, since too many waited",
            None,
            unrecorded.metric_type(),
        )?)
    }
}

struct DurableCollector(Arc<OnceLock<Durable>>);

impl fmt::Debug for DurableCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DurableCollector")
    }
}

impl Collector for DurableCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(durable) = self.0.get() else {
            return Ok(());
        };
        let anchors = &durable.anchors;
        for (name, help, value) in [
            (
                "anchors",
                "Anchors that were given; with none a data directory restored from an older state is not noticed",
                anchors.configured.load(Ordering::Relaxed),
            ),
            (
                "anchors_answering",
                "Anchors that answered when they were last asked or written",
                anchors.answering.load(Ordering::Relaxed),
            ),
            (
                "signing_held",
                "1 while nothing is signed or charged, since no anchor answers",
                u64::from(anchors.held.load(Ordering::Relaxed)),
            ),
            (
                "store_short_of_space",
                "1 while new work is refused for want of space on the disk",
                durable.done.short_of_space.load(Ordering::Relaxed),
            ),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let done = &durable.done;
        for (name, help, value) in [
            (
                "store_commits",
                "Transactions that are durable",
                &done.commits,
            ),
            (
                "store_wal_checkpoints",
                "Times that the write-ahead log was copied into the database",
                &done.checkpoints,
            ),
            (
                "store_rows_read",
                "Rows that the writer read to decide",
                &done.rows_read,
            ),
            (
                "store_log_files_synced",
                "Tiles, bundles and checkpoints of the log that were synced",
                &done.log_files_synced,
            ),
        ] {
            counter(
                &mut encoder,
                name,
                help,
                None,
                value.load(Ordering::Relaxed),
            )?;
        }
        Ok(())
    }
}

struct PortCollector(Arc<Ports>);

impl fmt::Debug for PortCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PortCollector")
    }
}

impl Collector for PortCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ports = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        type Read = fn(&evidenceos_access::Counts) -> u64;
        let counters: [(&str, &str, Read); 6] = [
            ("connections_accepted", "Connections accepted", |c| {
                c.accepted
            }),
            (
                "connections_closed_unused",
                "Connections that were closed before a word was said, as port probes do",
                |c| c.probe_like,
            ),
            (
                "handshakes_refused",
                "TLS handshakes refused by either side",
                |c| c.handshake_failures,
            ),
            (
                "handshakes_timed_out",
                "TLS handshakes that took too long",
                |c| c.handshake_timeouts,
            ),
            (
                "connections_over_limit",
                "Connections closed for a limit",
                |c| c.over_limit,
            ),
            (
                "accept_errors",
                "Connections that could not be accepted",
                |c| c.accept_errors,
            ),
        ];
        for (name, help, read) in counters {
            let kind = ConstCounter::new(0u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for port in ports.iter() {
                let labels = [("listener", port.name)];
                let value = ConstCounter::new(read(&port.stats.counts()));
                value.encode(family.encode_family(&labels)?)?;
            }
        }
        let kind = ConstGauge::new(0u64).metric_type();
        let mut open =
            encoder.encode_descriptor("connections_open", "Connections open", None, kind)?;
        for port in ports.iter() {
            let value = ConstGauge::new(port.stats.counts().open);
            value.encode(open.encode_family(&[("listener", port.name)])?)?;
        }
        let tls = || {
            ports
                .iter()
                .filter_map(|port| Some((port.name, port.tls.as_ref()?)))
        };
        let mut expiry = encoder.encode_descriptor(
            "tls_certificate_not_after",
            "When the server's certificate expires, in Unix time",
            Some(&Unit::Seconds),
            kind,
        )?;
        for (name, tls) in tls() {
            let value = ConstGauge::new(tls.not_after_unix());
            value.encode(expiry.encode_family(&[("listener", name)])?)?;
        }
        let counter = ConstCounter::new(0u64).metric_type();
        let mut failures = encoder.encode_descriptor(
            "tls_reload_failures",
            "Sets of certificate, key and authorities that did not fit and were not taken",
            None,
            counter,
        )?;
        for (name, tls) in tls() {
            let value = ConstCounter::new(tls.reload_failures());
            value.encode(failures.encode_family(&[("listener", name)])?)?;
        }
        Ok(())
    }
}
