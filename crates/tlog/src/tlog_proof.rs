//! The `.tlog-proof` file: everything for checking offline that an entry is in a log.
//!
//! Owns the text form and the check of proof and checkpoint together. Does not own the entry (its leaf hash comes
//! from the caller) or a policy on the number of witnesses. Invariant: a proof that parses formats back to the same
//! bytes.
//!
//! Spec: C2SP tlog-proof v1.

use std::fmt;

use crate::checkpoint::{CheckpointError, SignedCheckpoint};
use crate::hash::Hash;
use crate::note::{MAX_NOTE_BYTES, Note, NoteError, VerifierKey};
use crate::proof::{MAX_PROOF_LEN, VerifyError, verify_inclusion};
use crate::text;

/// The first line of every proof file.
pub const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// The longest proof file that is read, in bytes: 2 MiB.
pub const MAX_FILE_BYTES: usize = 2 * MAX_NOTE_BYTES;

/// The reason why a proof file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlogProofError {
    /// The file is longer than [`MAX_FILE_BYTES`].
    #[error("a proof file of {bytes} bytes is longer than {MAX_FILE_BYTES}")]
    TooLarge {
        /// The file's length in bytes.
        bytes: usize,
    },
    /// The file is not in the format.
    #[error("the proof file is wrong in line {line}")]
    Line {
        /// The first line that cannot be understood, counted from 1.
        line: usize,
    },
    /// The checkpoint is not a signed note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The checkpoint is refused.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The entry is not in that tree.
    #[error(transparent)]
    Inclusion(#[from] VerifyError),
}

/// An inclusion proof with the checkpoint that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlogProof {
    /// Data of the application, not covered by any signature.
    pub extra: Option<Vec<u8>>,
    /// The entry's index, from 0.
    pub index: u64,
    /// The audit path from the leaf to the root, at most 64 hashes.
    pub path: Vec<Hash>,
    /// The signed checkpoint, with cosignatures if there are any.
    pub checkpoint: Note,
}

impl TlogProof {
    /// Reads a proof file without checking its claims.
    ///
    /// # Errors
    /// [`TlogProofError`] if its form is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, TlogProofError> {
        if bytes.len() > MAX_FILE_BYTES {
            return Err(TlogProofError::TooLarge { bytes: bytes.len() });
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| NoteError::NotText)?;
        // The lines before the checkpoint contain no blank line; the note has one of its own.
        let (head, checkpoint) = whole
            .split_once("\n\n")
            .ok_or(TlogProofError::Line { line: 1 })?;
        let mut lines = head.split('\n').zip(1..).peekable();

        lines
            .next_if(|(line, _)| *line == HEADER)
            .ok_or(TlogProofError::Line { line: 1 })?;
        let extra = match lines.next_if(|(line, _)| line.starts_with("extra ")) {
            Some((line, number)) => {
                let base64 = line.strip_prefix("extra ").and_then(text::base64_decode);
                Some(base64.ok_or(TlogProofError::Line { line: number })?)
            }
            None => None,
        };
        let (line, number) = lines.next().ok_or(TlogProofError::Line { line: 2 })?;
        let index = line.strip_prefix("index ").and_then(text::decimal);
        let index = index.ok_or(TlogProofError::Line { line: number })?;
        let mut path = Vec::new();
        for (line, number) in lines {
            // No tree is higher than 64 nodes, so a longer path is refused before it takes memory.
            let hash = Hash::from_base64(line)
                .ok()
                .filter(|_| path.len() < MAX_PROOF_LEN);
            path.push(hash.ok_or(TlogProofError::Line { line: number })?);
        }
        Ok(Self {
            extra,
            index,
            path,
            checkpoint: Note::parse(checkpoint.as_bytes())?,
        })
    }

    /// Checks that the log has signed the checkpoint and that the leaf is in its tree. The result lists the known
    /// witnesses that have signed too.
    ///
    /// # Errors
    /// [`TlogProofError::Checkpoint`] if the checkpoint is refused, [`TlogProofError::Inclusion`] if the leaf is not
    /// in its tree.
    pub fn verify(
        &self,
        leaf: Hash,
        log: &VerifierKey,
        witnesses: &[VerifierKey],
    ) -> Result<SignedCheckpoint, TlogProofError> {
        let signed = SignedCheckpoint::from_note(self.checkpoint.clone(), log, witnesses)?;
        let head = signed.checkpoint();
        // Use the signed root: a path to a root that the file itself names would prove nothing.
        verify_inclusion(leaf, self.index, head.size(), &self.path, head.root())?;
        Ok(signed)
    }
}

impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", text::base64_encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        self.path
            .iter()
            .try_for_each(|hash| writeln!(f, "{}", hash.to_base64()))?;
        write!(f, "\n{}", self.checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::note::SignerKey;
    use crate::proof::inclusion_proof;
    use crate::testing::{MemoryTiles, leaves, tree_of};

    fn log() -> SignerKey {
        SignerKey::from_seed("log.example", [1; 32]).expect("a valid name")
    }

    fn proof(index: u64, extra: Option<Vec<u8>>) -> TlogProof {
        let tree = tree_of(11);
        let head =
            Checkpoint::new("log.example", tree.size(), tree.root()).expect("a valid origin");
        let checkpoint = SignedCheckpoint::sign(head, &log())
            .expect("its own key")
            .note()
            .clone();
        let path = inclusion_proof(&MemoryTiles::of(tree), index, 11).expect("at hand");
        TlogProof {
            extra,
            index,
            path,
            checkpoint,
        }
    }

    #[test]
    fn file_parses_back_and_proves_its_entry_only() {
        let leaves = leaves(11);
        for (index, extra) in [(0, None), (6, Some(b"extra".to_vec())), (10, Some(vec![]))] {
            let proof = proof(index, extra);
            let parsed = TlogProof::parse(proof.to_string().as_bytes());
            assert_eq!(parsed.as_ref(), Ok(&proof));
            let size = proof
                .verify(leaves[index as usize], &log().verifier(), &[])
                .map(|s| s.checkpoint().size());
            assert_eq!(size, Ok(11));
            let other = leaves[(index as usize + 1) % 11];
            assert!(matches!(
                proof.verify(other, &log().verifier(), &[]),
                Err(TlogProofError::Inclusion(_))
            ));
        }
    }

    #[test]
    fn file_has_the_published_lines() {
        let text = proof(10, Some(b"x".to_vec())).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], [HEADER, "extra eA==", "index 10"]);
        assert_eq!((lines[5], lines[6], lines.len()), ("", "log.example", 11));
    }

    #[test]
    fn malformed_file_is_refused_at_its_line() {
        let good = proof(3, Some(b"x".to_vec())).to_string();
        for (bad, line) in [
            (good.replace("@v1", "@v2"), 1),
            (good.replace("eA==", "eA"), 2),
            (good.replace("index 3", "index 03"), 3),
            (good.replace("index 3\n", ""), 3),
            (good.replace("index 3\n", "index 3\nAAAA\n"), 4),
            (good.replace("index 3\n", "index 3\nextra eA==\n"), 4),
            (good.replace("\n\n", "\n"), 1),
            (format!("\n{good}"), 1),
        ] {
            assert_eq!(
                TlogProof::parse(bad.as_bytes()),
                Err(TlogProofError::Line { line }),
                "{bad}"
            );
        }
        let hash = format!("{}\n", Hash([0; 32]).to_base64());
        let long = good.replace("index 3\n", &format!("index 3\n{}", hash.repeat(61)));
        assert_eq!(
            TlogProof::parse(long.as_bytes()),
            Err(TlogProofError::Line { line: 68 })
        );
        assert!(matches!(
            TlogProof::parse(good.trim_end().as_bytes()),
            Err(TlogProofError::Note(_))
        ));
        let bytes = MAX_FILE_BYTES + 1;
        assert_eq!(
            TlogProof::parse(&vec![b'a'; bytes]),
            Err(TlogProofError::TooLarge { bytes })
        );
    }
}
