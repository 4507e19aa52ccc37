//! The check of a whole directory: silent on what is sound, and each kind of damage is found by
//! its own check, with nothing written.

use std::{fs, path::Path, sync::Arc};

use evidenceos_kernel::{
    account::{Account, Totals},
    bits::MicroBits,
    claim::{Outcome, Reason},
    continuity::LogStarted,
    decision::{BatchRecorded, DecisionBatch, DecisionId},
    holdout::{Meter, PrincipalPool},
    id::{Digest, HoldoutId},
    log_key::LogKey,
    price::Multiplicity,
    record::{self, AnswerTally, Capsule, Ledger},
    state::Changes,
};
use evidenceos_store::{
    AccountsFiles, Batch, Entry, Head, Outcome as Fate, StoreError, StoredDecisions, Trace,
    accounts::{AccountsJson, Lines},
    decisions::pack,
    fsck,
    lock::DirectoryLock,
    log::Integrator,
};
use evidenceos_tlog::{SignerKey, leaf_hash, small::root_of, sth};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::disk::{
    Disk, START_UNIX_MS, account, claim, flip, head_of, holdout, module, owner, remembered,
    request_key,
};

fn key() -> SignerKey {
    SignerKey::from_seed("example.org/log", [3; 32]).expect("a valid name")
}

fn capsule(n: u64, holdout: HoldoutId) -> Vec<u8> {
    Capsule {
        claim_id: claim(n, owner(1)).id,
        topic_id: Digest::of(b"topic"),
        structured_output_hash: Digest::of(b""),
        owner_tag: owner(1),
        holdout_id: holdout,
        policy_hash: Digest::of(b"policy"),
        null_spec_hash: Digest::of(b"null"),
        wasm_hash: Digest::of(b"module"),
        seal_hash: Digest::of(b"seal"),
        dependencies: Vec::new(),
        trace_hash: Digest::of(b"trace"),
        outcome: Outcome::NotCertified,
        reason_codes: record::reason_codes(&[Reason::Rejected, Reason::BelowThreshold]),
        answers: AnswerTally {
            n_symbols: 4,
            charged: MicroBits(5),
            ..AnswerTally::default()
        },
        ledger: Ledger {
            k: MicroBits(0),
            c: MicroBits(1),
            price: MicroBits(3),
            settled_before: 0,
            certified_before: 0,
            ordinal: 1,
            alpha_micros: 50_000,
            alpha_divisor: 1,
            multiplicity: Multiplicity::Each,
            threshold: MicroBits(9),
        },
        items: (2, 8, 8),
        e_value_log2: None,
        fuel: 7,
        settled_unix_ms: START_UNIX_MS,
        engine: "engine".to_owned(),
        run: None,
        duplicate_of: None,
    }
    .to_bytes()
}

/// Two decisions in the entry of an index.
fn decided(index: u64) -> StoredDecisions {
    let records = [7, 8].map(crate::decisions::record);
    let leaves = records
        .each_ref()
        .map(|record| leaf_hash(&record.to_bytes()));
    StoredDecisions {
        batch: DecisionBatch {
            first: DecisionId(7),
            count: 2,
            root: Digest(root_of(&leaves).0),
        },
        index,
        recorded_unix_ms: START_UNIX_MS,
        records: pack(&records).into(),
    }
}

