//! A batch before its commit: its decisions, and everything to do once it is durable.
//!
//! Making an attempt reads the driver and changes nothing in it except the callers' used
//! allowances, so an attempt whose commit failed is simply dropped.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use evidenceos_kernel::{
    claim::Claim,
    command::{
        ClaimCommand, Command, Decision, DecisionCommand, Event, LogCommand, Reply, Request,
        RunCommand, ServerCommand,
    },
    decide::decide,
    id::{ClaimId, HoldoutId, OwnerTag},
    record,
    refusal::{Pool, Refusal},
    state::{Key, Stage},
};
use evidenceos_store::{Batch, Entry, Recorded, Store, StoreError, StoredDecisions, Trace};
use evidenceos_tlog::{Tree, leaf_hash};

use crate::{
    Allowance, Answer, Call, Driver, Failure, Parked, Pending, Unfinished, Work, own::own_request,
    signing::Heads, slots::Slots, waiting::Line,
};

type Run = (HoldoutId, u64);

/// The fate of a call if the batch commits.
pub(crate) enum Decided {
    /// The caller gets this answer when the batch has committed.
    Answer(Answer),
    /// The caller gets the result when the claim settles.
    Join(ClaimId),
    /// The call waits in this line until something has ended.
    Wait(Line),
    /// No caller waits for it, and it left no trace.
    Drop,
}

impl Decided {
    fn by(decision: &Decision) -> Self {
        match &decision.reply {
            Reply::Running(claim) => Self::Join(*claim),
            Reply::Refused(refusal) => Self::Answer(Err(refusal.clone().into())),
            reply => Self::Answer(Ok(reply.clone())),
        }
    }
}

/// The reason why commands of the daemon's own are not decided.
pub(crate) enum NotDecided {
    Refused { nth: usize, refusal: Refusal },
    Store(StoreError),
}

