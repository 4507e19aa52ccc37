//! The bodies of the gate for agents on the wire.
//!
//! Names are camelCase; absent fields are left out, never null. If a request is refused before it
//! is judged, the body has the same shape as a judgement, so that a client that only reads the
//! decision does the safe thing.

use std::borrow::Cow;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The decision on a tool call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Decision {
    /// Make it.
    Allow,
    /// Make it with the rewritten parameters, if there are any.
    Downgrade,
    /// Ask a person.
    RequireHuman,
    /// Do not make it.
    Deny,
}

impl Decision {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Downgrade => "DOWNGRADE",
            Self::RequireHuman => "REQUIRE_HUMAN",
            Self::Deny => "DENY",
        }
    }

    /// Whether it stops the call.
    pub fn stops(self) -> bool {
        matches!(self, Self::RequireHuman | Self::Deny)
    }
}

/// The reason of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReasonCode {
    /// Nothing is suspicious.
    ProbeClean,
    /// Many calls.
    ProbeThrottle,
    /// Very many.
    ProbeEscalate,
    /// Too many.
    ProbeFreeze,
    /// Many calls, and the tool has no harmless form.
    UnsafeRewrite,
    /// A policy rejected it.
    PolicyVeto,
    /// A policy asks for a person, or failed.
    PolicyDefer,
    /// It could not be decided, or could not be recorded, in time.
    Unavailable,
    /// The request is malformed.
    InvalidInput,
    /// The tool can do harm, so the call needs a session.
    SessionRequired,
    /// The caller is not authenticated.
    Unauthorized,
    /// Too many calls a second.
    RateLimited,
}

impl ReasonCode {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::ProbeClean => "PROBE_CLEAN",
            Self::ProbeThrottle => "PROBE_THROTTLE",
            Self::ProbeEscalate => "PROBE_ESCALATE",
            Self::ProbeFreeze => "PROBE_FREEZE",
            Self::UnsafeRewrite => "UNSAFE_REWRITE",
            Self::PolicyVeto => "POLICY_VETO",
            Self::PolicyDefer => "POLICY_DEFER",
            Self::Unavailable => "UNAVAILABLE",
            Self::InvalidInput => "INVALID_INPUT",
            Self::SessionRequired => "SESSION_REQUIRED",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::RateLimited => "RATE_LIMITED",
        }
    }
}

/// The calls that a session has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct BudgetDelta {
    /// Calls that this call used.
    pub spent: u64,
    /// Calls until the session is frozen.
    pub remaining: u64,
}

/// The answer before a tool call.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolDecision {
    /// The decision on the call.
    pub decision: Decision,
    /// The reason of the decision.
    pub reason_code: ReasonCode,
    /// An explanation: which policy objected; for auditors, why there is no harmless form.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub reason_detail: Option<Cow<'static, str>>,
    /// Parameters to use instead; absent if they stay unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub rewritten_params: Option<Map<String, Value>>,
    /// The calls that the session has left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_delta: Option<BudgetDelta>,
    /// SHA-256 of the parameters as canonical JSON, 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params_hash: Option<String>,
    /// The number by which the decision's receipt is fetched, 16 hex digits; absent if none is
    /// kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
    /// The leaf of the decision's record, 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt_hash: Option<String>,
}

impl ToolDecision {
    /// A decision and its reason, without other fields.
    pub fn bare(decision: Decision, reason_code: ReasonCode) -> Self {
        Self {
            decision,
            reason_code,
            reason_detail: None,
            rewritten_params: None,
            budget_delta: None,
            params_hash: None,
            decision_id: None,
            receipt_hash: None,
        }
    }
}

/// The decision on a tool's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutputDecision {
    /// Pass it on.
    Allow,
    /// Pass the rewritten output on, if there is one.
    Redact,
    /// Ask a person.
    RequireHuman,
    /// Pass nothing on.
    Block,
}

impl OutputDecision {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Redact => "REDACT",
            Self::RequireHuman => "REQUIRE_HUMAN",
            Self::Block => "BLOCK",
        }
    }

    /// Whether it stops the output.
    pub fn stops(self) -> bool {
        matches!(self, Self::RequireHuman | Self::Block)
    }
}

