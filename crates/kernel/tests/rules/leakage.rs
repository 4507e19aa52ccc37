//! Reservations, charges and the order of settlements.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Outcome, Terms},
    command::Reply,
    refusal::{Pool, Refusal},
};

use crate::world::{Script, World, bits, execute, submitter};

fn declaring(world: &World, owner: u8, name: &str, most: MicroBits) -> Terms {
    Terms {
        max_answer_microbits: Some(most.get()),
        ..world.terms(submitter(owner), name)
    }
}

#[test]
fn runs_settle_in_the_order_of_their_admission_whatever_finishes_first() {
    // The second finishes first; the driver parks it, and the kernel is asked in order.
    let mut world = World::new();
    let (a, first) = world.admitted(world.terms(submitter(1), "a"), false);
    let (b, second) = world.admitted(world.terms(submitter(2), "b"), false);
    let capsule_a = world.settle(first, &Script::weak());
    let capsule_b = world.settle(second, &Script::good());
    assert_eq!((capsule_a.claim_id, capsule_b.claim_id), (a, b));
    assert_eq!(capsule_b.ledger.k, capsule_a.ledger.price);
    assert_eq!(capsule_b.ledger.settled_before, 1);
}

#[test]
#[should_panic(expected = "runs settle in the order in which they were admitted")]
fn settling_out_of_order_is_a_bug_of_ours() {
    let mut world = World::new();
    world.admitted(world.terms(submitter(1), "a"), false);
    let (_, second) = world.admitted(world.terms(submitter(2), "b"), false);
    world.settle(second, &Script::weak());
}

#[test]
fn threshold_has_the_k_of_earlier_settlements_and_no_reservations_or_answers() {
    let mut world = World::new();
    let asking = declaring(&world, 1, "asks", bits(10));
    let (_, asks) = world.admitted(asking, true);
    let (_, other) = world.admitted(world.terms(submitter(2), "other"), false);
    let first = world.settle(asks, &Script::weak().charged(bits(10)));
    assert_eq!(first.ledger.k, MicroBits::ZERO);
    let second = world.settle(other, &Script::weak());
    assert_eq!(second.ledger.k, MicroBits(5_647));
    assert_eq!(world.main().answers.charged, bits(10));
}

