//! A world with the real kernel in it: maps in place of the store, scripts in place of guests.

pub(crate) use evidenceos_kernel::testing::{
    ENGINE, OPERATOR, SEALED_ITEMS, START_UNIX_MS, bits, commit, commit_with, create, execute,
    revoke, seal, submitter, wasm,
};
use evidenceos_kernel::{
    account::Account,
    bits::MicroBits,
    claim::{Claim, Reason, Settlement, Terms},
    command::{
        Caller, Command, Event, HoldoutCommand, LogCommand, PutHoldout, Reply, Request, RestartLog,
        RunCommand, RunEnd, RunReport, Stamp,
    },
    continuity::KnownTree,
    decide::decide,
    holdout::{Description, Holdout, HoldoutStatus, Policy, PrincipalPool},
    id::{ClaimId, HoldoutId},
    price::SettlementPrices,
    record::Capsule,
    refusal::Refusal,
    state::{Changes, Counters, REQUEST_WINDOW_MS, Resident, Stage},
    testing::{self, Rows},
};

pub(crate) const DAY_MS: u64 = REQUEST_WINDOW_MS;

/// What a guest does.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) end: RunEnd,
    /// Right items on the sealed part of the judged vector, if there is one.
    pub(crate) right: Option<u64>,
    pub(crate) answers_charged: MicroBits,
    pub(crate) fuel: u64,
}

impl Script {
    pub(crate) fn right(right: u64) -> Self {
        Self {
            end: RunEnd::Emitted(vec![1]),
            right: Some(right),
            answers_charged: MicroBits::ZERO,
            fuel: 7,
        }
    }

    /// Far too good to be chance.
    pub(crate) fn good() -> Self {
        Self::right(700)
    }

    /// As good as chance.
    pub(crate) fn weak() -> Self {
        Self::right(400)
    }

    pub(crate) fn ending(end: RunEnd) -> Self {
        Self {
            end,
            ..Self::weak()
        }
    }

    pub(crate) fn trapped() -> Self {
        Self::ending(RunEnd::Trapped(Reason::Trap))
    }

    pub(crate) fn charged(self, answers_charged: MicroBits) -> Self {
        Self {
            answers_charged,
            ..self
        }
    }

    pub(crate) fn report(&self) -> RunReport {
        let mut report = testing::report(self.right.unwrap_or(0));
        report.end = self.end.clone();
        report.answers.charged = self.answers_charged;
        report.score = report.score.filter(|_| self.right.is_some());
        report.fuel = self.fuel;
        report
    }
}

/// A policy as registrations had it before fences, with 8 bits for a first certification: the
/// values that tests compute by hand are of it.
pub(crate) fn policy() -> Policy {
    Policy {
        settlement_prices: SettlementPrices::Learned { c0_bits: 8 },
        ..Policy::with_sealed_budget(bits(64))
    }
}

/// The registration of a holdout of 200 answer items and 800 sealed ones.
pub(crate) fn holdout(reference: &str, policy: Policy, expires_unix: Option<u64>) -> PutHoldout {
    let description = Description {
        null_spec: testing::coin(expires_unix),
        ..testing::description(policy)
    };
    testing::put(reference, description)
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) resident: Resident,
    pub(crate) rows: Rows,
    pub(crate) entries: Vec<Vec<u8>>,
    /// Events with the time at which they happened.
    pub(crate) journal: Vec<(u64, Vec<Event>)>,
    pub(crate) now_unix_ms: u64,
    /// The holdout that everything is about, unless it is said otherwise.
    pub(crate) holdout: HoldoutId,
}

impl World {
    pub(crate) fn empty() -> Self {
        Self {
            resident: Resident::new(Vec::new(), Counters::default(), ENGINE.to_owned()),
            rows: Rows::default(),
            entries: Vec::new(),
            journal: Vec::new(),
            now_unix_ms: START_UNIX_MS,
            holdout: HoldoutId([0; 32]),
        }
    }

    /// A world with one holdout of the default policy.
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// A world with one holdout.
    pub(crate) fn on(put: PutHoldout) -> Self {
        let mut world = Self::empty();
        world.holdout = world.put(put);
        world
    }

