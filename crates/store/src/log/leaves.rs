//! Extends a tree to the entries of a store.

use evidenceos_tlog::{Hash, Tree};

use crate::{Rows, StoreError};

/// Leaves read at once.
const LEAVES: u64 = 4_096;

/// The fate of a tree's full tiles while it grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiles {
    /// They stay in the tree, to be written: 8 KiB per 256 entries.
    Keep,
    /// They are dropped: only size and root are needed.
    Drop,
}

/// Appends the leaves of a store's entries until the tree has `size` of them.
///
/// # Errors
/// [`StoreError::Damaged`] if the store has fewer entries, or the error of reading them.
pub fn append_leaves(
    tree: &mut Tree,
    rows: &dyn Rows,
    size: u64,
    tiles: Tiles,
) -> Result<(), StoreError> {
    while tree.size() < size {
        // Read no more than that: the store may have further entries.
        let count = (size - tree.size()).min(LEAVES);
        let leaves = rows.leaves(tree.size(), count as usize)?;
        if leaves.is_empty() {
            return Err(StoreError::Damaged {
                table: "entries",
                key: tree.size().to_string(),
                what: "entries are missing",
            });
        }
        // Only an empty page means a gap: the last page of a log is shorter than requested.
        for leaf in leaves {
            tree.append(leaf);
        }
        if tiles == Tiles::Drop {
            // Drop them after each page: the tiles of a whole log would fill memory.
            drop(tree.take_full_tiles());
        }
    }
    Ok(())
}

/// The root over the first `size` entries of a store.
///
/// # Errors
/// As [`append_leaves`].
pub fn root_of_entries(rows: &dyn Rows, size: u64) -> Result<Hash, StoreError> {
    let mut tree = Tree::new();
    append_leaves(&mut tree, rows, size, Tiles::Drop)?;
    Ok(tree.root())
}
