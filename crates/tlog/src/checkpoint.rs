//! The tree head as a text, and as a signed note.
//!
//! Owns the three lines (origin, size, root) and the rule that the log itself must have signed. Does not own the
//! order of sizes: a consistency proof and the writer check it. Invariant: a checkpoint that parses formats back to
//! the same text, extension lines included.
//!
//! Spec: C2SP tlog-checkpoint v1.0.0.

use std::fmt;
use std::str::FromStr;

use crate::hash::Hash;
use crate::note::{
    KeyKind, Note, NoteError, NoteSignature, SignerKey, VerifiedSignature, VerifierKey,
};
use crate::text;

/// The reason why a checkpoint is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The origin is empty or has a line feed or another control character.
    #[error("{origin:?} cannot be an origin")]
    Origin { origin: String },
    /// The text is not an origin, a size and a root on one line each, and then non-empty lines.
    #[error("a checkpoint is an origin, a decimal size and a base64 root, on one line each")]
    Shape,
    /// The checkpoint is of another log.
    #[error("the checkpoint is of {found:?}, not of {expected:?}")]
    OtherLog {
        /// The name of the log's key.
        expected: String,
        /// The origin that the checkpoint has.
        found: String,
    },
    /// The log's key signs something other than notes.
    #[error("key {name} is a witness's and not a log's")]
    NotALogKey {
        /// The name in the key.
        name: String,
    },
    /// The note itself is refused.
    #[error(transparent)]
    Note(#[from] NoteError),
}

/// One log's size and root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: Hash,
    extensions: Vec<String>,
}

impl Checkpoint {
    /// The head of the log called `origin`: its `size` in entries and its `root`.
    ///
    /// # Errors
    /// [`CheckpointError::Origin`].
    pub fn new(origin: &str, size: u64, root: Hash) -> Result<Self, CheckpointError> {
        // A line feed in the origin would make its rest the size.
        if origin.is_empty() || origin.contains(char::is_control) {
            return Err(CheckpointError::Origin {
                origin: origin.to_owned(),
            });
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
            extensions: Vec::new(),
        })
    }

    /// The log's name, the checkpoint's first line.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Entries in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The tree's root (RFC 9162).
    pub fn root(&self) -> Hash {
        self.root
    }

    /// Lines after the root: kept when read, given no meaning, and never written by this log.
    pub fn extensions(&self) -> &[String] {
        &self.extensions
    }
}

/// The text that is signed, with its last line feed.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}\n{}\n{}",
            self.origin,
            self.size,
            self.root.to_base64()
        )?;
        self.extensions
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // tlog-checkpoint ends each line with a line feed, the last one too.
        let mut lines = text
            .strip_suffix('\n')
            .ok_or(CheckpointError::Shape)?
            .split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(CheckpointError::Shape);
        };
        let size = text::decimal(size).ok_or(CheckpointError::Shape)?;
        let root = Hash::from_base64(root).map_err(|_| CheckpointError::Shape)?;
        let mut checkpoint = Self::new(origin, size, root)?;
        checkpoint.extensions = lines.map(str::to_owned).collect();
        // tlog-checkpoint allows lines after the root, and no empty ones.
        if checkpoint.extensions.iter().any(String::is_empty) {
            Err(CheckpointError::Shape)
        } else {
            Ok(checkpoint)
        }
    }
}

/// A checkpoint that its log has signed, with the signatures of known witnesses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: Note,
    cosignatures: Vec<VerifiedSignature>,
}

impl SignedCheckpoint {
    /// Signs a checkpoint with the log's key, whose name is the origin.
    ///
    /// # Errors
    /// [`CheckpointError::OtherLog`] if the key has another name.
    pub fn sign(checkpoint: Checkpoint, key: &SignerKey) -> Result<Self, CheckpointError> {
        let signature = key.sign(&checkpoint.to_string());
        Self::from_signature(checkpoint, &key.verifier(), signature.bytes())
    }

