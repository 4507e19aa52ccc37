//! Has guests run, by a few threads of their own, and answers their questions.
//!
//! A guest itself runs in a process of the sandbox's; the labels stay in this one. What a guest
//! learns goes through `Metered`: a question is priced before the labels are
//! looked at, and traps where its dearest answer would no longer fit; the same question again is
//! free, and answered from memory. The run's score is counted here, but what follows from it is
//! decided by the writer when the run's turn to settle comes.

mod queue;

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use evidenceos_driver::{Done, Finished, Runner, Work, mailbox::Mailbox};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    bits::MicroBits,
    claim::Reason,
    command::{RunEnd, RunReport},
    id::{Digest, OwnerTag},
    price::AnswerPrices,
    record::AnswerTally,
    score,
    trace::{EMITTED, TraceWriter, TracedAdmission, TracedEnd, TracedRun},
};
use evidenceos_sandbox::{
    AdmitError, AskError, End, HostFault, Limits, Oracle, Prepared, Ran, Sandbox, TrapCause,
};
use evidenceos_store::{MAX_ROW_BYTES, Rows};

use crate::{
    metrics::{Metrics, RunCount},
    policies::{Policies, Settling, Verdict, settlement_input},
    priority::yield_to_serving,
    vault::{Binding, OpenHoldout, Vault},
};
use queue::Queue;

/// How long a run that the host failed waits until it is begun again: the first time, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// What running a guest needs.
pub struct Guests {
    /// Runs modules in processes of their own.
    pub sandbox: Sandbox,
    /// Decrypts the holdouts' labels.
    pub vault: Vault,
    /// Connections that read modules, and the blobs.
    pub readers: Arc<dyn Rows>,
    /// What may veto a settlement.
    pub policies: Arc<ArcSwap<Policies>>,
    pub metrics: Arc<Metrics>,
}

/// Threads that have guests run.
pub struct Pool {
    guests: Arc<Guests>,
    queue: Arc<Queue<OwnerTag, Queued>>,
    threads: Vec<JoinHandle<()>>,
}

/// A run that waits for a thread.
struct Queued {
    work: Work,
    /// How often the host has failed it.
    failed: u32,
}

