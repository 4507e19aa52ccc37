//! Long streams of claims that are no better than chance.
//!
//! Until one of its claims is certified, a stream is the same in every run. So it is played through
//! `decide` once, and at each claim `decide` is also asked what evidence just at the bar would come
//! to, and one unit less: the first must certify, the second must not. What a run adds is luck
//! alone: which claim, if any, is the first to reach its bar.

use evidenceos_kernel::{
    claim::Outcome, evidence::Strategy, holdout::Policy, null::NullSpec, planner::binomial_tail,
    price::SettlementPrices, record::Ledger,
};

use super::{
    odds::{Coins, assert_broken, assert_holds},
    scored,
};
use crate::world::{World, bits, holdout, submitter};

const FIXED: SettlementPrices = SettlementPrices::Fixed { certified_bits: 8 };
const LEARNED: SettlementPrices = SettlementPrices::Learned { c0_bits: 8 };
const DEFAULT: SettlementPrices = SettlementPrices::Learned { c0_bits: 4 };

/// One number from the coins decides a run, so that many are cheap. Tight streams need them: their
/// chance is just below α.
const RUNS: u64 = 1_000_000;

/// What is claimed about: sealed units and the bet against chance.
#[derive(Clone, Copy)]
struct Units {
    units: u64,
    p1_micros: u32,
}

/// A unit more or less is 115 microbits of evidence: near enough to "just at the bar".
const FINE: Units = Units {
    units: 1_000_000,
    p1_micros: 500_020,
};
/// The published example.
const COINS: Units = Units {
    units: 200,
    p1_micros: 600_000,
};

fn world(prices: SettlementPrices, Units { units, p1_micros }: Units) -> World {
    let policy = Policy {
        answer_share_micros: 0,
        settlement_prices: prices,
        ..Policy::with_sealed_budget(bits(1_000_000))
    };
    let mut put = holdout("nothing is known of it", policy, None);
    let bet = Strategy::FixedAlternative { p1_micros };
    put.description.null_spec = NullSpec::accuracy(500_000, bet, None).expect("a chance");
    for count in [
        &mut put.description.items,
        &mut put.description.units,
        &mut put.description.sealed_items,
        &mut put.description.sealed_units,
    ] {
        *count = units;
    }
    World::on(put)
}

fn admit(world: &mut World, n: u64) -> u64 {
    // A day's credit of one name does not last for the longest stream.
    let owner = submitter(1 + (n % 200) as u8);
    world.admitted(world.terms(owner, &n.to_string()), false).1
}

/// Lets the oldest run fail. Its ledger, and the least count of right units that would have been
/// certified.
fn fail(world: &mut World, number: u64, units: u64) -> (Ledger, u64) {
    let would_be = |right| world.would_settle_as(number, scored(units, right));
    let threshold = would_be(0).threshold;
    let null_spec = &world.main().description.null_spec;
    let fewest = null_spec.fewest_right(units, threshold).expect("in reach");
    assert_eq!(would_be(fewest).outcome, Outcome::Certified);
    assert_eq!(would_be(fewest - 1).outcome, Outcome::NotCertified);
    let failed = world.settle_as(number, scored(units, 0));
    assert_eq!(failed.outcome, Outcome::NotCertified);
    assert_eq!(failed.ledger.threshold, threshold);
    (failed.ledger, fewest)
}

fn stream(prices: SettlementPrices, units: Units, claims: u64) -> Vec<(Ledger, u64)> {
    let mut world = world(prices, units);
    (0..claims)
        .map(|n| {
            let number = admit(&mut world, n);
            fail(&mut world, number, units.units)
        })
        .collect()
}

/// What a server takes into the threshold.
#[derive(Clone, Copy, Debug)]
enum Rule {
    Real,
    WithoutOwnPrice,
    FrozenLedger,
}

/// The chances of claims with the tight e-variable: equal to the bar with the probability that
/// Markov's inequality allows, else 0.
fn tight(stream: &[(Ledger, u64)], rule: Rule) -> Vec<f64> {
    let bar = |ledger: &Ledger| {
        let left_out = match rule {
            Rule::Real => 0,
            Rule::WithoutOwnPrice => ledger.c.get(),
            Rule::FrozenLedger => ledger.k.get(),
        };
        ledger.threshold.get() - left_out
    };
    stream
        .iter()
        .map(|(ledger, _)| (-(bar(ledger) as f64) / 1e6).exp2())
        .collect()
}

/// How the events "claim i reaches its bar" lie to one another.
#[derive(Clone, Copy, Debug)]
enum Luck {
    /// Claims about different things.
    Independent,
    /// The submitter spreads the claims over what may be true, so that no luck is used twice.
    Disjoint,
}

