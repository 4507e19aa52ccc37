//! Tests whether two columns of labels are of the same items: almost equal, cut, extended, reversed
//! or inverted.
//!
//! Metering is per item, so labels that are registered twice would be metered twice. The null is
//! that the two columns are independent, each with its own share of ones; columns that agree beyond
//! its 1 − 10⁻⁹ quantile are taken for the same items.
//!
//! - *In place*: columns of equal length are compared item by item, also in reverse.
//! - *Aligned*: otherwise, or if that finds nothing, the test looks for pieces that both columns
//!   share, and compares each block of the shorter column at the best of a few offsets. A union
//!   bound accounts for the choice of offsets.
//!
//! Disagreement counts as agreement with the inverted column. A random permutation of items without
//! ids cannot be detected: it keeps only the share of ones.
//!
//! Does not own the consequences of an agreement, which the kernel decides.

use std::collections::HashMap;

use evidenceos_kernel::planner::binomial_tail;

/// The chance of an agreement under independence, below which columns count as the same.
const CHANCE: f64 = 1e-9;
/// Offsets at which a column is compared in pieces.
const OFFSETS: usize = 8;
/// Items of a piece: a thirty-second of the column, within these bounds.
const BLOCK: (usize, usize) = (16, 256);
/// The entropy of a pattern of gaps in bits, so that chance rarely makes it twice.
const PATTERN_BITS: f64 = 40.0;
/// The longest pattern, in gaps.
const MAX_PATTERN: usize = 64;
/// Positions of a column whose patterns are looked up in the other.
const LOOKED_UP: usize = 2_048;

/// A column of labels, one bit an item.
#[derive(Clone)]
struct Column {
    words: Vec<u64>,
    len: usize,
    ones: usize,
}

impl Column {
    /// One byte a label, 0 or 1.
    fn new(labels: &[u8]) -> Self {
        let pack = |labels: &[u8]| {
            let bits = labels.iter().rev();
            bits.fold(0, |word, label| word << 1 | u64::from(label & 1))
        };
        let words: Vec<u64> = labels.chunks(64).map(pack).collect();
        let ones = words.iter().map(|word| word.count_ones() as usize).sum();
        Self {
            words,
            len: labels.len(),
            ones,
        }
    }

    /// Share of the items with this label.
    fn share(&self, label: bool) -> f64 {
        let ones = self.ones as f64 / self.len.max(1) as f64;
        if label { ones } else { 1.0 - ones }
    }

    /// 64 items from any position; those beyond the ends are 0.
    fn window(&self, from: isize) -> u64 {
        let word = |at: isize| {
            usize::try_from(at)
                .ok()
                .and_then(|at| self.words.get(at))
                .copied()
                .unwrap_or(0)
        };
        let (at, bit) = (from.div_euclid(64), from.rem_euclid(64) as u32);
        // A shift by all 64 bits would overflow.
        match bit {
            0 => word(at),
            bit => word(at) >> bit | word(at + 1) << (64 - bit),
        }
    }

    /// The number of items that agree with `other` at an offset (item i of this with item i +
    /// offset of that), and the number of items that both have, from `from` to `to` of this one.
    fn agreement(&self, other: &Self, offset: isize, from: usize, to: usize) -> (usize, usize) {
        let first = from.max(usize::try_from(-offset).unwrap_or(0));
        let beyond = (other.len as isize - offset).max(0) as usize;
        let last = to.min(self.len).min(beyond);
        let (mut agree, mut at) = (0, first);
        while at < last {
            let here = (last - at).min(64);
            // Here too, a shift by 64 would overflow.
            let mask = if here == 64 {
                u64::MAX
            } else {
                (1 << here) - 1
            };
            let same = !(self.window(at as isize) ^ other.window(at as isize + offset));
            agree += (same & mask).count_ones() as usize;
            at += here;
        }
        (agree, last.saturating_sub(first))
    }

