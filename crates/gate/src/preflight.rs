//! The gate for agents: HTTP routes that a platform asks before and after a tool call.
//!
//! - `wire` has the bodies, `parse` reads requests, `risk` knows tools by their names, `judge`
//!   decides, `limits` bounds.
//! - `calls` and `admission` handle one request: authenticate, limit, parse, decide, record.
//!   `receipts` shows a decision with its proof. `openapi` describes the routes, with the shapes of
//!   `bodies`.
//!
//! Invariants: the caller is authenticated before the body is read; a call that cannot be decided or recorded
//! is stopped, except for tools that can do no harm while no policy is in force; a call beyond its rate is
//! always denied; a decision that stops something is in the log before it is answered, or the answer's status
//! says that it is not.

mod admission;
mod bodies;
mod calls;
mod counts;
mod draft;
mod guard;
mod judge;
mod limits;
mod openapi;
#[doc(hidden)]
pub mod parse;
mod receipts;
mod risk;
mod wire;

use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::Response,
    routing::{get, post},
};
use evidenceos_access::{
    Callers, Denied, Misused, Peer, Principal,
    once::{self, Once, Surface},
    strip_identity_headers,
};
use evidenceos_driver::clock::Clock;
use evidenceos_kernel::{id::Digest, probe::RulesError};
use evidenceos_store::{Done, Rows, log::LogView};
use evidenceos_telemetry::Registry;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use sha2::Digest as _;
use tokio::sync::{Semaphore, watch};

use self::{
    counts::Counts,
    limits::Rates,
    risk::Risk,
    wire::{Admission, Answer, Decision, OutputVerdict, ReasonCode, ToolDecision},
};
use crate::{
    DurableDecisions, PreflightConfig, policies::Policies, probes::Probes, recorder::Recorder,
};

/// The longest time in which a body must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often quiet principals are forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// The largest body with a module: 1 MiB of module in base64, and the JSON around it.
const MAX_MODULE_BODY: usize = 1_500_000;
/// Calls about which policies are asked at once; more are not decided.
const POLICIES_AT_ONCE: usize = 64;
/// When to retry while a daemon starts or stops, in seconds.
const SOON_S: u64 = 1;

/// The parts of the daemon that the gate needs.
#[derive(Clone)]
pub struct Parts {
    /// Authenticates the callers of the agents' HTTP surface.
    pub callers: Arc<Callers>,
    /// Records decisions.
    pub recorder: Arc<Recorder>,
    /// The policies that may veto tool calls; a reload replaces the set.
    pub policies: Arc<ArcSwap<Policies>>,
    /// The clock that decisions use.
    pub clock: Arc<Clock>,
    /// Proves entries against the shown head.
    pub log: Arc<LogView>,
    /// The size of the newest shown head.
    pub released: watch::Sender<u64>,
    /// Connections that read committed rows.
    pub readers: Arc<dyn Rows>,
    /// What the store has done since the start.
    pub done: Arc<Done>,
    /// The last change that `accounts.json` shows.
    pub accounts_shown: watch::Receiver<u64>,
    /// Shows the gate's metrics.
    pub registry: Arc<Registry>,
}

/// The gate of a serving daemon.
pub struct Api {
    needs_certificate: bool,
    config: PreflightConfig,
    risk: Risk,
    rates: Rates,
    probes: Probes,
    asking: Arc<Semaphore>,
    counts: Counts,
    parts: Parts,
}

impl Api {
    /// The gate over a serving daemon.
    ///
    /// # Errors
    /// If the rules of probing are invalid, which the configuration has refused before.
    pub fn new(
        config: &PreflightConfig,
        needs_certificate: bool,
        parts: Parts,
    ) -> Result<Self, RulesError> {
        Ok(Self {
            needs_certificate,
            risk: Risk::new(
                &config.high_risk_tools,
                config.fail_open_for_low_risk,
                config.rewrites_shells,
            ),
            rates: Rates::new(config.rate_limit, config.global_rate_limit),
            probes: Probes::of_tool_calls(config.probe_tool_calls)?,
            config: config.clone(),
            asking: Arc::new(Semaphore::new(POLICIES_AT_ONCE)),
            counts: Counts::new(&parts.registry),
            parts,
        })
    }

