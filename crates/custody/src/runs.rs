//! Runs guests on a few threads.
//!
//! The guest itself runs in a process of the sandbox; the labels stay in this process, where
//! `metered` answers its questions. The run's score is counted here; the writer decides what
//! follows from it when the run's turn to settle comes. An [`Overseer`] watches runs, and may keep
//! one from being judged.

mod queue;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use evidenceos_driver::{
    Finished, RunDone, Runner, Work, mailbox::Mailbox, priority::yield_to_serving,
};
use evidenceos_kernel::{
    bits::MicroBits,
    claim::{PolicyCode, Reason},
    command::{RunEnd, RunReport},
    id::{ClaimId, Digest, OwnerTag},
    trace::{EMITTED, TracedAdmission, TracedEnd, TracedRun},
};
use evidenceos_sandbox::{
    AdmitError, Broken, End, HostFault, Limits, Prepared, Ran, Sandbox, TrapCause,
};
use evidenceos_store::{MAX_ROW_BYTES, Rows};
use queue::Queue;

use crate::{
    metered::Metered,
    vault::{Binding, Vault},
};

/// The pause before a run that the host failed begins again: the first one, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// Watches runs, and may keep one from being judged.
pub trait Overseer: Send + Sync {
    /// Told that a run needed its module, and whether it was compiled already.
    fn needed_module(&self, was_compiled: bool);

    /// Whether a finished run that could be judged must not be. This is asked before the sealed
    /// part is read, so that the answer reveals nothing about it.
    fn veto(&self, ended: &Ended<'_>) -> Option<Vetoed>;

    /// Told that a run of a claim has ended, and how long it took.
    fn ran(&self, claim: ClaimId, ran: &Ran, took: Duration, veto: Option<Vetoed>);
}

/// A finished run that could be judged.
pub struct Ended<'r> {
    /// What was run.
    pub work: &'r Work,
    /// The report of the run.
    pub ran: &'r Ran,
    /// The guest's emitted output.
    pub output: &'r [u8],
    /// The charge of its answers.
    pub charged: MicroBits,
}

/// A veto: the run is not judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vetoed {
    /// The reason, for the settlement.
    pub code: PolicyCode,
    /// Whether the veto holds only for now.
    pub deferred: bool,
}

/// The parts that a run needs.
pub struct Guests {
    /// Runs modules in separate processes.
    pub sandbox: Sandbox,
    /// Decrypts the holdouts' labels.
    pub vault: Vault,
    /// Connections that read modules, and the blobs.
    pub readers: Arc<dyn Rows>,
    /// Watches runs.
    pub overseer: Arc<dyn Overseer>,
}

/// The threads that run guests.
pub struct Pool {
    guests: Arc<Guests>,
    queue: Arc<Queue<OwnerTag, Queued>>,
    threads: Vec<JoinHandle<()>>,
}

/// A run in the queue.
struct Queued {
    work: Work,
    /// How often the host has failed it.
    failed: u32,
}

impl Pool {
    /// Starts threads for `share` runs of each principal at a time, and as many again for others.
    /// They end when the pool is dropped, which also ends the guests.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(guests: &Arc<Guests>, mailbox: &Mailbox, share: usize) -> std::io::Result<Self> {
        let mut pool = Self {
            guests: Arc::clone(guests),
            queue: Arc::new(Queue::new(share)),
            threads: Vec::new(),
        };
        for number in 0..2 * share {
            let (guests, mailbox, queue) =
                (Arc::clone(guests), mailbox.clone(), Arc::clone(&pool.queue));
            let thread = thread::Builder::new()
                .name(format!("guest-{number}"))
                .spawn(move || run_all(&guests, &mailbox, &queue))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }
}

