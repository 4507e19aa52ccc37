//! Attacks on the guarantee, against the real rule and against servers that forget a part of it.
//!
//! The guarantee is about the worst strategy, so each test plays one that is good, on a holdout of which
//! nothing is known: every certification is then false. The real rule must keep the chance of a false first
//! certification below α; the mutant of the rule that the attack is aimed at must not, or the attack would
//! prove nothing. Runs are counted from a fixed seed; "below α" means the 99 % upper confidence bound.
#![allow(
    clippy::float_arithmetic,
    reason = "floats judge the integers here, they decide nothing"
)]

use evidenceos_kernel::bits::MicroBits;
use evidenceos_kernel::evidence::{BetTable, Strategy};
use evidenceos_kernel::planner::binomial_tail;
use evidenceos_kernel::price::{AnswerPrices, SettlementPrices, threshold};

const ALPHA_MICROS: u32 = 50_000;
const ALPHA: f64 = 0.05;
const RUNS: u64 = 100_000;
const LEARNED: SettlementPrices = SettlementPrices::Learned { c0_bits: 8 };
const FIXED: SettlementPrices = SettlementPrices::Fixed { certified_bits: 8 };

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and good enough to toss coins.
struct Coins(u64);

impl Coins {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One coin for each item of a part.
    fn part(&mut self) -> u128 {
        u128::from(self.word()) << 64 | u128::from(self.word())
    }
}

