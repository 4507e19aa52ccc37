//! The verifiers, step by step as in RFC 9162.
//!
//! They trust nothing: indices, sizes and proofs may come from any party. Roots must come from a checkpoint that
//! binds the size, since a proof alone does not distinguish sizes whose paths have the same shape.
//!
//! Spec: RFC 9162 §2.1.3.2 (inclusion) and §2.1.4.2 (consistency).

use crate::hash::{Hash, empty_root, node_hash};

/// The longest proof that is read, in hashes: a tree of 2^64 entries is 64 nodes high.
pub const MAX_PROOF_LEN: usize = 64;

/// The reason why a proof does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The index is not below the size.
    #[error("entry {index} is not in a tree of {size} entries")]
    IndexOutOfRange {
        /// The claimed index, from 0.
        index: u64,
        /// The claimed size, in entries.
        size: u64,
    },
    /// The first size is above the second.
    #[error("a tree of {second} entries cannot extend one of {first}")]
    SizesOutOfOrder {
        /// The older size in entries.
        first: u64,
        /// The newer size in entries.
        second: u64,
    },
    /// The proof has more or fewer hashes than the sizes demand.
    #[error("a proof of {hashes} hashes is too long or too short for these sizes")]
    WrongLength {
        /// Hashes in the proof.
        hashes: usize,
    },
    /// The proof leads to another root of the (newer) tree.
    #[error("the proof leads to root {computed}, not to {claimed}")]
    RootMismatch {
        /// The root that the proof leads to.
        computed: Hash,
        /// The root that was to be proved.
        claimed: Hash,
    },
    /// The proof leads to another root of the older tree.
    #[error("the proof leads to old root {computed}, not to {claimed}")]
    OldRootMismatch {
        /// The root that the proof leads to.
        computed: Hash,
        /// The old root that was to be proved.
        claimed: Hash,
    },
}

/// Checks that the leaf hash `leaf` is entry `index` of the tree of `size` entries with this `root`.
///
/// # Errors
/// [`VerifyError`] if it is not proved.
pub fn verify_inclusion(
    leaf: Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: Hash,
) -> Result<(), VerifyError> {
    // Step 1 of RFC 9162 §2.1.3.2.
    if index >= size {
        return Err(VerifyError::IndexOutOfRange { index, size });
    }
    let wrong_length = VerifyError::WrongLength {
        hashes: proof.len(),
    };
    if proof.len() > MAX_PROOF_LEN {
        return Err(wrong_length);
    }
    // Steps 2 and 3: `node` is `fn` and `last` is `sn`.
    let mut walk = Walk {
        node: index,
        last: size - 1,
    };
    let mut computed = leaf;
    // Step 4. If the walk reaches the root before the proof ends, the proof is too long.
    for sibling in proof {
        computed = match walk.step().ok_or(wrong_length)? {
            Side::Left => node_hash(*sibling, computed),
            Side::Right => node_hash(computed, *sibling),
        };
    }
    // Step 5 demands that `sn` is 0: otherwise the proof is too short for the size.
    if walk.last != 0 {
        return Err(wrong_length);
    }
    expect_root(computed, root)
}

/// Checks that the tree of `second` entries with root `root2` extends the tree of `first` entries with root `root1`.
///
/// Every tree extends the empty one: for `first` = 0 the proof is empty and `root1` the empty root, and the proof
/// shows nothing about `root2`.
///
/// # Errors
/// [`VerifyError`] if it is not proved.
pub fn verify_consistency(
    first: u64,
    second: u64,
    proof: &[Hash],
    root1: Hash,
    root2: Hash,
) -> Result<(), VerifyError> {
    if first > second {
        return Err(VerifyError::SizesOutOfOrder { first, second });
    }
    let wrong_length = VerifyError::WrongLength {
        hashes: proof.len(),
    };
    if proof.len() > MAX_PROOF_LEN {
        return Err(wrong_length);
    }
    if first == 0 {
        expect_old_root(empty_root(), root1)?;
    }
    if first == second {
        expect_root(root1, root2)?;
    }
    // These two cases need no hashing, and a proof has one form.
    if first == 0 || first == second {
        return if proof.is_empty() {
            Ok(())
        } else {
            Err(wrong_length)
        };
    }

    // If `first` is a power of two, the older root is itself a node of the newer tree and the proof omits it.
    let (start, rest) = match proof.split_first() {
        None => return Err(wrong_length),
        Some(_) if first.is_power_of_two() => (root1, proof),
        Some((start, rest)) => (*start, rest),
    };
    // Steps 3 and 4 of RFC 9162 §2.1.4.2; steps 1, 2 and 5 chose `start`.
    let mut walk = Walk {
        node: first - 1,
        last: second - 1,
    };
    walk.rise(walk.node.trailing_ones());
    let (mut old, mut new) = (start, start);
    for sibling in rest {
        match walk.step().ok_or(wrong_length)? {
            // A left sibling belongs to both trees; a right one only to the newer tree.
            Side::Left => (old, new) = (node_hash(*sibling, old), node_hash(*sibling, new)),
            Side::Right => new = node_hash(new, *sibling),
        }
    }
    // Step 7 also demands that `sn` is 0: a proof that ends below the root shows nothing about the
    // newer tree.
    if walk.last != 0 {
        return Err(wrong_length);
    }
    expect_old_root(old, root1)?;
    expect_root(new, root2)
}