impl Pool {
    /// Starts threads for `share` runs of each principal at a time, and for as many beside them;
    /// they end when the pool is dropped, which ends what runs.
    ///
    /// # Errors
    /// Where a thread cannot be started.
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
        // Nobody settles what still runs, and whoever stops the daemon waits for its last thread.
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
        // A panic of ours must not take the holdout's queue with it.
        let result = catch_unwind(AssertUnwindSafe(|| guests.run(work)))
            .unwrap_or_else(|panic| Err(Fault::Host(panic_message(panic.as_ref()))));
        // The thread is given back before any pause: a run that waits must not use up its
        // principal's share.
        queue.done(owner);
        let result = match result {
            Ok(done) => Ok(done),
            Err(Fault::Child(died)) => Err(died),
            Err(Fault::Host(fault)) => {
                tracing::error!(claim = %work.claim.id, fault, before = next.failed, "the host failed a run; it will begin again");
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
    /// The process that ran it died: it may be the guest's doing, and counts.
    Child(String),
    /// Anything else is the host's, and the run waits until the host can.
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
    fn run(&self, work: &Work) -> Result<Done, Fault> {
        let binding = Binding {
            reference: &work.reference,
            policy: &work.description.policy,
        };
        let holdout = self
            .vault
            .open(work.holdout, &work.blob, binding)
            .map_err(Fault::host)?;
        let module = self.module(work)?;
        let terms = &work.claim.terms;
        let limits = Limits {
            fuel: work.claim.max_fuel(),
            memory_bytes: terms.lane.max_memory_bytes(),
            oracle_calls: terms.lane.max_oracle_calls(),
            items: work.description.items,
            epoch_size: terms.epoch_size,
        };
        let run = self.traced(work)?;
        let mut oracle = Metered::new(work, Arc::clone(&holdout), &run);
        let started = Instant::now();
        let ran = match module {
            Ok(module) => self
                .sandbox
                .run(&module, &limits, work.apart, &mut oracle)?,
            Err(cause) => not_run(cause),
        };
        let mut count = RunCount::new(&ran.end, ran.fuel_used, started.elapsed());
        let judged = ran.judged.as_deref();
        let answers = oracle.tally(ran.oracle_calls);
        // Before the sealed part is looked at, so that a veto says nothing about it.
        let veto = self.veto(work, &ran, &answers, &mut count);
        self.metrics.ran(work.claim.id, count);
        let trace = oracle
            .trace
            .finish(judged, &traced_end(&ran, veto.as_ref()));
        let score = judged.filter(|_| veto.is_none()).map(|vector| {
            holdout
                .classes()
                .score(vector, holdout.labels(), holdout.part_mask())
        });
        let (trace_hash, trace_len) = (Digest::of(&trace), trace.len() as u64);
        // A large trace is durable before the settlement that names it.
        let trace = if trace.len() > MAX_ROW_BYTES {
            self.readers.blobs().put(&trace).map_err(Fault::host)?;
            Vec::new()
        } else {
            trace
        };
        let report = RunReport {
            end: veto.unwrap_or_else(|| end_of(ran.end)),
            answers,
            score,
            fuel: ran.fuel_used,
            pages: ran.memory_pages,
            trace_hash,
            trace_len,
        };
        Ok(Done {
            report: Box::new(report),
            trace,
        })
    }

    /// Which run it is, for its trace.
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

    /// How a run ends that policies do not let be judged. They are asked about a run that could be
    /// judged, and about no other.
    fn veto(
        &self,
        work: &Work,
        ran: &Ran,
        answers: &AnswerTally,
        count: &mut RunCount,
    ) -> Option<RunEnd> {
        let End::Emitted(output) = &ran.end else {
            return None;
        };
        let policies = self.policies.load();
        if policies.oracles().is_empty()
            || ran.judged.is_none()
            || !work.claim.accepts_output(output)
        {
            return None;
        }
        let input = settlement_input(&Settling {
            claim: &work.claim,
            holdout_ref: &work.reference,
            holdout_alpha_micros: work.description.policy.alpha_micros,
            output,
            oracle_calls: ran.oracle_calls,
            answers_charged_microbits: answers.charged.get(),
            fuel: ran.fuel_used,
            memory_pages: ran.memory_pages,
        });
        let (veto, deferred) = match policies.decide(&input) {
            Verdict::Approve => return None,
            Verdict::Defer(veto) => (veto, true),
            Verdict::Reject(veto) => (veto, false),
        };
        count.vetoed(deferred);
        tracing::info!(oracle = %veto.oracle_id, claim = %work.claim.id, deferred, "a policy keeps a claim from being judged");
        Some(RunEnd::Vetoed {
            output: output.clone(),
            code: veto.reason_code,
            deferred,
        })
    }

    /// The run's module, or how a run of a module ends that was admitted once, and that this
    /// release does not compile.
    fn module(&self, work: &Work) -> Result<Result<Arc<Prepared>, TrapCause>, Fault> {
        let commitment = work.claim.commitment.as_ref();
        let commitment = commitment.ok_or_else(|| Fault::host(NO_MODULE))?;
        let hash = commitment.module.hash;
        let prepared = self.sandbox.prepared(&hash.0);
        self.metrics.needed_module(prepared.is_some());
        if let Some(prepared) = prepared {
            return Ok(Ok(prepared));
        }
        let bytes = self
            .readers
            .module(&hash)
            .map_err(Fault::host)?
            .ok_or_else(|| Fault::Host(format!("module {hash} is not in the store")))?;
        match self.sandbox.prepare(&bytes) {
            Ok(prepared) => Ok(Ok(prepared)),
            Err(error @ AdmitError::Host(_)) => Err(Fault::host(error)),
            // It would fail at every try, and the claims behind it would wait for ever: so the run
            // ends as a trap.
            Err(error) => {
                tracing::warn!(claim = %work.claim.id, %error, "a claim's module was admitted once, and is not any more");
                Ok(Err(TrapCause::OutOfMemory))
            }
        }
    }
}

const NO_MODULE: &str = "the claim has no module";

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

fn end_of(end: End) -> RunEnd {
    match end {
        End::Emitted(output) => RunEnd::Emitted(output),
        End::NoOutput => RunEnd::NoOutput,
        End::Trapped(cause) => RunEnd::Trapped(match cause {
            TrapCause::Trap(_) => Reason::Trap,
            TrapCause::OutOfFuel => Reason::OutOfFuel,
            TrapCause::OutOfMemory => Reason::OutOfMemory,
            TrapCause::InvalidVector => Reason::InvalidVector,
            TrapCause::AllowanceExhausted => Reason::AllowanceExhausted,
            TrapCause::TooManyCalls => Reason::TooManyCalls,
            TrapCause::OutOfBounds => Reason::OutOfBounds,
            TrapCause::EmittedTwice => Reason::EmittedTwice,
            TrapCause::OutputTooLarge => Reason::InvalidOutput,
            // Whatever else stops a guest is a trap of its own.
            _ => Reason::Trap,
        }),
    }
}

/// How a run ended, for its trace.
fn traced_end(ran: &Ran, veto: Option<&RunEnd>) -> TracedEnd {
    let (code, deferred) = match (veto, &ran.end) {
        (Some(RunEnd::Vetoed { code, deferred, .. }), _) => (code.get(), *deferred),
        (_, end) => match end_of(end.clone()) {
            RunEnd::Trapped(reason) => (reason.code(), false),
            RunEnd::NoOutput => (Reason::NoOutput.code(), false),
            RunEnd::Emitted(_) | RunEnd::Vetoed { .. } => (EMITTED, false),
        },
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

/// The oracle of one run: prices questions, answers them, writes the trace.
struct Metered {
    holdout: Arc<OpenHoldout>,
    prices: AnswerPrices,
    n_symbols: u32,
    left: MicroBits,
    charged: MicroBits,
    /// What was answered to which question, by its digest: the number of the first asking.
    answered: HashMap<Digest, (u32, u32)>,
    by_symbol: BTreeMap<u32, u32>,
    replayed: u32,
    trace: TraceWriter,
}

impl Metered {
    fn new(work: &Work, holdout: Arc<OpenHoldout>, run: &TracedRun) -> Self {
        Self {
            holdout,
            prices: work.description.policy.answer_prices.clone(),
            n_symbols: work.claim.terms.oracle_num_symbols,
            left: work.allowance,
            charged: MicroBits::ZERO,
            answered: HashMap::new(),
            by_symbol: BTreeMap::new(),
            replayed: 0,
            trace: TraceWriter::new(work.description.items, run),
        }
    }

    fn tally(&self, asked: u32) -> AnswerTally {
        AnswerTally {
            n_symbols: self.n_symbols,
            asked,
            replayed: self.replayed,
            by_symbol: self.by_symbol.iter().map(|(&s, &n)| (s, n)).collect(),
            charged: self.charged,
        }
    }
}

impl Oracle for Metered {
    fn ask(&mut self, vector: &[u8]) -> Result<u32, AskError> {
        failpoint::pass(Point::WorkRunMid);
        let answer_items = self.holdout.split().answer_items;
        // Without an answer part an answer tells nothing, so that it costs nothing.
        if answer_items == 0 {
            self.trace.free();
            return Ok(0);
        }
        let question = Digest::of(vector);
        if let Some(&(number, symbol)) = self.answered.get(&question) {
            self.replayed += 1;
            self.trace.replayed(number);
            return Ok(symbol);
        }
        // Priced at its dearest answer before the labels are touched: that a question is refused
        // must say nothing about them.
        let dearest = self
            .prices
            .dearest(self.n_symbols)
            .map_err(|_| AskError::AllowanceExhausted)?;
        if dearest > self.left {
            return Err(AskError::AllowanceExhausted);
        }
        let symbol = score::answer(
            vector,
            self.holdout.labels(),
            self.holdout.part_mask(),
            self.n_symbols,
            answer_items,
        );
        // If the table lacks the symbol, the dearest price is charged: no answer is ever free by
        // accident.
        let price = self.prices.price(self.n_symbols, symbol).unwrap_or(dearest);
        self.left = self.left.saturating_sub(price);
        self.charged = self.charged.saturating_add(price);
        *self.by_symbol.entry(symbol).or_insert(0) += 1;
        self.trace.asked(vector, self.n_symbols, symbol);
        let number = self.answered.len() as u32;
        self.answered.insert(question, (number, symbol));
        Ok(symbol)
    }
}
