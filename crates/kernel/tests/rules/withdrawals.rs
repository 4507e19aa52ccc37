//! A holdout that released nothing can be taken back; its labels are then registered anew.

use evidenceos_kernel::{
    command::{Command, HoldoutCommand, LogCommand, PutHoldout, Reply},
    holdout::{Holdout, HoldoutStatus},
    id::{Digest, HoldoutId},
    record::HoldoutWithdrawn,
    refusal::{Refusal, Role},
};

use crate::world::{OPERATOR, Script, World, bits, create, execute, holdout, policy, submitter};

fn withdraw(holdout: HoldoutId) -> Command {
    HoldoutCommand::Withdraw {
        holdout,
        reason: "wrong p0".to_owned(),
    }
    .into()
}

/// Registers the labels of "main" again, with another secret.
fn again(world: &mut World, nth: u8) -> Result<Holdout, Refusal> {
    let labels_key = Digest::of(b"main");
    let mut put = PutHoldout {
        labels_key,
        ..world.compared(holdout("main", policy(), None), None)
    };
    put.description.secret_commitment = Digest::of(&[nth]);
    match world.ask(OPERATOR, HoldoutCommand::Put(Box::new(put)))? {
        Reply::Holdout(holdout) => Ok(*holdout),
        other => panic!("registered: {other:?}"),
    }
}

#[test]
fn it_takes_no_claims_and_its_name_and_labels_are_free_again() {
    let mut world = World::new();
    let queued = world.sealed(world.terms(submitter(1), "queued"), false);
    let created = create(world.terms(submitter(1), "later"));
    let first = world.holdout;
    let reply = world.ask(OPERATOR, withdraw(first));
    assert!(matches!(reply, Ok(Reply::Holdout(h)) if h.status == HoldoutStatus::Withdrawn));
    let entry = HoldoutWithdrawn::parse(world.entries.last().expect("an entry"));
    assert_eq!(entry.expect("a withdrawal").holdout, first);
    for command in [execute(queued), created] {
        let refused = world.ask(submitter(1), command);
        assert_eq!(refused, Err(Refusal::HoldoutWithdrawn("main".to_owned())));
    }
    let second = again(&mut world, 1).expect("free again");
    assert_eq!(second.description.replaces, Some(first));
    assert_ne!(second.id, first);
    assert!(second.answers.charged.0 == 0, "nothing was compared");
    // Idempotent, and opened it never is.
    assert!(world.ask(OPERATOR, withdraw(first)).is_ok());
    for command in [
        HoldoutCommand::Open { holdout: first },
        HoldoutCommand::Retire {
            holdout: first,
            reason: "r".to_owned(),
        },
    ] {
        let refused = world.ask(OPERATOR, command);
        assert_eq!(refused, Err(Refusal::HoldoutWithdrawn("main".to_owned())));
    }
}

#[test]
fn a_split_is_not_drawn_until_it_pleases() {
    let mut world = World::new();
    for nth in 1..=3 {
        let holdout = world
            .resident
            .holdouts()
            .max_by_key(|h| h.seq)
            .expect("one")
            .id;
        world
            .ask(OPERATOR, withdraw(holdout))
            .expect("it released nothing");
        again(&mut world, nth).expect("three times in a row");
    }
    let last = world
        .resident
        .holdouts()
        .max_by_key(|h| h.seq)
        .expect("one")
        .id;
    world
        .ask(OPERATOR, withdraw(last))
        .expect("it released nothing");
    assert!(matches!(
        again(&mut world, 4),
        Err(Refusal::HoldoutExists(_))
    ));
}

#[test]
fn what_released_something_or_may_have_stays() {
    let check = |what: &str, said: &str, prepare: &dyn Fn(&mut World)| {
        let mut world = World::new();
        prepare(&mut world);
        let refused = world.ask(OPERATOR, withdraw(world.holdout));
        assert!(
            matches!(&refused, Err(Refusal::NotWithdrawable { why, .. }) if why.contains(said)),
            "{what}: {refused:?}"
        );
    };
    check("a judged claim", "1 claims were judged", &|world| {
        world.run(submitter(1), "a", &Script::weak());
    });
    check(
        "an answer",
        "1 bit were charged about its answer part",
        &|world| {
            let (_, number) = world.admitted(world.terms(submitter(1), "a"), true);
            world.settle(number, &Script::trapped().charged(bits(1)));
        },
    );
    check("an abort", "about its sealed part", &|world| {
        let (_, number) = world.admitted(world.terms(submitter(1), "a"), false);
        world.abort(number);
    });
    check("a run under way", "1 runs are under way", &|world| {
        world.admitted(world.terms(submitter(1), "a"), false);
    });
    check("a comparison", "about its answer part", &|world| {
        world.register("second", policy(), None);
    });
}

#[test]
fn a_run_that_released_nothing_does_not_stand_in_the_way() {
    let mut world = World::new();
    world.run(submitter(1), "a", &Script::trapped());
    assert!(world.ask(OPERATOR, withdraw(world.holdout)).is_ok());
}

#[test]
fn only_an_operator_withdraws() {
    let mut world = World::new();
    assert_eq!(
        world.ask(submitter(1), withdraw(world.holdout)),
        Err(Refusal::RoleRequired(Role::Operator))
    );
}

#[test]
fn after_a_loss_nobody_can_show_that_it_released_nothing() {
    use evidenceos_kernel::{
        command::{Caller, ContinueLog},
        continuity::KnownTree,
    };
    let mut world = World::new();
    let word = LogCommand::Continue(Box::new(ContinueLog {
        origin: "example.org/log".to_owned(),
        tree: KnownTree {
            size: 1,
            root: [1; 32],
        },
        because: "a planned move".to_owned(),
    }));
    world.ask(Caller::DRIVER, word).expect("an operator's word");
    let refused = world.ask(OPERATOR, withdraw(world.holdout));
    assert!(matches!(refused, Err(Refusal::NotWithdrawable { .. })));
    let later = world.register("later", policy(), None);
    assert!(world.ask(OPERATOR, withdraw(later)).is_ok());
}
