//! Signed notes: a text, a blank line, and one line for each signature.
//!
//! Owns the envelope: parsing, formatting, signing and opening. Does not own the content of the text (`checkpoint`)
//! or the choice of trusted keys. Invariants: a note that parses formats back to the same bytes, and [`open`] returns
//! a text only if a given key has signed it.
//!
//! Spec: C2SP signed-note v1.0.0.

mod error;
mod key;

use std::fmt;

use crate::text;

pub use error::NoteError;
pub use key::{KeyId, KeyKind, SignerKey, VerifierKey};

/// The longest note that is read, in bytes: 1 MiB.
pub const MAX_NOTE_BYTES: usize = 1 << 20;

/// The most signatures that a note may carry. The specification asks for at least 16.
pub const MAX_SIGNATURES: usize = 100;

/// One signature line: the key's name and id, and the signature's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    name: String,
    id: KeyId,
    bytes: Vec<u8>,
}

impl NoteSignature {
    /// A signature made elsewhere, for instance by a key service. `bytes` are those after the key id: 64 bytes for a
    /// log's Ed25519 key.
    ///
    /// # Errors
    /// [`NoteError::KeyName`] if the name is invalid, [`NoteError::SignatureLine`] if there are no bytes.
    pub fn new(name: &str, id: KeyId, bytes: impl Into<Vec<u8>>) -> Result<Self, NoteError> {
        key::check_name(name)?;
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(NoteError::SignatureLine {
                line: name.to_owned(),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            id,
            bytes,
        })
    }

    /// Name of the key, as the line claims.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Id of that key.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The bytes after the id.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn parse(line: &str) -> Option<Self> {
        let (name, base64) = line.strip_prefix("— ")?.split_once(' ')?;
        let blob = text::base64_decode(base64)?;
        let (id, bytes) = blob.split_first_chunk::<4>()?;
        Self::new(name, KeyId(*id), bytes).ok()
    }
}

/// `— name base64(id ‖ bytes)`, without the line feed.
impl fmt::Display for NoteSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "— {} {}",
            self.name,
            text::base64_encode(&[&self.id.0[..], &self.bytes].concat())
        )
    }
}

/// A text and its signatures, which may all be invalid: [`Note::open`] checks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl Note {
    /// An unsigned note. The text ends with a line feed.
    ///
    /// # Errors
    /// [`NoteError::Shape`], [`NoteError::NotText`] or [`NoteError::TooLarge`] if the text cannot
    /// be a note's.
    pub fn new(text: impl Into<String>) -> Result<Self, NoteError> {
        let text = text.into();
        check_characters(text.as_bytes())?;
        if !text.ends_with('\n') {
            return Err(NoteError::Shape);
        }
        Ok(Self {
            text,
            signatures: Vec::new(),
        })
    }

    /// Reads a signed note without checking its signatures.
    ///
    /// # Errors
    /// [`NoteError`] if its form is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        let whole = check_characters(bytes)?;
        // signed-note allows blank lines in the text, so the last one separates.
        let (_, lines) = whole.rsplit_once("\n\n").ok_or(NoteError::Shape)?;
        // The line feed before the blank line belongs to the text and is signed with it.
        let text = &whole[..whole.len() - lines.len() - 1];
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Shape)?;
        let mut note = Self::new(text)?;
        for line in lines.split('\n') {
            let signature = NoteSignature::parse(line);
            note.add(signature.ok_or_else(|| NoteError::SignatureLine {
                line: line.to_owned(),
            })?)?;
        }
        Ok(note)
    }

    /// The signed text with its last line feed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signatures in their order, none of them verified.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Adds a signature after the others.
    ///
    /// # Errors
    /// [`NoteError::TooManySignatures`] if the note already has [`MAX_SIGNATURES`].
    pub fn add(&mut self, signature: NoteSignature) -> Result<(), NoteError> {
        if self.signatures.len() == MAX_SIGNATURES {
            return Err(NoteError::TooManySignatures);
        }
        self.signatures.push(signature);
        Ok(())
    }

    /// Checks the signatures of known keys, and ignores all others.
    ///
    /// # Errors
    /// [`NoteError::BadSignature`] if a known key's signature is wrong, whichever other keys have signed;
    /// [`NoteError::NotSigned`] if no known key has signed; [`NoteError::AmbiguousKey`] if two keys have one name and
    /// id.
    pub fn open(&self, keys: &[VerifierKey]) -> Result<OpenedNote, NoteError> {
        let mut opened = OpenedNote {
            text: self.text.clone(),
            verified: Vec::new(),
            unverified: Vec::new(),
        };
        for signature in &self.signatures {
            let mut named = keys
                .iter()
                .filter(|key| key.name() == signature.name && key.id() == signature.id);
            // signed-note ignores signatures by unknown keys, so that other parties can add theirs.
            let Some(key) = named.next() else {
                opened.unverified.push(signature.clone());
                continue;
            };
            // The line does not show which of two keys with one name and id has signed.
            if named.any(|other| other != key) {
                return Err(NoteError::AmbiguousKey {
                    name: signature.name.clone(),
                    id: signature.id,
                });
            }
            // A key counts once, so repeating its line cannot make up a quorum.
            let verified = key.verify(&self.text, &signature.bytes)?;
            if !opened
                .verified
                .iter()
                .any(|known| known.name == verified.name && known.id == verified.id)
            {
                opened.verified.push(verified);
            }
        }
        if opened.verified.is_empty() {
            Err(NoteError::NotSigned)
        } else {
            Ok(opened)
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures
            .iter()
            .try_for_each(|signature| writeln!(f, "{signature}"))
    }
}

