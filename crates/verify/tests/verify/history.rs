//! An honest history with everything in it that a log can have: what the forger starts from.

use std::sync::Arc;

use evidenceos_kernel::{
    bits::MicroBits,
    claim::Reason,
    command::{
        ClaimCommand, ContinueLog, CreditCommand, DecisionCommand, HoldoutCommand, ImportedAccount,
        LogCommand, NewDecisions, ServerCommand,
    },
    continuity::KnownTree,
    decision::{DecisionBatch, DecisionId},
    evidence::Strategy,
    holdout::{NarrowerBudgets, Policy},
    id::{ClaimId, Digest, HoldoutId},
    in_force::InForce,
    price::{Multiplicity, SettlementPrices},
    record::Capsule,
};
use evidenceos_tlog::SignerKey;
use evidenceos_verify::Opening;

use crate::world::{Ends, Items, ORIGIN, Private, Script, World, owner, vector};

/// The log's name after its restart.
pub(crate) const NEW_ORIGIN: &str = "example.org/log-2";
const ITEMS: usize = 400;

pub(crate) struct History {
    pub(crate) world: World,
    /// Of every holdout but the withdrawn ones.
    pub(crate) openings: Vec<Opening>,
    /// The entries that named rows of the forger start from.
    pub(crate) marks: Marks,
}

/// Indices of entries.
#[derive(Default)]
pub(crate) struct Marks {
    pub(crate) weak: usize,
    /// A failure that no other entry refers to.
    pub(crate) failed: usize,
    pub(crate) certified: usize,
    pub(crate) levelled: usize,
    pub(crate) nothing_to_judge: usize,
    pub(crate) trapped: usize,
    pub(crate) vetoed: usize,
    pub(crate) aborted: usize,
    pub(crate) duplicate: usize,
    pub(crate) child_before: usize,
    pub(crate) tainted: usize,
    pub(crate) after_retirement: usize,
    pub(crate) rotated: usize,
    pub(crate) retired: usize,
    pub(crate) late: usize,
}

pub(crate) fn second_key() -> SignerKey {
    SignerKey::from_seed(ORIGIN, [6; 32]).expect("a valid name")
}

/// The key that signs at the end, under the name at the end.
pub(crate) fn last_key() -> SignerKey {
    SignerKey::from_seed(NEW_ORIGIN, [6; 32]).expect("a valid name")
}

fn judged(period: usize) -> Script {
    Script {
        judged: Some(vector(ITEMS, period)),
        ..Script::default()
    }
}

fn asking(questions: &[usize], script: Script) -> Script {
    Script {
        questions: questions
            .iter()
            .map(|&period| vector(ITEMS, period))
            .collect(),
        ..script
    }
}

impl World {
    fn claim_at(&self, index: u64) -> ClaimId {
        Capsule::parse(&self.entries[index as usize])
            .expect("a capsule")
            .claim_id
    }

    fn narrow(&mut self, holdout: HoldoutId, narrower: NarrowerBudgets) {
        self.ask(HoldoutCommand::SetBudgets { holdout, narrower });
    }

    fn decisions(&mut self, first: DecisionId, count: u32) {
        let root = Digest::of(&first.0.to_be_bytes());
        self.ask(DecisionCommand::Record(Box::new(NewDecisions {
            batch: DecisionBatch { first, count, root },
            records: Arc::from([]),
        })));
    }

    /// What an operator states at a start on a restored directory.
    fn continue_log(&mut self) {
        let head = self.checkpoint();
        self.ask(LogCommand::Continue(Box::new(ContinueLog {
            origin: self.origin.clone(),
            tree: KnownTree {
                size: head.size(),
                root: head.root().0,
            },
            because: "the backup was taken after the last entry".to_owned(),
        })));
    }
}

/// The four holdouts on which claims run, and one that is withdrawn before.
struct Holdouts {
    levels: Private,
    units: Private,
    listed: Private,
    tiny: Private,
    again: Private,
}

