//! A driver on a bench: everything around it is fake but the kernel, the log and its key.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
};

use evidenceos_driver::{
    Answer, Call, Driver, Fatal, Finished, Input, Limits, RunDone, Signing, Work,
};
pub(crate) use evidenceos_kernel::testing::{
    ENGINE, OPERATOR, commit, create, execute, seal, submitter,
};
use evidenceos_kernel::{
    account::{Account, Accounting},
    bits::MicroBits,
    claim::{Claim, Terms},
    command::{Caller, ClaimCommand, Command, HoldoutCommand, PutHoldout, Reply, Request},
    holdout::{Description, Holdout, Policy},
    id::{ClaimId, HoldoutId, OwnerTag},
    in_force::InForce,
    state::Resident,
    testing::{self, START_UNIX_MS},
};
use evidenceos_store::{
    Head, Module, ModuleBytes, Store as _,
    memory::{Fault, MemoryStore, Tail},
};
use evidenceos_tlog::{Hash, Tree};

use crate::fakes::{Collector, Elsewhere, LocalKey, Shelf, Waiter, Watch, key};
pub(crate) use crate::fakes::{Happened, ORIGIN, Ticket};

pub(crate) struct Bench {
    pub(crate) driver: Driver<Shelf>,
    pub(crate) holdout: HoldoutId,
    pub(crate) now_unix_ms: u64,
    /// What this start found behind the last commit that was not in doubt.
    pub(crate) tail: Tail,
    watch: Watch,
    limits: Limits,
    inputs: Vec<Input>,
    calls: usize,
    keys: KeyPlace,
}

/// Where the log's key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyPlace {
    Here,
    Elsewhere,
}

impl Bench {
    /// A bench with one holdout of the default policy.
    pub(crate) fn new() -> Self {
        Self::with(Limits::default(), |_| ())
    }

    /// A bench whose heads are signed elsewhere.
    pub(crate) fn signed_elsewhere() -> Self {
        Self::made(Limits::default(), KeyPlace::Elsewhere, |_| ())
    }

    pub(crate) fn with(limits: Limits, change: impl FnOnce(&mut Policy)) -> Self {
        Self::made(limits, KeyPlace::Here, change)
    }

    fn made(limits: Limits, keys: KeyPlace, change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Policy::with_sealed_budget(MicroBits::from_bits(64));
        change(&mut policy);
        let shelf = Shelf {
            memory: MemoryStore::default(),
            rejected: None,
            unreadable: None,
            watch: Watch::default(),
        };
        let mut bench = Self::start(shelf, limits, ENGINE, 0, keys);
        bench.holdout = bench.register("main", policy);
        bench
    }

    fn start(shelf: Shelf, limits: Limits, engine: &str, calls: usize, keys: KeyPlace) -> Self {
        let watch = Watch::default();
        let shelf = Shelf {
            watch: watch.clone(),
            ..shelf
        };
        let (holdouts, counters, head) = shelf.memory.found();
        let (totals, in_force) = (shelf.memory.totals(), shelf.memory.in_force());
        let holdout = holdouts.first().map_or(HoldoutId([0; 32]), |h| h.id);
        let mut tree = Tree::new();
        for entry in shelf.memory.entries() {
            tree.append(entry.leaf);
        }
        tree.take_full_tiles();
        let driver = Driver::new(
            shelf,
            Resident::new(holdouts, counters, engine.to_owned())
                .with_accounts(Accounting::default(), totals)
                .with_in_force(in_force),
            tree,
            match keys {
                KeyPlace::Here => Signing::Inside(Box::new(LocalKey(key()))),
                KeyPlace::Elsewhere => Signing::Elsewhere(Box::new(Elsewhere(watch.clone()))),
            },
            head.map_or(0, |head| head.size),
            Box::new(Collector(watch.clone())),
            Box::new(Collector(watch.clone())),
            limits,
        );
        Self {
            driver,
            holdout,
            now_unix_ms: START_UNIX_MS,
            tail: Tail::Nothing,
            watch,
            limits,
            inputs: Vec::new(),
            calls,
            keys,
        }
    }

    /// What a start after a crash finds.
    pub(crate) fn restarted(&mut self) -> Self {
        self.restarted_with(ENGINE)
    }

    pub(crate) fn restarted_with(&mut self, engine: &str) -> Self {
        let mut bench = self.found_with(engine);
        bench.step();
        bench
    }

