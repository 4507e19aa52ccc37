//! A world with the real kernel in it: maps in place of the store, scripts in place of guests.

use std::collections::HashMap;

use evidenceos_kernel::{
    account::Account,
    bits::MicroBits,
    claim::{Artifact, Claim, Lane, ModuleFacts, Reason, Settlement, Terms},
    command::{
        Caller, Command, Event, PutHoldout, Remembered, Reply, Request, RestartLog, RunEnd,
        RunReport, Stamp,
    },
    continuity::KnownTree,
    decide::decide,
    evidence::Strategy,
    holdout::{Description, Holdout, HoldoutStatus, Policy, PrincipalPool},
    id::{ClaimId, Digest, Fingerprint, HoldoutId, OwnerTag, Question, RequestKey},
    null::NullSpec,
    price::SettlementPrices,
    record::{AnswerTally, Capsule},
    refusal::Refusal,
    score::{Score, SizeClass},
    state::{Changes, Counters, Key, REQUEST_WINDOW_MS, Resident, Stage},
};

pub(crate) const ENGINE: &str = "test-engine";
pub(crate) const SEALED_ITEMS: u64 = 800;
pub(crate) const START_UNIX_MS: u64 = 1_700_000_000_000;
pub(crate) const DAY_MS: u64 = REQUEST_WINDOW_MS;

pub(crate) const OPERATOR: Caller = Caller {
    tag: OwnerTag([0xff; 16]),
    operator: true,
    auditor: true,
};

/// The n-th submitter.
pub(crate) fn submitter(n: u8) -> Caller {
    Caller {
        tag: OwnerTag([n; 16]),
        operator: false,
        auditor: false,
    }
}

