//! The gate for agents: HTTP routes that are asked before and after a tool call.
//!
//! - `wire` has the bodies, `parse` reads requests, `risk` knows tools by their names, `judge`
//!   decides, `limits` bounds.
//! - `calls` and `admission` are the way of one request: who calls, how often, what is asked, what is decided,
//!   what is recorded. `receipts` shows a decision with its proof. `openapi` describes it all, with
//!   the shapes of `bodies`.
//!
//! Invariants: a caller is known before anything of the body is looked at; whatever cannot be
//! decided or recorded reads as a stop, but for tools that can do no harm while no policy is in
//! force; a call beyond its rate is always denied; a decision that stops
//! something is in the log before it is answered, or is answered with a status that says that it
//! is not.

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

/// A body that has not come by then does not come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often principals that are quiet are forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// The largest body with a module: 1 MiB of module in base64, and what stands around it.
const MAX_MODULE_BODY: usize = 1_500_000;
/// Calls that policies are asked about at once; more are not decided.
const POLICIES_AT_ONCE: usize = 64;
/// When to ask a daemon again that starts or stops, in seconds.
const SOON_S: u64 = 1;

/// What the gate needs of the daemon.
#[derive(Clone)]
pub struct Parts {
    /// Authenticates the callers of the agents' HTTP surface.
    pub callers: Arc<Callers>,
    /// Where decisions are handed in.
    pub recorder: Arc<Recorder>,
    /// What may veto tool calls; another set after a reload.
    pub policies: Arc<ArcSwap<Policies>>,
    /// The time that decisions are made at.
    pub clock: Arc<Clock>,
    /// Proves entries against the head that is shown.
    pub log: Arc<LogView>,
    /// The size of the newest head that is shown.
    pub released: watch::Sender<u64>,
    /// Connections that read committed rows.
    pub readers: Arc<dyn Rows>,
    /// What the store has done since the start.
    pub done: Arc<Done>,
    /// The last change that `accounts.json` shows.
    pub accounts_shown: watch::Receiver<u64>,
    /// Shows what the gate counts.
    pub registry: Arc<Registry>,
}

/// The gate of a daemon that serves.
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
    /// The gate over a daemon that serves.
    ///
    /// # Errors
    /// Where the rules of probing cannot be applied, which configuration has refused before.
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

    /// Who makes a request.
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
    /// Opens it. The first time counts. Must be called within a runtime.
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
                // It is not held during the pause, for which the end of the daemon would have to
                // wait.
                drop(api);
                tokio::time::sleep(TIDY_EVERY).await;
            }
        });
    }

    /// How far what follows the commits is behind them.
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

    /// Answers who is known; who is nobody learns nothing about what there is.
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

/// Asked before a tool call.
#[utoipa::path(
    post,
    path = "/v1/preflight_tool_call",
    tag = "gate",
    params(("X-Request-Id" = String, Header, description = "1-128 characters of 0x21-0x7e without \":\"; X-EvidenceOS-Request-Id where it is absent")),
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

/// Asked after a tool call.
#[utoipa::path(
    post,
    path = "/v1/postflight_tool_call",
    tag = "gate",
    params(("X-Request-Id" = String, Header, description = "1-128 characters of 0x21-0x7e without \":\"; X-EvidenceOS-Request-Id where it is absent")),
    request_body(content = bodies::PostflightRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The decision", body = OutputVerdict),
        (status = 400, description = "The request is malformed, or its caller is not known; the reason says which", body = OutputVerdict),
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

/// Whether a Wasm module may become a tool: deterministic, bounded, and nothing imported that is
/// not the guest interface.
#[utoipa::path(
    post,
    path = "/v1/aspec_admit",
    tag = "gate",
    request_body(content = bodies::AdmitRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "Whether it is admissible, and why not", body = Admission),
        (status = 400, description = "The request is malformed", body = Admission),
        (status = 401, description = "The caller is not known", body = Admission),
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
    /// Its signature serves another request.
    Misused(Misused),
    TooLarge,
    Slow,
    Broken,
}

/// Reads a body of at most so many bytes.
async fn read(body: Body, max: usize) -> Result<Bytes, NoBody> {
    let whole = Limited::new(body, max).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Err(_elapsed) => Err(NoBody::Slow),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(NoBody::TooLarge),
        Ok(Err(error)) => Err(match once::misused(error.as_ref()) {
            Some(misused) => NoBody::Misused(misused),
            // The connection broke, so nobody sees the answer.
            None => NoBody::Broken,
        }),
    }
}

/// The status of a request whose signature does not serve it.
fn status_of(misused: Misused) -> StatusCode {
    match misused {
        Misused::OtherRequest | Misused::TooLate => StatusCode::UNAUTHORIZED,
        Misused::Full => StatusCode::TOO_MANY_REQUESTS,
    }
}

/// Whether a request says itself that its body is larger.
fn says_too_large(headers: &HeaderMap, max: usize) -> bool {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    length.is_some_and(|length| length > max as u64)
}

/// A request taken apart: what is not its body, and who made it.
struct Known {
    principal: Principal,
    headers: HeaderMap,
    body: Body,
}

/// Why nobody makes a request.
enum Unknown {
    /// No credential of the request holds.
    Caller,
    /// The signature holds, and serves another request.
    Signature(Misused),
}

impl Api {
    /// Who makes a request; nothing of its body is read before. The body of a signed request ends in
    /// an error if its signature serves another.
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
                    // Nobody reads a body here.
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

/// The first bytes of a digest, to tell things apart.
fn short(digest: &Digest) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.0[..8]);
    u64::from_be_bytes(bytes)
}

/// Makes one slash of several, as one published client writes two.
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
