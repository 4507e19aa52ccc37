//! Counts how often a vector agrees with the labels, and turns the count into one symbol.
//!
//! Owns the oracle's answer about the answer part, and the count on the sealed part from which certification starts.
//! Does not own prices, evidence, or the decision.
//!
//! Invariant: the loop reads every item of both parts and neither branches nor indexes on a label, so the time of a
//! call depends on the number of items alone. Otherwise the timing of an answer would be a symbol that is not
//! charged.
//!
//! Vectors and labels are one byte an item, 0 or 1. A part mask is one byte an item: 1 is in the answer part, 0 in
//! the sealed part (see [`crate::split`]).

/// The oracle's symbol in `0..n_symbols`: round-half-even(matches · (n_symbols − 1) / answer_items).
///
/// `answer_items` is the number of ones in `part_mask`; a holdout without an answer part always answers 0.
///
/// # Panics
/// If the three slices differ in length, or `n_symbols` is 0: both are refused long before.
#[must_use]
pub fn answer(
    vector: &[u8],
    labels: &[u8],
    part_mask: &[u8],
    n_symbols: u32,
    answer_items: u64,
) -> u32 {
    assert!(n_symbols > 0, "an oracle has symbols");
    let matches = count_matches(vector, labels, part_mask, 0);
    if answer_items == 0 {
        return 0;
    }
    debug_assert!(matches <= answer_items, "the mask marks the answer items");
    quantise(matches, u64::from(n_symbols - 1), answer_items)
}

/// The number of items of the sealed part that the vector has right.
///
/// # Panics
/// If the three slices differ in length.
#[must_use]
pub fn sealed_matches(vector: &[u8], labels: &[u8], part_mask: &[u8]) -> u64 {
    count_matches(vector, labels, part_mask, 1)
}

/// The right items of a vector on the sealed part, by the size of the units: all that evidence
/// needs.
///
/// A unit's score is the mean over its items, and a line in that mean bounds the log of every bet
/// from below; so only the number of right items in units of each size matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// One class for each size that occurs.
    pub classes: Vec<SizeClass>,
}

/// The sealed units of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeClass {
    /// Items of each unit.
    pub size: u64,
    pub units: u64,
    /// Right items among all of them.
    pub right: u64,
}

/// The size class of each item's unit. Depends on the units alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    class_of_item: Vec<u16>,
    sizes: Vec<(u64, u64)>,
}

impl Classes {
    /// The classes of the sealed units; `None` if there are more than 65,536 sizes, which takes
    /// more than two billion items.
    #[must_use]
    pub fn new(units: &[u64], part_mask: &[u8]) -> Option<Self> {
        let mut size_of_unit = std::collections::HashMap::new();
        for unit in units {
            *size_of_unit.entry(*unit).or_insert(0u64) += 1;
        }
        let mut sealed_units = std::collections::BTreeMap::new();
        let mut seen = std::collections::HashSet::new();
        for (unit, part) in units.iter().zip(part_mask) {
            if *part == 0 && seen.insert(*unit) {
                *sealed_units.entry(size_of_unit[unit]).or_insert(0u64) += 1;
            }
        }
        let sizes: Vec<(u64, u64)> = sealed_units.into_iter().collect();
        let class = |unit| {
            let size = size_of_unit[unit];
            // The mask removes items of the answer part, so their class does not matter.
            sizes
                .binary_search_by_key(&size, |(size, _)| *size)
                .unwrap_or(0)
        };
        let class_of_item = units
            .iter()
            .map(|unit| u16::try_from(class(unit)).ok())
            .collect::<Option<_>>()?;
        Some(Self {
            class_of_item,
            sizes,
        })
    }

    /// The classes if every item is a unit of its own.
    #[must_use]
    pub fn of_single_items(sealed_items: u64) -> Self {
        Self {
            class_of_item: Vec::new(),
            sizes: vec![(1, sealed_items)],
        }
    }

    /// The number of units in the sealed part.
    #[must_use]
    pub fn sealed_units(&self) -> u64 {
        self.sizes.iter().map(|(_, units)| units).sum()
    }

    /// The score of a vector; reads all items, branches on none.
    ///
    /// # Panics
    /// If the slices differ in length.
    #[must_use]
    pub fn score(&self, vector: &[u8], labels: &[u8], part_mask: &[u8]) -> Score {
        let mut right = vec![0u64; self.sizes.len()];
        if let [only] = right.as_mut_slice() {
            *only = sealed_matches(vector, labels, part_mask);
        } else {
            assert!(
                vector.len() == labels.len() && labels.len() == part_mask.len(),
                "a vector has one byte for every item of the holdout"
            );
            for (i, class) in self.class_of_item.iter().enumerate() {
                // A branch on a label would show in the time of the call.
                let agrees = (vector[i] ^ labels[i] ^ 1) & (part_mask[i] ^ 1) & 1;
                right[usize::from(*class)] += u64::from(agrees);
            }
        }
        let classes = self
            .sizes
            .iter()
            .zip(right)
            .map(|(&(size, units), right)| SizeClass { size, units, right })
            .collect();
        Score { classes }
    }
}

