//! The campaigns: the faults that each injects, and the number of worlds.

use std::{fs, path::Path};

use evidenceos_failpoint::Point;
use rusqlite::Connection;

use crate::{
    Failed,
    check::must,
    copies,
    daemon::ended,
    dice::Dice,
    fail,
    recorder::{Arming, Recorder, What},
    world::{Tally, World},
};

/// Rounds in a world of random rounds.
pub const ROUNDS_OF_A_WORLD: u64 = 10;
/// A little more than the time for which one table remembers requests.
const REQUEST_WINDOW_S: i64 = 24 * 3_600 + 60;
/// The argument with which this crate's program chooses another key, as `evidenceos keys` does.
pub const CHOOSE_KEY: &str = "choose-key";

/// The programs that worlds are made of.
#[derive(Debug, Clone)]
pub struct Tools<'t> {
    /// This crate's program, which runs the daemon.
    pub program: &'t Path,
    /// The library that is loaded before the daemon.
    pub recorder: &'t Recorder,
}

/// The way to reach a point.
enum Scene {
    /// Under load; the dice choose the time, up to this one.
    Load { up_to: u64 },
    /// In the quiet after a commit that found the disk full.
    Full,
    /// During a stop.
    Stop,
    /// During a start, this many times in a row, after a preparation.
    Start { prepare: Prepare, times: usize },
    /// During a first start.
    FirstStart,
    /// Under load, after a day and a night.
    NextDay,
    /// While another key is chosen for the log.
    ChoosingKey,
    /// Under load, with the log's key in a key service.
    Kms,
    /// During a backup.
    Backup,
    /// During a restore.
    Restore,
    /// While the lost end of a log is recovered from a mirror.
    Recover,
}

enum Prepare {
    Nothing,
    RunsUnfinished,
    TilesGone,
    OlderSchema,
    SecretGone,
    Orphan,
}

/// The scene of each point: a point added to the enum does not compile without one.
fn scene(point: Point) -> Scene {
    let start = |prepare, times| Scene::Start { prepare, times };
    match point {
        Point::DriverBatchDecided
        | Point::LogHeadSignedBeforeCommit
        | Point::StoreBegin
        | Point::StoreRowsHalf
        | Point::StoreCommitBefore
        | Point::StoreCommitWalWritten
        | Point::StoreCommitFsync
        | Point::StoreCommitSynced
        | Point::DriverMergedBeforeReply
        | Point::StoreCheckpointDbHalf => Scene::Load { up_to: 60 },
        Point::DriverReplyHalf
        | Point::WorkReserved
        | Point::WorkRunMid
        | Point::WorkDoneBeforeSettle
        | Point::WorkSettleCommittedBeforeReply
        | Point::BlobTmp
        | Point::BlobRenamedBeforeCommit => Scene::Load { up_to: 10 },
        Point::RevokeCommittedBeforeReply
        | Point::StoreCheckpointDbSynced
        | Point::LogTileHalf
        | Point::LogTileWritten
        | Point::LogBundleWritten
        | Point::LogTilesSyncedBeforeWatermark
        | Point::AccountsTmpCreated
        | Point::AccountsTmpHalf
        | Point::AccountsTmpSynced
        | Point::AccountsIntentCommitted
        | Point::AccountsRenamed
        | Point::AccountsDirsynced
        | Point::LogHeadCommittedBeforeAnchor
        | Point::LogAnchorWritten
        | Point::LogCheckpointTmp
        | Point::LogCheckpointRenamed => Scene::Load { up_to: 3 },
        Point::StoreWalRestarted
        | Point::GrantCommittedBeforeReply
        | Point::HoldoutPutBlobBeforeRow => Scene::Load { up_to: 1 },
        Point::StoreFullProbe => Scene::Full,
        Point::LogKmsSignedBeforeCommand => Scene::Kms,
        Point::IdemRotateBeforeDrop | Point::IdemRotateDropped => Scene::NextDay,
        Point::KeysGenerateTmp | Point::KeysGenerateRenamed => Scene::FirstStart,
        Point::KeysActivateRenamed => Scene::ChoosingKey,
        Point::StartupLocked => start(Prepare::Nothing, 2),
        Point::StartupInFlightAttemptCommitted | Point::StartupInFlightMid => {
            start(Prepare::RunsUnfinished, 1)
        }
        Point::StartupFailedAfterLock => start(Prepare::SecretGone, 1),
        Point::SchemaMigrateMid => start(Prepare::OlderSchema, 2),
        Point::StartupTilesRebuildMid => start(Prepare::TilesGone, 2),
        Point::BlobSweepMid => start(Prepare::Orphan, 2),
        Point::BackupStep | Point::BackupManifest => Scene::Backup,
        Point::RestoreBeforeSwap | Point::RestoreAfterSwap => Scene::Restore,
        Point::LogRecoverMid => Scene::Recover,
        Point::ShutdownDrainedBeforeFlush
        | Point::ShutdownFlushed
        | Point::ShutdownBeforeUnlock => Scene::Stop,
    }
}

