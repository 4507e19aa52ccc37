//! The log's files: the C2SP layout, recovery, and proofs from tiles that may have been touched.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use evidenceos_store::{
    Head, StoreError,
    log::{Integrator, LogError, LogView, Released},
};
use evidenceos_tlog::{
    Tree, leaf_hash,
    tile::{decode_entries, decode_hashes},
    verify_consistency, verify_inclusion,
};

use crate::disk::{Disk, entry, flip};

/// Damage to a log, and to one of its files.
type OnDisk = fn(&Disk);
type OnFile = fn(&Path);

fn integrated(disk: &Disk, head: &Head) -> Integrator {
    Integrator::recover(disk.path(), disk.readers(), Some(head)).expect("our own log")
}

fn log_path(disk: &Disk, name: &str) -> PathBuf {
    disk.path().join("log").join(name)
}

/// Every file under the log, by its name there.
fn files(disk: &Disk) -> BTreeSet<String> {
    fn walk(directory: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                let name = path.strip_prefix(root).expect("below it");
                found.insert(name.display().to_string());
            }
        }
    }
    let root = disk.path().join("log");
    let mut found = BTreeSet::new();
    walk(&root, &root, &mut found);
    found
}

fn contents(disk: &Disk) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| {
        let bytes = fs::read(log_path(disk, &name)).expect("there");
        (name, bytes)
    };
    files(disk).into_iter().map(read).collect()
}

#[test]
fn files_have_the_names_and_bytes_of_c2sp() {
    let mut disk = Disk::new();
    let head = disk.append(600);
    integrated(&disk, &head);
    let wanted = [
        "checkpoint",
        "tile/0/000",
        "tile/0/001",
        "tile/0/002.p/88",
        "tile/1/000.p/2",
        "tile/entries/000",
        "tile/entries/001",
        "tile/entries/002.p/88",
    ];
    assert_eq!(files(&disk), wanted.map(str::to_owned).into());
    let read = |name: &str| fs::read(log_path(&disk, name)).expect("there");
    assert_eq!(read("checkpoint"), head.checkpoint.as_bytes());
    let leaves: Vec<_> = (512..600).map(|index| leaf_hash(&entry(index))).collect();
    let tile = decode_hashes(&read("tile/0/002.p/88")).expect("hashes");
    assert_eq!(tile, leaves);
    let bundle = read("tile/entries/001");
    let bundle = decode_entries(&bundle).expect("entries");
    assert!(
        bundle
            .iter()
            .zip(256..)
            .all(|(bytes, index)| **bytes == entry(index))
    );
    let full = read("tile/0/000");
    let mut tree = Tree::new();
    decode_hashes(&full)
        .expect("hashes")
        .into_iter()
        .for_each(|leaf| {
            tree.append(leaf);
        });
    let above = decode_hashes(&read("tile/1/000.p/2")).expect("hashes");
    assert_eq!(above[0], tree.root());
}

#[test]
fn following_commit_by_commit_gives_the_same_files_as_at_once() {
    let mut disk = Disk::new();
    let mut integrator = integrated(&disk, &Disk::new().append(0));
    let mut last = None;
    for size in [1, 255, 1, 256, 3] {
        let head = disk.append(size);
        integrator.integrate(&head).expect("our own entries");
        last = Some(head);
    }
    let step_by_step: BTreeSet<_> = contents(&disk).into_iter().collect();
    fs::remove_dir_all(disk.path().join("log")).expect("there");
    integrated(&disk, &last.expect("five of them"));
    let at_once: BTreeSet<_> = contents(&disk).into_iter().collect();
    // Beside the newest partial files older ones may stay.
    assert!(at_once.is_subset(&step_by_step));
}

