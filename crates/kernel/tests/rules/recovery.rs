//! An entry that comes back does what it did, once, and nothing about what is not here any more.

use evidenceos_kernel::{
    bits::MicroBits,
    command::{Command, Event, HoldoutCommand, LogCommand, RestartLog, ServerCommand},
    continuity::{HoldoutCharged, KnownTree},
    holdout::{HoldoutStatus, Meter, NarrowerBudgets},
    id::Digest,
    in_force::InForce,
    log_key::{KeyLink, KeyRotated, LogKey, SignedKeyLink},
    record,
    refusal::Refusal,
};

use crate::world::{
    DAY_MS, OPERATOR, Script, World, bits, execute, holdout, policy, revoke, submitter,
};

fn recover(world: &mut World, entry: &[u8]) -> Vec<Event> {
    let recover = LogCommand::Recover(entry.to_vec());
    world.ask(OPERATOR, recover).expect("an entry of this log");
    assert_eq!(world.entries.last().expect("an entry"), entry);
    what_it_did(world)
}

/// The events of the newest decision. That the log was carried on is one of every recovery.
fn what_it_did(world: &World) -> Vec<Event> {
    let (_, events) = world.journal.last().expect("a decision");
    let others = events
        .iter()
        .filter(|event| !matches!(event, Event::LogCarriedOn));
    others.cloned().collect()
}

fn retire(world: &World) -> Command {
    HoldoutCommand::Retire {
        holdout: world.holdout,
        reason: "spent".to_owned(),
    }
    .into()
}

fn open(world: &World) -> Command {
    HoldoutCommand::Open {
        holdout: world.holdout,
    }
    .into()
}

fn withdraw(world: &World) -> Command {
    HoldoutCommand::Withdraw {
        holdout: world.holdout,
        reason: "wrong p0".to_owned(),
    }
    .into()
}

fn narrow(world: &World) -> Command {
    HoldoutCommand::SetBudgets {
        holdout: world.holdout,
        narrower: NarrowerBudgets {
            sealed: Some(bits(9)),
            ..NarrowerBudgets::default()
        },
    }
    .into()
}

/// Refused, since the labels agree; the answer is charged.
fn compare(world: &World) -> Command {
    let again = world.compared(holdout("again", policy(), None), Some(world.holdout));
    HoldoutCommand::Put(Box::new(again)).into()
}

fn restart(charged: Option<(&World, MicroBits)>) -> Command {
    LogCommand::Restart(Box::new(RestartLog {
        origin: "example.org/2".to_owned(),
        old_origin: "example.org/1".to_owned(),
        old: KnownTree {
            size: 9,
            root: [7; 32],
        },
        known: None,
        because: "lost".to_owned(),
        charged: charged
            .map(|(world, bits)| (world.holdout, bits))
            .into_iter()
            .collect(),
    }))
    .into()
}

const IN_FORCE: InForce = InForce {
    policies: Digest([5; 32]),
    roles: Some(Digest([6; 32])),
};

fn link(tree_size: u64) -> SignedKeyLink {
    SignedKeyLink {
        link: KeyLink {
            origin: "example.org/1".to_owned(),
            old_public_key: [1; 32],
            new_public_key: [2; 32],
            tree_size,
            root: [3; 32],
        },
        old_signature: [4; 64],
        new_signature: [5; 64],
    }
}

/// A world in which the claim is judged.
fn judged() -> World {
    let mut world = World::new();
    world.run(submitter(1), "judged", &Script::weak());
    world
}

#[test]
fn what_an_entry_did_is_done_again() {
    let check = |what: &str, mut before: World, command: Command, once: bool| {
        let mut first = before.clone();
        // Some of them are refused, and recorded all the same.
        let _ = first.ask(OPERATOR, command);
        assert_eq!(first.entries.len(), before.entries.len() + 1, "{what}");
        let entry = first.entries.last().expect("an entry");
        assert_eq!(recover(&mut before, entry), what_it_did(&first), "{what}");
        let again = recover(&mut before, entry);
        assert_eq!(again.is_empty(), once, "{what}, a second time: {again:?}");
        let mut elsewhere = World::empty();
        assert_eq!(recover(&mut elsewhere, entry), [], "{what}, elsewhere");
    };
    let retired = || {
        let mut world = World::new();
        world.ask(OPERATOR, retire(&world)).expect("registered");
        world
    };
    check("retired", World::new(), retire(&World::new()), true);
    check("opened", retired(), open(&World::new()), true);
    check("withdrawn", World::new(), withdraw(&World::new()), true);
    check("narrowed", World::new(), narrow(&World::new()), false);
    check("compared", World::new(), compare(&World::new()), false);
    let world = judged();
    let claim = *world.rows.claims.keys().next().expect("a claim");
    check("revoked", world, revoke(claim), true);
}

