//! The verifier's own statement of every rule against the kernel's, and both against published values.

use std::collections::BTreeMap;

use evidenceos_kernel::{
    bits::MicroBits,
    evidence::{BetTable, Strategy},
    log2,
    price::{self, AnswerPrices, Multiplicity, SettlementPrices},
    score::{self, Classes, Score, SizeClass},
    split,
};
use evidenceos_verify::arithmetic::{
    evidence::{Bets, UnitsOfSize},
    kraft, log2 as own_log2, prices, score as own_score, split as own_split,
};
use proptest::prelude::*;

fn learned(c0_bits: u8) -> SettlementPrices {
    SettlementPrices::Learned { c0_bits }
}

fn both_prices(prices: SettlementPrices, m: u64, s: u64) -> (u64, u64) {
    (
        prices::not_certified(prices, m, s),
        prices::certified(prices, m, s, 0, 0),
    )
}

#[test]
fn published_prices_are_hit() {
    for (m, s, not, certified) in [
        (0, 0, 5_647, 8_000_000),
        (1, 0, 5_603, 8_011_228),
        (1, 1, 16_874, 6_426_265),
        (1_000, 0, 640, 11_139_552),
        (1_000, 3, 4_484, 8_332_197),
    ] {
        assert_eq!(
            both_prices(learned(8), m, s),
            (not, certified),
            "({m}, {s})"
        );
    }
    for (m, s, not, certified) in [
        (0, 0, 93_110, 4_000_000),
        (1, 0, 82_463, 4_169_926),
        (1, 1, 263_035, 2_584_963),
        (2, 2, 415_038, 2_000_000),
        (13, 13, 1_485_427, 637_430),
        (1_000, 0, 716, 10_977_280),
        (1_000, 3, 5_019, 8_169_926),
    ] {
        assert_eq!(
            both_prices(learned(4), m, s),
            (not, certified),
            "({m}, {s})"
        );
    }
    // Three levels at (0, 0): what each costs beyond c.
    let extra = |level| prices::certified(learned(4), 0, 0, 3, level) - 4_000_000;
    assert_eq!([0, 1, 2].map(extra), [1_000_000, 2_584_963, 1_584_963]);
}

#[test]
fn published_sums_of_budgets_come_out() {
    // k + c after so many failures, and what twenty certifications in a row cost.
    for (c0, failures, sum) in [
        (4, 0, 4.0),
        (4, 100, 9.698),
        (4, 1_000, 14.536),
        (4, 10_000, 19.504),
        (8, 0, 8.0),
        (8, 1_000, 12.713),
        (8, 10_000, 17.463),
    ] {
        let k: u64 = (0..failures)
            .map(|m| prices::not_certified(learned(c0), m, 0))
            .sum();
        let bits = (k + prices::certified(learned(c0), failures, 0, 0, 0)) as f64 / 1e6;
        // Prices are rounded up one by one: up to a microbit each.
        let slack = 0.001 + failures as f64 / 1e6;
        assert!((bits - sum).abs() < slack, "c0 {c0}, {failures}: {bits}");
    }
    for (c0, sum) in [(4, 22.756), (8, 83.959)] {
        let all: u64 = (0..20)
            .map(|i| prices::certified(learned(c0), i, i, 0, 0))
            .sum();
        assert!((all as f64 / 1e6 - sum).abs() < 0.001, "c0 {c0}: {all}");
    }
}

#[test]
fn published_evidence_is_hit() {
    let check = |p0, strategy, right, items, log2_e: f64| {
        let bets = Bets::new(p0, strategy).expect("in range");
        let found = bets.log2_e(&[units(1, items, right)]) as f64 / (1u64 << 40) as f64;
        assert!((found - log2_e).abs() < 1e-5, "{right}/{items}: {found}");
    };
    check(500_000, Strategy::Grid, 65, 100, 3.160_201_242_29);
    check(500_000, Strategy::Grid, 600, 1_000, 25.576_335_736_5);
    check(800_000, Strategy::Grid, 870, 1_000, 18.686_100_476_3);
    let against = |p1_micros| Strategy::FixedAlternative { p1_micros };
    check(500_000, against(550_000), 600, 1_000, 21.700_876_871_9);
    check(500_000, against(600_000), 600, 1_000, 29.049_405_545_3);
    check(800_000, against(850_000), 870, 1_000, 22.137_796_981_5);
}

