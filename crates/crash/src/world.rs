//! One data directory through load, death and restart, again and again.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use evidenceos_failpoint::Point;
use tempfile::TempDir;

use crate::{
    Failed,
    check::{self, Mirror, State, must},
    client::Client,
    daemon::{Daemon, Launcher, Started, absolute, ended},
    dice::Dice,
    fail,
    ledger::{FIRST_LIMIT, Ledger, Life},
    load::{Load, Shared},
    recorder::{Arming, Recorder, What},
};

/// The most clients side by side.
const CLIENTS: u64 = 16;
/// The most steps that are acknowledged before a kill at a random moment.
const STEPS: u64 = 80;
/// Steps after which a point that was not reached will not be.
const STEPS_FOR_A_POINT: u64 = 1_500;
/// Commits of a daemon before one finds the disk full.
const COMMITS_BEFORE_FULL: u64 = 20;
/// Steps that must be acknowledged after a write has failed and the daemon went on.
const STEPS_AFTER_A_FAULT: u64 = 20;
/// The time within which a key service signs.
const UNTIL_SIGNED: Duration = Duration::from_secs(10);
/// The approximate time of a start.
const A_START: Duration = Duration::from_millis(40);

/// The counts of a campaign.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Rounds of load, death, restart and check.
    pub rounds: u64,
    /// Processes killed, or that ended as a broken disk demands.
    pub deaths: u64,
    /// Deaths during a start.
    pub deaths_in_start: u64,
    /// Steps that were acknowledged and are there exactly once.
    pub acknowledged: u64,
    /// Steps that were repeated because their outcome was unknown.
    pub asked_again: u64,
    /// Entries of the logs.
    pub entries: u64,
}

impl Tally {
    /// Adds the counts of another campaign.
    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.deaths += other.deaths;
        self.deaths_in_start += other.deaths_in_start;
        self.acknowledged += other.acknowledged;
        self.asked_again += other.asked_again;
        self.entries += other.entries;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} rounds, {} deaths ({} of them during a start), {} steps acknowledged, {} asked again, {} log entries; lost 0, doubled 0, started by hand 0",
            self.rounds,
            self.deaths,
            self.deaths_in_start,
            self.acknowledged,
            self.asked_again,
            self.entries
        )
    }
}

/// A data directory, its clients, and the replies that they got.
pub struct World {
    launcher: Launcher,
    ledger: Shared,
    mirror: Mirror,
    dice: Dice,
    tally: Tally,
    /// Remembers the log's head outside the data directory.
    anchor: PathBuf,
    /// The first life that began after earlier requests may have been forgotten.
    remembered_from: u64,
    // Removed when the world ends.
    home: TempDir,
}

impl World {
    /// A world without a daemon yet. `program` is this crate's own.
    ///
    /// # Errors
    /// [`Failed`] if the directory cannot be created.
    pub fn new(
        program: &Path,
        recorder: &Recorder,
        seed: u64,
        is_traced: bool,
    ) -> Result<Self, Failed> {
        let home = tempfile::tempdir().map_err(fail)?;
        let root = absolute(home.path())?;
        let trace = is_traced.then(|| root.join("trace"));
        fs::create_dir(root.join("data")).map_err(fail)?;
        let mut variables = vec![(
            "EVIDENCEOS_DEFAULT_CREDIT_LIMIT",
            FIRST_LIMIT.to_string().into(),
        )];
        // The anchor beside the data directory. It keeps its last state, and so remembers more than
        // a disk whose power was cut earlier.
        let anchor = root.join("data.anchor");
        if is_traced {
            variables.push(("EVIDENCEOS_ANCHORS", "none".into()));
        }
        let mut dice = Dice::new(seed);
        let mut ledger = Ledger::new(dice.split(), trace.clone());
        ledger.begin();
        Ok(Self {
            launcher: Launcher {
                program: program.to_owned(),
                recorder: recorder.clone(),
                directory: root.join("data"),
                hits: root.join("hits"),
                trace,
                read_only_while: root.join("read-only"),
                variables,
                clock_s: 0,
            },
            ledger: Shared::new(ledger),
            mirror: Mirror::default(),
            dice,
            tally: Tally::default(),
            anchor,
            remembered_from: 0,
            home,
        })
    }