fn register(world: &mut World) -> Holdouts {
    let budget = MicroBits::from_bits(100);
    let fenced = |policy: Policy| Policy {
        principal_sealed_budget: Some(MicroBits::from_bits(60)),
        ..policy
    };
    let levels = Policy {
        levels: 4,
        ..fenced(Policy::with_sealed_budget(budget))
    };
    let levels = world.put(&Items::new(levels, ITEMS)).expect("registered");
    let units = Policy {
        answer_share_micros: 0,
        multiplicity: Multiplicity::Fwer,
        settlement_prices: SettlementPrices::Fixed { certified_bits: 3 },
        ..Policy::with_sealed_budget(budget)
    };
    let units = world
        .put(&Items {
            unit_size: 3,
            fresh: false,
            ..Items::new(units, ITEMS)
        })
        .expect("registered");
    let mut listed = Policy {
        multiplicity: Multiplicity::Fdr,
        ..fenced(Policy::with_sealed_budget(budget))
    };
    let prices = [1_000_000, 2_000_000, 3_000_000, 3_000_000].map(MicroBits);
    listed.answer_prices.0.insert(4, prices.to_vec());
    let listed = world
        .put(&Items {
            strategy: Strategy::FixedAlternative { p1_micros: 700_000 },
            expires_unix: Some(1_000_000),
            reference: Some("listed prices".to_owned()),
            ..Items::new(listed, ITEMS)
        })
        .expect("registered");
    // Eight sealed items carry no certification.
    let tiny = Policy::with_sealed_budget(budget);
    let tiny = world.put(&Items::new(tiny, 10)).expect("registered");
    // Labels that agree with the first ones': refused, and priced.
    let refused = world.put(&Items {
        fresh: false,
        agrees_with: Some(levels.id),
        ..Items::new(Policy::with_sealed_budget(budget), 50)
    });
    assert!(refused.is_none(), "the labels agree");
    let mistaken = Items {
        labels_key: Some(77),
        fresh: false,
        ..Items::new(Policy::with_sealed_budget(budget), 60)
    };
    let withdrawn = world.put(&mistaken).expect("registered");
    world.ask(HoldoutCommand::Withdraw {
        holdout: withdrawn.id,
        reason: "the wrong share of answers".to_owned(),
    });
    let again = world
        .put(&Items {
            policy: Policy {
                answer_share_micros: 500_000,
                ..mistaken.policy.clone()
            },
            ..mistaken
        })
        .expect("registered");
    Holdouts {
        levels,
        units,
        listed,
        tiny,
        again,
    }
}

/// Every way in which a run can end.
fn run_each_way(world: &mut World, holdouts: &Holdouts, marks: &mut Marks) {
    let levels = &holdouts.levels;
    let ending = |ends| Script { ends, ..judged(4) };
    let once = Script {
        module: Some("one module"),
        ..judged(2)
    };
    marks.weak = world.run(levels, owner(1), "weak", &once) as usize;
    let good = world.run(levels, owner(1), "good", &asking(&[3, 5], judged(9)));
    marks.certified = good as usize;
    let asks = asking(&[2, 7], Script::default());
    marks.nothing_to_judge = world.run(levels, owner(2), "asks", &asks) as usize;
    let released = Script {
        levels: 4,
        ..judged(20)
    };
    marks.levelled = world.run(levels, owner(2), "levels", &released) as usize;
    let trap = asking(&[7], ending(Ends::Traps(Reason::Trap)));
    marks.trapped = world.run(levels, owner(2), "traps", &trap) as usize;
    let fuel = ending(Ends::Traps(Reason::OutOfFuel));
    world.run(levels, owner(2), "loops", &fuel);
    world.run(levels, owner(2), "silent", &ending(Ends::NoOutput));
    world.run(levels, owner(2), "babbles", &ending(Ends::EmitsNoSymbol));
    let long = ending(Ends::Traps(Reason::InvalidOutput));
    world.run(levels, owner(2), "long", &long);
    let panics = ending(Ends::Traps(Reason::Unreachable));
    world.run(levels, owner(2), "panics", &panics);
    let refused = ending(Ends::Traps(Reason::NotAdmitted));
    world.run(levels, owner(2), "refused after an upgrade", &refused);
    let vetoed = ending(Ends::Vetoed(9_104, true));
    marks.vetoed = world.run(levels, owner(3), "vetoed", &vetoed) as usize;
    world.run(
        levels,
        owner(3),
        "forbidden",
        &ending(Ends::Vetoed(9_001, false)),
    );
    let greedy = Script {
        allowance: Some(3_000_000),
        ..asking(&[11], ending(Ends::Traps(Reason::AllowanceExhausted)))
    };
    world.run(levels, owner(3), "greedy", &greedy);
    let stricter = Script {
        alpha_micros: Some(1_000),
        ..judged(3)
    };
    world.run(levels, owner(3), "stricter", &stricter);
    marks.duplicate = world.run(levels, owner(1), "weak again", &once) as usize;
    world.run(
        &holdouts.tiny,
        owner(5),
        "hopeless",
        &Script {
            judged: Some(vector(10, 20)),
            ..Script::default()
        },
    );
    world.run(
        &holdouts.tiny,
        owner(5),
        "hopeless too",
        &Script {
            judged: Some(vector(10, 3)),
            ..Script::default()
        },
    );
}

