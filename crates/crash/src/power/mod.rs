//! Power cuts: the states that a disk could be in afterwards, and whether a daemon starts on them.
//!
//! A kill keeps the kernel's memory, so it says nothing about power. Here a daemon lives through load, deaths and
//! restarts while the recorder writes down all its file operations. Then `disk` builds the directories that a power
//! cut could have left at random moments, a real daemon starts on each, and everything that was acknowledged before
//! the cut must be there: the client notes the length of the trace when a reply arrives, and the promises of a reply
//! were kept before it was sent.

mod disk;
mod trace;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use evidenceos_failpoint::Point;
use evidenceos_tlog::{Hash, Tree, leaf_hash};

use self::{
    disk::{Disk, Luck, must_be_equal},
    trace::{Deed, Record},
};
use crate::{
    Failed,
    campaign::Tools,
    check::{Mirror, State, must},
    client::Client,
    daemon::{Daemon, Launcher},
    dice::Dice,
    fail,
    load::{Load, Shared},
    recorder::Arming,
    world::World,
};

/// Power cuts per recorded history.
pub const CUTS_OF_A_HISTORY: u64 = 250;
/// Steps under load between two ends of the process.
const STEPS: u64 = 150;
/// On one image in this many the clients go on, too.
const GO_ON: u64 = 8;

/// The counts of a campaign of power cuts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cuts {
    /// Directories on which a daemon was started.
    pub images: u64,
    /// Images on which the clients went on.
    pub went_on: u64,
    /// Acknowledged steps that were checked.
    pub looked_for: u64,
    /// Records of the trace.
    pub records: u64,
}

impl std::fmt::Display for Cuts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} power cuts in a history of {} records; {} acknowledged steps looked for; the clients went on after {}; lost 0, doubled 0, started by hand 0",
            self.images, self.records, self.looked_for, self.went_on
        )
    }
}

impl Tools<'_> {
    /// Records a history, and starts a daemon on this many of the directories that a power cut
    /// could have left.
    ///
    /// # Errors
    /// [`Failed`] if a daemon does not start, or something acknowledged is missing; states the seed
    /// and the cut.
    pub async fn power(&self, seed: u64, images: u64) -> Result<Cuts, Failed> {
        let mut world = World::new(self.program, self.recorder, seed, true)?;
        let mut dice = Dice::new(seed);
        let done = async {
            record(&mut world).await?;
            let history = History::of(&mut world)?;
            history.cut(&mut dice, images).await
        };
        done.await
            .map_err(|Failed(why)| fail(format!("seed {seed}: {why}")))
    }
}

/// Load, a clean end; load, a death in the middle of a commit, twice; a clean end.
async fn record(world: &mut World) -> Result<(), Failed> {
    world.ledger().lock().holdout_in(12);
    world.begin().await?;
    for nth in [20, 60] {
        // In the recorder itself, where no record can be cut in two.
        let arming = Arming::kill(Point::StoreCommitWalWritten, nth);
        world.round_at(arming).await?;
    }
    world.load(STEPS).await
}

/// The recorded file operations, and the clients' replies meanwhile.
struct History {
    records: Vec<Record>,
    ledger: Shared,
    launcher: Launcher,
    vkey: String,
}

impl History {
    fn of(world: &mut World) -> Result<Self, Failed> {
        let trace = world.trace().ok_or_else(|| fail("no trace"))?;
        let records = trace::read(trace)?;
        let history = Self {
            records,
            ledger: world.ledger().clone(),
            vkey: world.vkey().to_owned(),
            launcher: Launcher {
                // File operations of daemons on images are not recorded.
                trace: None,
                ..world.launcher().clone()
            },
        };
        history.must_be_whole(world.directory())?;
        Ok(history)
    }

    /// The whole trace leads to exactly the present directory: nothing escaped the recorder.
    fn must_be_whole(&self, directory: &Path) -> Result<(), Failed> {
        let mut disk = Disk::default();
        for record in &self.records {
            disk.apply(&record.deed)?;
        }
        let home = scratch()?;
        let image = home.path().join("whole");
        disk.leave(&image, Luck::All, &mut Dice::new(0))?;
        must_be_equal(&image, directory)
            .map_err(|Failed(why)| fail(format!("the recorder has missed something: {why}")))
    }

    async fn cut(&self, dice: &mut Dice, images: u64) -> Result<Cuts, Failed> {
        let mut moments: Vec<usize> = (0..images).map(|_| self.moment(dice)).collect();
        // In the order of the trace, so that one pass over it serves all moments.
        moments.sort_unstable();
        let mut cuts = Cuts {
            records: self.records.len() as u64,
            ..Cuts::default()
        };
        let mut disk = Disk::default();
        let mut done = 0;
        let home = scratch()?;
        for (nth, moment) in moments.into_iter().enumerate() {
            for record in &self.records[done..moment] {
                disk.apply(&record.deed)?;
            }
            done = moment;
            let luck = Luck::draw(dice);
            let image = home.path().join(format!("image-{nth}"));
            // Split the dice, so that the size of one image does not change the draws for the next.
            disk.leave(&image, luck, &mut dice.split())?;
            let goes_on = dice.one_in(GO_ON);
            let position = moment
                .checked_sub(1)
                .map_or(0, |last| self.records[last].end);
            let held = self.must_hold(&image, position, goes_on).await;
            cuts.looked_for += held.map_err(|Failed(why)| {
                let kept = keep(&image);
                fail(format!(
                    "after {moment} records, with {luck:?}: {why}\n(kept in {})",
                    kept.display()
                ))
            })?;
            fs::remove_dir_all(&image).map_err(fail)?;
            cuts.images += 1;
            cuts.went_on += u64::from(goes_on);
        }
        Ok(cuts)
    }