impl Runner for Pool {
    fn start(&self, work: Work) {
        let owner = work.claim.terms.owner;
        self.queue.put(owner, Queued { work, failed: 0 });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.close();
        // The results of runs under way would not be settled, and a stop waits for the last thread.
        self.guests.sandbox.end();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run_all(guests: &Guests, mailbox: &Mailbox, queue: &Queue<OwnerTag, Queued>) {
    yield_to_serving();
    while let Some((owner, next)) = queue.take() {
        let work = &next.work;
        // A panic here must not block the holdout's queue.
        let result = catch_unwind(AssertUnwindSafe(|| guests.run(work)))
            .unwrap_or_else(|panic| Err(Fault::Host(panic_message(panic.as_ref()))));
        // The thread is released before any pause: a run that waits must not use up its principal's
        // share.
        queue.done(owner);
        let result = match result {
            Ok(done) => Ok(done),
            Err(Fault::Child(died)) => Err(died),
            Err(Fault::Host(fault)) => {
                tracing::error!(claim = %work.claim.id, fault, before = next.failed, "the host failed a run; the daemon will restart it");
                let pause = PAUSES.0.saturating_mul(1 << next.failed.min(16));
                let failed = next.failed + 1;
                queue.put_later(owner, Queued { failed, ..next }, pause.min(PAUSES.1));
                continue;
            }
        };
        mailbox.finished(Finished {
            holdout: work.holdout,
            number: work.number,
            result,
        });
    }
}

/// Why a run has no result.
enum Fault {
    /// The guest's process died: the guest may be the cause, so the run counts.
    Child(String),
    /// Any other fault is the host's, and the run is repeated until the host can complete it.
    Host(String),
}

impl Fault {
    fn host(error: impl ToString) -> Self {
        Self::Host(error.to_string())
    }
}

impl From<HostFault> for Fault {
    fn from(fault: HostFault) -> Self {
        if fault.while_running {
            Self::Child(fault.message)
        } else {
            Self::Host(fault.message)
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a guest thread panicked: {}", text.unwrap_or_default())
}

impl Guests {
    fn run(&self, work: &Work) -> Result<RunDone, Fault> {
        let binding = Binding {
            reference: &work.reference,
            policy: &work.description.policy,
        };
        let holdout = self
            .vault
            .open(work.holdout, &work.blob, binding)
            .map_err(Fault::host)?;
        let module = self.module(work)?;
        let run = self.traced(work)?;
        let mut oracle = Metered::new(work, Arc::clone(&holdout), &run);
        let started = Instant::now();
        let ran = match module {
            Ok(module) => self
                .sandbox
                .run(&module, &limits(work), work.apart, &mut oracle)?,
            Err(cause) => not_run(cause),
        };
        let took = started.elapsed();
        let judged = ran.judged.as_deref();
        let answers = oracle.tally(ran.oracle_calls);
        // This comes before the sealed part is read, so that a veto reveals nothing about it.
        let veto = self.veto(work, &ran, answers.charged);
        self.overseer.ran(work.claim.id, &ran, took, veto);
        let trace = oracle.trace.finish(judged, &traced_end(&ran, veto));
        let score = judged.filter(|_| veto.is_none()).map(|vector| {
            holdout
                .classes()
                .score(vector, holdout.labels(), holdout.part_mask())
        });
        let (trace_hash, trace_len) = (Digest::of(&trace), trace.len() as u64);
        let trace = self.kept_as_row(trace)?;
        let report = RunReport {
            end: end_of(ran.end, veto),
            answers,
            score,
            fuel: ran.fuel_used,
            pages: ran.memory_pages,
            trace_hash,
            trace_len,
        };
        Ok(RunDone {
            report: Box::new(report),
            trace,
        })
    }

    /// Returns the trace if it fits into a row. A large one becomes a blob, which is durable before
    /// the settlement that names it.
    fn kept_as_row(&self, trace: Vec<u8>) -> Result<Vec<u8>, Fault> {
        if trace.len() <= MAX_ROW_BYTES {
            return Ok(trace);
        }
        self.readers.blobs().put(&trace).map_err(Fault::host)?;
        Ok(Vec::new())
    }

    /// The run's identity, for its trace.
    fn traced(&self, work: &Work) -> Result<TracedRun, Fault> {
        let claim = &work.claim;
        let commitment = claim.commitment.as_ref();
        let commitment = commitment.ok_or_else(|| Fault::host(NO_MODULE))?;
        Ok(TracedRun {
            claim_id: claim.id,
            owner_tag: claim.terms.owner,
            wasm_hash: commitment.module.hash,
            seal_hash: claim
                .seal_hash
                .ok_or_else(|| Fault::host("the claim is not sealed"))?,
            number: work.number,
            levels: claim.terms.levels,
            alpha_micros: claim.terms.alpha_micros,
            n_symbols: claim.terms.oracle_num_symbols,
            engine: self.sandbox.engine_id().to_owned(),
            admission: work.ended_before.map(|ended_before| TracedAdmission {
                ended_before,
                answers_reserved: work.allowance,
                dependencies: commitment.capsules_of_parents(),
            }),
        })
    }

    /// Whether a run must not be judged. The overseer is asked only about a run that could be.
    fn veto(&self, work: &Work, ran: &Ran, charged: MicroBits) -> Option<Vetoed> {
        let End::Emitted(output) = &ran.end else {
            return None;
        };
        if ran.judged.is_none() || !work.claim.accepts_output(output) {
            return None;
        }
        self.overseer.veto(&Ended {
            work,
            ran,
            output,
            charged,
        })
    }

    /// The run's module, or the trap of a run whose module was admitted once and is refused by this
    /// release.
    fn module(&self, work: &Work) -> Result<Result<Arc<Prepared>, TrapCause>, Fault> {
        let commitment = work.claim.commitment.as_ref();
        let commitment = commitment.ok_or_else(|| Fault::host(NO_MODULE))?;
        let hash = commitment.module.hash;
        let prepared = self.sandbox.prepared(&hash.0);
        self.overseer.needed_module(prepared.is_some());
        if let Some(prepared) = prepared {
            return Ok(Ok(prepared));
        }
        let bytes = self
            .readers
            .module(&hash)
            .map_err(Fault::host)?
            .ok_or_else(|| Fault::Host(format!("module {hash} is not in the store")))?;
        let refused = match self.sandbox.prepare(&bytes) {
            Ok(prepared) => return Ok(Ok(prepared)),
            Err(error) => error,
        };
        let cause = cause_of(&refused)?;
        tracing::warn!(claim = %work.claim.id, error = %refused, "a claim's module was admitted before and is refused now; the run ends as a trap");
        Ok(Err(cause))
    }
}

const NO_MODULE: &str = "the claim has no module";

/// The limits of a run.
fn limits(work: &Work) -> Limits {
    let terms = &work.claim.terms;
    Limits {
        fuel: work.claim.max_fuel(),
        memory_bytes: terms.lane.max_memory_bytes(),
        oracle_calls: terms.lane.max_oracle_calls(),
        items: work.description.items,
        epoch_size: terms.epoch_size,
    }
}

/// The trap of a run whose module is not admitted; a fault if the host could not examine the module.
fn cause_of(refused: &AdmitError) -> Result<TrapCause, Fault> {
    match refused {
        AdmitError::Host(_) => Err(Fault::host(refused)),
        // The module would be refused at every try, and the claims behind it would wait forever.
        _ => Ok(TrapCause::NotAdmitted),
    }
}

/// The report of a run that never began.
fn not_run(cause: TrapCause) -> Ran {
    Ran {
        end: End::Trapped(cause),
        judged: None,
        fuel_used: 0,
        memory_pages: 0,
        oracle_calls: 0,
    }
}

fn end_of(end: End, veto: Option<Vetoed>) -> RunEnd {
    match end {
        End::Emitted(output) => match veto {
            Some(Vetoed { code, deferred }) => RunEnd::Vetoed {
                output,
                code,
                deferred,
            },
            None => RunEnd::Emitted(output),
        },
        End::NoOutput => RunEnd::NoOutput,
        End::Trapped(cause) => RunEnd::Trapped(match cause {
            TrapCause::Trap(Broken::Unreachable) => Reason::Unreachable,
            TrapCause::Trap(_) => Reason::Trap,
            TrapCause::OutOfFuel => Reason::OutOfFuel,
            TrapCause::OutOfMemory => Reason::OutOfMemory,
            TrapCause::InvalidVector => Reason::InvalidVector,
            TrapCause::AllowanceExhausted => Reason::AllowanceExhausted,
            TrapCause::TooManyCalls => Reason::TooManyCalls,
            TrapCause::OutOfBounds => Reason::OutOfBounds,
            TrapCause::EmittedTwice => Reason::EmittedTwice,
            TrapCause::OutputTooLarge => Reason::InvalidOutput,
            TrapCause::NotAdmitted => Reason::NotAdmitted,
            // Any other trap has no specific reason.
            _ => Reason::Trap,
        }),
    }
}

/// The end of a run, for its trace.
fn traced_end(ran: &Ran, veto: Option<Vetoed>) -> TracedEnd {
    let (code, deferred) = match end_of(ran.end.clone(), veto) {
        RunEnd::Vetoed { code, deferred, .. } => (code.get(), deferred),
        RunEnd::Trapped(reason) => (reason.code(), false),
        RunEnd::NoOutput => (Reason::NoOutput.code(), false),
        RunEnd::Emitted(_) => (EMITTED, false),
    };
    TracedEnd {
        code,
        deferred,
        fuel: ran.fuel_used,
        asked: ran.oracle_calls,
        output: match &ran.end {
            End::Emitted(output) => output.clone(),
            End::NoOutput | End::Trapped(_) => Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_a_later_release_refuses_ends_its_run_under_a_code_of_its_own() {
        let refused = AdmitError::Engine("of another version".into());
        let ran = not_run(cause_of(&refused).unwrap_or_else(|_| panic!("not the host's fault")));
        assert_eq!(traced_end(&ran, None).code, 124);
        assert!(matches!(
            end_of(ran.end, None),
            RunEnd::Trapped(Reason::NotAdmitted)
        ));
    }

    #[test]
    fn a_module_that_the_host_could_not_examine_is_tried_again() {
        let fault = cause_of(&AdmitError::Host("no process".into()));
        assert!(matches!(fault, Err(Fault::Host(_))));
    }
}