    /// A start that has not taken its first step.
    pub(crate) fn restarted_without_step(&mut self) -> Self {
        self.found_with(ENGINE)
    }

    /// A start under other policies, before its first step.
    pub(crate) fn restarted_under(&mut self, in_force: InForce) -> Self {
        let bench = self.found_with(ENGINE);
        Self {
            driver: bench.driver.under(in_force),
            ..bench
        }
    }

    fn found_with(&mut self, engine: &str) -> Self {
        let before = self.driver.store_mut();
        let (memory, tail) = before.memory.restarted();
        let shelf = Shelf {
            memory,
            watch: before.watch.clone(),
            ..*before
        };
        let mut bench = Self::start(shelf, self.limits, engine, self.calls, self.keys);
        bench.tail = tail;
        bench.holdout = self.holdout;
        bench.now_unix_ms = self.now_unix_ms;
        bench
    }

    pub(crate) fn register(&mut self, reference: &str, policy: Policy) -> HoldoutId {
        let description = Description {
            fresh_items: true,
            ..testing::description(policy)
        };
        let put = PutHoldout {
            generation: self.driver.resident().counters().holdouts_generation,
            ..testing::put(reference, description)
        };
        let put = HoldoutCommand::Put(Box::new(put)).into();
        match self.ask(OPERATOR, reference, put) {
            Ok(Reply::Holdout(holdout)) => holdout.id,
            other => panic!("registered: {other:?}"),
        }
    }

    /// Puts anything into the next step.
    pub(crate) fn input(&mut self, input: Input) {
        self.inputs.push(input);
    }

    /// Trees whose heads were to be signed elsewhere, since the last look.
    pub(crate) fn take_asked(&mut self) -> Vec<(u64, Hash)> {
        self.watch.with(|seen| std::mem::take(&mut seen.asked))
    }

    /// Puts a call into the next step.
    pub(crate) fn call(&mut self, caller: Caller, id: &str, command: Command) -> Ticket {
        self.call_that_may_go(caller, id, command).0
    }

    /// The same; setting the flag means that its caller has gone away.
    pub(crate) fn call_that_may_go(
        &mut self,
        caller: Caller,
        id: &str,
        command: Command,
    ) -> (Ticket, Arc<AtomicBool>) {
        let gone = Arc::new(AtomicBool::new(false));
        let (call, ticket) = self.make_call(caller, id, command, Arc::clone(&gone));
        self.inputs.push(Input::Call(call));
        (ticket, gone)
    }

    /// A call that is not put anywhere.
    pub(crate) fn loose_call(
        &mut self,
        caller: Caller,
        id: &str,
        command: Command,
    ) -> (Call, Ticket) {
        self.make_call(caller, id, command, Arc::default())
    }

    fn make_call(
        &mut self,
        caller: Caller,
        id: &str,
        command: Command,
        gone: Arc<AtomicBool>,
    ) -> (Call, Ticket) {
        let ticket = Ticket(self.calls);
        self.calls += 1;
        let stamp = testing::stamp(caller, id, &format!("{command:?}"));
        // A store knows each module that a claim names: the call brings it.
        let module = match &command {
            Command::Claim(ClaimCommand::Commit { module, .. }) => Some(Module {
                hash: module.hash,
                bytes: ModuleBytes::Row(vec![0]),
                kept: None,
            }),
            _ => None,
        };
        let call = Call {
            request: Request {
                caller,
                stamp: Some(stamp),
                command,
            },
            module,
            reply_to: Box::new(Waiter {
                ticket,
                gone,
                watch: self.watch.clone(),
            }),
        };
        (call, ticket)
    }

    /// Ends a run in the next step: `right` sealed items of 800 are predicted right.
    pub(crate) fn finish(&mut self, work: &Work, right: u64) {
        self.finish_charged(work, right, MicroBits::ZERO);
    }

    pub(crate) fn finish_charged(&mut self, work: &Work, right: u64, charged: MicroBits) {
        let mut report = testing::report(right);
        report.answers.charged = charged;
        let done = RunDone {
            report: Box::new(report),
            trace: b"trace".to_vec(),
        };
        self.finish_as(work, Ok(done));
    }

    pub(crate) fn finish_as(&mut self, work: &Work, result: Result<RunDone, String>) {
        self.inputs.push(Input::Finished(Finished {
            holdout: work.holdout,
            number: work.number,
            result,
        }));
    }

