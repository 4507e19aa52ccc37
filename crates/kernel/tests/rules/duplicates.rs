//! The same claim is not judged twice: its first verdict stands, and costs one credit.

use evidenceos_kernel::{
    claim::{ClaimState, Outcome, Reason, Terms},
    command::{Caller, HoldoutCommand, Reply, RunCommand},
    holdout::NarrowerBudgets,
    id::ClaimId,
    record::Capsule,
    refusal::{Pool, Refusal},
};

use crate::world::{
    OPERATOR, Script, World, commit, create, execute, request, revoke, seal, submitter,
};

/// A sealed claim with a given module, so that two claims can have the same.
fn sealed(world: &mut World, terms: Terms, module: &str, asks: bool) -> ClaimId {
    let owner = submitter(terms.owner.0[0]);
    let id = terms.claim_id();
    for command in [create(terms), commit(id, module, asks), seal(id)] {
        world
            .ask(owner, command)
            .expect("nothing stands against it");
    }
    id
}

/// A sealed claim of submitter 1 that differs from his others in its name alone.
fn same(world: &mut World, name: &str) -> ClaimId {
    let terms = world.terms(submitter(1), name);
    sealed(world, terms, "same", false)
}

fn judge(world: &mut World, name: &str, script: &Script) -> (ClaimId, Capsule) {
    let id = same(world, name);
    let number = world.main().admitted;
    world.ask(submitter(1), execute(id)).expect("admitted");
    (id, world.settle(number, script))
}

fn settle_duplicate(world: &mut World) -> Capsule {
    let (holdout, number) = (world.holdout, world.main().in_flight[0].number);
    let settled = world.ask(
        Caller::DRIVER,
        RunCommand::SettleDuplicate { holdout, number },
    );
    assert_eq!(settled, Ok(Reply::Done));
    world.last_capsule()
}

#[test]
fn the_first_verdict_stands_and_nothing_moves_but_one_credit() {
    for script in [Script::good(), Script::weak()] {
        let mut world = World::new();
        let (first, _) = judge(&mut world, "first", &script);
        let before = world.main().clone();
        let unburned = world.rows.accounts[&submitter(1).tag].unburned();
        let again = same(&mut world, "again");
        assert_eq!(
            world.ask(submitter(1), execute(again)),
            Ok(Reply::Running(again))
        );
        let reserved = world.main().sealed.reserved;
        assert_eq!(reserved, before.sealed.reserved, "nothing is reserved");
        let capsule = settle_duplicate(&mut world);
        assert_eq!(capsule.outcome, Outcome::NotJudged);
        assert_eq!(capsule.reason_codes, [2, Reason::Duplicate.code()]);
        assert_eq!(capsule.duplicate_of, Some(first));
        assert_eq!((capsule.fuel, capsule.answers.n_symbols), (0, 4));
        let after = world.main();
        for (was, is) in [
            (before.sealed.charged.0, after.sealed.charged.0),
            (before.answers.charged.0, after.answers.charged.0),
            (before.settled, after.settled),
            (before.certified, after.certified),
        ] {
            assert_eq!(was, is);
        }
        assert_eq!(
            world.rows.accounts[&submitter(1).tag].unburned() + 1,
            unburned
        );
        assert_eq!(world.rows.claims[&again].state, ClaimState::Settled);
    }
}

#[test]
fn a_run_that_was_not_judged_or_is_revoked_stands_for_nothing() {
    let mut world = World::new();
    let (_, trapped) = judge(&mut world, "trapped", &Script::trapped());
    assert_eq!(trapped.outcome, Outcome::NotJudged);
    let (judged, capsule) = judge(&mut world, "judged", &Script::weak());
    assert_eq!(
        (capsule.outcome, capsule.duplicate_of),
        (Outcome::NotCertified, None)
    );
    world.ask(submitter(1), revoke(judged)).expect("its own");
    let (_, capsule) = judge(&mut world, "after the revocation", &Script::weak());
    assert_eq!(
        (capsule.outcome, capsule.duplicate_of),
        (Outcome::NotCertified, None)
    );
    assert_eq!(world.main().settled, 2);
}

