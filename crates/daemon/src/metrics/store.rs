//! Metrics of the store, from counters that it keeps anyway.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use evidenceos_notary::ShownHead;
use evidenceos_store::Done;
use evidenceos_telemetry::write::{counter, gauge};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

/// Shows the store's counts.
#[derive(Debug)]
pub(super) struct StoreCollector {
    pub(super) done: Arc<Done>,
    pub(super) shown: Arc<ShownHead>,
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let done = &self.done;
        // In the other order, a head that comes in between would count as a lag.
        let integrated = done.integrated.load(Ordering::Relaxed);
        let published = self.shown.size();
        for (name, help, value) in [
            (
                "store_short_of_space",
                "1 while new work is refused because the disk is short of space",
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
