//! Attacks through `decide`: completion order, many names, repeated questions.
//!
//! Each is a game of an attacker who knows nothing of the labels. What he could gain shows in
//! the ledger alone, so one pass decides it; where the rule has a mutant, the mutant loses.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::Terms,
    price::SettlementPrices,
    record::Capsule,
    refusal::{Pool, Refusal},
};

use crate::world::{Script, World, bits, execute, submitter};

/// What an observer sees of two runs whose length depends on the labels: the ledgers in order of
/// the log. `slow_first` is the secret.
fn two_runs(slow_first: bool) -> Vec<Capsule> {
    let mut world = World::new();
    let (_, a) = world.admitted(world.terms(submitter(1), "a"), false);
    let (_, b) = world.admitted(world.terms(submitter(1), "b"), false);
    let mut finished = if slow_first { [b, a] } else { [a, b] }.to_vec();
    let mut capsules = Vec::new();
    // The driver's rule: what has finished is settled when it is the oldest.
    while let Some(oldest) = world.main().in_flight.front().map(|run| run.number) {
        finished.retain(|&number| number != oldest);
        capsules.push(world.settle(oldest, &Script::weak()));
    }
    capsules
}

#[test]
fn completion_order_shows_in_nothing_that_is_released() {
    assert_eq!(two_runs(false), two_runs(true));
}

#[test]
fn a_server_that_settles_in_completion_order_releases_a_symbol_for_nothing() {
    // The mutant's log has the finisher first: two orders, one bit, and the ledger paid nothing
    // for it beyond what the two settlements cost in any order.
    let mutant = |slow_first: bool| {
        let mut order = two_runs(false);
        if slow_first {
            order.reverse();
        }
        order.iter().map(|c| c.claim_id).collect::<Vec<_>>()
    };
    let prices = |m| SettlementPrices::default().quote(m, 0).not_certified;
    let paid = prices(0).saturating_add(prices(1));
    assert_ne!(mutant(false), mutant(true));
    assert!(
        paid < bits(1),
        "an order of two is worth a bit, {paid} were paid"
    );
}

/// What an attacker with `names` names gets out of the answer part, in bits.
fn drained(names: u8) -> MicroBits {
    let mut world = World::new();
    for owner in 1..=names {
        loop {
            let own = world.pool(submitter(owner)).answers.charged;
            let terms = Terms {
                max_answer_microbits: Some(bits(4).get()),
                ..world.terms(submitter(owner), &own.to_string())
            };
            let id = world.sealed(terms, true);
            match world.ask(submitter(owner), execute(id)) {
                Ok(_) => {
                    let number = world.main().admitted - 1;
                    let asked = Script {
                        right: None,
                        ..Script::weak().charged(bits(4))
                    };
                    world.settle(number, &asked);
                }
                Err(refusal) => {
                    assert!(matches!(refusal, Refusal::BudgetExhausted { .. }));
                    break;
                }
            }
        }
    }
    assert_eq!(world.main().sealed.charged, MicroBits::ZERO);
    assert_eq!(world.main().settled, 0);
    world.main().answers.charged
}

#[test]
fn many_names_get_no_more_than_the_holdouts_budget_and_no_settlement_cheaper() {
    assert_eq!(drained(1), bits(16));
    assert_eq!(drained(3), bits(48));
    for names in [4, 5, 12] {
        assert_eq!(drained(names), bits(64), "{names} names");
    }
}

#[test]
fn a_stream_of_claims_pays_the_same_under_one_name_and_under_many() {
    let stream = |names: u8| {
        let mut world = World::new();
        let ledgers: Vec<_> = (0..200u8)
            .map(|n| {
                let owner = submitter(1 + n % names);
                world.run(owner, &n.to_string(), &Script::weak()).ledger
            })
            .collect();
        ledgers
    };
    let one = stream(1);
    assert_eq!(one, stream(50));
    let bars: Vec<MicroBits> = one.iter().map(|ledger| ledger.threshold).collect();
    assert!(
        bars.is_sorted_by(|a, b| a < b),
        "every failure raises the bar"
    );
}

#[test]
fn claiming_the_same_vector_again_raises_the_bar_and_not_the_evidence() {
    let mut world = World::new();
    // Just too weak for the first threshold.
    let bets = &world.main().description.null_spec.bets;
    let threshold = MicroBits(12_321_929);
    let fewest = bets.fewest_right(800, threshold).expect("in reach");
    for n in 0..100 {
        let script = Script::right(fewest - 1);
        let capsule = world.run(submitter(1), &n.to_string(), &script);
        assert_eq!(capsule.reason_codes, [2, 101], "claim {n}");
    }
}

#[test]
fn asking_the_same_question_in_another_claim_is_charged_again() {
    let mut world = World::new();
    let ask = |world: &mut World, name: &str| {
        let terms = Terms {
            max_answer_microbits: Some(bits(8).get()),
            ..world.terms(submitter(1), name)
        };
        let id = world.sealed(terms, true);
        world.ask(submitter(1), execute(id)).map(|_| {
            let number = world.main().admitted - 1;
            world.settle(number, &Script::trapped().charged(bits(8)))
        })
    };
    assert!(ask(&mut world, "first").is_ok());
    assert!(ask(&mut world, "again").is_ok());
    let refused = ask(&mut world, "and again").expect_err("sixteen bits for each");
    let pool = Pool::PrincipalAnswers;
    assert!(matches!(refused, Refusal::BudgetExhausted { pool: p, .. } if p == pool));
}
