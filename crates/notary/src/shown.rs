//! The newest shown head, as metrics.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use evidenceos_driver::clock::unix_ms;
use evidenceos_telemetry::write::gauge;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};

/// The newest shown head, and how long the next one has waited for its signature.
#[derive(Debug, Default)]
pub struct ShownHead {
    size: AtomicU64,
    shown_unix_ms: AtomicU64,
    /// The time since which a head is being signed elsewhere; 0: none is.
    pending_since_unix_ms: AtomicU64,
}

impl ShownHead {
    /// Notes a newly shown head.
    pub fn shows(&self, size: u64, now_unix_ms: u64) {
        self.size.store(size, Ordering::Relaxed);
        self.shown_unix_ms.store(now_unix_ms, Ordering::Relaxed);
        self.pending_since_unix_ms.store(0, Ordering::Relaxed);
    }

    /// Notes that a head waits for a signature from elsewhere. Of several failures in a row, only
    /// the first counts.
    pub fn waits(&self, now_unix_ms: u64) {
        let pending = &self.pending_since_unix_ms;
        // If one waits already, its time stays.
        let _ = pending.compare_exchange(0, now_unix_ms, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The number of entries that it covers.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }
}

/// Shows the head's metrics.
#[derive(Debug)]
pub struct ShownHeadCollector(pub Arc<ShownHead>);

impl Collector for ShownHeadCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let seconds_since =
            |unix_ms_then: u64| unix_ms().saturating_sub(unix_ms_then) as f64 / 1_000.0;
        let size = self.0.size.load(Ordering::Relaxed);
        let help = "Entries that the newest published head covers";
        gauge(&mut encoder, "log_entries", help, None, size)?;
        let age = seconds_since(self.0.shown_unix_ms.load(Ordering::Relaxed));
        let help = "Time since the newest head was published, also while nothing happens";
        let unit = Some(&Unit::Seconds);
        gauge(&mut encoder, "log_checkpoint_age", help, unit, age)?;
        let waits = match self.0.pending_since_unix_ms.load(Ordering::Relaxed) {
            0 => 0.0,
            since => seconds_since(since),
        };
        let help =
            "How long entries have waited for a KMS to sign the head over them; 0 if none wait";
        gauge(&mut encoder, "log_signature_pending", help, unit, waits)
    }
}
