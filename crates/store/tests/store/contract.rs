//! Every kind of row comes back as it was written, in this process and the next.

use std::sync::atomic::Ordering;

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{ClaimState, Revocation},
    holdout::{HoldoutStatus, Meter, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId},
    state::Changes,
};
use evidenceos_store::{
    Batch, MAX_ROW_BYTES, Module, ModuleBytes, Outcome, Store as _, Trace, reader::Readers,
    sqlite::SqliteStore,
};

use crate::disk::{
    Disk, START_UNIX_MS, claim, entry, holdout, large_module, module, owner, recorded, remembered,
    request_key,
};

#[test]
fn every_kind_of_row_survives_a_restart() {
    let mut disk = Disk::new();
    let (claims, pool) = (
        [claim(0, owner(1)), claim(1, owner(2))],
        PrincipalPool {
            sealed: Meter::default(),
            answers: Meter {
                charged: MicroBits(5),
                reserved: MicroBits(6),
            },
        },
    );
    disk.commit(Batch {
        changes: Changes {
            new_claims: claims.to_vec(),
            holdouts: vec![holdout(0), holdout(1)],
            pools: vec![(HoldoutId([1; 32]), owner(1), pool)],
            remembered: vec![(request_key(1), remembered(START_UNIX_MS))],
            ..Changes::default()
        },
        recorded: vec![recorded(START_UNIX_MS)],
        modules: vec![module(b"module")],
        traces: vec![Trace {
            claim_seq: 1,
            hash: Digest::of(b"trace"),
            bytes: b"trace".to_vec(),
        }],
        ..Batch::default()
    });
    let head = disk.append(3);
    let counters = disk.counters;
    let directory = disk.closed();
    let (mut store, found) = SqliteStore::open(directory.path()).expect("our own database");
    assert_eq!(found.counters, counters);
    assert_eq!(found.head, Some(head));
    assert_eq!(found.holdouts, [holdout(0), holdout(1)]);
    for claim in &claims {
        assert_eq!(store.claim(&claim.id).expect("intact"), Some(claim.clone()));
    }
    let pool_of = |store: &mut SqliteStore, n| store.pool(HoldoutId([1; 32]), owner(n));
    assert_eq!(pool_of(&mut store, 1).expect("intact"), Some(pool));
    assert_eq!(pool_of(&mut store, 2).expect("intact"), None);
    let request = store.remembered(&request_key(1)).expect("intact");
    assert_eq!(request, Some(remembered(START_UNIX_MS)));
    assert_eq!(store.claim(&ClaimId([9; 32])).expect("none"), None);

    let readers = evidenceos_store::reader::Readers::open(directory.path()).expect("there");
    let read = |hash: &[u8]| readers.module(&Digest::of(hash)).expect("intact");
    assert_eq!(read(b"module"), Some(b"module".to_vec()));
    assert_eq!(read(b"another"), None);
    let trace = readers.trace(1, &Digest::of(b"trace")).expect("intact");
    assert_eq!(trace, Some(b"trace".to_vec()));
    assert_eq!(readers.trace(0, &Digest::of(b"trace")).expect("none"), None);
    let entries = readers.entries(0, 10).expect("intact");
    let bytes: Vec<_> = entries.into_iter().map(|entry| entry.bytes).collect();
    assert_eq!(bytes, [entry(0), entry(1), entry(2)]);
}

#[test]
fn rows_are_replaced_and_not_added() {
    let mut disk = Disk::new();
    disk.commit_changes(Changes {
        new_claims: vec![claim(0, owner(1))],
        holdouts: vec![holdout(0)],
        ..Changes::default()
    });
    let mut sealed = claim(0, owner(1));
    sealed.state = ClaimState::Sealed;
    let mut retired = holdout(0);
    retired.status = HoldoutStatus::Retired;
    disk.commit_changes(Changes {
        claims: vec![sealed.clone()],
        holdouts: vec![retired.clone()],
        ..Changes::default()
    });
    assert_eq!(disk.store.claim(&sealed.id).expect("intact"), Some(sealed));
    let readers = disk.readers();
    assert_eq!(readers.holdout(0).expect("intact"), Some(retired));
    assert_eq!(readers.claims(None, u64::MAX, 10).expect("intact").len(), 1);
}

