//! All inner nodes of one tile, computed once.
//!
//! Owns the nodes above a tile's hashes as far as they are complete; the caller decides whether and how long to keep
//! such a value. Invariant: an existing node is the same in every wider tile of the same name.

use crate::hash::{Hash, node_hash};
use crate::tile::TILE_WIDTH;

/// A tile's hashes and every complete node above them: 16 KiB for a full tile, which costs 255 hashes to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileNodes {
    /// By height: the hashes themselves, their pairs, and so on up to the last row that has a node.
    rows: Vec<Vec<Hash>>,
}

impl TileNodes {
    /// Computes the nodes above up to 256 hashes; further hashes do not belong to a tile and are dropped.
    pub fn new(mut hashes: Vec<Hash>) -> Self {
        hashes.truncate(usize::from(TILE_WIDTH));
        let mut rows = vec![hashes];
        while let Some(row) = rows.last().filter(|row| row.len() > 1) {
            // An odd hash at the end has no complete parent yet, and gets none.
            let above = row
                .chunks_exact(2)
                .map(|pair| node_hash(pair[0], pair[1]))
                .collect();
            rows.push(above);
        }
        Self { rows }
    }

    /// The node `level_in_tile` (0..=8) rows above the hashes, `index` from the left; `None` if it is not complete.
    pub fn node(&self, level_in_tile: u32, index: usize) -> Option<Hash> {
        self.rows.get(level_in_tile as usize)?.get(index).copied()
    }

    /// The tile's hashes, from the left.
    pub fn hashes(&self) -> &[Hash] {
        &self.rows[0]
    }

    /// Number of hashes, 0..=256.
    pub fn width(&self) -> usize {
        self.hashes().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{leaves, naive_root};

    #[test]
    fn node_exists_exactly_where_its_subtree_is_complete() {
        let leaves = leaves(256);
        for width in [0, 1, 2, 3, 7, 8, 100, 255, 256] {
            let nodes = TileNodes::new(leaves[..width].to_vec());
            for level in 0..=9 {
                for index in 0..=256usize {
                    let subtree = leaves[..width].get(index << level..(index + 1) << level);
                    assert_eq!(
                        nodes.node(level, index),
                        subtree.map(naive_root),
                        "{width} {level} {index}"
                    );
                }
            }
        }
    }

    #[test]
    fn surplus_hashes_are_dropped() {
        assert_eq!(TileNodes::new(leaves(300)), TileNodes::new(leaves(256)));
    }
}
