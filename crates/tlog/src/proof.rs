//! Proofs built from tiles.
//!
//! Owns the choice of nodes for a proof or root, and reads each tile once per proof. Does not own caching across
//! proofs (a [`TileSource`] does, by returning kept [`TileNodes`]) or the choice of trusted roots. Invariant: no more
//! than O(log n) node hashes are computed beyond those inside tiles.
//!
//! Spec: RFC 6962 §2.1.1 and §2.1.2 for building, RFC 9162 §2.1.3.2 and §2.1.4.2 for verifying.

mod nodes;
mod verify;

use std::sync::Arc;

use crate::hash::{Hash, empty_root, node_hash};
use crate::tile::{TILE_HEIGHT, TILE_WIDTH, TileId, hashes_at};

pub use nodes::TileNodes;
pub use verify::{MAX_PROOF_LEN, VerifyError, verify_consistency, verify_inclusion};

/// The source of tiles.
pub trait TileSource {
    /// The reason why a tile is not available.
    type Error;

    /// The hashes of the tile of `level` and `index`, at least `width` (1..=256) of them.
    ///
    /// The source may return a fuller tile: a tile only grows, so the first `width` hashes are the same and the rest
    /// are ignored.
    ///
    /// # Errors
    /// The source's own error; a proof passes it on as [`ProofError::Source`].
    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, Self::Error>;

    /// The same tile with its inner nodes. A source that keeps these saves 255 hashes per tile and proof.
    ///
    /// # Errors
    /// As for [`TileSource::tile`].
    fn nodes(&self, level: u8, index: u64, width: u16) -> Result<Arc<TileNodes>, Self::Error> {
        self.tile(level, index, width)
            .map(|hashes| Arc::new(TileNodes::new(hashes)))
    }
}

impl<S: TileSource + ?Sized> TileSource for &S {
    type Error = S::Error;

    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, Self::Error> {
        (**self).tile(level, index, width)
    }

    fn nodes(&self, level: u8, index: u64, width: u16) -> Result<Arc<TileNodes>, Self::Error> {
        (**self).nodes(level, index, width)
    }
}

/// The reason why a proof could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError<E> {
    /// The source could not provide a tile.
    #[error("a tile could not be read")]
    Source(#[source] E),
    /// The source returned fewer hashes than requested.
    #[error("{tile} was asked for and {have} hashes came back")]
    ShortTile {
        /// The requested tile.
        tile: TileId,
        /// The number of hashes returned.
        have: usize,
    },
    /// The index is not below the size.
    #[error("entry {index} is not in a tree of {size} entries")]
    IndexOutOfRange {
        /// The requested index, from 0.
        index: u64,
        /// The tree's size in entries.
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
}

/// The audit path of entry `index` in the tree of `size` entries, from the leaf to the root.
///
/// # Errors
/// [`ProofError`]; the source must hold every tile of a tree of at least `size` entries.
pub fn inclusion_proof<S: TileSource>(
    source: S,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, ProofError<S::Error>> {
    if index >= size {
        return Err(ProofError::IndexOutOfRange { index, size });
    }
    let mut reader = NodeReader::new(source, size);
    let mut range = Range {
        start: 0,
        end: size,
    };
    let mut path = Vec::new();
    while range.len() > 1 {
        let (left, right) = range.split();
        let sibling = if index < left.end { right } else { left };
        range = if index < left.end { left } else { right };
        path.push(reader.root_of(sibling)?);
    }
    // The walk went down from the root; RFC 6962 §2.1.1 lists a path from the leaf up.
    path.reverse();
    Ok(path)
}

/// The proof that the tree of `second` entries extends the one of `first`. Empty if `first` is 0 or `second`.
///
/// # Errors
/// [`ProofError`]; the source must hold every tile of a tree of at least `second` entries.
pub fn consistency_proof<S: TileSource>(
    source: S,
    first: u64,
    second: u64,
) -> Result<Vec<Hash>, ProofError<S::Error>> {
    if first > second {
        return Err(ProofError::SizesOutOfOrder { first, second });
    }
    if first == 0 || first == second {
        return Ok(Vec::new());
    }
    let mut reader = NodeReader::new(source, second);
    let mut range = Range {
        start: 0,
        end: second,
    };
    let mut path = Vec::new();
    while range.end != first {
        let (left, right) = range.split();
        let sibling = if first <= left.end { right } else { left };
        range = if first <= left.end { left } else { right };
        path.push(reader.root_of(sibling)?);
    }
    // A subtree that starts at 0 and ends at `first` is the older tree itself, and the verifier has its root.
    if range.start != 0 {
        path.push(reader.root_of(range)?);
    }
    path.reverse();
    Ok(path)
}

/// The root of the tree of `size` entries.
///
/// # Errors
/// [`ProofError`]; the source must hold every tile of a tree of at least `size` entries.
pub fn root_at<S: TileSource>(source: S, size: u64) -> Result<Hash, ProofError<S::Error>> {
    if size == 0 {
        return Ok(empty_root());
    }
    NodeReader::new(source, size).root_of(Range {
        start: 0,
        end: size,
    })
}

/// Entries `start..end`, never empty: a subtree that RFC 6962's splitting reaches. `start` is a multiple of the
/// smallest power of two that is not below the length.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    fn len(self) -> u64 {
        self.end - self.start
    }

    /// Both halves of a range of at least two: the left has the largest power of two below the length.
    fn split(self) -> (Self, Self) {
        let middle = self.start + (1 << (self.len() - 1).ilog2());
        (
            Self {
                start: self.start,
                end: middle,
            },
            Self {
                start: middle,
                end: self.end,
            },
        )
    }
}

