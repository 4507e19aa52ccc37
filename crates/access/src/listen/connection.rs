//! A connection that is served, plain or TLS, and its peer.

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
    sync::{oneshot, watch},
    time::{Instant, Sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;

use super::{
    Chain, Limits,
    open::{End, Held, Shown, network},
};
use crate::Tls;

/// The longest age that is counted: an [`Instant`] has a maximum.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// An accepted connection after its handshake. It counts against the limit until it is dropped.
///
/// If the listener ends it, reading and writing fail from then on. A single task must use all of
/// it: of several, only the last one to use it would be woken.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer: Peer,
    life: Life,
    _held: Held,
}

/// The peer of a connection. Cheap to clone, for the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer(Arc<Known>);

#[derive(Debug)]
struct Known {
    address: SocketAddr,
    /// The connection's [`Shown`], shared with its entry in the listener's list.
    shown: Arc<AtomicU8>,
    chain: Option<Chain>,
    /// The listener's TLS; `None` on a plain connection.
    tls: Option<Arc<Tls>>,
    retires: Instant,
    stopping: watch::Receiver<bool>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection before its handshake.
pub(super) struct Accepted {
    pub address: SocketAddr,
    pub held: Held,
    pub life: Life,
}

/// The times and the signal at which the listener ends a connection, whatever its peer does.
#[derive(Debug)]
pub(super) struct Life {
    told: oneshot::Receiver<End>,
    /// First the deadline of the first request, then the end of the grace.
    deadline: Pin<Box<Sleep>>,
    /// The time at which the connection reaches its age.
    retires: Instant,
    /// The end of the grace after that.
    until: Instant,
    over: Option<End>,
}

impl Life {
    /// The life of a connection that was accepted now.
    pub(super) fn new(told: oneshot::Receiver<End>, limits: &Limits) -> Self {
        let now = Instant::now();
        let retires = now + limits.max_age.min(FOREVER);
        let until = retires + limits.age_grace.min(FOREVER);
        let first_request = now + limits.first_request_timeout.min(FOREVER);
        Self {
            told,
            deadline: Box::pin(sleep_until(first_request.min(until))),
            retires,
            until,
            over: None,
        }
    }

    /// Waits until the connection is told to end.
    pub(super) async fn told(&mut self) -> End {
        // An error means that the listener is gone.
        (&mut self.told).await.unwrap_or(End::Stopped)
    }

    /// Whether a connection that has shown this much is over.
    fn poll_over(&mut self, shown: u8, cx: &mut Context<'_>) -> Poll<End> {
        // A channel that has answered must not be polled again, so the end is kept.
        if self.over.is_none() {
            self.over = match Pin::new(&mut self.told).poll(cx) {
                Poll::Ready(told) => Some(told.unwrap_or(End::Stopped)),
                Poll::Pending => self.past_deadline(shown, cx),
            };
        }
        self.over.map_or(Poll::Pending, Poll::Ready)
    }

    fn past_deadline(&mut self, shown: u8, cx: &mut Context<'_>) -> Option<End> {
        // After a reset the timer is polled once more: only a poll registers this task for the new
        // deadline.
        while self.deadline.as_mut().poll(cx).is_ready() {
            if self.deadline.deadline() >= self.until {
                return Some(End::TooOld);
            }
            if shown == Shown::Nothing as u8 {
                return Some(End::NoRequest);
            }
            self.deadline.as_mut().reset(self.until);
        }
        None
    }
}

impl End {
    fn error(self) -> io::Error {
        let (kind, why) = match self {
            Self::GaveWay => (
                io::ErrorKind::ConnectionAborted,
                "the server closed it to make room for another connection",
            ),
            Self::NoRequest => (io::ErrorKind::TimedOut, "its first request did not come"),
            Self::TooOld => (
                io::ErrorKind::TimedOut,
                "it reached the maximum age of a connection",
            ),
            Self::NotVerified => (
                io::ErrorKind::ConnectionAborted,
                "the current TLS files no longer verify its client's certificate",
            ),
            Self::Stopped => (io::ErrorKind::ConnectionAborted, "the listener has stopped"),
        };
        io::Error::new(kind, why)
    }
}

impl Connection {
    pub(super) fn plain(tcp: TcpStream, accepted: Accepted) -> Self {
        Self::new(Stream::Plain(tcp), None, None, accepted)
    }

