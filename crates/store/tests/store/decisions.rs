//! Records of decisions: found by number, compared with the log, forgotten from the oldest on.

use evidenceos_kernel::{
    decision::{BatchRecorded, DecisionBatch, DecisionId, DecisionRecord, Gate},
    id::Digest,
    state::Changes,
};
use evidenceos_store::{Batch, Entry, StoreError, StoredDecisions, decisions::pack};
use evidenceos_tlog::{
    leaf_hash,
    small::{path_in, root_of},
    verify_inclusion,
};
use rusqlite::Connection;

use crate::disk::{Disk, START_UNIX_MS, head_of, owner};

/// A decision of this number.
pub fn record(id: u64) -> DecisionRecord {
    DecisionRecord {
        id: DecisionId(id),
        gate: Gate::Preflight,
        decided_unix_ms: START_UNIX_MS,
        owner: owner(1),
        tool_name: format!("tool-{id}"),
        params_hash: Digest([2; 32]),
        session_hash: None,
        agent_hash: Some(Digest([4; 32])),
        decision: "ALLOW".to_owned(),
        reason: "PROBE_CLEAN".to_owned(),
        policies: Digest([0; 32]),
        policy: None,
        output_hash: None,
        reply_receipt: None,
        preflight_receipt: None,
        salt: [7; 16],
    }
}

/// Commits decisions with these numbers, an hour after the ones before.
fn commit(disk: &mut Disk, ids: std::ops::Range<u64>) {
    let records: Vec<_> = ids.clone().map(record).collect();
    let leaves: Vec<_> = records
        .iter()
        .map(|record| leaf_hash(&record.to_bytes()))
        .collect();
    let batch = DecisionBatch {
        first: DecisionId(ids.start),
        count: leaves.len() as u32,
        root: Digest(root_of(&leaves).0),
    };
    let index = disk.counters.next_index;
    let recorded_unix_ms = START_UNIX_MS + index * 3_600_000;
    let bytes = BatchRecorded {
        batch,
        recorded_unix_ms,
    }
    .to_bytes();
    let leaf = leaf_hash(&bytes);
    disk.tree.append(leaf);
    disk.counters.next_index += 1;
    let head = head_of(&disk.tree);
    disk.commit(Batch {
        entries: vec![Entry { leaf, bytes }],
        head: Some(head),
        decisions: vec![StoredDecisions {
            batch,
            index,
            recorded_unix_ms,
            records: pack(&records).into(),
        }],
        ..Batch::default()
    });
}

/// Three batches of two starts.
fn disk() -> Disk {
    let mut disk = Disk::new();
    for ids in [0..3, 3..4, (1 << 40)..(1 << 40) + 300] {
        commit(&mut disk, ids);
    }
    disk
}

#[test]
fn a_decision_is_found_by_its_number_with_all_that_proves_it() {
    let disk = disk();
    let readers = disk.readers();
    for (id, index, position) in [
        (0, 0, 0),
        (2, 0, 2),
        (3, 1, 0),
        (1 << 40, 2, 0),
        ((1 << 40) + 299, 2, 299),
    ] {
        let found = readers
            .decision(DecisionId(id), None)
            .expect("readable")
            .expect("there");
        assert_eq!(found.record, record(id).to_bytes());
        assert_eq!((found.index, found.position), (index, position));
        let batch = BatchRecorded::parse(&found.entry).expect("a batch").batch;
        let path = path_in(&found.leaves, position as usize).expect("it is in");
        let root = evidenceos_tlog::Hash(batch.root.0);
        verify_inclusion(
            leaf_hash(&found.record),
            position.into(),
            batch.count.into(),
            &path,
            root,
        )
        .expect("it proves it");
    }
    for id in [4, (1 << 40) - 1, (1 << 40) + 300, u64::MAX] {
        assert_eq!(
            readers.decision(DecisionId(id), None).expect("readable"),
            None,
            "{id}"
        );
    }
}

#[test]
fn another_owners_is_found_as_little_as_a_number_that_was_never_given() {
    let disk = disk();
    let readers = disk.readers();
    for id in [0, 3, 1 << 40] {
        let found = |of| readers.decision(DecisionId(id), of).expect("readable");
        assert!(found(Some(owner(1))).is_some(), "{id}");
        assert_eq!(found(Some(owner(2))), None, "{id}");
    }
    // Nothing of it is verified, so that it takes no longer either.
    let connection = Connection::open(disk.database()).expect("a database");
    let damage = "UPDATE decisions SET idx = 7 WHERE first = 3";
    connection.execute(damage, []).expect("a row");
    let found = disk.readers().decision(DecisionId(3), Some(owner(2)));
    assert_eq!(found.expect("not looked at"), None);
}

#[test]
fn the_oldest_are_forgotten_and_their_entries_stay() {
    let mut disk = disk();
    let hour = |n: u64| START_UNIX_MS + n * 3_600_000;
    let before = |disk: &Disk, unix_ms, at_most| {
        disk.readers()
            .decisions_before(unix_ms, at_most)
            .expect("readable")
    };
    assert_eq!(before(&disk, hour(0), 10), None);
    assert_eq!(before(&disk, hour(2), 10), Some(DecisionId(3)));
    assert_eq!(before(&disk, hour(2), 1), Some(DecisionId(0)));
    disk.commit(Batch {
        changes: Changes {
            forgotten_decisions: Some(DecisionId(3)),
            ..Changes::default()
        },
        recorded: vec![crate::disk::recorded(START_UNIX_MS)],
        ..Batch::default()
    });
    let readers = disk.readers();
    for id in [0, 2, 3] {
        assert_eq!(
            readers.decision(DecisionId(id), None).expect("readable"),
            None,
            "{id}"
        );
    }
    assert!(
        readers
            .decision(DecisionId(1 << 40), None)
            .expect("readable")
            .is_some()
    );
    assert_eq!(readers.entries(0, 10).expect("readable").len(), 3);
}

#[test]
fn records_that_are_not_what_the_log_has_are_never_served() {
    for damage in [
        "UPDATE decisions SET records = zeroblob(4) WHERE first = 3",
        "UPDATE decisions SET idx = 0 WHERE first = 3",
        "UPDATE decisions SET idx = 7 WHERE first = 3",
    ] {
        let disk = disk();
        let database = disk.database();
        let connection = Connection::open(database).expect("a database");
        connection.execute(damage, []).expect("a row");
        drop(connection);
        let read = disk.readers().decision(DecisionId(3), None);
        assert!(
            matches!(
                read,
                Err(StoreError::Damaged {
                    table: "decisions",
                    ..
                })
            ),
            "{damage}: {read:?}"
        );
    }
}