    pub(crate) fn try_step(&mut self) -> Result<(), Fatal> {
        let inputs = std::mem::take(&mut self.inputs);
        self.now_unix_ms += 1;
        self.driver.step(self.now_unix_ms, inputs)
    }

    pub(crate) fn step(&mut self) {
        self.try_step().expect("nothing fatal");
    }

    pub(crate) fn ask(&mut self, caller: Caller, id: &str, command: Command) -> Answer {
        let ticket = self.call(caller, id, command);
        self.step();
        self.answer(ticket).expect("answered within its step")
    }

    pub(crate) fn answer(&self, ticket: Ticket) -> Option<Answer> {
        self.watch.with(|seen| seen.answers.get(&ticket).cloned())
    }

    pub(crate) fn terms(&self, owner: Caller, name: &str) -> Terms {
        self.terms_on(self.holdout, owner, name)
    }

    pub(crate) fn terms_on(&self, holdout: HoldoutId, owner: Caller, name: &str) -> Terms {
        let registered = self.driver.resident().holdout(&holdout);
        let null_spec = &registered.expect("registered").description.null_spec;
        testing::terms(owner.tag, name, holdout, null_spec.hash())
    }

    /// A sealed claim whose module asks only where its terms declare what it may be charged.
    pub(crate) fn sealed(&mut self, terms: Terms) -> ClaimId {
        let owner = testing::caller(terms.owner);
        let (id, asks) = (terms.claim_id(), terms.max_answer_microbits.is_some());
        for (step, command) in [
            ("create", create(terms)),
            ("commit", commit(id, &format!("module of {id}"), asks)),
            ("seal", seal(id)),
        ] {
            let answer = self.ask(owner, &format!("{step} {id}"), command);
            assert!(answer.is_ok(), "{step}: {answer:?}");
        }
        id
    }

    /// Claims of an owner, sealed.
    pub(crate) fn sealed_many<const N: usize>(&mut self, owner: u8) -> [ClaimId; N] {
        std::array::from_fn(|n| {
            let terms = self.terms(submitter(owner), &format!("{owner}/{n}"));
            self.sealed(terms)
        })
    }

    /// A run under way.
    pub(crate) fn running(&mut self, owner: u8, name: &str) -> (Ticket, Work) {
        let id = self.sealed(self.terms(submitter(owner), name));
        let ticket = self.call(submitter(owner), &format!("run {id}"), execute(id));
        self.step();
        let work = self.take_works().pop().expect("nothing stands against it");
        assert_eq!(work.claim.id, id);
        (ticket, work)
    }

    /// Looks answers up after the driver has gone.
    pub(crate) fn answers(&self) -> impl Fn(Ticket) -> Option<Answer> + use<> {
        let watch = self.watch.clone();
        move |ticket| watch.with(|seen| seen.answers.get(&ticket).cloned())
    }

    /// Runs that were started since the last time.
    pub(crate) fn take_works(&mut self) -> Vec<Work> {
        self.watch.with(|seen| std::mem::take(&mut seen.works))
    }

    /// What happened since the last time.
    pub(crate) fn take_timeline(&mut self) -> Vec<Happened> {
        self.watch.with(|seen| std::mem::take(&mut seen.timeline))
    }

    /// Every head that was released.
    pub(crate) fn heads(&self) -> Vec<Head> {
        self.watch.with(|seen| seen.heads.clone())
    }

    pub(crate) fn inject(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.driver.store_mut().memory.inject(faults);
    }

    pub(crate) fn main(&self) -> &Holdout {
        let main = self.driver.resident().holdout(&self.holdout);
        main.expect("registered")
    }

    /// Memory and disk as one text, equal where they are equal.
    pub(crate) fn assert_memory_equals_disk(&mut self) {
        let (on_disk, counters, _) = self.driver.store_mut().memory.found();
        let mut in_memory: Vec<Holdout> = self.driver.resident().holdouts().cloned().collect();
        in_memory.sort_by_key(|holdout| holdout.seq);
        assert_eq!(in_memory, on_disk);
        assert_eq!(self.driver.resident().counters(), counters);
    }

    /// Accounts that those who watch were told of since.
    pub(crate) fn take_told(&self) -> HashMap<OwnerTag, Account> {
        self.watch.with(|seen| std::mem::take(&mut seen.accounts))
    }

    pub(crate) fn stored(&mut self, id: &ClaimId) -> Option<Claim> {
        let memory = &mut self.driver.store_mut().memory;
        memory.claim(id).expect("memory can be read")
    }
}
