//! The counts of gRPC: calls by their status, and how long they took.

use std::time::Duration;

use evidenceos_telemetry::{Bounds, Registry};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};
use tonic::Code;

/// Bounds of the time that a call takes, in seconds. Runs may take minutes.
const RPC: Bounds = Bounds(&[
    300e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3, 300e-3, 1.0, 3.0, 10.0, 30.0, 120.0,
]);

/// The counts of gRPC.
pub(super) struct Counts {
    rpcs: Family<Called, Counter>,
    rpc_seconds: Family<OfMethod, Histogram, Bounds>,
    credit_denied: Family<DeniedBy, Counter>,
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
    /// The limit that was reached: `account` or `holdout`.
    limit: &'static str,
}

impl Counts {
    /// Counts that `registry` shows.
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            rpcs: registry.counters(
                "rpc_calls",
                "gRPC calls that ended, by method and status, denied calls included",
            ),
            rpc_seconds: registry.timings(
                "rpc",
                "Time from a call's head to the end of its answer, without calls that last as long as their client wants",
                RPC,
            ),
            credit_denied: registry.counters(
                "credit_denied_calls",
                "Calls refused because the account or the holdout lacks credit",
            ),
        }
    }

    /// Counts a call that ended, and its duration if the server determines it.
    pub(super) fn called(&self, method: &'static str, code: Code, took: Option<Duration>) {
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

    /// Counts some refusals separately, by the head of the answer.
    pub(super) fn refused_call(&self, headers: &http::HeaderMap) {
        let own = headers.get("x-evidenceos-code").map(|code| code.as_bytes());
        let limit = match own {
            Some(b"INSUFFICIENT_CREDIT") => "account",
            Some(b"HOLDOUT_CREDIT_EXHAUSTED") => "holdout",
            _ => return,
        };
        self.credit_denied.get_or_create(&DeniedBy { limit }).inc();
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
