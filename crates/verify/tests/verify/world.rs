//! A small world with the real kernel in it: holdouts, runs and the log that they leave.

pub(crate) use evidenceos_kernel::testing::owner;
use std::collections::HashMap;

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Artifact, PolicyCode, Reason, Terms},
    command::{
        Caller, ClaimCommand, Command, Decision, HoldoutCommand, LogCommand, PutHoldout, Reply,
        Request, RestartLog, RunCommand, RunEnd, RunReport,
    },
    continuity::{BegunBy, KnownTree, LogStarted},
    decide::{decide, dependency_merkle_root},
    evidence::Strategy,
    holdout::{Description, Policy},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    log_key::{KeyLink, KeyRotated, SignedKeyLink},
    null::NullSpec,
    price::Multiplicity,
    record::{AnswerTally, Capsule, Registered},
    score::{self, Classes},
    split::{self, Salts, Split},
    state::{Counters, Resident, Stage},
    testing::{self, ENGINE, Rows, SYMBOLS},
    trace::{EMITTED, TraceWriter, TracedAdmission, TracedEnd, TracedRun},
};
use evidenceos_tlog::{Checkpoint, SignedCheckpoint, SignerKey, Tree, leaf_hash, sth};
use evidenceos_verify::{Opening, Receipt};

pub(crate) const ORIGIN: &str = "example.org/log";

/// The private side of a holdout.
#[derive(Clone)]
pub(crate) struct Private {
    pub(crate) id: HoldoutId,
    pub(crate) opening: Opening,
    units: Vec<u64>,
    split: Split,
}

/// A holdout to register.
#[derive(Clone)]
pub(crate) struct Items {
    pub(crate) reference: Option<String>,
    pub(crate) policy: Policy,
    pub(crate) labels: Vec<u8>,
    pub(crate) unit_size: usize,
    pub(crate) strategy: Strategy,
    pub(crate) expires_unix: Option<u64>,
    /// Whether they are declared fresh; else they are compared with every earlier holdout.
    pub(crate) fresh: bool,
    /// The earlier holdout with whose labels they agree.
    pub(crate) agrees_with: Option<HoldoutId>,
    /// What stands for the labels in the kernel; the same again registers the same labels.
    pub(crate) labels_key: Option<u8>,
}

impl Items {
    pub(crate) fn new(policy: Policy, items: usize) -> Self {
        Self {
            reference: None,
            policy,
            labels: labels(items),
            unit_size: 1,
            strategy: Strategy::Grid,
            expires_unix: None,
            fresh: true,
            agrees_with: None,
            labels_key: None,
        }
    }
}

/// How a guest ends.
#[derive(Clone, Default)]
pub(crate) enum Ends {
    #[default]
    Emits,
    EmitsNoSymbol,
    NoOutput,
    Traps(Reason),
    /// A policy vetoes it, and may leave it to somebody else.
    Vetoed(u16, bool),
    Aborts,
}

/// What a claim is and what its run does.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub(crate) questions: Vec<Vec<u8>>,
    pub(crate) judged: Option<Vec<u8>>,
    pub(crate) ends: Ends,
    pub(crate) levels: u8,
    pub(crate) alpha_micros: Option<u32>,
    /// The most that its questions may be charged.
    pub(crate) allowance: Option<u64>,
    /// The module; else one of its own.
    pub(crate) module: Option<&'static str>,
    pub(crate) parents: Vec<ClaimId>,
}

/// A run that was admitted.
#[derive(Clone, Copy)]
pub(crate) struct Ticket {
    pub(crate) claim: ClaimId,
    holdout: HoldoutId,
    number: u64,
}

pub(crate) struct World {
    resident: Resident,
    rows: Rows,
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) traces: HashMap<ClaimId, Vec<u8>>,
    pub(crate) now_unix_ms: u64,
    /// The log's name and the key that signs it.
    pub(crate) origin: String,
    pub(crate) signer: SignerKey,
}