/// The beginning of an output that is too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Truncated {
    /// True.
    pub truncated: bool,
    /// Bytes of the output as compact JSON.
    pub len: u64,
    /// SHA-256 of it, 64 hex digits.
    pub sha256: String,
    /// Its first characters.
    pub preview: String,
}

/// The answer after a tool call.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutputVerdict {
    /// The decision on the output.
    pub decision: OutputDecision,
    /// The reason, unless the output passes unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The output to pass on instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_rewrite: Option<Truncated>,
    /// Always 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_delta: Option<f64>,
    /// Different outputs that the session may still have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_remaining_bits: Option<f64>,
    /// SHA-256 over request and answer, 64 hex digits; empty if the request was refused.
    pub receipt_hash: String,
    /// The number by which the decision's receipt is fetched; absent if none is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
}

impl OutputVerdict {
    /// A verdict that blocks the output and has no record.
    pub fn blocked(reason: &'static str) -> Self {
        Self {
            decision: OutputDecision::Block,
            reason: Some(reason),
            output_rewrite: None,
            budget_delta: None,
            budget_remaining_bits: None,
            receipt_hash: String::new(),
            decision_id: None,
        }
    }
}

/// Whether a module may become a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// Whether the module may become a tool.
    pub admissible: bool,
    /// The reason of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The leaf of the decision's record, 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt_hash: Option<String>,
    /// The number by which the decision's receipt is fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
}

/// An answer before it is sent.
pub struct Answer<T> {
    pub status: StatusCode,
    pub body: T,
    /// When to retry, in seconds.
    pub retry_after_s: Option<u64>,
    /// Whether the caller must authenticate.
    pub challenge: bool,
    /// The problem of the request, for a header: published clients compare the body of a refusal.
    pub detail: Option<&'static str>,
}

impl<T> Answer<T> {
    /// An answer with a status.
    pub fn new(status: StatusCode, body: T) -> Self {
        Self {
            status,
            body,
            retry_after_s: None,
            challenge: false,
            detail: None,
        }
    }

    /// The same answer with a time to retry.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self {
            // Given zero seconds, a client would retry at once.
            retry_after_s: Some(seconds.max(1)),
            ..self
        }
    }
}

/// Enough for most answers.
const TYPICAL_BYTES: usize = 512;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The header with the problem of a refused request.
const DETAIL: HeaderName = HeaderName::from_static("x-evidenceos-detail");

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let mut body = Vec::with_capacity(TYPICAL_BYTES);
        serde_json::to_writer(&mut body, &self.body)
            .unwrap_or_else(|error| unreachable!("an answer is plain data: {error}"));
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, JSON);
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(detail) = self.detail {
            headers.insert(DETAIL, HeaderValue::from_static(detail));
        }
        if self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_that_are_serialized() {
        fn check<T: Serialize>(value: T, word: &str) {
            assert_eq!(serde_json::to_value(value).expect("a word"), word);
        }
        use ReasonCode as R;
        for decision in [
            Decision::Allow,
            Decision::Downgrade,
            Decision::RequireHuman,
            Decision::Deny,
        ] {
            check(decision, decision.word());
        }
        for reason in [
            R::ProbeClean,
            R::ProbeThrottle,
            R::ProbeEscalate,
            R::ProbeFreeze,
            R::UnsafeRewrite,
            R::PolicyVeto,
            R::PolicyDefer,
            R::Unavailable,
            R::InvalidInput,
            R::SessionRequired,
            R::Unauthorized,
            R::RateLimited,
        ] {
            check(reason, reason.word());
        }
        for decision in [
            OutputDecision::Allow,
            OutputDecision::Redact,
            OutputDecision::RequireHuman,
            OutputDecision::Block,
        ] {
            check(decision, decision.word());
        }
    }

    #[test]
    fn a_refusal_has_a_constant_shape() {
        let body = ToolDecision::bare(Decision::Deny, ReasonCode::InvalidInput);
        assert_eq!(
            serde_json::to_string(&body).expect("JSON"),
            r#"{"decision":"DENY","reasonCode":"INVALID_INPUT"}"#
        );
        assert_eq!(
            serde_json::to_string(&OutputVerdict::blocked("invalid_json")).expect("JSON"),
            r#"{"decision":"BLOCK","reason":"invalid_json","receiptHash":""}"#
        );
    }
}
