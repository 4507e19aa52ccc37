//! Accepts connections: limits, TLS handshakes, counts and logs.
//!
//! Invariants: no peer waits for another's handshake; a silent peer is dropped, and gives way early
//! if there are many handshakes or connections; a connection counts against the limit until it is
//! dropped or told to end; it ends with its age, and if its client's certificate no longer has a
//! trusted authority, whatever its peer does; no error of one peer, and no lack of file
//! descriptors, ends the listener.

mod connection;
mod handshake;
mod open;
mod stats;

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::sleep,
};
use tokio_stream::Stream;

use self::{
    connection::{Accepted, Life},
    handshake::Handshake,
    open::Open,
    stats::Throttle,
};
pub use self::{
    connection::{Connection, Peer},
    stats::{Counts, Stats},
};
use crate::Tls;

/// The pause after an error of `accept`, such as too many open files.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Connections that wait to be taken from [`Incoming`].
const QUEUE: usize = 64;

/// A client's certificate, and the intermediates that it sent.
type Chain = Arc<[CertificateDer<'static>]>;

/// The limits of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The time from accepting a connection to the end of its TLS handshake.
    pub handshake_timeout: Duration,
    /// Handshakes under way. One more, and the oldest is dropped: an honest handshake takes
    /// milliseconds, so the oldest is the most likely to be silent.
    pub max_handshakes: usize,
    /// The time from accepting a connection to its first request.
    pub first_request_timeout: Duration,
    /// Open connections, including handshakes. One more, and the oldest is closed that has sent no
    /// request, or no request of an authenticated caller; if there is none, the new one.
    pub max_connections: usize,
    /// The same limit for one address; for IPv6, for its 64-bit network.
    pub max_connections_of_one: usize,
    /// The time from accepting a connection to its [`Peer::retires`].
    pub max_age: Duration,
    /// The time from there to its end.
    pub age_grace: Duration,
}

impl Default for Limits {
    /// 10 s, 256 handshakes, 20 s, 4096 connections, 2048 of one address, 1 hour and 30 s.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: 256,
            first_request_timeout: Duration::from_secs(20),
            max_connections: 4_096,
            max_connections_of_one: 2_048,
            max_age: Duration::from_secs(3_600),
            age_grace: Duration::from_secs(30),
        }
    }
}

/// Connections that are ready to be served. The stream never yields an error; servers require one
/// in its type. When it is dropped, the listener closes.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<io::Result<Connection>>,
    open: Arc<Open>,
}

/// All connections of a listener, by which they can be ended.
#[derive(Debug)]
pub struct Connections(Arc<Open>);

impl Connections {
    /// Ends all of them, whatever their peers do.
    pub fn end(&self) {
        self.0.end_all();
    }
}

/// Accepts connections until `stop` resolves or the stream is dropped. Then the listener is closed,
/// and the stream ends with the last handshake. `tls` has the certificates; without it connections
/// are plain.
///
/// Must be called within a runtime.
pub fn incoming(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    stats: Arc<Stats>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Incoming {
    let (ready, waiting) = mpsc::channel(QUEUE);
    let open = Open::new(
        limits.max_connections,
        limits.max_connections_of_one,
        Arc::clone(&stats),
    );
    if let Some(tls) = &tls {
        // A weak reference: the TLS files may outlive the listener, and must not keep its list.
        let open = Arc::downgrade(&open);
        tls.at_exchange(move |serving| {
            let open = open.upgrade()?;
            Some(open.end_unverified(serving))
        });
    }
    let accepting = Accepting {
        tls,
        limits,
        open: Arc::clone(&open),
        slots: Slots::new(limits.max_handshakes.max(1)),
        stats,
        log: Arc::new(Throttle::default()),
        ready,
    };
    tokio::spawn(async move {
        let closed = accepting.ready.clone();
        let open = Arc::clone(&accepting.open);
        tokio::select! {
            () = stop => {}
            () = closed.closed() => {}
            () = accepting.run(listener) => {}
        }
        open.stops();
    });
    Incoming {
        ready: waiting,
        open,
    }
}

impl Incoming {
    /// The accepted connections, including those that were taken from here.
    #[must_use]
    pub fn connections(&self) -> Connections {
        Connections(Arc::clone(&self.open))
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx)
    }
}

