//! The one writer: batches, the commit, and work that runs beside it.
//!
//! [`Driver::step`] does all of it: it decides the waiting inputs, in order, each command against a
//! stage that holds the events before it; signs the tree head; commits everything in one
//! transaction; and only then merges, replies and starts work. It knows no sockets, threads or
//! clocks, so a simulator can drive it; [`mailbox::run`] is the loop around it, and [`clock`] gives
//! that loop its time.
//!
//! Invariants: no reply leaves before the fate of its batch is known; a batch whose fate is unknown
//! ends the process; runs of one holdout settle in the order of their admission.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

mod allowance;
mod attempt;
pub mod clock;
mod conclude;
pub mod mailbox;
mod own;
pub mod priority;
mod signing;
mod slots;
mod waiting;

use std::{
    collections::{HashMap, VecDeque},
    error::Error,
    sync::mpsc::Sender,
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    account::Account,
    bits::MicroBits,
    claim::Claim,
    command::{Reply, Request, RunReport},
    holdout::Description,
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    in_force::InForce,
    log_key::LogKey,
    refusal::Refusal,
    state::Resident,
};
use evidenceos_store::{
    AccountsFiles, Head, Module, NotCommitted, Outcome, Store, StoreError, log::Released,
};
use evidenceos_tlog::{Hash, Tile, Tree};
use thiserror::Error;

pub use crate::{
    allowance::Allowance,
    own::{Alone, Enacted, NotEnacted, OwnWork},
    signing::{RemoteSigner, Signer, Signing},
};
use crate::{
    signing::Heads,
    slots::Slots,
    waiting::{Line, Waiting},
};

/// Executes guests. The outcome comes back as [`Input::Finished`].
pub trait Runner: Send {
    /// Takes a run; returns at once.
    fn start(&self, work: Work);
}

/// Shows a durable head to readers.
pub trait Publisher: Send {
    /// Reports that the log grew to a durable tree whose head is signed elsewhere.
    fn grown(&self, _size: u64, _root: Hash) {}
    /// Takes a head and the tiles that its batch completed.
    fn release(&self, released: Released, full: Vec<Tile>);
    /// Reports that another key signs the log; its first head comes next.
    fn rotated(&self, key: &LogKey);
    /// Reports accounts that changed, in their present state.
    fn accounts_changed(&self, accounts: &mut dyn Iterator<Item = &Account>);
}

/// The destination of the answer to a call.
pub trait ReplyTo: Send {
    /// Sends the answer; called once.
    fn send(self: Box<Self>, answer: Answer);
    /// Whether no caller waits for the answer any more.
    fn is_gone(&self) -> bool;
}

/// The answer to a call.
pub type Answer = Result<Reply, Failure>;

/// The reason why a call has no reply from the kernel, or a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// The kernel refused the command; nothing was done.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk is full; nothing was done.
    #[error("the server's disk is full; nothing was done, ask again later")]
    DiskFull,
    /// The command alone makes the commit fail, or the store cannot be read; nothing was done.
    #[error("the server could not store this; nothing was done, tell its operator")]
    NotStored,
    /// Nothing is signed or charged at present; nothing was done.
    #[error(
        "the server is read-only: nothing confirms that its data is the newest (no anchor remembers the newest head of its log, one remembers more than is here, or it was restored from a backup); the request was not applied, ask again later, or ask its operator"
    )]
    Held,
    /// The server stops; nothing was done.
    #[error("the server is stopping; nothing was done, ask again")]
    Stopping,
    /// The outcome of the command is unknown.
    #[error(
        "the server lost its disk, and it is not known whether this was done; ask again with the same x-request-id"
    )]
    Unknown,
}

/// A request with its module and its destination.
pub struct Call {
    pub request: Request,
    /// The module of a commit.
    pub module: Option<Module>,
    /// The destination of the answer.
    pub reply_to: Box<dyn ReplyTo>,
}