/// Reads nodes of one tree and keeps the tiles they came from until the proof is done.
struct NodeReader<S> {
    source: S,
    size: u64,
    /// A proof meets at most two tiles of a level, so a search from the end is short.
    tiles: Vec<(TileId, Arc<TileNodes>)>,
}

impl<S: TileSource> NodeReader<S> {
    fn new(source: S, size: u64) -> Self {
        Self {
            source,
            size,
            tiles: Vec::new(),
        }
    }

    /// The root of a range, combined from its complete subtrees.
    fn root_of(&mut self, mut range: Range) -> Result<Hash, ProofError<S::Error>> {
        let mut lefts = Vec::new();
        while !range.len().is_power_of_two() {
            let (left, right) = range.split();
            lefts.push(self.complete_node(left)?);
            range = right;
        }
        let last = self.complete_node(range)?;
        Ok(lefts
            .into_iter()
            .rev()
            .fold(last, |right, left| node_hash(left, right)))
    }

    /// The node over a range whose length is a power of two.
    fn complete_node(&mut self, range: Range) -> Result<Hash, ProofError<S::Error>> {
        let height = range.len().ilog2();
        let (level, height_in_tile) = (height / TILE_HEIGHT, height % TILE_HEIGHT);
        // 2^row nodes of this height fill a whole tile.
        let row = TILE_HEIGHT - height_in_tile;
        let position = range.start >> height;
        let (index, index_in_tile) = (position >> row, position & ((1 << row) - 1));
        let nodes = self.tile(level as u8, index)?;
        Ok(nodes
            .node(height_in_tile, index_in_tile as usize)
            .expect("a complete subtree lies within its tile's width"))
    }

