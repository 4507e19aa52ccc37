//! The oracle's answer about the answer part, and a vector's score on the sealed part.

use std::collections::BTreeMap;

use super::evidence::UnitsOfSize;

/// The oracle's symbol: matches·(n_symbols − 1)/answer_items to the nearest whole number, a half to the even one; 0
/// without an answer part.
///
/// Slices have one byte an item; `part` is 1 for items of the answer part.
#[must_use]
pub fn answer(vector: &[u8], labels: &[u8], part: &[u8], n_symbols: u32) -> u32 {
    let mut items = 0u128;
    let mut matches = 0u128;
    // Labels are public by now, so a branch on one releases nothing. The kernel must not have it.
    for ((given, label), part) in vector.iter().zip(labels).zip(part) {
        if *part == 1 {
            items += 1;
            matches += u128::from(given == label);
        }
    }
    if items == 0 {
        return 0;
    }
    let scaled = matches * u128::from(n_symbols.saturating_sub(1));
    let below = scaled / items;
    // Twice the distance from the number below, in items: more than a half goes up.
    let twice = 2 * (scaled - below * items);
    let up = match twice.cmp(&items) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => below % 2 == 1,
        std::cmp::Ordering::Greater => true,
    };
    u32::try_from(below + u128::from(up)).unwrap_or(u32::MAX)
}

/// The right items of the sealed units, by the size of the unit.
#[must_use]
pub fn sealed(vector: &[u8], labels: &[u8], part: &[u8], units: &[u64]) -> Vec<UnitsOfSize> {
    let mut of_unit: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (i, unit) in units.iter().enumerate() {
        if part[i] == 0 {
            let (size, right) = of_unit.entry(*unit).or_default();
            *size += 1;
            *right += u64::from(vector[i] == labels[i]);
        }
    }
    let mut by_size: BTreeMap<u64, UnitsOfSize> = BTreeMap::new();
    for (size, right) in of_unit.into_values() {
        let class = by_size.entry(size).or_insert(UnitsOfSize {
            size,
            units: 0,
            right: 0,
        });
        class.units += 1;
        class.right += right;
    }
    by_size.into_values().collect()
}
