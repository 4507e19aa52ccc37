//! From one key of a log to the next: what a reader of one of them may believe.

use evidenceos_kernel::{id::Digest, log_key::SignedKeyLink};
use evidenceos_tlog::{SignedCheckpoint, SignerKey, VerifierKey};
use evidenceos_verify::{Distrust, Failure, LogReport, Receipt, Trust, verify_log, verify_receipt};

use crate::world::{ORIGIN, World, checkpoint_of, eventful, key, receipt_of};

fn other(seed: u8) -> SignerKey {
    SignerKey::from_seed(ORIGIN, [seed; 32]).expect("a valid name")
}

fn report(world: &World) -> LogReport {
    verify_log(&world.entries, &world.checkpoint())
}

/// The signed head of the first `size` entries.
fn head(world: &World, size: usize, key: &SignerKey) -> Vec<u8> {
    SignedCheckpoint::sign(checkpoint_of(&world.entries[..size]), key)
        .expect("own origin")
        .to_string()
        .into_bytes()
}

/// A log under three keys, and the sizes at which the second and third took over.
fn under_three_keys() -> (World, [usize; 2]) {
    let (mut world, ..) = eventful();
    let first = world.entries.len();
    world.follow(&key(), &other(6), |_| ());
    let second = world.entries.len();
    world.follow(&other(6), &other(7), |_| ());
    (world, [first, second])
}

#[test]
fn whoever_trusts_one_key_of_a_log_learns_of_the_others_and_of_their_trees() {
    let (world, [first, second]) = under_three_keys();
    let report = report(&world);
    assert_eq!(report.findings, []);
    assert_eq!(report.keys.links.len(), 2);
    for trusted in [key(), other(6), other(7)] {
        let trust = Trust::along(trusted.verifier(), &report.keys).expect("a key of the log");
        for (signer, size, good) in [
            (key(), 1, true),
            (key(), first, true),
            (key(), first + 1, false),
            (other(6), first, false),
            (other(6), first + 1, true),
            (other(6), second, true),
            (other(6), second + 1, false),
            (other(7), second, false),
            (other(7), second + 1, true),
        ] {
            let opened = trust.open(&head(&world, size, &signer));
            assert_eq!(opened.is_ok(), good, "{signer:?} over {size}");
            if let Err(error) = opened {
                assert!(matches!(error, Distrust::NotItsTree { .. }), "{error}");
            }
        }
        let stranger = trust.open(&head(&world, 1, &other(9)));
        assert!(matches!(stranger, Err(Distrust::Key(_))));
    }
}

#[test]
fn a_key_that_is_not_of_the_log_learns_nothing_from_it() {
    let (world, _) = under_three_keys();
    let trust = Trust::along(other(9).verifier(), &report(&world).keys);
    assert!(matches!(trust, Err(Distrust::NotOfThisLog { .. })));
    // A log whose entry 0 names another key than the one that signs, and no link between them.
    let (mut world, ..) = eventful();
    let text = String::from_utf8(world.entries[0].clone()).expect("text");
    let named = Digest::of(&key().public_key()).to_hex();
    let renamed = Digest::of(&other(9).public_key()).to_hex();
    world.entries[0] = text.replace(&named, &renamed).into_bytes();
    let report = report(&world);
    assert_eq!(report.findings, []);
    let trust = Trust::along(key().verifier(), &report.keys);
    assert!(matches!(trust, Err(Distrust::NotOfThisLog { .. })));
}

#[test]
fn a_receipt_under_the_new_key_verifies_with_the_old_one_and_the_log() {
    let (world, _) = under_three_keys();
    let report = report(&world);
    let (index, _) = report.capsules[0];
    let receipt = Receipt {
        checkpoint: String::from_utf8(head(&world, world.entries.len(), &other(7))).expect("text"),
        ..receipt_of(&world.entries, index)
    };
    let alone = verify_receipt(&receipt, &key().verifier().into()).expect_err("another key");
    assert!(matches!(alone, Failure::Signature(Distrust::Key(_))));
    assert!(alone.to_string().contains("--log"), "{alone}");
    let trust = Trust::along(key().verifier(), &report.keys).expect("a key of the log");
    verify_receipt(&receipt, &trust).expect("the log leads there");
    let old: VerifierKey = key().verifier();
    verify_receipt(&world.receipt(index), &old.into()).expect("old receipts keep verifying");
}

#[test]
fn a_link_that_does_not_hold_is_a_finding_and_leads_nowhere() {
    type Bend = fn(&mut SignedKeyLink);
    let cases: [(&str, Bend); 7] = [
        ("old key has signed", |signed| signed.old_signature[7] ^= 1),
        ("new key has signed", |signed| signed.new_signature[7] ^= 1),
        ("tree_size", |signed| signed.link.tree_size -= 1),
        ("root_hash_hex", |signed| signed.link.root[0] ^= 1),
        ("origin", |signed| {
            signed.link.origin = "example.org/x".into()
        }),
        ("old key has signed", |signed| {
            signed.link.new_public_key = other(9).public_key();
        }),
        ("has signed so far", |signed| {
            signed.link.old_public_key = other(9).public_key();
        }),
    ];
    for (expected, bend) in cases {
        let (mut world, ..) = eventful();
        world.follow(&key(), &other(6), bend);
        let report = report(&world);
        let [finding] = report.findings.as_slice() else {
            panic!("{expected}: {:?}", report.findings)
        };
        assert!(finding.to_string().contains(expected), "{finding}");
        assert_eq!(finding.index, Some(world.entries.len() as u64 - 1));
        assert_eq!(report.keys.links, []);
    }
}

#[test]
fn a_key_that_was_replaced_cannot_name_another_successor() {
    let (mut world, _) = under_three_keys();
    world.follow(&key(), &other(9), |_| ());
    let report = report(&world);
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert_eq!(report.keys.links.len(), 2);
}

#[test]
fn a_head_that_two_keys_signed_is_judged_by_the_one_that_is_trusted() {
    let (world, [first, _]) = under_three_keys();
    let report = report(&world);
    let text = checkpoint_of(&world.entries[..first]).to_string();
    let signatures = [key(), other(6)].map(|signer| signer.sign(&text));
    let [old, new] = &signatures;
    for note in [
        format!("{text}\n{old}\n{new}\n"),
        format!("{text}\n{new}\n{old}\n"),
    ] {
        for (trusted, holds) in [(key(), true), (other(6), false)] {
            let trust = Trust::along(trusted.verifier(), &report.keys).expect("a key of the log");
            let opened = trust.open(note.as_bytes());
            assert_eq!(opened.is_ok(), holds, "{trusted:?}: {opened:?}");
        }
    }
}