#[test]
fn other_terms_another_owner_another_module_and_oracles_are_judged() {
    let mut world = World::with(|policy| policy.levels = 2);
    judge(&mut world, "first", &Script::weak());
    let base = world.terms(submitter(1), "other");
    let stricter = Terms {
        alpha_micros: 10_000,
        claim_name: "stricter".to_owned(),
        ..base.clone()
    };
    let leveled = Terms {
        levels: 2,
        claim_name: "leveled".to_owned(),
        ..base.clone()
    };
    let others = world.terms(submitter(2), "other owner");
    let changed = Terms {
        claim_name: "other module".to_owned(),
        ..base.clone()
    };
    for (terms, module, asks) in [
        (stricter, "same", false),
        (leveled, "same", false),
        (others, "same", false),
        (changed, "another", false),
        (base, "same", true),
    ] {
        let (owner, number) = (submitter(terms.owner.0[0]), world.main().admitted);
        let id = sealed(&mut world, terms, module, asks);
        world.ask(owner, execute(id)).expect("admitted");
        let capsule = world.settle(number, &Script::weak());
        assert_eq!(capsule.outcome, Outcome::NotCertified, "{module} {asks}");
    }
}

#[test]
fn a_name_and_the_credit_do_not_make_another_claim() {
    let mut world = World::new();
    let (first, _) = judge(&mut world, "first", &Script::weak());
    let renamed = Terms {
        access_credit: 77,
        ..world.terms(submitter(1), "renamed")
    };
    let id = sealed(&mut world, renamed, "same", false);
    world.ask(submitter(1), execute(id)).expect("admitted");
    assert_eq!(settle_duplicate(&mut world).duplicate_of, Some(first));
}

#[test]
fn while_the_first_is_under_way_the_second_is_asked_to_wait() {
    let mut world = World::new();
    let first = same(&mut world, "first");
    let second = same(&mut world, "second");
    let replies = world.batch(&[
        request(submitter(1), None, execute(first)),
        request(submitter(1), None, execute(second)),
    ]);
    assert_eq!(replies[0], Ok(Reply::Running(first)));
    assert_eq!(replies[1], Err(Refusal::SameClaimRunning(first)));
    assert!(Refusal::SameClaimRunning(first).asks_to_retry());
}

#[test]
fn a_duplicate_without_a_credit_is_refused() {
    let mut world = World::new();
    judge(&mut world, "first", &Script::weak());
    let id = same(&mut world, "again");
    let owner = submitter(1).tag;
    world
        .rows
        .accounts
        .get_mut(&owner)
        .expect("an account")
        .balance = 0;
    let refused = world.ask(submitter(1), execute(id));
    assert_eq!(
        refused,
        Err(Refusal::InsufficientCredit { needed: 1, left: 0 })
    );
}

#[test]
fn a_duplicate_takes_the_last_credit_of_a_holdout() {
    let mut world = World::new();
    judge(&mut world, "first", &Script::weak());
    let burned = world.main().credit_burned;
    let [second, third] = ["second", "third"].map(|name| same(&mut world, name));
    let allow = |world: &mut World, credit| {
        let narrow = HoldoutCommand::SetBudgets {
            holdout: world.holdout,
            narrower: NarrowerBudgets {
                credit: Some(credit),
                ..NarrowerBudgets::default()
            },
        };
        world.ask(OPERATOR, narrow).expect("within the policy");
    };
    allow(&mut world, burned);
    let exhausted = Refusal::HoldoutCreditExhausted { needed: 1, left: 0 };
    assert_eq!(world.ask(submitter(1), execute(second)), Err(exhausted));
    allow(&mut world, burned + 1);
    assert_eq!(
        world.ask(submitter(1), execute(second)),
        Ok(Reply::Running(second))
    );
    let waits = Refusal::Reserved {
        pool: Pool::HoldoutCredit,
    };
    assert_eq!(world.ask(submitter(1), execute(third)), Err(waits));
}