#[test]
fn what_is_not_about_a_holdout_comes_back_everywhere() {
    for mut world in [World::new(), World::empty()] {
        let mut first = world.clone();
        let state = ServerCommand::StatePolicies(IN_FORCE);
        first.ask(OPERATOR, state).expect("the operator's");
        let entry = first.entries.last().expect("an entry").clone();
        let stated = Event::PoliciesStated(IN_FORCE);
        assert_eq!(recover(&mut world, &entry), [stated]);
        assert_eq!(world.resident.in_force(), IN_FORCE);
    }
}

#[test]
fn what_a_restart_charged_is_charged_again() {
    let mut world = judged();
    let mut first = world.clone();
    let command = restart(Some((&world, bits(3))));
    first.ask(OPERATOR, command).expect("the budgets carry it");
    let [.., restarted, charged] = first.entries.as_slice() else {
        panic!("two entries")
    };
    assert_eq!(recover(&mut world, charged), what_it_did(&first));
    let meters = |world: &World| (world.main().sealed, world.main().answers);
    assert_eq!(meters(&world), meters(&first));
    assert_eq!(recover(&mut World::empty(), charged), []);
    // The log that it begins is another one.
    let other = LogCommand::Recover(restarted.clone());
    let before = world.entries.len();
    assert!(world.ask(OPERATOR, other).is_err());
    assert_eq!(world.entries.len(), before);
}

#[test]
fn an_entry_of_an_unknown_kind_is_refused_since_it_may_have_charged() {
    let mut world = judged();
    for entry in [
        &br#"{"at_unix_ms":1,"schema":"evidenceos.v2.weather"}"#[..],
        br#"{"holdout_id_hex":"00","schema":"evidenceos.v2.holdout_retired"}"#,
        b"{}",
    ] {
        let before = world.entries.len();
        let recover = LogCommand::Recover(entry.to_vec());
        assert!(world.ask(OPERATOR, recover).is_err());
        assert_eq!(world.entries.len(), before);
    }
}

#[test]
fn a_key_signs_from_the_entry_after_the_one_that_names_it() {
    let mut world = judged();
    assert_eq!(world.entries.len(), 2);
    let mut first = world.clone();
    let rotate = LogCommand::RotateKey(Box::new(link(2)));
    first.ask(OPERATOR, rotate).expect("about this tree");
    let follows = [Event::KeyRotated(LogKey::new([2; 32], 3))];
    assert_eq!(what_it_did(&first), follows);
    let entry = first.entries.last().expect("an entry").clone();
    let read = KeyRotated::parse(&entry).expect("a key link");
    assert_eq!(read.signed, link(2));
    assert_eq!(recover(&mut world, &entry), follows);
}

#[test]
fn what_is_public_is_never_taken_for_sealed_again() {
    let mut world = World::new();
    let mut first = world.clone();
    for command in [retire(&world), open(&world)] {
        first.ask(OPERATOR, command).expect("its time has come");
    }
    let [.., retired, opened] = first.entries.as_slice() else {
        panic!("two entries")
    };
    recover(&mut world, opened);
    assert_eq!(recover(&mut world, retired), []);
    assert_eq!(world.main().status, HoldoutStatus::Opened);
}

#[test]
fn a_revocation_of_what_is_not_settled_here_does_nothing() {
    let mut world = World::new();
    let claim = world.sealed(world.terms(submitter(1), "claim"), false);
    let mut first = world.clone();
    first.ask(submitter(1), execute(claim)).expect("sealed");
    first.settle(0, &Script::weak());
    first.ask(submitter(1), revoke(claim)).expect("settled");
    let entry = first.entries.last().expect("an entry").clone();
    let before = world.rows.claims[&claim].clone();
    assert_eq!(recover(&mut world, &entry), []);
    assert_eq!(world.rows.claims[&claim], before);
}

#[test]
fn a_run_that_asked_nothing_comes_back_without_a_pool_of_answers() {
    for under_way in [true, false] {
        let mut world = World::new();
        let claim = world.sealed(world.terms(submitter(1), "claim"), false);
        let mut first = world.clone();
        first.ask(submitter(1), execute(claim)).expect("sealed");
        if under_way {
            world = first.clone();
        }
        let settled = first.settle(0, &Script::weak()).to_bytes();
        recover(&mut world, &settled);
        assert!(world.rows.pools.is_empty(), "under way: {under_way}");
        assert_eq!(world.main().sealed, first.main().sealed);
    }
    // What was reserved is free again.
    let mut world = World::new();
    let (_, number) = world.admitted(world.terms(submitter(1), "claim"), true);
    let settled = world.clone().settle(number, &Script::weak()).to_bytes();
    assert!(world.pool(submitter(1)).answers.reserved > MicroBits::ZERO);
    recover(&mut world, &settled);
    assert_eq!(world.pool(submitter(1)).answers, Meter::default());
    // What was charged comes back also to a run of which nothing is reserved.
    let mut world = World::new();
    let claim = world.sealed(world.terms(submitter(1), "claim"), true);
    let mut first = world.clone();
    first.ask(submitter(1), execute(claim)).expect("sealed");
    let settled = first.settle(0, &Script::weak().charged(bits(2)));
    recover(&mut world, &settled.to_bytes());
    assert_eq!(world.pool(submitter(1)).answers.charged, bits(2));
}