/// The walk from a node to the root: RFC 9162's `fn` and `sn`, the node's index and the last one's in its row.
struct Walk {
    node: u64,
    last: u64,
}

/// The side of the next sibling.
enum Side {
    Left,
    Right,
}

impl Walk {
    /// Takes one hash of the proof; `None` if the walk is already at the root.
    fn step(&mut self) -> Option<Side> {
        if self.last == 0 {
            return None;
        }
        let side = if !self.node.is_multiple_of(2) || self.node == self.last {
            // An even last node has no sibling in its row and rises unchanged until it has one on the left.
            if self.node.is_multiple_of(2) {
                self.rise(self.node.trailing_zeros());
            }
            Side::Left
        } else {
            Side::Right
        };
        self.rise(1);
        Some(side)
    }

    /// Goes up `rows` rows, past the top to zero.
    fn rise(&mut self, rows: u32) {
        // A shift by all 64 bits overflows, and means past the top.
        self.node = self.node.checked_shr(rows).unwrap_or(0);
        self.last = self.last.checked_shr(rows).unwrap_or(0);
    }
}

fn expect_root(computed: Hash, claimed: Hash) -> Result<(), VerifyError> {
    if computed == claimed {
        Ok(())
    } else {
        Err(VerifyError::RootMismatch { computed, claimed })
    }
}