/// A signature that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSignature {
    /// Name of the key.
    pub name: String,
    /// Id of the key.
    pub id: KeyId,
    /// The kind of the key, and so the meaning of the signature.
    pub kind: KeyKind,
    /// For a cosignature the time that the witness claims, in Unix seconds.
    pub time_unix_s: Option<u64>,
}

/// A text that at least one known key has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedNote {
    /// The signed text with its last line feed.
    pub text: String,
    /// The known keys that have signed, each once, in the note's order.
    pub verified: Vec<VerifiedSignature>,
    /// Signatures of unknown keys, which prove nothing.
    pub unverified: Vec<NoteSignature>,
}

/// Signs a text with each of the keys, in their order.
///
/// # Errors
/// [`NoteError`] if the text cannot be a note's, or there are more than [`MAX_SIGNATURES`] keys.
pub fn sign(text: &str, keys: &[&SignerKey]) -> Result<Note, NoteError> {
    let mut note = Note::new(text)?;
    keys.iter().try_for_each(|key| note.add(key.sign(text)))?;
    Ok(note)
}

/// Reads a signed note and checks the known keys' signatures: [`Note::parse`], then [`Note::open`].
///
/// # Errors
/// The errors of both.
pub fn open(bytes: &[u8], keys: &[VerifierKey]) -> Result<OpenedNote, NoteError> {
    Note::parse(bytes)?.open(keys)
}

