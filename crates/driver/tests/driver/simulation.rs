//! Random calls, ends of runs, faults and crashes, against a naive model of what must hold.
//!
//! `EVIDENCEOS_SIM_SEEDS` says how many seeds are played, `EVIDENCEOS_SIM_SEED` plays one again;
//! `just sim N` does the first with an optimised build.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use evidenceos_driver::{Answer, Work};
use evidenceos_kernel::{
    account::Account,
    bits::MicroBits,
    claim::{ClaimState, Terms},
    command::{Caller, Command, Reply},
    id::{ClaimId, OwnerTag},
    record::{CLAIM_CAPSULE, CREDIT_GRANTED, Capsule, schema_of},
};
use evidenceos_store::{Entry, memory::Fault};

use crate::{
    bench::{Bench, OPERATOR, Ticket, commit, create, execute, seal, submitter},
    heads::assert_heads_sound,
};

/// Seeds played where nothing else is asked for.
const SEEDS: u64 = 200;
const STEPS: u64 = 40;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A request as its client remembers it.
#[derive(Clone)]
struct Asked {
    caller: Caller,
    command: Command,
    answer: Option<Answer>,
}

struct Simulation {
    bench: Bench,
    dice: Dice,
    asked: BTreeMap<String, Asked>,
    open: HashMap<Ticket, String>,
    claims: Vec<(Caller, ClaimId)>,
    works: Vec<Work>,
    log: Vec<Entry>,
    capsules: Vec<Capsule>,
    /// Amounts of the grants in the log, by reason.
    granted: BTreeMap<String, u128>,
    /// Accounts as those who watch were told.
    told: HashMap<OwnerTag, Account>,
}

