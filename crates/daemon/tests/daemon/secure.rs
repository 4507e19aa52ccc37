//! A daemon that asks who calls, and clients that say so: certificates, and plain HTTP by hand.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use evidenceos_daemon::{Running, config::Settings};
use evidenceos_proto::{self as wire, evidence_os_client::EvidenceOsClient};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::{
    harness::{Client, configured},
    pki::{self, Ca, Leaf, write_file},
};

/// A directory with a daemon's certificates, policy and data.
pub struct Home {
    directory: TempDir,
    /// Who has signed the server's certificate, and signs those of clients.
    pub ca: Ca,
}

impl Home {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // Keys may be there before a start: beside this one they begin a log.
        fs::create_dir(directory.path().join("data.anchor")).expect("a new name");
        let ca = Ca::new("the lab");
        pki::write(directory.path(), &ca.issue(&pki::server()), &ca);
        Self { directory, ca }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Every port on a free one of loopback; no caller is authenticated. The gate has time to record on the
    /// slowest machine: a test that is not about late decisions must not depend on the clock.
    pub fn plain(&self) -> Settings {
        let free = || Some("127.0.0.1:0".to_owned());
        Settings {
            listen: free(),
            preflight_listen: free(),
            metrics_listen: free(),
            data_dir: Some(self.path().join("data")),
            generate_key: Some(true),
            preflight_timeout_ms: Some(120_000),
            ..Settings::default()
        }
    }

    /// The same on an address where nobody else listens: a port of it that was closed stays closed,
    /// while one of 127.0.0.1 may be another test's by the next look, or answer itself.
    pub fn plain_and_alone(&self) -> Settings {
        static TAKEN: AtomicU8 = AtomicU8::new(0);
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        let free = || Some(format!("127.0.1.{number}:0"));
        Settings {
            listen: free(),
            preflight_listen: free(),
            ..self.plain()
        }
    }

    /// TLS that asks for client certificates, and may require them.
    pub fn tls(&self, require_client_cert: bool) -> Settings {
        Settings {
            tls_cert: Some(self.path().join("server.crt")),
            tls_key: Some(self.path().join("server.key")),
            mtls_client_ca: Some(self.path().join("ca.crt")),
            require_client_cert: Some(require_client_cert),
            ..self.plain()
        }
    }

    /// A file next to the certificates.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        write_file(&path, content, 0o600);
        path
    }

    pub fn client(&self, uri: &'static str) -> Leaf {
        self.ca.issue(&pki::client(uri))
    }

    pub async fn start(&self, settings: &Settings) -> Running {
        let config = configured(settings);
        evidenceos_daemon::start(config).await.expect("starts")
    }

    /// A client with a certificate, or with none, who trusts the server.
    pub async fn connect(&self, running: &Running, leaf: Option<&Leaf>) -> Client {
        let address = running.grpc_address();
        let channel = channel(address, &self.ca, leaf).await;
        Client::over(EvidenceOsClient::new(channel.expect("shakes hands")))
    }

    /// A client without TLS and without a name.
    pub async fn connect_plain(&self, running: &Running) -> Client {
        Client::connect(&running.grpc_address().to_string(), None).await
    }

    /// What the server says about itself and about the caller; why not, where it does not.
    pub async fn info(
        &self,
        running: &Running,
        leaf: Option<&Leaf>,
    ) -> Result<wire::GetServerInfoResponse, String> {
        info_at(running.grpc_address(), &self.ca, leaf).await
    }
}

/// As [`Home::info`], trusting whom one likes.
pub async fn info_at(
    address: SocketAddr,
    authority: &Ca,
    leaf: Option<&Leaf>,
) -> Result<wire::GetServerInfoResponse, String> {
    let channel = channel(address, authority, leaf)
        .await
        .map_err(|error| format!("{error:?}"))?;
    let reply = EvidenceOsClient::new(channel)
        .get_server_info(wire::GetServerInfoRequest {})
        .await;
    Ok(reply.map_err(|status| format!("{status:?}"))?.into_inner())
}

fn client_config(authority: &Ca, leaf: Option<&Leaf>, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der.clone()).expect("a CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match leaf {
        Some(leaf) => builder
            .with_client_auth_cert(leaf.chain(), leaf.key())
            .expect("a pair"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

/// A connection under TLS, for bytes by hand.
pub async fn open_tls(
    address: SocketAddr,
    authority: &Ca,
    leaf: Option<&Leaf>,
    alpn: &[u8],
) -> io::Result<TlsStream<TcpStream>> {
    shake_hands(address, client_config(authority, leaf, alpn)).await
}

async fn shake_hands(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = "localhost".try_into().expect("a name");
    TlsConnector::from(config).connect(name, tcp).await
}

/// A gRPC connection under TLS.
async fn channel(
    address: SocketAddr,
    authority: &Ca,
    leaf: Option<&Leaf>,
) -> Result<Channel, tonic::transport::Error> {
    let config = client_config(authority, leaf, b"h2");
    let connect = tower::service_fn(move |_| {
        let config = Arc::clone(&config);
        async move { shake_hands(address, config).await.map(TokioIo::new) }
    });
    // The connector makes the TLS of it.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
}

/// An HTTP response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// A GET without TLS.
pub async fn get(address: SocketAddr, path: &str, headers: &str) -> Answer {
    let stream = TcpStream::connect(address).await.expect("listens");
    get_over(stream, path, headers).await.expect("an answer")
}

/// A GET under TLS.
pub async fn get_tls(
    address: SocketAddr,
    authority: &Ca,
    leaf: Option<&Leaf>,
    path: &str,
    headers: &str,
) -> io::Result<Answer> {
    let stream = open_tls(address, authority, leaf, b"http/1.1").await?;
    get_over(stream, path, headers).await
}

/// A POST without TLS.
pub async fn post(address: SocketAddr, path: &str, headers: &str, body: &[u8]) -> Answer {
    let stream = TcpStream::connect(address).await.expect("listens");
    let length = format!("content-length: {}\r\n{headers}", body.len());
    exchange(stream, "POST", path, &length, body)
        .await
        .expect("an answer")
}

async fn get_over(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    headers: &str,
) -> io::Result<Answer> {
    exchange(stream, "GET", path, headers, b"").await
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<Answer> {
    let lines = "host: localhost\r\nconnection: close\r\n";
    let request = format!("{method} {path} HTTP/1.1\r\n{lines}{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    // A server may refuse a body before it has come to its end.
    let _ = stream.write_all(body).await;
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes).await
        && bytes.is_empty()
    {
        return Err(error);
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other(format!("no HTTP: {text:?}")))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok(Answer {
        status: status.ok_or_else(|| io::Error::other(format!("no status: {head:?}")))?,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}