    /// A moment for the power cut: anywhere, beside a sync or a rename, or right after a reply.
    fn moment(&self, dice: &mut Dice) -> usize {
        let count = self.records.len();
        match dice.below(3) {
            0 => dice.below(count as u64 + 1) as usize,
            1 => {
                let from = dice.below(count as u64) as usize;
                let border = |record: &Record| {
                    matches!(
                        record.deed,
                        Deed::Sync { .. }
                            | Deed::SyncDirectory { .. }
                            | Deed::Rename { .. }
                            | Deed::Remove { .. }
                    )
                };
                let next = self.records[from..].iter().position(border);
                let at = from + next.unwrap_or(0);
                // The power goes just before the border or just after it.
                (at + dice.below(2) as usize).min(count)
            }
            _ => {
                let marks: Vec<u64> = {
                    let ledger = self.ledger.lock();
                    let told = ledger.lives().flat_map(|life| &life.told);
                    told.map(|(_, mark)| *mark).collect()
                };
                let mark = *dice.one_of(&marks);
                // The cut comes right after the last record before the reply arrived.
                self.records.partition_point(|record| record.end <= mark)
            }
        }
    }

    /// Checks that a daemon starts on the image, with everything acknowledged by then. Returns the
    /// number of those steps.
    async fn must_hold(&self, image: &Path, position: u64, goes_on: bool) -> Result<u64, Failed> {
        let launcher = Launcher {
            directory: image.to_owned(),
            ..self.launcher.clone()
        };
        let daemon = launcher.serve().await?;
        let client = Client::connect(daemon.address()).await?;
        let mut client = client.ok_or_else(|| fail("nobody listens"))?;
        let mut mirror = Mirror::default();
        let state = State::read(&mut client, daemon.vkey(), &mut mirror).await?;
        let looked_for = {
            let ledger = self.ledger.lock();
            let mut looked_for = 0;
            for life in ledger.lives() {
                let told = life.told_by(position);
                state.must_hold(life, told)?;
                looked_for += told as u64;
            }
            let heads = ledger.heads().iter().filter(|(.., mark)| *mark <= position);
            heads_must_hold(heads, &mirror)?;
            looked_for
        };
        // A cut before the first reply may leave no key, and the start then creates another one.
        must(looked_for == 0 || daemon.vkey() == self.vkey, || {
            "the log has another key".to_owned()
        })?;
        if goes_on {
            self.go_on(&daemon, &mut mirror, position).await?;
        }
        // The next check must not depend on the end of this daemon.
        daemon.kill().await?;
        Ok(looked_for)
    }

    /// The clients of that moment repeat their requests, and lead their lives to the end.
    async fn go_on(
        &self,
        daemon: &Daemon,
        mirror: &mut Mirror,
        position: u64,
    ) -> Result<(), Failed> {
        let ledger = Shared::new(self.ledger.lock().at(position));
        // The first holdouts come before everything else.
        for clients in [1, 8] {
            let load = Load::start(daemon.address(), &ledger, clients, false);
            load.end().await?;
        }
        let client = Client::connect(daemon.address()).await?;
        let mut client = client.ok_or_else(|| fail("nobody listens"))?;
        let state = State::read(&mut client, daemon.vkey(), mirror).await?;
        state.must_be_all(&ledger.lock())
    }
}

/// Checks that every tree that was shown is a prefix of the log.
fn heads_must_hold<'h>(
    shown: impl Iterator<Item = &'h (u64, Hash, u64)>,
    mirror: &Mirror,
) -> Result<(), Failed> {
    let mut tree = Tree::new();
    let mut roots = HashMap::from([(0, tree.root())]);
    for entry in mirror.entries() {
        tree.append(leaf_hash(entry));
        drop(tree.take_full_tiles());
        roots.insert(tree.size(), tree.root());
    }
    for (size, root, _) in shown {
        must(roots.get(size) == Some(root), || {
            format!(
                "the tree of {size} entries that was shown is not the beginning of the log, which has {}",
                mirror.size()
            )
        })?;
    }
    Ok(())
}

/// A directory in memory if the machine has one: images are many, and their syncs do not matter.
fn scratch() -> Result<tempfile::TempDir, Failed> {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.map_err(fail)
}

/// Moves an image to a place that stays.
fn keep(image: &Path) -> PathBuf {
    let kept = std::env::temp_dir().join(format!("evidenceos-power-{}", std::process::id()));
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([image, &kept])
        .status();
    match copied {
        Ok(status) if status.success() => kept,
        _ => image.to_owned(),
    }
}
