//! The evidence against published values and exact error rates. Floats only check here; they decide nothing.
#![allow(
    clippy::float_arithmetic,
    reason = "floats judge the integers here, they decide nothing"
)]

use super::*;
use crate::price::{SettlementPrices, threshold};
use crate::score::SizeClass;

const ALPHA: u32 = 50_000;

fn table(p0_micros: u32, strategy: Strategy) -> BetTable {
    BetTable::new(p0_micros, strategy).expect("in range")
}

fn alternative(p0_micros: u32, p1_micros: u32) -> BetTable {
    table(p0_micros, Strategy::FixedAlternative { p1_micros })
}

/// P(Bin(n, ½) ≥ least), summed from the logarithms of the terms.
fn coin_tail(n: u64, least: u64) -> f64 {
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for s in 0..=n {
        if s >= least {
            tail += log_term.exp();
        }
        log_term += ((n - s) as f64).ln() - ((s + 1) as f64).ln();
    }
    tail
}

#[test]
fn evidence_has_the_published_values() {
    let check = |table: &BetTable, right, items, log2: f64| {
        let ours = table.log2_fixed40(right, items) as f64 / (1u64 << 40) as f64;
        assert!(
            (ours - log2).abs() < 1e-5,
            "{right}/{items}: {ours}, not {log2}"
        );
        assert!(ours <= log2 + 1e-10, "{right}/{items} is rounded up");
        let microbits = table.evidence_microbits(right, items) as f64;
        assert!((microbits / 1e6 - log2).abs() < 1e-5);
    };
    let grid = |p0| table(p0, Strategy::Grid);
    check(&grid(500_000), 65, 100, 3.16020124229);
    check(&grid(500_000), 600, 1_000, 25.5763357365);
    check(&grid(800_000), 870, 1_000, 18.6861004763);
    check(&alternative(500_000, 550_000), 600, 1_000, 21.7008768719);
    check(&alternative(500_000, 600_000), 600, 1_000, 29.0494055453);
    check(&alternative(800_000, 850_000), 870, 1_000, 22.1377969815);
}

#[test]
fn the_e_variables_have_expectation_at_most_one_under_the_null() {
    for (p0, table) in [
        (0.5, table(500_000, Strategy::Grid)),
        (0.9, table(900_000, Strategy::Grid)),
        (0.5, alternative(500_000, 600_000)),
    ] {
        let n = 60u64;
        let mut chance = (1.0f64 - p0).powi(n as i32);
        let mut expectation = 0.0;
        for s in 0..=n {
            let log2 = table.evidence_microbits(s, n) as f64 / 1e6;
            expectation += chance * log2.exp2();
            chance *= (n - s) as f64 / (s + 1) as f64 * p0 / (1.0 - p0);
        }
        assert!(expectation <= 1.0 + 1e-9, "p0 {p0}: {expectation}");
    }
}

#[test]
fn a_null_spec_outside_its_range_is_refused() {
    for p0_micros in [0, 1_000_000, u32::MAX] {
        assert_eq!(
            BetTable::new(p0_micros, Strategy::Grid),
            Err(EvidenceError::NullChance { p0_micros })
        );
    }
    let p0_micros = 500_000;
    for p1_micros in [0, 500_000, 1_000_000] {
        assert_eq!(
            BetTable::new(p0_micros, Strategy::FixedAlternative { p1_micros }),
            Err(EvidenceError::Alternative {
                p0_micros,
                p1_micros
            })
        );
    }
    for p0_micros in [1, 999_999] {
        let extreme = table(p0_micros, Strategy::Grid);
        assert_eq!(extreme.bets().len(), GRID_BETS as usize);
        assert!(
            extreme
                .bets()
                .iter()
                .all(|bet| bet.gain >= 0 && bet.loss > 0)
        );
    }
}

#[test]
fn the_fewest_right_reach_the_threshold_and_one_less_does_not() {
    for table in [
        table(500_000, Strategy::Grid),
        alternative(500_000, 600_000),
    ] {
        for items in [0, 1, 30, 200, 1_000, 1_000_000] {
            for bits in [0, 1, 12, 60] {
                let bar = MicroBits::from_bits(bits);
                let certifies = |right| table.evidence_microbits(right, items) >= bar.get() as i64;
                match table.fewest_right(items, bar) {
                    Some(0) => assert!(certifies(0)),
                    Some(right) => assert!(certifies(right) && !certifies(right - 1)),
                    None => assert!(!certifies(items)),
                }
            }
        }
    }
    let grid = table(500_000, Strategy::Grid);
    assert_eq!(grid.fewest_right(1_000, MicroBits::MAX), None);
}

#[test]
fn evidence_does_not_overflow_at_any_count() {
    let grid = table(1, Strategy::Grid);
    assert_eq!(grid.evidence_microbits(u64::MAX, u64::MAX), i64::MAX);
    assert_eq!(grid.evidence_microbits(0, u64::MAX), i64::MIN);
}

#[test]
fn the_constants_have_one_canonical_form() {
    let fair = alternative(500_000, 750_000);
    let bytes = fair.canonical_bytes();
    assert_eq!(
        String::from_utf8_lossy(&bytes),
        r#"{"bets":[{"gain":643173071355,"loss":1099511627776}],"penalty":0,"units_per_bit":1099511627776}"#
    );
    assert!(crate::cj::parse(&table(1, Strategy::Grid).canonical_bytes(), 4_096).is_ok());
}