/// Matches among the items whose mask byte, with `flip` applied, is 1.
fn count_matches(vector: &[u8], labels: &[u8], part_mask: &[u8], flip: u8) -> u64 {
    assert!(
        vector.len() == labels.len() && labels.len() == part_mask.len(),
        "a vector has one byte for every item of the holdout"
    );
    // Chunks short enough that a byte holds their sum keep the loop in vector registers.
    const CHUNK: usize = 128;
    let vectors = vector.chunks(CHUNK);
    let labels = labels.chunks(CHUNK);
    let masks = part_mask.chunks(CHUNK);
    vectors
        .zip(labels)
        .zip(masks)
        .map(|((vector, labels), mask)| {
            let items = vector.iter().zip(labels).zip(mask);
            let hits = items.fold(0u8, |hits, ((v, l), m)| {
                hits + ((v ^ l ^ 1) & (m ^ flip) & 1)
            });
            u64::from(hits)
        })
        .sum()
}

/// round-half-even(matches · top / items), without a branch on the count.
fn quantise(matches: u64, top: u64, items: u64) -> u32 {
    let scaled = u128::from(matches) * u128::from(top);
    let items = u128::from(items);
    let (quotient, twice_rest) = (scaled / items, 2 * (scaled % items));
    let above_half = u128::from(twice_rest > items);
    let half_to_even = u128::from(twice_rest == items) & quotient & 1;
    // At most `top`, which came from a u32.
    (quotient + (above_half | half_to_even)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_that_are_units_are_one_class() {
        let (vector, labels, mask) = ([1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0]);
        let counted = Classes::new(&[0, 1, 2, 3], &mask).expect("one size");
        let known = Classes::of_single_items(3);
        assert_eq!(known.sealed_units(), counted.sealed_units());
        let score = known.score(&vector, &labels, &mask);
        assert_eq!(score, counted.score(&vector, &labels, &mask));
    }

    #[test]
    fn a_unit_of_two_items_counts_as_one_unit() {
        // Units: 7 (two items, sealed), 8 (one, sealed), 9 (one, answer part).
        let (units, mask) = ([7, 7, 8, 9], [0, 0, 0, 1]);
        let classes = Classes::new(&units, &mask).expect("two sizes");
        assert_eq!(classes.sealed_units(), 2);
        let score = classes.score(&[1, 0, 1, 1], &[1, 1, 1, 1], &mask);
        let class = |size, units, right| SizeClass { size, units, right };
        assert_eq!(score.classes, [class(1, 1, 1), class(2, 1, 1)]);
    }

    #[test]
    fn each_class_counts_its_own_right_sealed_items() {
        // Units of one, two and three items in turn; every fourth unit answers.
        let units: Vec<u64> = (0..600u64)
            .flat_map(|unit| (0..=unit % 3).map(move |_| unit))
            .collect();
        let items = units.len();
        let vector: Vec<u8> = (0..items).map(|i| u8::from(i % 5 < 2)).collect();
        let labels: Vec<u8> = (0..items).map(|i| u8::from(i % 7 < 3)).collect();
        let mask: Vec<u8> = units
            .iter()
            .map(|unit| u8::from(unit.is_multiple_of(4)))
            .collect();
        let score = Classes::new(&units, &mask)
            .expect("three sizes")
            .score(&vector, &labels, &mask);
        let of_size = |size: u64| {
            let sealed = |unit: u64| unit % 3 + 1 == size && !unit.is_multiple_of(4);
            let right = (0..items).filter(|&i| sealed(units[i]) && vector[i] == labels[i]);
            SizeClass {
                size,
                units: (0..600).filter(|&unit| sealed(unit)).count() as u64,
                right: right.count() as u64,
            }
        };
        assert_eq!(score.classes, [1, 2, 3].map(of_size));
    }

    #[test]
    fn a_half_goes_to_the_even_symbol() {
        let check = |matches, n_symbols: u64, items, symbol| {
            assert_eq!(quantise(matches, n_symbols - 1, items), symbol);
        };
        check(0, 2, 4, 0);
        check(1, 2, 4, 0);
        check(2, 2, 4, 0);
        check(3, 2, 4, 1);
        check(3, 4, 6, 2);
        check(1, 4, 6, 0);
        check(5, 4, 6, 2);
        check(7, 8, 7, 7);
        check(u64::from(u32::MAX), 65_536, u64::from(u32::MAX), 65_535);
    }

    #[test]
    fn each_part_is_counted_alone() {
        // Two of three are right in the answer part, three of three in the sealed one.
        let vector = [1, 1, 0, 1, 1, 0];
        let labels = [1, 0, 0, 1, 1, 0];
        let mask = [1, 1, 1, 0, 0, 0];
        assert_eq!(sealed_matches(&vector, &labels, &mask), 3);
        assert_eq!(answer(&vector, &labels, &mask, 4, 3), 2);
        assert_eq!(answer(&vector, &labels, &[0; 6], 4, 0), 0);
        assert_eq!(sealed_matches(&vector, &labels, &[1; 6]), 0);
    }

    #[test]
    fn long_vectors_are_counted_like_short_ones() {
        for items in [127, 128, 129, 1_000, 70_001] {
            let vector: Vec<u8> = (0..items).map(|i| u8::from(i % 3 == 0)).collect();
            let labels: Vec<u8> = (0..items).map(|i| u8::from(i % 5 == 0)).collect();
            let mask: Vec<u8> = (0..items).map(|i| u8::from(i % 7 == 0)).collect();
            let right = |part: u8| {
                (0..items)
                    .filter(|&i| vector[i] == labels[i] && mask[i] == part)
                    .count() as u64
            };
            assert_eq!(sealed_matches(&vector, &labels, &mask), right(0));
            assert_eq!(count_matches(&vector, &labels, &mask, 0), right(1));
        }
    }

    #[test]
    #[should_panic(expected = "one byte for every item")]
    fn a_short_vector_is_a_bug() {
        let _ = sealed_matches(&[1], &[1, 0], &[0, 0]);
    }
}