impl From<StoreError> for NotDecided {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A decided batch.
#[derive(Default)]
pub(crate) struct Attempt {
    pub(crate) batch: Batch,
    /// The tree with the batch's entries, if there are any.
    pub(crate) tree: Option<Tree>,
    /// One outcome for each call, in order.
    pub(crate) answers: Vec<Decided>,
    pub(crate) works: Vec<Work>,
    pub(crate) settled: Vec<(Run, ClaimId)>,
    /// Runs of duplicate claims, whose turn to settle comes later.
    pub(crate) duplicates: Vec<Run>,
    pub(crate) begun_again: Option<Run>,
    /// Whether another key takes over the log.
    pub(crate) rotated: bool,
    /// Whether the batch states policies.
    pub(crate) stated: bool,
}

impl Attempt {
    /// Whether there is nothing to commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Whether it includes work that no call asked for.
    pub(crate) fn has_own_work(&self) -> bool {
        !self.settled.is_empty()
            || self.begun_again.is_some()
            || self.rotated
            || self.stated
            || (self.batch.entries.is_empty() && self.batch.head.is_some())
            || self.batch.accounts_files.is_some()
    }
}

impl<S: Store> Driver<S> {
    /// Decides, in this order: a key that takes over the log, policies to put in force, runs whose turn it is to
    /// settle, a run to start again, the calls. An unreadable row fails only the call that named it.
    ///
    /// # Errors
    /// [`StoreError`] if the rows for the driver's own work cannot be read.
    pub(crate) fn attempt(
        &mut self,
        wall_unix_ms: u64,
        calls: &[Pending],
    ) -> Result<Attempt, StoreError> {
        let mut stage = Stage::new(&self.resident);
        stage.advance_to(wall_unix_ms);
        let mut making = Making {
            stage,
            store: &mut self.store,
            slots: &self.slots,
            attempt: Attempt::default(),
            // Calls that still wait came before these.
            blocked: self.waiting.lines().collect(),
            idle_requests: &mut self.idle_requests,
            now_ms: wall_unix_ms,
            pending_by_owner: HashMap::new(),
        };
        // The link states the size and root of the tree before this batch, so it must be the
        // batch's first entry.
        if let Some(signed) = self.heads.link(&self.tree) {
            making.own(LogCommand::RotateKey(Box::new(signed)))?;
            making.attempt.rotated = true;
        }
        // Nothing of this batch may be decided under policies that the log does not state yet.
        if self.in_force != self.resident.in_force() {
            making.own(ServerCommand::StatePolicies(self.in_force))?;
            making.attempt.stated = true;
        }
        making.settle(&self.parked)?;
        if !self.stopping
            && self.rerunning.is_none()
            && let Some(unfinished) = self.unfinished.front()
        {
            making.begin_again(*unfinished)?;
        }
        for pending in calls {
            let decided = making.call(pending, self.stopping).unwrap_or_else(|error| {
                tracing::error!(%error, request = ?pending.call.request, "a row cannot be read");
                Decided::Answer(Err(Failure::NotStored))
            });
            making.attempt.answers.push(decided);
        }
        let mut attempt = making.finish(&self.tree, &self.heads);
        attempt.batch.accounts_files = self.announced.as_ref().map(|announced| announced.files);
        Ok(attempt)
    }
}

impl<S: Store> Driver<S> {
    /// Decides commands of the daemon's own, and nothing else.
    ///
    /// # Errors
    /// [`NotDecided`] if one of them is refused, or a row cannot be read.
    pub(crate) fn attempt_own(
        &mut self,
        wall_unix_ms: u64,
        requests: &[Request],
    ) -> Result<Attempt, NotDecided> {
        let mut stage = Stage::new(&self.resident);
        stage.advance_to(wall_unix_ms);
        let mut making = Making {
            stage,
            store: &mut self.store,
            slots: &self.slots,
            attempt: Attempt::default(),
            blocked: HashSet::new(),
            idle_requests: &mut self.idle_requests,
            now_ms: wall_unix_ms,
            pending_by_owner: HashMap::new(),
        };
        for (nth, request) in requests.iter().enumerate() {
            if let Command::Log(LogCommand::Recover(entry)) = &request.command {
                // A clock that is behind must not let the next entry be older than this one.
                making.stage.advance_to(record::time_of(entry).unwrap_or(0));
            }
            making.load(request)?;
            let decision = decide(&making.stage, request);
            let decision = decision.map_err(|refusal| NotDecided::Refused { nth, refusal })?;
            making.enact(request, decision);
        }
        Ok(making.finish(&self.tree, &self.heads))
    }
}

struct Making<'d, S> {
    stage: Stage<'d>,
    store: &'d mut S,
    slots: &'d Slots,
    attempt: Attempt,
    /// Lines in which an earlier call waits: later calls wait behind it.
    blocked: HashSet<Line>,
    pending_by_owner: HashMap<OwnerTag, usize>,
    idle_requests: &'d mut Allowance<OwnerTag>,
    now_ms: u64,
}

