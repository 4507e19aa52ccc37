//! The log as it is shown, and the store: read from what these keep anyway.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use evidenceos_store::Done;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};

use super::write::{counter, gauge};
use crate::clock::unix_ms;

/// The log as it is shown.
#[derive(Debug, Default)]
pub(super) struct LogState {
    pub(super) size: AtomicU64,
    pub(super) released_unix_ms: AtomicU64,
    /// Since when a head is being signed elsewhere; 0: none is.
    pub(super) pending_since_unix_ms: AtomicU64,
}

#[derive(Debug)]
pub(super) struct LogCollector(pub(super) Arc<LogState>);

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let seconds_since =
            |unix_ms_then: u64| unix_ms().saturating_sub(unix_ms_then) as f64 / 1_000.0;
        let size = self.0.size.load(Ordering::Relaxed);
        let help = "Entries that the newest published head covers";
        gauge(&mut encoder, "log_entries", help, None, size)?;
        let age = seconds_since(self.0.released_unix_ms.load(Ordering::Relaxed));
        let help = "Since the newest head was published, also while nothing happens";
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

#[derive(Debug)]
pub(super) struct StoreCollector {
    pub(super) done: Arc<Done>,
    pub(super) log: Arc<LogState>,
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let done = &self.done;
        // The other way round a head that comes in between would count as a lag.
        let integrated = done.integrated.load(Ordering::Relaxed);
        let published = self.log.size.load(Ordering::Relaxed);
        for (name, help, value) in [
            (
                "store_short_of_space",
                "1 while new work is refused for want of space on the disk",
                done.short_of_space.load(Ordering::Relaxed),
            ),
            (
                "log_entries_unintegrated",
                "Entries under the newest head that the published tiles and checkpoint file do not have yet",
                published.saturating_sub(integrated),
            ),
        ] {
            gauge(&mut encoder, name, help, None, value)?;
        }
        for (name, help, value) in [
            (
                "store_commits",
                "Transactions that are durable",
                &done.commits,
            ),
            (
                "store_wal_checkpoints",
                "Times that the write-ahead log was copied into the database",
                &done.checkpoints,
            ),
            (
                "store_rows_read",
                "Rows that the writer read to decide",
                &done.rows_read,
            ),
            (
                "store_log_files_synced",
                "Tiles, bundles and checkpoints of the log that were synced",
                &done.log_files_synced,
            ),
        ] {
            let value = value.load(Ordering::Relaxed);
            counter(&mut encoder, name, help, None, value)?;
        }
        Ok(())
    }
}