/// The upper end of the one-sided 99 % interval of Clopper and Pearson (1934).
fn upper_bound(successes: u64, runs: u64) -> f64 {
    let (mut low, mut high) = (successes as f64 / runs as f64, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        let at_most = 1.0 - binomial_tail(runs, middle, successes + 1);
        if at_most > 0.01 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

fn assert_holds(falsely_certified: u64, what: &str) {
    let bound = upper_bound(falsely_certified, RUNS);
    assert!(
        bound < ALPHA,
        "{what}: {falsely_certified} of {RUNS}, bound {bound}"
    );
}

fn assert_broken(falsely_certified: u64, runs: u64, what: &str) {
    let right = runs - falsely_certified;
    let lower_bound = 1.0 - upper_bound(right, runs);
    assert!(
        lower_bound > ALPHA,
        "{what} survives: {falsely_certified} of {runs}"
    );
}

/// What a server takes into the threshold.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Real,
    WithoutOwnPrice,
    FrozenLedger,
}

/// The thresholds of a stream of claims that all fail, in order.
fn thresholds(prices: SettlementPrices, rule: Rule, claims: u64) -> Vec<MicroBits> {
    let mut k = MicroBits::ZERO;
    let mut bars = Vec::new();
    for m in 0..claims {
        let quote = prices.quote(m, 0);
        let c = match rule {
            Rule::WithoutOwnPrice => MicroBits::ZERO,
            Rule::Real | Rule::FrozenLedger => quote.certified,
        };
        bars.push(threshold(k, c, ALPHA_MICROS, 1));
        if rule != Rule::FrozenLedger {
            k = k.saturating_add(quote.not_certified);
        }
    }
    bars
}

/// How many streams see a certification, where each claim has the tight e-variable: equal to the threshold
/// with the probability that Markov's inequality allows, else 0.
fn streams_certified(bars: &[MicroBits], runs: u64) -> u64 {
    let chance = |bar: &MicroBits| ((-(bar.get() as f64) / 1e6).exp2() * 2f64.powi(64)) as u64;
    let chances: Vec<u64> = bars.iter().map(chance).collect();
    let mut coins = Coins(1);
    (0..runs)
        .filter(|_| chances.iter().any(|&chance| coins.word() < chance))
        .count() as u64
}

#[test]
fn six_hundred_tight_nulls_stay_below_alpha() {
    for prices in [LEARNED, FIXED] {
        let bars = thresholds(prices, Rule::Real, 600);
        assert_holds(streams_certified(&bars, RUNS), "a stream of null claims");
    }
}

#[test]
fn a_server_without_the_settlements_own_price_is_broken_by_a_stream() {
    let bars = thresholds(FIXED, Rule::WithoutOwnPrice, 600);
    assert_broken(streams_certified(&bars, 1_000), 1_000, "no c");
}

#[test]
fn a_server_with_a_frozen_ledger_is_broken_by_a_stream() {
    let bars = thresholds(FIXED, Rule::FrozenLedger, 600);
    assert_broken(streams_certified(&bars, 4_000), 4_000, "k frozen");
}

/// Which items an attack learns about, and on which it is then judged.
#[derive(Clone, Copy, PartialEq)]
enum Judged {
    OnTheSealedPart,
    OnTheAnswerPart { charged: bool },
}

const ITEMS: u64 = 128;
const QUESTIONS: usize = 64;

/// The boosting attack (Blum and Hardt 2015, §1.1): ask about random vectors and take the majority of those
/// that did better than chance, and of the others turned round if it `flips` them. Both parts at once.
fn boosted(answers: u128, flips: bool, coins: &mut Coins) -> [u128; 2] {
    let mut votes = [Votes::default(), Votes::default()];
    for _ in 0..QUESTIONS {
        let vectors = [coins.part(), coins.part()];
        let matches = u64::from((!(vectors[0] ^ answers)).count_ones());
        let good = matches > ITEMS / 2;
        if good || flips {
            for (votes, vector) in votes.iter_mut().zip(vectors) {
                votes.add(if good { vector } else { !vector });
            }
        }
    }
    votes.map(|votes| votes.majority())
}

/// A counter for each item, kept bit by bit in planes.
#[derive(Default)]
struct Votes {
    planes: [u128; 7],
    cast: u64,
}

impl Votes {
    fn add(&mut self, vector: u128) {
        self.cast += 1;
        let mut carry = vector;
        for plane in &mut self.planes {
            (*plane, carry) = (*plane ^ carry, *plane & carry);
        }
    }

    /// The items whose count is above half of the votes: a comparison of the planes with a constant.
    fn majority(&self) -> u128 {
        let half = self.cast / 2;
        let (mut above, mut equal) = (0, u128::MAX);
        for (place, plane) in self.planes.iter().enumerate().rev() {
            if half >> place & 1 == 1 {
                equal &= plane;
            } else {
                above |= equal & plane;
                equal &= !plane;
            }
        }
        above
    }
}

fn falsely_certified(flips: bool, judged: Judged, runs: u64) -> u64 {
    let table = BetTable::new(500_000, Strategy::Grid).expect("½ is a chance");
    let prices = AnswerPrices::default();
    let answer = prices.dearest(ITEMS as u32 + 1).expect("an alphabet");
    let k = match judged {
        Judged::OnTheAnswerPart { charged: true } => MicroBits(answer.get() * QUESTIONS as u64),
        Judged::OnTheSealedPart | Judged::OnTheAnswerPart { charged: false } => MicroBits::ZERO,
    };
    let c = LEARNED.quote(0, 0).certified;
    let Some(fewest) = table.fewest_right(ITEMS, threshold(k, c, ALPHA_MICROS, 1)) else {
        return 0;
    };
    let mut coins = Coins(2);
    let certifies = |_: &u64| {
        let labels = [coins.part(), coins.part()];
        let vectors = boosted(labels[0], flips, &mut coins);
        let part = usize::from(judged == Judged::OnTheSealedPart);
        let right = (!(vectors[part] ^ labels[part])).count_ones();
        u64::from(right) >= fewest
    };
    (0..runs).filter(certifies).count() as u64
}

#[test]
fn what_answers_teach_does_not_help_on_the_sealed_part() {
    let certified = falsely_certified(true, Judged::OnTheSealedPart, RUNS);
    assert_holds(certified, "boosting");
}

#[test]
fn judging_on_the_answer_part_holds_only_if_answers_are_charged() {
    for flips in [false, true] {
        let free = Judged::OnTheAnswerPart { charged: false };
        assert_broken(falsely_certified(flips, free, 1_000), 1_000, "free answers");
        let charged = Judged::OnTheAnswerPart { charged: true };
        assert_eq!(falsely_certified(flips, charged, 1_000), 0);
    }
}

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
        LEARNED,
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
