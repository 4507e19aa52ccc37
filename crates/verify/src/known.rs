//! Heads that were signed earlier: the log must begin with the entries that they cover.
//!
//! Owns the reading of a checkpoint or an anchor's file, and the comparison with a log's entries. Only heads bind the
//! statements of an operator that nothing else in the log implies (reasons, amounts, times); a reader that kept a
//! head can hold the operator to all of them.

use evidenceos_tlog::{Checkpoint, Hash, Note, Tree, leaf_hash};
use thiserror::Error;

use crate::trust::{Distrust, Trust};

/// A head that was signed earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known(Checkpoint);

/// The reason why a log does not begin with a known head, or a file is not a head.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotKnown {
    /// The file is not a signed checkpoint.
    #[error("it is not a signed checkpoint")]
    Format,
    /// No trusted key has signed it.
    #[error(transparent)]
    Signature(#[from] Distrust),
    /// The log is shorter than the head.
    #[error(
        "it covers {known} entries, but the log has only {entries}: entries were taken out, or the log given is older"
    )]
    Shorter {
        /// Entries that the head covers.
        known: u64,
        /// Entries that were given.
        entries: u64,
    },
    /// The log begins with other entries.
    #[error(
        "the log's first {size} entries have root {computed}, but {signed} was signed: an entry was changed since"
    )]
    Other {
        /// Entries that the head covers.
        size: u64,
        /// The root of the entries.
        computed: Hash,
        /// The root that was signed.
        signed: Hash,
    },
}

impl Known {
    /// Reads a head that a trusted key has signed. Before a restart the log had another name, under which the same
    /// key signed.
    ///
    /// # Errors
    /// [`NotKnown::Format`] if the file is not a checkpoint, [`NotKnown::Signature`] if no trusted key signed it.
    pub fn open(note: &[u8], trust: &Trust) -> Result<Self, NotKnown> {
        // The name in the note only selects the keys: `open` checks their signature under it.
        let stated: Checkpoint = Note::parse(note)
            .ok()
            .and_then(|note| note.text().parse().ok())
            .ok_or(NotKnown::Format)?;
        let signed = trust.named(stated.origin()).open(note)?;
        Ok(Self(signed.checkpoint().clone()))
    }

    /// The head's origin, size and root.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.0
    }

    /// Compares the log's beginning with the head.
    ///
    /// # Errors
    /// [`NotKnown::Shorter`] if entries are missing, [`NotKnown::Other`] if the log begins with
    /// other entries.
    pub fn must_be_a_prefix_of<E: AsRef<[u8]>>(&self, entries: &[E]) -> Result<(), NotKnown> {
        let known = self.0.size();
        let shorter = NotKnown::Shorter {
            known,
            entries: entries.len() as u64,
        };
        let size = usize::try_from(known).map_err(|_| shorter.clone())?;
        let prefix = entries.get(..size).ok_or(shorter)?;
        let mut tree = Tree::new();
        for entry in prefix {
            tree.append(leaf_hash(entry.as_ref()));
            // Only the root is needed: drop the completed tiles, so that they do not pile up.
            drop(tree.take_full_tiles());
        }
        let (computed, signed) = (tree.root(), self.0.root());
        if computed == signed {
            Ok(())
        } else {
            Err(NotKnown::Other {
                size: known,
                computed,
                signed,
            })
        }
    }
}