pub(crate) fn key() -> SignerKey {
    SignerKey::from_seed(ORIGIN, [5; 32]).expect("a valid name")
}

/// Labels that alternate in a way that no unit shares.
pub(crate) fn labels(items: usize) -> Vec<u8> {
    (0..items).map(|i| u8::from(i * i % 7 < 3)).collect()
}

/// The labels with every `period`-th one wrong.
pub(crate) fn vector(items: usize, period: usize) -> Vec<u8> {
    labels(items)
        .iter()
        .enumerate()
        .map(|(i, label)| label ^ u8::from(i % period == 0))
        .collect()
}

impl World {
    pub(crate) fn new() -> Self {
        let counters = Counters {
            next_index: 1,
            ..Counters::default()
        };
        let id = Digest(sth::key_id(&key().public_key()).0);
        Self {
            resident: Resident::new(Vec::new(), counters, ENGINE.to_owned()),
            rows: Rows::default(),
            entries: vec![started(id, None)],
            traces: HashMap::new(),
            now_unix_ms: 2_000,
            origin: ORIGIN.to_owned(),
            signer: key(),
        }
    }

    /// Lets the log begin as this release begins one.
    pub(crate) fn begin_as_now(&mut self) {
        let id = Digest(sth::key_id(&key().public_key()).0);
        self.entries[0] = started(id, Some(BegunBy::NewKey));
    }

    pub(crate) fn register(&mut self, policy: Policy, items: usize, unit_size: usize) -> Private {
        self.put(&Items {
            unit_size,
            ..Items::new(policy, items)
        })
        .expect("registered")
    }

    /// Registers a holdout; none if its labels agree with an earlier one's.
    pub(crate) fn put(&mut self, put: &Items) -> Option<Private> {
        let (labels, policy) = (put.labels.clone(), put.policy.clone());
        let generation = self.resident.counters().holdouts_generation;
        let secret = [9 + generation as u8; 32];
        let units: Vec<u64> = (0..labels.len())
            .map(|i| (i / put.unit_size) as u64)
            .collect();
        let split = split::split(&secret, &units, policy.answer_share_micros);
        let salts = Salts::new(&secret);
        let mut tree = Tree::new();
        for (i, label) in labels.iter().enumerate() {
            let leaf = split::commitment_leaf_bytes(
                i as u64,
                units[i],
                split.part_mask[i],
                &salts.salt(i as u64),
                *label,
            );
            tree.append(leaf_hash(&leaf));
        }
        let description = Description {
            items: labels.len() as u64,
            units: split.answer_units + split.sealed_units,
            answer_items: split.answer_items,
            sealed_items: split.sealed_items,
            sealed_units: split.sealed_units,
            item_order_hash: (put.unit_size == 1).then(|| Digest::of(&labels)),
            commitment_root: Digest(tree.root().0),
            secret_commitment: Digest(split::secret_commitment(&secret)),
            policy,
            null_spec: NullSpec::accuracy(500_000, put.strategy, put.expires_unix)
                .expect("in range"),
            fresh_items: put.fresh,
            replaces: None,
        };
        let labels_key = put.labels_key.unwrap_or(100 + generation as u8);
        let compared = if put.fresh {
            Vec::new()
        } else {
            let others = self.resident.holdouts();
            others
                .filter(|other| other.status.as_str() != "withdrawn")
                .map(|other| (other.id, put.agrees_with == Some(other.id)))
                .collect()
        };
        let reply = self.ask(HoldoutCommand::Put(Box::new(PutHoldout {
            reference: put
                .reference
                .clone()
                .unwrap_or_else(|| format!("holdout-{generation}")),
            description,
            blob: Digest::of(&labels),
            labels_key: Digest::of(&[labels_key]),
            has_item_ids: false,
            generation,
            compared,
        })));
        let holdout = match reply {
            Reply::Holdout(holdout) => holdout,
            Reply::Refused(_) => return None,
            other => panic!("registered: {other:?}"),
        };
        Some(Private {
            id: holdout.id,
            opening: Opening {
                holdout_id: holdout.id,
                secret,
                labels,
                units: (put.unit_size > 1).then(|| units.clone()),
            },
            units,
            split,
        })
    }