    /// Joins a checkpoint with a signature made elsewhere, for instance by a key service: the 64 bytes of Ed25519
    /// over the checkpoint's text. A wrong signature is refused.
    ///
    /// # Errors
    /// [`CheckpointError`] if the key is not the log's or has not signed this text.
    pub fn from_signature(
        checkpoint: Checkpoint,
        log: &VerifierKey,
        signature: &[u8],
    ) -> Result<Self, CheckpointError> {
        let mut note = Note::new(checkpoint.to_string())?;
        note.add(NoteSignature::new(log.name(), log.id(), signature)?)?;
        // Open it like any foreign note, so that a wrong signature is refused before it gets out.
        Self::from_note(note, log, &[])
    }

    /// Reads a signed checkpoint and checks that the log has signed it. No witness need have signed, but the
    /// signature of a known witness must verify.
    ///
    /// # Errors
    /// [`CheckpointError`] if the note is malformed, a signature is wrong, or the checkpoint is of another log.
    pub fn open(
        bytes: &[u8],
        log: &VerifierKey,
        witnesses: &[VerifierKey],
    ) -> Result<Self, CheckpointError> {
        Self::from_note(Note::parse(bytes)?, log, witnesses)
    }

    /// As [`SignedCheckpoint::open`], for a note that was already parsed.
    ///
    /// # Errors
    /// As [`SignedCheckpoint::open`].
    pub fn from_note(
        note: Note,
        log: &VerifierKey,
        witnesses: &[VerifierKey],
    ) -> Result<Self, CheckpointError> {
        // A cosignature also covers a time: a witness's key does not sign for a log.
        if log.kind() != KeyKind::Ed25519 {
            return Err(CheckpointError::NotALogKey {
                name: log.name().to_owned(),
            });
        }
        // Open it with the log's key alone first: a witness's signature does not replace the log's.
        note.open(std::slice::from_ref(log))?;
        let checkpoint: Checkpoint = note.text().parse()?;
        // Without this check, a head of another log that the same key has signed would pass.
        if checkpoint.origin != log.name() {
            return Err(CheckpointError::OtherLog {
                expected: log.name().to_owned(),
                found: checkpoint.origin,
            });
        }
        let cosignatures = match note.open(witnesses) {
            Ok(opened) => opened
                .verified
                .into_iter()
                // A log's signature does not count as a witness's, even if its key is given as one.
                .filter(|s| s.kind == KeyKind::CosignatureV1)
                .collect(),
            // If no witness has signed, that is no fault here: the caller's policy decides how many
            // are enough.
            Err(NoteError::NotSigned) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            checkpoint,
            note,
            cosignatures,
        })
    }

    /// The checkpoint that the log's key has signed.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The signed note; its text form is the content of the log's `checkpoint` file.
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// The known witnesses that have signed, each listed once.
    pub fn cosignatures(&self) -> &[VerifiedSignature] {
        &self.cosignatures
    }

    /// Adds a witness's cosignature after checking it.
    ///
    /// # Errors
    /// [`CheckpointError::Note`] if it is not this witness's, does not verify, or there is no room.
    pub fn add_cosignature(
        &mut self,
        line: NoteSignature,
        witness: &VerifierKey,
    ) -> Result<(), CheckpointError> {
        let known = witness.kind() == KeyKind::CosignatureV1
            && line.name() == witness.name()
            && line.id() == witness.id();
        if !known {
            return Err(NoteError::NotSigned.into());
        }
        // Check it before adding it, since the note is passed on with all its lines.
        let verified = witness.verify(self.note.text(), line.bytes())?;
        self.note.add(line)?;
        // A second line by one witness must not count twice towards a quorum.
        if !self
            .cosignatures
            .iter()
            .any(|had| had.name == verified.name && had.id == verified.id)
        {
            self.cosignatures.push(verified);
        }
        Ok(())
    }
}

