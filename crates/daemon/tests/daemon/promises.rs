//! What docs/security.md promises, against the tests that it names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const DOCUMENT: &str = include_str!("../../../../docs/security.md");

/// The rows of the tables under "What protects it", as cells.
fn promises() -> Vec<Vec<&'static str>> {
    let (_, section) = DOCUMENT
        .split_once("## What protects it\n")
        .expect("the section");
    let (section, _) = section.split_once("\n## ").expect("another one follows");
    let rows = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.map(|row| row.split(" | ").map(str::trim).collect())
        .collect()
}

/// The functions that are tests, in all that is below.
fn tests_below(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some((_, rest)) = line.split_once("fn ")
                    && is_test
                {
                    found.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn each_promise_names_tests_that_exist() {
    let crates: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut exist = BTreeSet::new();
    tests_below(&crates, &mut exist);
    assert!(exist.contains("each_promise_names_tests_that_exist"));
    let mut rows = 0;
    for row in promises() {
        let last = row.last().expect("cells");
        if *last == "test" {
            continue;
        }
        rows += 1;
        let named: Vec<&str> = last.split(", ").collect();
        for name in named {
            let name = name
                .strip_prefix('`')
                .and_then(|name| name.strip_suffix('`'));
            assert!(
                name.is_some_and(|name| exist.contains(name)),
                "{:?} is held by no test called {name:?}",
                row[0]
            );
        }
    }
    assert!(rows > 40, "{rows} promises were read");
}