#[test]
fn a_unit_of_several_items_is_never_more_evidence_than_its_mean_item() {
    // 60 units of three items, all right, are as much as 60 items; half-right units are no evidence for a half.
    let bets = Bets::new(500_000, Strategy::Grid).expect("in range");
    assert_eq!(
        bets.evidence(&[units(3, 60, 180)]),
        bets.evidence(&[units(1, 60, 60)])
    );
    assert!(bets.evidence(&[units(2, 60, 60)]) < 0);
}

fn units(size: u64, units: u64, right: u64) -> UnitsOfSize {
    UnitsOfSize { size, units, right }
}

#[test]
fn every_constant_of_every_null_is_the_kernels() {
    for p0 in (1..1_000_000u32)
        .step_by(9_973)
        .chain([1, 500_000, 999_999])
    {
        let mut strategies = vec![Strategy::Grid];
        strategies.extend(
            (p0 + 1..1_000_000)
                .step_by(199_999)
                .map(|p1_micros| Strategy::FixedAlternative { p1_micros }),
        );
        for strategy in strategies {
            let kernels = BetTable::new(p0, strategy).expect("in range");
            let own = Bets::new(p0, strategy).expect("in range");
            let pairs: Vec<(i128, i128)> = kernels
                .bets()
                .iter()
                .map(|bet| (bet.gain.into(), bet.loss.into()))
                .collect();
            let found: Vec<(i128, i128)> =
                own.bets().iter().map(|bet| (bet.gain, bet.loss)).collect();
            assert_eq!(found, pairs, "{p0} {strategy:?}");
            let bytes = kernels.canonical_bytes();
            assert_eq!(own.digest(), evidenceos_kernel::id::Digest::of(&bytes));
        }
    }
    for (p0, p1) in [(0, 1), (1_000_000, 2), (5, 5), (5, 1_000_000)] {
        let strategy = Strategy::FixedAlternative { p1_micros: p1 };
        assert!(Bets::new(p0, strategy).is_none() && BetTable::new(p0, strategy).is_err());
    }
}

#[test]
fn worst_cases_cover_every_state_that_a_run_may_meet() {
    for prices in [
        learned(1),
        learned(4),
        learned(8),
        SettlementPrices::Fixed { certified_bits: 3 },
    ] {
        for (m, s) in [(0, 0), (3, 1), (5, 5), (40, 2)] {
            for ahead in 0..9 {
                for levels in [0, 1, 2, 3, 16, 32] {
                    let own = prices::worst_case(prices, m, s, ahead, levels);
                    assert_eq!(own, prices.worst_case(m, s, ahead, levels).get());
                    let mut dearest = 0;
                    for more in 0..=ahead {
                        for certified in 0..=more {
                            let (m, s) = (m + more, s + certified);
                            dearest = dearest.max(prices::not_certified(prices, m, s));
                            for level in 0..levels.max(1) {
                                let price = prices::certified(prices, m, s, levels, level);
                                dearest = dearest.max(price);
                            }
                        }
                    }
                    assert_eq!(own, dearest, "{prices:?} ({m}, {s}) {ahead} {levels}");
                }
            }
        }
    }
}

#[test]
fn sums_of_masses_are_decided_alike() {
    let agrees = |listed: &[u64]| {
        let table = BTreeMap::from([(
            listed.len() as u32,
            listed.iter().copied().map(MicroBits).collect::<Vec<_>>(),
        )]);
        let kernels = AnswerPrices(table).validate().is_ok();
        assert_eq!(kraft::fits(listed), kernels, "{listed:?}");
        kernels
    };
    assert!(agrees(&[1_000_000, 1_000_000]));
    assert!(!agrees(&[1_000_000, 999_999]));
    assert!(agrees(&[1_000_000, 1_000_001]));
    assert!(agrees(&[1_000_000, 1_000_001, 64_000_000]));
    assert!(!agrees(&[584_000, 1_585_000]));
    assert!(agrees(&[585_000, 1_585_000, 64_000_000]));
    assert!(!agrees(&[0, 64_000_000]));
    for n in [3, 5, 6, 7, 100, 1_000] {
        let price = prices::answer(&AnswerPrices::default(), n, 0).expect("in the alphabet");
        assert!(agrees(&vec![price; n as usize]));
        assert!(!agrees(&vec![price - 1; n as usize]));
    }
}

