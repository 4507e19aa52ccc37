//! A small world with the real kernel in it: holdouts, runs and the log that they leave.

use std::collections::HashMap;

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Claim, Lane, ModuleFacts, Reason, Terms},
    command::{
        Caller, Command, Decision, PutHoldout, Reply, Request, RestartLog, RunEnd, RunReport,
    },
    continuity::KnownTree,
    decide::decide,
    evidence::Strategy,
    holdout::{Description, NullSpec, Policy, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    log_key::{KeyLink, SignedKeyLink},
    record::{self, AnswerTally, Registered},
    score::{self, Classes},
    split::{self, Salts, Split},
    state::{Counters, Key, Resident, Stage},
    trace::{EMITTED, TraceWriter, TracedEnd, TracedRun},
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

/// What a run does.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub(crate) questions: Vec<Vec<u8>>,
    pub(crate) judged: Option<Vec<u8>>,
    pub(crate) traps: bool,
    pub(crate) aborts: bool,
    pub(crate) levels: u8,
}

pub(crate) struct World {
    resident: Resident,
    claims: HashMap<ClaimId, Claim>,
    pools: HashMap<(HoldoutId, OwnerTag), PrincipalPool>,
    accounts: HashMap<OwnerTag, evidenceos_kernel::account::Account>,
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) traces: HashMap<ClaimId, Vec<u8>>,
    now_unix_ms: u64,
}

pub(crate) fn key() -> SignerKey {
    SignerKey::from_seed(ORIGIN, [5; 32]).expect("a valid name")
}