#[test]
fn whatever_a_crash_leaves_is_made_whole() {
    let spoil: [(&str, OnDisk); 9] = [
        ("nothing", |_| ()),
        ("no checkpoint", |disk| {
            fs::remove_file(log_path(disk, "checkpoint")).expect("there");
        }),
        ("an empty checkpoint", |disk| {
            fs::write(log_path(disk, "checkpoint"), "").expect("there");
        }),
        ("no log at all", |disk| {
            fs::remove_dir_all(disk.path().join("log")).expect("there");
        }),
        ("a truncated partial tile", |disk| {
            let path = log_path(disk, "tile/0/002.p/88");
            let bytes = fs::read(&path).expect("there");
            fs::write(&path, &bytes[..bytes.len() - 5]).expect("there");
        }),
        ("an empty partial tile", |disk| {
            fs::write(log_path(disk, "tile/0/002.p/88"), "").expect("there");
        }),
        ("a tampered partial tile", |disk| {
            flip(&log_path(disk, "tile/0/002.p/88"), 40);
        }),
        ("a tampered partial tile above", |disk| {
            flip(&log_path(disk, "tile/1/000.p/2"), 40);
        }),
        ("a missing partial tile", |disk| {
            fs::remove_file(log_path(disk, "tile/0/002.p/88")).expect("there");
        }),
    ];
    for (what, spoil) in spoil {
        let mut disk = Disk::new();
        let head = disk.append(600);
        integrated(&disk, &head);
        let before = contents(&disk);
        spoil(&disk);
        let integrator = integrated(&disk, &head);
        assert_eq!(integrator.tree().root(), head.root(), "{what}");
        assert!(contents(&disk) == before, "{what}");
    }
}

#[test]
fn files_behind_the_database_are_brought_up() {
    let mut disk = Disk::new();
    let head = disk.append(300);
    integrated(&disk, &head);
    let newer = disk.append(400);
    let integrator = integrated(&disk, &newer);
    assert_eq!(integrator.tree().size(), 700);
    let published = fs::read(log_path(&disk, "checkpoint")).expect("there");
    assert_eq!(published, newer.checkpoint.as_bytes());
}

#[test]
fn a_checkpoint_ahead_of_the_database_stops_the_start() {
    let mut disk = Disk::new();
    let older = disk.append(10);
    let newer = disk.append(10);
    integrated(&disk, &newer);
    for head in [Some(&older), None] {
        let refused = Integrator::recover(disk.path(), disk.readers(), head);
        match refused {
            Err(StoreError::Refused { what, .. }) => {
                assert!(what.contains("restored from an older state"), "{what}");
            }
            other => panic!("a fork: {other:?}"),
        }
    }
}

#[test]
fn entries_that_do_not_lead_to_the_signed_root_stop_the_start() {
    let mut disk = Disk::new();
    let mut head = disk.append(10);
    head.root[0] ^= 1;
    let refused = Integrator::recover(disk.path(), disk.readers(), Some(&head));
    assert!(matches!(refused, Err(StoreError::Refused { .. })));
    assert!(
        !log_path(&disk, "checkpoint").exists(),
        "nothing is published"
    );
}

fn assert_proofs(view: &LogView, pairs: &[(u64, u64)]) {
    for &(small, size) in pairs {
        let (leaf, path, root) = view.inclusion(small, size).expect("a proof");
        assert_eq!(leaf, leaf_hash(&entry(small)));
        verify_inclusion(leaf, small, size, &path, root).expect("it verifies");
        let (path, old, new) = view.consistency(small, size).expect("a proof");
        verify_consistency(small, size, &path, old, new).expect("it verifies");
        assert_eq!(new, root);
    }
}

#[test]
fn proofs_verify_for_every_size_that_was() {
    let mut disk = Disk::new();
    let head = disk.append(700);
    let view = LogView::new(&integrated(&disk, &head), head.clone());
    let mut roots = vec![Tree::new().root()];
    let mut tree = Tree::new();
    for index in 0..700 {
        tree.append(leaf_hash(&entry(index)));
        roots.push(tree.root());
    }
    for size in [1, 2, 255, 256, 257, 511, 512, 513, 699, 700] {
        let pairs: Vec<(u64, u64)> = [0, size / 3, size / 2, size - 1]
            .map(|small| (small, size))
            .into();
        assert_proofs(&view, &pairs);
        let (_, _, root) = view.inclusion(0, size).expect("a proof");
        assert_eq!(root, roots[size as usize]);
    }
}