    /// Positions of the items with this label, from one item on.
    fn positions(&self, label: bool, from: usize) -> impl Iterator<Item = usize> + '_ {
        let word = move |at: usize| self.words.get(at).map(|&w| if label { w } else { !w });
        let mut at = from / 64;
        let mut left = word(at).unwrap_or(0) & u64::MAX << (from % 64);
        std::iter::from_fn(move || {
            while left == 0 {
                at += 1;
                left = word(at)?;
            }
            let position = at * 64 + left.trailing_zeros() as usize;
            left &= left - 1;
            // Beyond the last item all bits are 0.
            (position < self.len).then_some(position)
        })
    }

    /// Patterns of the gaps between items with this label, from positions all over the column: the
    /// start of each, and its hash.
    fn sample(&self, label: bool, gaps: usize) -> Vec<(usize, u64)> {
        let stride = self.len.div_ceil(LOOKED_UP).max(1);
        let mut sampled: Vec<(usize, u64)> = Vec::new();
        for from in (0..self.len).step_by(stride) {
            let run: Vec<usize> = self.positions(label, from).take(gaps + 1).collect();
            // Later positions have even fewer items left.
            if run.len() <= gaps {
                break;
            }
            // Two positions in one gap begin with the same item: its pattern counts once.
            if sampled.last().is_none_or(|&(begin, _)| begin != run[0]) {
                sampled.push((run[0], pattern_hash(&run)));
            }
        }
        sampled
    }
}

/// The patterns of gaps between the items with one label: the start of each, if it is unique.
struct Patterns {
    begins: HashMap<u64, Option<u32>>,
    gaps: usize,
}

impl Patterns {
    fn of(column: &Column, label: bool) -> Self {
        let gaps = pattern_length(column.share(label));
        let positions: Vec<usize> = column.positions(label, 0).collect();
        let mut begins = HashMap::new();
        // A pattern that appears twice does not locate a piece.
        for run in positions.windows(gaps + 1) {
            begins
                .entry(pattern_hash(run))
                .and_modify(|known| *known = None)
                .or_insert_with(|| u32::try_from(run[0]).ok());
        }
        Self { begins, gaps }
    }
}

/// The number of gaps that together have [`PATTERN_BITS`]: one has H(p)/p bits at a share of p.
fn pattern_length(share: f64) -> usize {
    let entropy = -(share * share.log2() + (1.0 - share) * (1.0 - share).log2());
    let gaps = PATTERN_BITS * share / entropy;
    // A column with a single label has no entropy, so no pattern of it is useful.
    if gaps.is_finite() {
        (gaps.ceil() as usize).clamp(2, MAX_PATTERN)
    } else {
        MAX_PATTERN
    }
}

/// A hash of the gaps between these positions.
fn pattern_hash(run: &[usize]) -> u64 {
    run.windows(2).fold(0xcbf2_9ce4_8422_2325u64, |hash, pair| {
        (hash ^ (pair[1] - pair[0]) as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23)
    })
}

/// A column to be registered, prepared for the comparison with many.
pub struct Candidate {
    /// The column in its order, and reversed.
    ways: [Way; 2],
}

struct Way {
    column: Column,
    /// Patterns of its zeros and of its ones.
    patterns: [Patterns; 2],
}

impl Way {
    fn new(column: Column) -> Self {
        let patterns = [false, true].map(|label| Patterns::of(&column, label));
        Self { column, patterns }
    }
}

impl Candidate {
    /// A column of labels, one byte an item, 0 or 1.
    #[must_use]
    pub fn new(labels: &[u8]) -> Self {
        let reversed: Vec<u8> = labels.iter().rev().copied().collect();
        Self {
            ways: [labels, &reversed].map(|labels| Way::new(Column::new(labels))),
        }
    }