    /// Authenticates the caller of a request.
    fn identify(&self, headers: &HeaderMap, path: &str, peer: Option<&Peer>) -> Option<Principal> {
        if self.needs_certificate && peer.and_then(Peer::certificate).is_none() {
            return None;
        }
        let known: Result<Principal, Denied> =
            self.parts
                .callers
                .identify_with(self.config.token.as_ref(), path, headers, peer);
        known.ok()
    }

    /// Whether a decision must be durable before it is answered.
    fn must_be_durable(&self, tool: &str, stops: bool) -> bool {
        self.config.durable == DurableDecisions::All || stops || self.risk.is_high(tool)
    }
}

/// The gate, which opens once the daemon serves.
#[derive(Clone, Default)]
pub struct Front(Arc<OnceLock<Api>>);

impl Front {
    /// Opens the gate; only the first call has an effect. Must be called within a runtime.
    pub fn open(&self, api: Api) {
        if self.0.set(api).is_err() {
            return;
        }
        // A weak reference, so that this task does not keep the daemon's parts alive.
        let front = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while let Some(api) = front.upgrade() {
                if let Some(api) = api.get() {
                    api.rates.tidy();
                }
                // It must not be held during the pause: the daemon's end would have to wait for it.
                drop(api);
                tokio::time::sleep(TIDY_EVERY).await;
            }
        });
    }

    /// How far the parts that follow the commits lag behind them.
    pub fn details(&self) -> Option<serde_json::Value> {
        let api = self.api()?;
        let (acknowledged, shown) = (
            api.parts.done.accounts_seq.load(Ordering::Relaxed),
            *api.parts.accounts_shown.borrow(),
        );
        let head = api.parts.log.released().head;
        Some(serde_json::json!({
            "accounts_json": {
                "acknowledged": acknowledged,
                "shown": shown,
                "current": shown >= acknowledged,
            },
            "log": { "entries": head.size },
            "decisions": { "waiting": api.parts.recorder.waiting() },
            "space": { "short": api.parts.done.short_of_space.load(Ordering::Relaxed) != 0 },
        }))
    }

    fn api(&self) -> Option<&Api> {
        self.0.get()
    }

    /// Answers an authenticated caller; a stranger learns nothing about which paths there are.
    fn admit(&self, request: Request, answer: impl FnOnce() -> Response) -> Response {
        match self.api() {
            None => receipts::unavailable("the daemon is starting"),
            Some(api) => match api.known(request) {
                Ok(_) => answer(),
                Err(unknown) => receipts::unknown(unknown),
            },
        }
    }
}

/// The routes of the agents' HTTP surface.
pub fn routes(front: Front) -> Router {
    Router::new()
        .route("/v1/preflight_tool_call", post(preflight))
        .route("/v1/postflight_tool_call", post(postflight))
        .route("/v1/aspec_admit", post(admit))
        .route("/v1/decisions/{decision_id}", get(receipts::receipt))
        .route("/openapi.json", get(openapi::show))
        .method_not_allowed_fallback(wrong_method)
        .fallback(nothing)
        .with_state(front)
}

/// Decide on a tool call before it is made.
#[utoipa::path(
    post,
    path = "/v1/preflight_tool_call",
    tag = "gate",
    params(("X-Request-Id" = String, Header, description = "1-128 characters of 0x21-0x7e without \":\"; if it is absent, X-EvidenceOS-Request-Id")),
    request_body(content = bodies::PreflightRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The decision", body = ToolDecision),
        (status = 400, description = "INVALID_INPUT or SESSION_REQUIRED", body = ToolDecision),
        (status = 401, description = "UNAUTHORIZED", body = ToolDecision),
        (status = 408, description = "The body did not come in time", body = ToolDecision),
        (status = 413, description = "The body is too large", body = ToolDecision),
        (status = 429, description = "RATE_LIMITED, always with DENY; see Retry-After", body = ToolDecision),
        (status = 503, description = "UNAVAILABLE: the decision could not be recorded, or the daemon starts or stops", body = ToolDecision),
    )
)]
async fn preflight(State(front): State<Front>, request: Request) -> Answer<ToolDecision> {
    let Some(api) = front.api() else {
        let body = ToolDecision::bare(Decision::Deny, ReasonCode::Unavailable);
        return Answer::new(StatusCode::SERVICE_UNAVAILABLE, body).retry_after(SOON_S);
    };
    let started = std::time::Instant::now();
    let answer = api.preflight(request).await;
    api.counts.preflight(
        answer.body.decision.word(),
        answer.body.reason_code.word(),
        started.elapsed(),
    );
    answer
}

