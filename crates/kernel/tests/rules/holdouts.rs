//! Registering, retiring and opening holdouts.

use evidenceos_kernel::{
    command::{Command, HoldoutCommand, PutHoldout, Reply},
    holdout::HoldoutStatus,
    id::{Digest, HoldoutId},
    record::{HoldoutOpened, HoldoutRetired, Registered},
    refusal::{Refusal, RefusalKind, Role},
};

use crate::world::{
    OPERATOR, START_UNIX_MS, Script, World, create, execute, holdout, policy, submitter,
};

fn put(put: PutHoldout) -> Command {
    HoldoutCommand::Put(Box::new(put)).into()
}

fn retire(holdout: HoldoutId) -> Command {
    HoldoutCommand::Retire {
        holdout,
        reason: "spent".to_owned(),
    }
    .into()
}

fn open(holdout: HoldoutId) -> Command {
    HoldoutCommand::Open { holdout }.into()
}

#[test]
fn description_is_an_entry_whose_digest_is_the_id() {
    let world = World::new();
    let registered = Registered::parse(&world.entries[0]).expect("the kernel's own entry");
    let main = world.main();
    assert_eq!(registered.id, world.holdout);
    assert_eq!(registered.description, main.description);
    assert_eq!((main.index, main.registered_unix_ms), (0, START_UNIX_MS));
}

#[test]
fn only_an_operator_registers_retires_and_opens() {
    let mut world = World::new();
    let second = PutHoldout {
        generation: 1,
        ..holdout("second", policy(), None)
    };
    for command in [put(second), retire(world.holdout), open(world.holdout)] {
        let refused = world.ask(submitter(1), command);
        assert_eq!(refused, Err(Refusal::RoleRequired(Role::Operator)));
    }
    assert_eq!(world.entries.len(), 1);
}

#[test]
fn labels_or_a_name_that_are_registered_are_refused() {
    let mut world = World::new();
    let labels_key = world.main().labels_key;
    let fresh = world.compared(holdout("fresh", policy(), None), None);
    let same_labels = PutHoldout {
        labels_key,
        ..fresh.clone()
    };
    let same_name = PutHoldout {
        reference: "main".to_owned(),
        ..fresh.clone()
    };
    for command in [put(same_labels.clone()), put(same_name)] {
        let refused = world.ask(OPERATOR, command).expect_err("taken");
        assert_eq!(refused.kind(), RefusalKind::Conflict);
    }
    // Retired labels stay taken.
    world.ask(OPERATOR, retire(world.holdout)).expect("known");
    assert!(world.ask(OPERATOR, put(same_labels)).is_err());
    assert!(world.ask(OPERATOR, put(fresh)).is_ok());
}

#[test]
fn a_registration_checked_against_older_holdouts_is_asked_to_retry() {
    let mut world = World::new();
    let stale = holdout("second", policy(), None);
    let refused = world.ask(OPERATOR, put(stale));
    assert_eq!(refused, Err(Refusal::HoldoutsChanged));
}

#[test]
fn two_registrations_of_one_batch_see_each_other() {
    let mut world = World::empty();
    let requests = ["a", "b"]
        .map(|name| crate::world::request(OPERATOR, None, put(holdout(name, policy(), None))));
    let replies = world.batch(&requests);
    assert!(replies[0].is_ok());
    assert_eq!(replies[1], Err(Refusal::HoldoutsChanged));
}

#[test]
fn descriptions_that_break_a_rule_are_refused() {
    let mut world = World::empty();
    let mut check = |change: &dyn Fn(&mut PutHoldout)| {
        let mut bad = holdout("bad", policy(), None);
        change(&mut bad);
        let refused = world.ask(OPERATOR, put(bad)).expect_err("a broken rule");
        assert_eq!(refused.kind(), RefusalKind::Invalid);
    };
    check(&|put| put.description.items = 0);
    check(&|put| put.description.items = 1_000_001);
    check(&|put| put.description.sealed_items = 0);
    check(&|put| put.description.policy.alpha_micros = 0);
    assert!(world.entries.is_empty());
}

#[test]
fn a_retired_holdout_takes_no_claims_and_no_runs_but_settles() {
    let mut world = World::new();
    let (_, number) = world.admitted(world.terms(submitter(1), "runs"), false);
    let sealed = world.sealed(world.terms(submitter(1), "sealed"), false);
    world.ask(OPERATOR, retire(world.holdout)).expect("known");
    let retired = Err(Refusal::HoldoutRetired("main".to_owned()));
    assert_eq!(world.ask(submitter(1), execute(sealed)), retired);
    let terms = world.terms(submitter(1), "new");
    assert_eq!(world.ask(submitter(1), create(terms)), retired);
    assert_eq!(
        world.ask(OPERATOR, open(world.holdout)),
        Err(Refusal::RunsInFlight(1))
    );
    world.settle(number, &Script::weak());
    assert!(world.ask(OPERATOR, open(world.holdout)).is_ok());
    assert_eq!(world.main().status, HoldoutStatus::Opened);
}

#[test]
fn opening_needs_retiring_first() {
    let mut world = World::new();
    let refused = world.ask(OPERATOR, open(world.holdout));
    assert_eq!(
        refused.expect_err("takes claims").kind(),
        RefusalKind::Invalid
    );
}

#[test]
fn retiring_and_opening_again_appends_nothing() {
    let mut world = World::new();
    let id = world.holdout;
    for (command, entry) in [
        (
            retire(id),
            HoldoutRetired {
                holdout: id,
                reason: "spent".to_owned(),
                retired_unix_ms: START_UNIX_MS,
            }
            .to_bytes(),
        ),
        (
            open(id),
            HoldoutOpened {
                holdout: id,
                opened_unix_ms: START_UNIX_MS,
            }
            .to_bytes(),
        ),
    ] {
        for _ in 0..2 {
            let reply = world.ask(OPERATOR, command.clone());
            assert!(matches!(reply, Ok(Reply::Holdout(_))));
        }
        assert_eq!(world.entries.last(), Some(&entry));
    }
    assert_eq!(world.entries.len(), 3);
}

#[test]
fn an_expired_null_spec_makes_claims_stale() {
    let mut world = World::empty();
    let expires = START_UNIX_MS / 1_000 + 10;
    world.holdout = world.register("main", policy(), Some(expires));
    let sealed = world.sealed(world.terms(submitter(1), "sealed"), false);
    let (_, number) = world.admitted(world.terms(submitter(1), "runs"), false);
    world.now_unix_ms = expires * 1_000 - 1;
    let just = world.terms(submitter(1), "just in time");
    assert!(world.ask(submitter(1), create(just)).is_ok());
    world.now_unix_ms += 1;
    assert_eq!(
        world.ask(submitter(1), execute(sealed)),
        Err(Refusal::Stale)
    );
    let late = world.terms(submitter(1), "late");
    assert_eq!(world.ask(submitter(1), create(late)), Err(Refusal::Stale));
    // What was admitted in time is judged.
    let capsule = world.settle(number, &Script::good());
    assert_eq!(
        capsule.outcome,
        evidenceos_kernel::claim::Outcome::Certified
    );
}

#[test]
fn holdouts_that_do_not_exist_are_not_found() {
    let mut world = World::new();
    let unknown = HoldoutId(Digest::of(b"none").0);
    for command in [retire(unknown), open(unknown)] {
        let refused = world.ask(OPERATOR, command);
        assert_eq!(refused, Err(Refusal::UnknownHoldout(unknown.to_hex())));
    }
}
