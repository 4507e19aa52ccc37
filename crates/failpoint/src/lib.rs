//! Named moments at which a crash test ends the process, or makes a write fail.
//!
//! A store is only as good as the crashes that it survives between two of its steps. [`Point`]
//! names those moments, one enum for all crates, so that the crash harness can go through the whole
//! list and fail if a point is never reached. Code calls [`pass`] if a test can only kill it there,
//! and [`reach`] if a test can also inject a full or a broken disk.
//!
//! Without the feature `armed` both are empty functions and the program contains nothing of this,
//! not even the names. With it they obey two environment variables:
//!
//! - `EVIDENCEOS_FAILPOINT`: `name:nth:what`, several with commas. When the process reaches the
//!   point for the nth time, it kills itself (`kill`: SIGKILL, nothing is flushed or dropped), or
//!   the step fails as on a full (`enospc`) or broken (`eio`) disk, once.
//! - `EVIDENCEOS_FAILPOINT_HITS`: a file to which `reached NAME` is appended when the process first
//!   reaches the point, and `fired NAME` before the effect.
//!
//! The enum includes moments inside SQLite: the recorder library of the crash harness intercepts
//! the process's file operations there, and obeys the same two variables.

use std::io;

#[cfg(feature = "armed")]
mod armed;

macro_rules! points {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $kind:ident;)*) => {
        /// A moment that a crash test can name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Point {
            $($(#[$doc])* $variant,)*
        }

        impl Point {
            /// All points, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The point's name in variables and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The effects that are possible at the point.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self {
                    $(Self::$variant => Kind::$kind,)*
                }
            }
        }
    };
}

/// The effects that are possible at a point, and the part that causes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The process can be killed.
    Kill,
    /// The process can be killed, or a write can fail.
    Fail,
    /// As [`Kind::Kill`], caused by the recorder library outside our code.
    KillOutside,
    /// As [`Kind::Fail`], caused by the recorder library outside our code.
    FailOutside,
}

impl Kind {
    /// Whether a write can fail there.
    #[must_use]
    pub const fn can_fail(self) -> bool {
        matches!(self, Self::Fail | Self::FailOutside)
    }

    /// Whether the recorder library causes the effect.
    #[must_use]
    pub const fn is_outside(self) -> bool {
        matches!(self, Self::KillOutside | Self::FailOutside)
    }
}

