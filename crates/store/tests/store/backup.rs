//! Backups: consistent while batches go on, complete or said not to be, and never brought back
//! changed.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use evidenceos_kernel::{id::Digest, state::Changes};
use evidenceos_store::{
    Batch, Head, OpenedStore, Outcome, StoreError,
    backup::{self, Manifest, Progress, Stage},
    facts::{Fact, RememberedAnchor, Restored},
    lock::DirectoryLock,
    log::Integrator,
    sqlite::{self, facts_at_rest},
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::disk::{Disk, START_UNIX_MS, claim, flip, large_module, module, owner};

/// What is done to a backup.
type Damage<'d> = (&'d str, &'d dyn Fn(&Path));

fn quiet(_: Progress) -> Result<(), StoreError> {
    Ok(())
}

/// A store with a blob and enough rows for some steps of a copy.
fn filled() -> (Disk, Digest) {
    let mut disk = Disk::new();
    let blob = disk.readers().blobs().put(&[7; 40_000]).expect("writable");
    let mut modules = vec![large_module(blob)];
    modules.extend((0..300_u32).map(|n| {
        let bytes = n.to_be_bytes().repeat(3_750);
        module(&bytes)
    }));
    disk.commit(Batch {
        modules,
        ..Batch::default()
    });
    disk.append(600);
    (disk, blob)
}

/// A backup; between the steps of its copy `meanwhile` runs.
fn back_up(disk: &mut Disk, to: &Path, mut meanwhile: impl FnMut(&mut Disk)) -> Manifest {
    let copier = disk.store.copier().expect("SQLite can");
    backup::prepare(to).expect("empty");
    let copied = copier.copy(to, &mut |_| {
        meanwhile(disk);
        ControlFlow::Continue(())
    });
    assert!(copied.expect("copied").is_continue());
    backup::complete(disk.path(), to, "test", START_UNIX_MS, &mut quiet).expect("complete")
}

fn target() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("backup");
    (directory, path)
}

fn restored(backup: &Path) -> (TempDir, PathBuf) {
    let (kept, path) = target();
    backup::restore(backup, &path, &mut quiet).expect("a whole backup");
    (kept, path)
}

fn integrate(disk: &Disk, head: &Head) {
    let readers = disk.readers();
    Integrator::recover(disk.path(), readers, Some(head)).expect("our own log");
}

#[test]
fn what_is_committed_while_a_copy_is_made_is_in_it() {
    let (mut disk, blob) = filled();
    let (_kept, to) = target();
    let mut written = 0;
    let manifest = back_up(&mut disk, &to, |disk| {
        disk.commit_changes(Changes {
            new_claims: vec![claim(written, owner(1))],
            ..Changes::default()
        });
        let head = disk.append(1);
        integrate(disk, &head);
        disk.store.maintain(false).expect("checkpoints");
        written += 1;
    });
    assert!(written > 3, "several steps");
    assert_eq!(manifest.entries, disk.tree.size());
    let (_kept, path) = restored(&to);
    let OpenedStore {
        mut store,
        rows: readers,
        found,
    } = sqlite::open(&path).expect("a database");
    let last = claim(written - 1, owner(1));
    assert_eq!(store.claim(&last.id).expect("intact"), Some(last));
    let head = found.head.expect("signed");
    assert_eq!(head.root(), disk.tree.root());
    assert_eq!(readers.blobs().get(&blob).expect("there"), [7; 40_000]);
    Integrator::recover(&path, readers, Some(&head)).expect("fits");
    let published = fs::read(path.join("log/checkpoint")).expect("there");
    assert_eq!(published, head.checkpoint.as_bytes());
}

#[test]
fn what_is_published_after_the_copy_does_not_get_into_the_backup() {
    let (mut disk, _) = filled();
    let (_kept, to) = target();
    let copier = disk.store.copier().expect("SQLite can");
    backup::prepare(&to).expect("empty");
    let copied = copier.copy(&to, &mut |_| ControlFlow::Continue(()));
    assert!(copied.expect("copied").is_continue());
    let size = disk.tree.size();
    let head = disk.append(10);
    integrate(&disk, &head);
    let manifest = backup::complete(disk.path(), &to, "test", 0, &mut quiet).expect("complete");
    assert_eq!(manifest.head.expect("signed").size, size);
    let (_kept, path) = restored(&to);
    let OpenedStore {
        rows: readers,
        found,
        ..
    } = sqlite::open(&path).expect("a database");
    Integrator::recover(&path, readers, found.head.as_ref()).expect("no files ahead of it");
}

