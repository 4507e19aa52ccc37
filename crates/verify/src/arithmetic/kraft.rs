//! Whether Σ 2^−price ≤ 1, decided exactly.
//!
//! Sums of whole-bit masses are dyadic rationals and are compared as such. Any other sum differs from 1 (the numbers
//! 2^(−r/10⁶) are linearly independent over the rationals), so narrowing an enclosure decides it.
//!
//! Method: 2^−f for a fraction f of a bit is the product of square roots of square roots of ½, one for each binary
//! digit of f. (The kernel sums the exponential series.)

use std::collections::BTreeMap;

use num_bigint::BigUint;

const PER_BIT: u64 = 1_000_000;

/// Σ 2^−price ≤ 1 for prices in microbits.
#[must_use]
pub fn fits(prices: &[u64]) -> bool {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for price in prices {
        *counts.entry(*price).or_default() += 1;
    }
    let whole_bits = counts.keys().all(|price| price % PER_BIT == 0);
    let mut precision = 160u64;
    loop {
        let (low, high) = sum(&counts, precision);
        let one = BigUint::from(1u32) << precision;
        // Only in this case is the sum exact, and only an exact sum can be found equal to 1.
        if whole_bits && counts.keys().all(|price| price / PER_BIT <= precision) {
            return low <= one;
        }
        if high < one {
            return true;
        }
        if low > one {
            return false;
        }
        precision *= 2;
    }
}

/// Two integers over 2^precision that enclose the sum of the masses; equal for whole bits within the precision.
fn sum(counts: &BTreeMap<u64, u64>, precision: u64) -> (BigUint, BigUint) {
    let roots = roots(precision);
    let (mut low, mut high) = (BigUint::default(), BigUint::default());
    for (&price, &count) in counts {
        let (mass_low, mass_high) = mass(price, precision, &roots);
        low += mass_low * count;
        high += mass_high * count;
    }
    (low, high)
}

/// 2^(−2^−i) for i = 1, 2, …, each rounded down over 2^precision.
fn roots(precision: u64) -> Vec<BigUint> {
    let mut root = BigUint::from(1u32) << (precision - 1);
    (0..precision)
        .map(|_| {
            root = (&root << precision).sqrt();
            root.clone()
        })
        .collect()
}

fn mass(price: u64, precision: u64, roots: &[BigUint]) -> (BigUint, BigUint) {
    let (whole, mut rest) = (price / PER_BIT, price % PER_BIT);
    let mut low = BigUint::from(1u32) << precision;
    let mut factors = 0u64;
    for root in roots {
        if rest == 0 {
            break;
        }
        rest *= 2;
        if rest >= PER_BIT {
            rest -= PER_BIT;
            low = (low * root) >> precision;
            factors += 1;
        }
    }
    if factors == 0 {
        let exact = low >> whole;
        // A mass below the precision is between 0 and one unit.
        let high = if whole > precision {
            BigUint::from(1u32)
        } else {
            exact.clone()
        };
        return (exact, high);
    }
    // A root is short by less than 2 units (half of the previous root's shortfall, and its own rounding), a product
    // by 3 for each factor. The omitted digits of f make the mass too large, by less than a unit.
    let high = &low + (3 * factors + 1);
    let low = low - 1u32;
    (low >> whole, (high >> whole) + 1u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mass_lies_between_its_bounds() {
        let finest = 1_280;
        let fine_roots = roots(finest);
        for precision in [160, 320] {
            let roots = roots(precision);
            for price in [1, 2, 250_000, 333_333, 500_000, 750_000, 999_999]
                .into_iter()
                .flat_map(|fraction| [0, 1, 13, 63].map(|whole| whole * PER_BIT + fraction))
            {
                let (low, high) = mass(price, precision, &roots);
                let (fine_low, fine_high) = mass(price, finest, &fine_roots);
                let beyond = finest - precision;
                assert!((low.clone() << beyond) <= fine_low, "{price} {precision}");
                assert!((high.clone() << beyond) >= fine_high, "{price} {precision}");
                assert!(high - low <= BigUint::from(3 * precision), "{price}");
            }
        }
    }
}