/// A call on its way through a step, and the line in which it waited, if it did.
struct Pending {
    call: Call,
    waited_in: Option<Line>,
}

/// A run to execute.
#[derive(Debug, Clone)]
pub struct Work {
    pub holdout: HoldoutId,
    /// The holdout's name, to which its encrypted items are bound.
    pub reference: String,
    /// Digest of the holdout's encrypted items, and their blob's name.
    pub blob: Digest,
    /// Its policy and sizes.
    pub description: Description,
    /// The run's number in the order of its holdout.
    pub number: u64,
    pub claim: Box<Claim>,
    /// The most that its questions may be charged.
    pub allowance: MicroBits,
    /// Runs of the holdout that had ended at its admission; `None` if an earlier release admitted
    /// it.
    pub ended_before: Option<u64>,
    /// Whether to execute it in a fresh process: it was under way when a process ended, and it, or
    /// another guest of that process, may be the cause.
    pub apart: bool,
}

/// An executed run.
#[derive(Debug)]
pub struct Finished {
    pub holdout: HoldoutId,
    /// The run's number in the order of its holdout.
    pub number: u64,
    /// The run's result; an error is the death of the process that executed it, which counts as a
    /// failure.
    pub result: Result<RunDone, String>,
}

/// The results of an executed run.
#[derive(Debug, Clone)]
pub struct RunDone {
    pub report: Box<RunReport>,
    /// The run's trace; empty if it is already a blob.
    pub trace: Vec<u8>,
}

/// The inputs of a step.
pub enum Input {
    Call(Call),
    /// A run was executed.
    Finished(Finished),
    /// The result of signing a head elsewhere; the error is the reason of a failure.
    Signed(Result<Head, String>),
    /// A key takes over the log.
    NewSigner(Box<dyn Signer>),
    /// An `accounts.json` is about to be put in place.
    Announced(Announced),
    /// Policies are about to be put in force.
    Stated(Stated),
}

/// Policies that the log must state before they are in force.
#[derive(Debug)]
pub struct Stated {
    pub in_force: InForce,
    /// Gets a message when the log states the policies, or when a loop that has not started will.
    /// If dropped without one, the log does not state them, and the earlier policies stay in force.
    pub committed: Sender<()>,
}

/// An `accounts.json` whose digest must be durable before it is put in place.
#[derive(Debug)]
pub struct Announced {
    /// The new version, and the one in place.
    pub files: AccountsFiles,
    /// Gets a message when the file may be put in place. If dropped without one, it may not.
    pub committed: Sender<()>,
}

/// The reason why the process must end.
#[derive(Debug, Error)]
pub enum Fatal {
    /// The durable state is unknown, or the store's rules were broken.
    #[error("the store failed; only a restart can read its state: {0}")]
    Store(#[from] StoreError),
    /// The part that halted the loop knows why nothing else may be signed.
    #[error("nothing more is signed: {0}")]
    Halted(Box<dyn Error + Send + Sync>),
}

/// The limits of the driver.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Runs admitted and not finished; a principal gets at most a quarter of them.
    pub run_slots: usize,
    /// Calls that wait for reservations or slots; a principal gets at most a quarter of them.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            run_slots: 256,
            waiting: 4_096,
        }
    }
}

/// The settlement that a run gets when its turn comes.
enum Parked {
    Done(RunDone),
    /// The run failed too often, or cannot be repeated.
    Abort,
    /// Nothing ran: the claim takes an earlier verdict.
    Duplicate,
}

/// Requests of one caller that change nothing but are remembered: this many at once, and per second. Each takes a
/// durable row. Further ones are answered, and decided again when they are repeated.
const IDLE_REQUESTS: u64 = 1_024;
const IDLE_REQUESTS_A_SECOND: u64 = 1;

/// The failures after which a run is aborted: faults of the server, or deaths of its own process. A
/// stop or a death of the daemon is no failure of a run.
const MAX_FAILURES: u8 = 3;