    /// Whether an earlier column agrees with this one beyond chance. Takes time proportional to the
    /// sum of the lengths.
    #[must_use]
    pub fn agrees_with(&self, earlier: &[u8]) -> bool {
        let earlier = Column::new(earlier);
        if self.ways.iter().any(|way| in_place(&earlier, &way.column)) {
            return true;
        }
        // Patterns of the rarer label: there are fewer, and each carries more information.
        let label = earlier.share(true) <= 0.5;
        [false, true].into_iter().any(|inverted| {
            let theirs = usize::from(label != inverted);
            // The reversed column has the same shares.
            let sampled = earlier.sample(label, self.ways[0].patterns[theirs].gaps);
            self.ways.iter().any(|way| {
                let offsets = offsets(&sampled, &way.patterns[theirs]);
                aligned(&earlier, &way.column, &offsets, inverted)
            })
        })
    }
}

/// The chance that independent items with these columns' shares agree, or disagree if `inverted`.
fn chance(a: &Column, b: &Column, inverted: bool) -> f64 {
    let equal = a.share(true) * b.share(true) + a.share(false) * b.share(false);
    if inverted { 1.0 - equal } else { equal }
}

fn in_place(a: &Column, b: &Column) -> bool {
    if a.len != b.len || a.len == 0 {
        return false;
    }
    let (agree, items) = a.agreement(b, 0, 0, a.len);
    [(agree, false), (items - agree, true)]
        .into_iter()
        .any(|(matches, inverted)| {
            // If each column has only one label, they always agree: q is 1, and nothing follows.
            let q = chance(a, b, inverted);
            q < 1.0 && binomial_tail(items as u64, q, matches as u64) < CHANCE
        })
}

/// Compares block by block at these offsets, at which the columns share the most patterns.
fn aligned(earlier: &Column, column: &Column, offsets: &[isize], inverted: bool) -> bool {
    let (short, long) = (earlier.len.min(column.len), earlier.len.max(column.len));
    if short == 0 || offsets.is_empty() {
        return false;
    }
    let block = (short / 32).clamp(BLOCK.0, BLOCK.1);
    let (mut matches, mut items, mut blocks) = (0, 0, 0);
    for from in (0..earlier.len).step_by(block) {
        // Of offsets with equally many matches, the one with the fewest compared items is the
        // strongest.
        let best = offsets
            .iter()
            .map(|&offset| {
                let (agree, both) = earlier.agreement(column, offset, from, from + block);
                (if inverted { both - agree } else { agree }, both)
            })
            .max_by_key(|&(agree, both)| (agree, std::cmp::Reverse(both)));
        if let Some((agree, both)) = best.filter(|&(_, both)| both > 0) {
            (matches, items, blocks) = (matches + agree, items + both, blocks + 1);
        }
    }
    let q = chance(earlier, column, inverted);
    // Both the set of offsets and the offset of each block were chosen from the data.
    let choices = (offsets.len() as f64) * ((short + long) as f64).ln()
        + f64::from(blocks) * (offsets.len() as f64).ln();
    evidence(matches, items, q) >= -CHANCE.ln() + choices
}

/// −ln of the Chernoff bound on the chance of at least this many matches.
fn evidence(matches: usize, items: usize, q: f64) -> f64 {
    if items == 0 || q <= 0.0 || q >= 1.0 {
        return 0.0;
    }
    let rate = matches as f64 / items as f64;
    // Agreement below chance is no evidence; disagreement has a separate test.
    if rate <= q {
        return 0.0;
    }
    let term = |a: f64, b: f64| if a > 0.0 { a * (a / b).ln() } else { 0.0 };
    items as f64 * (term(rate, q) + term(1.0 - rate, 1.0 - q))
}

