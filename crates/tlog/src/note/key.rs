//! The keys of notes: their names, ids and text form.
//!
//! Owns key ids and the message of each kind of signature. Does not own key files or key services: a seed comes from
//! the caller, and a signature made elsewhere enters as a [`NoteSignature`]. Invariant: a key's id follows from its
//! name, kind and bytes, and a key text with another id is refused.
//!
//! Spec: C2SP signed-note v1.0.0; the kinds also in C2SP tlog-cosignature v1.0.1.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use super::{NoteError, NoteSignature, VerifiedSignature};
use crate::cosignature;
use crate::hash::sha256;
use crate::text;

/// The first four bytes of SHA-256(name ‖ 0x0A ‖ kind ‖ public key): a hint for choosing the key, not a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 4]);

/// Eight lower-case hexadecimal digits.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// The message that a key's signatures cover. The discriminant is the type byte of the
/// specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum KeyKind {
    /// A log's signature, over the note's text.
    Ed25519 = 0x01,
    /// A witness's signature, over the text and a time; see [`crate::cosignature`].
    CosignatureV1 = 0x04,
}

/// A public key with its name.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: KeyId,
    kind: KeyKind,
    key: VerifyingKey,
}

impl VerifierKey {
    /// Names a public key.
    ///
    /// # Errors
    /// [`NoteError::KeyName`] if the name is invalid, [`NoteError::PublicKey`] if the bytes are not
    /// a key.
    pub fn new(name: &str, kind: KeyKind, public_key: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        let key = VerifyingKey::from_bytes(public_key).map_err(|_| NoteError::PublicKey {
            name: name.to_owned(),
        })?;
        let digest = sha256(&[name.as_bytes(), b"\n", &[kind as u8], public_key]);
        let [a, b, c, d, ..] = digest.0;
        Ok(Self {
            name: name.to_owned(),
            id: KeyId([a, b, c, d]),
            kind,
            key,
        })
    }

    /// The key's name; for a log it equals the origin of its checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first four bytes of a hash over the key's name, type and bytes.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The kind of message that its signatures cover.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The 32 bytes of the Ed25519 public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Checks one signature over a note's text. `bytes` are those after the key id in the signature line.
    ///
    /// # Errors
    /// [`NoteError::BadSignature`] if it does not verify.
    pub fn verify(&self, text: &str, bytes: &[u8]) -> Result<VerifiedSignature, NoteError> {
        let time_unix_s = match self.kind {
            KeyKind::Ed25519 => self.verifies(text.as_bytes(), bytes).then_some(None),
            KeyKind::CosignatureV1 => cosignature::split(bytes)
                .filter(|(time, signature)| {
                    self.verifies(cosignature::message(*time, text).as_bytes(), *signature)
                })
                .map(|(time, _)| Some(time)),
        };
        let time_unix_s = time_unix_s.ok_or_else(|| NoteError::BadSignature {
            name: self.name.clone(),
            id: self.id,
        })?;
        Ok(VerifiedSignature {
            name: self.name.clone(),
            id: self.id,
            kind: self.kind,
            time_unix_s,
        })
    }

    /// Whether `signature` is this key's over bytes that are not a note, as [`SignerKey::sign_bytes`] makes it.
    pub fn verify_bytes(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.verifies(message, signature)
    }

    /// Strict verification: encodings and keys on which verifiers disagree are refused.
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

/// `name+hex8+base64(kind ‖ public key)`.
impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = [&[self.kind as u8][..], self.key.as_bytes()].concat();
        write!(
            f,
            "{}+{}+{}",
            self.name,
            self.id,
            text::base64_encode(&typed)
        )
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(vkey: &str) -> Result<Self, Self::Err> {
        let malformed = || NoteError::KeyText {
            vkey: vkey.to_owned(),
        };
        // Base64 may contain further plus signs.
        let mut parts = vkey.splitn(3, '+');
        let (Some(name), Some(id), Some(base64)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        // `from_str_radix` takes a sign and upper case too, and a key has one spelling.
        let canonical = id.len() == 8
            && id
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let id = u32::from_str_radix(id, 16)
            .ok()
            .filter(|_| canonical)
            .ok_or_else(malformed)?;
        let typed = text::base64_decode(base64).ok_or_else(malformed)?;
        let (kind, public_key) = typed.split_first().ok_or_else(malformed)?;
        let kind = match kind {
            0x01 => KeyKind::Ed25519,
            0x04 => KeyKind::CosignatureV1,
            other => {
                return Err(NoteError::KeyKind {
                    name: name.to_owned(),
                    kind: *other,
                });
            }
        };
        let key = Self::new(name, kind, public_key.try_into().map_err(|_| malformed())?)?;
        let claimed = KeyId(id.to_be_bytes());
        // The id is a hash over the other parts, so another id means a changed part.
        if key.id == claimed {
            Ok(key)
        } else {
            Err(NoteError::KeyIdMismatch {
                name: key.name,
                computed: key.id,
                claimed,
            })
        }
    }
}

/// A private key with its name. Its memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct SignerKey {
    signing: SigningKey,
    verifier: VerifierKey,
}