points! {
    /// A batch is decided; nothing of it is written.
    DriverBatchDecided = "driver.batch.decided", Kill;
    /// The tree head over the batch is signed, in memory only.
    LogHeadSignedBeforeCommit = "log.head.signed_before_commit", Kill;
    /// The transaction has begun.
    StoreBegin = "store.begin", Kill;
    /// Rows are written; the log and the journal are not.
    StoreRowsHalf = "store.rows.half", Fail;
    /// Everything of the batch is written, but not committed.
    StoreCommitBefore = "store.commit.before", Fail;
    /// The write-ahead log has the commit and is not synced.
    StoreCommitWalWritten = "store.commit.wal_written", KillOutside;
    /// The sync of the write-ahead log.
    StoreCommitFsync = "store.commit.fsync", FailOutside;
    /// The commit is durable; memory does not know it yet.
    StoreCommitSynced = "store.commit.synced", Kill;
    /// Memory follows the disk; no caller has a reply.
    DriverMergedBeforeReply = "driver.merged_before_reply", Kill;
    /// Half of the waiting callers have their replies.
    DriverReplyHalf = "driver.reply.half", Kill;
    /// A page of the write-ahead log is being copied into the database.
    StoreCheckpointDbHalf = "store.checkpoint.db_half", FailOutside;
    /// The database is synced; the write-ahead log still has everything.
    StoreCheckpointDbSynced = "store.checkpoint.db_synced", KillOutside;
    /// The write-ahead log begins anew over its old content.
    StoreWalRestarted = "store.wal.restarted", KillOutside;
    /// After a commit that found the disk full, the store checks whether there is room again.
    StoreFullProbe = "store.full.probe", Kill;
    /// A run is admitted and reserved for; it has not started.
    WorkReserved = "work.reserved", Kill;
    /// A guest asks its oracle.
    WorkRunMid = "work.run.mid", Kill;
    /// A run has ended and is not settled.
    WorkDoneBeforeSettle = "work.done_before_settle", Kill;
    /// A settlement is durable; its caller has no reply.
    WorkSettleCommittedBeforeReply = "work.settle.committed_before_reply", Kill;
    /// A revocation is durable; its caller has no reply.
    RevokeCommittedBeforeReply = "revoke.committed_before_reply", Kill;
    /// The attempt of an unfinished run is counted; it has not restarted.
    StartupInFlightAttemptCommitted = "startup.in_flight.attempt_committed", Kill;
    /// An unfinished run runs again.
    StartupInFlightMid = "startup.in_flight.mid", Kill;
    /// The older half of the remembered requests is about to be deleted.
    IdemRotateBeforeDrop = "idem.rotate.before_drop", Kill;
    /// The older half is deleted, in a transaction that is not committed.
    IdemRotateDropped = "idem.rotate.dropped", Kill;
    /// The file of a new key is written and synced under another name.
    KeysGenerateTmp = "keys.generate.tmp", Kill;
    /// A new key has its name, and its directory is not synced.
    KeysGenerateRenamed = "keys.generate.renamed", Kill;
    /// The choice of a key has its name, and its directory is not synced.
    KeysActivateRenamed = "keys.activate.renamed", Kill;
    /// A start has the directory's lock and has done nothing else.
    StartupLocked = "startup.locked", Kill;
    /// A start that has the lock has failed.
    StartupFailedAfterLock = "startup.failed_after_lock", Kill;
    /// The tables are being migrated to this version.
    SchemaMigrateMid = "schema.migrate.mid", Kill;
    /// A start is rebuilding the log's files; they are not synced.
    StartupTilesRebuildMid = "startup.tiles.rebuild.mid", Kill;
    /// Half of a tile is written.
    LogTileHalf = "log.tile.half", FailOutside;
    /// A tile is written and not synced.
    LogTileWritten = "log.tile.written", Kill;
    /// A bundle of entries is written and not synced.
    LogBundleWritten = "log.bundle.written", Kill;
    /// Tiles are synced; the published checkpoint is older.
    LogTilesSyncedBeforeWatermark = "log.tiles.synced_before_watermark", Kill;
    /// A head is durable and shown; an anchor still has an older one.
    LogHeadCommittedBeforeAnchor = "log.head.committed_before_anchor", Kill;
    /// An anchor has the head; the published checkpoint is older.
    LogAnchorWritten = "log.anchor.written", Kill;
    /// The new checkpoint is written and synced under another name.
    LogCheckpointTmp = "log.checkpoint.tmp", Kill;
    /// The new checkpoint has its name, and its directory is not synced.
    LogCheckpointRenamed = "log.checkpoint.renamed", Kill;
    /// A key service has signed a head; the writer does not have it.
    LogKmsSignedBeforeCommand = "log.kms.signed_before_command", Kill;
    /// A blob is written and synced under another name.
    BlobTmp = "blob.tmp", Kill;
    /// A blob has its name, and its directory is not synced; no row names it.
    BlobRenamedBeforeCommit = "blob.renamed_before_commit", Kill;
    /// An orphaned blob is about to be removed.
    BlobSweepMid = "blob.sweep.mid", Kill;
    /// The items of a holdout are stored; it is not registered.
    HoldoutPutBlobBeforeRow = "holdout.put.blob_before_row", Kill;
    /// `accounts.tmp` exists and is empty.
    AccountsTmpCreated = "accounts.tmp.created", Kill;
    /// Half of `accounts.tmp` is written.
    AccountsTmpHalf = "accounts.tmp.half", FailOutside;
    /// `accounts.tmp` is whole and synced.
    AccountsTmpSynced = "accounts.tmp.synced", Kill;
    /// The digest of `accounts.tmp` is committed; the file is not renamed yet.
    AccountsIntentCommitted = "accounts.intent.committed", Kill;
    /// `accounts.json` is the new file, and its directory is not synced.
    AccountsRenamed = "accounts.renamed", Kill;
    /// `accounts.json` is durable under its name.
    AccountsDirsynced = "accounts.dirsynced", Kill;
    /// A grant of credit is durable; its caller has no reply.
    GrantCommittedBeforeReply = "grant.committed_before_reply", Kill;
    /// Some pages of the database are in a backup.
    BackupStep = "backup.step", Kill;
    /// A backup is complete except for its manifest.
    BackupManifest = "backup.manifest", Kill;
    /// A backup is restored except for the name of its database.
    RestoreBeforeSwap = "restore.before_swap", Kill;
    /// The database has its name, and its directory is not synced.
    RestoreAfterSwap = "restore.after_swap", Kill;
    /// Some entries of a log's lost end are about to be recovered.
    LogRecoverMid = "log.recover.mid", Kill;
    /// All callers have replies or failures; the log's files are not up to date.
    ShutdownDrainedBeforeFlush = "shutdown.drained_before_flush", Kill;
    /// The log's files are up to date; `accounts.json` may not be.
    ShutdownFlushed = "shutdown.flushed", Kill;
    /// The last step of a process before it releases the lock.
    ShutdownBeforeUnlock = "shutdown.before_unlock", Kill;
}

impl Point {
    /// The point with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name)
    }
}

/// Passes a point at which a write can fail.
///
/// # Errors
/// Only in a test that asked for the failure.
#[inline(always)]
#[allow(
    clippy::unnecessary_wraps,
    unused_variables,
    reason = "empty without the feature"
)]
pub fn reach(point: Point) -> io::Result<()> {
    #[cfg(feature = "armed")]
    return armed::reach(point);
    #[cfg(not(feature = "armed"))]
    Ok(())
}

/// Passes a point at which a test can only kill the process.
#[inline(always)]
#[allow(unused_variables, reason = "empty without the feature")]
pub fn pass(point: Point) {
    #[cfg(feature = "armed")]
    if armed::reach(point).is_err() {
        unreachable!("{} cannot fail", point.name());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: HashSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for point in Point::ALL {
            assert_eq!(Point::named(point.name()), Some(*point));
        }
        assert_eq!(Point::named("no.such.point"), None);
    }
}
