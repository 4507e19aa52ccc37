//! A whole log as others mirror it: one entry a line.

use evidenceos_kernel::continuity::LogStarted;
use evidenceos_tlog::{Checkpoint, Hash, Tree, leaf_hash};
use evidenceos_verify::verify_log;

/// The name of a log whose first entry gives none.
const NO_NAME: &str = "example.org/log";

/// The report counts every entry and is the same when it is made again. No finding is about an entry that is not there,
/// and under another root or size no log is sound.
pub fn check(bytes: &[u8]) {
    let entries: Vec<&[u8]> = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    let mut tree = Tree::new();
    for entry in &entries {
        tree.append(leaf_hash(entry));
        drop(tree.take_full_tiles());
    }
    let first = entries.first();
    let started = first.and_then(|first| LogStarted::parse(first).ok());
    let named = started.map(|started| started.origin);
    let head = |size: u64, root: Hash| {
        let named = named.as_deref().unwrap_or(NO_NAME);
        Checkpoint::new(named, size, root).or_else(|_| Checkpoint::new(NO_NAME, size, root))
    };
    let right = head(tree.size(), tree.root()).expect("a name");
    let report = verify_log(&entries, &right);
    assert_eq!(report.entries, entries.len() as u64);
    assert_eq!(report, verify_log(&entries, &right));
    let about = report.findings.iter().filter_map(|finding| finding.index);
    assert!(about.clone().all(|index| index < report.entries));
    assert!(about.is_sorted());
    assert!(report.capsules.len() + report.holdouts.len() <= entries.len());

    for wrong in [
        head(tree.size() + 1, tree.root()),
        head(tree.size(), leaf_hash(b"another root")),
    ] {
        let report = verify_log(&entries, &wrong.expect("a name"));
        assert!(!report.is_sound());
    }
}