#[test]
fn what_is_larger_than_a_row_is_read_from_its_blob() {
    let mut disk = Disk::new();
    let readers = disk.readers();
    let large = vec![5; evidenceos_store::MAX_ROW_BYTES + 1];
    let hash = readers.blobs().put(&large).expect("a writable directory");
    disk.commit(Batch {
        modules: vec![large_module(hash)],
        ..Batch::default()
    });
    assert_eq!(readers.module(&hash).expect("intact"), Some(large));
    assert!(readers.names_blob(&hash).expect("readable"));
    assert!(!readers.names_blob(&Digest::of(b"none")).expect("readable"));
}

#[test]
fn a_module_goes_once_no_claim_names_it_and_nobody_keeps_it() {
    let mut disk = Disk::new();
    let readers = disk.readers();
    disk.store.release_through(readers.blobs().clone());
    let large = readers
        .blobs()
        .put_kept(&[5; MAX_ROW_BYTES + 1])
        .expect("a writable directory");
    let name = Digest::of(&[5; MAX_ROW_BYTES + 1]);
    let small = module(b"small");
    disk.commit(Batch {
        modules: vec![large_module(name), small.clone()],
        ..Batch::default()
    });
    // Another claim names the small one too.
    disk.commit(Batch {
        modules: vec![Module {
            bytes: ModuleBytes::Stored,
            ..small.clone()
        }],
        ..Batch::default()
    });
    let mut displace = |modules: &[Digest]| {
        disk.commit_changes(Changes {
            displaced_modules: modules.to_vec(),
            ..Changes::default()
        });
        disk.store.maintain(true).expect("ours");
        [name, small.hash].map(|hash| readers.has_module(&hash).expect("readable"))
    };
    assert_eq!(displace(&[small.hash]), [true, true]);
    assert_eq!(displace(&[name]), [true, true], "it is kept");
    drop(large);
    assert_eq!(displace(&[]), [false, true]);
    assert!(readers.blobs().get(&name).is_err());
    // Not while a copy is made, and not forgotten over a restart.
    let copying = readers.blobs().keep_all();
    disk.commit_changes(Changes {
        displaced_modules: vec![small.hash],
        ..Changes::default()
    });
    disk.store.maintain(true).expect("ours");
    assert!(readers.has_module(&small.hash).expect("readable"));
    drop((copying, readers));
    let directory = disk.closed();
    let (mut store, _) = SqliteStore::open(directory.path()).expect("our own");
    let readers = Readers::open(directory.path()).expect("the writer has opened it");
    store.release_through(readers.blobs().clone());
    store.maintain(true).expect("ours");
    assert!(!readers.has_module(&small.hash).expect("readable"));
}

/// Whoever sends what is refused keeps the writer from being idle.
#[test]
fn what_was_refused_goes_between_batches_too() {
    let mut disk = Disk::new();
    let readers = disk.readers();
    disk.store.release_through(readers.blobs().clone());
    let bytes = [6; MAX_ROW_BYTES + 1];
    drop(readers.blobs().put_kept(&bytes).expect("writable"));
    disk.store.maintain(false).expect("ours");
    assert!(readers.blobs().get(&Digest::of(&bytes)).is_err());
}

#[test]
fn a_claim_cannot_name_a_module_that_is_not_there() {
    let mut disk = Disk::new();
    let changes = Changes {
        named_modules: vec![Digest::of(b"none")],
        counters: disk.counters,
        ..Changes::default()
    };
    let outcome = disk.store.commit(&Batch {
        changes,
        ..Batch::default()
    });
    assert!(!matches!(outcome, Outcome::Committed), "{outcome:?}");
}

#[test]
fn pages_of_claims_go_from_new_to_old() {
    let mut disk = Disk::new();
    disk.commit_changes(Changes {
        new_claims: (0..10)
            .map(|seq| claim(seq, owner(u8::from(seq % 3 == 0))))
            .collect(),
        ..Changes::default()
    });
    let readers = disk.readers();
    let page = |owner, before, limit| -> Vec<u64> {
        let claims = readers.claims(owner, before, limit).expect("intact");
        claims.iter().map(|claim| claim.seq).collect()
    };
    assert_eq!(page(None, u64::MAX, 4), [9, 8, 7, 6]);
    assert_eq!(page(None, 6, 4), [5, 4, 3, 2]);
    assert_eq!(page(Some(owner(1)), u64::MAX, 3), [9, 6, 3]);
    assert_eq!(page(Some(owner(1)), 3, 3), [0]);
    assert!(page(Some(owner(7)), u64::MAX, 3).is_empty());
}

