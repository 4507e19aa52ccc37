//! Keys that follow one another, and keys that never leave their KMS.

use evidenceos_driver::{Input, Signer as _};
use evidenceos_kernel::log_key::{KeyRotated, LogKey};
use evidenceos_store::{Head, memory::Fault};
use evidenceos_tlog::{SignerKey, Tree, sth};

use crate::{
    bench::{Bench, Happened, ORIGIN, execute, submitter},
    fakes::{LocalKey, key},
    heads::assert_heads_sound,
};

fn other_key() -> LocalKey {
    LocalKey(SignerKey::from_seed(ORIGIN, [8; 32]).expect("a valid name"))
}

fn settle_one(bench: &mut Bench, name: &str) {
    let (_, work) = bench.running(1, name);
    bench.finish(&work, 400);
    bench.step();
}

fn verifies(head: &Head, public_key: [u8; 32]) -> bool {
    let signature = head.signature.as_slice().try_into().expect("64 bytes");
    sth::verify_sth(&public_key, head.size, head.root(), signature)
}

#[test]
fn a_key_that_takes_over_is_linked_by_both_keys_to_the_tree_before() {
    let mut bench = Bench::new();
    settle_one(&mut bench, "a");
    let before = bench.heads().last().cloned().expect("a head");
    bench.take_timeline();
    bench.input(Input::NewSigner(Box::new(other_key())));
    bench.step();
    let timeline = bench.take_timeline();
    assert_eq!(
        timeline,
        [
            Happened::Committed,
            Happened::Rotated,
            Happened::Released(before.size + 1)
        ]
    );
    settle_one(&mut bench, "b");

    let memory = &bench.driver.store_mut().memory;
    let entry = &memory.entries()[before.size as usize];
    let rotated = KeyRotated::parse(&entry.bytes).expect("a key link");
    let signed = rotated.signed;
    assert_eq!(signed.link.tree_size, before.size);
    assert_eq!(signed.link.root, before.root);
    assert_eq!(signed.link.origin, ORIGIN);
    for (public_key, signature) in [
        (key().public_key(), signed.old_signature),
        (other_key().public_key(), signed.new_signature),
    ] {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&public_key).expect("a key");
        key.verify_strict(signed.link.digest().as_bytes(), &signature.into())
            .expect("both keys say so");
    }
    let next = LogKey::new(other_key().public_key(), before.size + 1);
    assert_eq!(memory.log_keys(), [next]);
    let heads = bench.heads();
    let (old, new): (Vec<&Head>, Vec<&Head>) = heads.iter().partition(|h| h.size <= before.size);
    assert!(old.iter().all(|head| verifies(head, key().public_key())));
    assert_eq!(new.len(), 2);
    assert!(
        new.iter()
            .all(|head| verifies(head, other_key().public_key()))
    );
}

#[test]
fn the_key_that_signs_already_takes_nothing_over() {
    let mut bench = Bench::new();
    let heads = bench.heads().len();
    bench.input(Input::NewSigner(Box::new(LocalKey(key()))));
    bench.step();
    assert_eq!(bench.heads().len(), heads);
    assert!(!bench.driver.owes_a_step());
}

#[test]
fn a_key_whose_batch_was_not_stored_takes_over_with_a_later_one() {
    let mut bench = Bench::new();
    bench.inject([Fault::Full]);
    bench.input(Input::NewSigner(Box::new(other_key())));
    bench.step();
    assert_eq!(bench.driver.store_mut().memory.log_keys(), []);
    assert!(bench.driver.owes_a_step());
    bench.step();
    assert!(!bench.driver.owes_a_step());
    let last = bench.heads().last().cloned().expect("a head");
    assert!(verifies(&last, other_key().public_key()));
    assert_eq!(bench.driver.store_mut().memory.log_keys().len(), 1);
}

/// The head that a KMS would give for the newest tree that was asked for.
fn sign(bench: &mut Bench) -> Head {
    let asked = bench.take_asked();
    let [(size, root)] = asked[..] else {
        panic!("one tree was asked for: {asked:?}")
    };
    LocalKey(key()).sign(size, root)
}

