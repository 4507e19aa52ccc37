//! The listeners: gRPC, HTTP and metrics, each with or without TLS.
//!
//! Connections, handshakes and their limits are the business of `evidenceos-access`. gRPC may
//! require a client certificate in the handshake. On HTTP each route decides, so that a probe
//! without a certificate can reach the health routes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use evidenceos_access::{
    Callers, ClientCertificates, Connections, Incoming, Limits, Stats, Tls, TlsError, WATCH_EVERY,
    incoming,
};
use evidenceos_gate::preflight::Front;
use evidenceos_proto::{DESCRIPTORS, evidence_os_server::EvidenceOsServer};
use evidenceos_telemetry::Registry;
use tokio::{net::TcpSocket, sync::watch, task::JoinHandle};
use tokio_stream::StreamExt as _;

use super::{StartError, health::Health};
use crate::{
    config::{Listeners as ListenersConfig, TlsConfig},
    grpc::{CallersLayer, CountLayer, GrpcConnection, Service},
    http,
    metrics::Metrics,
    services::Services,
};

/// The largest message. A module of 5 MiB fits, so that the client gets our error for it and not
/// the transport's.
const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;
/// Calls under way on one connection.
const MAX_STREAMS: u32 = 1_024;

/// A bound port: no other process can take it, and no connection gets through before it listens.
struct Port {
    socket: parking_lot::Mutex<Option<TcpSocket>>,
    address: SocketAddr,
    flag: &'static str,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    stats: Arc<Stats>,
}

/// The bound ports, before anything is served on them.
pub struct Listeners {
    grpc: Port,
    http: Option<Port>,
    metrics: Option<Port>,
}

impl Port {
    fn bind(
        address: SocketAddr,
        flag: &'static str,
        tls: Option<Arc<Tls>>,
        limits: Limits,
        metrics: &Metrics,
        name: &'static str,
    ) -> Result<Self, StartError> {
        let (socket, address) = bind(address, flag)?;
        let stats = Arc::new(Stats::default());
        metrics.listens(name, Arc::clone(&stats), tls.clone());
        Ok(Self {
            socket: parking_lot::Mutex::new(Some(socket)),
            address,
            flag,
            tls,
            limits,
            stats,
        })
    }

    /// Starts to listen.
    fn connections(&self, stopped: watch::Receiver<bool>) -> Result<Incoming, StartError> {
        let socket = self
            .socket
            .lock()
            .take()
            .unwrap_or_else(|| unreachable!("a port is served once"));
        let listener = socket
            .listen(BACKLOG)
            .map_err(|source| StartError::Listen {
                address: self.address,
                flag: self.flag,
                source,
            })?;
        if let Some(tls) = &self.tls {
            tls.watch(WATCH_EVERY, until(stopped.clone()));
        }
        Ok(incoming(
            listener,
            self.tls.clone(),
            self.limits,
            Arc::clone(&self.stats),
            until(stopped),
        ))
    }
}

impl Listeners {
    /// Reads the certificates and binds the ports.
    pub fn bind(config: &ListenersConfig, metrics: &Metrics) -> Result<Self, StartError> {
        let tls = config.tls.as_ref();
        let limits = config.limits();
        let grpc_tls = tls
            .map(|tls| load(tls, tls.clients, &[b"h2"]))
            .transpose()?;
        // A kubelet has no certificate: on HTTP the handshake asks for one, and the routes require
        // it.
        let optional = |clients| match clients {
            ClientCertificates::Required => ClientCertificates::Optional,
            other => other,
        };
        let http_tls = tls
            .filter(|_| config.http_tls)
            .map(|tls| load(tls, optional(tls.clients), &[b"h2", b"http/1.1"]))
            .transpose()?;
        let metrics_tls = tls
            .filter(|_| config.metrics_tls)
            .map(|tls| {
                // Metrics need no authenticated caller, so no certificate is asked for.
                let mut tls = tls.clone();
                tls.files.client_ca = None;
                tls.files.client_crls.clear();
                tls.allow_without_eku = false;
                load(&tls, ClientCertificates::None, &[b"h2", b"http/1.1"])
            })
            .transpose()?;
        Ok(Self {
            grpc: Port::bind(config.grpc, "--listen", grpc_tls, limits, metrics, "grpc")?,
            http: match config.http {
                Some(address) => Some(Port::bind(
                    address,
                    "--preflight-listen",
                    http_tls,
                    limits,
                    metrics,
                    "http",
                )?),
                None => None,
            },
            metrics: match config.metrics {
                Some(address) => Some(Port::bind(
                    address,
                    "--metrics-listen",
                    metrics_tls,
                    limits,
                    metrics,
                    "metrics",
                )?),
                None => None,
            },
        })
    }