#[test]
fn sums_a_hair_from_one_are_decided() {
    // So many symbols at 13.600001 + 0.037003·i bits: their masses sum to 1 − 2^−174.7 and 1 + 2^−175.5.
    let below = [
        1026, 1101, 1225, 292, 1052, 903, 857, 960, 536, 675, 735, 529, 317, 752, 1050, 1105, 1145,
        999,
    ];
    let above = [
        1385, 939, 1457, 495, 781, 748, 440, 870, 697, 594, 878, 680, 706, 961, 841, 1139, 1041,
        487,
    ];
    for (counts, fits) in [(below, true), (above, false)] {
        let prices: Vec<u64> = (0..)
            .zip(counts)
            .flat_map(|(i, count)| vec![13_600_001 + 37_003 * i; count])
            .collect();
        assert_eq!(kraft::fits(&prices), fits);
    }
    // Whole bits beyond the first precision.
    assert!(!kraft::fits(&[0, 200_000_000]));
    assert!(kraft::fits(&[1_000_000, 2_000_000, 200_000_000]));
}

#[test]
fn logarithms_a_hair_from_a_whole_number_are_rounded_truly() {
    // p/q approaches √2 from both sides: p² = 2q² − 1 and p² = 2q² + 1 in turn.
    let (mut p, mut q, mut above) = (1u128, 1u128, false);
    while p < 1 << 126 {
        if q > 1 << 21 {
            let half = if above { 500_001 } else { 500_000 };
            assert_eq!(own_log2::microbits_up(p, q), half, "{p}/{q}");
            let down = (1 << 39) - i128::from(!above);
            assert_eq!(own_log2::scaled(p, q, 1 << 40), (down + 1, down), "{p}/{q}");
            let down = -(1 << 39) - i128::from(above);
            assert_eq!(own_log2::scaled(q, p, 1 << 40), (down + 1, down), "{q}/{p}");
        }
        (p, q, above) = (p + 2 * q, p + q, !above);
    }
    for exponent in 0..=127 {
        let (power, bits) = (1u128 << exponent, i128::from(exponent) << 40);
        assert_eq!(own_log2::scaled(power, 1, 1 << 40), (bits, bits));
        assert_eq!(own_log2::scaled(1, power, 1 << 40), (-bits, -bits));
    }
    assert_eq!(own_log2::scaled(24, 3, 10), (30, 30));
    // 2^40·log2(3/2) is 643,173,071,355 and a fraction, also 99 bits lower.
    let down = 643_173_071_355 - (99 << 40);
    let far_below_one = own_log2::scaled(3, 1 << 100, 1 << 40);
    assert_eq!(far_below_one, (down + 1, down));
}

#[test]
fn a_split_its_leaves_and_its_commitment_are_the_kernels() {
    for (items, unit_size, share) in [(1, 1, 0), (10, 1, 200_000), (301, 3, 250_000), (64, 64, 1)] {
        let secret = [items as u8; 32];
        let units: Vec<u64> = (0..items).map(|i| i / unit_size).collect();
        let kernels = split::split(&secret, &units, share);
        let own = own_split::split(&secret, &units, share);
        assert_eq!(own.part, kernels.part_mask);
        assert_eq!(
            (own.answer_units, own.sealed_units),
            (kernels.answer_units, kernels.sealed_units)
        );
        for i in 0..items.min(5) {
            let salt = split::salt(&secret, i);
            assert_eq!(
                own_split::leaf(&secret, i, units[i as usize], 1, 0),
                split::commitment_leaf_bytes(i, units[i as usize], 1, &salt, 0)
            );
        }
        assert_eq!(
            own_split::secret_commitment(&secret).0,
            split::secret_commitment(&secret)
        );
    }
}

