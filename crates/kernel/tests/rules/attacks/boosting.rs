//! The boosting attack (Blum and Hardt 2015, §1.1): ask about random vectors, take the majority of
//! those that did better than chance, and have it judged.
//!
//! The answers are the oracle's about the real split, charged at the policy's prices, and the
//! verdict is `decide`'s. Nothing is known of the labels, so every certification is false.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Outcome, Reason, Settlement, Terms},
    command::{RunEnd, RunReport},
    holdout::Policy,
    record::AnswerTally,
    score::{self, Classes},
    split::split,
};

use super::odds::{Coins, RUNS, assert_broken, assert_holds};
use crate::world::{Script, World, bits, holdout, submitter};

const ITEMS: usize = 256;
const PART: u64 = 128;
/// The oracle tells every count.
const SYMBOLS: u32 = PART as u32 + 1;
/// All calls of the fast lane.
const QUESTIONS: usize = 64;

/// A bit an item.
type Bits = [u64; ITEMS / 64];

fn tossed(coins: &mut Coins) -> Bits {
    std::array::from_fn(|_| coins.word())
}

/// The bits of a byte, a byte each.
const SPREAD: [[u8; 8]; 256] = {
    let mut spread = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            spread[byte][bit] = (byte >> bit & 1) as u8;
            bit += 1;
        }
        byte += 1;
    }
    spread
};

/// As guests and labels have it: a byte an item.
fn bytes(bits: &Bits) -> [u8; ITEMS] {
    let mut bytes = [0; ITEMS];
    let words = bits.iter().flat_map(|word| word.to_le_bytes());
    for (place, byte) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&SPREAD[usize::from(byte)]);
    }
    bytes
}

/// A counter for each item, kept bit by bit in planes.
#[derive(Default)]
struct Votes {
    planes: [Bits; 7],
    cast: u64,
}

impl Votes {
    fn add(&mut self, mut carry: Bits) {
        self.cast += 1;
        for plane in &mut self.planes {
            for (plane, carry) in plane.iter_mut().zip(&mut carry) {
                (*plane, *carry) = (*plane ^ *carry, *plane & *carry);
            }
        }
    }

    /// The items whose count is above half of the votes: a comparison of the planes with a constant.
    fn majority(&self) -> Bits {
        let half = self.cast / 2;
        std::array::from_fn(|word| {
            let (mut above, mut equal) = (0, u64::MAX);
            for (place, plane) in self.planes.iter().enumerate().rev() {
                if half >> place & 1 == 1 {
                    equal &= plane[word];
                } else {
                    above |= equal & plane[word];
                    equal &= !plane[word];
                }
            }
            above
        })
    }
}

/// A holdout of two equal parts, and a run on it that may ask.
struct Attack {
    world: World,
    number: u64,
    answer_mask: Vec<u8>,
    /// Of each symbol.
    prices: Vec<MicroBits>,
}

impl Attack {
    /// `charged` is what the sealed part has released before.
    fn new(charged: MicroBits) -> Self {
        let units: Vec<u64> = (0..ITEMS as u64).collect();
        let parts = split(&[7; 32], &units, 500_000);
        let policy = Policy {
            answer_share_micros: 500_000,
            answer_budget: bits(1_000),
            principal_answer_budget: bits(1_000),
            ..Policy::with_sealed_budget(bits(1_000))
        };
        let mut put = holdout("nothing is known of it", policy, None);
        let description = &mut put.description;
        (description.items, description.units) = (ITEMS as u64, ITEMS as u64);
        (description.answer_items, description.sealed_items) =
            (parts.answer_items, parts.sealed_items);
        description.sealed_units = parts.sealed_units;
        let mut world = World::on(put);
        if charged > MicroBits::ZERO {
            world.charge(charged);
        }
        let terms = Terms {
            oracle_num_symbols: SYMBOLS,
            ..world.terms(submitter(1), "boosted")
        };
        let (_, number) = world.admitted(terms, true);
        let prices = &world.main().description.policy.answer_prices;
        let prices = (0..SYMBOLS)
            .map(|symbol| prices.price(SYMBOLS, symbol).expect("a symbol"))
            .collect();
        Self {
            prices,
            world,
            number,
            answer_mask: parts.part_mask,
        }
    }

