//! Trees whose leaves are all in memory: batches within an entry, not the log itself.
//!
//! The definitions of RFC 9162 §2.1.1 and §2.1.3.1, word for word. [`crate::verify_inclusion`]
//! checks these proofs like any other.

use crate::hash::{Hash, empty_root, node_hash};

/// The root over `leaves`.
#[must_use]
pub fn root_of(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = halves(leaves);
            node_hash(root_of(left), root_of(right))
        }
    }
}

/// The audit path of the leaf at `index`, from the leaf to the root; `None` if there is no such
/// leaf.
#[must_use]
pub fn path_in(leaves: &[Hash], index: usize) -> Option<Vec<Hash>> {
    if index >= leaves.len() {
        return None;
    }
    let (mut within, mut index, mut path) = (leaves, index, Vec::new());
    while within.len() > 1 {
        let (left, right) = halves(within);
        if index < left.len() {
            path.push(root_of(right));
            within = left;
        } else {
            path.push(root_of(left));
            index -= left.len();
            within = right;
        }
    }
    path.reverse();
    Some(path)
}

/// The largest power of two below the length, and the rest. The length is at least 2.
fn halves(leaves: &[Hash]) -> (&[Hash], &[Hash]) {
    // RFC 9162 §2.1.1 splits at the largest power of two below the length: at half of it, if the
    // length is a power of two itself.
    leaves.split_at(leaves.len().next_power_of_two() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        inclusion_proof,
        testing::{MemoryTiles, leaves, tree_of},
        verify_inclusion,
    };

    #[test]
    fn a_small_tree_is_the_beginning_of_a_log() {
        let all = leaves(300);
        let tiles = MemoryTiles::of(tree_of(300));
        for n in [0, 1, 2, 3, 7, 8, 9, 255, 256, 257, 300] {
            let root = root_of(&all[..n]);
            assert_eq!(root, tree_of(n).root(), "{n}");
            assert_eq!(path_in(&all[..n], n), None);
            for m in (0..n).step_by(1 + n / 20) {
                let path = path_in(&all[..n], m).expect("it is in");
                let logs = inclusion_proof(&tiles, m as u64, n as u64).expect("at hand");
                assert_eq!(path, logs, "{m} of {n}");
                assert_eq!(
                    verify_inclusion(all[m], m as u64, n as u64, &path, root),
                    Ok(())
                );
            }
        }
    }
}
