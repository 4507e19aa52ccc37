//! What a settlement decides and what it costs: capsules against numbers computed by hand.
//!
//! c₀ = 8 and α = .05: ⌈10⁶·log2 20⌉ = 4,321,929, and the prices for (m, s) are those of the
//! published table (0,0) 5,647 / 8,000,000; (1,0) 5,603 / 8,011,228; (1,1) 16,874 / 6,426,265.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Outcome, PolicyCode, Reason, Terms},
    command::RunEnd,
    id::Digest,
    price::{Multiplicity, SettlementPrices},
    record::{Capsule, Ledger},
    score::{Score, SizeClass},
};

use crate::world::{SEALED_ITEMS, Script, World, bits, holdout, policy, submitter};

const LOG2_20: u64 = 4_321_929;

fn ledger(k: u64, c: u64, price: u64, m: u64, s: u64, threshold: u64) -> Ledger {
    Ledger {
        k: MicroBits(k),
        c: MicroBits(c),
        price: MicroBits(price),
        settled_before: m,
        certified_before: s,
        ordinal: s + 1,
        alpha_micros: 50_000,
        alpha_divisor: 1,
        multiplicity: Multiplicity::Each,
        threshold: MicroBits(threshold),
    }
}

#[test]
fn ledgers_are_those_computed_by_hand() {
    let mut world = World::new();
    let first = world.run(submitter(1), "a", &Script::weak());
    assert_eq!(
        first.ledger,
        ledger(0, 8_000_000, 5_647, 0, 0, 8_000_000 + LOG2_20)
    );
    assert_eq!(first.outcome, Outcome::NotCertified);
    assert_eq!(first.reason_codes, [2, 101]);
    let second = world.run(submitter(2), "b", &Script::good());
    let threshold = 5_647 + 8_011_228 + LOG2_20;
    assert_eq!(
        second.ledger,
        ledger(5_647, 8_011_228, 8_011_228, 1, 0, threshold)
    );
    assert_eq!(second.outcome, Outcome::Certified);
    assert_eq!(second.reason_codes, [1]);
    assert_eq!(second.e_value_log2, Some(4));
    assert_eq!(world.main().sealed.charged, MicroBits(5_647 + 8_011_228));
    assert_eq!((world.main().settled, world.main().certified), (2, 1));

    let mut world = World::new();
    world.run(submitter(1), "a", &Script::good());
    let after = world.run(submitter(1), "b", &Script::weak());
    let threshold = 8_000_000 + 6_426_265 + LOG2_20;
    assert_eq!(
        after.ledger,
        ledger(8_000_000, 6_426_265, 16_874, 1, 1, threshold)
    );
}

#[test]
fn capsule_says_what_was_bound() {
    let mut world = World::new();
    let capsule = world.run(submitter(1), "a", &Script::good());
    let claim = &world.rows.claims[&capsule.claim_id];
    let settlement = claim.settlement.as_ref().expect("settled");
    assert_eq!(capsule.owner_tag, submitter(1).tag);
    assert_eq!(capsule.holdout_id, world.holdout);
    assert_eq!(capsule.topic_id, claim.terms.topic_id());
    assert_eq!(Some(capsule.seal_hash), claim.seal_hash);
    assert_eq!(capsule.wasm_hash, Digest::of(b"module of a"));
    assert_eq!(capsule.policy_hash, world.main().description.policy.hash());
    assert_eq!(capsule.structured_output_hash, Digest::of(&[1]));
    assert_eq!(capsule.items, (200, SEALED_ITEMS, SEALED_ITEMS));
    assert_eq!(capsule.engine, crate::world::ENGINE);
    assert_eq!(settlement.threshold, capsule.ledger.threshold);
    assert!(capsule.to_bytes().len() <= 1_900);
}

#[test]
fn certified_means_exactly_that_the_evidence_reaches_the_threshold() {
    let probe = World::new();
    let null_spec = &probe.main().description.null_spec;
    let threshold = MicroBits(8_000_000 + LOG2_20);
    let fewest = null_spec
        .fewest_right(SEALED_ITEMS, threshold)
        .expect("a perfect vector certifies");
    let outcome = |right| {
        World::new()
            .run(submitter(1), "a", &Script::right(right))
            .outcome
    };
    assert_eq!(outcome(fewest), Outcome::Certified);
    assert_eq!(outcome(fewest - 1), Outcome::NotCertified);
    let score = Score {
        classes: vec![SizeClass {
            size: 1,
            units: SEALED_ITEMS,
            right: fewest,
        }],
    };
    assert!(null_spec.evidence_of(&score) >= threshold.get() as i64);
}