impl Tools<'_> {
    fn world(&self, seed: u64) -> Result<World, Failed> {
        World::new(self.program, self.recorder, seed, false)
    }

    /// One world of random rounds.
    ///
    /// # Errors
    /// [`Failed`] if a check does not hold; states the seed, and keeps the directory.
    pub async fn random_world(&self, seed: u64, rounds: u64) -> Result<Tally, Failed> {
        let mut world = self.world(seed)?;
        let done = async {
            world.begin().await?;
            for _ in 0..rounds {
                world.random_round().await?;
            }
            Ok(world.tally())
        }
        .await;
        explain(done, world, &format!("seed {seed}"))
    }

    /// One world whose directory becomes read-only again and again.
    ///
    /// # Errors
    /// As [`Tools::random_world`].
    pub async fn read_only_world(&self, seed: u64, rounds: u64) -> Result<Tally, Failed> {
        let mut world = self.world(seed)?;
        let done = async {
            world.begin().await?;
            for _ in 0..rounds {
                world.read_only_round().await?;
            }
            world.read_only_stop().await?;
            Ok(world.tally())
        }
        .await;
        explain(done, world, &format!("seed {seed}, read-only"))
    }

    /// Every point in turn, in one world if possible, and otherwise in worlds of their own.
    ///
    /// # Errors
    /// [`Failed`] if a point is never reached, or a check does not hold afterwards.
    pub async fn every_point(&self, seed: u64) -> Result<Tally, Failed> {
        let mut dice = Dice::new(seed);
        let mut shared = self.world(dice.roll())?;
        let begun = shared.begin().await;
        if begun.is_err() {
            return explain(
                begun.map(|()| Tally::default()),
                shared,
                &format!("seed {seed}"),
            );
        }
        let mut tally = Tally::default();
        for point in Point::ALL {
            // If no write can fail at a point, only a death is tried there.
            let whats: &[What] = if point.kind().can_fail() {
                &[What::Kill, What::Full, What::Broken]
            } else {
                &[What::Kill]
            };
            for what in whats {
                let nth = match scene(*point) {
                    Scene::Load { up_to } => 1 + dice.below(up_to),
                    _ => 1,
                };
                let arming = Arming {
                    point: *point,
                    nth,
                    what: *what,
                };
                let context = format!("seed {seed}, {arming}");
                // The leftovers of these scenes would disturb the points after them.
                if needs_own_world(*point) {
                    let mut world = self.world(dice.roll())?;
                    let done = self.at(&mut world, arming).await.map(|()| world.tally());
                    tally.add(&explain(done, world, &context)?);
                } else {
                    let done = self.at(&mut shared, arming).await;
                    if done.is_err() {
                        return explain(done.map(|()| tally), shared, &context);
                    }
                }
            }
        }
        let done = shared.two_at_once().await;
        tally.add(&shared.tally());
        explain(
            done.map(|()| tally),
            shared,
            &format!("seed {seed}, two at once"),
        )
    }

    async fn at(&self, world: &mut World, arming: Arming) -> Result<(), Failed> {
        match scene(arming.point) {
            Scene::Load { .. } => world.round_at(arming).await,
            Scene::Full => world.full_at(arming).await,
            Scene::Stop => world.stop_at(arming).await,
            Scene::Start { prepare, times } => start(world, arming, prepare, times).await,
            Scene::FirstStart => {
                for nth in 1..=3 {
                    world.start_at(Arming { nth, ..arming }, 1).await?;
                    world.clear()?;
                }
                Ok(())
            }
            Scene::NextDay => {
                world.let_time_pass(REQUEST_WINDOW_S);
                world.round_at(arming).await
            }
            Scene::ChoosingKey => choose_key(world, arming).await,
            Scene::Backup => copies::backup(world, arming).await,
            Scene::Restore => copies::restore(world, arming).await,
            Scene::Recover => copies::recover(world, arming).await,
            Scene::Kms => {
                let key = "5a".repeat(32);
                world.launcher().variables.extend([
                    ("EVIDENCEOS_KEY_PROVIDER", "kms".into()),
                    ("EVIDENCEOS_KMS_PROVIDER", "mock".into()),
                    ("EVIDENCEOS_KMS_KEY_ID", "a-key-that-stays-there".into()),
                    ("EVIDENCEOS_KMS_MOCK_KEY_HEX", key.into()),
                ]);
                // The start does not make the key: an anchor shows that it has signed nothing.
                world.make_anchor()?;
                world.begin().await?;
                world.round_at(arming).await
            }
        }
    }
}