pub(crate) fn bits(bits: u64) -> MicroBits {
    MicroBits::from_bits(bits)
}

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
        RunReport {
            end: self.end.clone(),
            answers: AnswerTally {
                n_symbols: 4,
                charged: self.answers_charged,
                ..AnswerTally::default()
            },
            score: self.right.map(|right| Score {
                classes: vec![SizeClass {
                    size: 1,
                    units: SEALED_ITEMS,
                    right,
                }],
            }),
            fuel: self.fuel,
            pages: 17,
            trace_hash: Digest::of(b"trace"),
            trace_len: 5,
        }
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
    let answer_items = if policy.answer_share_micros == 0 {
        0
    } else {
        200
    };
    PutHoldout {
        reference: reference.to_owned(),
        description: Description {
            items: answer_items + SEALED_ITEMS,
            units: answer_items + SEALED_ITEMS,
            answer_items,
            sealed_items: SEALED_ITEMS,
            sealed_units: SEALED_ITEMS,
            item_order_hash: None,
            commitment_root: Digest::of(b"commitment"),
            secret_commitment: Digest::of(b"secret"),
            policy,
            null_spec: NullSpec::accuracy(500_000, Strategy::Grid, expires_unix)
                .expect("a half is a chance"),
            fresh_items: false,
            replaces: None,
        },
        blob: Digest::of(b"blob"),
        labels_key: Digest::of(reference.as_bytes()),
        has_item_ids: false,
        generation: 0,
        compared: Vec::new(),
    }
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) resident: Resident,
    pub(crate) claims: HashMap<ClaimId, Claim>,
    pub(crate) pools: HashMap<(HoldoutId, OwnerTag), PrincipalPool>,
    pub(crate) remembered: HashMap<RequestKey, Remembered>,
    pub(crate) accounts: HashMap<OwnerTag, Account>,
    pub(crate) questions: HashMap<Question, ClaimId>,
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
            claims: HashMap::new(),
            pools: HashMap::new(),
            remembered: HashMap::new(),
            accounts: HashMap::new(),
            questions: HashMap::new(),
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
        match self.ask(OPERATOR, Command::PutHoldout(Box::new(put))) {
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
        self.ask(OPERATOR, Command::RestartLog(Box::new(restart)))
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

    /// Gives a stage what a request needs.
    pub(crate) fn load(&self, stage: &mut Stage<'_>, request: &Request) {
        loop {
            let missing = stage.missing(request);
            if missing.is_empty() {
                return;
            }
            for key in missing {
                self.supply(stage, key);
            }
        }
    }

    pub(crate) fn supply(&self, stage: &mut Stage<'_>, key: Key) {
        match key {
            Key::Claim(id) => stage.supply_claim(id, self.claims.get(&id).cloned()),
            Key::Pool(holdout, owner) => {
                stage.supply_pool(holdout, owner, self.pools.get(&(holdout, owner)).copied());
            }
            Key::Remembered(key) => {
                stage.supply_remembered(key, self.remembered.get(&key).cloned());
            }
            Key::Account(owner) => {
                stage.supply_account(owner, self.accounts.get(&owner).cloned());
            }
            Key::Question(question) => {
                stage.supply_question(question, self.questions.get(&question).copied());
            }
        }
    }

    /// Decides a batch on one stage and commits it. Remembered refusals come as errors, too.
    pub(crate) fn batch(&mut self, requests: &[Request]) -> Vec<Result<Reply, Refusal>> {
        let resident = self.resident.clone();
        let mut stage = Stage::new(&resident);
        stage.advance_to(self.now_unix_ms);
        let mut replies = Vec::new();
        for request in requests {
            self.load(&mut stage, request);
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
        for claim in changes.new_claims.iter().chain(&changes.claims) {
            self.claims.insert(claim.id, claim.clone());
        }
        for (holdout, owner, pool) in &changes.pools {
            self.pools.insert((*holdout, *owner), *pool);
        }
        self.remembered.extend(changes.remembered.iter().cloned());
        for account in changes.new_accounts.iter().chain(&changes.accounts) {
            self.accounts.insert(account.owner, account.clone());
        }
        self.questions.extend(changes.questions.iter().copied());
        self.resident.merge(changes);
    }

    pub(crate) fn send(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.batch(&[request]).remove(0)
    }

    /// A command without a request id.
    pub(crate) fn ask(&mut self, caller: Caller, command: Command) -> Result<Reply, Refusal> {
        self.send(request(caller, None, command))
    }

    pub(crate) fn terms(&self, owner: Caller, name: &str) -> Terms {
        self.terms_on(self.holdout, owner, name)
    }

    pub(crate) fn terms_on(&self, holdout: HoldoutId, owner: Caller, name: &str) -> Terms {
        let null_spec = &self.of(holdout).description.null_spec;
        Terms {
            owner: owner.tag,
            claim_name: name.to_owned(),
            holdout,
            null_spec_hash: null_spec.hash(),
            alpha_micros: 50_000,
            levels: 0,
            oracle_id: "builtin.accuracy".to_owned(),
            oracle_num_symbols: 4,
            epoch_size: 0,
            epoch_config_ref: String::new(),
            lane: Lane::Fast,
            access_credit: 0,
            max_answer_microbits: None,
            output_schema_id: String::new(),
            dependency_merkle_root: None,
        }
    }

    /// A claim that is sealed, with a module that asks or does not.
    pub(crate) fn sealed(&mut self, terms: Terms, asks: bool) -> ClaimId {
        let owner = Caller {
            tag: terms.owner,
            operator: false,
            auditor: false,
        };
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
        self.load(&mut stage, &request);
        let decision = decide(&stage, &request).expect("the oldest run can always end");
        let settlement = decision.events.into_iter().find_map(|event| match event {
            Event::RunSettled { settlement, .. } => Some(*settlement),
            _ => None,
        });
        settlement.expect("a run that ends is settled")
    }

    fn settlement(&self, number: u64, report: RunReport) -> Command {
        Command::Settle {
            holdout: self.holdout,
            number,
            report: Box::new(report),
        }
    }

    pub(crate) fn abort(&mut self, number: u64) -> Capsule {
        let holdout = self.holdout;
        self.end(Command::Abort { holdout, number })
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
        self.pools.get(&key).copied().unwrap_or_default()
    }

    /// All rows, in an order of their own: equal worlds have equal snapshots.
    pub(crate) fn snapshot(&self) -> String {
        let mut claims: Vec<&Claim> = self.claims.values().collect();
        claims.sort_by_key(|claim| claim.seq);
        let mut holdouts: Vec<&Holdout> = self.resident.holdouts().collect();
        holdouts.sort_by_key(|holdout| holdout.seq);
        let mut pools: Vec<_> = self.pools.iter().collect();
        pools.sort_by_key(|(key, _)| **key);
        let mut remembered: Vec<_> = self.remembered.iter().collect();
        remembered.sort_by_key(|(key, _)| **key);
        let mut accounts: Vec<&Account> = self.accounts.values().collect();
        accounts.sort_by_key(|account| account.seq);
        let mut questions: Vec<_> = self.questions.iter().collect();
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
    let mut key = caller.tag.0.to_vec();
    key.extend_from_slice(id.as_bytes());
    Some(Stamp {
        key: RequestKey(Fingerprint::of(&key).0),
        fingerprint: Fingerprint::of(content.as_bytes()),
    })
}

pub(crate) fn create(terms: Terms) -> Command {
    Command::CreateClaim {
        id: terms.claim_id(),
        principal: format!("principal-{}", terms.owner.0[0]),
        terms: Box::new(terms),
    }
}

pub(crate) fn wasm(module: &str) -> Artifact {
    Artifact {
        kind: "wasm".to_owned(),
        hash: Digest::of(module.as_bytes()),
        parent: None,
    }
}

pub(crate) fn commit(claim: ClaimId, module: &str, asks: bool) -> Command {
    commit_with(claim, module, asks, Vec::new())
}

pub(crate) fn commit_with(
    claim: ClaimId,
    module: &str,
    asks: bool,
    mut artifacts: Vec<Artifact>,
) -> Command {
    let wasm = wasm(module);
    let hash = wasm.hash;
    artifacts.push(wasm);
    Command::CommitArtifacts {
        claim,
        artifacts,
        module: ModuleFacts {
            hash,
            len: 100,
            asks,
            submits: true,
        },
    }
}

pub(crate) fn seal(claim: ClaimId) -> Command {
    Command::SealClaim { claim }
}

pub(crate) fn execute(claim: ClaimId) -> Command {
    Command::ExecuteClaim { claim }
}

pub(crate) fn revoke(claim: ClaimId) -> Command {
    Command::RevokeClaim {
        claim,
        reason: "a leak in the training rows".to_owned(),
    }
}
