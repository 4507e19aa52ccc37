//! Attacks on the guarantee, through `decide`, and against servers that forget a part of the rule.
//!
//! The guarantee is about the worst strategy, so each test plays one that is good, on a holdout of
//! which nothing is known: every certification is then false. The real rule must keep the chance of
//! a false first certification below α; the server that forgets what the attack is aimed at must
//! not, or the attack would prove nothing. Runs are counted from a fixed seed; "below α" means the
//! 99 % upper confidence bound. What an attacker gains in the ledger alone, one pass decides.
use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Outcome, Terms},
    command::RunReport,
    price::AnswerPrices,
    record::Capsule,
    refusal::{Pool, Refusal},
    score::{Score, SizeClass},
};

use crate::world::{Script, World, bits, execute, holdout, policy, submitter};
use odds::{Coins, RUNS, assert_broken};

mod boosting;
mod odds;
mod strategies;
mod streams;

/// The run predicts this many sealed units correctly.
fn scored(units: u64, right: u64) -> RunReport {
    let class = SizeClass {
        size: 1,
        units,
        right,
    };
    RunReport {
        score: Some(Score {
            classes: vec![class],
        }),
        ..Script::weak().report()
    }
}

/// What an observer sees of two runs whose length depends on the labels: the ledgers in order of
/// the log. `slow_first` is the secret.
fn two_runs(slow_first: bool) -> Vec<Capsule> {
    let mut world = World::new();
    let (_, a) = world.admitted(world.terms(submitter(1), "a"), false);
    let (_, b) = world.admitted(world.terms(submitter(1), "b"), false);
    let finishing = if slow_first { [b, a] } else { [a, b] };
    let (mut finished, mut capsules) = (Vec::new(), Vec::new());
    for number in finishing {
        finished.push(number);
        // The driver's rule: what has finished is settled when it is the oldest.
        while let Some(oldest) = world.main().in_flight.front().map(|run| run.number)
            && finished.contains(&oldest)
        {
            capsules.push(world.settle(oldest, &Script::weak()));
        }
    }
    capsules
}

#[test]
fn completion_order_shows_in_nothing_that_is_released() {
    assert_eq!(two_runs(false), two_runs(true));
}

/// Which runs have been charged when a claim is judged.
#[derive(Clone, Copy, PartialEq)]
enum Charged {
    /// All that were admitted before it.
    Admitted,
    /// Those that have ended: a server that settles in completion order.
    Completed,
}

/// Whether `decide` certifies a claim that has all of so many items right, where the sealed part
/// has released so much.
fn perfect_is_certified(items: u64, charged: MicroBits) -> bool {
    let mut put = holdout("one part", policy(), None);
    put.description.policy.sealed_budget = bits(1_000);
    put.description.policy.answer_budget = bits(1_000);
    (put.description.sealed_items, put.description.sealed_units) = (items, items);
    let mut world = World::on(put);
    world.charge(charged);
    let (_, number) = world.admitted(world.terms(submitter(1), "all labels"), false);
    let capsule = world.settle_as(number, scored(items, items));
    assert_eq!(capsule.ledger.k, charged);
    capsule.outcome == Outcome::Certified
}

/// The race, on a holdout of one part whose answers are charged: one run for each of 128 items
/// asks for its label and ends at once where it is 0, so that "still running" says 1. Then the
/// labels are claimed, while the runs that say 1 have paid nothing. How often of `holdouts` of
/// fair coins, on which every certification is false, does that certify?
fn races_won(charged: Charged, holdouts: u64) -> u64 {
    const ITEMS: u64 = 128;
    let answer = AnswerPrices::default().dearest(2).expect("an alphabet");
    let certified: Vec<bool> = (0..=ITEMS)
        .map(|paid| perfect_is_certified(ITEMS, MicroBits(answer.get() * paid)))
        .collect();
    let mut coins = Coins(0);
    let wins = |_: &u64| {
        let ones = u64::from(coins.word().count_ones()) + u64::from(coins.word().count_ones());
        let paid = match charged {
            Charged::Admitted => ITEMS,
            Charged::Completed => ITEMS - ones,
        };
        certified[paid as usize]
    };
    (0..holdouts).filter(wins).count() as u64
}

#[test]
fn a_race_wins_against_completion_order_and_never_against_admission_order() {
    assert_eq!(races_won(Charged::Admitted, RUNS), 0);
    assert_broken(
        races_won(Charged::Completed, RUNS),
        RUNS,
        "completion order",
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
    let null_spec = &world.main().description.null_spec;
    let threshold = MicroBits(12_321_929);
    let fewest = null_spec.fewest_right(800, threshold).expect("in reach");
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