/// A run to start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unfinished {
    run: (HoldoutId, u64),
    /// Whether it failed, which is counted before it starts again.
    failed: bool,
}

/// The one writer: it decides, commits and publishes everything that changes the store.
pub struct Driver<S> {
    store: S,
    resident: Resident,
    tree: Tree,
    heads: Heads,
    runner: Box<dyn Runner>,
    publisher: Box<dyn Publisher>,
    slots: Slots,
    /// Executed runs that wait for their turn to settle.
    parked: HashMap<(HoldoutId, u64), Parked>,
    waiting: Waiting,
    /// The callers that wait for each claim to settle.
    waiters: HashMap<ClaimId, Vec<Box<dyn ReplyTo>>>,
    /// Runs found unfinished at start-up, and those that failed: restarted one at a time.
    unfinished: VecDeque<Unfinished>,
    /// The one of them that is running.
    rerunning: Option<(HoldoutId, u64)>,
    /// The accounts file to be announced with the next batch.
    announced: Option<Announced>,
    /// The policies that the log is to state.
    in_force: InForce,
    /// The sender that waits until the log states them.
    stating: Option<Sender<()>>,
    /// Each caller's requests that change nothing and are remembered.
    idle_requests: Allowance<OwnerTag>,
    stopping: bool,
}

