//! A listener that tells each client who it is, and clients for it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use evidenceos_access::{
    ClientCertificates, Connections, Counts, Limits, PeerCertificate, Stats, Tls, incoming,
};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs::default_provider,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::StreamExt as _;
use tracing_subscriber::fmt::MakeWriter;

use crate::pki::{Ca, Leaf};

/// Nothing here takes as long, unless it fails.
const PATIENCE: Duration = Duration::from_secs(30);

pub const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
pub const ONLY_TLS12: &[&SupportedProtocolVersion] = &[&TLS12];
pub const ONLY_TLS13: &[&SupportedProtocolVersion] = &[&TLS13];

/// A listener at work. It ends with the value, or with [`Server::stop`].
pub struct Server {
    pub address: SocketAddr,
    pub stats: Arc<Stats>,
    pub connections: Connections,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<()>>,
}

impl Server {
    pub async fn start(tls: Option<Arc<Tls>>, limits: Limits) -> Self {
        // On an address of its own, so that no other test's server has its port once it is closed.
        static TAKEN: AtomicU8 = AtomicU8::new(0);
        let own = [127, 0, 1, TAKEN.fetch_add(1, Ordering::Relaxed)];
        let listener = TcpListener::bind((Ipv4Addr::from(own), 0));
        let listener = listener.await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stats = Arc::new(Stats::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let stop_signal = async {
            let _ = stopped.await;
        };
        let mut incoming = incoming(listener, tls, limits, Arc::clone(&stats), stop_signal);
        let connections = incoming.connections();
        tokio::spawn(async move {
            while let Some(connection) = incoming.next().await {
                let connection = connection.expect("never an error");
                tokio::spawn(serve(connection));
            }
            let _ = end.send(());
        });
        Self {
            address,
            stats,
            connections,
            stop: Some(stop),
            ended: Some(ended),
        }
    }

    pub fn counts(&self) -> Counts {
        self.stats.counts()
    }

    /// Waits until the counters are as they should be.
    pub async fn counts_until(&self, wanted: impl Fn(Counts) -> bool) -> Counts {
        let reached = async {
            while !wanted(self.counts()) {
                tokio::task::yield_now().await;
            }
            self.counts()
        };
        timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("not reached: {:?}", self.counts()))
    }

    /// Stops accepting, and waits for the end of the stream.
    pub async fn stop(&mut self) {
        drop(self.stop.take());
        let ended = self.ended.take().expect("stopped once");
        timeout(PATIENCE, ended)
            .await
            .expect("in time")
            .expect("ended");
    }
}

/// Who the client is, and then back what it says; by that it is known, unless it says `nobody`.
async fn serve(connection: evidenceos_access::Connection) {
    let name = match connection.peer().certificate() {
        Some(der) => PeerCertificate::read(der).expect("verified").name,
        None => "nobody".to_owned(),
    };
    let peer = connection.peer().clone();
    let (read, mut write) = tokio::io::split(connection);
    let mut lines = BufReader::new(read).lines();
    if write
        .write_all(format!("{name}\n").as_bytes())
        .await
        .is_err()
    {
        return;
    }
    while let Ok(Some(line)) = lines.next_line().await {
        if line == "nobody" {
            peer.asks();
        } else {
            peer.is_known();
        }
        if write
            .write_all(format!("{line}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
}

/// The TLS of a directory's files.
pub fn tls(directory: &std::path::Path, mode: ClientCertificates) -> Arc<Tls> {
    tls_without_eku(directory, mode, false)
}

pub fn tls_without_eku(
    directory: &std::path::Path,
    mode: ClientCertificates,
    allow_without_eku: bool,
) -> Arc<Tls> {
    let files = crate::pki::files(directory, mode != ClientCertificates::None);
    Tls::load(files, mode, &[b"h2"], allow_without_eku).expect("files that fit")
}

/// A client, which remembers its sessions.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

/// A conversation that has begun.
pub struct Talk<S> {
    stream: BufReader<S>,
    /// What the server said first.
    pub name: String,
}

/// What a client trusts and shows.
pub fn config(
    server_ca: &Ca,
    certificate: Option<&Leaf>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server_ca.der.clone()).expect("a CA");
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some(leaf) => builder
            .with_client_auth_cert(leaf.chain(), leaf.key())
            .expect("a pair"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

impl Client {
    pub fn new(
        server_ca: &Ca,
        certificate: Option<&Leaf>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        Self(config(server_ca, certificate, versions))
    }

    /// Connects, and reads who the server says we are. A refusal may show in either.
    pub async fn talk(&self, address: SocketAddr) -> io::Result<Talk<TlsStream<TcpStream>>> {
        let attempt = async {
            let tcp = TcpStream::connect(address).await?;
            let name = "localhost".try_into().expect("a name");
            let stream = TlsConnector::from(Arc::clone(&self.0))
                .connect(name, tcp)
                .await?;
            Talk::begin(stream).await
        };
        timeout(PATIENCE, attempt).await.expect("an answer in time")
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Talk<S> {
    pub async fn begin(stream: S) -> io::Result<Self> {
        let mut talk = Self {
            stream: BufReader::new(stream),
            name: String::new(),
        };
        talk.name = talk.line().await?;
        Ok(talk)
    }

    pub async fn echo(&mut self, word: &str) -> io::Result<String> {
        self.stream
            .write_all(format!("{word}\n").as_bytes())
            .await?;
        self.line().await
    }

    /// Whether the server closes the connection, while nothing is sent to it.
    pub async fn ends(&mut self) -> bool {
        let ended = timeout(PATIENCE, self.line()).await;
        ended.expect("in time").is_err()
    }

    /// Sends words and reads none of the answers, until sending fails.
    pub async fn never_reads(mut self) {
        let word = [b'a'; 65_536];
        while self.stream.write_all(&word).await.is_ok()
            && self.stream.write_all(b"\n").await.is_ok()
        {}
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl Talk<TlsStream<TcpStream>> {
    pub fn resumed(&self) -> bool {
        self.stream.get_ref().get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub fn version(&self) -> rustls::ProtocolVersion {
        let (_, session) = self.stream.get_ref().get_ref();
        session.protocol_version().expect("a version")
    }
}

/// What is logged by the thread that holds it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        (log, guard)
    }

    pub fn text(&self) -> String {
        let bytes = self.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("not poisoned")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}