    /// The data directory of the world's daemon.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.launcher.directory
    }

    /// The trace, if there is one.
    #[must_use]
    pub fn trace(&self) -> Option<&Path> {
        self.launcher.trace.as_deref()
    }

    /// The key that signed the log's first head.
    #[must_use]
    pub fn vkey(&self) -> &str {
        self.mirror.vkey()
    }

    /// Load without a death, and a clean end.
    ///
    /// # Errors
    /// [`Failed`] if it does not end well.
    pub async fn load(&mut self, steps: u64) -> Result<(), Failed> {
        let daemon = self.launcher.serve().await?;
        let clients = CLIENTS as usize;
        let mut load = Load::start(daemon.address(), &self.ledger, clients, true);
        load.acknowledged(steps).await;
        load.enough();
        load.end().await?;
        daemon.stop().await
    }

    /// The settings with which daemons start here.
    pub fn launcher(&mut self) -> &mut Launcher {
        &mut self.launcher
    }

    /// The requests and replies of the clients.
    #[must_use]
    pub fn ledger(&self) -> &Shared {
        &self.ledger
    }

    /// Keeps the directory for the analysis of a failure.
    pub fn keep(self) -> PathBuf {
        self.home.keep()
    }

    /// The counts so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let (acknowledged, asked_again) = self.ledger.lock().counts();
        Tally {
            acknowledged,
            asked_again,
            entries: self.mirror.size(),
            ..self.tally
        }
    }

    /// Names that were noted as `reached` or `fired`.
    ///
    /// # Errors
    /// [`Failed`] if the notes cannot be read.
    pub fn noted(&self, what: &str) -> Result<BTreeSet<String>, Failed> {
        // Only a daemon makes the file, and a round begins without it.
        if !self.launcher.hits.exists() {
            return Ok(BTreeSet::new());
        }
        let notes = fs::read_to_string(&self.launcher.hits).map_err(fail)?;
        let names = notes.lines().filter_map(|line| line.strip_prefix(what));
        Ok(names.map(|name| name.trim().to_owned()).collect())
    }

    fn has_fired(&self, point: Point) -> Result<bool, Failed> {
        Ok(self.noted("fired ")?.contains(point.name()))
    }

    fn forget_fired(&self) -> Result<(), Failed> {
        // Only the notes of a round's own daemon count for it.
        if self.launcher.hits.exists() {
            fs::remove_file(&self.launcher.hits).map_err(fail)?;
        }
        Ok(())
    }

    /// A path beside the data directory.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory().with_file_name(name)
    }

    /// Runs a command of the daemon over the data directory: whether it succeeded, and its output.
    ///
    /// # Errors
    /// [`Failed`] if it does not end.
    pub async fn command(
        &mut self,
        arguments: &[&str],
        armed: &[Arming],
    ) -> Result<(bool, String), Failed> {
        if !armed.is_empty() {
            self.forget_fired()?;
        }
        self.launcher.run(arguments, armed).await
    }

    /// Counts a death that a scene has caused itself.
    ///
    /// # Errors
    /// [`Failed`] if the point was never reached.
    pub fn died_at(&mut self, arming: Arming) -> Result<(), Failed> {
        must(self.has_fired(arming.point)?, || {
            format!("{arming} was never come by")
        })?;
        self.tally.deaths += 1;
        self.tally.rounds += 1;
        Ok(())
    }

    /// First start, first holdouts, a clean end.
    ///
    /// # Errors
    /// [`Failed`] if a check does not hold.
    pub async fn begin(&mut self) -> Result<(), Failed> {
        self.settle().await
    }

    /// A round with a death at a random moment, or at a random point if it is reached.
    ///
    /// # Errors
    /// [`Failed`] if a check does not hold.
    pub async fn random_round(&mut self) -> Result<(), Failed> {
        let kills: Vec<Point> = Point::ALL.to_vec();
        let armed = self.dice.one_in(2).then(|| {
            let point = *self.dice.one_of(&kills);
            Arming::kill(point, 1 + self.dice.below(20))
        });
        let clients = 1 + self.dice.below(CLIENTS) as usize;
        let steps = self.dice.below(STEPS);
        let pause = Duration::from_micros(self.dice.below(3_000));
        let armed: Vec<Arming> = armed.into_iter().collect();
        if let Started::Serves(mut daemon) = self.launcher.start(&armed).await? {
            let mut load = Load::start(daemon.address(), &self.ledger, clients, true);
            load.acknowledged(steps).await;
            tokio::time::sleep(pause).await;
            // One daemon in eight is told to stop, and must end cleanly unless a point fired first.
            if self.dice.one_in(8) && !daemon.has_ended()? {
                daemon.terminate()?;
                let status = daemon.ended().await?;
                must(status.success() || !armed.is_empty(), || {
                    format!("told to stop under load, the daemon ended with {status}")
                })?;
            } else {
                daemon.kill().await?;
            }
            load.end().await?;
        }
        self.tally.deaths += 1;
        if self.dice.one_in(5) {
            self.die_in_start().await?;
        }
        self.tally.rounds += 1;
        self.settle().await
    }

    async fn die_in_start(&mut self) -> Result<(), Failed> {
        let mut child = self.launcher.spawn(&[])?;
        let moment = self.dice.below(A_START.as_micros() as u64);
        tokio::time::sleep(Duration::from_micros(moment)).await;
        // The child may have ended by itself.
        let _ = child.start_kill();
        ended(&mut child).await?;
        self.tally.deaths += 1;
        self.tally.deaths_in_start += 1;
        Ok(())
    }

    /// A round in which the directory becomes read-only under load, from one moment on and for open
    /// files too, as on a file system that met an error. The daemon must end itself, since the fate
    /// of a commit is unknown; a start must report why it fails; and once the directory can be
    /// written again everything must be there.
    ///
    /// # Errors
    /// [`Failed`] if a check does not hold.
    pub async fn read_only_round(&mut self) -> Result<(), Failed> {
        let read_only = self.launcher.read_only_while.clone();
        let mut daemon = self.launcher.serve().await?;
        let steps = 1 + self.dice.below(STEPS);
        let pause = Duration::from_micros(self.dice.below(3_000));
        let clients = CLIENTS as usize;
        let mut load = Load::start_on_a_failing_disk(daemon.address(), &self.ledger, clients);
        load.acknowledged(steps).await;
        tokio::time::sleep(pause).await;
        fs::write(&read_only, "").map_err(fail)?;
        let status = daemon.ended().await?;
        must(!status.success(), || {
            "on a read-only directory the daemon ended well".to_owned()
        })?;
        load.end().await?;
        self.tally.deaths += 1;
        match self.launcher.start(&[]).await? {
            Started::Serves(_) => return Err(fail("it starts on a read-only directory")),
            Started::Ended(status, said) => {
                let says_why = said.to_lowercase().contains("read-only");
                must(!status.success() && says_why, || said)?;
            }
        }
        fs::remove_file(&read_only).map_err(fail)?;
        self.tally.rounds += 1;
        self.settle().await
    }

    /// A round in which the directory becomes read-only without any load, and the daemon is told to
    /// stop.
    ///
    /// # Errors
    /// [`Failed`] if it does not end, or a check does not hold afterwards.
    pub async fn read_only_stop(&mut self) -> Result<(), Failed> {
        let read_only = self.launcher.read_only_while.clone();
        let mut daemon = self.launcher.serve().await?;
        let mut load = Load::start(daemon.address(), &self.ledger, CLIENTS as usize, true);
        load.acknowledged(STEPS).await;
        load.enough();
        load.end().await?;
        fs::write(&read_only, "").map_err(fail)?;
        daemon.terminate()?;
        daemon.ended().await?;
        fs::remove_file(&read_only).map_err(fail)?;
        self.tally.deaths += 1;
        self.tally.rounds += 1;
        self.settle().await
    }

    /// A round of load in which a point fires.
    ///
    /// # Errors
    /// [`Failed`] if it does not fire, or a check does not hold afterwards.
    pub async fn round_at(&mut self, arming: Arming) -> Result<(), Failed> {
        self.forget_fired()?;
        // Registrations are rare among the lives, and only they reach this point.
        let rare = matches!(arming.point, Point::HoldoutPutBlobBeforeRow);
        self.ledger.lock().holdout_in(if rare { 3 } else { 40 });
        match self.launcher.start(&[arming]).await? {
            Started::Serves(daemon) => self.load_at(arming, *daemon).await?,
            // The start may already reach the point.
            Started::Ended(status, said) => must(!status.success(), || said)?,
        }
        must(self.has_fired(arming.point)?, || {
            format!("{arming} was never come by")
        })?;
        self.tally.deaths += 1;
        self.tally.rounds += 1;
        self.settle().await
    }

    /// A round in which a commit finds the disk full, all clients leave, and the point fires in the
    /// quiet after it.
    ///
    /// # Errors
    /// As [`World::round_at`].
    pub async fn full_at(&mut self, arming: Arming) -> Result<(), Failed> {
        self.forget_fired()?;
        let full = Point::StoreCommitBefore;
        // Work under way tries to commit too, and refused clients retry.
        let mut armed: Vec<Arming> = (COMMITS_BEFORE_FULL..COMMITS_BEFORE_FULL + 64)
            .map(|nth| Arming {
                point: full,
                nth,
                what: What::Full,
            })
            .collect();
        armed.push(arming);
        let Started::Serves(mut daemon) = self.launcher.start(&armed).await? else {
            return Err(fail(format!("with {arming} it does not start")));
        };
        let mut load = Load::start(daemon.address(), &self.ledger, 1, true);
        let mut steps = 0;
        while !self.has_fired(full)? && load.acknowledged(steps).await {
            steps += 1;
        }
        load.enough();
        load.end().await?;
        let status = daemon.ended().await?;
        must(!status.success(), || {
            format!("at {arming} the daemon ended well")
        })?;
        self.died_at(arming)?;
        self.settle().await
    }

    async fn load_at(&mut self, arming: Arming, mut daemon: Daemon) -> Result<(), Failed> {
        let mut load = Load::start(daemon.address(), &self.ledger, CLIENTS as usize, true);
        let mut steps = 0;
        while load.acknowledged(steps).await && !self.has_fired(arming.point)? {
            steps += 10;
            if steps > STEPS_FOR_A_POINT {
                break;
            }
        }
        if ends_the_process(arming) {
            if self.has_fired(arming.point)? {
                let status = daemon.ended().await?;
                must(!status.success(), || {
                    format!("at {arming} the daemon ended well")
                })?;
            }
            load.enough();
            return load.end().await;
        }
        // The daemon goes on: new work succeeds, and it ends cleanly.
        let goes_on = load.acknowledged(steps + STEPS_AFTER_A_FAULT).await;
        must(goes_on && !daemon.has_ended()?, || {
            format!("at {arming} the daemon did not go on")
        })?;
        daemon.terminate()?;
        load.end().await?;
        let status = daemon.ended().await?;
        must(status.success(), || {
            format!("after {arming} the daemon ended with {status}")
        })
    }

    /// A round in which the daemon is told to stop under load, and dies at a point of the stop.
    ///
    /// # Errors
    /// As [`World::round_at`].
    pub async fn stop_at(&mut self, arming: Arming) -> Result<(), Failed> {
        self.forget_fired()?;
        let Started::Serves(mut daemon) = self.launcher.start(&[arming]).await? else {
            return Err(fail(format!("with {arming} it does not start")));
        };
        let mut load = Load::start(daemon.address(), &self.ledger, CLIENTS as usize, true);
        load.acknowledged(STEPS / 2).await;
        daemon.terminate()?;
        daemon.ended().await?;
        load.end().await?;
        must(self.has_fired(arming.point)?, || {
            format!("{arming} was never come by")
        })?;
        self.tally.deaths += 1;
        self.tally.rounds += 1;
        self.settle().await
    }

    /// Kills the daemon under load until it leaves runs under way unsettled.
    ///
    /// # Errors
    /// [`Failed`] if that does not succeed.
    pub async fn leave_runs_unfinished(&mut self) -> Result<(), Failed> {
        let armed = Arming::kill(Point::WorkDoneBeforeSettle, 1 + self.dice.below(10));
        self.forget_fired()?;
        if let Started::Serves(daemon) = self.launcher.start(&[armed]).await? {
            self.load_at(armed, *daemon).await?;
        }
        self.tally.deaths += 1;
        must(self.has_fired(armed.point)?, || "no run ended".to_owned())
    }

    /// Starts that die at a point, this many in a row, and then one that must not.
    ///
    /// # Errors
    /// [`Failed`] if the point is not reached, or a check does not hold afterwards.
    pub async fn start_at(&mut self, arming: Arming, times: usize) -> Result<(), Failed> {
        for _ in 0..times {
            self.forget_fired()?;
            match self.launcher.start(&[arming]).await? {
                Started::Ended(..) => {}
                // It may serve before its owed work reaches the point.
                Started::Serves(mut daemon) => drop(daemon.ended().await?),
            }
            must(self.has_fired(arming.point)?, || {
                format!("{arming} was never come by")
            })?;
            self.tally.deaths += 1;
            self.tally.deaths_in_start += 1;
        }
        self.tally.rounds += 1;
        self.settle().await
    }

    /// A start that fails after it has the lock, and dies on its way out.
    ///
    /// # Errors
    /// [`Failed`] if it does not fail, or the point is not reached.
    pub async fn die_in_failed_start(&mut self, arming: Arming) -> Result<(), Failed> {
        self.forget_fired()?;
        match self.launcher.start(&[arming]).await? {
            Started::Ended(..) => {}
            Started::Serves(_) => return Err(fail("a start that must fail does not")),
        }
        self.tally.deaths += 1;
        self.tally.deaths_in_start += 1;
        self.tally.rounds += 1;
        must(self.has_fired(arming.point)?, || {
            format!("{arming} was never come by")
        })
    }

    /// Makes the anchor before the first start, as operators with an existing key do.
    ///
    /// # Errors
    /// [`Failed`] if it cannot be written.
    pub fn make_anchor(&self) -> Result<(), Failed> {
        fs::create_dir(&self.anchor).map_err(fail)
    }

    /// Lets this much time pass, so that earlier requests may be forgotten.
    pub fn let_time_pass(&mut self, seconds: i64) {
        self.launcher.clock_s += seconds;
        // Requests of lives before this one may be forgotten by now, so they are not repeated.
        self.remembered_from = self.ledger.lock().lives().count() as u64;
    }

    /// Starts over with an empty directory and clients without replies.
    ///
    /// # Errors
    /// [`Failed`] if the directory cannot be emptied.
    pub fn clear(&mut self) -> Result<(), Failed> {
        let directory = self.directory();
        fs::remove_dir_all(directory).map_err(fail)?;
        // The anchor remembers a head of the old log, and would hold the new one.
        if self.anchor.exists() {
            fs::remove_dir_all(&self.anchor).map_err(fail)?;
        }
        fs::create_dir(directory).map_err(fail)?;
        let mut ledger = Ledger::new(self.dice.split(), self.launcher.trace.clone());
        ledger.begin();
        self.ledger = Shared::new(ledger);
        self.mirror = Mirror::default();
        Ok(())
    }

    /// Two daemons at once: one serves, the other reports the holder of the directory.
    ///
    /// # Errors
    /// [`Failed`] if both serve, or none.
    pub async fn two_at_once(&mut self) -> Result<(), Failed> {
        let (first, second) = tokio::join!(self.launcher.start(&[]), self.launcher.start(&[]));
        let (daemon, said) = match (first?, second?) {
            (Started::Serves(daemon), Started::Ended(status, said))
            | (Started::Ended(status, said), Started::Serves(daemon)) => {
                must(!status.success(), || {
                    "the second daemon ended well".to_owned()
                })?;
                (daemon, said)
            }
            _ => return Err(fail("of two daemons not exactly one serves")),
        };
        must(said.contains("is in use by"), || {
            format!("the second daemon says {said}")
        })?;
        self.finish_with(&daemon).await?;
        daemon.terminate()?;
        self.tally.rounds += 1;
        // Impatient operators send it twice.
        let _ = daemon.terminate();
        let mut daemon = daemon;
        let status = daemon.ended().await?;
        must(status.success(), || {
            format!("told to stop twice, the daemon ended with {status}")
        })
    }

    /// A start without help; every client gets its answer; everything is there; a clean end.
    ///
    /// # Errors
    /// [`Failed`] if that is not so.
    pub async fn settle(&mut self) -> Result<(), Failed> {
        // Whatever happened, no reader ever sees half of the file.
        check::accounts_json(self.directory())?;
        let daemon = self.launcher.serve().await?;
        self.finish_with(&daemon).await?;
        daemon.stop().await
    }

    async fn finish_with(&mut self, daemon: &Daemon) -> Result<(), Failed> {
        let clients = CLIENTS as usize;
        let load = Load::start(daemon.address(), &self.ledger, clients, false);
        load.end().await?;
        let unanswered = self
            .ledger
            .lock()
            .lives()
            .filter(|life| !life.is_over())
            .count();
        must(unanswered == 0, || {
            format!("{unanswered} clients are not answered")
        })?;
        let client = Client::connect(daemon.address()).await?;
        let mut client = client.ok_or_else(|| fail("nobody listens"))?;
        self.until_signed(&mut client, daemon.vkey()).await?;
        let state = State::read(&mut client, daemon.vkey(), &mut self.mirror).await?;
        state.must_be_all(&self.ledger.lock())?;
        let lives: Vec<_> = {
            let ledger = self.ledger.lock();
            let from = self.remembered_from;
            let asked_again = |life: &&Life| !life.given_up && life.number >= from;
            ledger.lives().filter(asked_again).cloned().collect()
        };
        let mut dice = self.dice.split();
        check::replay(&mut client, &lives, &mut dice).await?;
        // The repeated requests left nothing behind.
        let state = State::read(&mut client, daemon.vkey(), &mut self.mirror).await?;
        state.must_be_all(&self.ledger.lock())?;
        client.export_accounts().await?;
        state.file_must_be(self.directory())
    }
}

impl World {
    /// Waits for a key service, which signs with a delay; entries without a head are not in the log's public part.
    async fn until_signed(&mut self, client: &mut Client, vkey: &str) -> Result<(), Failed> {
        let acknowledged = check::entries_of(&self.ledger.lock());
        let patience = Instant::now() + UNTIL_SIGNED;
        loop {
            let report = self.mirror.follow(client, vkey).await?;
            let links = report.keys.links.len();
            // The comparison that follows reports entries that are still missing then.
            if self.mirror.asked_for() >= acknowledged + links || Instant::now() >= patience {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether the process must end: it is killed, or the fate of a commit cannot be known.
fn ends_the_process(arming: Arming) -> bool {
    match (arming.what, arming.point) {
        (What::Kill, _) => true,
        // The daemon rebuilds tiles and `accounts.json` from the rows, so it goes on.
        (_, Point::LogTileHalf | Point::AccountsTmpHalf) => false,
        (What::Broken, _) => true,
        // At the sync itself the content of the disk is unknown; before it, a full disk leaves no
        // doubt.
        (What::Full, point) => point == Point::StoreCommitFsync,
    }
}