#[test]
fn what_does_not_end_well_is_not_judged_and_free() {
    let vector = Some(700);
    let mut scripts: Vec<(Reason, Script)> = [
        Reason::Trap,
        Reason::Unreachable,
        Reason::NotAdmitted,
        Reason::OutOfFuel,
        Reason::OutOfMemory,
        Reason::InvalidVector,
        Reason::AllowanceExhausted,
        Reason::TooManyCalls,
        Reason::OutOfBounds,
        Reason::EmittedTwice,
    ]
    .map(|reason| (reason, Script::ending(RunEnd::Trapped(reason))))
    .into();
    scripts.push((Reason::NoOutput, Script::ending(RunEnd::NoOutput)));
    // One of four symbols takes one byte, from 0 to 3.
    for output in [vec![], vec![4], vec![0, 1]] {
        scripts.push((
            Reason::InvalidOutput,
            Script::ending(RunEnd::Emitted(output)),
        ));
    }
    for (reason, script) in scripts {
        let mut world = World::new();
        world.run(submitter(1), "before", &Script::weak());
        let k = world.main().sealed.charged;
        let script = Script {
            right: vector,
            ..script
        };
        let capsule = world.run(submitter(1), "a", &script);
        assert_eq!(capsule.outcome, Outcome::NotJudged, "{reason:?}");
        assert_eq!(capsule.reason_codes, [2, reason.code()]);
        assert_eq!(capsule.ledger.price, MicroBits::ZERO);
        assert_eq!(capsule.structured_output_hash, Digest::of(b""));
        let main = world.main();
        assert_eq!((main.sealed.charged, main.settled), (k, 1), "{reason:?}");
        assert_eq!(main.sealed.reserved, MicroBits::ZERO);
    }
}

#[test]
fn a_vetoed_run_is_not_judged_and_free_however_good_it_is() {
    let code = PolicyCode::new(9_104).expect("a policy's code");
    let veto = |output: Vec<u8>, deferred| Script {
        end: RunEnd::Vetoed {
            output,
            code,
            deferred,
        },
        // The runner computes no score for a vetoed run; here it would certify.
        ..Script::good()
    };
    for (output, deferred, reasons) in [
        (vec![1], false, [2, 9_104]),
        (vec![1], true, [3, 9_104]),
        // What is wrong with the run itself comes first.
        (vec![4], true, [2, Reason::InvalidOutput.code()]),
    ] {
        let mut world = World::new();
        world.run(submitter(1), "before", &Script::weak());
        let k = world.main().sealed.charged;
        let capsule = world.run(submitter(1), "a", &veto(output, deferred));
        assert_eq!(capsule.outcome, Outcome::NotJudged);
        assert_eq!(capsule.reason_codes, reasons);
        assert_eq!(capsule.ledger.price, MicroBits::ZERO);
        let main = world.main();
        assert_eq!((main.sealed.charged, main.settled), (k, 1));
        assert_eq!(main.sealed.reserved, MicroBits::ZERO);
        // Nothing stands in the way of the next one.
        let next = world.run(submitter(1), "b", &Script::good());
        assert_eq!(next.outcome, Outcome::Certified);
    }
}

#[test]
fn no_vector_is_nothing_to_judge() {
    let mut world = World::new();
    let script = Script {
        right: None,
        ..Script::weak()
    };
    let capsule = world.run(submitter(1), "a", &script);
    assert_eq!(capsule.outcome, Outcome::NotJudged);
    assert_eq!(capsule.reason_codes, [2, Reason::NothingToJudge.code()]);
    assert_eq!(capsule.structured_output_hash, Digest::of(&[1]));
    assert_eq!(
        (world.main().settled, world.main().sealed.charged),
        (0, MicroBits::ZERO)
    );
}

#[test]
fn what_not_even_a_perfect_vector_could_reach_is_not_judged_and_free() {
    let mut world = World::with(|policy| {
        policy.sealed_budget = bits(10_000);
        policy.settlement_prices = SettlementPrices::Fixed { certified_bits: 40 };
    });
    let mut out_of_reach: Option<Capsule> = None;
    for n in 0..100 {
        let capsule = world.run(submitter(1), &n.to_string(), &Script::right(SEALED_ITEMS));
        if capsule.outcome != Outcome::Certified {
            out_of_reach = Some(capsule);
            break;
        }
    }
    let capsule = out_of_reach.expect("leakage ends every holdout");
    let k = capsule.ledger.k;
    assert_eq!(capsule.reason_codes, [2, Reason::OutOfReach.code()]);
    assert_eq!(capsule.outcome, Outcome::NotJudged);
    assert_eq!(capsule.ledger.price, MicroBits::ZERO);
    assert_eq!(world.main().sealed.charged, k);
    assert_eq!(world.main().settled, capsule.ledger.settled_before);
    // The weakest vector is told the same: it is a matter of the ledger alone.
    let weak = world.run(submitter(2), "weak", &Script::right(0));
    assert_eq!(weak.reason_codes, capsule.reason_codes);
    let null_spec = &world.main().description.null_spec;
    assert!(!null_spec.can_reach(SEALED_ITEMS, capsule.ledger.threshold));
}

