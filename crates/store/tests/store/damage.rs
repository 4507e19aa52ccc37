//! What is damaged, foreign or taken over is never served and never repaired.

use std::fs;

use evidenceos_kernel::{
    holdout::PrincipalPool,
    id::{Digest, HoldoutId},
    state::Changes,
};
use evidenceos_store::{Batch, Outcome, Store as _, StoreError, Trace, sqlite};
use rusqlite::Connection;

use crate::disk::{
    Disk, START_UNIX_MS, claim, flip, holdout, module, owner, recorded, remembered, request_key,
};

/// A store with a row of each kind.
fn filled() -> Disk {
    let mut disk = Disk::new();
    disk.commit(Batch {
        changes: Changes {
            new_claims: vec![claim(0, owner(1))],
            holdouts: vec![holdout(0)],
            pools: vec![(HoldoutId([1; 32]), owner(1), PrincipalPool::default())],
            remembered: vec![(request_key(1), remembered(START_UNIX_MS))],
            ..Changes::default()
        },
        recorded: vec![recorded(START_UNIX_MS)],
        modules: vec![module(b"module")],
        traces: vec![Trace {
            claim_seq: 0,
            hash: Digest::of(b"trace"),
            bytes: b"trace".to_vec(),
        }],
        ..Batch::default()
    });
    disk.append(3);
    disk
}

/// Changes the last byte of a value in a table by another connection.
fn spoil(disk: &Disk, table: &str, column: &str) {
    let connection = Connection::open(disk.database()).expect("a database");
    let intact: Vec<u8> = connection
        .query_row(
            &format!("SELECT {column} FROM {table} LIMIT 1"),
            [],
            |row| row.get(0),
        )
        .expect("a row");
    let mut spoilt = intact.clone();
    *spoilt.last_mut().expect("not empty") ^= 1;
    let changed = connection.execute(
        &format!("UPDATE {table} SET {column} = ?1 WHERE {column} = ?2"),
        [spoilt, intact],
    );
    assert_eq!(changed.expect("written"), 1);
}

fn assert_damaged<T: std::fmt::Debug>(read: Result<T, StoreError>, what: &str) {
    assert!(
        matches!(read, Err(StoreError::Damaged { .. })),
        "{what}: {read:?}"
    );
}

#[test]
fn a_flipped_bit_in_a_row_is_found_when_it_is_read() {
    let mut disk = filled();
    let readers = disk.readers();
    // All that the writer reads, before it reads any of it: its batch sees one state.
    spoil(&disk, "claims", "row");
    spoil(&disk, "pools", "row");
    spoil(&disk, "remembered_1", "row");
    let id = claim(0, owner(1)).id;
    assert_damaged(disk.store.claim(&id), "claim");
    assert_damaged(readers.claim(&id), "claim");
    // The row of another owner's claim is not read at all.
    for (of, there) in [
        (None, true),
        (Some(owner(1)), true),
        (Some(owner(2)), false),
    ] {
        assert_eq!(readers.has_claim(&id, of).expect("readable"), there);
    }
    assert_damaged(readers.claim_of(&id, Some(owner(1))), "claim");
    let of_another = readers.claim_of(&id, Some(owner(2)));
    assert_eq!(of_another.expect("not read"), None);
    let of_another = readers.claim_and_entry(&id, Some(owner(2)));
    assert_eq!(of_another.expect("not read"), None);
    assert_damaged(readers.claims(None, u64::MAX, 1), "claims");
    let pool = disk.store.pool(HoldoutId([1; 32]), owner(1));
    assert_damaged(pool, "pool");
    assert_damaged(disk.store.remembered(&request_key(1)), "remembered");
    spoil(&disk, "holdouts", "row");
    assert_damaged(readers.holdout(0), "holdout");
    spoil(&disk, "modules", "bytes");
    assert_damaged(readers.module(&Digest::of(b"module")), "module");
    spoil(&disk, "traces", "bytes");
    assert_damaged(readers.trace(0, &Digest::of(b"trace")), "trace");
    spoil(&disk, "entries", "bytes");
    assert_damaged(readers.entries(0, 1), "entry");
}

