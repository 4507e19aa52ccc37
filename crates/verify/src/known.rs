//! Heads that were signed earlier: the log must begin with what they cover.
//!
//! Owns the reading of a checkpoint or an anchor's file, and the comparison with a log's entries. What an operator
//! states and nothing else in the log implies (reasons, amounts, times) is bound by nothing but heads; somebody who
//! kept one can hold the operator to all of it.

use evidenceos_tlog::{Checkpoint, Hash, Note, Tree, leaf_hash};
use thiserror::Error;

use crate::trust::{Distrust, Trust};

/// A head that was signed earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known(Checkpoint);

/// Why a log is not the one that was known, or a file is no head.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotKnown {
    /// The file is not a signed checkpoint.
    #[error("it is not a signed checkpoint")]
    Format,
    /// No trusted key has signed it.
    #[error(transparent)]
    Signature(#[from] Distrust),
    /// The log is shorter than it was.
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
        /// What the entries hash to.
        computed: Hash,
        /// The root that was signed.
        signed: Hash,
    },
}

impl Known {
    /// Reads a head that a trusted key has signed. A log that was restarted had another name before, under which the
    /// same key signed.
    ///
    /// # Errors
    /// [`NotKnown::Format`] and [`NotKnown::Signature`].
    pub fn open(note: &[u8], trust: &Trust) -> Result<Self, NotKnown> {
        // The name in the note is only taken to choose the keys: `open` checks their signature
        // under it.
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
    /// [`NotKnown::Shorter`] and [`NotKnown::Other`].
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
            // Only the root is wanted: completed tiles need not pile up.
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
