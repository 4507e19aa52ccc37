//! The counts of the gate: decisions, how long they took, and what was not judged.

use std::time::Duration;

use evidenceos_telemetry::{Bounds, Registry};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};

/// Bounds of the time that a decision takes, in seconds.
const DECISION: Bounds = Bounds(&[
    10e-6, 20e-6, 30e-6, 60e-6, 100e-6, 250e-6, 500e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3, 300e-3,
    1.0,
]);

/// The counts of the gate.
pub(super) struct Counts {
    decisions: Family<Decided, Counter>,
    failures: Family<Failed, Counter>,
    decision_seconds: Family<AtGate, Histogram, Bounds>,
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

impl Counts {
    /// Counts that `registry` shows.
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            decisions: registry.counters(
                "decisions",
                "Decisions about tool calls, refused malformed requests included",
            ),
            failures: registry.counters(
                "preflight_failures",
                "Preflight requests that were not judged, and decisions that could not be recorded",
            ),
            decision_seconds: registry.timings(
                "decision",
                "Time from a request's head to its answer, as the server sees it",
                DECISION,
            ),
        }
    }

    /// Counts a decision before a tool call.
    pub(super) fn preflight(&self, decision: &'static str, reason: &'static str, took: Duration) {
        self.decided("preflight", decision, reason, took);
    }

    /// Counts a decision after a tool call.
    pub(super) fn postflight(&self, decision: &'static str, took: Duration) {
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
    pub(super) fn failed(&self, kind: &'static str) {
        self.failures.get_or_create(&Failed { kind }).inc();
    }
}