#[test]
fn damage_in_what_a_start_reads_stops_the_start() {
    for (table, column) in [
        ("state", "row"),
        ("holdouts", "row"),
        ("journal", "bytes"),
        ("journal", "chain"),
    ] {
        let disk = filled();
        spoil(&disk, table, column);
        let directory = disk.closed();
        assert_damaged(sqlite::open(directory.path()), table);
    }
}

#[test]
fn a_missing_end_of_the_journal_stops_the_start() {
    let disk = filled();
    let connection = Connection::open(disk.database()).expect("a database");
    connection
        .execute("DELETE FROM journal", [])
        .expect("written");
    drop(connection);
    let directory = disk.closed();
    assert_damaged(sqlite::open(directory.path()), "journal");
}

#[test]
fn a_missing_entry_is_noticed() {
    let disk = filled();
    let connection = Connection::open(disk.database()).expect("a database");
    let deleted = connection.execute("DELETE FROM entries WHERE idx = 1", []);
    assert_eq!(deleted.expect("written"), 1);
    assert_damaged(disk.readers().entries(0, 3), "entries");
}

fn assert_unusable(directory: &std::path::Path, sentence: &str) {
    match sqlite::open(directory) {
        Err(error @ StoreError::Refused { .. }) => {
            let said = error.to_string();
            assert!(said.contains(sentence), "{said}");
            assert!(said.contains("evidenceos.db"), "{said}");
        }
        other => panic!("unusable: {other:?}"),
    }
}

#[test]
fn garbage_in_place_of_the_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("evidenceos.db");
    let garbage = b"this was a photograph once".repeat(500);
    fs::write(&path, &garbage).expect("writable");
    assert_unusable(directory.path(), "restore the data directory from a backup");
    assert_eq!(fs::read(&path).expect("there"), garbage);
}

#[test]
fn a_damaged_header_is_refused() {
    let disk = filled();
    let path = disk.database();
    let directory = disk.closed();
    flip(&path, 3);
    assert_unusable(directory.path(), "damaged, or no database at all");
}

#[test]
fn another_programs_database_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let connection =
        Connection::open(directory.path().join("evidenceos.db")).expect("a new database");
    connection
        .execute_batch("CREATE TABLE theirs (x); PRAGMA application_id = 7;")
        .expect("written");
    drop(connection);
    assert_unusable(directory.path(), "a --data-dir of its own");
}

#[test]
fn newer_tables_are_refused() {
    let disk = filled();
    let connection = Connection::open(disk.database()).expect("a database");
    connection
        .execute_batch("PRAGMA user_version = 99;")
        .expect("written");
    drop(connection);
    let directory = disk.closed();
    assert_unusable(directory.path(), "version 99 of the tables");
}

#[test]
fn older_tables_are_brought_up_to_date_and_keep_their_rows() {
    let disk = filled();
    let counters = disk.counters;
    let connection = Connection::open(disk.database()).expect("a database");
    connection
        .execute_batch("DROP TABLE log_keys; DROP TABLE accounts; DROP TABLE decisions; DROP TABLE questions; DROP TABLE facts; DROP INDEX displaced_modules; ALTER TABLE modules DROP COLUMN claims; PRAGMA user_version = 1;")
        .expect("written");
    drop(connection);
    let directory = disk.closed();
    for _ in 0..2 {
        let found = sqlite::open(directory.path())
            .expect("an older database of ours")
            .found;
        assert_eq!(found.counters, counters);
        assert_eq!(found.log_keys, []);
    }
}

#[test]
fn whoever_opens_the_store_fences_off_those_before_him() {
    let mut first = filled();
    let mut second = first.opened_by_another().store;
    let batch = |n: u64, disk: &Disk| Batch {
        changes: Changes {
            new_claims: vec![claim(n, owner(1))],
            counters: disk.counters,
            ..Changes::default()
        },
        ..Batch::default()
    };
    let late = claim(1, owner(1)).id;
    let outcome = first.store.commit(&batch(1, &first));
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    // A batch that was being made when the other came has read what is not there any more.
    assert_eq!(first.store.claim(&late).expect("readable"), None);
    let outcome = second.commit(&batch(2, &first));
    assert!(matches!(outcome, Outcome::Committed), "{outcome:?}");
    let outcome = first.store.commit(&batch(1, &first));
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    assert_eq!(second.claim(&late).expect("readable"), None);
}