#[test]
fn reach_is_counted_in_units_and_not_in_items() {
    // A perfect vector over 17 units is 17·log2 1.9 − 3 = 12.74 bits, over 16 units 11.82. The
    // first threshold is 12.32, and there are 800 items.
    for (units, reasons, certifications) in [(16, [2, 102], 0), (17, [2, 101], 1)] {
        let mut put = holdout("main", policy(), None);
        put.description.sealed_units = units;
        let mut world = World::on(put);
        let left = world.main().certifications_left(MicroBits::MAX).all;
        assert_eq!(left, certifications, "{units} units");
        let capsule = world.run(submitter(1), "a", &Script::weak());
        assert_eq!(capsule.reason_codes, reasons, "{units} units");
    }
}

#[test]
fn the_stricter_significance_level_counts() {
    for (asked, counted) in [(10_000, 10_000), (50_000, 50_000), (500_000, 50_000)] {
        let mut world = World::new();
        let terms = Terms {
            alpha_micros: asked,
            ..world.terms(submitter(1), "a")
        };
        let (_, number) = world.admitted(terms, false);
        let capsule = world.settle(number, &Script::weak());
        assert_eq!(capsule.ledger.alpha_micros, counted);
    }
}

#[test]
fn divisors_follow_the_certifications_and_not_the_claims() {
    for (mode, divisors) in [
        (Multiplicity::Each, [1, 1, 1]),
        (Multiplicity::Fwer, [2, 6, 12]),
        (Multiplicity::Fdr, [2, 3, 4]),
    ] {
        let mut world = World::with(|policy| {
            policy.multiplicity = mode;
            policy.sealed_budget = bits(1_000);
        });
        for (i, divisor) in divisors.into_iter().enumerate() {
            let weak = world.run(submitter(1), &format!("weak {i}"), &Script::weak());
            let good = world.run(
                submitter(1),
                &format!("good {i}"),
                &Script::right(SEALED_ITEMS),
            );
            for capsule in [&weak, &good] {
                assert_eq!(capsule.ledger.alpha_divisor, divisor, "{mode:?}");
                assert_eq!(capsule.ledger.ordinal, i as u64 + 1);
            }
            assert_eq!(good.outcome, Outcome::Certified);
        }
    }
}

#[test]
fn a_revocation_does_not_lower_the_ordinal() {
    let mut world = World::new();
    let first = world.run(submitter(1), "a", &Script::good());
    world
        .ask(submitter(1), crate::world::revoke(first.claim_id))
        .expect("certified");
    let second = world.run(submitter(1), "b", &Script::weak());
    assert_eq!(second.ledger.ordinal, 2);
    assert_eq!(second.ledger.k, first.ledger.price);
}

#[test]
fn levels_release_more_and_cost_more() {
    let settled = |levels: u8, right: u64| {
        let mut world = World::with(|policy| policy.levels = 4);
        let terms = Terms {
            levels,
            ..world.terms(submitter(1), "a")
        };
        let (_, number) = world.admitted(terms, false);
        world.settle(number, &Script::right(right))
    };
    let null_spec = World::new().main().description.null_spec.clone();
    let threshold = 8_000_000 + LOG2_20;
    let at = |surplus_bits: u64| {
        null_spec
            .fewest_right(
                SEALED_ITEMS,
                MicroBits(threshold + surplus_bits * 1_000_000),
            )
            .expect("in reach")
    };
    // Level j of four costs c and ⌈10⁶·log2((j+1)(j+2))⌉; the last ⌈10⁶·log2 4⌉.
    let log2_of = [1_000_000, 2_584_963, 3_584_963, 2_000_000];
    for (level, extra) in log2_of.into_iter().enumerate() {
        let capsule = settled(4, at(level as u64));
        assert_eq!(capsule.e_value_log2, Some(4 + level as u64));
        assert_eq!(capsule.ledger.price, MicroBits(8_000_000 + extra));
        assert_eq!(capsule.ledger.c, MicroBits(8_000_000));
    }
    assert_eq!(settled(0, SEALED_ITEMS).e_value_log2, Some(4));
    assert_eq!(settled(0, SEALED_ITEMS).ledger.price, MicroBits(8_000_000));
}
