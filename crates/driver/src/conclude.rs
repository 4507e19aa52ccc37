//! A batch after its commit: memory follows the disk, then the callers get their replies.

use std::collections::HashMap;

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    claim::Claim,
    command::Reply,
    id::{ClaimId, HoldoutId},
    refusal::Refusal,
};
use evidenceos_store::{Batch, Head, Store, log::Released};
use evidenceos_tlog::Tree;

use crate::{
    Call, Driver, Failure, Parked, Pending, Work,
    attempt::{Attempt, Decided},
};

impl<S: Store> Driver<S> {
    /// Applies a durable batch: memory follows the disk, then the callers get their replies.
    pub(crate) fn conclude(&mut self, attempt: Attempt, calls: Vec<Pending>) {
        let Attempt {
            mut batch,
            tree,
            answers,
            works,
            settled,
            duplicates,
            begun_again,
            rotated,
            stated: _,
        } = attempt;
        let durable = !batch.is_empty();
        let head = batch.head.take();
        self.show(&batch, head, tree, rotated);
        let results = self.results(&settled, &batch);
        for run in duplicates {
            self.parked.insert(run, Parked::Duplicate);
        }
        // A batch that was not committed changes nothing, not even the clock.
        if durable {
            self.resident.merge(batch.changes);
        }
        self.stated();
        self.begin(works, begun_again);
        pass_before_replies(durable, !settled.is_empty(), &answers);
        self.reply(calls, answers, durable);
        for (_, claim) in settled {
            for waiter in self.waiters.remove(&claim).into_iter().flatten() {
                waiter.send(match results.get(&claim) {
                    Some(claim) => Ok(Reply::Settled(Box::new(claim.clone()))),
                    None => Err(Failure::Unknown),
                });
            }
        }
    }

    /// Hands durable data to the parts that publish it.
    fn show(&mut self, batch: &Batch, head: Option<Head>, tree: Option<Tree>, rotated: bool) {
        if let Some(tree) = tree {
            self.tree = tree;
            if self.heads.are_signed_elsewhere() {
                self.publisher.grown(self.tree.size(), self.tree.root());
            }
        }
        for key in &batch.changes.log_keys {
            self.publisher.rotated(key);
        }
        if let Some((head, tree, full)) = self.heads.committed(head, &mut self.tree, rotated) {
            self.publisher.release(Released::new(head, tree), full);
        }
        self.heads.ask(&mut self.tree);
        if batch.accounts_files.is_some()
            && let Some(announced) = self.announced.take()
        {
            // If the sender of the announcement is gone, the file is not put in place.
            let _ = announced.committed.send(());
        }
        let changes = &batch.changes;
        if !changes.new_accounts.is_empty() || !changes.accounts.is_empty() {
            let mut accounts = changes.new_accounts.iter().chain(&changes.accounts);
            self.publisher.accounts_changed(&mut accounts);
        }
    }

    /// The claims that settled, for their waiters; removes their runs from the parked ones.
    fn results(
        &mut self,
        settled: &[((HoldoutId, u64), ClaimId)],
        batch: &Batch,
    ) -> HashMap<ClaimId, Claim> {
        let mut results = HashMap::new();
        for (run, claim) in settled {
            self.parked.remove(run);
            let rows = batch.changes.claims.iter();
            let mut rows = rows.chain(&batch.changes.new_claims);
            let row = rows.find(|row| row.id == *claim);
            results.extend(row.map(|row| (*claim, row.clone())));
        }
        results
    }

    /// Starts the runs that the batch admitted, or restarted.
    fn begin(&mut self, works: Vec<Work>, begun_again: Option<(HoldoutId, u64)>) {
        if let Some(key) = begun_again {
            failpoint::pass(Point::StartupInFlightAttemptCommitted);
            // The run stays first in line until its restart is durable: after a failed commit it is
            // still owed.
            self.unfinished.pop_front();
            self.rerunning = Some(key);
        }
        if !works.is_empty() {
            failpoint::pass(Point::WorkReserved);
        }
        // Start runs only after the commit: their reservations must be durable before any answer.
        for work in works {
            self.slots
                .take((work.holdout, work.number), work.claim.terms.owner);
            self.runner.start(work);
        }
        if begun_again.is_some() {
            failpoint::pass(Point::StartupInFlightMid);
        }
    }

    fn reply(&mut self, calls: Vec<Pending>, answers: Vec<Decided>, durable: bool) {
        let half = answers.len() / 2;
        for (nth, (pending, answer)) in calls.into_iter().zip(answers).enumerate() {
            if durable && nth > 0 && nth == half {
                failpoint::pass(Point::DriverReplyHalf);
            }
            match (pending.waited_in, answer) {
                // A call that has waited keeps its place, in whatever line it waits now.
                (Some(_), Decided::Wait(line)) if !self.stopping => {
                    self.waiting.push(line, pending.call);
                }
                (_, answer) => self.deliver(pending.call, answer),
            }
        }
    }

    /// Tells the waiting sender that the log states the policies.
    fn stated(&mut self) {
        if self.resident.in_force() == self.in_force
            && let Some(committed) = self.stating.take()
        {
            // If the sender is gone, the policies are not put in force.
            let _ = committed.send(());
        }
    }

    fn deliver(&mut self, call: Call, answer: Decided) {
        match answer {
            Decided::Answer(answer) => call.reply_to.send(answer),
            Decided::Join(claim) => self.waiters.entry(claim).or_default().push(call.reply_to),
            Decided::Wait(_) if self.stopping => call.reply_to.send(Err(Failure::Stopping)),
            Decided::Wait(line) if self.waiting.admits(call.request.caller.tag) => {
                self.waiting.push(line, call);
            }
            Decided::Wait(_) => call.reply_to.send(Err(Refusal::QueueFull.into())),
            Decided::Drop => {}
        }
    }
}

/// The failpoints between a durable batch and its replies.
fn pass_before_replies(durable: bool, settled: bool, answers: &[Decided]) {
    let revoked = |answer: &Decided| matches!(answer, Decided::Answer(Ok(Reply::Revoked { .. })));
    if durable {
        failpoint::pass(Point::DriverMergedBeforeReply);
    }
    if settled {
        failpoint::pass(Point::WorkSettleCommittedBeforeReply);
    }
    let granted = |answer: &Decided| matches!(answer, Decided::Answer(Ok(Reply::Credit(_))));
    if durable && answers.iter().any(granted) {
        failpoint::pass(Point::GrantCommittedBeforeReply);
    }
    if durable && answers.iter().any(revoked) {
        failpoint::pass(Point::RevokeCommittedBeforeReply);
    }
}
