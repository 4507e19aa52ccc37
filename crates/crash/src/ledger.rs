//! The ledger of the clients' requests and replies: the model that a directory is compared with.

use std::{collections::BTreeMap, path::PathBuf};

use evidenceos_tlog::Hash;
use prost::bytes::Bytes;

use crate::{
    client::{Fetched, Settled},
    dice::Dice,
    modules::Module,
};

/// Principals that submit claims.
const SUBMITTERS: u64 = 3;
/// Holdouts that every load needs.
pub const FIRST_HOLDOUTS: [&str; 3] = ["first", "second", "large"];

/// One request to the server, in the life of a claim or a holdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A holdout is registered.
    Register,
    /// A holdout is retired.
    Retire,
    /// A claim is created.
    Create,
    /// Its module is committed.
    Commit,
    /// The claim is sealed.
    Seal,
    /// The claim is executed.
    Execute,
    /// Its capsule is fetched.
    Fetch,
    /// The claim is revoked.
    Revoke,
    /// The limit of an account is raised.
    Limit,
    /// The account is granted credit.
    Grant,
    /// The account is granted credit once more.
    GrantMore,
}

/// The kind of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A claim's, from its creation to its revocation.
    Claim,
    /// A holdout's, from its registration to its retirement.
    Holdout,
    /// An account's, which gets credit and never runs anything.
    Account,
}

const OF_A_CLAIM: [Step; 6] = [
    Step::Create,
    Step::Commit,
    Step::Seal,
    Step::Execute,
    Step::Fetch,
    Step::Revoke,
];
const OF_A_HOLDOUT: [Step; 2] = [Step::Register, Step::Retire];
const OF_AN_ACCOUNT: [Step; 3] = [Step::Limit, Step::Grant, Step::GrantMore];
/// The limit that accounts are raised to: more than they ever get.
pub const RAISED_LIMIT: u64 = 1 << 40;
/// The limit that accounts start with: more than they ever burn.
pub const FIRST_LIMIT: u64 = 1 << 32;

/// The reply to a step.
#[derive(Debug, Clone)]
pub enum Told {
    /// The id of the created object.
    Made(Bytes),
    /// The step was done; the reply says nothing else.
    Done,
    /// The result of a settled claim.
    Settled(Settled),
    Fetched(Fetched),
    /// When a claim was revoked, in Unix seconds.
    Revoked(u64),
    /// The balance, including the grant.
    Granted(u64),
}

/// A life that a client leads to its end.
#[derive(Debug, Clone)]
pub struct Life {
    /// Its number, from which its names and request ids follow.
    pub number: u64,
    pub kind: Kind,
    /// The submitter's token; `None` for the operator.
    pub token: Option<String>,
    /// The name of the holdout that a claim names or that is registered.
    pub holdout: String,
    /// The module of the claim.
    pub module: Module,
    /// The number of its steps.
    pub length: usize,
    /// The replies, in order, with the length of the trace when each had arrived.
    pub told: Vec<(Told, u64)>,
    /// Whether the next step was requested and its outcome is unknown.
    pub maybe: bool,
    /// Whether the server reported that the next step was not done, and the client gave up.
    pub given_up: bool,
}