impl<S: Store> Driver<S> {
    /// A driver over the store's state, with the tree of its entries. The first steps restart runs
    /// that were found unfinished. Entries from `signed_size` on have no head yet; this happens
    /// only if heads are signed elsewhere.
    #[must_use]
    #[allow(
        clippy::too_many_arguments,
        reason = "everything around the driver, once"
    )]
    pub fn new(
        store: S,
        resident: Resident,
        tree: Tree,
        signing: Signing,
        signed_size: u64,
        runner: Box<dyn Runner>,
        publisher: Box<dyn Publisher>,
        limits: Limits,
    ) -> Self {
        let mut driver = Self::over(
            store,
            resident,
            tree,
            signing,
            signed_size,
            runner,
            publisher,
            limits,
        );
        driver.find_unfinished();
        driver.heads.ask(&mut driver.tree);
        driver
    }

    /// The same driver, before it looks for unfinished runs and unsigned entries.
    #[allow(
        clippy::too_many_arguments,
        reason = "everything around the driver, once"
    )]
    fn over(
        store: S,
        resident: Resident,
        tree: Tree,
        signing: Signing,
        signed_size: u64,
        runner: Box<dyn Runner>,
        publisher: Box<dyn Publisher>,
        limits: Limits,
    ) -> Self {
        Self {
            store,
            tree,
            heads: Heads::new(signing, signed_size),
            runner,
            publisher,
            slots: Slots::new(limits.run_slots),
            parked: HashMap::new(),
            waiting: Waiting::new(limits.waiting),
            waiters: HashMap::new(),
            unfinished: VecDeque::new(),
            rerunning: None,
            announced: None,
            in_force: resident.in_force(),
            stating: None,
            idle_requests: Allowance::new(IDLE_REQUESTS, IDLE_REQUESTS_A_SECOND),
            stopping: false,
            resident,
        }
    }

    /// The same driver under these policies: the log states them before anything else is decided.
    #[must_use]
    pub fn under(self, in_force: InForce) -> Self {
        Self { in_force, ..self }
    }

    /// Aborts runs that began under another engine: the same module would not give the same bytes.
    /// Restarts the others: the end of this process, by itself or not, proves nothing against any
    /// of them.
    fn find_unfinished(&mut self) {
        let mut holdouts: Vec<_> = self.resident.holdouts().collect();
        holdouts.sort_unstable_by_key(|holdout| holdout.seq);
        for holdout in holdouts {
            for run in &holdout.in_flight {
                let key = (holdout.id, run.number);
                if run.place.is_some_and(|place| place.duplicate_of.is_some()) {
                    self.parked.insert(key, Parked::Duplicate);
                } else if run.engine != self.resident.engine() {
                    tracing::warn!(holdout = %holdout.reference, claim = %run.claim, engine = run.engine, "aborting a run that started under another guest engine");
                    self.parked.insert(key, Parked::Abort);
                } else {
                    self.unfinished.push_back(Unfinished {
                        run: key,
                        failed: false,
                    });
                }
            }
        }
    }

    /// Whether runs are being executed, unfinished ones wait, or entries have no head yet.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.slots.taken() > 0
            || self.rerunning.is_some()
            || !self.unfinished.is_empty()
            || self.heads.are_behind(&self.tree)
    }

    /// Takes no more runs: waiting calls are answered with a failure, runs under way settle.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.unfinished.clear();
        self.send_waiting_away();
    }

    fn send_waiting_away(&mut self) {
        for (_, call) in self.waiting.take() {
            call.reply_to.send(Err(Failure::Stopping));
        }
    }

    /// Answers all waiting callers with a failure. Their claims may still be under way; a repeated
    /// request id finds them.
    pub fn abandon(&mut self) {
        for waiter in std::mem::take(&mut self.waiters).into_values().flatten() {
            waiter.send(Err(Failure::Unknown));
        }
        self.send_waiting_away();
    }

    /// The store, for work between steps.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Gives the store back.
    #[must_use]
    pub fn into_store(self) -> S {
        self.store
    }

    /// The committed state that stays in memory.
    #[must_use]
    pub fn resident(&self) -> &Resident {
        &self.resident
    }

    /// Decides and commits all inputs, and everything that they made possible.
    ///
    /// # Errors
    /// [`Fatal`]: all callers were told that the outcome is unknown, and the process must end.
    pub fn step(&mut self, wall_unix_ms: u64, inputs: Vec<Input>) -> Result<(), Fatal> {
        let mut calls = Vec::new();
        // A step without inputs is one that is owed: work of the driver's own is left.
        let mut progress = inputs.is_empty();
        for input in inputs {
            match input {
                Input::Call(call) => calls.push(call),
                Input::Finished(finished) => {
                    progress = true;
                    self.park(finished);
                }
                Input::Signed(result) => {
                    self.heads.came_back(result);
                    self.heads.ask(&mut self.tree);
                }
                Input::NewSigner(signer) => self.heads.follow(signer),
                Input::Announced(announced) => self.announced = Some(announced),
                Input::Stated(stated) => {
                    self.in_force = stated.in_force;
                    self.stating = Some(stated.committed);
                }
            }
        }
        let mut pending = Vec::new();
        // No waiting call can be served before a run has finished.
        if progress {
            let waited = self.waiting.take().into_iter();
            pending.extend(waited.map(|(line, call)| Pending {
                call,
                waited_in: Some(line),
            }));
        }
        pending.extend(calls.into_iter().map(|call| Pending {
            call,
            waited_in: None,
        }));
        self.commit_calls(wall_unix_ms, pending)
    }

    /// Frees an executed run's slot at once; the run waits for its turn to settle. A failed run is
    /// restarted; a run that fails for the third time is aborted.
    fn park(&mut self, finished: Finished) {
        let key = (finished.holdout, finished.number);
        let Some(run) = self
            .resident
            .holdout(&key.0)
            .and_then(|holdout| holdout.in_flight.iter().find(|run| run.number == key.1))
        else {
            return;
        };
        let attempt = run.attempt;
        self.slots.give_back(key);
        if self.rerunning == Some(key) {
            self.rerunning = None;
        }
        match finished.result {
            Ok(done) => {
                failpoint::pass(Point::WorkDoneBeforeSettle);
                self.parked.insert(key, Parked::Done(done));
            }
            Err(fault) if attempt + 1 < MAX_FAILURES => {
                tracing::error!(claim = %run.claim, fault, attempt, "a run failed; the daemon restarts it");
                // A driver that stops leaves the run to the next start, which finds it under way.
                if !self.stopping {
                    self.unfinished.push_back(Unfinished {
                        run: key,
                        failed: true,
                    });
                }
            }
            Err(fault) => {
                tracing::error!(claim = %run.claim, fault, attempt, "a run failed for the third time; aborting it");
                self.parked.insert(key, Parked::Abort);
            }
        }
    }

    fn commit_calls(&mut self, wall_unix_ms: u64, calls: Vec<Pending>) -> Result<(), Fatal> {
        let attempt = match self.attempt(wall_unix_ms, &calls) {
            Ok(attempt) => attempt,
            Err(error) => {
                tracing::error!(%error, "cannot read the claims to settle");
                answer_all(calls, &Failure::NotStored);
                self.abandon();
                return Err(error.into());
            }
        };
        // Refusals and calls that wait change nothing durable, so they cost no sync.
        if attempt.is_empty() {
            self.conclude(attempt, calls);
            return Ok(());
        }
        failpoint::pass(Point::DriverBatchDecided);
        if attempt.batch.head.is_some() {
            failpoint::pass(Point::LogHeadSignedBeforeCommit);
        }
        match self.store.commit(&attempt.batch) {
            Outcome::Committed => {
                self.conclude(attempt, calls);
                Ok(())
            }
            Outcome::NotCommitted(NotCommitted::Full) => {
                // Dropping the announcement tells its sender that the file must not be put in
                // place.
                self.announced = None;
                // A reload learns that it failed. The policies of a start are in force: they stay
                // owed.
                if self.stating.take().is_some() {
                    self.in_force = self.resident.in_force();
                }
                answer_all(calls, &Failure::DiskFull);
                Ok(())
            }
            Outcome::NotCommitted(NotCommitted::Constraint(error)) => {
                self.one_at_a_time(wall_unix_ms, error, attempt.has_own_work(), calls)
            }
            Outcome::Unknown(error) => {
                answer_all(calls, &Failure::Unknown);
                self.abandon();
                Err(error.into())
            }
        }
    }

    /// Commits the batch's inputs one at a time, because one command breaks a rule of the store and
    /// the others must not suffer. The driver's own work goes first and alone; it cannot be
    /// refused.
    fn one_at_a_time(
        &mut self,
        wall_unix_ms: u64,
        error: StoreError,
        own_work: bool,
        calls: Vec<Pending>,
    ) -> Result<(), Fatal> {
        match (own_work, calls.as_slice()) {
            // Only the driver's own work is left, and it can be neither refused nor left out.
            (true, []) => {
                self.abandon();
                return Err(error.into());
            }
            (false, [culprit]) => {
                tracing::error!(%error, request = ?culprit.call.request, "a command alone makes the commit fail");
                answer_all(calls, &Failure::NotStored);
                return Ok(());
            }
            _ => {}
        }
        let own_work = own_work.then(Vec::new).into_iter();
        let mut parts = own_work.chain(calls.into_iter().map(|call| vec![call]));
        while let Some(part) = parts.next() {
            if let Err(fatal) = self.commit_calls(wall_unix_ms, part) {
                parts.for_each(|part| answer_all(part, &Failure::Unknown));
                return Err(fatal);
            }
        }
        Ok(())
    }

    /// Whether work of the driver's own is left to commit because the last batch with it failed.
    #[must_use]
    pub fn owes_a_step(&self) -> bool {
        let turn = |(holdout, number): &(HoldoutId, u64)| {
            let oldest = self
                .resident
                .holdout(holdout)
                .and_then(|h| h.in_flight.front());
            oldest.is_some_and(|run| run.number == *number)
        };
        self.heads.owe_a_step()
            || self.in_force != self.resident.in_force()
            || self.parked.keys().any(turn)
            || (self.rerunning.is_none() && !self.unfinished.is_empty())
    }
}

fn answer_all(calls: Vec<Pending>, failure: &Failure) {
    for Pending { call, .. } in calls {
        call.reply_to.send(Err(failure.clone()));
    }
}
