//! Random calls, ends of runs, faults and crashes, against a naive model of what must hold.
//!
//! `EVIDENCEOS_SIM_SEEDS` says how many seeds are played, `EVIDENCEOS_SIM_SEED` plays one again;
//! `just sim N` does the first with an optimised build.

mod accounts_file;
mod checks;
mod tally;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use evidenceos_driver::{Answer, Work};
use evidenceos_kernel::{
    account::Account,
    bits::MicroBits,
    claim::Terms,
    command::{Caller, ClaimCommand, Command, CreditCommand, Reply},
    id::{ClaimId, OwnerTag},
    record::Capsule,
};
use evidenceos_store::{Entry, memory::Fault};

use crate::bench::{Bench, OPERATOR, Ticket, commit, create, execute, seal, submitter};
use accounts_file::File;
use tally::Tally;

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
    /// Claims whose module has other bytes on the disk than were stored.
    torn_modules: HashSet<ClaimId>,
    accounts_file: File,
    tally: Tally,
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
            torn_modules: HashSet::new(),
            accounts_file: File::default(),
            tally: Tally::default(),
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
        match self.dice.below(32) {
            0..8 => self.new_claim(),
            8..12 => self.again(),
            12..18 => self.finish_one(),
            18..20 => self.change_credit(),
            20..22 => self.revoke_one(),
            // Midnight comes soon after the start; requests are remembered for longer than this lasts.
            22..24 => self.bench.now_unix_ms += self.dice.below(3) * 20 * 60_000,
            24..28 => self.accounts_file.go_on(&mut self.bench),
            28 => self.tear_a_module(),
            29 => {
                self.tally.count("death between two batches");
                self.crash();
            }
            _ => {
                let fault = match self.dice.below(5) {
                    0 => Fault::Full,
                    1 => Fault::Constraint,
                    2 => Fault::UnknownLost,
                    3 => Fault::UnknownKept,
                    _ => Fault::Torn(self.dice.below(64) as usize),
                };
                self.bench.inject([fault]);
            }
        }
    }

    /// A module's file does not have its digest any more: the run cannot read it, now or later.
    fn tear_a_module(&mut self) {
        if let Some(work) = self.works.first() {
            self.torn_modules.insert(work.claim.id);
            self.tally.count("module torn");
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
            commit(id, &format!("module of {id}"), declared > 0),
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
            CreditCommand::SetLimit {
                owner,
                principal,
                limit: 5_000 * self.dice.below(5),
            }
            .into()
        } else {
            CreditCommand::Grant {
                owner,
                principal,
                amount: 1 + self.dice.below(300),
                reason: format!("grant {}", self.asked.len()),
            }
            .into()
        };
        self.ask(OPERATOR, command);
    }

    fn revoke_one(&mut self) {
        if let Some(nth) = (self.claims.len() as u64).checked_sub(1) {
            let (caller, claim) = self.claims[self.dice.below(nth + 1) as usize];
            let reason = format!("revocation {}", self.asked.len());
            self.ask(caller, ClaimCommand::Revoke { claim, reason }.into());
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
        if self.torn_modules.contains(&work.claim.id) || self.dice.below(8) == 0 {
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

    /// The process dies; its clients ask again for what was not answered.
    fn crash(&mut self) {
        self.check_heads();
        let shown = self.bench.heads().last().map_or(0, |head| head.size);
        self.works.clear();
        self.open.clear();
        self.told.clear();
        self.accounts_file.die(&mut self.dice, &mut self.tally);
        // A fault that is still to come may hit the start as well.
        loop {
            self.bench = self.bench.restarted_without_step();
            self.tally.count_start(self.bench.tail);
            let memory = &self.bench.driver.store_mut().memory;
            self.accounts_file.check_found(memory);
            let (_, _, head) = memory.found();
            assert!(shown <= head.map_or(0, |head| head.size));
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

    /// As at a stop: the file shows everything.
    fn flush_accounts(&mut self) {
        for _ in 0..100 {
            if self
                .accounts_file
                .is_current(&self.bench.driver.store_mut().memory)
            {
                return;
            }
            self.accounts_file.go_on(&mut self.bench);
            self.step();
        }
        panic!("accounts.json does not follow");
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
    let tally = Mutex::new(Tally::default());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    let played = play(seed);
                    tally.lock().expect("no seed failed").add(&played);
                }
            });
        }
    });
    if seeds.end - seeds.start >= SEEDS {
        let tally = tally.into_inner().expect("no seed failed");
        tally.check_all_played();
    }
}

fn play(seed: u64) -> Tally {
    let _failed = Seed(seed);
    let mut simulation = Simulation::new(seed);
    for _ in 0..STEPS {
        for _ in 0..1 + simulation.dice.below(4) {
            simulation.act();
        }
        simulation.step();
    }
    simulation.finish();
    simulation.flush_accounts();
    simulation.check_heads();
    simulation.check_acknowledged();
    simulation.check_burned();
    let memory = &simulation.bench.driver.store_mut().memory;
    for fault in memory.played() {
        simulation.tally.count_fault(*fault);
    }
    simulation.tally
}