    /// Starts to serve HTTP and metrics, from which a supervisor sees that the process lives.
    pub fn serve_http(
        &self,
        health: &Arc<Health>,
        front: &Front,
        registry: &Arc<Registry>,
        stopped: &watch::Receiver<bool>,
    ) -> Result<Servers, StartError> {
        let mut servers = Vec::new();
        let mut serve = |port: &Port, routes| {
            let incoming = port.connections(stopped.clone())?;
            servers.push(Server {
                connections: incoming.connections(),
                task: http::serve(incoming, routes, stopped.clone()),
            });
            Ok::<_, StartError>(())
        };
        if let Some(port) = &self.http {
            serve(port, http::routes(Arc::clone(health), front.clone()))?;
        }
        if let Some(port) = &self.metrics {
            serve(port, http::metrics_routes(Arc::clone(registry)))?;
        }
        Ok(Servers(servers))
    }

    /// Starts to serve gRPC. Connections to its port are refused until then.
    pub async fn serve_grpc(
        &self,
        config: &ListenersConfig,
        services: &Arc<Services>,
        layers: (CountLayer, CallersLayer),
        stopped: &watch::Receiver<bool>,
    ) -> Result<Servers, StartError> {
        let incoming = self.grpc.connections(stopped.clone())?;
        let connections = incoming.connections();
        let task = grpc(config, incoming, services, layers, stopped.clone()).await?;
        Ok(Servers(vec![Server { task, connections }]))
    }

    /// A closure that reads the certificates again. It blocks. If the new files are invalid, it
    /// fails and the old ones stay in use.
    pub fn reloading_tls(&self) -> impl FnOnce() -> Result<(), TlsError> + Send + use<> {
        let ports = [Some(&self.grpc), self.http.as_ref(), self.metrics.as_ref()];
        let all: Vec<Arc<Tls>> = ports
            .into_iter()
            .flatten()
            .filter_map(|port| port.tls.clone())
            .collect();
        // Every port is tried, also after one that failed.
        move || {
            all.iter()
                .map(|tls| tls.reload().map(drop))
                .fold(Ok(()), Result::and)
        }
    }

    /// Has calls under way authorized again whenever the TLS files of gRPC are replaced: the new
    /// files may revoke certificates of open connections.
    pub fn tell_of_exchanges(&self, callers: Arc<Callers>, stopped: watch::Receiver<bool>) {
        let Some(tls) = &self.grpc.tls else {
            return;
        };
        let mut reloads = tls.reloads();
        tokio::spawn(async move {
            let told = async {
                while reloads.changed().await.is_ok() {
                    callers.changed();
                }
            };
            tokio::select! {
                () = told => {}
                () = until(stopped) => {}
            }
        });
    }

    /// The address of gRPC.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc.address
    }

    /// The address of HTTP, if it is served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|port| port.address)
    }

    /// The address of metrics, if they are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|port| port.address)
    }
}

/// The servers that run, one for each port.
pub struct Servers(Vec<Server>);

struct Server {
    task: JoinHandle<()>,
    connections: Connections,
}

impl Servers {
    /// Waits at most `grace` for calls under way, then closes their connections.
    pub async fn end(self, grace: Duration) {
        for Server { task, connections } in self.0 {
            end_within(grace, task).await;
            connections.end();
        }
    }
}

fn load(
    tls: &TlsConfig,
    clients: ClientCertificates,
    alpn: &[&[u8]],
) -> Result<Arc<Tls>, TlsError> {
    Tls::load(tls.files.clone(), clients, alpn, tls.allow_without_eku)
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An ended sender means that the daemon is gone.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn grpc(
    config: &ListenersConfig,
    incoming: Incoming,
    services: &Arc<Services>,
    (counts, callers): (CountLayer, CallersLayer),
    stopped: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, StartError> {
    let service = EvidenceOsServer::new(Service::new(Arc::clone(services)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<EvidenceOsServer<Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Python's grpcio-reflection and older tools ask for v1alpha alone.
    let (reflection, reflection_v1alpha) =
        (reflection().build_v1()?, reflection().build_v1alpha()?);
    let server = tonic::transport::Server::builder()
        // This layer is outside of the gate, so that it also counts the calls that the gate
        // refuses.
        .layer(counts)
        .layer(callers)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .max_connection_age(config.max_connection_age)
        .add_service(service)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_v1alpha);
    let incoming = incoming.map(|connection| connection.map(GrpcConnection));
    let serving = server.serve_with_incoming_shutdown(incoming, async move {
        until(stopped).await;
        drop(reporter);
    });
    Ok(tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "gRPC ended");
        }
    }))
}

/// Waits for a task, and aborts it if it outlasts `grace`.
pub async fn end_within(grace: Duration, task: JoinHandle<()>) {
    let abort = task.abort_handle();
    if tokio::time::timeout(grace, task).await.is_err() {
        abort.abort();
    }
}

/// Binds a port, without listening on it.
fn bind(address: SocketAddr, flag: &'static str) -> Result<(TcpSocket, SocketAddr), StartError> {
    let failed = |source| StartError::Listen {
        address,
        flag,
        source,
    };
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(failed)?;
    // Connections of a process that died still linger on it.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    Ok((socket, bound))
}