/// Says which seed failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: play it again with EVIDENCEOS_SIM_SEED={}", self.0);
        }
    }
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let limits = evidenceos_driver::Limits {
            run_slots: 8,
            waiting: 64,
        };
        let bench = Bench::with(limits, |policy| {
            policy.sealed_budget = MicroBits::from_bits(30 + 10 * (seed % 8));
            policy.answer_budget = MicroBits::from_bits(20);
        });
        Self {
            bench,
            dice: Dice(seed),
            asked: BTreeMap::new(),
            open: HashMap::new(),
            claims: Vec::new(),
            works: Vec::new(),
            log: Vec::new(),
            capsules: Vec::new(),
            granted: BTreeMap::new(),
            told: HashMap::new(),
        }
    }

    fn ask(&mut self, caller: Caller, command: Command) {
        let id = format!("{}", self.asked.len());
        let asked = Asked {
            caller,
            command,
            answer: None,
        };
        self.asked.insert(id.clone(), asked);
        self.send(&id);
    }

    fn send(&mut self, id: &str) {
        let asked = self.asked[id].clone();
        let ticket = self.bench.call(asked.caller, id, asked.command);
        self.open.insert(ticket, id.to_owned());
    }

    fn act(&mut self) {
        match self.dice.below(13) {
            0..4 => self.new_claim(),
            4..6 => self.again(),
            6..9 => self.finish_one(),
            9 => self.change_credit(),
            10 => self.revoke_one(),
            // Midnight comes soon after the start; requests are remembered for longer than this lasts.
            11 => self.bench.now_unix_ms += self.dice.below(3) * 20 * 60_000,
            _ => {
                let faults = [
                    Fault::Full,
                    Fault::Constraint,
                    Fault::UnknownLost,
                    Fault::UnknownKept,
                ];
                let fault = faults[self.dice.below(4) as usize];
                self.bench.inject([fault]);
            }
        }
    }

    fn new_claim(&mut self) {
        let caller = submitter(1 + self.dice.below(3) as u8);
        let declared = self.dice.below(3) * 2_000_000;
        let terms = Terms {
            max_answer_microbits: (declared > 0).then_some(declared),
            ..self.bench.terms(caller, &self.claims.len().to_string())
        };
        let id = terms.claim_id();
        self.claims.push((caller, id));
        for command in [
            create(terms),
            commit(id, "module", declared > 0),
            seal(id),
            execute(id),
        ] {
            self.ask(caller, command);
        }
    }

    /// An operator grants, in a reason that no other grant has, or sets a limit.
    fn change_credit(&mut self) {
        let owner = submitter(1 + self.dice.below(3) as u8).tag;
        let principal = format!("principal-{}", owner.0[0]);
        let command = if self.dice.below(3) == 0 {
            Command::SetCreditLimit {
                owner,
                principal,
                limit: 5_000 * self.dice.below(5),
            }
        } else {
            Command::GrantCredit {
                owner,
                principal,
                amount: 1 + self.dice.below(300),
                reason: format!("grant {}", self.asked.len()),
            }
        };
        self.ask(OPERATOR, command);
    }

    fn revoke_one(&mut self) {
        if let Some(nth) = (self.claims.len() as u64).checked_sub(1) {
            let (caller, claim) = self.claims[self.dice.below(nth + 1) as usize];
            let reason = format!("revocation {}", self.asked.len());
            self.ask(caller, Command::RevokeClaim { claim, reason });
        }
    }

    /// Somebody asks for something that he has asked before, under the same id or another.
    fn again(&mut self) {
        if self.claims.is_empty() {
            return;
        }
        let nth = self.dice.below(self.claims.len() as u64) as usize;
        let (caller, claim) = self.claims[nth];
        self.ask(caller, execute(claim));
        let nth = self.dice.below(self.asked.len() as u64) as usize;
        let id = self.asked.keys().nth(nth).cloned();
        self.send(&id.expect("in range"));
    }

    fn finish_one(&mut self) {
        if self.works.is_empty() {
            return;
        }
        let nth = self.dice.below(self.works.len() as u64) as usize;
        let work = self.works.swap_remove(nth);
        if self.dice.below(8) == 0 {
            self.bench
                .finish_as(&work, Err("a fault of ours".to_owned()));
            return;
        }
        let charged = MicroBits(work.allowance.get() / 2 * self.dice.below(3));
        let right = 380 + self.dice.below(200);
        self.bench.finish_charged(&work, right, charged);
    }

    fn step(&mut self) {
        let survived = self.bench.try_step().is_ok();
        self.told.extend(self.bench.take_told());
        self.take_answers();
        if survived {
            self.bench.assert_memory_equals_disk();
        } else {
            self.crash();
        }
        self.works.extend(self.bench.take_works());
        self.check_log();
        self.check_credit();
    }

    /// No credit came from nowhere, none was lost, and the log has every grant.
    fn check_credit(&mut self) {
        let memory = &self.bench.driver.store_mut().memory;
        let totals = memory.totals();
        assert!(totals.balance_out(), "{totals:?}");
        let sum = |of: fn(&Account) -> u64| memory.accounts().map(|a| u128::from(of(a))).sum();
        assert_eq!(totals.balances, sum(|account| account.balance));
        assert_eq!(totals.reserved, sum(|account| account.reserved));
        assert_eq!(totals.burned, sum(|account| account.burned_total));
        assert_eq!(totals.granted, self.granted.values().sum());
        for account in memory.accounts() {
            // What people were told is what is stored.
            assert_eq!(self.told.get(&account.owner).unwrap_or(account), account);
        }
        let main = self.bench.main();
        assert_eq!(u128::from(main.credit_burned), totals.burned);
        assert_eq!(u128::from(main.credit_reserved), totals.reserved);
    }

    /// The process dies; its clients ask again for what was not answered.
    fn crash(&mut self) {
        self.check_heads();
        self.works.clear();
        self.open.clear();
        self.told.clear();
        // A fault that is still to come may hit the start as well.
        loop {
            self.bench = self.bench.restarted_without_step();
            if self.bench.try_step().is_ok() {
                return;
            }
        }
    }

    fn take_answers(&mut self) {
        let bench = &self.bench;
        let asked = &mut self.asked;
        self.open.retain(|ticket, id| {
            let Some(answer) = bench.answer(*ticket) else {
                return true;
            };
            // What was acknowledged once is acknowledged in the same words for ever.
            let known = asked.get_mut(id).expect("it was asked");
            if answer.is_ok() {
                match &known.answer {
                    Some(before) => assert_eq!(gist(before), gist(&answer), "request {id}"),
                    None => known.answer = Some(answer),
                }
            }
            false
        });
    }

    fn check_heads(&mut self) {
        let heads = self.bench.heads();
        assert_heads_sound(&heads, self.bench.driver.store_mut().memory.entries());
    }

    /// The log only grows, and leakage is what its capsules say.
    fn check_log(&mut self) {
        let entries = self.bench.driver.store_mut().memory.entries();
        let known = self.log.len();
        assert_eq!(entries[..known], self.log);
        self.log.extend_from_slice(&entries[known..]);
        let is_capsule = |entry: &&Entry| schema_of(&entry.bytes).as_deref() == Some(CLAIM_CAPSULE);
        let new = self.log[known..].iter().filter(is_capsule);
        self.capsules
            .extend(new.map(|entry| Capsule::parse(&entry.bytes).expect("our own capsule")));
        for entry in &self.log[known..] {
            if schema_of(&entry.bytes).as_deref() == Some(CREDIT_GRANTED) {
                let entry: serde_json::Value =
                    serde_json::from_slice(&entry.bytes).expect("entries are JSON");
                let reason = entry["reason"].as_str().expect("a text").to_owned();
                let amount = entry["amount"].as_u64().expect("a number");
                // A reason belongs to one request: twice in the log, it was granted twice.
                assert_eq!(self.granted.insert(reason, u128::from(amount)), None);
            }
        }
        let capsules = &self.capsules;
        let main = self.bench.main();
        let mut k = MicroBits::ZERO;
        for capsule in capsules {
            assert_eq!(capsule.ledger.k, k);
            k = k.saturating_add(capsule.ledger.price);
        }
        assert_eq!(main.sealed.charged, k);
        let answers = capsules.iter().map(|capsule| capsule.answers.charged);
        assert_eq!(main.answers.charged, answers.sum());
        // Settlement order is admission order: the ended are the first so many admitted.
        assert_eq!(
            main.admitted,
            (capsules.len() + main.in_flight.len()) as u64
        );
        let first = main
            .in_flight
            .front()
            .map_or(main.admitted, |run| run.number);
        assert_eq!(first, capsules.len() as u64);
    }

    /// Everything comes to its end, and every client gets an answer.
    fn finish(&mut self) {
        for _ in 0..2_000 {
            while !self.works.is_empty() {
                self.finish_one();
            }
            let unanswered: Vec<String> = self
                .asked
                .iter()
                .filter(|(id, asked)| {
                    asked.answer.is_none() && !self.open.values().any(|open| open == *id)
                })
                .map(|(id, _)| id.clone())
                .collect();
            for id in &unanswered {
                self.send(id);
            }
            self.step();
            let idle = self.works.is_empty() && !self.bench.driver.owes_a_step();
            if idle && self.open.is_empty() {
                assert!(!self.bench.driver.has_work());
                assert!(self.bench.main().in_flight.is_empty());
                return;
            }
        }
        panic!("{} calls wait for ever", self.open.len());
    }

    /// What was acknowledged is there.
    fn check_acknowledged(&mut self) {
        for asked in self.asked.values() {
            let Some(Ok(reply)) = &asked.answer else {
                continue;
            };
            if let Command::GrantCredit { reason, amount, .. } = &asked.command {
                assert_eq!(self.granted.get(reason), Some(&u128::from(*amount)));
            }
            if let Command::RevokeClaim { claim, .. } = &asked.command {
                let memory = &mut self.bench.driver.store_mut().memory;
                let stored = evidenceos_store::Store::claim(memory, claim);
                let stored = stored.expect("readable").expect("stored");
                assert_eq!(stored.state, ClaimState::Revoked);
            }
            if let Reply::Settled(claim) = reply {
                let settlement = claim.settlement.as_ref().expect("a result");
                let entry = &self.log[settlement.index as usize];
                let hash = evidenceos_kernel::id::Digest::of(&entry.bytes);
                assert_eq!(hash, settlement.capsule_hash);
                let memory = &mut self.bench.driver.store_mut().memory;
                let stored = evidenceos_store::Store::claim(memory, &claim.id);
                let stored = stored.expect("readable").expect("stored");
                assert_eq!(stored.settlement, claim.settlement);
            }
        }
    }
}

/// What an answer says, without the requests that a claim remembers.
fn gist(answer: &Answer) -> String {
    match answer {
        Ok(Reply::Settled(claim)) => format!("{:?}", claim.settlement),
        other => format!("{other:?}"),
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_charged_twice() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse().expect(name))
    };
    let seeds = match number("EVIDENCEOS_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("EVIDENCEOS_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let next = AtomicU64::new(seeds.start);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    play(seed);
                }
            });
        }
    });
}

fn play(seed: u64) {
    let _failed = Seed(seed);
    let mut simulation = Simulation::new(seed);
    for _ in 0..STEPS {
        for _ in 0..1 + simulation.dice.below(4) {
            simulation.act();
        }
        simulation.step();
    }
    simulation.finish();
    simulation.check_heads();
    simulation.check_acknowledged();
}