    /// One whole claim, from its creation to its capsule; its index.
    pub(crate) fn run(
        &mut self,
        holdout: &Private,
        owner: OwnerTag,
        name: &str,
        script: &Script,
    ) -> u64 {
        let ticket = self.admit(holdout, owner, name, script);
        self.settle(holdout, ticket, script)
    }

    /// A claim up to its admission.
    pub(crate) fn admit(
        &mut self,
        holdout: &Private,
        owner: OwnerTag,
        name: &str,
        script: &Script,
    ) -> Ticket {
        let claim = self.sealed(holdout, owner, name, script);
        self.ask(ClaimCommand::Execute { claim });
        let held = self.resident.holdout(&holdout.id).expect("known");
        Ticket {
            claim,
            holdout: holdout.id,
            number: held.admitted - 1,
        }
    }

    /// A claim up to its seal.
    fn sealed(
        &mut self,
        holdout: &Private,
        owner: OwnerTag,
        name: &str,
        script: &Script,
    ) -> ClaimId {
        let null_spec_hash = self
            .resident
            .holdout(&holdout.id)
            .expect("registered")
            .description
            .null_spec
            .hash();
        let artifacts: Vec<Artifact> = script
            .parents
            .iter()
            .map(|parent| Artifact {
                kind: "dependency".to_owned(),
                hash: self.rows.claims[parent]
                    .settlement
                    .as_ref()
                    .expect("settled")
                    .capsule_hash,
                parent: Some(*parent),
            })
            .collect();
        let mut hashes: Vec<Digest> = artifacts.iter().map(|artifact| artifact.hash).collect();
        hashes.sort();
        let root = (!hashes.is_empty()).then(|| dependency_merkle_root(&hashes));
        let terms = Terms {
            alpha_micros: script.alpha_micros.unwrap_or(50_000),
            levels: script.levels,
            max_answer_microbits: script.allowance,
            dependency_merkle_root: root,
            ..testing::terms(owner, name, holdout.id, null_spec_hash)
        };
        let claim = terms.claim_id();
        self.ask(ClaimCommand::Create {
            id: claim,
            principal: "a submitter".to_owned(),
            terms: Box::new(terms),
        });
        let (module, asks) = (script.module.unwrap_or(name), !script.questions.is_empty());
        self.ask(testing::commit_with(claim, module, asks, artifacts));
        self.ask(ClaimCommand::Seal { claim });
        claim
    }

    /// Ends a run that is the oldest of its holdout; the index of its capsule.
    pub(crate) fn settle(&mut self, holdout: &Private, ticket: Ticket, script: &Script) -> u64 {
        let Ticket {
            claim,
            holdout: id,
            number,
        } = ticket;
        assert_eq!(id, holdout.id);
        let run = self.resident.holdout(&id).expect("known").in_flight[0].clone();
        let is_duplicate = run.place.is_some_and(|place| place.duplicate_of.is_some());
        let end = if is_duplicate {
            RunCommand::SettleDuplicate {
                holdout: id,
                number,
            }
        } else if matches!(script.ends, Ends::Aborts) {
            RunCommand::Abort {
                holdout: id,
                number,
            }
        } else {
            let report = self.report(holdout, claim, script);
            RunCommand::Settle {
                holdout: id,
                number,
                report: Box::new(report),
            }
        };
        self.ask(end);
        self.entries.len() as u64 - 1
    }