    fn run(&self, flips: bool, judged_part: &[u8], coins: &mut Coins) -> Settlement {
        let report = self.report(flips, judged_part, coins);
        self.world.would_settle_as(self.number, report)
    }

    /// One run on labels of its own. `flips`: what did worse than chance is turned round and votes
    /// too.
    fn report(&self, flips: bool, judged_part: &[u8], coins: &mut Coins) -> RunReport {
        let labels = bytes(&tossed(coins));
        let mut votes = Votes::default();
        let mut answered = [0u32; SYMBOLS as usize];
        let mut charged = MicroBits::ZERO;
        for _ in 0..QUESTIONS {
            let vector = tossed(coins);
            let mask = &self.answer_mask;
            let matches = score::answer(&bytes(&vector), &labels, mask, SYMBOLS, PART);
            answered[matches as usize] += 1;
            charged = charged.saturating_add(self.prices[matches as usize]);
            let good = u64::from(matches) > PART / 2;
            if good {
                votes.add(vector);
            } else if flips {
                votes.add(vector.map(|word| !word));
            }
        }
        let vector = bytes(&votes.majority());
        RunReport {
            answers: AnswerTally {
                n_symbols: SYMBOLS,
                asked: QUESTIONS as u32,
                replayed: 0,
                by_symbol: (0..)
                    .zip(answered)
                    .filter(|(_, count)| *count > 0)
                    .collect(),
                charged,
            },
            score: Some(Classes::of_single_items(PART).score(&vector, &labels, judged_part)),
            ..Script::weak().report()
        }
    }

    fn falsely_certified(&self, flips: bool, judged_part: &[u8], runs: u64) -> u64 {
        let mut coins = Coins(2);
        let is_certified = |_: &u64| {
            let settled = self.run(flips, judged_part, &mut coins);
            settled.outcome == Outcome::Certified
        };
        (0..runs).filter(is_certified).count() as u64
    }

    /// As a server has it that answers and judges on one part.
    fn answer_part_as_sealed(&self) -> Vec<u8> {
        self.answer_mask.iter().map(|part| part ^ 1).collect()
    }
}

fn assert_useless(flips: bool) {
    let attack = Attack::new(MicroBits::ZERO);
    let certified = attack.falsely_certified(flips, &attack.answer_mask, RUNS);
    assert_holds(certified, RUNS, "boosting");
}

#[test]
fn what_answers_teach_does_not_help_on_the_sealed_part() {
    assert_useless(false);
}

#[test]
fn nor_do_the_bad_vectors_turned_round() {
    assert_useless(true);
}

#[test]
fn judging_on_the_answer_part_holds_only_if_answers_are_charged() {
    let free = Attack::new(MicroBits::ZERO);
    for flips in [false, true] {
        let certified = free.falsely_certified(flips, &free.answer_part_as_sealed(), 1_000);
        assert_broken(certified, 1_000, "free answers on the part that is judged");
    }
    // 449 bits, of which 128 items can make up for 116.
    let all = MicroBits(free.prices[0].get() * QUESTIONS as u64);
    let charged = Attack::new(all);
    let mut coins = Coins(3);
    for flips in [false, true] {
        let settled = charged.run(flips, &charged.answer_part_as_sealed(), &mut coins);
        assert_eq!(settled.reasons, [Reason::Rejected, Reason::OutOfReach]);
    }
}

#[test]
fn answers_are_charged_to_their_part_and_raise_no_bar() {
    let mut attack = Attack::new(MicroBits::ZERO);
    let asked = attack.report(true, &attack.answer_mask, &mut Coins(4));
    let charged = asked.answers.charged;
    let capsule = attack.world.settle_as(attack.number, asked);
    assert_eq!(capsule.ledger.k, MicroBits::ZERO);
    let next = attack
        .world
        .run(submitter(2), "next", &Script::ending(RunEnd::NoOutput));
    assert_eq!(next.ledger.k, capsule.ledger.price);
    assert_eq!(attack.world.main().answers.charged, charged);
    assert_eq!(
        charged,
        MicroBits(attack.prices[0].get() * QUESTIONS as u64)
    );
}
