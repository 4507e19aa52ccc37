//! The open connections: which of them give way, and which the listener ends.
//!
//! Owns the count. A connection has shown nothing until its first request, and a request until one
//! of its callers is authenticated. If the limit is reached, the oldest connection that has shown
//! nothing is closed for a new one, otherwise the oldest that has shown only a request; a
//! connection of an authenticated caller stays. So strangers, however many, keep no caller out.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use rustls::{CertificateError, Error, pki_types::UnixTime};
use tokio::sync::{oneshot, watch};

use super::{Chain, stats::Stats};
use crate::tls::Serving;

/// The progress of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Shown {
    /// No request has come yet.
    Nothing,
    /// A request, but no authenticated caller.
    Request,
    /// An authenticated caller.
    Caller,
}

/// Why the listener ends a connection, whatever its peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    GaveWay,
    NoRequest,
    TooOld,
    NotVerified,
    Stopped,
}

/// All connections of a listener.
#[derive(Debug)]
pub(super) struct Open {
    most: usize,
    of_one: usize,
    stats: Arc<Stats>,
    state: Mutex<State>,
    /// Whether the listener has stopped, so that connections must end soon.
    stopping: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By number, so that the oldest connection is the first.
    connections: BTreeMap<u64, Entry>,
    by_network: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Entry {
    network: IpAddr,
    shown: Arc<AtomicU8>,
    /// The certificates that the client presented in the handshake.
    chain: Option<Chain>,
    end: oneshot::Sender<End>,
}

/// A connection's place among the open ones.
#[derive(Debug)]
pub(super) struct Held {
    number: u64,
    open: Arc<Open>,
    shown: Arc<AtomicU8>,
}

impl Open {
    pub(super) fn new(most: usize, of_one: usize, stats: Arc<Stats>) -> Arc<Self> {
        Arc::new(Self {
            most,
            of_one,
            stats,
            state: Mutex::default(),
            stopping: watch::Sender::new(false),
        })
    }

    /// A place for a connection from `address`, and the signal that tells it to end. `None` if
    /// there is no place, for all or for that address.
    pub(super) fn hold(
        self: &Arc<Self>,
        address: IpAddr,
    ) -> Option<(Held, oneshot::Receiver<End>)> {
        let network = network(address);
        let mut state = self.state();
        let from_there = state.by_network.get(&network).copied().unwrap_or_default();
        // The address's share comes first: the address makes way for itself, at no other's cost.
        if from_there >= self.of_one && !self.make_way(&mut state, Some(network)) {
            return None;
        }
        if state.connections.len() >= self.most && !self.make_way(&mut state, None) {
            return None;
        }
        let (end, ended) = oneshot::channel();
        let shown = Arc::new(AtomicU8::new(Shown::Nothing as u8));
        let number = state.next;
        state.next += 1;
        *state.by_network.entry(network).or_default() += 1;
        let entry = Entry {
            network,
            shown: Arc::clone(&shown),
            chain: None,
            end,
        };
        state.connections.insert(number, entry);
        self.stats.opened();
        let held = Held {
            number,
            open: Arc::clone(self),
            shown,
        };
        Some((held, ended))
    }

    /// Ends the connections whose client's chain is invalid under a set of files; returns their
    /// number.
    ///
    /// A certificate that its authority has revoked ends no connection: its calls are refused, and
    /// the refusal says why.
    pub(super) fn end_unverified(&self, serving: &Serving) -> usize {
        let shown: Vec<(u64, Chain)> = {
            let state = self.state();
            let connections = state.connections.iter();
            connections
                .filter_map(|(number, entry)| Some((*number, Arc::clone(entry.chain.as_ref()?))))
                .collect()
        };
        // Signatures are checked without the lock, since each new connection needs it.
        let now = UnixTime::now();
        let failed = shown.iter().filter(|(_, chain)| {
            let verified = serving.verify(chain, now);
            verified
                .is_err_and(|error| error != Error::InvalidCertificate(CertificateError::Revoked))
        });
        failed
            .filter(|(number, _)| self.state().end(*number, End::NotVerified))
            .count()
    }

    /// Tells connections to end soon, from now on.
    pub(super) fn stops(&self) {
        self.stopping.send_replace(true);
    }

    /// A receiver that tells whether connections must end soon.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Ends all connections, those with requests under way too.
    pub(super) fn end_all(&self) {
        let mut state = self.state();
        while let Some((&number, _)) = state.connections.first_key_value() {
            state.end(number, End::Stopped);
        }
    }