/// A directory as a daemon leaves it: every table has a row, the log two tiles and a bit.
fn sound() -> (Arc<TempDir>, Digest) {
    let mut disk = Disk::new();
    let key = key();
    let log_key = LogKey::new(key.public_key(), 0);
    let blob = disk.readers().blobs().put(&[7; 40_000]).expect("writable");
    let mut held = holdout(0);
    held.blob = blob;
    held.answers = Meter {
        charged: MicroBits(10),
        reserved: MicroBits::ZERO,
    };
    held.sealed.charged = MicroBits(6);
    held.settled = 2;
    let started = LogStarted {
        origin: "example.org/log".to_owned(),
        key_id: log_key.id,
        software: "test".to_owned(),
        begun_by: None,
        started_unix_ms: START_UNIX_MS,
    };
    let mut entries = vec![started.to_bytes()];
    entries.extend((0..2).map(|n| capsule(n, held.id)));
    entries
        .extend((0..600).map(|n| format!("{{\"n\":{n},\"schema\":\"evidenceos.v2.x\"}}").into()));
    let decided = decided(entries.len() as u64);
    let recorded = BatchRecorded {
        batch: decided.batch,
        recorded_unix_ms: START_UNIX_MS,
    };
    entries.push(recorded.to_bytes());
    let entries: Vec<Entry> = entries
        .into_iter()
        .map(|bytes: Vec<u8>| Entry {
            leaf: leaf_hash(&bytes),
            bytes,
        })
        .collect();
    for entry in &entries {
        disk.tree.append(entry.leaf);
    }
    disk.tree.take_full_tiles();
    let (size, root) = (disk.tree.size(), disk.tree.root());
    let head = Head {
        signature: key
            .sign_bytes(sth::sth_digest(size, root).as_bytes())
            .to_vec(),
        key_id: log_key.id,
        ..head_of(&disk.tree)
    };
    let pool = PrincipalPool {
        sealed: Meter::default(),
        answers: held.answers,
    };
    disk.counters.next_index = size;
    disk.counters.next_claim_seq = 1;
    disk.counters.next_holdout_seq = 1;
    disk.counters.events = 1;
    disk.commit(Batch {
        changes: Changes {
            new_claims: vec![claim(0, owner(1))],
            pools: vec![(held.id, owner(1), pool)],
            named_blobs: vec![blob],
            holdouts: vec![held],
            remembered: vec![(request_key(1), remembered(START_UNIX_MS))],
            log_keys: vec![log_key],
            new_accounts: vec![Account {
                reserved: 0,
                ..account(0, "alice")
            }],
            totals: Some(Totals {
                accounts: 1,
                initial: 90,
                balances: 90,
                ..Totals::default()
            }),
            ..Changes::default()
        },
        recorded: vec![crate::disk::recorded(START_UNIX_MS)],
        decisions: vec![decided],
        modules: vec![module(b"module")],
        traces: vec![Trace {
            claim_seq: 0,
            hash: Digest::of(b"trace"),
            bytes: b"trace".to_vec(),
        }],
        entries,
        head: Some(head.clone()),
        accounts_files: None,
        facts: Vec::new(),
    });
    let file = AccountsJson::of(disk.path());
    let written = file
        .write_temporary(&*disk.readers(), &mut Lines::default())
        .expect("a free disk");
    let files = AccountsFiles {
        announced: Some(written),
        before: None,
    };
    assert!(matches!(disk.store.announce(files), Fate::Committed));
    file.put_in_place().expect("a free disk");
    Integrator::recover(disk.path(), disk.readers(), Some(&head)).expect("our own log");
    (disk.closed(), blob)
}

fn examine(directory: &Path) -> Result<fsck::Report, StoreError> {
    let lock = DirectoryLock::take(directory).expect("free");
    fsck::examine(directory, &lock, &mut |_, _, _| ())
}

fn names(report: &fsck::Report) -> Vec<&str> {
    let mut names: Vec<&str> = report.findings.iter().map(|f| f.check.as_str()).collect();
    names.dedup();
    names
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let (directory, _) = sound();
    let report = examine(directory.path()).expect("readable");
    assert!(report.is_clean(), "{:#?}", report.findings);
    let looked_at = |name: &str| {
        let found = report.checks.iter().find(|checked| checked.check == name);
        found.expect(name).looked_at
    };
    assert_eq!(looked_at("entries"), 604);
    assert_eq!(looked_at("decisions"), 1);
    assert_eq!(looked_at("blobs"), 1);
    assert_eq!(looked_at("journal"), 1);
    // Tiles 0/000, 0/001, 0/002.p/92, 1/000.p/2, as many bundles as tiles below, the checkpoint.
    assert_eq!(looked_at("log files"), 8);
}

/// A process that dies while it writes a bundle leaves a beginning of it under its own name.
#[test]
fn a_file_that_no_checkpoint_covers_may_be_unfinished_and_nothing_else() {
    let mut disk = Disk::new();
    let published = disk.append(3);
    Integrator::recover(disk.path(), disk.readers(), Some(&published)).expect("ours");
    disk.append(2);
    let directory = disk.closed();
    let entries = directory.path().join("log/tile/entries");
    for (file, content, fine) in [
        ("000.p/5", &b""[..], true),
        ("000.p/5", b"\0\x07entry 0", true),
        ("000.p/5", b"\0\x07entry 1", false),
        ("000.p/3", b"\0\x07entry 0", false),
    ] {
        let path = entries.join(file);
        let before = fs::read(&path).ok();
        fs::write(&path, content).expect("writable");
        let report = examine(directory.path()).expect("readable");
        let found = report
            .findings
            .iter()
            .any(|found| found.key.ends_with(file));
        assert_eq!(!found, fine, "{file} {content:?}: {:#?}", report.findings);
        match before {
            Some(before) => fs::write(&path, before).expect("writable"),
            None => fs::remove_file(&path).expect("ours"),
        }
    }
}