#[test]
fn what_is_beyond_the_log_is_said() {
    let mut disk = Disk::new();
    let head = disk.append(5);
    let view = LogView::new(&integrated(&disk, &head), head);
    for (index, size) in [(5, 5), (0, 6), (3, 3), (0, 0)] {
        let refused = view.inclusion(index, size);
        assert!(
            matches!(refused, Err(LogError::Beyond { .. })),
            "{index} {size}"
        );
    }
    assert!(matches!(
        view.consistency(2, 6),
        Err(LogError::Beyond { .. })
    ));
    let order = view.consistency(3, 2);
    assert!(matches!(order, Err(LogError::SizesOutOfOrder { .. })));
}

#[test]
fn a_tampered_tile_is_met_at_a_proof_and_made_again() {
    let mut disk = Disk::new();
    let head = disk.append(700);
    let spoil: [(&str, OnFile); 4] = [
        ("tampered", |path| flip(path, 100)),
        ("truncated", |path| fs::write(path, "short").expect("there")),
        ("empty", |path| fs::write(path, "").expect("there")),
        ("missing", |path| fs::remove_file(path).expect("there")),
    ];
    for (what, spoil) in spoil {
        let view = LogView::new(&integrated(&disk, &head), head.clone());
        let path = log_path(&disk, "tile/0/001");
        let before = fs::read(&path).expect("there");
        spoil(&path);
        assert_proofs(&view, &[(300, 700), (259, 300), (10, 500)]);
        assert_eq!(fs::read(&path).expect("there"), before, "{what}");
    }
}

#[test]
fn tiles_are_served_before_they_are_files() {
    let mut disk = Disk::new();
    let head = disk.append(10);
    let mut integrator = integrated(&disk, &head);
    let view = LogView::new(&integrator, head);
    let mut tree = integrator.tree().clone();
    for index in 10..600 {
        tree.append(leaf_hash(&entry(index)));
    }
    let full = tree.take_full_tiles();
    let head = disk.append(590);
    view.release(Released::new(head.clone(), tree), full);
    assert!(!log_path(&disk, "tile/0/000").exists());
    assert_proofs(&view, &[(3, 600), (300, 600), (5, 10)]);
    integrator.integrate(&head).expect("our own entries");
    view.integrated(600);
    assert_proofs(&view, &[(3, 600), (300, 600), (5, 10)]);
}

#[test]
fn a_tampered_tile_of_the_second_level_is_made_again() {
    let mut disk = Disk::new();
    let mut head = disk.append(11_000);
    for _ in 0..5 {
        head = disk.append(11_000);
    }
    let view = LogView::new(&integrated(&disk, &head), head.clone());
    let path = log_path(&disk, "tile/1/000");
    let before = fs::read(&path).expect("a full tile of the second level");
    flip(&path, 32 * 7);
    assert_proofs(&view, &[(300, 66_000), (65_000, 65_999)]);
    assert_eq!(fs::read(&path).expect("there"), before);
}

#[test]
fn an_entry_of_before_that_no_bundle_holds_says_how_to_go_on() {
    let mut disk = Disk::new();
    let largest = disk.append_all(vec![b"first".to_vec(), vec![b'x'; 65_535]]);
    let mut integrator = integrated(&disk, &largest);
    let head = disk.append_all(vec![vec![b'x'; 65_536]]);
    let refused = integrator
        .integrate(&head)
        .expect_err("too long")
        .to_string();
    for words in ["entry 2", "65536 bytes", "log restart", "--begin-log"] {
        assert!(refused.contains(words), "{refused}");
    }
}