/// Decide on a tool call's output after it was made.
#[utoipa::path(
    post,
    path = "/v1/postflight_tool_call",
    tag = "gate",
    params(("X-Request-Id" = String, Header, description = "1-128 characters of 0x21-0x7e without \":\"; if it is absent, X-EvidenceOS-Request-Id")),
    request_body(content = bodies::PostflightRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The decision", body = OutputVerdict),
        (status = 400, description = "The request is malformed, or its caller is not authenticated; the reason says which", body = OutputVerdict),
        (status = 408, description = "The body did not come in time", body = OutputVerdict),
        (status = 413, description = "The body is too large", body = OutputVerdict),
        (status = 429, description = "rate_limited; see Retry-After", body = OutputVerdict),
        (status = 503, description = "unavailable: the decision could not be recorded, or the daemon starts or stops", body = OutputVerdict),
    )
)]
async fn postflight(State(front): State<Front>, request: Request) -> Answer<OutputVerdict> {
    let Some(api) = front.api() else {
        let body = OutputVerdict::blocked("unavailable");
        return Answer::new(StatusCode::SERVICE_UNAVAILABLE, body).retry_after(SOON_S);
    };
    let started = std::time::Instant::now();
    let answer = api.postflight(request).await;
    api.counts
        .postflight(answer.body.decision.word(), started.elapsed());
    answer
}

/// Check whether a Wasm module may become a tool: deterministic, bounded, with imports of the guest
/// interface only.
#[utoipa::path(
    post,
    path = "/v1/aspec_admit",
    tag = "gate",
    request_body(content = bodies::AdmitRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "Whether the module is admissible, and why not", body = Admission),
        (status = 400, description = "The request is malformed", body = Admission),
        (status = 401, description = "The caller is not authenticated", body = Admission),
        (status = 408, description = "The body did not come in time", body = Admission),
        (status = 413, description = "The body is too large", body = Admission),
        (status = 429, description = "Too many calls; see Retry-After", body = Admission),
        (status = 503, description = "The daemon starts or stops, or the refusal could not be recorded", body = Admission),
    )
)]
async fn admit(State(front): State<Front>, request: Request) -> Answer<Admission> {
    let Some(api) = front.api() else {
        return admission::inadmissible(StatusCode::SERVICE_UNAVAILABLE, "the daemon is starting")
            .retry_after(SOON_S);
    };
    api.admit(request).await
}

/// Why a body was not read.
enum NoBody {
    /// The signature was used for another request.
    Misused(Misused),
    TooLarge,
    Slow,
    Broken,
}

/// Reads a body of at most `max` bytes.
async fn read(body: Body, max: usize) -> Result<Bytes, NoBody> {
    let whole = Limited::new(body, max).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Err(_elapsed) => Err(NoBody::Slow),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(NoBody::TooLarge),
        Ok(Err(error)) => Err(match once::misused(error.as_ref()) {
            Some(misused) => NoBody::Misused(misused),
            // The connection broke, so no client sees the answer.
            None => NoBody::Broken,
        }),
    }
}

/// The status of a request whose signature is not valid for it.
fn status_of(misused: Misused) -> StatusCode {
    match misused {
        Misused::OtherRequest | Misused::TooLate => StatusCode::UNAUTHORIZED,
        Misused::Full => StatusCode::TOO_MANY_REQUESTS,
    }
}

/// Whether a request announces a body over the limit.
fn says_too_large(headers: &HeaderMap, max: usize) -> bool {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    length.is_some_and(|length| length > max as u64)
}

