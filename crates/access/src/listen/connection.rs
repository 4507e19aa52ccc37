//! A connection that is served: plain or TLS, and who is at its other end.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};
use tokio_rustls::server::TlsStream;

use super::stats::Stats;
use crate::Tls;

/// An accepted connection, its handshake done. It counts against the limit until it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer: Peer,
    _held: Held,
}

/// Who is at the other end. Cheap to clone, for the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer {
    address: SocketAddr,
    chain: Option<Arc<[CertificateDer<'static>]>>,
    /// Of the listener; none on a plain connection.
    tls: Option<Arc<Tls>>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The place of a connection among those that are open.
#[derive(Debug)]
pub(super) struct Held {
    _permit: OwnedSemaphorePermit,
    stats: Arc<Stats>,
}

impl Connection {
    pub(super) fn plain(tcp: TcpStream, address: SocketAddr, held: Held) -> Self {
        Self {
            stream: Stream::Plain(tcp),
            peer: Peer {
                address,
                chain: None,
                tls: None,
            },
            _held: held,
        }
    }

    pub(super) fn tls(
        stream: TlsStream<TcpStream>,
        chain: Option<Arc<[CertificateDer<'static>]>>,
        tls: Arc<Tls>,
        address: SocketAddr,
        held: Held,
    ) -> Self {
        Self {
            stream: Stream::Tls(Box::new(stream)),
            peer: Peer {
                address,
                chain,
                tls: Some(tls),
            },
            _held: held,
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The protocol that client and server agreed on, such as `h2`; RFC 7301.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// The stream beneath, whichever it is.
    fn stream(self: Pin<&mut Self>) -> Pin<&mut dyn Duplex> {
        let stream: &mut dyn Duplex = match &mut self.get_mut().stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls,
        };
        Pin::new(stream)
    }
}

/// What plain and TLS streams have in common.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Peer {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its verified certificates, the leaf first; `None` where it showed none.
    #[must_use]
    pub fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.chain.as_deref()
    }

    /// DER of its verified leaf certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&[u8]> {
        self.certificates()?.first().map(AsRef::as_ref)
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether one of its certificates is revoked by the lists that serve now.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        match (&self.tls, &self.chain) {
            (Some(tls), Some(chain)) => tls.is_revoked(chain),
            _ => false,
        }
    }
}

impl Held {
    pub fn new(permit: OwnedSemaphorePermit, stats: Arc<Stats>) -> Self {
        stats.opened();
        Self {
            _permit: permit,
            stats,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stats.closed();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
