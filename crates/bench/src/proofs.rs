//! A log of many entries: the cost of appending, and proofs from its tiles.

use std::{path::Path, time::Instant};

use evidenceos_kernel::state::{Changes, Counters};
use evidenceos_store::{
    Batch, Entry, Head, Location, OpenedStore, Outcome,
    log::{Integrator, LogView},
};
use evidenceos_tlog::{Checkpoint, SignedCheckpoint, SignerKey, Tree, leaf_hash};

use crate::{
    error::{BenchError, failed},
    stats::Samples,
};

/// Entries of a commit.
const BATCH: u64 = 1_000;
/// Proofs of each kind.
const PROOFS: u64 = 5_000;

/// Figures of the log.
#[derive(Debug, Clone, Copy)]
pub struct Proofs {
    /// Entries of the log.
    pub entries: u64,
    /// Entries committed a second, in batches of a thousand.
    pub appended_per_s: f64,
    /// Entries written as tiles and bundles a second.
    pub integrated_per_s: f64,
    /// A self-verified inclusion proof, in microseconds.
    pub inclusion_us: [f64; 3],
    /// A self-verified consistency proof, in microseconds.
    pub consistency_us: [f64; 3],
}

/// Builds a log and takes proofs at random.
pub fn measure(directory: &Path, entries: u64) -> Result<Proofs, BenchError> {
    let bench = |error: &dyn std::fmt::Display| failed(&error);
    std::fs::create_dir_all(directory).map_err(BenchError::file(directory.to_owned()))?;
    let key = SignerKey::from_seed("bench.example/log", [7; 32]).map_err(|e| bench(&e))?;
    let OpenedStore {
        mut store, rows, ..
    } = Location::in_directory(directory)
        .open()
        .map_err(|e| bench(&e))?;
    let mut tree = Tree::new();
    let started = Instant::now();
    let mut last = None;
    while tree.size() < entries {
        let batch = batch(&mut tree, entries, &key)?;
        last = batch.head.clone();
        if !matches!(store.commit(&batch), Outcome::Committed) {
            return Err(failed(&"the store did not commit"));
        }
        store.maintain(false).map_err(|e| bench(&e))?;
    }
    let appended = started.elapsed();
    let head = last.ok_or_else(|| failed(&"a log needs entries"))?;
    let started = Instant::now();
    let integrator = Integrator::recover(directory, rows, Some(&head)).map_err(|e| bench(&e))?;
    let integrated = started.elapsed();
    let view = LogView::new(&integrator, head);
    // The seed is fixed, so that every benchmark asks for the same proofs.
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let (mut inclusion, mut consistency) = (Samples::default(), Samples::default());
    for _ in 0..PROOFS {
        // A consistency proof begins at a tree of one entry at least.
        let (index, first) = (next(entries), next(entries) + 1);
        let before = Instant::now();
        view.inclusion(index, entries).map_err(|e| bench(&e))?;
        inclusion.add(before.elapsed());
        let before = Instant::now();
        view.consistency(first, entries).map_err(|e| bench(&e))?;
        consistency.add(before.elapsed());
    }
    let per_s = |elapsed: std::time::Duration| entries as f64 / elapsed.as_secs_f64();
    Ok(Proofs {
        entries,
        appended_per_s: per_s(appended),
        integrated_per_s: per_s(integrated),
        inclusion_us: inclusion.percentiles(),
        consistency_us: consistency.percentiles(),
    })
}

fn batch(tree: &mut Tree, most: u64, key: &SignerKey) -> Result<Batch, BenchError> {
    let first = tree.size();
    let entries: Vec<Entry> = (first..most.min(first + BATCH))
        .map(|index| {
            let bytes =
                format!("{{\"index\":{index},\"pad\":\"{}\"}}", "x".repeat(300)).into_bytes();
            Entry {
                leaf: leaf_hash(&bytes),
                bytes,
            }
        })
        .collect();
    for entry in &entries {
        tree.append(entry.leaf);
    }
    // Only the root is needed here.
    drop(tree.take_full_tiles());
    let signed = Checkpoint::new("bench.example/log", tree.size(), tree.root())
        .and_then(|checkpoint| SignedCheckpoint::sign(checkpoint, key))
        .map_err(|error| failed(&error))?;
    // Nothing here verifies the head's signature.
    let head = Head {
        size: tree.size(),
        root: tree.root().0,
        signature: vec![0; 64],
        key_id: evidenceos_kernel::id::Digest([0; 32]),
        checkpoint: signed.to_string(),
    };
    let counters = Counters {
        next_index: tree.size(),
        ..Counters::default()
    };
    Ok(Batch {
        changes: Changes {
            counters,
            ..Changes::default()
        },
        entries,
        head: Some(head),
        ..Batch::default()
    })
}
