//! Runs guests on a few threads of their own, and answers their questions.
//!
//! What a guest learns goes through `Metered`: a question is priced before the labels are
//! looked at, and traps where its dearest answer would no longer fit; the same question again is
//! free, and answered from memory. The run's score is counted here, but what follows from it is
//! decided by the writer when the run's turn to settle comes.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};

use arc_swap::ArcSwap;
use evidenceos_driver::{Done, Finished, Runner, Work, mailbox::Mailbox};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    bits::MicroBits,
    claim::Reason,
    command::{RunEnd, RunReport},
    id::Digest,
    price::AnswerPrices,
    record::AnswerTally,
    score,
    trace::{EMITTED, TraceWriter, TracedAdmission, TracedEnd, TracedRun},
};
use evidenceos_sandbox::{
    AskError, End, Limits, Oracle, Prepared, RunReport as Ran, Sandbox, TrapCause,
};
use evidenceos_store::{MAX_ROW_BYTES, reader::Readers};

use crate::{
    metrics::{Metrics, RunCount},
    policies::{Policies, Settling, Verdict, settlement_input},
    vault::{Binding, OpenHoldout, Vault},
};

/// Niceness of threads that nobody waits for at once.
const BACKGROUND_NICENESS: i32 = 10;

/// What running a guest needs.
pub struct Guests {
    /// The engine.
    pub sandbox: Sandbox,
    /// The private items.
    pub vault: Vault,
    /// Modules and blobs.
    pub readers: Arc<Readers>,
    /// What may veto a settlement.
    pub policies: Arc<ArcSwap<Policies>>,
    /// Counts runs.
    pub metrics: Arc<Metrics>,
}

/// Threads that run guests.
pub struct Pool {
    work: Sender<Work>,
}

impl Pool {
    /// Starts the threads; they end when the pool is dropped.
    ///
    /// # Errors
    /// Where a thread cannot be started.
    pub fn start(guests: &Arc<Guests>, mailbox: &Mailbox, threads: usize) -> std::io::Result<Self> {
        let (work, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let (guests, mailbox, queue) =
                (Arc::clone(guests), mailbox.clone(), Arc::clone(&queue));
            thread::Builder::new()
                .name(format!("guest-{number}"))
                .spawn(move || run_all(&guests, &mailbox, &queue))?;
        }
        Ok(Self { work })
    }
}

impl Runner for Pool {
    fn start(&self, work: Work) {
        // The threads outlive the pool, so a send fails only while the process ends.
        let _ = self.work.send(work);
    }
}

fn run_all(guests: &Guests, mailbox: &Mailbox, queue: &Mutex<Receiver<Work>>) {
    yield_to_serving();
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = next else { return };
        let (holdout, number) = (work.holdout, work.number);
        // A panic of ours must not take the holdout's queue with it.
        let result = catch_unwind(AssertUnwindSafe(|| guests.run(work)))
            .unwrap_or_else(|panic| Err(panic_message(panic.as_ref())));
        mailbox.finished(Finished {
            holdout,
            number,
            result,
        });
    }
}

/// Makes the calling thread give way to those that serve: a guest that computes for seconds must
/// not be felt by whoever asks for something else.
pub fn yield_to_serving() {
    // Without the right to it the thread works on as it was.
    let _ = rustix::process::setpriority_process(None, BACKGROUND_NICENESS);
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a guest thread panicked: {}", text.unwrap_or_default())
}

impl Guests {
    fn run(&self, work: Work) -> Result<Done, String> {
        let binding = Binding {
            reference: &work.reference,
            policy: &work.description.policy,
        };
        let holdout = self
            .vault
            .open(work.holdout, &work.blob, binding)
            .map_err(|error| error.to_string())?;
        let module = self.module(&work)?;
        let terms = &work.claim.terms;
        let limits = Limits {
            fuel: work.claim.max_fuel(),
            memory_bytes: terms.lane.max_memory_bytes(),
            oracle_calls: terms.lane.max_oracle_calls(),
            items: work.description.items,
            epoch_size: terms.epoch_size,
        };
        let run = self.traced(&work)?;
        let oracle = Metered::new(&work, Arc::clone(&holdout), &run);
        let started = Instant::now();
        let (ran, oracle) = self
            .sandbox
            .run(&module, &limits, oracle)
            .map_err(|fault| fault.to_string())?;
        let mut count = RunCount::new(&ran.end, ran.fuel_used, started.elapsed());
        let judged = ran.judged.as_deref();
        let answers = oracle.tally(ran.oracle_calls);
        // Before the sealed part is looked at, so that a veto says nothing about it.
        let veto = self.veto(&work, &ran, &answers, &mut count);
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
        let trace = if trace.len() > MAX_ROW_BYTES {
            self.readers
                .blobs()
                .put(&trace)
                .map_err(|error| error.to_string())?;
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
    fn traced(&self, work: &Work) -> Result<TracedRun, String> {
        let claim = &work.claim;
        let commitment = claim.commitment.as_ref();
        let commitment = commitment.ok_or("the claim has no module")?;
        Ok(TracedRun {
            claim_id: claim.id,
            owner_tag: claim.terms.owner,
            wasm_hash: commitment.module.hash,
            seal_hash: claim.seal_hash.ok_or("the claim is not sealed")?,
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

    fn module(&self, work: &Work) -> Result<Arc<Prepared>, String> {
        let commitment = work
            .claim
            .commitment
            .as_ref()
            .ok_or("the claim has no module")?;
        let hash = commitment.module.hash;
        let prepared = self.sandbox.prepared(&hash.0);
        self.metrics.needed_module(prepared.is_some());
        if let Some(prepared) = prepared {
            return Ok(prepared);
        }
        let bytes = self
            .readers
            .module(&hash)
            .map_err(|error| error.to_string())?
            .ok_or_else(|| format!("module {hash} is not in the store"))?;
        self.sandbox
            .prepare(&bytes)
            .map_err(|error| error.to_string())
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
