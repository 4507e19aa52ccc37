//! Signed notes, checkpoints, cosignatures and verifier keys, as text.

use std::sync::LazyLock;

use evidenceos_tlog::{
    Checkpoint, Note, SignedCheckpoint, SignerKey, VerifierKey,
    cosignature::{cosign, cosigner},
};

static WITNESS: LazyLock<SignerKey> =
    LazyLock::new(|| SignerKey::from_seed("witness.example", [7; 32]).expect("a name"));

/// What parses formats back to the same bytes. A checkpoint that its log and a witness sign opens under their keys and
/// under no others.
pub fn check(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        if let Ok(key) = text.parse::<VerifierKey>() {
            assert_eq!(key.to_string(), text);
        }
        if let Ok(checkpoint) = text.parse::<Checkpoint>() {
            assert_eq!(checkpoint.to_string(), text);
            signs(&checkpoint);
        }
    }
    let Ok(note) = Note::parse(bytes) else {
        return;
    };
    assert_eq!(note.to_string().as_bytes(), bytes);
    assert!(note.open(&[]).is_err(), "no key is known");
    let witness = cosigner(&WITNESS).expect("a name");
    assert!(note.open(&[WITNESS.verifier(), witness]).is_err(), "forged");
    if let Ok(checkpoint) = note.text().parse::<Checkpoint>() {
        signs(&checkpoint);
    }
}

fn signs(checkpoint: &Checkpoint) {
    // An origin may have blanks and plus signs, which a key's name may not.
    let Ok(log) = SignerKey::from_seed(checkpoint.origin(), [5; 32]) else {
        return;
    };
    let witness = cosigner(&WITNESS).expect("a name");
    let text = checkpoint.to_string();
    let signed = SignedCheckpoint::sign(checkpoint.clone(), &log);
    if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
        assert!(signed.is_err(), "no text of a note");
        return;
    }
    let mut signed = signed.expect("a text of a note");
    let line = cosign(&WITNESS, 1_700_000_000, &text).expect("a name");
    signed.add_cosignature(line, &witness).expect("its own");
    let note = signed.to_string();
    let open = |log: &VerifierKey| {
        SignedCheckpoint::open(note.as_bytes(), log, std::slice::from_ref(&witness))
    };
    let opened = open(&log.verifier()).expect("signed");
    assert_eq!(opened.checkpoint(), checkpoint);
    assert_eq!(opened.cosignatures().len(), 1);
    let other = SignerKey::from_seed(checkpoint.origin(), [6; 32]).expect("the same name");
    assert!(open(&other.verifier()).is_err(), "another key");
}
