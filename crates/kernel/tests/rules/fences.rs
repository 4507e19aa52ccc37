//! One submitter's verdicts use up a share of the sealed part's budget, not all of it.

use evidenceos_kernel::{
    bits::MicroBits,
    command::Reply,
    evidence::Strategy,
    holdout::{MAX_BUDGET, MOST_CERTIFICATIONS, Policy},
    null::NullSpec,
    price::{Multiplicity, SettlementPrices},
    refusal::{Pool, Refusal},
};

use crate::world::{Script, World, bits, execute, holdout, policy, submitter};

fn fenced(sealed: u64, fence: u64) -> World {
    World::with(|policy| {
        policy.sealed_budget = bits(sealed);
        policy.principal_sealed_budget = Some(bits(fence));
    })
}

#[test]
fn the_default_is_a_quarter_but_enough_for_one_dear_settlement() {
    let fence = |sealed, levels| {
        let mut policy = Policy::with_sealed_budget(bits(sealed));
        policy.levels = levels;
        policy.proposed_fence().0
    };
    assert_eq!(fence(64, 0), 16_000_000);
    assert_eq!(fence(16, 0), 8_000_000);
    assert_eq!(fence(6, 0), 6_000_000);
    // The dearest of 16 levels costs log2(15·16) bits more.
    assert_eq!(fence(16, 16), 15_906_891);
    assert_eq!(fence(8, 16), 8_000_000);
}

#[test]
fn a_name_over_its_fence_is_refused_and_others_go_on() {
    let mut world = fenced(64, 12);
    let mut certified = 0;
    let refused = loop {
        let id = world.sealed(
            world.terms(submitter(1), &format!("claim {certified}")),
            false,
        );
        let number = world.main().admitted;
        match world.ask(submitter(1), execute(id)) {
            Ok(_) => world.settle(number, &Script::good()),
            Err(refused) => break refused,
        };
        certified += 1;
    };
    // 8 bits, then 6.43, of which the worst case no longer fits into the 4 that are left.
    assert_eq!(certified, 1);
    let own = world.pool(submitter(1)).sealed;
    assert_eq!((own.charged, own.reserved), (bits(8), MicroBits::ZERO));
    assert!(
        matches!(refused, Refusal::BudgetExhausted { pool: Pool::PrincipalSealed, left, .. } if left == bits(4)),
        "{refused:?}"
    );
    assert!(!refused.asks_to_retry());
    world.run(submitter(2), "another name", &Script::good());
    assert_eq!(world.main().certified, 2);
}

#[test]
fn what_only_ones_own_runs_reserve_is_waited_for() {
    let mut world = fenced(64, 12);
    world.admitted(world.terms(submitter(1), "first"), false);
    let second = world.sealed(world.terms(submitter(1), "second"), false);
    let refused = world.ask(submitter(1), execute(second));
    let pool = Pool::PrincipalSealed;
    assert_eq!(refused, Err(Refusal::Reserved { pool }));
    world.admitted(world.terms(submitter(2), "another name"), false);
    world.settle(0, &Script::weak());
    assert_eq!(
        world.ask(submitter(1), execute(second)),
        Ok(Reply::Running(second))
    );
}

#[test]
fn certifications_left_are_counted_for_all_and_for_one() {
    let mut world = World::with(|policy| {
        policy.settlement_prices = Default::default();
        policy.principal_sealed_budget = Some(bits(16));
    });
    let left = |world: &World| {
        let own = bits(16).saturating_sub(world.pool(submitter(1)).sealed.charged);
        let main = world.main();
        let left = main.certifications_left(own);
        (left.all, left.own)
    };
    let (all, own) = left(&world);
    // Played out: as many fit as were counted, and not one more.
    for nth in 0..own {
        assert_eq!(left(&world).1, own - nth);
        world.run(submitter(1), &nth.to_string(), &Script::good());
    }
    assert_eq!(left(&world), (all - own, 0));
    let next = world.sealed(world.terms(submitter(1), "one more"), false);
    let refused = world.ask(submitter(1), execute(next));
    assert!(matches!(refused, Err(Refusal::BudgetExhausted { .. })));
    world.admitted(world.terms(submitter(2), "another name"), false);
}