impl<S: Store> Making<'_, S> {
    fn settle(&mut self, parked: &HashMap<Run, Parked>) -> Result<(), StoreError> {
        let mut holdouts: Vec<HoldoutId> = parked.keys().map(|(holdout, _)| *holdout).collect();
        // The order of a hash map differs between processes. Sorted, the same outcomes give the
        // same log.
        holdouts.sort_unstable();
        holdouts.dedup();
        for holdout in holdouts {
            // Settling the oldest run makes the next one the oldest: one batch settles all
            // consecutive runs that have ended.
            while let Some((number, claim)) = self.oldest(&holdout)
                && let Some(outcome) = parked.get(&(holdout, number))
            {
                self.settle_one(holdout, number, claim, outcome)?;
            }
        }
        Ok(())
    }

    fn oldest(&self, holdout: &HoldoutId) -> Option<(u64, ClaimId)> {
        let run = self.stage.holdout(holdout)?.in_flight.front()?;
        Some((run.number, run.claim))
    }

    fn settle_one(
        &mut self,
        holdout: HoldoutId,
        number: u64,
        claim: ClaimId,
        outcome: &Parked,
    ) -> Result<(), StoreError> {
        let command = match outcome {
            Parked::Done(done) => RunCommand::Settle {
                holdout,
                number,
                report: done.report.clone(),
            },
            Parked::Abort => RunCommand::Abort { holdout, number },
            Parked::Duplicate => RunCommand::SettleDuplicate { holdout, number },
        };
        self.own(command)?;
        self.attempt.settled.push(((holdout, number), claim));
        if let (Parked::Done(done), Some(claim)) = (outcome, self.stage.claim(&claim)) {
            self.attempt.batch.traces.push(Trace {
                claim_seq: claim.seq,
                hash: done.report.trace_hash,
                bytes: done.trace.clone(),
            });
        }
        Ok(())
    }

    /// A failure is counted in a commit before the run starts again, so that the next start knows
    /// of a run that ends every process that executes it.
    fn begin_again(&mut self, unfinished: Unfinished) -> Result<(), StoreError> {
        let Unfinished { run, failed } = unfinished;
        let (holdout, number) = run;
        let Some(in_flight) = self.stage.run(&holdout, number).cloned() else {
            return Ok(());
        };
        self.own(RunCommand::BeginAgain {
            holdout,
            number,
            failed,
        })?;
        // `start` starts nothing if the stage lacks the claim. The run would then count as
        // restarted forever, and no later run would get its turn.
        if self.stage.claim(&in_flight.claim).is_none() {
            let claim = self.store.claim(&in_flight.claim)?;
            self.stage.supply_claim(in_flight.claim, claim);
        }
        self.attempt.begun_again = Some(run);
        self.start(holdout, number, true);
        Ok(())
    }

    /// A command of the driver's own, which cannot be refused.
    fn own(&mut self, command: impl Into<Command>) -> Result<(), StoreError> {
        let request = own_request(command.into());
        self.load(&request)?;
        match decide(&self.stage, &request) {
            Ok(decision) => self.enact(&request, decision),
            Err(refusal) => unreachable!("the kernel refused the driver's own work: {refusal}"),
        }
        Ok(())
    }

    fn call(&mut self, pending: &Pending, stopping: bool) -> Result<Decided, StoreError> {
        let Pending { call, waited_in } = pending;
        if let Some(line) = waited_in
            && self.blocked.contains(line)
        {
            return Ok(Decided::Wait(*line));
        }
        let request = &call.request;
        let executes = matches!(
            request.command,
            Command::Claim(ClaimCommand::Execute { .. })
        );
        // No caller would get the result, but the run would take a slot and reserve budgets.
        if executes && call.reply_to.is_gone() {
            return Ok(Decided::Drop);
        }
        self.load(request)?;
        let decision = match decide(&self.stage, request) {
            Ok(decision) => decision,
            Err(refusal) if executes => {
                return Ok(match self.line_for(request, &refusal) {
                    Some(line) => self.wait(line),
                    None => Decided::Answer(Err(refusal.into())),
                });
            }
            Err(refusal) => return Ok(Decided::Answer(Err(refusal.into()))),
        };
        if is_new_work(&decision) && !self.store.takes_new_work() {
            return Ok(Decided::Answer(Err(Failure::DiskFull)));
        }
        let admitted = admission(&decision);
        if let Some(admitted) = &admitted {
            // A run admitted now could outlast the deadline of the stop, and the next start would
            // execute it again.
            if stopping {
                return Ok(Decided::Answer(Err(Failure::Stopping)));
            }
            if let Some(line) = self.line_of(admitted) {
                return Ok(self.wait(line));
            }
            if !admitted.is_duplicate {
                *self.pending_by_owner.entry(admitted.owner).or_insert(0) += 1;
            }
        }
        let decided = Decided::by(&decision);
        self.keep_module(call, &decision);
        self.keep_decisions(request, &decision);
        if self.is_worth_a_row(request, &decision) {
            self.enact(request, decision);
        }
        match admitted {
            Some(admitted) if admitted.is_duplicate => self.settle_or_park(&admitted)?,
            Some(admitted) => self.start(admitted.holdout, admitted.number, false),
            None => {}
        }
        Ok(decided)
    }

    /// Commits a call's module with it. If the commit changes nothing, no claim names the module:
    /// storing its bytes would leave a blob that no claim refers to.
    fn keep_module(&mut self, call: &Call, decision: &Decision) {
        let names_it = |event: &Event| matches!(event, Event::ArtifactsCommitted { .. });
        if let Some(module) = &call.module
            && decision.events.iter().any(names_it)
        {
            self.attempt.batch.modules.push(module.clone());
        }
    }

    /// Whether a decision is enacted: each caller has a limited number of requests that change nothing and are only
    /// remembered.
    fn is_worth_a_row(&mut self, request: &Request, decision: &Decision) -> bool {
        if decision.events.is_empty() || !is_idle(decision) {
            return true;
        }
        let (caller, now) = (request.caller.tag, self.now_ms);
        if !self.idle_requests.wait(&caller, now).is_zero() {
            return false;
        }
        self.idle_requests.take(caller, 1, now);
        true
    }

    /// Nothing runs for a duplicate: if it is the oldest of its holdout, its turn is now.
    fn settle_or_park(&mut self, admitted: &Admitted) -> Result<(), StoreError> {
        let run = (admitted.holdout, admitted.number);
        match self.oldest(&admitted.holdout) {
            Some((number, claim)) if number == admitted.number => {
                self.settle_one(admitted.holdout, number, claim, &Parked::Duplicate)
            }
            _ => {
                self.attempt.duplicates.push(run);
                Ok(())
            }
        }
    }

    /// The line in which an admission must wait although the kernel allows it: behind earlier
    /// calls, or for a slot.
    fn line_of(&self, admitted: &Admitted) -> Option<Line> {
        let (holdout, owner) = (admitted.holdout, admitted.owner);
        let (all, own) = (Line::Holdout(holdout), Line::Own(holdout, owner));
        if self.blocked.contains(&all) {
            return Some(all);
        }
        if self.blocked.contains(&own) {
            return Some(own);
        }
        // A duplicate keeps its place behind earlier calls but executes nothing, so it needs no
        // slot.
        if admitted.is_duplicate {
            return None;
        }
        if !self.slots.admits(self.attempt.works.len()) {
            return Some(all);
        }
        let pending = self.pending_by_owner.get(&owner).copied().unwrap_or(0);
        self.slots.has_its_share(owner, pending).then_some(own)
    }

    /// The line in which a refused call waits, if waiting helps: if only the owner's own runs block
    /// it, it holds up no other owner.
    fn line_for(&self, request: &Request, refusal: &Refusal) -> Option<Line> {
        let Command::Claim(ClaimCommand::Execute { claim }) = &request.command else {
            return None;
        };
        let terms = &self.stage.claim(claim)?.terms;
        match refusal {
            Refusal::SameClaimRunning(earlier) => Some(Line::Same(*earlier)),
            Refusal::Reserved {
                pool: Pool::PrincipalSealed | Pool::PrincipalAnswers | Pool::Credit,
            } => Some(Line::Own(terms.holdout, terms.owner)),
            Refusal::Reserved { .. } => Some(Line::Holdout(terms.holdout)),
            _ => None,
        }
    }

    /// The log has only the records' root; the store keeps the records.
    fn keep_decisions(&mut self, request: &Request, decision: &Decision) {
        let Command::Decision(DecisionCommand::Record(new)) = &request.command else {
            return;
        };
        for event in &decision.events {
            if let Event::DecisionsRecorded { batch, index } = event {
                self.attempt.batch.decisions.push(StoredDecisions {
                    batch: *batch,
                    index: *index,
                    recorded_unix_ms: self.stage.now_unix_ms(),
                    records: Arc::clone(&new.records),
                });
            }
        }
    }

    fn wait(&mut self, line: Line) -> Decided {
        self.blocked.insert(line);
        Decided::Wait(line)
    }

    fn start(&mut self, holdout: HoldoutId, number: u64, apart: bool) {
        let Some(held) = self.stage.holdout(&holdout) else {
            return;
        };
        let Some(run) = self.stage.run(&holdout, number) else {
            return;
        };
        let Some(claim) = self.stage.claim(&run.claim) else {
            return;
        };
        self.attempt.works.push(Work {
            holdout,
            reference: held.reference.clone(),
            blob: held.blob,
            description: held.description.clone(),
            number,
            claim: Box::new(Claim::clone(claim)),
            allowance: run.answers_reserved,
            ended_before: run.place.map(|place| place.ended_before),
            apart,
        });
    }

    fn load(&mut self, request: &Request) -> Result<(), StoreError> {
        loop {
            let missing = self.stage.missing(request);
            if missing.is_empty() {
                return Ok(());
            }
            for key in missing {
                match key {
                    Key::Claim(id) => {
                        let claim = self.store.claim(&id)?;
                        self.stage.supply_claim(id, claim);
                    }
                    Key::Pool(holdout, owner) => {
                        let pool = self.store.pool(holdout, owner)?;
                        self.stage.supply_pool(holdout, owner, pool);
                    }
                    Key::Remembered(key) => {
                        let remembered = self.store.remembered(&key)?;
                        self.stage.supply_remembered(key, remembered);
                    }
                    Key::Account(owner) => {
                        let account = self.store.account(&owner)?;
                        self.stage.supply_account(owner, account);
                    }
                    Key::Question(question) => {
                        let claim = self.store.question(&question)?;
                        self.stage.supply_question(question, claim);
                    }
                }
            }
        }
    }

    fn enact(&mut self, request: &Request, decision: Decision) {
        self.stage.enact(&decision);
        let entries = decision.entries.into_iter();
        self.attempt
            .batch
            .entries
            .extend(entries.map(|bytes| Entry {
                leaf: leaf_hash(&bytes),
                bytes,
            }));
        if !decision.events.is_empty() {
            self.attempt.batch.recorded.push(Recorded {
                at_unix_ms: self.stage.now_unix_ms(),
                caller: request.caller.tag,
                events: decision.events,
            });
        }
    }

    /// The head over the batch's entries, or one signed elsewhere, is part of the batch: one sync
    /// persists both, and nothing signed is seen before it is durable.
    fn finish(self, tree: &Tree, heads: &Heads) -> Attempt {
        let mut attempt = self.attempt;
        if !attempt.batch.entries.is_empty() {
            // The driver's own tree does not change before the commit: an attempt whose commit
            // failed is dropped.
            let mut tree = tree.clone();
            for entry in &attempt.batch.entries {
                tree.append(entry.leaf);
            }
            attempt.tree = Some(tree);
        }
        attempt.batch.head = heads.head(attempt.tree.as_ref());
        attempt.batch.changes = self.stage.into_changes();
        attempt
    }
}