/// What is done to a sound directory.
enum Damage {
    Sql(&'static str),
    File(&'static str, usize),
    Gone(&'static str),
    Blob(fn(&Path)),
}

#[test]
fn each_kind_of_damage_is_found_by_its_check_and_nothing_is_written() {
    use Damage::{Blob, File, Gone, Sql};
    let table: [(Damage, &[&str]); 27] = [
        (
            Sql("UPDATE holdouts SET row = zeroblob(100)"),
            &["holdouts", "pools", "ledger"],
        ),
        (Sql("UPDATE claims SET row = zeroblob(100)"), &["claims"]),
        (Sql("UPDATE claims SET owner = x'00'"), &["claims"]),
        (Sql("DELETE FROM claims"), &["counters"]),
        (
            Sql("UPDATE pools SET row = zeroblob(30)"),
            &["pools", "ledger"],
        ),
        (Sql("DELETE FROM pools"), &["ledger"]),
        (
            Sql("UPDATE remembered_1 SET row = zeroblob(30)"),
            &["requests"],
        ),
        (
            Sql("UPDATE entries SET bytes = x'7b7d' WHERE idx = 300"),
            &["entries", "log files"],
        ),
        (
            Sql("UPDATE entries SET leaf = zeroblob(32) WHERE idx = 300"),
            &["entries"],
        ),
        (
            Sql("DELETE FROM entries WHERE idx = 603"),
            &["counters", "entries", "decisions", "log files"],
        ),
        (
            Sql("UPDATE decisions SET records = zeroblob(20)"),
            &["decisions"],
        ),
        (Sql("UPDATE decisions SET idx = 5"), &["decisions"]),
        (
            Sql("DELETE FROM entries WHERE idx = 1"),
            &["counters", "entries", "ledger", "log files"],
        ),
        (
            Sql("DELETE FROM log_keys"),
            &["head", "log keys", "log files"],
        ),
        (Sql("UPDATE journal SET bytes = zeroblob(9)"), &["journal"]),
        (
            Sql("UPDATE modules SET bytes = x'00'"),
            &["modules and traces"],
        ),
        (
            Sql("UPDATE traces SET bytes = NULL"),
            &["modules and traces"],
        ),
        (
            Sql("INSERT INTO revocations VALUES (4, 0)"),
            &["revocations"],
        ),
        (Sql("UPDATE accounts SET owner = x'00'"), &["accounts"]),
        (Sql("DELETE FROM accounts"), &["accounts"]),
        (Sql("UPDATE accounts SET row = x'00'"), &["accounts"]),
        (File("accounts.json", 40), &["accounts.json"]),
        (File("log/tile/0/001", 77), &["log files"]),
        (File("log/tile/entries/000", 500), &["log files"]),
        (File("log/checkpoint", 90), &["log files"]),
        (Gone("log/tile/1/000.p/2"), &["log files"]),
        (
            Blob(|path| fs::write(path, "another").expect("writable")),
            &["blobs"],
        ),
    ];
    for (n, (damage, expected)) in table.into_iter().enumerate() {
        let (directory, blob) = sound();
        let at = directory.path();
        match damage {
            Sql(sql) => {
                let connection = Connection::open(at.join("evidenceos.db")).expect("a database");
                connection.execute(sql, []).expect("written");
            }
            File(name, offset) => flip(&at.join(name), offset),
            Gone(name) => fs::remove_file(at.join(name)).expect("there"),
            Blob(spoil) => {
                let hex = blob.to_hex();
                spoil(&at.join("blobs").join(&hex[..2]).join(&hex[2..]));
            }
        }
        let before = crate::backup::contents(at);
        let report = examine(at).expect("readable");
        assert_eq!(names(&report), expected, "{n}: {:#?}", report.findings);
        assert!(!report.is_clean());
        assert!(report.findings.iter().all(|f| !f.repair.is_empty()));
        fs::remove_file(at.join("LOCK")).expect("there");
        assert!(crate::backup::contents(at) == before, "{n}");
    }
}

#[test]
fn what_a_crash_leaves_in_the_wal_is_looked_at_and_stays_there() {
    let mut disk = Disk::new();
    disk.append(3);
    // A copy of the files while they are open is what a crash leaves.
    let crashed = tempfile::tempdir().expect("a directory");
    for name in ["evidenceos.db", "evidenceos.db-wal"] {
        fs::copy(disk.path().join(name), crashed.path().join(name)).expect("copied");
    }
    let wal = fs::read(crashed.path().join("evidenceos.db-wal")).expect("there");
    assert!(!wal.is_empty());
    let report = examine(crashed.path()).expect("readable");
    let entries = report.checks.iter().find(|c| c.check == "entries");
    assert_eq!(entries.expect("made").looked_at, 3);
    let after = fs::read(crashed.path().join("evidenceos.db-wal")).expect("there");
    assert!(after == wal);
}

#[test]
fn a_directory_without_a_database_is_said() {
    let directory = tempfile::tempdir().expect("a directory");
    let refused = examine(directory.path()).expect_err("nothing there");
    assert!(
        refused.to_string().contains("missing or empty"),
        "{refused}"
    );
}
