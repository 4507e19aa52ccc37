//! A rule about the sources: nobody but SQLite opens the database. Closing any other descriptor
//! of it would drop SQLite's POSIX locks (sqlite.org/howtocorrupt, §2.2).

use std::{
    fs,
    path::{Path, PathBuf},
};

const ALLOWED: [&str; 2] = ["sqlite/schema.rs", "backup/restore.rs"];

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn only_the_store_names_the_database() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("beside the others");
    let mut files = Vec::new();
    for member in fs::read_dir(crates).expect("readable") {
        let member = member.expect("readable").path();
        let sources = member.join("src");
        // The crash tests are no daemon, and touch databases that no process has open.
        if sources.is_dir() && !member.ends_with("crash") {
            rust_files(&sources, &mut files);
        }
    }
    assert!(files.len() > 50, "all of the workspace");
    for path in files {
        let allowed = ALLOWED
            .iter()
            .any(|name| path.ends_with(format!("store/src/{name}")));
        let source = fs::read_to_string(&path).expect("text");
        let opens = source
            .lines()
            .map(str::trim_start)
            .any(|line| line.contains("evidenceos.db") && !line.starts_with("//"));
        assert!(allowed || !opens, "{} names the database", path.display());
    }
}

/// What another engine could not have stays inside SQLite's own folder.
#[test]
fn only_the_engine_of_sqlite_names_its_library() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&sources, &mut files);
    let engine = [sources.join("sqlite"), sources.join("sqlite.rs")];
    let (inside, outside): (Vec<_>, Vec<_>) =
        (files.iter()).partition(|path| engine.iter().any(|engine| path.starts_with(engine)));
    let names = |path: &&PathBuf| fs::read_to_string(path).expect("text").contains("rusqlite");
    assert!(inside.iter().any(names), "the search works");
    let named: Vec<_> = outside.into_iter().filter(names).collect();
    assert_eq!(named, Vec::<&PathBuf>::new());
}
