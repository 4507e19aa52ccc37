//! Reference implementations for the unit tests: RFC 6962 written recursively, and tiles in a map.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::hash::{Hash, empty_root, leaf_hash, node_hash};
use crate::proof::TileSource;
use crate::tile::TileId;
use crate::tree::Tree;

pub(crate) fn leaves(count: usize) -> Vec<Hash> {
    (0..count)
        .map(|i| leaf_hash(format!("leaf {i}").as_bytes()))
        .collect()
}

pub(crate) fn tree_of(size: usize) -> Tree {
    let mut tree = Tree::new();
    leaves(size)
        .into_iter()
        .for_each(|leaf| _ = tree.append(leaf));
    tree
}

fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

/// MTH(D[n]) of RFC 6962 §2.1.
pub(crate) fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(naive_root(left), naive_root(right))
        }
    }
}

/// PATH(m, D[n]) of RFC 6962 §2.1.1; each hash with a flag that it is on the left.
pub(crate) fn naive_path(m: usize, leaves: &[Hash]) -> Vec<(bool, Hash)> {
    if leaves.len() <= 1 {
        return vec![];
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut path, sibling) = if m < left.len() {
        (naive_path(m, left), (false, naive_root(right)))
    } else {
        (naive_path(m - left.len(), right), (true, naive_root(left)))
    };
    path.push(sibling);
    path
}

/// SUBPROOF(m, D[n], b) of RFC 6962 §2.1.2.
pub(crate) fn naive_subproof(m: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if m == leaves.len() {
        return if whole {
            vec![]
        } else {
            vec![naive_root(leaves)]
        };
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut proof, sibling) = if m <= left.len() {
        (naive_subproof(m, left, whole), naive_root(right))
    } else {
        (
            naive_subproof(m - left.len(), right, false),
            naive_root(left),
        )
    };
    proof.push(sibling);
    proof
}

/// Tiles of one tree, with a count of the reads of each.
pub(crate) struct MemoryTiles {
    tiles: BTreeMap<(u8, u64), Vec<Hash>>,
    pub(crate) reads: RefCell<Vec<TileId>>,
}

impl MemoryTiles {
    pub(crate) fn of(mut tree: Tree) -> Self {
        let all = tree
            .take_full_tiles()
            .into_iter()
            .chain(tree.partial_tiles());
        let tiles = all
            .map(|tile| {
                (
                    (tile.id().level(), tile.id().index()),
                    tile.hashes().to_vec(),
                )
            })
            .collect();
        Self {
            tiles,
            reads: RefCell::default(),
        }
    }
}

impl TileSource for MemoryTiles {
    type Error = std::io::Error;

    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, Self::Error> {
        self.reads
            .borrow_mut()
            .push(TileId::within_range(level, index, width));
        self.tiles
            .get(&(level, index))
            .cloned()
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}
