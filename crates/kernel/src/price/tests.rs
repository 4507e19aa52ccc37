//! Tables and brute force for the prices.
#![allow(
    clippy::float_arithmetic,
    reason = "floats judge the integers here, they decide nothing"
)]

use super::*;

const LEARNED: SettlementPrices = SettlementPrices::Learned { c0_bits: 8 };
const FIXED: SettlementPrices = SettlementPrices::Fixed { certified_bits: 8 };

#[test]
fn learned_prices_are_those_of_the_specification() {
    let check = |settled, certified, not, yes| {
        let quote = LEARNED.quote(settled, certified);
        assert_eq!(
            quote.not_certified,
            MicroBits(not),
            "({settled}, {certified})"
        );
        assert_eq!(quote.certified, MicroBits(yes), "({settled}, {certified})");
    };
    check(0, 0, 5_647, 8_000_000);
    check(1, 0, 5_603, 8_011_228);
    check(1, 1, 16_874, 6_426_265);
    check(1_000, 0, 640, 11_139_552);
    check(1_000, 3, 4_484, 8_332_197);
}

#[test]
fn failures_raise_the_bar_logarithmically_when_learned_and_linearly_when_fixed() {
    let check = |prices: SettlementPrices, failures, bits: f64, within: f64| {
        let k: MicroBits = (0..failures)
            .map(|m| prices.quote(m, 0).not_certified)
            .sum();
        let bar = k.saturating_add(prices.quote(failures, 0).certified);
        let shown = bar.get() as f64 / 1e6;
        assert!((shown - bits).abs() < within, "{failures}: {shown}");
    };
    check(LEARNED, 0, 8.0, 1e-9);
    check(LEARNED, 1_000, 12.71, 0.005);
    check(LEARNED, 10_000, 17.5, 0.05);
    check(FIXED, 1_000, 13.65, 0.005);
    check(FIXED, 10_000, 64.5, 0.05);
}

#[test]
fn level_masses_stay_within_the_mass_of_certified() {
    for levels in 1..=20 {
        for (m, s) in [(0, 0), (7, 3), (100, 100)] {
            let mass: f64 = (0..levels)
                .map(|level| {
                    (-(LEARNED.level_price(m, s, levels, level).get() as f64) / 1e6).exp2()
                })
                .sum();
            let whole = (-(LEARNED.quote(m, s).certified.get() as f64) / 1e6).exp2();
            assert!(
                mass <= whole * (1.0 + 1e-6),
                "{levels} levels at ({m}, {s})"
            );
            assert!(
                mass >= whole * (1.0 - 1e-4),
                "{levels} levels at ({m}, {s})"
            );
        }
    }
    let check = |levels, level, price| {
        assert_eq!(FIXED.level_price(0, 0, levels, level), MicroBits(price));
    };
    check(0, 0, 8_000_000);
    check(1, 0, 8_000_000);
    check(2, 0, 9_000_000);
    check(2, 1, 9_000_000);
    check(4, 0, 9_000_000);
    check(4, 1, 10_584_963);
    check(4, 2, 11_584_963);
    check(4, 3, 10_000_000);
}

/// The dearest settlement that a run can meet, by trying each one.
fn dearest_reachable(
    prices: SettlementPrices,
    m: u64,
    s: u64,
    ahead: u64,
    levels: u8,
) -> MicroBits {
    let mut dearest = MicroBits::ZERO;
    for more in 0..=ahead {
        for certified in s..=s + more {
            dearest = dearest.max(prices.quote(m + more, certified).not_certified);
            for level in 0..levels.max(1) {
                dearest = dearest.max(prices.level_price(m + more, certified, levels, level));
            }
        }
    }
    dearest
}