    /// A world with one holdout of a changed policy.
    pub(crate) fn with(change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = policy();
        change(&mut policy);
        Self::on(holdout("main", policy, None))
    }

    pub(crate) fn register(
        &mut self,
        reference: &str,
        policy: Policy,
        expires_unix: Option<u64>,
    ) -> HoldoutId {
        self.put(self.compared(holdout(reference, policy, expires_unix), None))
    }

    fn put(&mut self, put: PutHoldout) -> HoldoutId {
        match self.ask(OPERATOR, HoldoutCommand::Put(Box::new(put))) {
            Ok(Reply::Holdout(holdout)) => holdout.id,
            other => panic!("registered: {other:?}"),
        }
    }

    /// Charges both parts of the only holdout, as an operator states it after a loss.
    pub(crate) fn charge(&mut self, bits: MicroBits) {
        let tree = KnownTree {
            size: 1,
            root: [0; 32],
        };
        let restart = RestartLog {
            origin: "example.org/2".to_owned(),
            old_origin: "example.org/1".to_owned(),
            old: tree,
            known: None,
            because: "lost".to_owned(),
            charged: vec![(self.holdout, bits)],
        };
        self.ask(OPERATOR, LogCommand::Restart(Box::new(restart)))
            .expect("the budgets carry it");
    }

    /// A registration whose labels were compared with all that there is, and agree with one.
    pub(crate) fn compared(&self, put: PutHoldout, agrees: Option<HoldoutId>) -> PutHoldout {
        let others = self
            .resident
            .holdouts()
            .filter(|other| other.status != HoldoutStatus::Withdrawn);
        PutHoldout {
            generation: self.resident.counters().holdouts_generation,
            compared: others
                .map(|other| (other.id, Some(other.id) == agrees))
                .collect(),
            ..put
        }
    }

    /// Decides a batch on one stage and commits it. Remembered refusals come as errors, too.
    pub(crate) fn batch(&mut self, requests: &[Request]) -> Vec<Result<Reply, Refusal>> {
        let resident = self.resident.clone();
        let mut stage = Stage::new(&resident);
        stage.advance_to(self.now_unix_ms);
        let mut replies = Vec::new();
        for request in requests {
            self.rows.load(&mut stage, request);
            replies.push(decide(&stage, request).and_then(|decision| {
                stage.enact(&decision);
                self.entries.extend(decision.entries);
                if !decision.events.is_empty() {
                    self.journal.push((stage.now_unix_ms(), decision.events));
                }
                match decision.reply {
                    Reply::Refused(refusal) => Err(refusal),
                    reply => Ok(reply),
                }
            }));
        }
        self.merge(stage.into_changes());
        replies
    }

    pub(crate) fn merge(&mut self, changes: Changes) {
        self.rows.merge(&changes);
        self.resident.merge(changes);
    }

    pub(crate) fn send(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.batch(&[request]).remove(0)
    }

    /// A command without a request id.
    pub(crate) fn ask(
        &mut self,
        caller: Caller,
        command: impl Into<Command>,
    ) -> Result<Reply, Refusal> {
        self.send(request(caller, None, command.into()))
    }

    pub(crate) fn terms(&self, owner: Caller, name: &str) -> Terms {
        self.terms_on(self.holdout, owner, name)
    }

    pub(crate) fn terms_on(&self, holdout: HoldoutId, owner: Caller, name: &str) -> Terms {
        let null_spec = self.of(holdout).description.null_spec.hash();
        testing::terms(owner.tag, name, holdout, null_spec)
    }

    /// A claim that is sealed, with a module that asks or does not.
    pub(crate) fn sealed(&mut self, terms: Terms, asks: bool) -> ClaimId {
        let owner = testing::caller(terms.owner);
        let id = terms.claim_id();
        let module = format!("module of {}", terms.claim_name);
        for command in [create(terms), commit(id, &module, asks), seal(id)] {
            self.ask(owner, command).expect("nothing stands against it");
        }
        id
    }

    /// A claim that runs.
    pub(crate) fn admitted(&mut self, terms: Terms, asks: bool) -> (ClaimId, u64) {
        let number = self.of(terms.holdout).admitted;
        let owner = terms.owner;
        let id = self.sealed(terms, asks);
        let reply = self.ask(submitter(owner.0[0]), execute(id));
        assert_eq!(reply, Ok(Reply::Running(id)));
        (id, number)
    }