#[test]
fn seven_runs_fit_into_64_bits_and_the_eighth_waits() {
    let mut world = World::new();
    let mut numbers = Vec::new();
    let refusal = loop {
        let name = numbers.len().to_string();
        let id = world.sealed(world.terms(submitter(1), &name), false);
        match world.ask(submitter(1), execute(id)) {
            Ok(_) => numbers.push(world.main().admitted - 1),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::Reserved { pool: Pool::Sealed });
    assert_eq!(numbers.len(), 7);
    // With j ahead the worst is ⌈10⁶·log2(256+2j)⌉.
    let reserved: Vec<u64> = world
        .main()
        .in_flight
        .iter()
        .map(|run| run.sealed_reserved.get())
        .collect();
    assert_eq!(reserved[..3], [8_000_000, 8_011_228, 8_022_368]);
    for number in numbers {
        world.settle(number, &Script::weak());
    }
    assert_eq!(world.main().sealed.reserved, MicroBits::ZERO);
    let again = world.sealed(world.terms(submitter(1), "again"), false);
    assert!(world.ask(submitter(1), execute(again)).is_ok());
}

#[test]
fn a_spent_holdout_refuses_for_good() {
    let mut world = World::with(|policy| policy.sealed_budget = bits(12));
    world.run(submitter(1), "a", &Script::good());
    let id = world.sealed(world.terms(submitter(2), "b"), false);
    let before = world.snapshot();
    let refused = world.ask(submitter(2), execute(id));
    // (1, 1): "certified" costs ⌈10⁶·log2(258/3)⌉, though a failure would cost 0.017 bits only.
    let exhausted = Refusal::BudgetExhausted {
        pool: Pool::Sealed,
        needed: MicroBits(6_426_265),
        left: bits(4),
    };
    assert_eq!(refused, Err(exhausted));
    assert_eq!(world.snapshot(), before, "a refusal freezes nothing");
}

#[test]
fn a_module_that_cannot_ask_reserves_no_answers() {
    let mut world = World::new();
    world.admitted(world.terms(submitter(1), "a"), false);
    assert_eq!(world.main().answers.reserved, MicroBits::ZERO);
}

#[test]
fn a_holdout_without_an_answer_part_reserves_no_answers() {
    let mut world = World::with(|policy| policy.answer_share_micros = 0);
    world.admitted(world.terms(submitter(1), "a"), true);
    assert_eq!(world.main().answers.reserved, MicroBits::ZERO);
}

#[test]
fn undeclared_is_what_all_calls_could_cost_as_far_as_the_budgets_reach() {
    let reserved = |principal: u64, all: u64, symbols: u32| {
        let mut world = World::with(|policy| {
            policy.principal_answer_budget = bits(principal);
            policy.answer_budget = bits(all);
            policy.max_symbols = 65_536;
        });
        let terms = Terms {
            oracle_num_symbols: symbols,
            ..world.terms(submitter(1), "a")
        };
        world.admitted(terms, true);
        assert_eq!(world.pool(submitter(1)).answers, world.main().answers);
        world.main().answers.reserved
    };
    // 64 calls of the fast lane, two bits a call.
    assert_eq!(reserved(1_000, 1_000, 4), bits(128));
    assert_eq!(reserved(16, 64, 4), bits(16));
    assert_eq!(reserved(64, 16, 4), bits(16));
}

#[test]
fn declared_is_reserved_as_declared() {
    let mut world = World::new();
    let terms = declaring(&world, 1, "a", bits(3));
    world.admitted(terms, true);
    assert_eq!(world.main().answers.reserved, bits(3));
}

#[test]
fn what_no_budget_carries_is_exhausted_and_what_others_hold_is_reserved() {
    let mut world = World::with(|policy| {
        policy.answer_budget = bits(20);
        policy.principal_answer_budget = bits(16);
    });
    let ask = |world: &mut World, owner: u8, name: &str, most: u64| {
        let terms = declaring(world, owner, name, bits(most));
        let id = world.sealed(terms, true);
        world.ask(submitter(owner), execute(id))
    };
    let exhausted = |pool, needed, left| {
        Err(Refusal::BudgetExhausted {
            pool,
            needed: bits(needed),
            left: bits(left),
        })
    };
    assert_eq!(
        ask(&mut world, 1, "too much", 17),
        exhausted(Pool::PrincipalAnswers, 17, 16)
    );
    assert!(ask(&mut world, 1, "ten", 10).is_ok());
    let held = |pool| Err(Refusal::Reserved { pool });
    assert_eq!(
        ask(&mut world, 1, "seven more", 7),
        held(Pool::PrincipalAnswers)
    );
    assert_eq!(ask(&mut world, 2, "eleven", 11), held(Pool::Answers));
    world.settle(0, &Script::weak().charged(bits(10)));
    assert_eq!(
        ask(&mut world, 1, "seven again", 7),
        exhausted(Pool::PrincipalAnswers, 7, 6)
    );
    assert_eq!(
        ask(&mut world, 2, "eleven again", 11),
        exhausted(Pool::Answers, 11, 10)
    );
    assert!(ask(&mut world, 2, "ten", 10).is_ok());
}

#[test]
fn an_undeclared_allowance_does_not_depend_on_who_else_is_running() {
    let mut world = World::with(|policy| {
        policy.answer_budget = bits(20);
        policy.principal_answer_budget = bits(16);
    });
    world.admitted(world.terms(submitter(1), "a"), true);
    let second = world.sealed(world.terms(submitter(2), "b"), true);
    // Four bits are free, but he would get sixteen if he were alone: he waits for them.
    let refused = world.ask(submitter(2), execute(second));
    let pool = Pool::Answers;
    assert_eq!(refused, Err(Refusal::Reserved { pool }));
    world.settle(0, &Script::weak());
    assert!(world.ask(submitter(2), execute(second)).is_ok());
    assert_eq!(world.main().answers.reserved, bits(16));
}

#[test]
fn questions_of_one_principal_change_nothing_for_another() {
    let judged = |questions: u64| {
        let mut world = World::new();
        for n in 0..questions {
            let terms = declaring(&world, 1, &n.to_string(), bits(4));
            let (_, number) = world.admitted(terms, true);
            let asked = Script {
                right: None,
                ..Script::weak().charged(bits(4))
            };
            let capsule = world.settle(number, &asked);
            assert_eq!(capsule.outcome, Outcome::NotJudged);
        }
        let (_, number) = world.admitted(world.terms(submitter(2), "judged"), true);
        let allowance = world.main().in_flight[0].answers_reserved;
        (world.settle(number, &Script::weak()).ledger, allowance)
    };
    assert_eq!(judged(0), judged(4));
}

#[test]
fn an_aborted_run_costs_its_worst_case_and_is_no_settlement() {
    let mut world = World::new();
    let terms = declaring(&world, 1, "a", bits(5));
    let (id, number) = world.admitted(terms, true);
    let capsule = world.abort(number);
    assert_eq!(capsule.outcome, Outcome::Aborted);
    assert_eq!(capsule.reason_codes, [2, 130]);
    assert_eq!(capsule.ledger.price, bits(8));
    assert_eq!(capsule.answers.charged, bits(5));
    assert_eq!(capsule.answers.n_symbols, 4);
    let main = world.main();
    assert_eq!(
        (main.sealed.charged, main.answers.charged),
        (bits(8), bits(5))
    );
    assert_eq!((main.settled, main.certified), (0, 0));
    assert_eq!(world.pool(submitter(1)).answers.charged, bits(5));
    let reply = world.ask(submitter(1), execute(id));
    assert!(matches!(reply, Ok(Reply::Settled(_))));
}

#[test]
fn unused_reservations_are_given_back() {
    let mut world = World::new();
    let terms = declaring(&world, 1, "a", bits(16));
    let (_, number) = world.admitted(terms, true);
    world.settle(number, &Script::trapped().charged(bits(2)));
    let meters = [world.main().answers, world.pool(submitter(1)).answers];
    for meter in meters {
        assert_eq!((meter.charged, meter.reserved), (bits(2), MicroBits::ZERO));
    }
    assert_eq!(world.main().sealed.charged, MicroBits::ZERO);
}

#[test]
fn two_charges_on_one_pool_in_one_batch_do_not_both_pass() {
    let mut world = World::with(|policy| policy.answer_budget = bits(10));
    let ids = [1, 2].map(|owner| {
        let terms = declaring(&world, owner, "a", bits(6));
        (owner, world.sealed(terms, true))
    });
    let requests =
        ids.map(|(owner, id)| crate::world::request(submitter(owner), None, execute(id)));
    let replies = world.batch(&requests);
    assert!(replies[0].is_ok());
    let pool = Pool::Answers;
    assert_eq!(replies[1], Err(Refusal::Reserved { pool }));
}
