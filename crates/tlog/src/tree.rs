//! The right edge of the tree in memory: everything for appending and computing the root.
//!
//! Owns appending, the root and the tiles that appending completes. Does not own entries, files or older tiles.
//! Invariants: there is one peak per set bit of the size, and level L's partial tile holds exactly `(size / 256^L)
//! mod 256` hashes.
//!
//! A [`Tree`] is at most eight partial tiles (64 KiB, in practice three), so a clone is cheap and serves as a stage:
//! append a batch to the copy, and keep the copy once the batch is durable.
//!
//! Spec: RFC 6962 §2.1 for the shape, C2SP tlog-tiles for the tiles.

use std::sync::Arc;

use crate::hash::{Hash, empty_root, node_hash};
use crate::tile::{
    MAX_LEVEL, TILE_HEIGHT, TILE_WIDTH, TileError, TileId, hashes_at, tiles_for_size,
};

/// The most entries of a tree: 2^62, which appending one entry per nanosecond reaches after 146 years.
pub const MAX_SIZE: u64 = 1 << 62;

const LEVELS: usize = MAX_LEVEL as usize + 1;

/// One tile with its hashes; a clone shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    id: TileId,
    hashes: Arc<[Hash]>,
}

/// The reason why parts do not make a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The size is above [`MAX_SIZE`].
    #[error("a tree of {size} entries is larger than this log can be")]
    TooLarge {
        /// The requested size, in entries.
        size: u64,
    },
    /// The tiles are not those of the right edge, from level 0 upwards.
    #[error("a tree of {size} entries needs tile {expected:?}, but {found:?} was given")]
    WrongTile {
        /// The requested size, in entries.
        size: u64,
        /// The tile that the size demands next; `None` after the last.
        expected: Option<TileId>,
        /// The given tile; `None` if they ended early.
        found: Option<TileId>,
    },
}

impl Tile {
    /// Joins a name and its hashes.
    ///
    /// # Errors
    /// [`TileError::Width`] if the name states another number of hashes.
    pub fn new(id: TileId, hashes: impl Into<Arc<[Hash]>>) -> Result<Self, TileError> {
        let hashes = hashes.into();
        if hashes.len() == usize::from(id.width()) {
            Ok(Self { id, hashes })
        } else {
            Err(TileError::Width {
                width: hashes.len(),
            })
        }
    }

    /// The tile's level, index and width.
    pub fn id(&self) -> TileId {
        self.id
    }

    /// The tile's hashes, as many as its width.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }
}

/// The right edge of a Merkle tree that only grows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    size: u64,
    /// By tile level, the hashes of the partial tile: at most 255.
    edge: [Vec<Hash>; LEVELS],
    /// Roots of the complete subtrees given by the size's binary digits, largest first.
    peaks: Vec<Hash>,
    /// Tiles completed since they were last taken, oldest first.
    full: Vec<Tile>,
}

impl Tree {
    /// The tree without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Restores a tree from its size and the partial tiles of its right edge, in the order of [`tiles_for_size`].
    ///
    /// The caller compares [`Tree::root`] with a signed root: that shows whether these are the right hashes.
    ///
    /// # Errors
    /// [`TreeError::TooLarge`] if the size is too large, or [`TreeError::WrongTile`] if the tiles are not exactly
    /// those of the size.
    pub fn from_parts(
        size: u64,
        right_edge: impl IntoIterator<Item = Tile>,
    ) -> Result<Self, TreeError> {
        if size > MAX_SIZE {
            return Err(TreeError::TooLarge { size });
        }
        let mut tree = Self {
            size,
            ..Self::default()
        };
        let mut expected = tiles_for_size(size).into_iter();
        let mut given = right_edge.into_iter();
        loop {
            match (expected.next(), given.next()) {
                (None, None) => break,
                (Some(id), Some(tile)) if tile.id == id => {
                    tree.edge[usize::from(id.level())] = tile.hashes.to_vec();
                }
                (expected, found) => {
                    return Err(TreeError::WrongTile {
                        size,
                        expected,
                        found: found.map(|tile| tile.id),
                    });
                }
            }
        }
        // Peaks are sorted from the largest to the smallest, and higher levels have the larger
        // ones.
        tree.peaks = tree
            .edge
            .iter()
            .rev()
            .flat_map(|hashes| peaks_of(hashes))
            .collect();
        Ok(tree)
    }

    /// Entries in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf hash and returns its index. Costs one node hash on average, and at most 62.
    pub fn append(&mut self, leaf: Hash) -> u64 {
        let index = self.size;
        debug_assert!(index < MAX_SIZE);
        self.size += 1;
        self.push_to_edge(0, leaf);
        let mut node = leaf;
        // Every trailing one-bit of the old size is a peak that the new leaf completes into a larger one.
        for height in 1..=index.trailing_ones() {
            let left = self
                .peaks
                .pop()
                .expect("a tree has one peak per set bit of its size");
            node = node_hash(left, node);
            // The root of a subtree as high as a whole tile is the next hash one tile level up.
            if height % TILE_HEIGHT == 0 {
                self.push_to_edge((height / TILE_HEIGHT) as u8, node);
            }
        }
        self.peaks.push(node);
        index
    }

    /// The root hash: RFC 6962's MTH. At most 61 node hashes.
    pub fn root(&self) -> Hash {
        let from_the_right = self.peaks.iter().rev().copied();
        from_the_right
            .reduce(|right, left| node_hash(left, right))
            .unwrap_or_else(empty_root)
    }

    /// Hands over the tiles completed since the last call, oldest first.
    pub fn take_full_tiles(&mut self) -> Vec<Tile> {
        std::mem::take(&mut self.full)
    }