/// Runs under way together: they settle in the order of their admission.
fn run_together(world: &mut World, holdouts: &Holdouts, marks: &mut Marks) {
    let units = &holdouts.units;
    let aborting = Script {
        ends: Ends::Aborts,
        ..judged(6)
    };
    let asks_free = asking(&[8], judged(30));
    let scripts = [judged(40), aborting, asks_free, judged(2)];
    let tickets: Vec<_> = scripts
        .iter()
        .zip(1..)
        .map(|(script, n)| world.admit(units, owner(n), &format!("together {n}"), script))
        .collect();
    let ends: Vec<u64> = tickets
        .iter()
        .zip(&scripts)
        .map(|(ticket, script)| world.settle(units, *ticket, script))
        .collect();
    marks.aborted = ends[1] as usize;
    // On listed prices, with an abort whose questions are unknown.
    let listed = &holdouts.listed;
    world.run(listed, owner(4), "listed", &asking(&[5, 6], judged(8)));
    let aborting = Script {
        allowance: Some(4_000_000),
        ..asking(
            &[5],
            Script {
                ends: Ends::Aborts,
                ..judged(6)
            },
        )
    };
    world.run(listed, owner(4), "listed and lost", &aborting);
    world.run(listed, owner(4), "listed after", &asking(&[9], judged(7)));
}

/// Claims that depend on one that is revoked.
fn revoke_a_parent(world: &mut World, holdouts: &Holdouts, marks: &mut Marks) {
    let parent = world.claim_at(marks.certified as u64);
    let other = world.claim_at(marks.levelled as u64);
    let depending = |parents: &[ClaimId], period| Script {
        parents: parents.to_vec(),
        ..judged(period)
    };
    let levels = &holdouts.levels;
    let before = world.run(levels, owner(1), "child", &depending(&[parent, other], 12));
    marks.child_before = before as usize;
    let child = world.claim_at(before);
    let grandchild = depending(&[child], 13);
    let ticket = world.admit(levels, owner(1), "grandchild", &grandchild);
    world.ask(ClaimCommand::Revoke {
        claim: parent,
        reason: "trained on the wrong year".to_owned(),
    });
    marks.tainted = world.settle(levels, ticket, &grandchild) as usize;
    // Its own verdict was taken back, so that the same question is judged anew.
    let weak = world.claim_at(marks.weak as u64);
    world.ask(ClaimCommand::Revoke {
        claim: weak,
        reason: "a slip".to_owned(),
    });
    let once = Script {
        module: Some("one module"),
        ..judged(2)
    };
    marks.failed = world.run(levels, owner(1), "weak anew", &once) as usize;
}