    pub(super) fn tls(
        stream: TlsStream<TcpStream>,
        chain: Option<Chain>,
        tls: Arc<Tls>,
        accepted: Accepted,
    ) -> Self {
        Self::new(Stream::Tls(Box::new(stream)), chain, Some(tls), accepted)
    }

    fn new(
        stream: Stream,
        chain: Option<Chain>,
        tls: Option<Arc<Tls>>,
        accepted: Accepted,
    ) -> Self {
        let Accepted {
            address,
            held,
            life,
        } = accepted;
        let peer = Peer(Arc::new(Known {
            address,
            shown: held.shown(),
            chain,
            tls,
            retires: life.retires,
            stopping: held.stopping(),
        }));
        Self {
            stream,
            peer,
            life,
            _held: held,
        }
    }

    /// The peer of the connection.
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

    /// The stream beneath, plain or TLS, unless the connection is over. The end also wakes a task
    /// that waits for the stream: a peer that reads nothing, or sends nothing, cannot delay it.
    fn stream(self: Pin<&mut Self>, cx: &mut Context<'_>) -> io::Result<Pin<&mut dyn Duplex>> {
        let this = self.get_mut();
        let shown = this.peer.0.shown.load(Ordering::Relaxed);
        if let Poll::Ready(end) = this.life.poll_over(shown, cx) {
            this.ends(end);
            return Err(end.error());
        }
        let stream: &mut dyn Duplex = match &mut this.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls,
        };
        Ok(Pin::new(stream))
    }

    fn ends(&self, end: End) {
        if matches!(end, End::TooOld | End::NotVerified) {
            let tcp = match &self.stream {
                Stream::Plain(tcp) => tcp,
                Stream::Tls(tls) => tls.get_ref().0,
            };
            // Otherwise the system would go on sending to a peer that reads slowly. It fails if the
            // peer has gone.
            let _ = tcp.set_zero_linger();
        }
    }
}

/// What plain and TLS streams have in common.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Peer {
    /// The peer's address, as the socket has it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The address by which the peer counts: for IPv6 its 64-bit network.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        network(self.0.address.ip())
    }

    /// Tells the listener that a request has come: the connection may stay open, and gives way to
    /// others while none of its callers is authenticated.
    pub fn asks(&self) {
        self.show(Shown::Request);
    }

    /// Tells the listener that a caller is authenticated: the connection no longer gives way.
    pub fn is_known(&self) {
        self.show(Shown::Caller);
    }

    fn show(&self, shown: Shown) {
        // Checked first: otherwise each call would write to the shared state of a connection that
        // is known already.
        if self.0.shown.load(Ordering::Relaxed) < shown as u8 {
            self.0.shown.fetch_max(shown as u8, Ordering::Relaxed);
        }
    }

    /// Waits until the connection is to end soon: it has reached its age, or its listener has
    /// stopped. Long calls then end in a way that the client understands.
    pub async fn retires(&self) {
        let mut stopping = self.0.stopping.clone();
        tokio::select! {
            () = sleep_until(self.0.retires) => {}
            // An error means that the listener is gone.
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    /// The peer's verified certificates, the leaf first; `None` if it presented none.
    #[must_use]
    pub fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.0.chain.as_deref()
    }

    /// DER of the peer's verified leaf certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&[u8]> {
        self.certificates()?.first().map(AsRef::as_ref)
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.tls.is_some()
    }

    /// Whether the lists in force revoke one of the peer's certificates.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        match (&self.0.tls, &self.0.chain) {
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
        self.stream(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream(cx)?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream(cx)?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(cx)?.poll_shutdown(cx)
    }
}