#[test]
fn twenty_certifications_in_a_row_cost_what_the_specification_says() {
    for (c0_bits, wanted) in [(4, 22_756_000u64), (8, 83_959_000)] {
        let prices = evidenceos_kernel::price::SettlementPrices::Learned { c0_bits };
        let sum: u64 = (0..20).map(|n| prices.quote(n, n).certified.0).sum();
        assert!(sum.abs_diff(wanted) < 1_000, "{c0_bits}: {sum}");
    }
    let prices = evidenceos_kernel::price::SettlementPrices::default();
    for ((m, s), not, certified) in [
        ((0, 0), 93_110, 4_000_000),
        ((1, 0), 82_463, 4_169_926),
        ((1, 1), 263_035, 2_584_963),
        ((2, 2), 415_038, 2_000_000),
        ((13, 13), 1_485_427, 637_430),
        ((1_000, 0), 716, 10_977_280),
        ((1_000, 3), 5_019, 8_169_926),
    ] {
        let quote = prices.quote(m, s);
        let found = (quote.not_certified.0, quote.certified.0);
        assert_eq!(found, (not, certified), "m {m}, s {s}");
    }
}

#[test]
fn a_spent_retired_or_unreachable_holdout_has_none_left() {
    let mut world = World::with(|policy| policy.sealed_budget = bits(3));
    assert_eq!(world.main().certifications_left(MicroBits::MAX).all, 0);
    world = World::new();
    assert!(world.main().certifications_left(MicroBits::MAX).all > 0);
    assert_eq!(world.main().certifications_left(MicroBits::ZERO).own, 0);
    // A look at a holdout must not cost more because its budget is large.
    let large = World::with(|policy| {
        policy.settlement_prices = Default::default();
        policy.sealed_budget = MAX_BUDGET;
    });
    let left = large.main().certifications_left(MicroBits::MAX);
    assert_eq!(
        (left.all, left.own),
        (MOST_CERTIFICATIONS, MOST_CERTIFICATIONS)
    );
}

#[test]
fn a_certification_that_just_fits_counts() {
    // A right unit is one bit: log2(½/¼). A certification costs eight, and needs four for α = 1/16.
    let left = |units: u64, multiplicity, sealed: u64, own: u64| {
        let mut put = holdout("main", policy(), None);
        let strategy = Strategy::FixedAlternative { p1_micros: 500_000 };
        put.description.null_spec = NullSpec::accuracy(250_000, strategy, None).expect("in range");
        put.description.policy = Policy {
            settlement_prices: SettlementPrices::Fixed { certified_bits: 8 },
            alpha_micros: 62_500,
            multiplicity,
            sealed_budget: bits(sealed),
            ..policy()
        };
        let mut main = World::on(put).main().clone();
        main.description.sealed_units = units;
        let left = main.certifications_left(bits(own));
        (left.all, left.own)
    };
    let each = Multiplicity::Each;
    assert_eq!(left(800, each, 24, 24), (3, 3));
    assert_eq!(left(800, each, 24, 16), (3, 2));
    assert_eq!(left(800, each, 23, 15), (2, 1));
    // Three need 28 units.
    assert_eq!(left(28, each, 64, 64), (3, 3));
    assert_eq!(left(27, each, 64, 64), (2, 2));
    // The first of a rate of false discoveries is held to α/2: a bit more.
    assert_eq!(left(13, Multiplicity::Fdr, 64, 64), (1, 1));
    assert_eq!(left(12, Multiplicity::Fdr, 64, 64), (0, 0));
}

#[test]
fn without_a_fence_and_without_a_question_nobody_has_a_pool() {
    let mut world = World::new();
    let (_, number) = world.admitted(world.terms(submitter(1), "one"), false);
    assert!(world.rows.pools.is_empty());
    world.settle(number, &Script::weak());
    assert!(world.rows.pools.is_empty());
}
