//! Attacks through `decide`: completion order, many names, repeated questions.
//!
//! What an attacker could gain shows in the ledger alone, so one pass decides it; where the
//! rule has a mutant, the attack must break it.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::Terms,
    evidence::{BetTable, Strategy},
    price::{AnswerPrices, SettlementPrices, threshold},
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

/// The race, on a holdout of one part whose answers are charged: one run for each of 128 items
/// asks for its label and ends at once where it is 0, so that "still running" says 1. Then the
/// labels are claimed, while the runs that say 1 have paid nothing. How often of `holdouts` of
/// fair coins, on which every certification is false, does that certify?
fn races_won(charged: Charged, holdouts: u64) -> u64 {
    const ITEMS: u64 = 128;
    let bets = BetTable::new(500_000, Strategy::Grid).expect("a half is a chance");
    let answer = AnswerPrices::default().dearest(2).expect("an alphabet");
    let c = SettlementPrices::default().quote(0, 0).certified;
    let evidence = bets.evidence_microbits(ITEMS, ITEMS);
    let wins = |holdout: &u64| {
        let ones: u64 = (0..2)
            .map(|half| u64::from(coins(2 * holdout + half).count_ones()))
            .sum();
        let paid = match charged {
            Charged::Admitted => ITEMS,
            Charged::Completed => ITEMS - ones,
        };
        let k = MicroBits(answer.get() * paid);
        let threshold = threshold(k, c, 50_000, 1);
        i128::from(evidence) >= i128::from(threshold.get())
    };
    (0..holdouts).filter(wins).count() as u64
}

/// The n-th word of SplitMix64 (Steele, Lea, Flood 2014).
fn coins(n: u64) -> u64 {
    let z = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn a_race_wins_against_completion_order_and_never_against_admission_order() {
    let holdouts = 100_000;
    assert_eq!(races_won(Charged::Admitted, holdouts), 0);
    let won = races_won(Charged::Completed, holdouts);
    assert!(won > holdouts / 20, "the mutant survives: {won}");
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