    /// Closes a connection that has shown little, of one network or of any. `false` if there is
    /// none.
    fn make_way(&self, state: &mut State, of: Option<IpAddr>) -> bool {
        let oldest = |shown: Shown| {
            let mut connections = state.connections.iter();
            let found = connections.find(|(_, entry)| {
                of.is_none_or(|network| entry.network == network)
                    && entry.shown.load(Ordering::Relaxed) == shown as u8
            });
            found.map(|(number, _)| *number)
        };
        let Some(number) = oldest(Shown::Nothing).or_else(|| oldest(Shown::Request)) else {
            return false;
        };
        self.stats.over_limit();
        state.end(number, End::GaveWay);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Tells a connection to end, and frees its place. `false` if it has ended by itself.
    fn end(&mut self, number: u64, why: End) -> bool {
        self.remove(number)
            .is_some_and(|entry| entry.end.send(why).is_ok())
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.connections.remove(&number)?;
        if let Some(count) = self.by_network.get_mut(&entry.network) {
            *count -= 1;
            if *count == 0 {
                self.by_network.remove(&entry.network);
            }
        }
        Some(entry)
    }
}

impl Held {
    /// The state by which the connection's peers note its progress.
    pub(super) fn shown(&self) -> Arc<AtomicU8> {
        Arc::clone(&self.shown)
    }

    /// Notes the certificates that the client presented: from here on replacements of the files
    /// check them.
    pub(super) fn shows(&self, chain: Chain) {
        if let Some(entry) = self.open.state().connections.get_mut(&self.number) {
            entry.chain = Some(chain);
        }
    }

    /// A receiver that tells whether the listener's connections must end soon.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.open.stopping()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A connection that was told to end has lost its place already.
        self.open.state().remove(self.number);
        self.open.stats.closed();
    }
}

/// The network by which an address counts: for IPv6 the 64-bit network, since a host with one
/// address there usually has all of them.
pub(super) fn network(address: IpAddr) -> IpAddr {
    // An IPv4 address that is mapped into IPv6 counts as itself: otherwise all of them would be one
    // network.
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(held: &Held, shown: Shown) {
        held.shown.store(shown as u8, Ordering::Relaxed);
    }

    fn at(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn who_has_shown_least_gives_way_and_among_those_the_oldest() {
        let open = Open::new(4, 9, Arc::default());
        let mut all: Vec<_> = (0..4)
            .map(|_| open.hold(at("192.0.2.1")).expect("room"))
            .collect();
        for (held, shown) in all.iter().zip([
            Shown::Caller,
            Shown::Request,
            Shown::Nothing,
            Shown::Nothing,
        ]) {
            show(&held.0, shown);
        }
        let mut gave_way = Vec::new();
        while let Some((held, given_way)) = open.hold(at("192.0.2.2")) {
            show(&held, Shown::Caller);
            all.push((held, given_way));
            for (number, (_, given_way)) in all.iter_mut().enumerate() {
                if !gave_way.contains(&number) && given_way.try_recv().is_ok() {
                    gave_way.push(number);
                }
            }
        }
        assert_eq!(gave_way, [2, 3, 1]);
        assert_eq!(open.stats.counts().over_limit, 3);
        drop(all);
        assert_eq!(open.stats.counts().open, 0);
        assert!(open.state().by_network.is_empty());
    }

    #[test]
    fn an_address_has_its_share_and_makes_way_for_itself_alone() {
        let open = Open::new(9, 2, Arc::default());
        let (first, mut first_gives_way) = open.hold(at("2001:db8::1")).expect("room");
        let (_other, mut other_gives_way) = open.hold(at("192.0.2.1")).expect("room");
        let (second, _) = open.hold(at("2001:db8::2")).expect("room");
        let (third, _) = open.hold(at("2001:db8::3")).expect("the first gives way");
        assert!(first_gives_way.try_recv().is_ok() && other_gives_way.try_recv().is_err());
        show(&second, Shown::Caller);
        show(&third, Shown::Caller);
        assert!(open.hold(at("2001:db8::4")).is_none());
        assert!(open.hold(at("2001:db8:0:1::")).is_some());
        drop((first, second));
        assert!(open.hold(at("2001:db8::4")).is_some());
    }

    #[test]
    fn an_address_of_ipv6_stands_for_its_network() {
        let of = |text| network(at(text));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
