//! Fixed-width natural numbers of any width, for the few places in which 128 bits do not decide.
//!
//! Owns the operations that `log2.rs` and `price.rs` need to widen an interval computation. Not a big-number library:
//! no signs, no general division, no parsing.
//!
//! A number is a slice of 64-bit limbs, least significant first. Every operation is exact except the shifts and
//! quotients, which round down and leave upward rounding to the caller.

/// `limbs + addend`; returns the carry out.
pub(crate) fn add_small(limbs: &mut [u64], addend: u64) -> bool {
    let mut carry = addend;
    for limb in limbs {
        let (sum, overflow) = limb.overflowing_add(carry);
        *limb = sum;
        carry = u64::from(overflow);
    }
    carry != 0
}

/// `limbs + other`, both of one width; returns the carry out.
pub(crate) fn add(limbs: &mut [u64], other: &[u64]) -> bool {
    let mut carry = false;
    for (limb, &addend) in limbs.iter_mut().zip(other) {
        let (sum, first) = limb.overflowing_add(addend);
        let (sum, second) = sum.overflowing_add(u64::from(carry));
        *limb = sum;
        carry = first || second;
    }
    carry
}

/// `limbs · factor`; returns the limb that does not fit.
pub(crate) fn mul_small(limbs: &mut [u64], factor: u64) -> u64 {
    let mut carry = 0u128;
    for limb in limbs {
        // A product of two limbs and a carry is at most 2^128 − 2^64, so that it fits.
        carry += u128::from(*limb) * u128::from(factor);
        *limb = carry as u64;
        carry >>= 64;
    }
    carry as u64
}

/// `⌊limbs / divisor⌋`; the divisor is not zero.
pub(crate) fn div_small(limbs: &mut [u64], divisor: u64) {
    let mut rest = 0u128;
    for limb in limbs.iter_mut().rev() {
        let part = rest << 64 | u128::from(*limb);
        *limb = (part / u128::from(divisor)) as u64;
        rest = part % u128::from(divisor);
    }
}

/// `product = left · right`; the product is as wide as both together.
pub(crate) fn mul(product: &mut [u64], left: &[u64], right: &[u64]) {
    debug_assert_eq!(product.len(), left.len() + right.len());
    product.fill(0);
    for (i, &a) in left.iter().enumerate() {
        let mut carry = 0u128;
        for (j, &b) in right.iter().enumerate() {
            // (2^64 − 1)² + 2·(2^64 − 1) = 2^128 − 1: a product of two limbs and two more limbs
            // just fit.
            carry += u128::from(product[i + j]) + u128::from(a) * u128::from(b);
            product[i + j] = carry as u64;
            carry >>= 64;
        }
        product[i + right.len()] = carry as u64;
    }
}

/// `target = ⌊source / 2^shift⌋`, cut to the width of `target`; returns whether a one was shifted out.
pub(crate) fn shift_right_into(target: &mut [u64], source: &[u64], shift: usize) -> bool {
    let (limbs, bits) = (shift / 64, shift % 64);
    let at = |index: usize| source.get(index).copied().unwrap_or(0);
    for (i, limb) in target.iter_mut().enumerate() {
        let low = at(i + limbs);
        let high = at(i + limbs + 1);
        // A shift by all 64 bits is an overflow and not a zero.
        *limb = if bits == 0 {
            low
        } else {
            low >> bits | high << (64 - bits)
        };
    }
    let whole = source.iter().take(limbs).any(|&limb| limb != 0);
    whole || (bits != 0 && at(limbs) << (64 - bits) != 0)
}

/// `limbs · 2 + bit`; returns the bit that does not fit.
pub(crate) fn shift_in(limbs: &mut [u64], bit: bool) -> bool {
    let mut carry = bit;
    for limb in limbs {
        let out = *limb >> 63 == 1;
        *limb = *limb << 1 | u64::from(carry);
        carry = out;
    }
    carry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_cross_limbs() {
        let mut limbs = [u64::MAX, u64::MAX];
        assert!(add_small(&mut limbs, 1));
        assert_eq!(limbs, [0, 0]);
        let mut limbs = [u64::MAX, 0];
        assert!(!add(&mut limbs, &[1, 0]));
        assert_eq!(limbs, [0, 1]);
        assert_eq!(mul_small(&mut [u64::MAX, u64::MAX], 2), 1);
        assert!(shift_in(&mut [0, 1 << 63], true));
    }

    #[test]
    fn products_and_quotients_agree_with_128_bit_arithmetic() {
        let (a, b) = (0xdead_beef_0bad_cafe_u64, 0x1234_5678_9abc_def1_u64);
        let mut product = [0; 2];
        mul(&mut product, &[a], &[b]);
        let wide = u128::from(a) * u128::from(b);
        assert_eq!(product, [wide as u64, (wide >> 64) as u64]);
        let mut shifted = [0; 2];
        assert!(shift_right_into(&mut shifted, &product, 67));
        assert_eq!(shifted, [(wide >> 67) as u64, 0]);
        div_small(&mut product, 1_000_003);
        let quotient = wide / 1_000_003;
        assert_eq!(product, [quotient as u64, (quotient >> 64) as u64]);
    }

    #[test]
    fn a_shift_tells_whether_it_lost_a_one() {
        // Source, shift, remaining two limbs, whether a one was shifted out.
        let top = 1 << 63;
        for (source, shift, wanted, lost) in [
            ([0, 0, 0], 0, [0, 0], false),
            ([5, 6, 7], 0, [5, 6], false),
            ([0b100, 0b1, 0], 2, [1 | 1 << 62, 0], false),
            ([0b110, 0, 0], 2, [1, 0], true),
            ([1, 0, 0], 1, [0, 0], true),
            ([0b10, 0, 0], 1, [1, 0], false),
            ([top, 0, 0], 63, [1, 0], false),
            ([top | 1, 0, 0], 63, [1, 0], true),
            ([0, 9, 8], 64, [9, 8], false),
            ([1, 9, 8], 64, [9, 8], true),
            ([0, 0b10, 0b1], 65, [1 | top, 0], false),
            ([0, 0b11, 0b1], 65, [1 | top, 0], true),
            ([1, 0b10, 0b1], 65, [1 | top, 0], true),
            ([0, 0, 0b1000], 131, [1, 0], false),
            ([0, 1, 0b1000], 131, [1, 0], true),
        ] {
            let mut target = [0; 2];
            assert_eq!(
                shift_right_into(&mut target, &source, shift),
                lost,
                "{source:?} by {shift}"
            );
            assert_eq!(target, wanted, "{source:?} by {shift}");
        }
    }
}