/// The chance that a stream of fair-coin claims without questions gets a first certification, which is false.
fn false_first_certification(claims: u64, prices: SettlementPrices, own_price: bool) -> f64 {
    let table = alternative(500_000, 600_000);
    let mut k = MicroBits::ZERO;
    let mut none_so_far = 1.0;
    for m in 0..claims {
        let quote = prices.quote(m, 0);
        let c = if own_price {
            quote.certified
        } else {
            MicroBits::ZERO
        };
        let bar = threshold(k, c, ALPHA, 1);
        k = k.saturating_add(quote.not_certified);
        let certified = table.fewest_right(200, bar);
        none_so_far *= 1.0 - certified.map_or(0.0, |least| coin_tail(200, least));
    }
    1.0 - none_so_far
}

#[test]
fn six_hundred_null_claims_are_harmless_only_if_settlements_are_priced() {
    let check = |prices, own_price, percent: f64, within: f64| {
        let ours = 100.0 * false_first_certification(600, prices, own_price);
        assert!((ours - percent).abs() < within, "{ours} %, not {percent} %");
    };
    let fixed = SettlementPrices::Fixed { certified_bits: 8 };
    check(fixed, false, 77.949, 5e-4);
    check(fixed, true, 0.06652, 5e-6);
    let learned = SettlementPrices::default();
    assert!(false_first_certification(600, learned, true) < 0.05);
}

#[test]
fn the_best_of_many_coins_passes_a_threshold_that_forgets_the_choice() {
    let check = |k: u64, forgotten: f64, charged: f64| {
        let table = alternative(500_000, 550_000);
        let best_passes = |paid| {
            let bar = threshold(MicroBits::from_bits(paid), MicroBits::ZERO, ALPHA, 1);
            let one = coin_tail(1_000, table.fewest_right(1_000, bar).expect("certifiable"));
            100.0 * -((1u64 << k) as f64 * (-one).ln_1p()).exp_m1()
        };
        assert!(
            (best_passes(0) - forgotten).abs() < 5e-4,
            "k {k}: {}",
            best_passes(0)
        );
        assert!(
            (best_passes(k) - charged).abs() < 5e-5,
            "k {k}: {}",
            best_passes(k)
        );
    };
    check(4, 9.504, 0.5646);
    check(8, 79.766, 0.2441);
    check(10, 99.832, 0.1206);
}

/// With an e-variable that wastes nothing the guarantee is nearly used up: this test would notice a server that
/// forgot half of k.
#[test]
fn a_tight_e_variable_nearly_attains_the_bound() {
    let attained = |prices: SettlementPrices, counts_own: bool| {
        let mut k = 0.0;
        let mut none_so_far = 1.0;
        for m in 0..600 {
            let quote = prices.quote(m, 0);
            let c = if counts_own {
                quote.certified.get() as f64
            } else {
                0.0
            };
            let charged = if counts_own { k } else { 0.0 };
            none_so_far *= 1.0 - 0.05 * (-(charged + c) / 1e6).exp2();
            k += quote.not_certified.get() as f64;
        }
        100.0 * (1.0 - none_so_far)
    };
    let fixed = SettlementPrices::Fixed { certified_bits: 8 };
    assert!(
        (attained(fixed, true) - 4.422).abs() < 5e-4,
        "{}",
        attained(fixed, true)
    );
    for (c0_bits, wanted) in [(8, 2.87), (4, 4.358)] {
        let learned = attained(SettlementPrices::Learned { c0_bits }, true);
        assert!((learned - wanted).abs() < 5e-3, "{c0_bits}: {learned}");
    }
    assert!(attained(fixed, false) >= 99.99);
}

fn score(classes: &[(u64, u64, u64)]) -> Score {
    let class = |&(size, units, right)| SizeClass { size, units, right };
    Score {
        classes: classes.iter().map(class).collect(),
    }
}

#[test]
fn units_of_one_item_count_like_items_and_copies_of_an_item_buy_nothing() {
    for table in [
        table(500_000, Strategy::Grid),
        alternative(800_000, 850_000),
    ] {
        for (right, units) in [(0, 7), (65, 100), (870, 1_000)] {
            let alone = table.evidence_microbits(right, units);
            assert_eq!(table.evidence_of(&score(&[(1, units, right)])), alone);
            assert_eq!(table.evidence_of(&score(&[(9, units, 9 * right)])), alone);
        }
    }
}

#[test]
fn a_unit_that_is_half_right_counts_less_than_its_mean_would_allow() {
    let (p0, n) = (0.5, 200.0);
    let table = table(500_000, Strategy::Grid);
    // 200 units of ten items, seven right in each: the e-variable of the means themselves.
    let of_means = (0..8)
        .map(|g| n * (1.0 + 0.9 * 0.5f64.powi(g) / p0 * (0.7 - p0)).log2() - 3.0)
        .fold(f64::MIN, f64::max);
    let ours = table.evidence_of(&score(&[(10, 200, 1_400)])) as f64 / 1e6;
    assert!(ours <= of_means && ours > 0.0, "{ours}, {of_means}");
}

#[test]
fn units_of_mixed_sizes_are_added_up_in_units_not_items() {
    let table = table(500_000, Strategy::Grid);
    let mixed = table.evidence_of(&score(&[(1, 50, 40), (4, 50, 160)]));
    let same = table.evidence_microbits(80, 100);
    assert!((mixed - same).abs() <= 1, "{mixed}, {same}");
    assert!(table.can_reach(100, MicroBits::from_bits(80)));
    assert!(!table.can_reach(100, MicroBits::from_bits(100)));
}