#[test]
fn a_backup_at_rest_leaves_the_directory_as_it_is() {
    let (disk, _) = filled();
    let (directory, size) = (disk.path().to_owned(), disk.tree.size());
    let kept = disk.closed();
    let before = contents(&directory);
    let lock = DirectoryLock::take(&directory).expect("free");
    let (_kept, to) = target();
    backup::prepare(&to).expect("empty");
    let mut stages = Vec::new();
    backup::copy_at_rest(&directory, &lock, &to, &mut |progress| {
        stages.push(progress.stage);
        Ok::<_, StoreError>(())
    })
    .expect("copied");
    assert!(stages.contains(&Stage::Database));
    let manifest = backup::complete(&directory, &to, "test", 0, &mut quiet).expect("complete");
    assert_eq!(manifest.entries, size);
    drop(lock);
    fs::remove_file(directory.join("LOCK")).expect("there");
    assert!(contents(&directory) == before);
    drop(kept);
}

pub(crate) fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push((path.clone(), fs::read(&path).expect("readable")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_copy_that_is_broken_off_is_no_backup() {
    let (disk, _) = filled();
    let (_kept, to) = target();
    backup::prepare(&to).expect("empty");
    let copier = disk.store.copier().expect("SQLite can");
    let copied = copier.copy(&to, &mut |_| ControlFlow::Break(()));
    assert!(copied.expect("no error").is_break());
    let (_kept, path) = target();
    let refused = backup::restore(&to, &path, &mut quiet).expect_err("unfinished");
    assert!(refused.to_string().contains("not finished"), "{refused}");
}

#[test]
fn a_directory_that_is_not_empty_is_neither_backed_up_into_nor_restored_over() {
    let (mut disk, _) = filled();
    let (_kept, to) = target();
    back_up(&mut disk, &to, |_| ());
    for refused in [
        backup::prepare(&to).expect_err("not empty"),
        backup::restore(&to, disk.path(), &mut quiet).expect_err("not empty"),
    ] {
        assert!(refused.to_string().contains("is not empty"), "{refused}");
    }
}

#[test]
fn a_backup_that_was_changed_is_not_brought_back() {
    let (mut disk, blob) = filled();
    let (kept, to) = target();
    back_up(&mut disk, &to, |_| ());
    let hex = blob.to_hex();
    let blob = format!("blobs/{}/{}", &hex[..2], &hex[2..]);
    let damage: [Damage<'_>; 5] = [
        ("a flipped bit in the database", &|at| {
            flip(&at.join("evidenceos.db"), 9_000)
        }),
        ("a truncated tile", &|at| {
            fs::write(at.join("log/tile/0/000"), "short").expect("writable");
        }),
        ("a missing blob", &|at| {
            fs::remove_file(at.join(&blob)).expect("there")
        }),
        ("a manifest that is none", &|at| {
            fs::write(at.join("backup.json"), "{}").expect("writable");
        }),
        ("a path that leads out", &|at| {
            let path = at.join("backup.json");
            let text = fs::read_to_string(&path).expect("text");
            let text = text.replace("log/checkpoint", "../log/checkpoint");
            fs::write(path, text).expect("writable");
        }),
    ];
    for (n, (what, damage)) in damage.into_iter().enumerate() {
        let copy = kept.path().join(format!("copy {n}"));
        let status = std::process::Command::new("cp")
            .args(["-r".as_ref(), to.as_os_str(), copy.as_os_str()])
            .status();
        assert!(status.expect("cp runs").success());
        damage(&copy);
        let data = kept.path().join(format!("data {n}"));
        backup::restore(&copy, &data, &mut quiet).expect_err(what);
        assert!(!data.join("evidenceos.db").exists(), "{what}");
    }
}

/// A copy of a backup, file by file, as a restore takes it.
fn copied(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .args(["-r".as_ref(), from.as_os_str(), to.as_os_str()])
        .status();
    assert!(status.expect("cp runs").success());
}

#[test]
fn a_backup_with_what_no_backup_has_is_not_brought_back() {
    let (mut disk, _) = filled();
    let (kept, to) = target();
    let manifest = back_up(&mut disk, &to, |_| ());
    for (n, name) in [
        "secrets/owners.secret",
        "keys/0.key",
        "accounts.json",
        "policy-oracles/a.json",
        "policy-oracles/a.wasm",
        "evidenceos.db-wal",
        "LOCK",
        "control.sock",
        "backup.json",
        "blobs/x",
        "blobs/aa/../../x",
        "blobs/AA/00",
        "log",
        "log/",
        "log/../secrets/x",
        "log/.hidden",
        "/etc/passwd",
        "./evidenceos.db",
        "evidenceos.db/",
        "",
        "evidenceos.db",
    ]
    .into_iter()
    .enumerate()
    {
        let (copy, data) = (kept.path().join(format!("c{n}")), kept.path().join("data"));
        copied(&to, &copy);
        let mut more = manifest.clone();
        let mut file = more.files[0].clone();
        file.path = name.to_owned();
        more.files.push(file);
        let json = serde_json::to_vec(&more).expect("plain data");
        fs::write(copy.join("backup.json"), json).expect("writable");
        let refused = backup::restore(&copy, &data, &mut quiet).expect_err(name);
        assert!(
            refused.to_string().contains(&format!("{name:?}")),
            "{refused}"
        );
        let left: Vec<_> = contents(&data).into_iter().map(|(path, _)| path).collect();
        assert_eq!(left, [data.join("LOCK")], "{name}");
        fs::remove_dir_all(&data).expect("ours");
    }
}

#[test]
fn what_is_no_plain_file_is_not_brought_back() {
    use std::os::unix::fs::symlink;
    let (mut disk, _) = filled();
    let (kept, to) = target();
    back_up(&mut disk, &to, |_| ());
    let moved = |at: &Path, name: &str| {
        let away = at.with_extension("away");
        fs::rename(at.join(name), &away).expect("there");
        away
    };
    let damage: [Damage<'_>; 6] = [
        ("evidenceos.db", &|at| {
            symlink(moved(at, "evidenceos.db"), at.join("evidenceos.db")).expect("made");
        }),
        ("checkpoint", &|at| {
            let name = "log/checkpoint";
            symlink(moved(at, name), at.join(name)).expect("made");
        }),
        ("log/", &|at| {
            symlink(moved(at, "log"), at.join("log")).expect("made");
        }),
        ("backup.json", &|at| {
            symlink(moved(at, "backup.json"), at.join("backup.json")).expect("made");
        }),
        ("checkpoint", &|at| {
            fs::hard_link(at.join("log/checkpoint"), at.with_extension("hard")).expect("made");
        }),
        ("checkpoint", &|at| {
            let path = at.join("log/checkpoint");
            fs::remove_file(&path).expect("there");
            let made = std::process::Command::new("mkfifo").arg(&path).status();
            assert!(made.expect("mkfifo runs").success());
        }),
    ];
    for (n, (named, damage)) in damage.into_iter().enumerate() {
        let (copy, data) = (kept.path().join(format!("c{n}")), kept.path().join("data"));
        copied(&to, &copy);
        damage(&copy);
        let refused = backup::restore(&copy, &data, &mut quiet).expect_err(named);
        let refused = refused.to_string();
        assert!(
            refused.contains(named) && refused.contains("plain files only"),
            "{n}: {refused}"
        );
        assert!(!data.join("evidenceos.db").exists(), "{n}");
        fs::remove_dir_all(&data).expect("ours");
    }
}

#[test]
fn a_backup_and_what_is_restored_are_closed_to_others() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let (mut disk, _) = filled();
    let kept = tempfile::tempdir().expect("a directory");
    let (to, data) = (kept.path().join("backup"), kept.path().join("data"));
    for directory in [&to, &data] {
        fs::create_dir(directory).expect("made");
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("ours");
        fs::write(directory.join(".gitkeep"), "").expect("written");
    }
    let manifest = back_up(&mut disk, &to, |_| ());
    let of_ours = |path: &str| path == "evidenceos.db" || path.contains('/');
    assert!(manifest.files.iter().all(|file| of_ours(&file.path)));
    backup::restore(&to, &data, &mut quiet).expect("whole");
    for directory in [&to, &data] {
        let mut open = vec![directory.clone()];
        while let Some(next) = open.pop() {
            let metadata = fs::symlink_metadata(&next).expect("there");
            let name = next.file_name().expect("a name");
            if name != ".gitkeep" && name != "LOCK" {
                assert_eq!(metadata.mode() & 0o077, 0, "{}", next.display());
            }
            if metadata.is_dir() {
                let entries = fs::read_dir(&next).expect("readable");
                open.extend(entries.map(|entry| entry.expect("readable").path()));
            }
        }
    }
}

#[test]
fn damage_is_not_backed_up_in_silence() {
    let (disk, _) = filled();
    let connection = rusqlite::Connection::open(disk.database()).expect("a database");
    let changed = connection.execute("UPDATE entries SET bytes = x'00' WHERE idx = 3", []);
    assert_eq!(changed.expect("written"), 1);
    drop(connection);
    let (_kept, to) = target();
    backup::prepare(&to).expect("empty");
    let copier = disk.store.copier().expect("SQLite can");
    copier
        .copy(&to, &mut |_| ControlFlow::Continue(()))
        .map(drop)
        .expect("pages are pages");
    let refused = backup::complete(disk.path(), &to, "test", 0, &mut quiet);
    assert!(matches!(refused, Err(StoreError::Damaged { .. })));
    assert!(!to.join("backup.json").exists());
}

#[test]
fn a_copy_says_that_it_is_one_and_the_directory_does_not() {
    let (mut disk, _) = filled();
    let anchors = vec![RememberedAnchor::Directory(b"/elsewhere".to_vec())];
    let noted = disk.store.remember(vec![Fact::Anchors(anchors.clone())]);
    assert!(matches!(noted, Outcome::Committed));
    let (_kept, to) = target();
    let manifest = back_up(&mut disk, &to, |_| {});
    let mark = Some(Restored {
        made_unix_ms: START_UNIX_MS,
        entries: manifest.entries,
    });
    let (_kept, path) = restored(&to);
    for copy in [&to, &path] {
        let facts = facts_at_rest(copy).expect("readable");
        assert_eq!(facts.restored, mark);
        assert_eq!(facts.anchors.as_ref(), Some(&anchors), "they go with it");
    }
    // What is committed ends it, for this copy alone.
    let OpenedStore {
        mut store, found, ..
    } = sqlite::open(&path).expect("a database");
    assert_eq!(found.facts.restored, mark);
    let ended = store.remember(vec![Fact::Restored(None)]);
    assert!(matches!(ended, Outcome::Committed));
    drop(store);
    let facts = facts_at_rest(&path).expect("readable");
    assert_eq!((facts.restored, facts.anchors), (None, Some(anchors)));
    let directory = disk.closed();
    let own = facts_at_rest(directory.path()).expect("readable");
    assert_eq!(own.restored, None);
}

#[test]
fn a_backup_without_the_mark_gets_it_when_it_is_brought_back() {
    let (mut disk, _) = filled();
    let (_kept, to) = target();
    let manifest = back_up(&mut disk, &to, |_| {});
    // As an older release made it: no such table, and a manifest that fits.
    let database = to.join("evidenceos.db");
    let connection = rusqlite::Connection::open(&database).expect("a database");
    connection
        .execute_batch("DROP TABLE facts; DROP TABLE questions; DROP INDEX displaced_modules; ALTER TABLE modules DROP COLUMN claims; PRAGMA user_version = 4;")
        .expect("written");
    drop(connection);
    let bytes = fs::read(&database).expect("there");
    let mut older = manifest.clone();
    for file in &mut older.files {
        if file.path == "evidenceos.db" {
            file.bytes = bytes.len() as u64;
            file.sha256 = hex::encode(Sha256::digest(&bytes));
        }
    }
    let json = serde_json::to_vec(&older).expect("plain data");
    fs::write(to.join("backup.json"), json).expect("writable");
    let (_kept, path) = restored(&to);
    let facts = facts_at_rest(&path).expect("readable");
    assert_eq!(
        facts.restored.map(|mark| mark.entries),
        Some(manifest.entries)
    );
    let found = sqlite::open(&path).expect("brought up to date").found;
    assert!(found.facts.restored.is_some());
    // Put into place as it is, its manifest tells.
    let told = backup::put_into_place(&to).expect("readable");
    assert_eq!(told.map(|mark| mark.entries), Some(manifest.entries));
    backup::no_backup_any_more(&to).expect("ours");
    assert_eq!(backup::put_into_place(&to).expect("readable"), None);
}