fn expect_old_root(computed: Hash, claimed: Hash) -> Result<(), VerifyError> {
    if computed == claimed {
        Ok(())
    } else {
        Err(VerifyError::OldRootMismatch { computed, claimed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{leaves, naive_path, naive_root, naive_subproof};

    /// Every proof that differs from this one by a flipped bit, a missing hash or an additional one.
    fn damaged(proof: &[Hash]) -> Vec<Vec<Hash>> {
        let mut all = Vec::new();
        for position in 0..=proof.len() {
            let mut longer = proof.to_vec();
            longer.insert(position, Hash([position as u8; 32]));
            all.push(longer);
            if let Some(twice) = proof.get(position) {
                let mut flipped = proof.to_vec();
                flipped[position].0[position % 32] ^= 1;
                let mut shorter = proof.to_vec();
                shorter.remove(position);
                let mut repeated = proof.to_vec();
                repeated.insert(position, *twice);
                all.extend([flipped, shorter, repeated]);
            }
        }
        all
    }

    #[test]
    fn damaged_inclusion_proof_is_refused_for_every_pair_up_to_130() {
        let leaves = leaves(130);
        for n in 1..=130usize {
            let root = naive_root(&leaves[..n]);
            for m in 0..n {
                let proof: Vec<Hash> = naive_path(m, &leaves[..n])
                    .into_iter()
                    .map(|(_, hash)| hash)
                    .collect();
                let holds = |leaf, index: usize, proof: &[Hash], root| {
                    verify_inclusion(leaf, index as u64, n as u64, proof, root).is_ok()
                };
                assert!(holds(leaves[m], m, &proof, root), "{m} {n}");
                for bad in damaged(&proof) {
                    assert!(!holds(leaves[m], m, &bad, root), "{m} {n} {bad:?}");
                }
                let wrong_indices = if n <= 40 {
                    0..n + 2
                } else {
                    m.saturating_sub(2)..m + 3
                };
                for index in wrong_indices.filter(|index| *index != m) {
                    assert!(
                        !holds(leaves[m], index, &proof, root),
                        "{m} as {index} of {n}"
                    );
                }
                assert!(
                    !holds(leaves[(m + 1) % 130], m, &proof, root),
                    "{m} {n}: another leaf"
                );
                assert!(
                    !holds(leaves[m], m, &proof, Hash([0; 32])),
                    "{m} {n}: another root"
                );
            }
        }
    }

    #[test]
    fn wrong_size_passes_exactly_where_the_path_has_the_same_shape() {
        let leaves = leaves(40);
        let shape = |m, n: usize| {
            naive_path(m, &leaves[..n])
                .iter()
                .map(|(left, _)| *left)
                .collect::<Vec<_>>()
        };
        for n in 1..=40 {
            let root = naive_root(&leaves[..n]);
            for m in 0..n {
                let proof: Vec<Hash> = naive_path(m, &leaves[..n])
                    .into_iter()
                    .map(|(_, hash)| hash)
                    .collect();
                for size in 1..=40usize {
                    let passes =
                        verify_inclusion(leaves[m], m as u64, size as u64, &proof, root).is_ok();
                    assert_eq!(
                        passes,
                        m < size && shape(m, size) == shape(m, n),
                        "{m} of {n} as of {size}"
                    );
                }
            }
        }
    }

    #[test]
    fn damaged_consistency_proof_is_refused_for_every_pair_up_to_130() {
        let leaves = leaves(130);
        let roots: Vec<Hash> = (0..=130).map(|n| naive_root(&leaves[..n])).collect();
        for n in 1..=130usize {
            for m in 1..=n {
                let proof = naive_subproof(m, &leaves[..n], true);
                let holds = |first: usize, second: usize, proof: &[Hash], root1, root2| {
                    verify_consistency(first as u64, second as u64, proof, root1, root2).is_ok()
                };
                assert!(holds(m, n, &proof, roots[m], roots[n]), "{m} {n}");
                for bad in damaged(&proof) {
                    assert!(!holds(m, n, &bad, roots[m], roots[n]), "{m} {n} {bad:?}");
                }
                let neighbours = if n <= 40 {
                    0..n + 2
                } else {
                    m.saturating_sub(2)..m + 3
                };
                for first in neighbours.filter(|first| *first != m) {
                    assert!(
                        !holds(first, n, &proof, roots[m], roots[n]),
                        "{m} as {first}, {n}"
                    );
                }
                let seconds = if n <= 40 { m..n + 3 } else { 0..0 };
                for second in seconds {
                    let same_length =
                        naive_subproof(m, &leaves[..second], true).len() == proof.len();
                    assert!(
                        same_length || !holds(m, second, &proof, roots[m], roots[n]),
                        "{m}, {n} as {second}"
                    );
                }
                assert!(
                    !holds(m, n, &proof, Hash([0; 32]), roots[n]),
                    "{m} {n}: another old root"
                );
                assert!(
                    !holds(m, n, &proof, roots[m], Hash([0; 32])),
                    "{m} {n}: another new root"
                );
            }
        }
    }

    #[test]
    fn second_checkpoint_of_same_size_needs_same_root() {
        let leaves = leaves(3);
        let (root, other) = (naive_root(&leaves), naive_root(&leaves[..2]));
        let zero = empty_root();
        for (first, second, proof, root1, root2, holds) in [
            (3, 3, &[][..], root, root, true),
            (3, 3, &[], root, other, false),
            (3, 3, &[root], root, root, false),
            (0, 3, &[], zero, root, true),
            (0, 3, &[], root, root, false),
            (0, 3, &[root], zero, root, false),
            (0, 0, &[], zero, zero, true),
            (0, 0, &[], root, root, false),
            (2, 3, &[], other, root, false),
            (3, 2, &[], root, other, false),
        ] {
            let got = verify_consistency(first, second, proof, root1, root2);
            assert_eq!(
                got.is_ok(),
                holds,
                "{first} {second} {}: {got:?}",
                proof.len()
            );
        }
    }

    #[test]
    fn extreme_sizes_neither_overflow_nor_pass() {
        let proof = [Hash([7; 32]); 65];
        for index in [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            for length in [0, 1, 63, 64, 65] {
                let proof = &proof[..length];
                assert!(
                    verify_inclusion(proof_leaf(), index, u64::MAX, proof, Hash([0; 32])).is_err()
                );
                let (zero, one) = (Hash([0; 32]), Hash([1; 32]));
                assert!(verify_consistency(index, u64::MAX, proof, zero, one).is_err());
            }
        }
    }

    fn proof_leaf() -> Hash {
        Hash([9; 32])
    }
}