#[test]
fn a_run_from_before_there_was_credit_comes_back_too() {
    let mut world = World::new();
    let (claim, _) = world.admitted(world.terms(submitter(1), "old"), false);
    let settled = world.clone().settle(0, &Script::weak()).to_bytes();
    world.rows.accounts.clear();
    recover(&mut world, &settled);
    assert!(world.rows.claims[&claim].settlement.is_some());
    assert!(world.rows.accounts.is_empty());
}

#[test]
fn a_restart_exhausts_each_part_that_carries_something() {
    // What both parts are charged first, and what is free then: (answers, sealed).
    for (answer_budget, charged, free) in [(64, 64, None), (10, 10, Some((0, 54)))]
        .into_iter()
        .chain([(100, 64, Some((36, 0)))])
    {
        let mut world = World::with(|policy| policy.answer_budget = bits(answer_budget));
        world.charge(bits(charged));
        let before = world.entries.len();
        world.ask(OPERATOR, restart(None)).expect("the operator's");
        let entries = world.entries[before + 1..].iter();
        let found: Vec<_> = entries
            .map(|entry| {
                let charged = HoldoutCharged::parse(entry).expect("a charge after the restart");
                (charged.answers, charged.sealed)
            })
            .collect();
        let free = free.map(|(answers, sealed)| (bits(answers), bits(sealed)));
        assert_eq!(found, Vec::from_iter(free), "{answer_budget}");
    }
}

#[test]
fn policies_that_are_in_force_are_not_stated_again() {
    let mut world = World::new();
    for (stated, entries) in [(IN_FORCE, 2), (IN_FORCE, 2), (InForce::default(), 3)] {
        let state = ServerCommand::StatePolicies(stated);
        world.ask(OPERATOR, state).expect("the operator's");
        assert_eq!(world.entries.len(), entries);
        assert_eq!(world.resident.in_force(), stated);
    }
    let resident = world.resident.clone().with_in_force(IN_FORCE);
    assert_eq!(resident.in_force(), IN_FORCE);
}

#[test]
fn all_items_are_encrypted_anew_or_none() {
    let mut world = World::new();
    let withdrawn = world.holdout;
    world
        .ask(OPERATOR, withdraw(&world))
        .expect("it released nothing");
    let others = ["second", "third"].map(|name| world.register(name, policy(), None));
    let blob = |n: u8| Digest([n; 32]);
    let rekey = |world: &World, generation, named: &[_]| {
        assert_eq!(world.resident.counters().holdouts_generation, 3);
        HoldoutCommand::Rekey {
            generation,
            blobs: named
                .iter()
                .zip(1..)
                .map(|(id, n)| (*id, blob(n)))
                .collect(),
        }
    };
    for (generation, named) in [
        (2, vec![others[0], others[1]]),
        (4, vec![others[0], others[1]]),
        (3, vec![others[0]]),
        (3, vec![others[0], withdrawn]),
        (3, vec![others[0], others[1], withdrawn]),
        (3, vec![]),
    ] {
        let command = rekey(&world, generation, &named);
        let refused = world.ask(OPERATOR, command);
        let changed = Err(Refusal::HoldoutsChanged);
        assert_eq!(refused, changed, "{generation} {named:?}");
    }
    let command = rekey(&world, 3, &others);
    world.ask(OPERATOR, command).expect("all of them");
    let blobs = others.map(|id| world.of(id).blob);
    assert_eq!(blobs, [blob(1), blob(2)]);
}

#[test]
fn an_entry_says_its_latest_time() {
    let mut world = judged();
    world.now_unix_ms += DAY_MS;
    world.ask(OPERATOR, retire(&world)).expect("registered");
    let times: Vec<_> = world.entries.iter().map(|e| record::time_of(e)).collect();
    let start = world.now_unix_ms - DAY_MS;
    assert_eq!(times, [start, start, start + DAY_MS].map(Some));
    assert_eq!(record::time_of(b"{}"), None);
    let two = br#"{"a_unix_ms":7,"b_unix_ms":5,"c":9}"#;
    assert_eq!(record::time_of(two), Some(7));
}