/// The chance that one of the claims up to each is certified.
fn so_far(chances: &[f64], luck: Luck) -> Vec<f64> {
    let after = |any: f64, chance: f64| match luck {
        Luck::Independent => any + (1.0 - any) * chance,
        Luck::Disjoint => any + chance,
    };
    let mut any = 0.0;
    chances
        .iter()
        .map(|&chance| {
            any = after(any, chance);
            any
        })
        .collect()
}

/// How many of so many streams see a certification.
fn certified(chances: &[f64], luck: Luck, runs: u64) -> u64 {
    let so_far = so_far(chances, luck);
    let mut coins = Coins(1);
    let is_certified = |_: &u64| {
        let drawn = coins.unit();
        let first = so_far.partition_point(|&any| any <= drawn);
        first < so_far.len()
    };
    (0..runs).filter(is_certified).count() as u64
}

/// Checks a stream against its published chance, in per cent, exactly and in runs.
fn assert_published(chances: &[f64], luck: Luck, percent: f64, within: f64) -> u64 {
    let exact = 100.0 * so_far(chances, luck).last().expect("a claim");
    assert!(
        (exact - percent).abs() < within,
        "{luck:?}: {exact} %, not {percent} %"
    );
    let certified = certified(chances, luck, RUNS);
    let seen = 100.0 * certified as f64 / RUNS as f64;
    let deviation = (percent * (100.0 - percent) / RUNS as f64).sqrt();
    assert!(
        (seen - percent).abs() < within + 4.0 * deviation,
        "{luck:?}: seen {seen} %, not {percent} %"
    );
    certified
}

#[test]
fn a_stream_of_tight_nulls_stays_below_alpha() {
    let fixed = stream(FIXED, FINE, 600);
    let learned = stream(LEARNED, FINE, 600);
    let default = stream(DEFAULT, FINE, 10_000);
    for (stream, luck, percent) in [
        (fixed.as_slice(), Luck::Independent, 4.422),
        (&learned, Luck::Independent, 2.867),
        (&default[..600], Luck::Independent, 4.358),
        (&default[..600], Luck::Disjoint, 4.453),
        (&default, Luck::Independent, 4.751),
        (&default, Luck::Disjoint, 4.865),
    ] {
        let chances = tight(stream, Rule::Real);
        let certified = assert_published(&chances, luck, percent, 1e-3);
        let what = format!("{} null claims, {luck:?}", stream.len());
        assert_holds(certified, RUNS, &what);
    }
    for (stream, rule, percent) in [
        (fixed.as_slice(), Rule::WithoutOwnPrice, 99.999),
        (&fixed, Rule::FrozenLedger, 11.059),
        (&default[..600], Rule::FrozenLedger, 10.406),
    ] {
        let chances = tight(stream, rule);
        let certified = assert_published(&chances, Luck::Independent, percent, 1e-3);
        assert_broken(certified, RUNS, &format!("{rule:?}"));
    }
}

#[test]
fn six_hundred_claims_about_fair_coins_have_the_published_chances() {
    let stream = stream(FIXED, COINS, 600);
    let by_luck = |fewest| binomial_tail(COINS.units, 0.5, fewest);
    let real: Vec<f64> = stream.iter().map(|(_, fewest)| by_luck(*fewest)).collect();
    let certified = assert_published(&real, Luck::Independent, 0.06652, 5e-6);
    assert_holds(certified, RUNS, "claims about fair coins");

    let world = world(FIXED, COINS);
    let null_spec = &world.main().description.null_spec;
    let without_c: Vec<f64> = stream
        .iter()
        .map(|(ledger, _)| {
            let bar = ledger.threshold.saturating_sub(ledger.c);
            by_luck(null_spec.fewest_right(COINS.units, bar).expect("in reach"))
        })
        .collect();
    let certified = assert_published(&without_c, Luck::Independent, 77.949, 5e-4);
    assert_broken(certified, RUNS, "no c");
}

#[test]
fn claims_that_are_under_way_together_meet_the_bars_of_claims_one_by_one() {
    for prices in [FIXED, DEFAULT] {
        let mut world = world(prices, COINS);
        let numbers: Vec<u64> = (0..300).map(|n| admit(&mut world, n)).collect();
        let together: Vec<_> = numbers
            .into_iter()
            .map(|number| fail(&mut world, number, COINS.units))
            .collect();
        assert_eq!(together, stream(prices, COINS, 300), "{prices:?}");
    }
}