impl Life {
    /// The steps of this life, in order.
    #[must_use]
    pub fn steps(&self) -> &'static [Step] {
        let all: &[Step] = match self.kind {
            Kind::Claim => &OF_A_CLAIM,
            Kind::Holdout => &OF_A_HOLDOUT,
            Kind::Account => &OF_AN_ACCOUNT,
        };
        &all[..self.length]
    }

    /// The next step to request.
    #[must_use]
    pub fn next(&self) -> Option<Step> {
        self.steps().get(self.told.len()).copied()
    }

    /// Whether no step is left.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.given_up || self.next().is_none()
    }

    /// The request id of a step: always the same.
    #[must_use]
    pub fn request_id(&self, step: Step) -> String {
        format!("{}-{step:?}", self.number)
    }

    /// The name under which the claim is created.
    #[must_use]
    pub fn name(&self) -> String {
        format!("crash-{}", self.number)
    }

    /// The principal of an account's life.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("bearer:{:064x}", self.number)
    }

    /// The amount of each of its grants.
    #[must_use]
    pub fn grant(&self) -> u64 {
        1 + self.number % 97
    }

    /// Steps that were acknowledged when the trace had this length.
    #[must_use]
    pub fn told_by(&self, position: u64) -> usize {
        // The replies of a life arrive in order, so the first later one ends the earlier ones.
        self.told
            .iter()
            .take_while(|(_, mark)| *mark <= position)
            .count()
    }

    /// The reply to a step, if it was acknowledged.
    #[must_use]
    pub fn told_at(&self, step: Step) -> Option<&Told> {
        let nth = self.steps().iter().position(|known| *known == step)?;
        self.told.get(nth).map(|(told, _)| told)
    }

    /// The id of the claim or holdout, once a reply stated it.
    #[must_use]
    pub fn id(&self) -> Option<&Bytes> {
        match self.told.first() {
            Some((Told::Made(id), _)) => Some(id),
            _ => None,
        }
    }

    /// The claim's result, once a reply stated it.
    #[must_use]
    pub fn settled(&self) -> Option<&Settled> {
        match self.told_at(Step::Execute) {
            Some(Told::Settled(settled)) => Some(settled),
            _ => None,
        }
    }
}

/// Everything that clients requested, and the generator of further lives.
#[derive(Debug, Clone)]
pub struct Ledger {
    dice: Dice,
    lives: BTreeMap<u64, Life>,
    /// Lives that no client leads at the moment.
    idle: Vec<u64>,
    /// The trace file, if there is one.
    trace: Option<PathBuf>,
    /// Heads that the server showed, with the trace's length.
    heads: Vec<(u64, Hash, u64)>,
    acknowledged: u64,
    asked_again: u64,
    /// One life in this many is a holdout's.
    holdout_in: u64,
}

impl Ledger {
    /// An empty ledger. If there is a trace, replies are marked with its length.
    #[must_use]
    pub fn new(dice: Dice, trace: Option<PathBuf>) -> Self {
        Self {
            dice,
            lives: BTreeMap::new(),
            idle: Vec::new(),
            trace,
            heads: Vec::new(),
            acknowledged: 0,
            asked_again: 0,
            holdout_in: 40,
        }
    }

    /// Sets the number of lives per holdout's life.
    pub fn holdout_in(&mut self, lives: u64) {
        self.holdout_in = lives;
    }