#[test]
fn one_head_is_signed_elsewhere_at_a_time_and_always_for_the_newest_tree() {
    let mut bench = Bench::signed_elsewhere();
    let first = sign(&mut bench);
    assert_eq!(first.size, 1);
    for name in ["a", "b", "c"] {
        settle_one(&mut bench, name);
    }
    assert_eq!(bench.take_asked(), [], "one is under way");
    assert_eq!(
        bench.heads(),
        [],
        "and nothing is shown before it is signed"
    );
    assert!(bench.driver.has_work());

    bench.input(Input::Signed(Ok(first)));
    bench.step();
    assert_eq!(bench.heads().len(), 1);
    let newest = sign(&mut bench);
    assert_eq!(newest.size, 4);
    bench.take_timeline();
    bench.input(Input::Signed(Ok(newest)));
    bench.step();
    assert_eq!(
        bench.take_timeline(),
        [Happened::Committed, Happened::Released(4)]
    );
    assert!(!bench.driver.has_work());
    assert_heads_sound(&bench.heads(), bench.driver.store_mut().memory.entries());
}

#[test]
fn appends_go_on_while_the_kms_is_down_and_the_head_follows_when_it_is_back() {
    let mut bench = Bench::signed_elsewhere();
    for n in 0..3 {
        let (size, _) = bench.take_asked()[0];
        assert_eq!(size, 1 + n);
        settle_one(&mut bench, &n.to_string());
        bench.input(Input::Signed(Err("no such host".to_owned())));
        bench.step();
    }
    assert_eq!(bench.heads(), []);
    let head = sign(&mut bench);
    bench.input(Input::Signed(Ok(head)));
    bench.step();
    assert_eq!(bench.heads()[0].size, 4);
}

#[test]
fn a_head_that_was_not_asked_for_is_never_shown() {
    let mut bench = Bench::signed_elsewhere();
    let good = sign(&mut bench);
    let mut tree = Tree::new();
    tree.append(evidenceos_tlog::leaf_hash(b"another log"));
    for bad in [
        LocalKey(key()).sign(1, tree.root()),
        LocalKey(key()).sign(2, good.root()),
    ] {
        bench.input(Input::Signed(Ok(bad)));
        bench.step();
        assert_eq!(bench.heads(), []);
        assert_eq!(bench.driver.store_mut().memory.found().2, None);
    }
    bench.input(Input::Signed(Ok(good)));
    bench.step();
    assert_eq!(bench.heads().len(), 1);
}

#[test]
fn a_signed_head_waits_for_its_commit_and_survives_a_full_disk() {
    let mut bench = Bench::signed_elsewhere();
    let head = sign(&mut bench);
    bench.inject([Fault::Full]);
    bench.input(Input::Signed(Ok(head)));
    bench.step();
    assert_eq!(bench.heads(), []);
    assert!(bench.driver.owes_a_step());
    bench.step();
    assert_eq!(bench.heads().len(), 1);
}

#[test]
fn a_start_asks_for_the_head_that_a_crash_left_out() {
    let mut bench = Bench::signed_elsewhere();
    let head = sign(&mut bench);
    bench.input(Input::Signed(Ok(head)));
    bench.step();
    settle_one(&mut bench, "a");
    bench.take_asked();
    let mut again = bench.restarted();
    let head = sign(&mut again);
    assert_eq!(head.size, 2);
    again.input(Input::Signed(Ok(head)));
    again.step();
    assert_eq!(again.heads().last().map(|head| head.size), Some(2));
}

#[test]
fn runs_are_answered_before_their_head_is_signed() {
    let mut bench = Bench::signed_elsewhere();
    let [id] = bench.sealed_many(1);
    let ticket = bench.call(submitter(1), "run", execute(id));
    bench.step();
    let work = bench.take_works().remove(0);
    bench.finish(&work, 700);
    bench.step();
    assert!(bench.answer(ticket).is_some_and(|answer| answer.is_ok()));
    assert_eq!(bench.heads(), []);
}