/// The parts of a request, and its authenticated caller.
struct Known {
    principal: Principal,
    headers: HeaderMap,
    body: Body,
}

/// Why a request has no authenticated caller.
enum Unknown {
    /// The request has no valid credential.
    Caller,
    /// The signature is valid, but was used for another request.
    Signature(Misused),
}

impl Api {
    /// Authenticates a request before any of its body is read. The body of a signed request ends in
    /// an error if its signature was used for another request.
    fn known(&self, request: Request) -> Result<Known, Unknown> {
        let (mut parts, body) = request.into_parts();
        strip_identity_headers(&mut parts.headers);
        let peer = parts.extensions.get::<Peer>();
        let principal = self
            .identify(&parts.headers, parts.uri.path(), peer)
            .ok_or(Unknown::Caller)?;
        let body = match principal.signature() {
            None => body,
            Some(signature) => {
                let request = once::request(Surface::Http, &parts.method, &parts.uri);
                if parts.method == Method::POST {
                    let (callers, signature) = (Arc::clone(&self.parts.callers), signature.clone());
                    Body::new(Once::new(callers, signature, request, body))
                } else {
                    // No handler reads a body of this method.
                    self.parts
                        .callers
                        .bind(signature, &request.finalize().into())
                        .map_err(Unknown::Signature)?;
                    body
                }
            }
        };
        parts.headers.remove(header::AUTHORIZATION);
        Ok(Known {
            principal,
            headers: parts.headers,
            body,
        })
    }
}

/// The digest of a name.
fn hash_of(name: Option<&str>) -> Option<Digest> {
    name.map(|name| Digest::of(name.as_bytes()))
}

/// The first bytes of a digest, to distinguish values.
fn short(digest: &Digest) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.0[..8]);
    u64::from_be_bytes(bytes)
}

/// Replaces repeated slashes by one, since one published client writes two.
pub fn normal_path(request: &mut Request) {
    let path = request.uri().path();
    if !path.contains("//") {
        return;
    }
    let mut normal = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !normal.ends_with('/') {
            normal.push(c);
        }
    }
    if let Some(query) = request.uri().query() {
        normal.push('?');
        normal.push_str(query);
    }
    let mut parts = request.uri().clone().into_parts();
    if let Ok(path) = normal.parse() {
        parts.path_and_query = Some(path);
        if let Ok(uri) = axum::http::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

async fn wrong_method(State(front): State<Front>, request: Request) -> Response {
    front.admit(request, receipts::wrong_method)
}

async fn nothing(State(front): State<Front>, request: Request) -> Response {
    front.admit(request, || receipts::not_found("no such path"))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_whole_and_in_time_or_not_at_all() {
        let pieces = |pieces: Vec<Result<&'static str, std::io::Error>>| tokio_stream::iter(pieces);
        let whole = Body::from_stream(pieces(vec![Ok("ab"), Ok("cd")]));
        assert!(read(whole, 4).await.is_ok_and(|bytes| bytes == "abcd"));
        let long = Body::from_stream(pieces(vec![Ok("ab"), Ok("cde")]));
        assert!(matches!(read(long, 4).await, Err(NoBody::TooLarge)));
        let gone = Err(std::io::ErrorKind::ConnectionReset.into());
        let broken = Body::from_stream(pieces(vec![Ok("ab"), gone]));
        assert!(matches!(read(broken, 4).await, Err(NoBody::Broken)));
        let silent = pieces(vec![Ok("ab")]).chain(tokio_stream::pending());
        let slow = Body::from_stream(silent);
        assert!(matches!(read(slow, 4).await, Err(NoBody::Slow)));
    }

    #[test]
    fn several_slashes_are_one() {
        for (sent, normal) in [
            ("/v1/a", "/v1/a"),
            ("//v1//a", "/v1/a"),
            ("http://h//v1///a/?x=//y", "http://h/v1/a/?x=//y"),
        ] {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = sent.parse().expect("a URI");
            normal_path(&mut request);
            assert_eq!(request.uri().to_string(), normal);
        }
    }
}
