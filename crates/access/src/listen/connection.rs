//! A connection that is served: plain or TLS, and who is at its other end.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

use super::open::{Held, Shown, network};
use crate::Tls;

/// An accepted connection, its handshake done. It counts against the limit until it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer: Peer,
    /// Until a caller is known.
    patience: Option<Patience>,
    _held: Held,
}

/// Who is at the other end. Cheap to clone, for the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer {
    address: SocketAddr,
    /// A [`Shown`].
    shown: Arc<AtomicU8>,
    chain: Option<Arc<[CertificateDer<'static>]>>,
    /// Of the listener; none on a plain connection.
    tls: Option<Arc<Tls>>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How long a connection is borne that shows little of itself.
#[derive(Debug)]
pub(super) struct Patience {
    give_way: oneshot::Receiver<()>,
    /// When its first request must be there.
    first_request: Pin<Box<Sleep>>,
    /// Why it is over.
    over: Option<(io::ErrorKind, &'static str)>,
}

impl Patience {
    pub(super) fn new(give_way: oneshot::Receiver<()>, first_request: Duration) -> Self {
        Self {
            give_way,
            first_request: Box::pin(sleep(first_request)),
            over: None,
        }
    }

    /// Waits until the connection is to give way.
    pub(super) async fn gives_way(&mut self) {
        if (&mut self.give_way).await.is_err() {
            // Nobody asks it to.
            std::future::pending::<()>().await;
        }
    }

    /// Whether it has ended for a connection that has shown so much.
    fn poll_ended(&mut self, shown: u8, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.over.is_none() {
            self.over = if Pin::new(&mut self.give_way).poll(cx).is_ready() {
                Some((
                    io::ErrorKind::ConnectionAborted,
                    "it gave way to another connection",
                ))
            } else if shown == Shown::Nothing as u8
                && self.first_request.as_mut().poll(cx).is_ready()
            {
                Some((io::ErrorKind::TimedOut, "its first request did not come"))
            } else {
                None
            };
        }
        match self.over {
            Some((kind, why)) => Poll::Ready(io::Error::new(kind, why)),
            None => Poll::Pending,
        }
    }
}

impl Connection {
    pub(super) fn plain(
        tcp: TcpStream,
        address: SocketAddr,
        held: Held,
        patience: Patience,
    ) -> Self {
        Self {
            stream: Stream::Plain(tcp),
            peer: Peer {
                address,
                shown: held.shown(),
                chain: None,
                tls: None,
            },
            patience: Some(patience),
            _held: held,
        }
    }

    pub(super) fn tls(
        stream: TlsStream<TcpStream>,
        chain: Option<Arc<[CertificateDer<'static>]>>,
        tls: Arc<Tls>,
        address: SocketAddr,
        held: Held,
        patience: Patience,
    ) -> Self {
        Self {
            stream: Stream::Tls(Box::new(stream)),
            peer: Peer {
                address,
                shown: held.shown(),
                chain,
                tls: Some(tls),
            },
            patience: Some(patience),
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

    /// The address that it counts by: of IPv6 its network of 64 bits.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        network(self.address.ip())
    }

    /// Tells the listener that a request is there: the connection is borne, and gives way to others
    /// as long as no caller of it is known.
    pub fn asks(&self) {
        self.show(Shown::Request);
    }

    /// Tells the listener that a caller is known: the connection does not give way any more.
    pub fn is_known(&self) {
        self.show(Shown::Caller);
    }

    fn show(&self, shown: Shown) {
        // Looked at first: connections that are known are written to at each call otherwise.
        if self.shown.load(Ordering::Relaxed) < shown as u8 {
            self.shown.fetch_max(shown as u8, Ordering::Relaxed);
        }
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

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(patience) = &mut this.patience {
            match this.peer.shown.load(Ordering::Relaxed) {
                shown if shown == Shown::Caller as u8 => this.patience = None,
                shown => {
                    if let Poll::Ready(ended) = patience.poll_ended(shown, cx) {
                        return Poll::Ready(Err(ended));
                    }
                }
            }
        }
        Pin::new(this).stream().poll_read(cx, buf)
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
