//! Labels that are registered again, almost: the answer is a symbol about the earlier holdout.

use evidenceos_kernel::{
    bits::MicroBits,
    command::{Command, HoldoutCommand, PutHoldout, Reply},
    holdout::Holdout,
    id::{Digest, HoldoutId},
    record::{Compared, Registered},
    refusal::{Pool, Refusal, RefusalKind},
};

use crate::world::{OPERATOR, Script, World, bits, holdout, policy, submitter};

const DIFFERENT: MicroBits = MicroBits(23);
const AGREES: MicroBits = MicroBits(16_000_000);

fn put(put: PutHoldout) -> Command {
    HoldoutCommand::Put(Box::new(put)).into()
}

fn charged(holdout: &Holdout) -> (MicroBits, MicroBits) {
    (holdout.answers.charged, holdout.sealed.charged)
}

fn second(world: &World, agrees: Option<HoldoutId>) -> PutHoldout {
    world.compared(holdout("second", policy(), None), agrees)
}

#[test]
fn different_labels_cost_23_microbits_and_are_registered_behind_the_entry() {
    let mut world = World::new();
    let reply = world.ask(OPERATOR, put(second(&world, None)));
    let Ok(Reply::Holdout(registered)) = reply else {
        panic!("registered: {reply:?}")
    };
    assert_eq!(charged(world.main()), (DIFFERENT, DIFFERENT));
    assert_eq!(world.entries.len(), 3);
    let compared = Compared::parse(&world.entries[1]).expect("the comparison");
    assert_eq!(
        (compared.holdout, compared.agrees, compared.sealed),
        (world.holdout, false, DIFFERENT)
    );
    let entry = Registered::parse(&world.entries[2]).expect("the registration");
    assert_eq!((entry.id, registered.index), (registered.id, 2));
    // The next threshold has the charge.
    let ledger = world.run(submitter(1), "a", &Script::weak()).ledger;
    assert_eq!(ledger.k, DIFFERENT);
}

#[test]
fn agreeing_labels_are_refused_and_the_refusal_is_charged_and_logged() {
    let mut world = World::new();
    let refused = world.ask(OPERATOR, put(second(&world, Some(world.holdout))));
    assert_eq!(refused.expect_err("taken").kind(), RefusalKind::Conflict);
    assert_eq!(charged(world.main()), (AGREES, AGREES));
    let compared =
        Compared::parse(world.entries.last().expect("an entry")).expect("the comparison");
    assert!(compared.agrees);
    assert_eq!(world.resident.holdouts().count(), 1);
}

#[test]
fn equal_labels_agree_whatever_the_statistics_say() {
    let mut world = World::new();
    let same = PutHoldout {
        labels_key: world.main().labels_key,
        ..second(&world, None)
    };
    assert!(world.ask(OPERATOR, put(same)).is_err());
    assert_eq!(charged(world.main()), (AGREES, AGREES));
}

#[test]
fn what_was_compared_with_other_holdouts_is_compared_again() {
    let mut world = World::new();
    let (here, gone) = (world.holdout, HoldoutId([9; 32]));
    for compared in [
        vec![],
        vec![(gone, false)],
        vec![(here, false), (gone, false)],
    ] {
        let stale = PutHoldout {
            compared,
            ..second(&world, None)
        };
        let refused = world.ask(OPERATOR, put(stale));
        assert_eq!(refused, Err(Refusal::HoldoutsChanged));
    }
    assert_eq!(charged(world.main()), Default::default());
}

#[test]
fn a_holdout_without_an_answer_part_pays_about_its_sealed_part_alone() {
    let mut world = World::with(|policy| {
        policy.answer_share_micros = 0;
        policy.answer_budget = MicroBits::ZERO;
    });
    let registered = world.ask(OPERATOR, put(second(&world, None)));
    registered.expect("there are no answers to pay for");
    assert_eq!(charged(world.main()), (MicroBits::ZERO, DIFFERENT));
}