    fn tile(&mut self, level: u8, index: u64) -> Result<Arc<TileNodes>, ProofError<S::Error>> {
        let width =
            u64::from(TILE_WIDTH).min(hashes_at(level, self.size) - index * u64::from(TILE_WIDTH));
        let id = TileId::within_range(level, index, width as u16);
        if let Some((_, nodes)) = self.tiles.iter().rev().find(|(known, _)| *known == id) {
            return Ok(Arc::clone(nodes));
        }
        let nodes = self
            .source
            .nodes(level, index, id.width())
            .map_err(ProofError::Source)?;
        // A fuller tile is fine, but a narrower one lacks a node of the proof.
        if nodes.width() < usize::from(id.width()) {
            return Err(ProofError::ShortTile {
                tile: id,
                have: nodes.width(),
            });
        }
        self.tiles.push((id, Arc::clone(&nodes)));
        Ok(nodes)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;
    use crate::testing::{MemoryTiles, leaves, naive_path, naive_root, naive_subproof, tree_of};
    use crate::tree::Tree;

    #[test]
    fn every_proof_up_to_130_is_the_recursive_one_and_verifies() {
        let leaves = leaves(130);
        let tiles = MemoryTiles::of(tree_of(130));
        for n in 0..=130usize {
            let (size, root) = (n as u64, naive_root(&leaves[..n]));
            assert_eq!(root_at(&tiles, size).expect("at hand"), root);
            for m in 0..=n {
                let old_root = naive_root(&leaves[..m]);
                let proof = consistency_proof(&tiles, m as u64, size).expect("at hand");
                let naive = if m == 0 {
                    vec![]
                } else {
                    naive_subproof(m, &leaves[..n], true)
                };
                assert_eq!(proof, naive, "consistency {m} {n}");
                assert_eq!(
                    verify_consistency(m as u64, size, &proof, old_root, root),
                    Ok(()),
                    "consistency {m} {n}"
                );
                if m < n {
                    let proof = inclusion_proof(&tiles, m as u64, size).expect("at hand");
                    let naive: Vec<Hash> = naive_path(m, &leaves[..n])
                        .into_iter()
                        .map(|(_, hash)| hash)
                        .collect();
                    assert_eq!(proof, naive, "inclusion {m} {n}");
                    assert_eq!(
                        verify_inclusion(leaves[m], m as u64, size, &proof, root),
                        Ok(()),
                        "inclusion {m} {n}"
                    );
                }
            }
        }
    }

    #[test]
    fn proofs_across_tile_levels_verify_and_read_each_tile_once() {
        let (total, leaves) = (70_000, leaves(70_000));
        let tiles = MemoryTiles::of(tree_of(total));
        for size in [
            255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_793, 69_999, 70_000u64,
        ] {
            let root = root_at(&tiles, size).expect("at hand");
            assert_eq!(root, naive_root(&leaves[..size as usize]), "{size}");
            for index in [0, 1, 127, 254, size / 2, size - 2, size - 1] {
                tiles.reads.borrow_mut().clear();
                let proof = inclusion_proof(&tiles, index, size).expect("at hand");
                assert_eq!(
                    verify_inclusion(leaves[index as usize], index, size, &proof, root),
                    Ok(())
                );
                let mut reads = tiles.reads.borrow().clone();
                reads.sort_unstable();
                assert!(
                    reads.is_sorted_by(|a, b| a < b) && reads.len() <= 6,
                    "{index} {size}: {reads:?}"
                );

                let old_root = naive_root(&leaves[..index as usize]);
                let proof = consistency_proof(&tiles, index, size).expect("at hand");
                assert_eq!(
                    verify_consistency(index, size, &proof, old_root, root),
                    Ok(()),
                    "{index} {size}"
                );
            }
        }
    }

    #[test]
    fn question_outside_the_tree_is_refused() {
        let tiles = MemoryTiles::of(tree_of(7));
        for (index, size) in [(0, 0), (7, 7), (8, 7), (u64::MAX, 7)] {
            assert!(
                matches!(
                    inclusion_proof(&tiles, index, size),
                    Err(ProofError::IndexOutOfRange { .. })
                ),
                "{index} {size}"
            );
        }
        assert!(matches!(
            consistency_proof(&tiles, 8, 7),
            Err(ProofError::SizesOutOfOrder { .. })
        ));
        assert!(matches!(
            inclusion_proof(&tiles, 7, 8),
            Err(ProofError::ShortTile { have: 7, .. })
        ));
        assert!(matches!(
            inclusion_proof(&tiles, 1, u64::MAX),
            Err(ProofError::Source(_))
        ));
    }

    #[test]
    fn kept_nodes_are_used_instead_of_the_tile() {
        struct Kept(Arc<TileNodes>);
        impl TileSource for Kept {
            type Error = std::convert::Infallible;
            fn tile(&self, _: u8, _: u64, _: u16) -> Result<Vec<Hash>, Self::Error> {
                unreachable!("the nodes are kept")
            }
            fn nodes(&self, _: u8, _: u64, _: u16) -> Result<Arc<TileNodes>, Self::Error> {
                Ok(Arc::clone(&self.0))
            }
        }
        let leaves = leaves(200);
        let kept = Kept(Arc::new(TileNodes::new(leaves.clone())));
        let mut tree = Tree::new();
        for size in 1..=200 {
            tree.append(leaves[size - 1]);
            assert_eq!(root_at(&kept, size as u64), Ok(tree.root()), "{size}");
        }
    }

    /// `cargo test --release -p evidenceos-tlog --lib -- --ignored --nocapture million`
    #[test]
    #[ignore = "prints a measurement"]
    fn inclusion_proof_of_a_million_entries_is_quick() {
        let tiles = MemoryTiles::of(tree_of(1_000_000));
        let start = std::time::Instant::now();
        for round in 0..1000 {
            let proof = inclusion_proof(&tiles, round * 997, 1_000_000).expect("at hand");
            assert!(proof.len() <= 20);
        }
        println!(
            "{:?} per proof, tiles at hand, nodes not kept",
            start.elapsed() / 1000
        );

        let keeping = KeepingNodes {
            tiles: &tiles,
            kept: RefCell::default(),
        };
        for lap in ["first", "second"] {
            let start = std::time::Instant::now();
            for round in 0..1000 {
                inclusion_proof(&keeping, round * 997, 1_000_000).expect("at hand");
            }
            println!(
                "{:?} per proof, nodes kept, {lap} lap",
                start.elapsed() / 1000
            );
        }
    }

    /// Keeps nodes like a daemon, but without its bound on memory.
    struct KeepingNodes<'a> {
        tiles: &'a MemoryTiles,
        kept: RefCell<HashMap<(u8, u64), Arc<TileNodes>>>,
    }

    impl TileSource for KeepingNodes<'_> {
        type Error = std::io::Error;

        fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, Self::Error> {
            self.tiles.tile(level, index, width)
        }

        fn nodes(&self, level: u8, index: u64, width: u16) -> Result<Arc<TileNodes>, Self::Error> {
            if let Some(nodes) = self.kept.borrow().get(&(level, index)) {
                return Ok(Arc::clone(nodes));
            }
            let nodes = Arc::new(TileNodes::new(self.tile(level, index, width)?));
            self.kept
                .borrow_mut()
                .insert((level, index), Arc::clone(&nodes));
            Ok(nodes)
        }
    }
}
