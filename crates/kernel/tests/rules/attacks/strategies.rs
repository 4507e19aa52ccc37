//! The best that any short strategy can do, by a dynamic programme.

use evidenceos_kernel::{
    bits::MicroBits,
    price::{SettlementPrices, threshold},
};

use super::odds::ALPHA;

const ALPHA_MICROS: u32 = 50_000;

/// How much of what was charged a server remembers, in millionths.
type Memory = u64;

/// The largest chance, in points of 2^14, of a false first certification that any strategy of `depth` steps
/// attains: a dynamic programme.
///
/// At every node the strategy either asks, with one of the questions, or has a claim judged whose e-variable
/// is tight. The points on which claims certify are disjoint and, as long as they are fewer than there are
/// points, never in one another's way; so the points that are left need not be part of the state.
fn best_strategy(prices: SettlementPrices, memory: Memory, k: u64, m: u64, depth: u32) -> u64 {
    if depth == 0 {
        return 0;
    }
    const POINTS: u128 = 1 << 14;
    let quote = prices.quote(m, 0);
    let remembered = MicroBits(k * memory / 1_000_000);
    let bar = threshold(remembered, quote.certified, ALPHA_MICROS, 1);
    let points = (POINTS as f64 * (-(bar.get() as f64) / 1e6).exp2()) as u64;
    let after = |charge: u64, m| best_strategy(prices, memory, k + charge, m, depth - 1);
    let judged = points + after(quote.not_certified.get(), m + 1);
    // Symbols of the same part, charged: a coin, a skewed coin, four equal symbols.
    let coin = 2 * after(1_000_000, m);
    let skewed = after(415_038, m) + after(2_000_000, m);
    let four = 4 * after(2_000_000, m);
    judged.max(coin).max(skewed).max(four)
}

#[test]
fn no_strategy_of_six_steps_beats_alpha_and_forgetting_half_of_k_loses() {
    let allowed = (ALPHA * f64::from(1 << 14)) as u64;
    for prices in [
        SettlementPrices::Learned { c0_bits: 8 },
        SettlementPrices::default(),
        SettlementPrices::Fixed { certified_bits: 1 },
        SettlementPrices::Learned { c0_bits: 1 },
    ] {
        let best = best_strategy(prices, 1_000_000, 0, 0, 6);
        assert!(best <= allowed, "{prices:?}: {best} points of {allowed}");
    }
    let one_bit = SettlementPrices::Fixed { certified_bits: 1 };
    for forgetful in [0, 500_000] {
        let best = best_strategy(one_bit, forgetful, 0, 0, 6);
        assert!(
            best > allowed,
            "memory {forgetful}: {best} points of {allowed}"
        );
    }
}