/// Whether a decision starts new work, which takes room now and later. Work that ends or protects
/// something is done as long as there is any room at all.
fn is_new_work(decision: &Decision) -> bool {
    decision.events.iter().any(|event| {
        matches!(
            event,
            Event::HoldoutRegistered(_)
                | Event::ClaimCreated(_)
                | Event::ArtifactsCommitted { .. }
                | Event::RunAdmitted { .. }
                | Event::HoldoutsRekeyed(_)
                | Event::CreditGranted { .. }
                | Event::DecisionsRecorded { .. }
        )
    })
}

/// Whether a decision only remembers a request.
fn is_idle(decision: &Decision) -> bool {
    decision.events.iter().all(|event| {
        matches!(
            event,
            Event::RequestRemembered { .. }
                | Event::ClaimRequestRemembered { .. }
                | Event::AccountRequestRemembered { .. }
                | Event::CreditDenied(_)
        )
    })
}

/// A run that a decision admits.
struct Admitted {
    holdout: HoldoutId,
    number: u64,
    owner: OwnerTag,
    is_duplicate: bool,
}

fn admission(decision: &Decision) -> Option<Admitted> {
    decision.events.iter().find_map(|event| match event {
        Event::RunAdmitted { holdout, run } => Some(Admitted {
            holdout: *holdout,
            number: run.number,
            owner: run.owner,
            is_duplicate: run.place.is_some_and(|place| place.duplicate_of.is_some()),
        }),
        _ => None,
    })
}
