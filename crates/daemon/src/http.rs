//! The HTTP listeners: health and version for probes, the gate in front of everything else;
//! metrics.
//!
//! Health routes need no authentication and reveal no secret. Every other path needs an
//! authenticated caller, also a path that does not exist: a stranger learns nothing about which
//! paths there are.

mod host;
mod unread;

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use evidenceos_access::{Connection, Incoming};
use evidenceos_gate::preflight::{self, Front};
use evidenceos_telemetry::{Registry, classic, trace};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::StreamExt as _;
use tower::ServiceExt as _;
use tracing::Instrument as _;

use crate::assemble::health::{Condition, Health};

/// A client that has not sent its headers within this time is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The caller's name for its request; the answer carries it too.
const REQUEST_ID: header::HeaderName = header::HeaderName::from_static("x-request-id");

/// The routes of the HTTP port.
pub fn routes(health: Arc<Health>, front: Front) -> Router {
    Router::new()
        .route("/livez", get(alive))
        .route("/health", get(alive))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .with_state((health, front.clone()))
        .merge(preflight::routes(front))
}

/// The routes of the metrics port.
pub fn metrics_routes(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .with_state((registry, Arc::default()))
}

/// Held while metrics are read: scrapes take at most one of the store's few connections.
type Turn = Arc<tokio::sync::Mutex<()>>;

async fn alive() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok" }))
}

async fn ready(
    State((health, front)): State<(Arc<Health>, Front)>,
    RawQuery(query): RawQuery,
) -> Response {
    let condition = health.condition();
    let status = if condition == Condition::Serving {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut body = json!({ "status": condition });
    let verbose = query.is_some_and(|query| query.split('&').any(|part| part == "verbose"));
    if verbose && let Some(details) = front.details() {
        body["details"] = details;
    }
    (status, Json(body)).into_response()
}

async fn version() -> Json<serde_json::Value> {
    Json(json!({ "name": "evidenceos-daemon", "version": env!("CARGO_PKG_VERSION") }))
}

/// Shows metrics in the requested format: OpenMetrics, or the older one of Prometheus.
async fn show_metrics(
    State((registry, turn)): State<(Arc<Registry>, Turn)>,
    headers: HeaderMap,
) -> Response {
    let _turn = turn.lock().await;
    // Some of it is read from files.
    let shown = tokio::task::spawn_blocking(move || registry.show())
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let accepted = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let (kind, shown) = if accepted.contains("application/openmetrics-text") {
        (
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            shown,
        )
    } else {
        (
            "text/plain; version=0.0.4; charset=utf-8",
            classic::from_openmetrics(&shown),
        )
    };
    let kind = HeaderValue::from_static(kind);
    ([(header::CONTENT_TYPE, kind)], shown).into_response()
}

/// Serves connections until it is told to stop. Then open connections finish their calls, as each
/// does at the end of its age.
pub fn serve(
    mut connections: Incoming,
    routes: Router,
    mut stopped: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    // Each connection has a sender and sends nothing: the channel closes once all connections have
    // ended.
    let (open, mut all_ended) = mpsc::channel::<Infallible>(1);
    tokio::spawn(async move {
        loop {
            let connection = tokio::select! {
                connection = connections.next() => connection,
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            match connection {
                Some(Ok(connection)) => {
                    let (peer, open) = (connection.peer().clone(), open.clone());
                    let service = service(routes.clone(), &connection);
                    let serving = builder.serve_connection(TokioIo::new(connection), service);
                    let serving = serving.into_owned();
                    tokio::spawn(async move {
                        let _open = open;
                        let mut serving = pin!(serving);
                        tokio::select! {
                            _ = serving.as_mut() => return,
                            () = peer.retires() => serving.as_mut().graceful_shutdown(),
                        }
                        // How a client ends its connection does not matter.
                        drop(serving.await);
                    });
                }
                Some(Err(error)) => tracing::debug!(%error, "a connection failed"),
                None => break,
            }
        }
        // This task's own sender would keep the channel open forever.
        drop(open);
        all_ended.recv().await;
    })
}

/// The routes for one connection: each request carries its peer.
fn service(
    routes: Router,
    connection: &Connection,
) -> impl hyper::service::Service<
    hyper::Request<hyper::body::Incoming>,
    Response = Response,
    Error = Infallible,
    Future: Send,
> + Clone
+ use<> {
    let peer = connection.peer().clone();
    let service = tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let names_its_host = host::is_named(&request);
        let (mut request, unread) = unread::watch(request);
        peer.asks();
        request.extensions_mut().insert(peer.clone());
        preflight::normal_path(&mut request);
        let id = request.headers().get(REQUEST_ID).cloned();
        let span = tracing::debug_span!(
            target: trace::TARGET,
            "http",
            otel.name = %format_args!("{} {}", request.method(), request.uri().path()),
            otel.kind = "server",
            http.response.status_code = tracing::field::Empty,
            request_id = id.as_ref().and_then(|id| id.to_str().ok()),
        );
        trace::follow(&span, request.headers());
        let answered = names_its_host.then(|| routes.clone().oneshot(request));
        let answered = answered.map(|answered| answered.instrument(span.clone()));
        async move {
            let mut response = match answered {
                Some(answered) => answered.await?,
                None => host::refusal(),
            };
            unread.read().await;
            span.record("http.response.status_code", response.status().as_u16());
            if let Some(id) = id {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            Ok(response)
        }
    });
    TowerToHyperService::new(service)
}
