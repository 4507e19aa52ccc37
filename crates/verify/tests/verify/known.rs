//! Heads that were kept: the log must go on from them.

use evidenceos_tlog::{SignedCheckpoint, SignerKey};
use evidenceos_verify::{Known, NotKnown, Trust, verify_log};

use crate::{
    history::{NEW_ORIGIN, honest, last_key, second_key},
    world::{ORIGIN, checkpoint_of, checkpoint_under, eventful, key},
};

fn head(entries: &[Vec<u8>], key: &SignerKey) -> Vec<u8> {
    SignedCheckpoint::sign(checkpoint_of(entries), key)
        .expect("own origin")
        .to_string()
        .into_bytes()
}

#[test]
fn a_log_must_begin_with_what_was_signed() {
    let (world, ..) = eventful();
    let (trust, entries) = (Trust::from(key().verifier()), &world.entries);
    for size in 1..=entries.len() {
        let known = Known::open(&head(&entries[..size], &key()), &trust).expect("signed");
        assert_eq!(known.must_be_a_prefix_of(entries), Ok(()));
        let shorter = known.must_be_a_prefix_of(&entries[..size - 1]);
        assert!(matches!(shorter, Err(NotKnown::Shorter { .. })));
        let mut changed = entries.clone();
        changed[size - 1].push(b' ');
        let other = known.must_be_a_prefix_of(&changed);
        assert!(matches!(other, Err(NotKnown::Other { .. })), "{size}");
    }
    assert_eq!(Known::open(b"no head", &trust), Err(NotKnown::Format));
    let stranger = SignerKey::from_seed(ORIGIN, [9; 32]).expect("a valid name");
    let unsigned = Known::open(&head(entries, &stranger), &trust);
    assert!(matches!(unsigned, Err(NotKnown::Signature(_))));
}

#[test]
fn a_head_under_the_name_before_a_restart_is_still_known() {
    let history = honest();
    let entries = &history.world.entries;
    let report = verify_log(entries, &checkpoint_under(NEW_ORIGIN, entries));
    assert_eq!(report.findings, []);
    let trust = Trust::along(last_key().verifier(), &report.keys).expect("a key of the log");
    let after = history.marks.rotated + 1;
    for (size, signer) in [
        (history.marks.rotated, key()),
        (after, second_key()),
        (after + 1, second_key()),
    ] {
        let known = Known::open(&head(&entries[..size], &signer), &trust).expect("its own key");
        assert_eq!(known.must_be_a_prefix_of(entries), Ok(()), "{size}");
    }
}