#[test]
fn the_worst_case_is_the_dearest_reachable_settlement() {
    let kinds = [
        SettlementPrices::Learned { c0_bits: 1 },
        SettlementPrices::Learned { c0_bits: 3 },
        SettlementPrices::Fixed { certified_bits: 1 },
        SettlementPrices::Fixed { certified_bits: 8 },
    ];
    for prices in kinds {
        for m in 0..7 {
            for s in 0..=m {
                for ahead in 0..5 {
                    for levels in [0, 1, 2, 3, 5] {
                        assert_eq!(
                            prices.worst_case(m, s, ahead, levels),
                            dearest_reachable(prices, m, s, ahead, levels),
                            "{prices:?} m {m} s {s} ahead {ahead} levels {levels}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn where_most_settle_certified_the_failure_is_the_dear_one() {
    let quote = SettlementPrices::Learned { c0_bits: 1 }.quote(100, 100);
    assert!(quote.not_certified > quote.certified);
}

#[test]
fn settlement_bits_outside_1_to_40_are_refused() {
    for bits in [0, 41, u8::MAX] {
        let refused = Err(PriceError::CertifiedBits { bits });
        assert_eq!(
            SettlementPrices::Learned { c0_bits: bits }.validate(),
            refused
        );
        let fixed = SettlementPrices::Fixed {
            certified_bits: bits,
        };
        assert_eq!(fixed.validate(), refused);
    }
    assert_eq!(SettlementPrices::default().validate(), Ok(()));
}

fn listed(n_symbols: u32, microbits: &[u64]) -> AnswerPrices {
    let prices = microbits.iter().copied().map(MicroBits).collect();
    AnswerPrices(BTreeMap::from([(n_symbols, prices)]))
}

#[test]
fn an_alphabet_that_is_not_listed_is_uniform() {
    let prices = listed(2, &[500_000, 2_000_000]);
    assert_eq!(prices.price(3, 2), Ok(MicroBits(1_584_963)));
    assert_eq!(prices.dearest(4), Ok(MicroBits(2_000_000)));
    assert_eq!(prices.price(2, 0), Ok(MicroBits(500_000)));
    assert_eq!(prices.dearest(2), Ok(MicroBits(2_000_000)));
    // One symbol beyond a list, and one beyond an alphabet without a list.
    for (n_symbols, symbol) in [(2, 2), (3, 3)] {
        assert_eq!(
            prices.price(n_symbols, symbol),
            Err(PriceError::Symbol { n_symbols, symbol })
        );
    }
    for n_symbols in [0, 1, MAX_SYMBOLS + 1] {
        assert_eq!(
            prices.dearest(n_symbols),
            Err(PriceError::Alphabet { n_symbols })
        );
    }
}

#[test]
fn a_price_list_is_refused_for_the_rule_it_breaks() {
    let n_symbols = 2;
    let check = |prices: AnswerPrices, refusal| assert_eq!(prices.validate(), refusal);
    check(AnswerPrices::default(), Ok(()));
    check(listed(2, &[1_000_000, 1_000_000]), Ok(()));
    check(listed(2, &[1_000_000, 64_000_000]), Ok(()));
    let most = listed(MAX_SYMBOLS, &[16_000_000; MAX_LISTED_PRICES]);
    check(most, Ok(()));
    check(
        listed(2, &[1_000_000]),
        Err(PriceError::Length {
            n_symbols,
            listed: 1,
        }),
    );
    check(listed(1, &[0]), Err(PriceError::Alphabet { n_symbols: 1 }));
    check(
        listed(2, &[999_999, 1_000_000]),
        Err(PriceError::Kraft { n_symbols }),
    );
    check(
        listed(2, &[1_000_000, 64_000_001]),
        Err(PriceError::TooDear {
            n_symbols,
            price: MicroBits(64_000_001),
        }),
    );
    let mut many = listed(40_000, &[16_000_000; 40_000]);
    many.0.insert(30_000, vec![MicroBits(16_000_000); 30_000]);
    check(many, Err(PriceError::TooMany { listed: 70_000 }));
}

#[test]
fn a_mode_divides_alpha_as_it_says() {
    let check = |mode: Multiplicity, ordinal, divisor| assert_eq!(mode.divisor(ordinal), divisor);
    check(Multiplicity::Each, 9, 1);
    check(Multiplicity::Fwer, 1, 2);
    check(Multiplicity::Fwer, 3, 12);
    check(Multiplicity::Fdr, 1, 2);
    check(Multiplicity::Fdr, 3, 4);
    check(Multiplicity::Fwer, u64::MAX, u64::MAX);
    for mode in [Multiplicity::Each, Multiplicity::Fwer, Multiplicity::Fdr] {
        assert_eq!(Multiplicity::parse(mode.as_str()), Some(mode));
    }
    assert_eq!(Multiplicity::parse("none"), None);
}

#[test]
fn the_threshold_adds_what_was_charged_its_own_price_and_alpha() {
    let (k, c) = (MicroBits(4_000_000), MicroBits(8_000_000));
    let check = |alpha, divisor, microbits| {
        assert_eq!(threshold(k, c, alpha, divisor), MicroBits(microbits));
    };
    check(50_000, 1, 16_321_929);
    check(50_000, 2, 17_321_929);
    check(1_000_000, 1, 12_000_000);
    check(1, 1, 31_931_569);
    assert_eq!(threshold(MicroBits::MAX, c, 50_000, 1), MicroBits::MAX);
}

#[test]
fn the_released_e_value_is_rounded_down_twice() {
    let check = |alpha, divisor, level, width, bits| {
        assert_eq!(released_log2(alpha, divisor, level, MicroBits(width)), bits);
    };
    check(50_000, 1, 0, 1_000_000, 4);
    check(50_000, 1, 3, 1_000_000, 7);
    check(50_000, 2, 3, 500_000, 6);
    check(62_500, 1, 0, 0, 4);
    // 1/.13 is 7.69: to round it to 8 would release a bit too much.
    check(130_000, 1, 0, 0, 2);
    check(1_000_000, 1, 0, 0, 0);
}

#[test]
fn a_level_is_reached_with_its_full_width() {
    let bar = MicroBits(10_000_000);
    let check = |evidence, width, levels, level| {
        assert_eq!(
            level_reached(evidence, bar, MicroBits(width), levels),
            level
        );
    };
    check(-1, 1_000_000, 0, None);
    check(9_999_999, 1_000_000, 4, None);
    check(10_000_000, 1_000_000, 4, Some(0));
    check(10_999_999, 1_000_000, 4, Some(0));
    check(11_000_000, 1_000_000, 4, Some(1));
    check(99_000_000, 1_000_000, 4, Some(3));
    check(99_000_000, 1_000_000, 0, Some(0));
    check(10_000_000, 0, 4, Some(3));
}

#[test]
fn with_nobody_ahead_the_worst_case_is_the_dearer_outcome() {
    for c0_bits in [1, 4, 8] {
        let prices = SettlementPrices::Learned { c0_bits };
        for settled in 0..40 {
            for certified in 0..=settled {
                let quote = prices.quote(settled, certified);
                let dearer = quote.certified.max(quote.not_certified);
                let worst = prices.worst_case(settled, certified, 0, 0);
                assert_eq!(worst, dearer, "c0 {c0_bits}, m {settled}, s {certified}");
            }
        }
    }
}
