//! What shape the workspace's sources have: no file and no function that a reader has to keep in
//! mind as a whole, but for tables.

use std::collections::BTreeSet;

use crate::comments::{Source, indent, sources, test_modules};

/// The most lines of a file.
const MOST_LINES_OF_A_FILE: usize = 700;
/// The most lines of a function, its signature included.
const MOST_LINES_OF_A_FUNCTION: usize = 60;

/// The functions that are longer because they are tables: an arm, a field, a row or a rule after
/// the other, and nothing that one would have to know of the one before.
const TABLES: &[&str] = &[
    "bench/src/report.rs: checks",
    "bench/src/report.rs: write_table",
    "cli/src/claim.rs: run",
    "cli/src/holdout.rs: run",
    "cli/src/render.rs: holdout_text",
    "crash/src/check.rs: must_hold_step",
    "daemon/src/config/identity.rs: new",
    "daemon/src/config/preflight.rs: gate",
    "daemon/src/grpc/render.rs: holdout",
    "daemon/src/run.rs: run_as",
    "gate/src/policies/manifest.rs: problems",
    "kernel/src/record/claim.rs: read",
    "kernel/src/record/claim.rs: write",
    "kernel/src/state/apply.rs: apply",
    "sandbox/src/check/sections.rs: section",
];

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let mut words = line.trim_start().split(' ');
    let qualifier = |word: &str| {
        word.starts_with("pub") || matches!(word, "const" | "async" | "unsafe" | "extern" | "\"C\"")
    };
    let keyword = words.find(|word| !qualifier(word))?;
    let name = words.next().filter(|_| keyword == "fn")?;
    name.split(['(', '<']).next()
}

/// The functions of a file with their lines, without those of its tests.
fn functions(source: &Source) -> Vec<(&str, usize)> {
    let mut functions = Vec::new();
    let mut is_test = false;
    let mut lines = source.lines.iter().enumerate();
    while let Some((at, line)) = lines.next() {
        let ends = |line: &str| indent(line) == indent(&source.lines[at]) && line.trim() == "}";
        let text = line.trim();
        if text == "#[cfg(test)]" || text == "#[test]" {
            is_test = true;
        } else if is_test && text.ends_with('{') {
            lines.find(|(_, line)| ends(line));
            is_test = false;
        } else if let Some(name) = function(line) {
            let rest = &source.lines[at..];
            let last_of_signature = rest.iter().find(|line| {
                indent(line) == indent(&source.lines[at]) && line.ends_with(['{', ';', '}'])
            });
            if last_of_signature.is_some_and(|line| line.ends_with('{')) {
                let length = rest.iter().position(|line| ends(line));
                functions.push((name, length.map_or(rest.len(), |last| last + 1)));
            }
        } else if !text.is_empty() && !text.starts_with("#[") {
            is_test = false;
        }
    }
    functions
}

#[test]
fn functions_are_short_or_tables() {
    let sources = sources();
    let tests = test_modules(&sources);
    let (mut long, mut looked_at) = (BTreeSet::new(), 0);
    for source in &sources {
        let mut modules = source.path.ancestors().map(|path| path.with_extension(""));
        if modules.any(|module| tests.contains(&module)) {
            continue;
        }
        for (name, lines) in functions(source) {
            looked_at += 1;
            if lines > MOST_LINES_OF_A_FUNCTION {
                long.insert(format!("{}: {name}", source.path.display()));
            }
        }
    }
    assert!(looked_at > 3_000, "{looked_at} functions were read");
    let tables: BTreeSet<String> = TABLES.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(
        long, tables,
        "functions of more than {MOST_LINES_OF_A_FUNCTION} lines (left) are tables (right): split \
         one that is none, and take one that got shorter off the list"
    );
}

#[test]
fn files_are_short() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines.len() >= MOST_LINES_OF_A_FILE)
        .map(|source| format!("{}: {}", source.path.display(), source.lines.len()))
        .collect();
    assert!(
        long.is_empty(),
        "{MOST_LINES_OF_A_FILE} lines or more:\n{}",
        long.join("\n")
    );
}