    /// What the guest and its oracle would have done.
    fn report(&mut self, holdout: &Private, claim: ClaimId, script: &Script) -> RunReport {
        let (labels, split) = (&holdout.opening.labels, &holdout.split);
        let held = self.resident.holdout(&holdout.id).expect("known");
        let prices = &held.description.policy.answer_prices;
        let row = &self.rows.claims[&claim];
        let (admitted, commitment) = (&held.in_flight[0], row.commitment.as_ref());
        let commitment = commitment.expect("committed");
        let run = TracedRun {
            claim_id: claim,
            owner_tag: row.terms.owner,
            wasm_hash: commitment.module.hash,
            seal_hash: row.seal_hash.expect("sealed"),
            number: admitted.number,
            levels: row.terms.levels,
            alpha_micros: row.terms.alpha_micros,
            n_symbols: SYMBOLS,
            engine: ENGINE.to_owned(),
            admission: admitted.place.map(|place| TracedAdmission {
                ended_before: place.ended_before,
                answers_reserved: admitted.answers_reserved,
                dependencies: commitment.capsules_of_parents(),
            }),
        };
        let mut trace = TraceWriter::new(labels.len() as u64, &run);
        let mut tally = AnswerTally {
            n_symbols: SYMBOLS,
            ..AnswerTally::default()
        };
        let mut by_symbol = std::collections::BTreeMap::new();
        for question in &script.questions {
            tally.asked += 1;
            if split.answer_items == 0 {
                trace.free();
                continue;
            }
            let answer_items = split.answer_items;
            let symbol = score::answer(question, labels, &split.part_mask, SYMBOLS, answer_items);
            trace.asked(question, SYMBOLS, symbol);
            *by_symbol.entry(symbol).or_insert(0) += 1;
            let price = prices.price(SYMBOLS, symbol).expect("in the alphabet");
            tally.charged = tally.charged.saturating_add(price);
        }
        if !by_symbol.is_empty() {
            trace.replayed(0);
            tally.asked += 1;
            tally.replayed += 1;
        }
        if matches!(script.ends, Ends::Traps(Reason::AllowanceExhausted)) {
            // The question that no longer fitted.
            tally.asked += 1;
        }
        tally.by_symbol = by_symbol.into_iter().collect();
        let classes = Classes::new(&holdout.units, &split.part_mask).expect("few sizes");
        let (end, code, deferred, output) = match &script.ends {
            Ends::Emits | Ends::Aborts => (RunEnd::Emitted(vec![1]), EMITTED, false, vec![1]),
            Ends::EmitsNoSymbol => (RunEnd::Emitted(vec![9]), EMITTED, false, vec![9]),
            Ends::NoOutput => (RunEnd::NoOutput, 118, false, Vec::new()),
            Ends::Traps(reason) => (RunEnd::Trapped(*reason), reason.code(), false, Vec::new()),
            Ends::Vetoed(code, deferred) => {
                let vetoed = RunEnd::Vetoed {
                    output: vec![2],
                    code: PolicyCode::new(*code).expect("a policy's"),
                    deferred: *deferred,
                };
                (vetoed, *code, *deferred, vec![2])
            }
        };
        let traced_end = TracedEnd {
            code,
            deferred,
            fuel: 1_234,
            asked: tally.asked,
            output,
        };
        let is_judged = !matches!(script.ends, Ends::Traps(_));
        let judged = script.judged.as_deref().filter(|_| is_judged);
        let bytes = trace.finish(judged, &traced_end);
        let vetoed = matches!(script.ends, Ends::Vetoed(..));
        let report = RunReport {
            end,
            answers: tally,
            score: judged
                .filter(|_| !vetoed)
                .map(|vector| classes.score(vector, labels, &split.part_mask)),
            fuel: 1_234,
            pages: 17,
            trace_hash: Digest::of(&bytes),
            trace_len: bytes.len() as u64,
        };
        self.traces.insert(claim, bytes);
        report
    }