pub(crate) fn owner(n: u8) -> OwnerTag {
    OwnerTag([n; 16])
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
        Self {
            resident: Resident::new(Vec::new(), counters, "test-engine".to_owned()),
            claims: HashMap::new(),
            pools: HashMap::new(),
            accounts: HashMap::new(),
            entries: vec![record::log_started(
                ORIGIN,
                Digest::of(b"key"),
                "evidenceos test",
                1_000,
            )],
            traces: HashMap::new(),
            now_unix_ms: 2_000,
        }
    }

    pub(crate) fn register(&mut self, policy: Policy, items: usize, unit_size: usize) -> Private {
        self.register_labels(policy, labels(items), unit_size)
    }

    fn register_labels(&mut self, policy: Policy, labels: Vec<u8>, unit_size: usize) -> Private {
        let secret = [9; 32];
        let units: Vec<u64> = (0..labels.len()).map(|i| (i / unit_size) as u64).collect();
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
            item_order_hash: None,
            commitment_root: Digest(tree.root().0),
            secret_commitment: Digest(split::secret_commitment(&secret)),
            policy,
            null_spec: NullSpec::accuracy(500_000, Strategy::Grid, None).expect("in range"),
            fresh_items: true,
            replaces: None,
        };
        let generation = self.resident.counters().holdouts_generation;
        let reply = self.ask(Command::PutHoldout(Box::new(PutHoldout {
            reference: format!("holdout-{generation}"),
            description,
            blob: Digest::of(&labels),
            labels_key: Digest::of(&[&labels[..], &[generation as u8]].concat()),
            has_item_ids: false,
            generation,
            compared: Vec::new(),
        })));
        let Reply::Holdout(holdout) = reply else {
            panic!("registered: {reply:?}")
        };
        Private {
            id: holdout.id,
            opening: Opening {
                holdout_id: holdout.id,
                secret,
                labels,
                units: (unit_size > 1).then(|| units.clone()),
            },
            units,
            split,
        }
    }

    /// One whole claim, from its creation to its capsule; its index.
    pub(crate) fn run(
        &mut self,
        holdout: &Private,
        owner: OwnerTag,
        name: &str,
        script: &Script,
    ) -> u64 {
        let null_spec_hash = self
            .resident
            .holdout(&holdout.id)
            .expect("registered")
            .description
            .null_spec
            .hash();
        let terms = Terms {
            owner,
            claim_name: name.to_owned(),
            holdout: holdout.id,
            null_spec_hash,
            alpha_micros: 50_000,
            levels: script.levels,
            oracle_id: "builtin.accuracy".to_owned(),
            oracle_num_symbols: 4,
            epoch_size: 0,
            epoch_config_ref: String::new(),
            lane: Lane::Fast,
            access_credit: 0,
            max_answer_microbits: None,
            output_schema_id: String::new(),
            dependency_merkle_root: None,
        };
        let claim = terms.claim_id();
        self.ask(Command::CreateClaim {
            id: claim,
            principal: "a submitter".to_owned(),
            terms: Box::new(terms),
        });
        let hash = Digest::of(name.as_bytes());
        self.ask(Command::CommitArtifacts {
            claim,
            artifacts: vec![evidenceos_kernel::claim::Artifact {
                kind: "wasm".to_owned(),
                hash,
                parent: None,
            }],
            module: ModuleFacts {
                hash,
                len: 100,
                asks: !script.questions.is_empty(),
                submits: true,
            },
        });
        self.ask(Command::SealClaim { claim });
        self.ask(Command::ExecuteClaim { claim });
        let number = self.resident.holdout(&holdout.id).expect("known").in_flight[0].number;
        let end = if script.aborts {
            Command::Abort {
                holdout: holdout.id,
                number,
            }
        } else {
            let report = self.report(holdout, claim, script);
            Command::Settle {
                holdout: holdout.id,
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
        let prices = &self
            .resident
            .holdout(&holdout.id)
            .expect("known")
            .description
            .policy
            .answer_prices;
        let row = &self.claims[&claim];
        let run = TracedRun {
            claim_id: claim,
            owner_tag: row.terms.owner,
            wasm_hash: row.commitment.as_ref().expect("committed").module.hash,
            seal_hash: row.seal_hash.expect("sealed"),
            number: self.resident.holdout(&holdout.id).expect("known").in_flight[0].number,
            levels: row.terms.levels,
            alpha_micros: row.terms.alpha_micros,
            n_symbols: 4,
            engine: "test-engine".to_owned(),
        };
        let mut trace = TraceWriter::new(labels.len() as u64, &run);
        let mut tally = AnswerTally {
            n_symbols: 4,
            ..AnswerTally::default()
        };
        let mut by_symbol = std::collections::BTreeMap::new();
        for question in &script.questions {
            let symbol = score::answer(question, labels, &split.part_mask, 4, split.answer_items);
            trace.asked(question, 4, symbol);
            tally.asked += 1;
            *by_symbol.entry(symbol).or_insert(0) += 1;
            let price = prices.price(4, symbol).expect("in the alphabet");
            tally.charged = tally.charged.saturating_add(price);
        }
        if !script.questions.is_empty() {
            trace.replayed(0);
            tally.asked += 1;
            tally.replayed += 1;
        }
        tally.by_symbol = by_symbol.into_iter().collect();
        let classes = Classes::new(&holdout.units, &split.part_mask).expect("few sizes");
        let end = TracedEnd {
            code: if script.traps {
                Reason::Trap.code()
            } else {
                EMITTED
            },
            deferred: false,
            fuel: 1_234,
            asked: tally.asked,
            output: if script.traps { Vec::new() } else { vec![0] },
        };
        let bytes = trace.finish(script.judged.as_deref(), &end);
        let report = RunReport {
            end: if script.traps {
                RunEnd::Trapped(Reason::Trap)
            } else {
                RunEnd::Emitted(vec![0])
            },
            answers: tally,
            score: script
                .judged
                .as_ref()
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
    pub(crate) fn ask(&mut self, command: Command) -> Reply {
        let request = Request {
            caller: match &command {
                Command::CreateClaim { terms, .. } => Caller {
                    tag: terms.owner,
                    operator: false,
                    auditor: false,
                },
                _ => Caller::DRIVER,
            },
            stamp: None,
            command,
        };
        self.now_unix_ms += 1_000;
        let mut stage = Stage::new(&self.resident);
        stage.advance_to(self.now_unix_ms);
        loop {
            let missing = stage.missing(&request);
            if missing.is_empty() {
                break;
            }
            for key in missing {
                match key {
                    Key::Claim(id) => stage.supply_claim(id, self.claims.get(&id).cloned()),
                    Key::Pool(holdout, owner) => {
                        let pool = self.pools.get(&(holdout, owner)).copied();
                        stage.supply_pool(holdout, owner, pool);
                    }
                    Key::Remembered(key) => stage.supply_remembered(key, None),
                    Key::Account(owner) => {
                        stage.supply_account(owner, self.accounts.get(&owner).cloned());
                    }
                    Key::Question(question) => stage.supply_question(question, None),
                }
            }
        }
        let decision: Decision = decide(&stage, &request).expect("the script keeps the rules");
        stage.enact(&decision);
        let changes = stage.into_changes();
        for claim in changes.new_claims.iter().chain(&changes.claims) {
            self.claims.insert(claim.id, claim.clone());
        }
        for (holdout, owner, pool) in &changes.pools {
            self.pools.insert((*holdout, *owner), *pool);
        }
        for account in changes.new_accounts.iter().chain(&changes.accounts) {
            self.accounts.insert(account.owner, account.clone());
        }
        self.resident.merge(changes);
        self.entries.extend(decision.entries);
        decision.reply
    }

    /// Lets the log begin under its own key, which the published vectors do not.
    pub(crate) fn begin_under_its_key(&mut self) {
        let id = Digest(sth::key_id(&key().public_key()).0);
        self.entries[0] = record::log_started(ORIGIN, id, "evidenceos test", 1_000);
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
            origin: ORIGIN.to_owned(),
            old_public_key: old.public_key(),
            new_public_key: new.public_key(),
            tree_size: checkpoint.size(),
            root: checkpoint.root().0,
        };
        let digest = link.digest();
        let mut signed = SignedKeyLink {
            old_signature: old.sign_bytes(digest.as_bytes()),
            new_signature: new.sign_bytes(digest.as_bytes()),
            link,
        };
        bend(&mut signed);
        // Past the kernel, which would not let a bent one through.
        self.entries
            .push(record::key_rotated(&signed, self.now_unix_ms));
    }

    /// Goes on under another name; holdouts are exhausted but for those that are stated.
    pub(crate) fn restart(&mut self, origin: &str, charged: Vec<(HoldoutId, MicroBits)>) {
        let checkpoint = self.checkpoint();
        self.ask(Command::RestartLog(Box::new(RestartLog {
            origin: origin.to_owned(),
            old_origin: ORIGIN.to_owned(),
            old: KnownTree {
                size: checkpoint.size(),
                root: checkpoint.root().0,
            },
            known: None,
            because: "the disk was lost".to_owned(),
            charged,
        })));
    }

    pub(crate) fn registered(&self, holdout: &Private) -> Registered {
        let entry = self.entries.iter();
        entry
            .filter_map(|entry| Registered::parse(entry).ok())
            .find(|registered| registered.id == holdout.id)
            .expect("in the log")
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        checkpoint_of(&self.entries)
    }

    pub(crate) fn receipt(&self, index: u64) -> Receipt {
        receipt_of(&self.entries, index)
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
        multiplicity: evidenceos_kernel::price::Multiplicity::Fwer,
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
        traps: true,
        ..script(&[7], judged(3))
    };
    world.run(&first, owner(2), "traps", &traps);
    let aborts = Script {
        aborts: true,
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
    let claim = evidenceos_kernel::record::Capsule::parse(&world.entries[last as usize])
        .expect("a capsule")
        .claim_id;
    world.ask(Command::RevokeClaim {
        claim,
        reason: "trained on the wrong year".to_owned(),
    });
    world.ask(Command::RetireHoldout {
        holdout: first.id,
        reason: "its budget is used up".to_owned(),
    });
    world.ask(Command::OpenHoldout { holdout: first.id });
    (world, first, second)
}