fn needs_own_world(point: Point) -> bool {
    matches!(
        scene(point),
        Scene::FirstStart
            | Scene::Kms
            | Scene::Recover
            | Scene::Start {
                prepare: Prepare::OlderSchema,
                ..
            }
    )
}

async fn start(
    world: &mut World,
    arming: Arming,
    prepare: Prepare,
    times: usize,
) -> Result<(), Failed> {
    let directory = world.directory().to_owned();
    match prepare {
        Prepare::Nothing => {}
        Prepare::RunsUnfinished => world.leave_runs_unfinished().await?,
        Prepare::TilesGone => fs::remove_dir_all(directory.join("log/tile")).map_err(fail)?,
        Prepare::OlderSchema => {
            world.begin().await?;
            to_the_first_schema(&directory)?;
        }
        Prepare::SecretGone => {
            // A start without this secret fails after it has taken the lock.
            let (secret, aside) = (
                directory.join("secrets/owners.secret"),
                directory.join("aside"),
            );
            fs::rename(&secret, &aside).map_err(fail)?;
            world.die_in_failed_start(arming).await?;
            fs::rename(&aside, &secret).map_err(fail)?;
            return world.settle().await;
        }
        Prepare::Orphan => leave_orphans(&directory)?,
    }
    world.start_at(arming, times).await
}

/// Leaves the orphans of crashes of every kind beside the real files.
fn leave_orphans(directory: &Path) -> Result<(), Failed> {
    let orphans = [
        "blobs/00/no-digest.0123456789abcdef.tmp",
        "blobs/00/11223344556677889900112233445566778899001122334455667788990011",
        "log/checkpoint.0123456789abcdef.tmp",
        "secrets/.holdouts.secret.new",
        "keys/.active_key_id.new",
    ];
    for name in orphans {
        let path = directory.join(name);
        let parent = path
            .parent()
            .ok_or_else(|| fail("a path without a parent"))?;
        fs::create_dir_all(parent).map_err(fail)?;
        fs::write(&path, "").map_err(fail)?;
    }
    Ok(())
}

/// Migrates the tables back to their first version, as the previous release wrote them.
fn to_the_first_schema(directory: &Path) -> Result<(), Failed> {
    let database = Connection::open(directory.join("evidenceos.db")).map_err(fail)?;
    database
        .execute_batch("DROP TABLE log_keys; DROP TABLE accounts; DROP TABLE decisions; DROP TABLE questions; DROP TABLE facts; DROP INDEX displaced_modules; ALTER TABLE modules DROP COLUMN claims; PRAGMA user_version = 1;")
        .map_err(fail)
}

async fn choose_key(world: &mut World, arming: Arming) -> Result<(), Failed> {
    for armed in [&[arming][..], &[]] {
        let mut child = world.launcher().spawn_as(CHOOSE_KEY, armed)?;
        let status = ended(&mut child).await?;
        must(status.success() == armed.is_empty(), || {
            format!("choosing a key ended with {status}")
        })?;
        // The chosen key follows the previous one, whether or not the process that chose it survived.
        world.settle().await?;
    }
    must(world.noted("fired ")?.contains(arming.point.name()), || {
        format!("{arming} was never come by")
    })
}

/// Adds the context to a failure, and keeps the directory.
fn explain(done: Result<Tally, Failed>, world: World, context: &str) -> Result<Tally, Failed> {
    done.map_err(|Failed(why)| {
        let kept = world.keep();
        fail(format!("{context}: {why}\n(kept in {})", kept.display()))
    })
}