    /// Puts a command to the kernel and takes over what it decides.
    pub(crate) fn ask(&mut self, command: impl Into<Command>) -> Reply {
        let command = command.into();
        let request = Request {
            caller: match &command {
                Command::Claim(ClaimCommand::Create { terms, .. }) => testing::caller(terms.owner),
                _ => Caller::DRIVER,
            },
            stamp: None,
            command,
        };
        self.now_unix_ms += 1_000;
        let mut stage = Stage::new(&self.resident);
        stage.advance_to(self.now_unix_ms);
        self.rows.load(&mut stage, &request);
        let decision: Decision = decide(&stage, &request).expect("the script keeps the rules");
        stage.enact(&decision);
        let changes = stage.into_changes();
        self.rows.merge(&changes);
        self.resident.merge(changes);
        self.entries.extend(decision.entries);
        decision.reply
    }

    /// An entry past the kernel, which counts it all the same.
    pub(crate) fn push(&mut self, entry: Vec<u8>) {
        self.entries.push(entry);
        let counters = Counters {
            next_index: self.entries.len() as u64,
            ..self.resident.counters()
        };
        let holdouts = self.resident.holdouts().cloned().collect();
        self.resident = Resident::new(holdouts, counters, ENGINE.to_owned());
    }

    /// Lets a key follow another: the statement with both signatures, or as a test bends it.
    pub(crate) fn follow(
        &mut self,
        old: &SignerKey,
        new: &SignerKey,
        bend: impl FnOnce(&mut SignedKeyLink),
    ) {
        let checkpoint = self.checkpoint();
        let link = KeyLink {
            origin: self.origin.clone(),
            old_public_key: old.public_key(),
            new_public_key: new.public_key(),
            tree_size: checkpoint.size(),
            root: checkpoint.root().0,
        };
        let mut signed = signed_by(old, new, link);
        bend(&mut signed);
        self.now_unix_ms += 1_000;
        // Past the kernel, which would not let a bent one through.
        let entry = KeyRotated {
            signed,
            rotated_unix_ms: self.now_unix_ms,
        };
        self.push(entry.to_bytes());
        self.signer = new.clone();
    }

    /// Goes on under another name; holdouts are exhausted but for those that are stated.
    pub(crate) fn restart(&mut self, origin: &str, charged: Vec<(HoldoutId, MicroBits)>) {
        let checkpoint = self.checkpoint();
        self.ask(LogCommand::Restart(Box::new(RestartLog {
            origin: origin.to_owned(),
            old_origin: self.origin.clone(),
            old: KnownTree {
                size: checkpoint.size(),
                root: checkpoint.root().0,
            },
            known: Some(KnownTree {
                size: checkpoint.size() + 3,
                root: [7; 32],
            }),
            because: "the disk was lost".to_owned(),
            charged,
        })));
        self.origin = origin.to_owned();
    }

    pub(crate) fn registered(&self, holdout: &Private) -> Registered {
        let entry = self.entries.iter();
        entry
            .filter_map(|entry| Registered::parse(entry).ok())
            .find(|registered| registered.id == holdout.id)
            .expect("in the log")
    }

    pub(crate) fn capsules(&self) -> Vec<Capsule> {
        let entries = self.entries.iter();
        entries
            .filter_map(|entry| Capsule::parse(entry).ok())
            .collect()
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        checkpoint_under(&self.origin, &self.entries)
    }

    pub(crate) fn receipt(&self, index: u64) -> Receipt {
        receipt_of(&self.entries, index)
    }
}

/// A link with both signatures.
pub(crate) fn signed_by(old: &SignerKey, new: &SignerKey, link: KeyLink) -> SignedKeyLink {
    let digest = link.digest();
    SignedKeyLink {
        old_signature: old.sign_bytes(digest.as_bytes()),
        new_signature: new.sign_bytes(digest.as_bytes()),
        link,
    }
}

pub(crate) fn checkpoint_of(entries: &[Vec<u8>]) -> Checkpoint {
    checkpoint_under(ORIGIN, entries)
}

