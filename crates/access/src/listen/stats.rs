//! The counts of a listener, and the limit on its log lines.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Counters of a listener. They only grow, except `open`.
#[derive(Debug, Default)]
pub struct Stats {
    accepted: AtomicU64,
    open: AtomicU64,
    probe_like: AtomicU64,
    handshake_failures: AtomicU64,
    handshake_timeouts: AtomicU64,
    over_limit: AtomicU64,
    accept_errors: AtomicU64,
}

/// The counters at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    /// Connections open now, handshakes under way included.
    pub open: u64,
    /// Connections closed by the peer before it sent anything, as port probes do.
    pub probe_like: u64,
    /// Handshakes refused by either side.
    pub handshake_failures: u64,
    /// Handshakes that were not finished in time.
    pub handshake_timeouts: u64,
    /// Connections closed for a limit: one too many, or a handshake that gave way to another.
    pub over_limit: u64,
    /// Errors of `accept`, such as too many open files.
    pub accept_errors: u64,
}

impl Stats {
    /// Reads all counters, one after the other and not at one instant.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            accepted: self.accepted.load(Relaxed),
            open: self.open.load(Relaxed),
            probe_like: self.probe_like.load(Relaxed),
            handshake_failures: self.handshake_failures.load(Relaxed),
            handshake_timeouts: self.handshake_timeouts.load(Relaxed),
            over_limit: self.over_limit.load(Relaxed),
            accept_errors: self.accept_errors.load(Relaxed),
        }
    }

    pub(super) fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(super) fn opened(&self) {
        self.open.fetch_add(1, Relaxed);
    }

    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    pub(super) fn probe_like(&self) {
        self.probe_like.fetch_add(1, Relaxed);
    }

    pub(super) fn handshake_failure(&self) {
        self.handshake_failures.fetch_add(1, Relaxed);
    }

    pub(super) fn handshake_timeout(&self) {
        self.handshake_timeouts.fetch_add(1, Relaxed);
    }

    pub(super) fn over_limit(&self) {
        self.over_limit.fetch_add(1, Relaxed);
    }

    pub(super) fn accept_error(&self) {
        self.accept_errors.fetch_add(1, Relaxed);
    }
}

/// Lets one line a second through: peers decide how often there is something to log.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// Whether to log now, and how many lines were left out since the last one.
    pub fn may_log(&self) -> Option<u64> {
        const EVERY: Duration = Duration::from_secs(1);
        let mut state = self.0.lock();
        let (last, unlogged) = &mut *state;
        let now = Instant::now();
        if last.is_some_and(|last| now.duration_since(last) < EVERY) {
            *unlogged += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_a_second_says_how_many_were_left_out() {
        let throttle = Throttle::default();
        assert_eq!(throttle.may_log(), Some(0));
        assert_eq!((throttle.may_log(), throttle.may_log()), (None, None));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(throttle.may_log(), Some(2));
        assert_eq!(throttle.may_log(), None);
    }
}
