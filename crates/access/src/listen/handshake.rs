//! One TLS handshake, and who is told how it failed.
//!
//! A peer that leaves before it has said anything is a port probe: counted, not logged. Everything
//! else is counted and logged with the peer's address and the reason, about once a second.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    CertificateError, HandshakeKind,
    pki_types::{CertificateDer, UnixTime},
    server::Acceptor,
};
use tokio::{net::TcpStream, sync::oneshot, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    connection::{Connection, Patience},
    open::Held,
    stats::{Stats, Throttle},
};
use crate::Tls;

/// An accepted connection whose handshake is to be made.
pub(super) struct Handshake {
    pub tcp: TcpStream,
    pub address: SocketAddr,
    pub held: Held,
    pub patience: Patience,
    pub timeout: Duration,
    pub stats: Arc<Stats>,
    pub log: Arc<Throttle>,
}

/// How a handshake failed.
enum Failed {
    /// Before a ClientHello: end of stream or reset.
    ProbeLike,
    /// By one of the two sides.
    Refused(io::Error),
}

impl Handshake {
    /// A connection to serve, unless the handshake fails, takes too long, or has to give way.
    pub async fn run(self, tls: &Arc<Tls>, evicted: oneshot::Receiver<()>) -> Option<Connection> {
        let Self {
            tcp,
            address,
            held,
            mut patience,
            timeout: limit,
            stats,
            log,
        } = self;
        let refused = |reason: &dyn std::fmt::Display| {
            if let Some(unlogged) = log.may_log() {
                tracing::info!(peer = %address.ip(), %reason, unlogged, "TLS handshake refused");
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = timeout(limit, negotiate(tcp, tls)) => outcome,
            // Counted by who wanted the place.
            _ = evicted => return None,
            () = patience.gives_way() => return None,
        };
        match outcome {
            Ok(Ok((stream, chain))) => Some(Connection::tls(
                stream,
                chain,
                Arc::clone(tls),
                address,
                held,
                patience,
            )),
            Ok(Err(Failed::ProbeLike)) => {
                stats.probe_like();
                None
            }
            Ok(Err(Failed::Refused(error))) => {
                stats.handshake_failure();
                refused(&reason(&error));
                None
            }
            Err(_elapsed) => {
                stats.handshake_timeout();
                refused(&"not finished in time");
                None
            }
        }
    }
}

/// What the log says. The TLS library shows a verifier's own errors as code.
fn reason(error: &io::Error) -> String {
    let cause = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(ours))) => {
            format!("invalid peer certificate: {ours}")
        }
        _ => error.to_string(),
    }
}

/// The stream and the certificates of its peer.
async fn negotiate(
    tcp: TcpStream,
    tls: &Tls,
) -> Result<(TlsStream<TcpStream>, Option<Arc<[CertificateDer<'static>]>>), Failed> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Failed::ProbeLike,
            _ => Failed::Refused(error),
        })?;
    // Only now: the files may have been exchanged while the peer was silent.
    let serving = tls.serving();
    let stream = hello
        .into_stream(Arc::clone(&serving.config))
        .await
        .map_err(Failed::Refused)?;
    let (_, session) = stream.get_ref();
    let chain: Option<Arc<[CertificateDer<'static>]>> = session.peer_certificates().map(Into::into);
    if let (Some(HandshakeKind::Resumed), Some(chain)) = (session.handshake_kind(), &chain) {
        serving
            .verify(chain, UnixTime::now())
            .map_err(|error| Failed::Refused(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    }
    Ok((stream, chain))
}
