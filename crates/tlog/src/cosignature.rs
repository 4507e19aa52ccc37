//! A witness's timestamped signature under a checkpoint.
//!
//! Owns the message, the bytes in the signature line and the signing. [`crate::note::VerifierKey::verify`] checks
//! cosignatures, like all signatures. Does not own the witness's duty: to have seen a consistency proof from every
//! tree it signed before.
//!
//! Spec: C2SP tlog-cosignature v1.0.1, type 0x04.

use crate::note::{KeyKind, NoteError, NoteSignature, SignerKey, VerifierKey};

/// Bytes of a cosignature after the key id: the time and an Ed25519 signature.
pub const COSIGNATURE_BYTES: usize = 8 + 64;

/// The message that a witness signs: a header, the time in Unix seconds, and the note's text.
pub fn message(time_unix_s: u64, text: &str) -> String {
    // The first line separates a witness's message from a log's, which is the text alone.
    format!("cosignature/v1\ntime {time_unix_s}\n{text}")
}

/// The bytes in the signature line: the time as 64 bits, big-endian, then the signature.
pub fn join(time_unix_s: u64, signature: &[u8; 64]) -> [u8; COSIGNATURE_BYTES] {
    let mut bytes = [0; COSIGNATURE_BYTES];
    bytes[..8].copy_from_slice(&time_unix_s.to_be_bytes());
    bytes[8..].copy_from_slice(signature);
    bytes
}

/// The time in Unix seconds and the signature; `None` unless there are exactly
/// [`COSIGNATURE_BYTES`].
pub fn split(bytes: &[u8]) -> Option<(u64, &[u8; 64])> {
    let (time, signature) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*time), signature.try_into().ok()?))
}

/// The public key under which the cosignatures of `key` verify: the same bytes, but another kind and therefore
/// another id.
///
/// # Errors
/// None in practice, since the key already has a valid name and point.
pub fn cosigner(key: &SignerKey) -> Result<VerifierKey, NoteError> {
    VerifierKey::new(
        key.verifier().name(),
        KeyKind::CosignatureV1,
        &key.public_key(),
    )
}

/// Signs a checkpoint's text as a witness at the given time.
///
/// # Errors
/// None in practice, as for [`cosigner`].
pub fn cosign(key: &SignerKey, time_unix_s: u64, text: &str) -> Result<NoteSignature, NoteError> {
    let signature = key.sign_bytes(message(time_unix_s, text).as_bytes());
    let cosigner = cosigner(key)?;
    NoteSignature::new(
        cosigner.name(),
        cosigner.id(),
        join(time_unix_s, &signature),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Note;

    #[test]
    fn cosignature_binds_its_time_and_text() {
        let witness = SignerKey::from_seed("witness.example", [2; 32]).expect("a valid name");
        let key = cosigner(&witness).expect("a valid key");
        let line = cosign(&witness, 1_700_000_000, "text\n").expect("a valid key");
        let verified = key.verify("text\n", line.bytes()).expect("own signature");
        assert_eq!(
            (verified.time_unix_s, verified.kind),
            (Some(1_700_000_000), KeyKind::CosignatureV1)
        );

        let mut later = line.bytes().to_vec();
        later[7] += 1;
        let long = [line.bytes(), &[0]].concat();
        for (text, bytes) in [
            ("text\n", &later[..]),
            ("other\n", line.bytes()),
            ("text\n", &line.bytes()[8..]),
            ("text\n", &long),
            ("", &[]),
        ] {
            assert!(
                matches!(key.verify(text, bytes), Err(NoteError::BadSignature { .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn log_signature_does_not_pass_for_a_cosignature() {
        let witness = SignerKey::from_seed("witness.example", [2; 32]).expect("a valid name");
        let mut note = Note::new("text\n").expect("a valid text");
        note.add(witness.sign("text\n")).expect("one signature");
        assert_eq!(
            note.open(&[cosigner(&witness).expect("a valid key")]),
            Err(NoteError::NotSigned)
        );
    }
}