impl SignerKey {
    /// The log's key: its Ed25519 seed and its name.
    ///
    /// # Errors
    /// [`NoteError::KeyName`] if the name is invalid.
    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, NoteError> {
        let signing = SigningKey::from_bytes(&seed);
        let verifier =
            VerifierKey::new(name, KeyKind::Ed25519, signing.verifying_key().as_bytes())?;
        Ok(Self { signing, verifier })
    }

    /// The same key under another name.
    ///
    /// # Errors
    /// [`NoteError::KeyName`] if the name is invalid.
    pub fn named(&self, name: &str) -> Result<Self, NoteError> {
        Ok(Self {
            signing: self.signing.clone(),
            verifier: VerifierKey::new(name, KeyKind::Ed25519, &self.public_key())?,
        })
    }

    /// The public half, which checks this key's signatures.
    pub fn verifier(&self) -> VerifierKey {
        self.verifier.clone()
    }

    /// The 32 bytes of the Ed25519 public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.verifier.public_key()
    }

    /// Signs a note's text, and returns the signature line.
    pub fn sign(&self, text: &str) -> NoteSignature {
        let bytes = self.sign_bytes(text.as_bytes()).to_vec();
        NoteSignature {
            name: self.verifier.name.clone(),
            id: self.verifier.id,
            bytes,
        }
    }

    /// A bare Ed25519 signature, for the digests of [`crate::sth`] and other objects of the wire.
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }
}

/// Shows the public half only.
impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignerKey(of {})", self.verifier)
    }
}

/// A name has at least one character, and no white space, control character or plus sign.
pub(super) fn check_name(name: &str) -> Result<(), NoteError> {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    if name.is_empty() || name.contains(forbidden) {
        return Err(NoteError::KeyName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";

    #[test]
    fn published_keys_parse_and_format_back() {
        for (vkey, name, id) in [
            (EXAMPLE, "example.com/foo", "530d903a"),
            (
                "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                "PeterNeumann",
                "c74f20a3",
            ),
            (
                "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx",
                "example.com/log/testdata",
                "33d7b496",
            ),
        ] {
            let key: VerifierKey = vkey.parse().expect("a published key");
            assert_eq!(
                (key.name(), key.id().to_string().as_str(), key.kind()),
                (name, id, KeyKind::Ed25519)
            );
            assert_eq!(key.to_string(), vkey);
        }
    }

    #[test]
    fn altered_key_text_is_refused() {
        for bad in [
            EXAMPLE.replace("foo", "bar"),
            EXAMPLE.replace("530d903a", "530d903b"),
            EXAMPLE.replace("530d903a", "530D903A"),
            EXAMPLE.replace("530d903a", "0530d903a"),
            EXAMPLE.replace("+Aeky", "+Beky"),
            EXAMPLE.replace("U2k", "U2"),
            EXAMPLE.replace("example.com", "example com"),
            EXAMPLE.replace("example.com/foo", ""),
            EXAMPLE.replace('+', " "),
            format!("{EXAMPLE}\n"),
            String::new(),
        ] {
            assert!(bad.parse::<VerifierKey>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn same_bytes_under_another_name_or_kind_are_another_key() {
        let public = SignerKey::from_seed("a", [1; 32])
            .expect("a valid name")
            .public_key();
        let id = |name, kind| {
            VerifierKey::new(name, kind, &public)
                .expect("a valid key")
                .id()
        };
        assert_ne!(id("a", KeyKind::Ed25519), id("b", KeyKind::Ed25519));
        assert_ne!(id("a", KeyKind::Ed25519), id("a", KeyKind::CosignatureV1));
    }

    #[test]
    fn secret_does_not_show() {
        let key = SignerKey::from_seed("log", [0xab; 32]).expect("a valid name");
        let shown = format!("{key:?}");
        assert!(
            shown.contains("log+") && !shown.contains("abab") && !shown.contains("171, 171"),
            "{shown}"
        );
    }
}