proptest! {
    #[test]
    fn logarithms_agree(num in 1u128.., den in 1u128..) {
        for (num, den) in [(num, den), (num >> 64 | 1, den >> 70 | 1), (num | 1, num.saturating_sub(1) | 1)] {
            let (up, down) = own_log2::scaled(num, den, 1 << 40);
            prop_assert_eq!(up, i128::from(log2::log2_fixed40_up(num, den)));
            prop_assert_eq!(down, i128::from(log2::log2_fixed40_down(num, den)));
            let (large, small) = (num.max(den), num.min(den));
            prop_assert_eq!(own_log2::microbits_up(large, small), log2::log2_microbits_up(large, small).get());
        }
    }

    #[test]
    fn prices_thresholds_and_exponents_agree(
        bits in 1u8..=40,
        m in 0u64..100_000_000,
        failures in 0u64..100_000_000,
        levels in 0u8..=32,
        ahead in 0u64..40,
        k in 0u64..1_000_000_000_000,
        alpha in 1u32..1_000_000,
        width in 1u64..=64_000_000,
    ) {
        let s = m.saturating_sub(failures);
        for own in [learned(bits), SettlementPrices::Fixed { certified_bits: bits }] {
            let quote = own.quote(m, s);
            prop_assert_eq!(both_prices(own, m, s), (quote.not_certified.get(), quote.certified.get()));
            for level in 0..levels.max(1) {
                prop_assert_eq!(
                    prices::certified(own, m, s, levels, level),
                    own.level_price(m, s, levels, level).get()
                );
            }
            prop_assert_eq!(
                prices::worst_case(own, m, s, ahead, levels),
                own.worst_case(m, s, ahead, levels).get()
            );
        }
        for mode in [Multiplicity::Each, Multiplicity::Fwer, Multiplicity::Fdr] {
            let divisor = prices::alpha_divisor(mode, s + 1).expect("fits");
            prop_assert_eq!(divisor, mode.divisor(s + 1));
            let threshold = price::threshold(MicroBits(k), MicroBits(failures), alpha, divisor);
            prop_assert_eq!(prices::threshold(k, failures, alpha, divisor), Some(threshold.get()));
            for level in 0..levels.max(1) {
                prop_assert_eq!(
                    prices::released_exponent(alpha, divisor, level, width),
                    price::released_log2(alpha, divisor, level, MicroBits(width))
                );
            }
            for surplus in [-1, 0, 1, width as i64 - 1, width as i64, failures as i64] {
                let evidence = threshold.get() as i64 + surplus;
                prop_assert_eq!(
                    prices::level_reached(evidence.into(), threshold.get(), width, levels),
                    price::level_reached(evidence, threshold, MicroBits(width), levels)
                );
            }
        }
    }

    #[test]
    fn answers_and_scores_agree(
        items in 1usize..400,
        seed in any::<u64>(),
        n_symbols in 2u32..300,
        unit_size in 1usize..5,
        p0 in 1u32..1_000_000,
    ) {
        let mut state = seed | 1;
        let mut bit = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as u8 & 1
        };
        let vector: Vec<u8> = (0..items).map(|_| bit()).collect();
        let labels: Vec<u8> = (0..items).map(|_| bit()).collect();
        let units: Vec<u64> = (0..items).map(|i| (i / unit_size) as u64).collect();
        let parts = split::split(&[seed as u8; 32], &units, 300_000);
        let (mask, answer_items) = (&parts.part_mask, parts.answer_items);
        prop_assert_eq!(
            own_score::answer(&vector, &labels, mask, n_symbols),
            score::answer(&vector, &labels, mask, n_symbols, answer_items)
        );
        let kernels = Classes::new(&units, mask).expect("few sizes").score(&vector, &labels, mask);
        let own = own_score::sealed(&vector, &labels, mask, &units);
        let same: Vec<SizeClass> = own
            .iter()
            .map(|class| SizeClass { size: class.size, units: class.units, right: class.right })
            .collect();
        prop_assert_eq!(&kernels, &Score { classes: same });
        let table = BetTable::new(p0, Strategy::Grid).expect("in range");
        let bets = Bets::new(p0, Strategy::Grid).expect("in range");
        prop_assert_eq!(bets.evidence(&own), i128::from(table.evidence_of(&kernels)));
        let threshold = bets.most(parts.sealed_units);
        for beyond in [-1, 0, 1] {
            let Ok(threshold) = u64::try_from(threshold + beyond) else { continue };
            prop_assert_eq!(
                bets.most(parts.sealed_units) >= i128::from(threshold),
                table.can_reach(parts.sealed_units, MicroBits(threshold))
            );
        }
    }

    #[test]
    fn masses_of_any_prices_are_decided_alike(listed in prop::collection::vec(0u64..4_000_000, 2..12)) {
        let table = BTreeMap::from([(
            listed.len() as u32,
            listed.iter().copied().map(MicroBits).collect::<Vec<_>>(),
        )]);
        prop_assert_eq!(kraft::fits(&listed), AnswerPrices(table).validate().is_ok());
    }
}

#[test]
fn a_symbol_outside_of_its_alphabet_has_no_price() {
    let unlisted = AnswerPrices::default();
    for (n_symbols, symbol, priced) in [
        (2, 0, Some(1_000_000)),
        (2, 1, Some(1_000_000)),
        (2, 2, None),
        (4, 3, Some(2_000_000)),
        (4, 4, None),
        (1, 0, None),
        (65_536, 65_535, Some(16_000_000)),
        (65_537, 0, None),
    ] {
        assert_eq!(
            prices::answer(&unlisted, n_symbols, symbol),
            priced,
            "{n_symbols} {symbol}"
        );
    }
}
