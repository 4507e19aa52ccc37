//! The HTTP listeners: health and version for probes, the gate before everything else; metrics.
//!
//! Health routes need no name and say nothing that is secret. Every other path needs a caller who
//! is known, also one that does not exist: who is nobody learns nothing about what there is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use evidenceos_access::{Connection, Incoming, Peer, strip_identity_headers};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle};
use tokio_stream::StreamExt as _;

use crate::{auth::Gate, metrics::Metrics};

/// A client that has not sent its headers by then is sent away.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the daemon serves.
#[derive(Default)]
pub struct Health(AtomicU8);

const STARTING: u8 = 0;
const SERVING: u8 = 1;
const STOPPING: u8 = 2;

impl Health {
    /// Everything that was acknowledged before can be served again.
    pub fn serves(&self) {
        self.0.store(SERVING, Ordering::Relaxed);
    }

    /// No new work is taken.
    pub fn stops(&self) {
        self.0.store(STOPPING, Ordering::Relaxed);
    }

    fn word(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            STARTING => "starting",
            SERVING => "serving",
            _ => "stopping",
        }
    }
}

/// What a caller must show on the HTTP port.
#[derive(Clone)]
pub struct Door {
    /// Tells callers apart.
    pub gate: Arc<Gate>,
    /// Whether a client certificate is needed, which the handshake only asks for: a kubelet has
    /// none.
    pub needs_certificate: bool,
}

/// The routes of the HTTP port.
pub fn routes(health: Arc<Health>, door: Door) -> Router {
    let behind_the_gate = Router::new()
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(door, admit));
    Router::new()
        .route("/livez", get(alive))
        .route("/health", get(alive))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .with_state(health)
        .fallback_service(behind_the_gate)
}

/// The routes of the metrics port.
pub fn metrics_routes(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .with_state(metrics)
}

async fn alive() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok" }))
}

async fn ready(State(health): State<Arc<Health>>) -> Response {
    let word = health.word();
    let status = if word == "serving" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(json!({ "status": word }))).into_response()
}

async fn version() -> Json<serde_json::Value> {
    Json(json!({ "name": "evidenceos-daemon", "version": env!("CARGO_PKG_VERSION") }))
}

async fn not_found() -> Response {
    let body = json!({ "error": "no such path" });
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

async fn show_metrics(State(metrics): State<Arc<Metrics>>) -> Response {
    let kind =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], metrics.show()).into_response()
}

async fn admit(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    strip_identity_headers(request.headers_mut());
    let peer = request.extensions().get::<Peer>();
    if door.needs_certificate && peer.and_then(Peer::certificate).is_none() {
        return unauthorized("a client certificate is required here");
    }
    let identified = door
        .gate
        .identify(request.uri().path(), request.headers(), peer);
    match identified {
        Ok(principal) => {
            request.headers_mut().remove(header::AUTHORIZATION);
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(denied) => unauthorized(&denied.to_string()),
    }
}

fn unauthorized(why: &str) -> Response {
    let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
    let body = Json(json!({ "error": why }));
    (StatusCode::UNAUTHORIZED, challenge, body).into_response()
}

/// Serves connections until it is told to stop; then those that are open end their calls.
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
    let graceful = GracefulShutdown::new();
    tokio::spawn(async move {
        loop {
            let connection = tokio::select! {
                connection = connections.next() => connection,
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            match connection {
                Some(Ok(connection)) => {
                    let service = service(routes.clone(), &connection);
                    let serving = builder.serve_connection(TokioIo::new(connection), service);
                    let serving = graceful.watch(serving.into_owned());
                    // How a client ends its connection is its own affair.
                    tokio::spawn(async move { drop(serving.await) });
                }
                Some(Err(error)) => tracing::debug!(%error, "a connection failed"),
                None => break,
            }
        }
        graceful.shutdown().await;
    })
}

/// The routes for one connection: each request knows who is at the other end.
fn service(routes: Router, connection: &Connection) -> TowerToHyperService<Router> {
    TowerToHyperService::new(routes.layer(Extension(connection.peer().clone())))
}