/// The offsets that the most common patterns suggest.
fn offsets(sampled: &[(usize, u64)], patterns: &Patterns) -> Vec<isize> {
    let mut votes = HashMap::<isize, u32>::new();
    for (begin, pattern) in sampled {
        if let Some(Some(there)) = patterns.begins.get(pattern) {
            *votes.entry(*there as isize - *begin as isize).or_insert(0) += 1;
        }
    }
    // One common pattern may be chance: a shared piece gives several.
    let mut votes: Vec<(isize, u32)> = votes.into_iter().filter(|&(_, votes)| votes > 1).collect();
    votes.sort_unstable_by_key(|&(offset, votes)| (std::cmp::Reverse(votes), offset));
    votes.truncate(OFFSETS);
    votes.into_iter().map(|(offset, _)| offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Independent labels with a share of ones, from a seed.
    fn column(seed: u64, len: usize, share_percent: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                u8::from((state >> 11) % 100 < share_percent)
            })
            .collect()
    }

    fn agree(a: &[u8], b: &[u8]) -> bool {
        Candidate::new(a).agrees_with(b)
    }

    #[test]
    fn the_same_items_are_found_in_every_disguise() {
        for (len, share) in [
            (200, 50),
            (1_000, 50),
            (1_000, 20),
            (20_000, 3),
            (20_000, 97),
        ] {
            let labels = column(7, len, share);
            let mut corrected = labels.clone();
            corrected[len / 3] ^= 1;
            let mut noisy = labels.clone();
            noisy.iter_mut().step_by(50).for_each(|label| *label ^= 1);
            let without = |at: usize| {
                let mut shorter = labels.clone();
                shorter.remove(at);
                shorter
            };
            let two_less = {
                let mut shorter = without(len / 4);
                shorter.remove(len / 2);
                shorter
            };
            let with_one_more = {
                let mut longer = labels.clone();
                longer.insert(len / 2, 1);
                longer
            };
            let extended: Vec<u8> = labels
                .iter()
                .copied()
                .chain(column(8, len, share))
                .collect();
            let rotated = [&labels[len / 3..], &labels[..len / 3]].concat();
            let inverted: Vec<u8> = labels.iter().map(|label| label ^ 1).collect();
            let disguises = [
                ("equal", labels.clone()),
                ("one corrected", corrected),
                ("one in fifty wrong", noisy),
                ("the first left out", without(0)),
                ("one in the middle left out", without(len / 2)),
                ("the last left out", without(len - 1)),
                ("two left out", two_less),
                ("one more", with_one_more),
                ("as many more", extended),
                ("rotated", rotated),
                ("the second half", labels[len / 2..].to_vec()),
                ("inverted", inverted),
            ];
            for (name, disguised) in disguises {
                assert!(agree(&disguised, &labels), "{name}: {len} at {share} %");
                assert!(
                    agree(&labels, &disguised),
                    "{name}, later: {len} at {share} %"
                );
                let reversed: Vec<u8> = disguised.into_iter().rev().collect();
                assert!(
                    agree(&reversed, &labels),
                    "{name}, reversed: {len} at {share} %"
                );
            }
        }
    }

    #[test]
    fn other_items_are_not_taken_for_the_same() {
        for (len, share) in [(100, 50), (200, 50), (1_000, 50), (5_000, 90), (20_000, 3)] {
            let others: Vec<Vec<u8>> = (1..20).map(|seed| column(seed, len, share)).collect();
            for (nth, labels) in others.iter().enumerate() {
                let new = Candidate::new(labels);
                for (other, theirs) in others.iter().enumerate() {
                    // A short column that is cut leaves too little for a sure result.
                    let cut = if len < 200 { 0 } else { other % 3 };
                    let found = new.agrees_with(&theirs[..len - cut]);
                    assert_eq!(
                        found,
                        nth == other,
                        "{nth} and {other} of {len} at {share} %"
                    );
                }
            }
        }
    }

    #[test]
    fn columns_of_one_label_say_nothing() {
        assert!(!agree(&[1; 5_000], &[1; 5_000]));
        assert!(!agree(&[1; 5_000], &column(3, 5_000, 50)));
        assert!(!agree(&[1], &[0, 1]));
    }

    #[test]
    fn few_items_agree_by_chance() {
        let labels = column(5, 12, 50);
        assert!(!agree(&labels, &labels));
    }
}