    /// The partial tiles of the right edge, from level 0 upwards: the input of [`Tree::from_parts`].
    pub fn partial_tiles(&self) -> Vec<Tile> {
        let hashes = |id: TileId| self.edge[usize::from(id.level())].as_slice().into();
        tiles_for_size(self.size)
            .into_iter()
            .map(|id| Tile {
                id,
                hashes: hashes(id),
            })
            .collect()
    }

    /// The hashes of a tile that the tree still holds: partial at the right edge, or full and not yet taken.
    pub fn tile(&self, level: u8, index: u64) -> Option<&[Hash]> {
        let is_wanted = |tile: &&Tile| tile.id.level() == level && tile.id.index() == index;
        if let Some(tile) = self.full.iter().rev().find(is_wanted) {
            return Some(tile.hashes());
        }
        let at_edge = hashes_at(level, self.size) / u64::from(TILE_WIDTH) == index;
        self.edge
            .get(usize::from(level))
            .filter(|hashes| at_edge && !hashes.is_empty())
            .map(Vec::as_slice)
    }

    fn push_to_edge(&mut self, level: u8, hash: Hash) {
        let partial = &mut self.edge[usize::from(level)];
        partial.push(hash);
        if partial.len() == usize::from(TILE_WIDTH) {
            // `append` has already counted the entry, so this hash is the last of its level.
            let index = hashes_at(level, self.size) / u64::from(TILE_WIDTH) - 1;
            let id = TileId::within_range(level, index, TILE_WIDTH);
            self.full.push(Tile {
                id,
                hashes: partial.as_slice().into(),
            });
            partial.clear();
        }
    }
}

/// The peaks over a partial tile's hashes, largest first.
fn peaks_of(mut hashes: &[Hash]) -> Vec<Hash> {
    let mut peaks = Vec::new();
    while !hashes.is_empty() {
        let (left, rest) = hashes.split_at(1 << hashes.len().ilog2());
        peaks.push(complete_root(left));
        hashes = rest;
    }
    peaks
}

/// The root over a power of two of hashes.
fn complete_root(hashes: &[Hash]) -> Hash {
    let mut row = hashes.to_vec();
    while row.len() > 1 {
        row = row
            .chunks_exact(2)
            .map(|pair| node_hash(pair[0], pair[1]))
            .collect();
    }
    row[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{leaves, naive_root, tree_of};

    #[test]
    fn root_is_the_recursive_one_at_every_size_around_tile_borders() {
        let leaves = leaves(1100);
        let mut tree = Tree::new();
        assert_eq!(tree.root(), empty_root());
        for (index, leaf) in leaves.iter().enumerate() {
            assert_eq!(tree.append(*leaf), index as u64);
            let size = index + 1;
            if size <= 300 || size % 256 <= 2 || size % 256 >= 254 {
                assert_eq!(tree.root(), naive_root(&leaves[..size]), "size {size}");
            }
        }
    }

    #[test]
    fn full_tile_appears_once_and_the_edge_starts_again() {
        let leaves = leaves(513);
        let mut tree = Tree::new();
        leaves[..255].iter().for_each(|leaf| _ = tree.append(*leaf));
        assert_eq!(tree.take_full_tiles(), []);
        leaves[255..].iter().for_each(|leaf| _ = tree.append(*leaf));
        assert_eq!(tree.tile(0, 1), Some(&leaves[256..512]));
        let names: Vec<String> = tree
            .take_full_tiles()
            .iter()
            .map(|tile| tile.id().to_string())
            .collect();
        assert_eq!(names, ["tile/0/000", "tile/0/001"]);
        assert_eq!(tree.take_full_tiles(), []);
        assert_eq!(
            (tree.tile(0, 1), tree.tile(0, 2)),
            (None, Some(&leaves[512..]))
        );
        let level_1 = [naive_root(&leaves[..256]), naive_root(&leaves[256..512])];
        assert_eq!(
            (tree.tile(1, 0), tree.tile(2, 0), tree.tile(9, 0)),
            (Some(&level_1[..]), None, None)
        );
    }

    #[test]
    fn stage_leaves_the_original_alone() {
        let tree = tree_of(300);
        let mut stage = tree.clone();
        stage.append(leaves(1)[0]);
        assert_eq!((tree.size(), stage.size()), (300, 301));
        assert_eq!(tree, tree_of(300));
    }

    #[test]
    fn parts_that_do_not_fit_the_size_are_refused() {
        let parts = tree_of(257).partial_tiles();
        assert_eq!(parts.len(), 2);
        let refused = |size, parts: &[Tile]| Tree::from_parts(size, parts.to_vec()).is_err();
        for size in [0, 1, 256, 258, 512, 513, u64::MAX] {
            assert!(refused(size, &parts), "{size}");
        }
        assert!(refused(257, &parts[..1]));
        assert!(refused(257, &[parts[1].clone(), parts[0].clone()]));
        assert!(refused(
            257,
            &[parts[0].clone(), parts[1].clone(), parts[1].clone()]
        ));
        assert_eq!(
            Tile::new(parts[0].id(), vec![]),
            Err(TileError::Width { width: 0 })
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn restored_tree_continues_like_the_original(size in 0usize..70_000, more in 0usize..600) {
            let mut original = tree_of(size);
            let _ = original.take_full_tiles();
            let mut restored = Tree::from_parts(original.size(), original.partial_tiles()).expect("own parts");
            prop_assert_eq!(&restored, &original);
            for leaf in leaves(more) {
                original.append(leaf);
                restored.append(leaf);
            }
            prop_assert_eq!(restored, original);
        }
    }
}