fn narrow_and_grant(world: &mut World, holdouts: &Holdouts) {
    let levels = &holdouts.levels;
    world.narrow(
        levels.id,
        NarrowerBudgets {
            sealed: Some(MicroBits::from_bits(90)),
            principal_answers: Some(MicroBits::from_bits(10)),
            credit: Some(1_000),
        },
    );
    world.run(levels, owner(4), "narrowed", &asking(&[6], judged(15)));
    world.narrow(
        levels.id,
        NarrowerBudgets {
            sealed: Some(MicroBits::from_bits(95)),
            ..NarrowerBudgets::default()
        },
    );
    world.ask(CreditCommand::Import {
        accounts: vec![ImportedAccount {
            owner: owner(9),
            principal: "a guest".to_owned(),
            unburned: 10,
            daily_mint_remaining: 0,
            last_mint_day: 0,
            credit_limit: 1_000,
            daily_mint_limit: 10,
            burned_total: 0,
            denied_total: 0,
        }],
        file: Digest::of(b"accounts.json"),
        reason: "moved from another server".to_owned(),
    });
    world.ask(CreditCommand::Grant {
        owner: owner(9),
        principal: "a guest".to_owned(),
        amount: 70,
        reason: "a workshop".to_owned(),
    });
    for (policies, roles) in [(1, None), (1, Some(2)), (3, Some(2))] {
        world.ask(ServerCommand::StatePolicies(InForce {
            policies: Digest([policies; 32]),
            roles: roles.map(|byte| Digest([byte; 32])),
        }));
    }
    world.decisions(DecisionId::first_of(3), 4);
    world.decisions(DecisionId(DecisionId::first_of(3).0 + 4), 2);
    world.decisions(DecisionId::first_of(5), 1);
}

/// Runs that were under way when their holdout was retired.
fn retire_with_a_run(world: &mut World, holdouts: &Holdouts, marks: &mut Marks) {
    let units = &holdouts.units;
    let script = judged(50);
    let ticket = world.admit(units, owner(7), "late", &script);
    world.ask(HoldoutCommand::Retire {
        holdout: units.id,
        reason: "its items are known".to_owned(),
    });
    marks.retired = world.entries.len() - 1;
    marks.after_retirement = world.settle(units, ticket, &script) as usize;
}

fn open_all(world: &mut World, holdouts: &Holdouts) {
    for holdout in [
        &holdouts.levels,
        &holdouts.listed,
        &holdouts.tiny,
        &holdouts.again,
    ] {
        world.ask(HoldoutCommand::Retire {
            holdout: holdout.id,
            reason: "the study is over".to_owned(),
        });
    }
    for holdout in [
        &holdouts.levels,
        &holdouts.units,
        &holdouts.listed,
        &holdouts.tiny,
        &holdouts.again,
    ] {
        world.ask(HoldoutCommand::Open {
            holdout: holdout.id,
        });
    }
}

pub(crate) fn honest() -> History {
    let mut world = World::new();
    let mut marks = Marks::default();
    world.begin_as_now();
    let holdouts = register(&mut world);
    run_each_way(&mut world, &holdouts, &mut marks);
    run_together(&mut world, &holdouts, &mut marks);
    revoke_a_parent(&mut world, &holdouts, &mut marks);
    narrow_and_grant(&mut world, &holdouts);
    let (old, new) = (world.signer.clone(), second_key());
    marks.rotated = world.entries.len();
    world.follow(&old, &new, |_| ());
    retire_with_a_run(&mut world, &holdouts, &mut marks);
    world.continue_log();
    let again = &holdouts.again;
    let lost = Script {
        judged: Some(vector(60, 20)),
        ..Script::default()
    };
    // The restart aborts it.
    world.admit(again, owner(6), "under way", &lost);
    let stated = [
        (&holdouts.levels, 2),
        (&holdouts.units, 0),
        (&holdouts.listed, 1),
    ];
    let stated = stated.map(|(holdout, bits)| (holdout.id, MicroBits::from_bits(bits)));
    world.restart(NEW_ORIGIN, stated.to_vec());
    world.signer = last_key();
    let late = world.run(&holdouts.levels, owner(8), "after all", &judged(18));
    marks.late = late as usize;
    open_all(&mut world, &holdouts);
    let openings = [
        &holdouts.levels,
        &holdouts.units,
        &holdouts.listed,
        &holdouts.tiny,
        &holdouts.again,
    ]
    .map(|holdout| holdout.opening.clone());
    History {
        world,
        openings: openings.to_vec(),
        marks,
    }
}
