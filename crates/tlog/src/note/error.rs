//! The errors of notes and keys.

use super::key::KeyId;
use super::{MAX_NOTE_BYTES, MAX_SIGNATURES};

/// The reason why a note or a key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The key name is empty or contains white space, a control character or a plus sign.
    #[error("{name:?} cannot name a key")]
    KeyName { name: String },
    /// The text is not `name+hex8+base64`.
    #[error("not a verifier key: {vkey:?}")]
    KeyText { vkey: String },
    /// The key is of a type that this crate does not know.
    #[error("key {name} is of the unknown type {kind:#04x}")]
    KeyKind {
        name: String,
        /// The type byte found.
        kind: u8,
    },
    /// The id written in the key is not that of its name, type and bytes.
    #[error("key {name} has the id {computed}, not {claimed}")]
    KeyIdMismatch {
        name: String,
        /// The id that follows from name and key.
        computed: KeyId,
        /// The id written in the key.
        claimed: KeyId,
    },
    /// The bytes are not an Ed25519 public key.
    #[error("key {name} is not a point on the curve")]
    PublicKey { name: String },
    /// Two of the given keys have the same name and id.
    #[error("two keys are called {name} with id {id}")]
    AmbiguousKey {
        /// The name that both keys have.
        name: String,
        /// The id that both keys have.
        id: KeyId,
    },
    /// The note is longer than [`MAX_NOTE_BYTES`].
    #[error("a note of {bytes} bytes is longer than {MAX_NOTE_BYTES}")]
    TooLarge {
        /// The note's length in bytes.
        bytes: usize,
    },
    /// The note is not UTF-8, or contains a control character other than a line feed.
    #[error("a note is UTF-8 text without control characters")]
    NotText,
    /// The text is empty, lacks its last line feed, or no blank line and signatures follow it.
    #[error("a note is a text, a blank line and signature lines, each with its line feed")]
    Shape,
    /// A line after the blank line is not a signature.
    #[error("not a signature line: {line:?}")]
    SignatureLine {
        /// The line, as it was found.
        line: String,
    },
    /// The note has more signatures than [`MAX_SIGNATURES`].
    #[error("a note has at most {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// A known key's signature does not verify.
    #[error("the signature of {name} with id {id} does not verify")]
    BadSignature { name: String, id: KeyId },
    /// None of the given keys has signed the note.
    #[error("none of the known keys has signed the note")]
    NotSigned,
}