/// The text of the signed note, as the log's `checkpoint` file has it.
impl fmt::Display for SignedCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.note.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cosignature::{cosign, cosigner};
    use crate::hash::empty_root;
    use crate::note;

    const ORIGIN: &str = "log.example/1";

    fn key(name: &str, seed: u8) -> SignerKey {
        SignerKey::from_seed(name, [seed; 32]).expect("a valid name")
    }

    fn head(size: u64) -> Checkpoint {
        Checkpoint::new(ORIGIN, size, empty_root()).expect("a valid origin")
    }

    #[test]
    fn text_is_three_lines_and_parses_back() {
        let root = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(head(7).to_string(), format!("{ORIGIN}\n7\n{root}\n"));
        for text in [
            format!("a\n0\n{root}\n"),
            format!("a\n18446744073709551615\n{root}\nextension\nmore\n"),
        ] {
            assert_eq!(
                text.parse::<Checkpoint>().map(|parsed| parsed.to_string()),
                Ok(text)
            );
        }
        for bad in [
            String::new(),
            "\n".into(),
            format!("a\n1\n{root}"),
            format!("\n1\n{root}\n"),
            format!("a\n01\n{root}\n"),
            format!("a\n-1\n{root}\n"),
            format!("a\n\n{root}\n"),
            format!("a\n18446744073709551616\n{root}\n"),
            format!("a\n1\n{root}\n\n"),
            format!("a\n1\n{root}\n\nx\n"),
            format!("a\n1\n{}\n", &root[..40]),
            "a\n1\n".into(),
        ] {
            assert!(bad.parse::<Checkpoint>().is_err(), "{bad:?}");
        }
        assert!(Checkpoint::new("two\nlines", 0, empty_root()).is_err());
    }

    #[test]
    fn log_itself_must_have_signed_under_its_origin() {
        let (log, other, witness) = (key(ORIGIN, 1), key("log.example/2", 2), key("witness", 3));
        let signed = SignedCheckpoint::sign(head(5), &log).expect("the log's own key");
        let bytes = signed.to_string();
        assert_eq!(
            SignedCheckpoint::open(bytes.as_bytes(), &log.verifier(), &[]),
            Ok(signed)
        );

        assert!(matches!(
            SignedCheckpoint::sign(head(5), &other),
            Err(CheckpointError::OtherLog { .. })
        ));
        assert!(matches!(
            SignedCheckpoint::from_signature(
                head(6),
                &log.verifier(),
                &log.sign_bytes(head(5).to_string().as_bytes())
            ),
            Err(CheckpointError::Note(NoteError::BadSignature { .. }))
        ));
        let only_witness = note::sign(&head(5).to_string(), &[&witness])
            .expect("valid")
            .to_string();
        assert_eq!(
            SignedCheckpoint::open(
                only_witness.as_bytes(),
                &log.verifier(),
                &[witness.verifier()]
            ),
            Err(NoteError::NotSigned.into())
        );
        let as_witness = cosigner(&log).expect("a valid key");
        assert!(matches!(
            SignedCheckpoint::open(bytes.as_bytes(), &as_witness, &[]),
            Err(CheckpointError::NotALogKey { .. })
        ));
    }

    #[test]
    fn cosignature_is_added_only_if_it_verifies_and_counts_once() {
        let (log, witness) = (key(ORIGIN, 1), key("witness", 3));
        let known = cosigner(&witness).expect("a valid key");
        let mut signed = SignedCheckpoint::sign(head(5), &log).expect("the log's own key");
        let good = cosign(&witness, 10, signed.note().text()).expect("a valid key");
        let wrong = cosign(&witness, 10, "another\n").expect("a valid key");
        assert!(signed.add_cosignature(wrong, &known).is_err());
        assert!(
            signed
                .add_cosignature(good.clone(), &log.verifier())
                .is_err()
        );
        signed
            .add_cosignature(good.clone(), &known)
            .expect("verifies");
        signed.add_cosignature(good, &known).expect("verifies");
        assert_eq!(
            (
                signed.cosignatures().len(),
                signed.note().signatures().len()
            ),
            (1, 3)
        );

        let bytes = signed.to_string();
        assert_eq!(
            SignedCheckpoint::open(bytes.as_bytes(), &log.verifier(), &[known]),
            Ok(signed)
        );
        let without = SignedCheckpoint::open(bytes.as_bytes(), &log.verifier(), &[])
            .expect("the log has signed");
        assert_eq!(without.cosignatures(), []);
    }
}