/// The loop that accepts.
struct Accepting {
    tls: Option<Arc<Tls>>,
    limits: Limits,
    open: Arc<Open>,
    slots: Slots,
    stats: Arc<Stats>,
    log: Arc<Throttle>,
    ready: mpsc::Sender<io::Result<Connection>>,
}

impl Accepting {
    async fn run(mut self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((tcp, address)) => self.accepted(tcp, address).await,
                Err(error) => {
                    self.stats.accept_error();
                    if let Some(unlogged) = self.log.may_log() {
                        tracing::warn!(%error, unlogged, "cannot accept connections");
                    }
                    sleep(BACK_OFF).await;
                }
            }
        }
    }

    async fn accepted(&mut self, tcp: TcpStream, address: SocketAddr) {
        self.stats.accepted();
        let Some((held, told)) = self.open.hold(address.ip()) else {
            self.stats.over_limit();
            if let Some(unlogged) = self.log.may_log() {
                tracing::warn!(peer = %address.ip(), unlogged, "too many connections; closed one");
            }
            return;
        };
        let accepted = Accepted {
            address,
            held,
            life: Life::new(told, &self.limits),
        };
        // It fails if the peer has gone, which reading finds out as well.
        let _ = tcp.set_nodelay(true);
        let Some(tls) = &self.tls else {
            // If the server is slower than its callers, accepting slows down too.
            let _ = self.ready.send(Ok(Connection::plain(tcp, accepted))).await;
            return;
        };
        let tls = Arc::clone(tls);
        // The place is taken before the task is spawned: otherwise the number of waiting tasks
        // would be unbounded.
        let (slot, evicted) = self.slots.take(&self.stats).await;
        let handshake = Handshake {
            tcp,
            accepted,
            timeout: self.limits.handshake_timeout,
            stats: Arc::clone(&self.stats),
            log: Arc::clone(&self.log),
        };
        let ready = self.ready.clone();
        tokio::spawn(async move {
            let connection = handshake.run(&tls, evicted).await;
            // The place is freed before the connection waits for the server, which may be slow.
            drop(slot);
            if let Some(connection) = connection {
                let _ = ready.send(Ok(connection)).await;
            }
        });
    }
}

/// Places for handshakes under way.
struct Slots {
    free: Arc<Semaphore>,
    max: usize,
    /// The oldest first; a closed sender belongs to a handshake that is done.
    running: VecDeque<oneshot::Sender<()>>,
}

impl Slots {
    fn new(max: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max)),
            max,
            running: VecDeque::new(),
        }
    }

    /// Takes a place, if necessary the oldest handshake's, and the signal that tells its holder to
    /// give way.
    async fn take(
        &mut self,
        stats: &Stats,
    ) -> (Option<OwnedSemaphorePermit>, oneshot::Receiver<()>) {
        let free = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(free) => Some(free),
            Err(_full) => {
                self.evict_oldest(stats);
                // An error means a closed semaphore, and this one is never closed.
                Arc::clone(&self.free).acquire_owned().await.ok()
            }
        };
        // Finished handshakes leave closed senders behind. Clearing them at twice the limit costs
        // each new handshake a constant.
        if self.running.len() >= 2 * self.max {
            self.running.retain(|handshake| !handshake.is_closed());
        }
        let (evict, evicted) = oneshot::channel();
        self.running.push_back(evict);
        (free, evicted)
    }

    fn evict_oldest(&mut self, stats: &Stats) {
        // A finished handshake cannot give way, so the next oldest is asked.
        while let Some(oldest) = self.running.pop_front() {
            if oldest.send(()).is_ok() {
                stats.over_limit();
                return;
            }
        }
    }
}
