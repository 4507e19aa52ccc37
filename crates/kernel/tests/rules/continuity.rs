//! A log that is restarted or continued: one decision, and nothing of it cut in silence.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::Outcome,
    command::{Command, ContinueLog, LogCommand, RestartLog},
    continuity::{HoldoutCharged, KnownTree, LogContinued, LogRestarted},
    id::HoldoutId,
    record::Capsule,
    refusal::Refusal,
};

use crate::world::{OPERATOR, Script, World, bits, execute, submitter};

fn restart(charged: Vec<(HoldoutId, MicroBits)>) -> Command {
    LogCommand::Restart(Box::new(RestartLog {
        origin: "example.org/2".to_owned(),
        old_origin: "example.org/1".to_owned(),
        old: tree(),
        known: None,
        because: "lost".to_owned(),
        charged,
    }))
    .into()
}

fn tree() -> KnownTree {
    KnownTree {
        size: 9,
        root: [7; 32],
    }
}

#[test]
fn a_restart_ends_the_runs_under_way_in_the_same_decision_and_in_their_order() {
    let mut world = World::new();
    world.run(submitter(1), "settled", &Script::weak());
    let (first, _) = world.admitted(world.terms(submitter(1), "first"), true);
    let (second, _) = world.admitted(world.terms(submitter(2), "second"), false);
    let before = world.entries.len();
    let reserved = world.main().sealed.reserved;
    let charged = world.main().sealed.charged;
    let holdout = world.main().id;
    world
        .ask(OPERATOR, restart(vec![(holdout, bits(2))]))
        .expect("the operator's");
    let entries = &world.entries[before..];
    assert_eq!(entries.len(), 4);
    LogRestarted::parse(&entries[0]).expect("first");
    let stated = HoldoutCharged::parse(&entries[1]).expect("then what is stated");
    assert!(stated.stated && stated.sealed == bits(2) && stated.answers == bits(2));
    let aborted: Vec<Capsule> = entries[2..]
        .iter()
        .map(|entry| Capsule::parse(entry).expect("then the runs"))
        .collect();
    assert_eq!(
        aborted.iter().map(|run| run.claim_id).collect::<Vec<_>>(),
        [first, second]
    );
    assert!(aborted.iter().all(|run| run.outcome == Outcome::Aborted));
    // What the first one was charged the second one stands behind.
    assert_eq!(
        aborted[1].ledger.k,
        aborted[0].ledger.k.saturating_add(aborted[0].ledger.price)
    );
    let after = world.main();
    assert!(after.in_flight.is_empty());
    assert_eq!(after.sealed.reserved, MicroBits::ZERO);
    let all = charged.saturating_add(reserved).saturating_add(bits(2));
    assert_eq!(after.sealed.charged, all);
}

#[test]
fn what_is_stated_is_an_entry_also_if_it_is_nothing() {
    let mut world = World::new();
    world.run(submitter(1), "settled", &Script::weak());
    let holdout = world.main().id;
    let charged = world.main().sealed.charged;
    let before = world.entries.len();
    world
        .ask(OPERATOR, restart(vec![(holdout, MicroBits::ZERO)]))
        .expect("the operator's");
    let stated = HoldoutCharged::parse(&world.entries[before + 1]).expect("an entry");
    assert!(stated.stated && stated.sealed == MicroBits::ZERO);
    assert_eq!(world.main().sealed.charged, charged);
}

#[test]
fn a_holdout_that_is_left_out_is_exhausted() {
    let mut world = World::new();
    world.run(submitter(1), "settled", &Script::weak());
    world
        .ask(OPERATOR, restart(Vec::new()))
        .expect("the operator's");
    let main = world.main();
    let policy = &main.description.policy;
    assert_eq!(main.sealed.charged, policy.sealed_budget);
    assert_eq!(main.answers.charged, policy.answer_budget);
}

#[test]
fn what_is_recovered_is_charged_and_counted_as_it_was() {
    for under_way in [true, false] {
        let mut world = World::with(|policy| policy.principal_sealed_budget = Some(bits(40)));
        let claim = world.sealed(world.terms(submitter(1), "lost"), true);
        let backup = world.clone();
        world
            .ask(submitter(1), execute(claim))
            .expect("nothing stands against it");
        let mut restored = if under_way { world.clone() } else { backup };
        let settled = world.settle(0, &Script::good().charged(bits(2)));
        let recover = LogCommand::Recover(settled.to_bytes());
        assert!(restored.ask(submitter(1), recover.clone()).is_err());
        restored.ask(OPERATOR, recover.clone()).expect("its own");
        let ledger = |world: &World| {
            let main = world.main();
            let meters = (main.sealed, main.answers, world.pool(submitter(1)));
            let counts = (main.settled, main.certified, main.admitted);
            (meters, counts, world.rows.claims[&claim].state)
        };
        assert_eq!(ledger(&restored), ledger(&world), "under way: {under_way}");
        assert!(restored.ask(OPERATOR, recover).is_err(), "once");
    }
}

#[test]
fn more_than_the_budget_carries_is_refused_and_changes_nothing() {
    let mut world = World::new();
    world.admitted(world.terms(submitter(1), "under way"), true);
    let holdout = world.main().id;
    let policy = &world.main().description.policy;
    let answers = world.main().answers.free(policy.answer_budget);
    let sealed = world.main().sealed.free(policy.sealed_budget);
    let most = answers.min(sealed);
    let snapshot = world.snapshot();
    let beyond = most.saturating_add(MicroBits(1));
    for stated in [
        vec![(holdout, beyond)],
        vec![(holdout, most), (holdout, most)],
    ] {
        let refused = world.ask(OPERATOR, restart(stated));
        assert!(matches!(refused, Err(Refusal::Field { .. })), "{refused:?}");
    }
    assert!(world.ask(submitter(1), restart(Vec::new())).is_err());
    assert_eq!(world.snapshot(), snapshot);
    let all = world.ask(OPERATOR, restart(vec![(holdout, most)]));
    all.expect("as much as it carries");
}

#[test]
fn an_operators_statement_is_an_entry_and_charges_nothing() {
    let mut world = World::new();
    let stated = |because: &str| {
        LogCommand::Continue(Box::new(ContinueLog {
            origin: "example.org/1".to_owned(),
            tree: tree(),
            because: because.to_owned(),
        }))
    };
    for because in ["", "two\nlines", &"x".repeat(257)] {
        assert!(world.ask(OPERATOR, stated(because)).is_err());
    }
    assert!(world.ask(submitter(1), stated("mine")).is_err());
    let charged = world.main().sealed.charged;
    world
        .ask(OPERATOR, stated("moved"))
        .expect("the operator's");
    let entry = world.entries.last().expect("an entry");
    let entry = LogContinued::parse(entry).expect("it is one");
    assert_eq!((entry.tree, entry.because.as_str()), (tree(), "moved"));
    assert_eq!(world.main().sealed.charged, charged);
}
