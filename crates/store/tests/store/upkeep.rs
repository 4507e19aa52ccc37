//! What keeps the store small and its pages where they belong.

use std::{fs, sync::atomic::Ordering};

use evidenceos_kernel::state::{Changes, REQUEST_WINDOW_MS};
use evidenceos_store::{Batch, StoreEngine};
use rusqlite::Connection;

use crate::disk::{Disk, claim, module, owner, recorded, remembered, request_key};

/// Commits a remembered request at the present time.
fn remember(disk: &mut Disk, n: u64) {
    let now = disk.counters.now_unix_ms;
    disk.commit_changes(Changes {
        remembered: vec![(request_key(n), remembered(now))],
        ..Changes::default()
    });
}

fn remembers(disk: &mut Disk, n: u64) -> Option<u64> {
    let found = disk.store.remembered(&request_key(n)).expect("intact");
    found.map(|remembered| remembered.at_unix_ms)
}

#[test]
fn requests_are_kept_for_their_window_and_not_for_ever() {
    let mut disk = Disk::new();
    let hour = REQUEST_WINDOW_MS / 24;
    for n in 0..200 {
        remember(&mut disk, n);
        // Everything of the last 24 hours is there.
        let in_window = n.saturating_sub(23)..=n;
        assert!(in_window.clone().all(|n| remembers(&mut disk, n).is_some()));
        if n > 48 {
            assert_eq!(remembers(&mut disk, n - 49), None, "hour {n}");
        }
        disk.counters.now_unix_ms += hour;
    }
}

#[test]
fn a_request_id_used_again_after_its_window_is_remembered_anew() {
    let mut disk = Disk::new();
    for _ in 0..6 {
        remember(&mut disk, 1);
        let now = disk.counters.now_unix_ms;
        assert_eq!(remembers(&mut disk, 1), Some(now));
        disk.counters.now_unix_ms += REQUEST_WINDOW_MS + 1;
    }
}

#[test]
fn rotation_goes_on_after_a_restart() {
    let mut disk = Disk::new();
    remember(&mut disk, 1);
    disk.counters.now_unix_ms += REQUEST_WINDOW_MS / 2;
    let (mut disk, _) = disk.reopened();
    remember(&mut disk, 2);
    assert!(remembers(&mut disk, 1).is_some());
    disk.counters.now_unix_ms += REQUEST_WINDOW_MS;
    remember(&mut disk, 3);
    assert!(remembers(&mut disk, 2).is_some());
}

#[test]
fn the_wal_does_not_grow_with_what_is_committed() {
    let mut disk = Disk::new();
    // Some 40 MiB of pages, in few commits: the promise is about bytes, not about syncs.
    let wal = disk.path().join("evidenceos.db-wal");
    let mut largest = 0;
    for seq in 0..1_000 {
        disk.commit(Batch {
            changes: Changes {
                new_claims: vec![claim(seq, owner(1))],
                ..Changes::default()
            },
            recorded: vec![recorded(seq)],
            modules: vec![module(
                &[&seq.to_be_bytes(), [7; 15_000].as_slice()].concat(),
            )],
            ..Batch::default()
        });
        disk.store
            .maintain(false)
            .expect("nobody stands in the way");
        if seq % 50 == 0 {
            largest = largest.max(fs::metadata(&wal).expect("there").len());
        }
    }
    assert!(largest < 8 << 20, "{largest} bytes");
}

#[test]
fn an_idle_store_moves_everything_into_the_database() {
    let mut disk = Disk::new();
    disk.append(10);
    disk.store.maintain(true).expect("nobody stands in the way");
    let alone = tempfile::tempdir().expect("a directory");
    let copy = alone.path().join("evidenceos.db");
    fs::copy(disk.database(), &copy).expect("writable");
    let connection = Connection::open(copy).expect("a database");
    let entries: i64 = connection
        .query_row("SELECT count(*) FROM entries", [], |row| row.get(0))
        .expect("whole");
    assert_eq!(entries, 10);
}

#[test]
fn sqlite_is_built_as_it_must_be() {
    let connection = Connection::open_in_memory().expect("memory");
    let mut statement = connection.prepare("PRAGMA compile_options").expect("known");
    let options: Vec<String> = statement
        .query_map([], |row| row.get(0))
        .expect("readable")
        .collect::<Result<_, _>>()
        .expect("text");
    assert!(
        options.iter().any(|option| option == "DQS=0"),
        "{options:?}"
    );
    // SQLite lists no option for fdatasync, so the flags themselves are looked at.
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cargo/config.toml");
    let config = fs::read_to_string(config).expect("the workspace's own");
    assert!(config.contains("-DHAVE_FDATASYNC=1"));
}

#[test]
fn what_a_batch_reads_is_let_go_whatever_becomes_of_it() {
    let mut disk = Disk::new();
    let read = |store: &mut Box<dyn StoreEngine>, n| {
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
    let (disk, _) = disk.reopened();
    assert_eq!(disk.store.epoch(), first + 3);
}