#[test]
fn a_small_pool_pays_as_many_whole_bits_as_it_carries() {
    // (sealed, answers) budgets; what "agrees" and what "does not agree" cost.
    for (sealed, answers, agrees, different) in [
        (MicroBits(15_999_999), bits(64), 15_000_000, 45),
        (bits(64), MicroBits(15_999_999), 15_000_000, 45),
        (bits(64), bits(4), 4_000_000, 93_110),
        (bits(64), bits(1), 1_000_000, 1_000_000),
    ] {
        for (found, price) in [(true, agrees), (false, different)] {
            let mut world = World::with(|policy| {
                policy.sealed_budget = sealed;
                policy.answer_budget = answers;
            });
            let put_second = put(second(&world, found.then_some(world.holdout)));
            assert_eq!(world.ask(OPERATOR, put_second).is_err(), found);
            let price = MicroBits(price);
            assert_eq!(charged(world.main()), (price, price), "{sealed} {answers}");
        }
    }
}

#[test]
fn what_cannot_be_paid_is_not_compared() {
    let mut world = World::with(|policy| policy.answer_budget = MicroBits(999_999));
    for agrees in [None, Some(world.holdout)] {
        let refused = world.ask(OPERATOR, put(second(&world, agrees)));
        let refused = refused.expect_err("it cannot be paid");
        assert!(
            matches!(
                &refused,
                Refusal::CannotCompare {
                    pool: Pool::Answers,
                    ..
                }
            ),
            "{refused:?}"
        );
    }
    assert_eq!(charged(world.main()), Default::default());
    assert_eq!(world.entries.len(), 1);
}

#[test]
fn many_registrations_do_not_stop_one_another() {
    let mut world = World::with(|policy| policy.sealed_budget = bits(16));
    for nth in 0..30 {
        world.register(&format!("holdout {nth}"), policy(), None);
    }
    let spent = world.main().sealed.charged;
    assert!(spent < MicroBits(2_000), "{spent}");
    assert!(world.main().certifications_left(MicroBits::MAX).all > 0);
}

#[test]
fn a_holdout_that_can_certify_nothing_any_more_pays_nothing() {
    let mut world = World::with(|policy| policy.sealed_budget = bits(7));
    world
        .ask(OPERATOR, put(second(&world, None)))
        .expect("registered");
    assert_eq!(charged(world.main()), Default::default());
}

#[test]
fn what_runs_under_way_have_reserved_is_waited_for() {
    let mut world = World::with(|policy| policy.sealed_budget = MicroBits(8_500_000));
    world.admitted(world.terms(submitter(1), "a"), false);
    let refused = world.ask(OPERATOR, put(second(&world, None)));
    assert_eq!(refused, Err(Refusal::Reserved { pool: Pool::Sealed }));
    world.settle(0, &Script::weak());
    assert!(world.ask(OPERATOR, put(second(&world, None))).is_ok());
}

#[test]
fn declared_fresh_nothing_is_compared_and_everybody_can_read_so() {
    let mut world = World::new();
    let mut fresh = PutHoldout {
        compared: Vec::new(),
        ..second(&world, None)
    };
    assert_eq!(
        world.ask(OPERATOR, put(fresh.clone())),
        Err(Refusal::HoldoutsChanged),
        "not to compare must be declared"
    );
    fresh.description.fresh_items = true;
    fresh.labels_key = world.main().labels_key;
    assert!(world.ask(OPERATOR, put(fresh)).is_ok());
    assert_eq!(charged(world.main()), Default::default());
    let entry = Registered::parse(world.entries.last().expect("an entry")).expect("registered");
    assert!(entry.description.fresh_items);
}

#[test]
fn nothing_is_charged_where_nothing_is_certified_any_more() {
    let mut world = World::new();
    let retire = HoldoutCommand::Retire {
        holdout: world.holdout,
        reason: "spent".to_owned(),
    };
    world.ask(OPERATOR, retire).expect("registered");
    let agreeing = second(&world, Some(world.holdout));
    let entries = world.entries.len();
    assert!(world.ask(OPERATOR, put(agreeing)).is_err());
    assert_eq!(world.entries.len(), entries, "no answer that costs nothing");
    assert!(world.ask(OPERATOR, put(second(&world, None))).is_ok());
    assert_eq!(charged(world.main()), Default::default());
}

#[test]
fn a_name_of_64_hex_digits_is_refused() {
    let mut world = World::new();
    for name in [world.holdout.to_hex(), "AB".repeat(32)] {
        let named = PutHoldout {
            reference: name,
            labels_key: Digest::of(b"other"),
            ..second(&world, None)
        };
        let refused = world
            .ask(OPERATOR, put(named))
            .expect_err("it reads as an id");
        assert_eq!(refused.kind(), RefusalKind::Invalid);
    }
}