    /// Whether the holdouts that every load needs are registered.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        let first = self.lives.values().take(FIRST_HOLDOUTS.len());
        first.filter(|life| life.is_over()).count() == FIRST_HOLDOUTS.len()
    }

    /// The ledger at the time when the trace had this length: later requests are repeated.
    #[must_use]
    pub fn at(&self, position: u64) -> Self {
        let lives: BTreeMap<u64, Life> = self
            .lives
            .values()
            .map(|life| {
                let mut life = life.clone();
                let told = life.told_by(position);
                // The server reported after the last reply, and so after this moment, that a step
                // was not done.
                life.given_up &= told == life.told.len();
                // Steps after this moment had been requested, and their outcome is unknown.
                life.maybe = told < life.told.len();
                life.told.truncate(told);
                (life.number, life)
            })
            .collect();
        let idle = lives.values().filter(|life| !life.is_over());
        Self {
            dice: self.dice.clone(),
            // Lives are taken from the end, and the holdouts that all others name have the lowest
            // numbers.
            idle: idle.map(|life| life.number).rev().collect(),
            trace: None,
            heads: Vec::new(),
            acknowledged: 0,
            asked_again: 0,
            holdout_in: self.holdout_in,
            lives,
        }
    }

    /// Length of the trace.
    #[must_use]
    pub fn position(&self) -> u64 {
        let length = |path: &PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        self.trace.as_ref().map_or(0, length)
    }

    /// All lives so far.
    pub fn lives(&self) -> impl Iterator<Item = &Life> {
        self.lives.values()
    }

    /// Heads that the server showed: size, root, and the trace's length.
    #[must_use]
    pub fn heads(&self) -> &[(u64, Hash, u64)] {
        &self.heads
    }

    /// The number of acknowledged steps, and of steps repeated because their outcome was unknown.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.acknowledged, self.asked_again)
    }

    /// Invents the holdouts that every load needs.
    pub fn begin(&mut self) {
        for name in FIRST_HOLDOUTS {
            let number = self.lives.len() as u64;
            self.add(holdout(number, name.to_owned(), 1));
        }
    }

    fn add(&mut self, life: Life) {
        self.idle.push(life.number);
        self.lives.insert(life.number, life);
    }

    /// A life for a client to lead: an interrupted one, or a new one if new ones may begin.
    pub fn take(&mut self, may_begin: bool) -> Option<Life> {
        if self.idle.is_empty() && may_begin && self.has_begun() {
            let life = self.invent();
            self.add(life);
        }
        let first = FIRST_HOLDOUTS.len() as u64;
        // Claims name the first holdouts, so no other life may run before those are registered.
        if !self.has_begun() && self.idle.last().is_some_and(|next| *next >= first) {
            return None;
        }
        let number = self.idle.pop()?;
        let life = self.lives.get(&number).cloned()?;
        self.asked_again += u64::from(life.maybe);
        Some(life)
    }

    /// Notes the reply to a step; the life goes on.
    pub fn tell(&mut self, life: &mut Life, told: Told) {
        // The reply has arrived: everything it promises was done while the trace was no longer than
        // now.
        let mark = self.position();
        if let Told::Fetched(Fetched {
            head: (size, root), ..
        }) = &told
        {
            self.heads.push((*size, *root, mark));
        }
        life.told.push((told, mark));
        life.maybe = false;
        self.acknowledged += 1;
        self.lives.insert(life.number, life.clone());
    }

    /// Takes a life back from its client.
    pub fn give_back(&mut self, life: Life) {
        if !life.is_over() {
            self.idle.push(life.number);
        }
        self.lives.insert(life.number, life);
    }

    /// Whether a client gives up after the server reported that nothing was done.
    pub fn gives_up(&mut self) -> bool {
        self.dice.one_in(2)
    }

    fn invent(&mut self) -> Life {
        let number = self.lives.len() as u64;
        if self.dice.one_in(self.holdout_in) {
            let length = 1 + self.dice.below(2) as usize;
            return holdout(number, format!("holdout-{number}"), length);
        }
        if self.dice.one_in(6) {
            let length = 1 + self.dice.below(3) as usize;
            return Life {
                kind: Kind::Account,
                ..holdout(number, String::new(), length)
            };
        }
        let module = match self.dice.below(12) {
            0..4 => Module::Shared,
            4..8 => Module::Own,
            8..11 => Module::Asking,
            _ => Module::Slow,
        };
        let revoked = usize::from(self.dice.one_in(4));
        Life {
            number,
            kind: Kind::Claim,
            token: Some(format!("submitter-{}", self.dice.below(SUBMITTERS))),
            holdout: (*self.dice.one_of(&FIRST_HOLDOUTS)).to_owned(),
            module,
            length: 5 + revoked,
            told: Vec::new(),
            maybe: false,
            given_up: false,
        }
    }
}

fn holdout(number: u64, name: String, length: usize) -> Life {
    Life {
        number,
        kind: Kind::Holdout,
        token: None,
        holdout: name,
        module: Module::Shared,
        length,
        told: Vec::new(),
        maybe: false,
        given_up: false,
    }
}
