//! Signed heads: every one that is released verifies, extends the one before, and is durable.

use evidenceos_store::{Entry, Head, memory::Fault};
use evidenceos_tlog::{
    Hash, SignedCheckpoint, TileSource, Tree, consistency_proof, sth, verify_consistency,
};

use crate::bench::{Bench, Happened, ORIGIN, execute, submitter};
use crate::fakes::key;

/// A log of less than a tile.
struct Leaves(Vec<Hash>);

impl TileSource for Leaves {
    type Error = ();

    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, ()> {
        assert_eq!((level, index), (0, 0));
        Ok(self.0[..usize::from(width)].to_vec())
    }
}

/// Demands that heads verify and that each extends the one before.
pub(crate) fn assert_heads_sound(heads: &[Head], entries: &[Entry]) {
    let key = key();
    let leaves = Leaves(entries.iter().map(|entry| entry.leaf).collect());
    let mut before: Option<&Head> = None;
    for head in heads {
        let signature = head.signature.as_slice().try_into().expect("64 bytes");
        assert!(sth::verify_sth(
            &key.public_key(),
            head.size,
            head.root(),
            signature
        ));
        let note = SignedCheckpoint::open(head.checkpoint.as_bytes(), &key.verifier(), &[])
            .expect("our own signature");
        assert_eq!(note.checkpoint().origin(), ORIGIN);
        assert_eq!(note.checkpoint().size(), head.size);
        assert_eq!(note.checkpoint().root(), head.root());
        let mut tree = Tree::new();
        for entry in &entries[..head.size as usize] {
            tree.append(entry.leaf);
        }
        assert_eq!(tree.root(), head.root());
        if let Some(before) = before {
            assert!(before.size < head.size);
            let proof = consistency_proof(&leaves, before.size, head.size).expect("in the log");
            verify_consistency(before.size, head.size, &proof, before.root(), head.root())
                .expect("it extends the one before");
        }
        before = Some(head);
    }
}

#[test]
fn released_heads_verify_and_each_extends_the_one_before() {
    let mut bench = Bench::new();
    for n in 0..20 {
        let (_, work) = bench.running(1, &n.to_string());
        bench.finish(&work, 400);
        bench.step();
    }
    let heads = bench.heads();
    let sizes: Vec<u64> = heads.iter().map(|head| head.size).collect();
    assert_eq!(sizes, (1..=21).collect::<Vec<_>>());
    assert_heads_sound(&heads, bench.driver.store_mut().memory.entries());
}

#[test]
fn a_batch_of_settlements_has_one_head() {
    let mut bench = Bench::new();
    let claims: [_; 5] = bench.sealed_many(1);
    for id in claims {
        bench.call(submitter(1), &id.to_hex(), execute(id));
    }
    bench.step();
    for work in bench.take_works().into_iter().rev() {
        bench.finish(&work, 400);
    }
    bench.step();
    let sizes: Vec<u64> = bench.heads().iter().map(|head| head.size).collect();
    assert_eq!(sizes, [1, 6]);
}

#[test]
fn a_head_whose_commit_failed_is_never_released() {
    for fault in [
        Fault::Full,
        Fault::Constraint,
        Fault::UnknownLost,
        Fault::UnknownKept,
    ] {
        let mut bench = Bench::new();
        let (_, work) = bench.running(1, "a");
        bench.finish(&work, 700);
        bench.take_timeline();
        bench.inject([fault]);
        let survived = bench.try_step().is_ok();
        assert_eq!(survived, fault == Fault::Full, "{fault:?}");
        let released = |h: &Happened| matches!(h, Happened::Released(_));
        assert!(!bench.take_timeline().iter().any(released), "{fault:?}");
        assert_eq!(bench.heads().len(), 1);
    }
}