pub(crate) fn checkpoint_under(origin: &str, entries: &[Vec<u8>]) -> Checkpoint {
    let mut tree = Tree::new();
    for entry in entries {
        tree.append(leaf_hash(entry));
    }
    Checkpoint::new(origin, tree.size(), tree.root()).expect("a valid origin")
}

pub(crate) fn receipt_of(entries: &[Vec<u8>], index: u64) -> Receipt {
    let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    let signed = SignedCheckpoint::sign(checkpoint_of(entries), &key()).expect("own key");
    Receipt {
        capsule: entries[index as usize].clone(),
        index,
        inclusion: audit_path(index as usize, &leaves),
        checkpoint: signed.note().to_string(),
    }
}

/// PATH of RFC 6962 §2.1.1, as it is written there.
fn audit_path(index: usize, leaves: &[evidenceos_tlog::Hash]) -> Vec<evidenceos_tlog::Hash> {
    if leaves.len() <= 1 {
        return Vec::new();
    }
    let root = |leaves: &[evidenceos_tlog::Hash]| {
        let mut tree = Tree::new();
        leaves.iter().for_each(|leaf| _ = tree.append(*leaf));
        tree.root()
    };
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    let (mut path, sibling) = if index < left.len() {
        (audit_path(index, left), root(right))
    } else {
        (audit_path(index - left.len(), right), root(left))
    };
    path.push(sibling);
    path
}

/// Two holdouts and every way in which a claim can end.
pub(crate) fn eventful() -> (World, Private, Private) {
    let mut world = World::new();
    let budget = MicroBits::from_bits(64);
    let mut with_levels = Policy::with_sealed_budget(budget);
    with_levels.levels = 4;
    let first = world.register(with_levels, 400, 1);
    let claims_only = Policy {
        answer_share_micros: 0,
        multiplicity: Multiplicity::Fwer,
        ..Policy::with_sealed_budget(budget)
    };
    let second = world.register(claims_only, 300, 3);
    let judged = |period| Some(vector(400, period));
    let script = |questions: &[usize], judged| Script {
        questions: questions.iter().map(|&p| vector(400, p)).collect(),
        judged,
        ..Script::default()
    };
    world.run(&first, owner(1), "weak", &script(&[], judged(2)));
    world.run(&first, owner(1), "good", &script(&[3, 5], judged(10)));
    world.run(&first, owner(2), "asks", &script(&[2, 3, 4], None));
    let levels = Script {
        levels: 4,
        ..script(&[], judged(20))
    };
    world.run(&first, owner(2), "levels", &levels);
    let traps = Script {
        ends: Ends::Traps(Reason::Trap),
        ..script(&[7], judged(3))
    };
    world.run(&first, owner(2), "traps", &traps);
    let aborts = Script {
        ends: Ends::Aborts,
        ..script(&[], judged(3))
    };
    world.run(&first, owner(3), "aborts", &aborts);
    world.run(&first, owner(3), "after", &script(&[], judged(9)));
    let perfect = Script {
        judged: Some(vector(300, 30)),
        ..Script::default()
    };
    world.run(&second, owner(3), "second", &perfect);
    let last = world.run(&second, owner(4), "once more", &perfect);
    let claim = Capsule::parse(&world.entries[last as usize])
        .expect("a capsule")
        .claim_id;
    world.ask(ClaimCommand::Revoke {
        claim,
        reason: "trained on the wrong year".to_owned(),
    });
    world.ask(HoldoutCommand::Retire {
        holdout: first.id,
        reason: "its budget is used up".to_owned(),
    });
    world.ask(HoldoutCommand::Open { holdout: first.id });
    (world, first, second)
}

/// Entry 0, as a release that says what let the log begin writes it, or an earlier one.
fn started(key_id: Digest, begun_by: Option<BegunBy>) -> Vec<u8> {
    LogStarted {
        origin: ORIGIN.to_owned(),
        key_id,
        software: "evidenceos test".to_owned(),
        begun_by,
        started_unix_ms: 1_000,
    }
    .to_bytes()
}