    /// Ends the oldest run of the holdout.
    pub(crate) fn settle(&mut self, number: u64, script: &Script) -> Capsule {
        self.settle_as(number, script.report())
    }

    pub(crate) fn settle_as(&mut self, number: u64, report: RunReport) -> Capsule {
        self.end(self.settlement(number, report))
    }

    /// What the oldest run would come to. Nothing becomes of it.
    pub(crate) fn would_settle_as(&self, number: u64, report: RunReport) -> Settlement {
        let request = request(Caller::DRIVER, None, self.settlement(number, report));
        let mut stage = Stage::new(&self.resident);
        stage.advance_to(self.now_unix_ms);
        self.rows.load(&mut stage, &request);
        let decision = decide(&stage, &request).expect("the oldest run can always end");
        let settlement = decision.events.into_iter().find_map(|event| match event {
            Event::RunSettled { settlement, .. } => Some(*settlement),
            _ => None,
        });
        settlement.expect("a run that ends is settled")
    }

    fn settlement(&self, number: u64, report: RunReport) -> Command {
        RunCommand::Settle {
            holdout: self.holdout,
            number,
            report: Box::new(report),
        }
        .into()
    }

    pub(crate) fn abort(&mut self, number: u64) -> Capsule {
        let holdout = self.holdout;
        self.end(RunCommand::Abort { holdout, number }.into())
    }

    fn end(&mut self, command: Command) -> Capsule {
        assert_eq!(self.ask(Caller::DRIVER, command), Ok(Reply::Done));
        self.last_capsule()
    }

    /// A whole claim of a submitter that does not ask.
    pub(crate) fn run(&mut self, owner: Caller, name: &str, script: &Script) -> Capsule {
        let (_, number) = self.admitted(self.terms(owner, name), false);
        self.settle(number, script)
    }

    pub(crate) fn last_capsule(&self) -> Capsule {
        let entry = self
            .entries
            .last()
            .expect("a settlement appends its capsule");
        Capsule::parse(entry).expect("the kernel writes what it reads")
    }

    pub(crate) fn of(&self, holdout: HoldoutId) -> &Holdout {
        self.resident.holdout(&holdout).expect("registered")
    }

    pub(crate) fn main(&self) -> &Holdout {
        self.of(self.holdout)
    }

    pub(crate) fn pool(&self, owner: Caller) -> PrincipalPool {
        let key = (self.holdout, owner.tag);
        self.rows.pools.get(&key).copied().unwrap_or_default()
    }

    /// All rows, in an order of their own: equal worlds have equal snapshots.
    pub(crate) fn snapshot(&self) -> String {
        let mut claims: Vec<&Claim> = self.rows.claims.values().collect();
        claims.sort_by_key(|claim| claim.seq);
        let mut holdouts: Vec<&Holdout> = self.resident.holdouts().collect();
        holdouts.sort_by_key(|holdout| holdout.seq);
        let mut pools: Vec<_> = self.rows.pools.iter().collect();
        pools.sort_by_key(|(key, _)| **key);
        let mut remembered: Vec<_> = self.rows.remembered.iter().collect();
        remembered.sort_by_key(|(key, _)| **key);
        let mut accounts: Vec<&Account> = self.rows.accounts.values().collect();
        accounts.sort_by_key(|account| account.seq);
        let mut questions: Vec<_> = self.rows.questions.iter().collect();
        questions.sort_by_key(|(question, _)| **question);
        let totals = self.resident.totals();
        format!(
            "{claims:#?}{holdouts:#?}{pools:#?}{remembered:#?}{accounts:#?}{questions:#?}{totals:#?}"
        )
    }
}

pub(crate) fn request(caller: Caller, stamp: Option<Stamp>, command: Command) -> Request {
    Request {
        caller,
        stamp,
        command,
    }
}

/// A request id of a caller with a content.
pub(crate) fn stamp(caller: Caller, id: &str, content: &str) -> Option<Stamp> {
    Some(testing::stamp(caller, id, content))
}
