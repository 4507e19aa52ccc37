//! The entries that a database has, as a tree and by the names of their log.

use evidenceos_kernel::continuity::LogStarted;
use evidenceos_store::{StoreError, facts::Facts, reader::Readers};
use evidenceos_tlog::Tree;

/// Leaves read at once.
const LEAVES: usize = 4_096;

/// Brings a tree to a size by the entries that follow: those whose head was not signed yet, since
/// the KMS was slow when the process ended, or those that no file of the log has.
pub fn append_unsigned(tree: &mut Tree, readers: &Readers, size: u64) -> Result<(), StoreError> {
    while tree.size() < size {
        // No more than that: there may be entries beyond.
        let left = usize::try_from(size - tree.size()).unwrap_or(LEAVES);
        let leaves = readers.leaves(tree.size(), left.min(LEAVES))?;
        if leaves.is_empty() {
            return Err(StoreError::Damaged {
                table: "entries",
                key: tree.size().to_string(),
                what: "entries are missing",
            });
        }
        for leaf in leaves {
            tree.append(leaf);
        }
    }
    Ok(())
}

/// The names that the log had: others than today's, if it was begun anew.
pub fn former_origins(readers: &Readers, facts: &Facts) -> Result<Vec<String>, StoreError> {
    let first = readers.entries(0, 1)?;
    let started = first
        .first()
        .and_then(|entry| LogStarted::parse(&entry.bytes).ok());
    Ok(started
        .map(|started| started.origin)
        .into_iter()
        .chain(facts.former.iter().cloned())
        .collect())
}