#[test]
fn revocations_are_listed_in_the_order_of_the_log() {
    let mut disk = Disk::new();
    let revoked = |seq: u64, index: u64| {
        let mut claim = claim(seq, owner(1));
        claim.state = ClaimState::Revoked;
        claim.revocation = Some(Revocation {
            reason: "why".to_owned(),
            revoked_unix_ms: START_UNIX_MS,
            index,
        });
        claim
    };
    disk.commit_changes(Changes {
        new_claims: (0..3).map(|seq| claim(seq, owner(1))).collect(),
        ..Changes::default()
    });
    for (seq, index) in [(2, 5), (0, 7)] {
        disk.commit_changes(Changes {
            claims: vec![revoked(seq, index)],
            ..Changes::default()
        });
    }
    let readers = disk.readers();
    let after = |index| -> Vec<u64> {
        let claims = readers.revoked(index, 10).expect("intact");
        claims.iter().map(|claim| claim.seq).collect()
    };
    assert_eq!(after(0), [2, 0]);
    assert_eq!(after(5), [0]);
    assert!(after(7).is_empty());
}

#[test]
fn a_batch_that_breaks_a_rule_leaves_nothing_and_the_store_goes_on() {
    let mut disk = Disk::new();
    disk.commit_changes(Changes {
        new_claims: vec![claim(0, owner(1))],
        ..Changes::default()
    });
    let twice = Batch {
        changes: Changes {
            new_claims: vec![claim(1, owner(1)), claim(0, owner(1))],
            counters: disk.counters,
            ..Changes::default()
        },
        ..Batch::default()
    };
    let outcome = disk.store.commit(&twice);
    let broken = matches!(
        outcome,
        Outcome::NotCommitted(evidenceos_store::NotCommitted::Constraint(_))
    );
    assert!(broken, "{outcome:?}");
    let second = claim(1, owner(1));
    assert_eq!(disk.store.claim(&second.id).expect("readable"), None);
    disk.commit_changes(Changes {
        new_claims: vec![second.clone()],
        ..Changes::default()
    });
    assert_eq!(disk.store.claim(&second.id).expect("intact"), Some(second));
}

#[test]
fn what_a_batch_reads_is_let_go_whatever_becomes_of_it() {
    let mut disk = Disk::new();
    let read = |store: &mut SqliteStore, n| {
        store
            .claim(&claim(n, owner(1)).id)
            .expect("readable")
            .is_some()
    };
    let first = disk.store.epoch();
    let add = |disk: &mut Disk, n| {
        disk.commit_changes(Changes {
            new_claims: vec![claim(n, owner(1))],
            ..Changes::default()
        });
    };
    assert!(!read(&mut disk.store, 0));
    add(&mut disk, 0);
    assert!(read(&mut disk.store, 0));
    // Nothing came of it: the write-ahead log is copied back all the same.
    let before = disk.store.done().checkpoints.load(Ordering::Relaxed);
    disk.store.maintain(true).expect("ours");
    let after = disk.store.done().checkpoints.load(Ordering::Relaxed);
    assert_eq!(after, before + 1);
    // What is written beside batches is not lost with what was read.
    assert!(read(&mut disk.store, 0));
    disk.store.be_later_than(first + 1).expect("ours");
    assert!(read(&mut disk.store, 0));
    let directory = disk.closed();
    let (store, _) = SqliteStore::open(directory.path()).expect("our own");
    assert_eq!(store.epoch(), first + 3);
}

#[test]
fn starts_are_counted_on_behind_those_that_came_back_from_elsewhere() {
    let mut disk = Disk::new();
    let first = disk.store.epoch();
    disk.store.be_later_than(first + 5).expect("ours");
    assert_eq!(disk.store.epoch(), first + 6);
    disk.store.be_later_than(first).expect("it is already");
    assert_eq!(disk.store.epoch(), first + 6);
    // The fence goes with it.
    disk.commit(Batch {
        recorded: vec![recorded(START_UNIX_MS)],
        ..Batch::default()
    });
    let directory = disk.closed();
    let (store, _) = SqliteStore::open(directory.path()).expect("our own");
    assert_eq!(store.epoch(), first + 7);
}
