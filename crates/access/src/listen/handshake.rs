//! One TLS handshake, and how its failure is counted and logged.
//!
//! A peer that leaves before it has sent anything is a port probe: it is counted, not logged. Every
//! other failure is counted, and logged with the peer's address and the reason, about once a
//! second.

use std::{io, sync::Arc, time::Duration};

use rustls::{CertificateError, HandshakeKind, pki_types::UnixTime, server::Acceptor};
use tokio::{net::TcpStream, sync::oneshot, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    Chain,
    connection::{Accepted, Connection},
    open::Held,
    stats::{Stats, Throttle},
};
use crate::Tls;

/// An accepted connection whose handshake is to be made.
pub(super) struct Handshake {
    pub tcp: TcpStream,
    pub accepted: Accepted,
    pub timeout: Duration,
    pub stats: Arc<Stats>,
    pub log: Arc<Throttle>,
}

/// How a handshake failed.
enum Failed {
    /// The stream ended or was reset before a ClientHello.
    ProbeLike,
    /// One of the two sides refused.
    Refused(io::Error),
}

impl Handshake {
    /// A connection to serve, unless the handshake fails, takes too long, or must give way.
    pub async fn run(self, tls: &Arc<Tls>, evicted: oneshot::Receiver<()>) -> Option<Connection> {
        let Self {
            tcp,
            mut accepted,
            timeout: limit,
            stats,
            log,
        } = self;
        let address = accepted.address;
        let refused = |reason: &dyn std::fmt::Display| {
            if let Some(unlogged) = log.may_log() {
                tracing::info!(peer = %address.ip(), %reason, unlogged, "TLS handshake refused");
            }
        };
        let outcome = tokio::select! {
            // A finished handshake is served, even if it is told to give way at the same moment.
            biased;
            outcome = timeout(limit, negotiate(tcp, tls, &accepted.held)) => outcome,
            // The handshake that wanted the place has counted this one.
            _ = evicted => return None,
            _ = accepted.life.told() => return None,
        };
        match outcome {
            Ok(Ok((stream, chain))) => {
                Some(Connection::tls(stream, chain, Arc::clone(tls), accepted))
            }
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
                refused(&"it took too long");
                None
            }
        }
    }
}

/// The reason for the log. The TLS library shows a verifier's own errors as code.
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
    held: &Held,
) -> Result<(TlsStream<TcpStream>, Option<Chain>), Failed> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Failed::ProbeLike,
            _ => Failed::Refused(error),
        })?;
    // This comes late: the files may have been replaced while the peer was silent.
    let serving = tls.serving();
    let stream = hello
        .into_stream(Arc::clone(&serving.config))
        .await
        .map_err(Failed::Refused)?;
    let (_, session) = stream.get_ref();
    let chain: Option<Chain> = session.peer_certificates().map(Into::into);
    if let Some(chain) = &chain {
        // The order matters: a replacement of the files either sees the chain, or is seen here.
        held.shows(Arc::clone(chain));
        let newest = tls.serving();
        // A full handshake under the newest files has just verified the chain. Under older files,
        // or in a resumed session, that was longer ago.
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        if resumed || !Arc::ptr_eq(&serving, &newest) {
            let verified = newest.verify(chain, UnixTime::now());
            verified.map_err(|error| {
                Failed::Refused(io::Error::new(io::ErrorKind::InvalidData, error))
            })?;
        }
    }
    Ok((stream, chain))
}