fn check_characters(bytes: &[u8]) -> Result<&str, NoteError> {
    if bytes.len() > MAX_NOTE_BYTES {
        return Err(NoteError::TooLarge { bytes: bytes.len() });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| NoteError::NotText)?;
    // signed-note allows no control character below U+0020 but the line feed.
    if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
        Err(NoteError::NotText)
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "an example\n\nwith a blank line\n";

    fn signer(name: &str, seed: u8) -> SignerKey {
        SignerKey::from_seed(name, [seed; 32]).expect("a valid name")
    }

    #[test]
    fn unknown_keys_are_ignored_and_a_known_key_must_verify() {
        let (log, witness) = (signer("log", 1), signer("witness", 2));
        let note = sign(TEXT, &[&log, &witness])
            .expect("a valid text")
            .to_string();
        let opened = open(note.as_bytes(), &[log.verifier()]).expect("the log has signed");
        assert_eq!(
            (
                opened.text.as_str(),
                opened.verified.len(),
                opened.unverified.len()
            ),
            (TEXT, 1, 1)
        );
        assert_eq!(
            (
                opened.verified[0].name.as_str(),
                opened.unverified[0].name()
            ),
            ("log", "witness")
        );
        assert_eq!(
            open(note.as_bytes(), &[log.verifier(), witness.verifier()]).map(|o| o.verified.len()),
            Ok(2)
        );

        let changed = note.replace("example", "eXample");
        let bad = NoteError::BadSignature {
            name: "log".into(),
            id: log.verifier().id(),
        };
        assert_eq!(open(changed.as_bytes(), &[log.verifier()]), Err(bad));
        // One bad signature of a known key spoils the note, even beside a good one.
        let forged = format!(
            "{}{}\n",
            sign(TEXT, &[&witness]).expect("valid"),
            log.sign("another\n")
        );
        assert!(matches!(
            open(forged.as_bytes(), &[witness.verifier(), log.verifier()]),
            Err(NoteError::BadSignature { .. })
        ));
        assert_eq!(
            open(note.as_bytes(), &[signer("log", 3).verifier()]),
            Err(NoteError::NotSigned)
        );
        assert_eq!(open(note.as_bytes(), &[]), Err(NoteError::NotSigned));
    }

    #[test]
    fn key_counts_once_however_often_its_line_stands_there() {
        let log = signer("log", 1);
        let note = sign(TEXT, &[&log, &log]).expect("a valid text").to_string();
        assert_eq!(
            open(note.as_bytes(), &[log.verifier(), log.verifier()]).map(|o| o.verified.len()),
            Ok(1)
        );
    }

    #[test]
    fn hundred_signatures_are_read_and_no_more() {
        let keys: Vec<SignerKey> = (0..=MAX_SIGNATURES as u8)
            .map(|seed| signer("many", seed))
            .collect();
        let refs: Vec<&SignerKey> = keys.iter().collect();
        let note = sign(TEXT, &refs[..MAX_SIGNATURES])
            .expect("as many as allowed")
            .to_string();
        let known: Vec<VerifierKey> = keys.iter().map(SignerKey::verifier).collect();
        assert_eq!(
            open(note.as_bytes(), &known).map(|opened| opened.verified.len()),
            Ok(100)
        );
        assert_eq!(sign(TEXT, &refs), Err(NoteError::TooManySignatures));
        let one_more = format!("{note}{}\n", keys[100].sign(TEXT));
        assert_eq!(
            Note::parse(one_more.as_bytes()),
            Err(NoteError::TooManySignatures)
        );
    }

    #[test]
    fn malformed_note_is_refused() {
        let good = sign("text\n", &[&signer("log", 1)])
            .expect("a valid text")
            .to_string();
        assert!(Note::parse(good.as_bytes()).is_ok());
        for bad in [
            String::new(),
            "text\n".into(),
            "text\n\n".into(),
            good.trim_end().into(),
            format!("{good}\n"),
            good.replace("\n\n", "\n"),
            good.replace("— ", "- "),
            good.replace("— log ", "— "),
            good.replace("— log ", "— log  "),
            good.replace("— log ", "— l+g "),
            good.replace("— log ", "— l\u{a0}g "),
            good.replace("text", "te\txt"),
            good.replace("text", "te\rxt"),
            good.replace("text", "te\0xt"),
            format!("{good}— log AAAAAA==\n"),
            format!("{good}— log AAAAAAA\n"),
            good.trim_start_matches("text")
                .trim_start_matches('\n')
                .into(),
        ] {
            assert!(Note::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(Note::parse(b"\xff\n\n"), Err(NoteError::NotText));
        let bytes = MAX_NOTE_BYTES + 1;
        assert_eq!(
            Note::parse(&vec![b'\n'; bytes]),
            Err(NoteError::TooLarge { bytes })
        );
        assert!(matches!(Note::new("no line feed"), Err(NoteError::Shape)));
        assert!(matches!(Note::new(""), Err(NoteError::Shape)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn text_survives_signing_and_opening(text in "[^\\p{Cc}]{0,20}(\n[^\\p{Cc}]{0,20}){0,4}\n") {
            let log = signer("log.example", 1);
            let note = sign(&text, &[&log]).expect("a valid text").to_string();
            prop_assert_eq!(Note::parse(note.as_bytes()).expect("own note").to_string(), note.clone());
            prop_assert_eq!(open(note.as_bytes(), &[log.verifier()]).expect("own signature").text, text);
        }

        #[test]
        fn note_that_parses_formats_back(bytes in "a?\n{0,3}(— [a+ ]{1,3} [A-D=]{0,12}\n){0,2}\n?") {
            if let Ok(note) = Note::parse(bytes.as_bytes()) {
                prop_assert_eq!(note.to_string(), bytes);
            }
        }
    }
}
