//! What doc comments in the workspace's sources must be: there, and more than a name said again.
//!
//! `missing_docs` cannot tell a field whose name says all from a function without a comment, so
//! the libraries allow it, and these tests ask instead. They read sources as text, formatted as
//! rustfmt leaves them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Comments with at most so many words are tiny.
const TINY_WORDS: usize = 3;
/// The most tiny comments among a hundred.
const MOST_TINY_PERCENT: usize = 4;

/// A file under some `crates/*/src`, in lines.
pub struct Source {
    /// From the directory of the crates.
    pub path: PathBuf,
    pub lines: Vec<String>,
}

impl Source {
    fn is_root(&self) -> bool {
        let name = self.path.file_name();
        name.is_some_and(|name| name == "lib.rs" || name == "main.rs" || name == "mod.rs")
    }

    /// The directory in which modules that this file names have their files.
    fn children(&self) -> PathBuf {
        if self.is_root() {
            self.path.with_file_name("")
        } else {
            self.path.with_extension("")
        }
    }

    /// Whether a module comment says what the file is.
    fn says_what_it_is(&self) -> bool {
        let mut comments = self
            .lines
            .iter()
            .filter_map(|line| line.strip_prefix("//!"));
        comments.any(|text| !text.trim().is_empty())
    }

    fn is_hidden(&self) -> bool {
        self.lines.iter().any(|line| line.contains("doc(hidden)"))
    }
}

fn read_below(crates: &Path, directory: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_below(crates, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            let path = path.strip_prefix(crates).expect("below the crates");
            sources.push(Source {
                path: path.to_owned(),
                lines: text.lines().map(str::to_owned).collect(),
            });
        }
    }
}

pub fn sources() -> Vec<Source> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    for entry in fs::read_dir(&crates).expect("the crates").flatten() {
        let directory = entry.path().join("src");
        if directory.is_dir() {
            read_below(&crates, &directory, &mut sources);
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 200, "{} sources were read", sources.len());
    sources
}

pub fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The kind and the name of a public item that must have a comment, if a line begins one.
fn public_item(line: &str) -> Option<(&str, &str)> {
    item(line.strip_prefix("pub ")?)
}

fn item(declaration: &str) -> Option<(&str, &str)> {
    let mut words = declaration.split(|c: char| !(c.is_alphanumeric() || "_$".contains(c)));
    let mut kind = words.next()?;
    let mut name = words.next()?;
    while matches!(kind, "async" | "unsafe" | "const")
        && matches!(name, "async" | "unsafe" | "fn" | "trait")
    {
        kind = name;
        name = words.next()?;
    }
    matches!(
        kind,
        "fn" | "struct" | "enum" | "trait" | "const" | "static" | "type" | "macro" | "mod"
    )
    .then_some((kind, name))
}

/// The files of test modules, without `.rs`: `#[cfg(test)] mod name;` names each.
pub fn test_modules(sources: &[Source]) -> BTreeSet<PathBuf> {
    let mut modules = BTreeSet::new();
    for source in sources {
        for pair in source.lines.windows(2) {
            if pair[0].trim() == "#[cfg(test)]"
                && let Some(name) = pair[1].trim().strip_prefix("mod ")
                && let Some(name) = name.strip_suffix(';')
            {
                modules.insert(source.children().join(name));
            }
        }
    }
    modules
}

/// What has no comment and must have one, and how many items were looked at.
fn undocumented(source: &Source, sources: &[Source]) -> (Vec<String>, usize) {
    let (mut missing, mut looked_at) = (Vec::new(), 0);
    let mut is_documented = false;
    let mut in_attribute = false;
    let mut in_trait = None;
    let mut is_test = false;
    let mut lines = source.lines.iter().enumerate();
    while let Some((at, line)) = lines.next() {
        let text = line.trim();
        if in_attribute {
            in_attribute = !text.ends_with(']');
            continue;
        }
        if text.starts_with("///") || text.starts_with("#[doc") || text.starts_with("$(#[") {
            is_documented = true;
            continue;
        }
        if text.starts_with("#[") {
            is_test |= text == "#[cfg(test)]";
            in_attribute = !text.ends_with(']');
            continue;
        }
        if text.is_empty() || text.starts_with("//") {
            continue;
        }
        if is_test && text.ends_with('{') {
            let end = indent(line);
            lines.find(|(_, line)| indent(line) == end && line.trim() == "}");
        } else if let Some((kind, name)) = public_item(text).or_else(|| {
            let in_trait = in_trait.is_some_and(|outer| indent(line) == outer + 4);
            in_trait.then(|| item(text)).flatten()
        }) {
            looked_at += 1;
            let says_itself = || {
                let file = source.children().join(name).with_extension("rs");
                let within = source.children().join(name).join("mod.rs");
                let is_body = |other: &&Source| other.path == file || other.path == within;
                let body = sources.iter().find(is_body);
                kind == "mod" && body.is_some_and(Source::says_what_it_is)
            };
            if !is_documented && !says_itself() {
                let path = source.path.display();
                missing.push(format!("{path}:{}: {kind} {name}", at + 1));
            }
            if kind == "trait" && text.ends_with('{') {
                in_trait = Some(indent(line));
            }
        }
        if in_trait.is_some_and(|outer| indent(line) == outer && text == "}") {
            in_trait = None;
        }
        (is_documented, is_test) = (false, false);
    }
    (missing, looked_at)
}

/// Where the doc comments of a file begin, and their words.
fn comments(source: &Source) -> Vec<(usize, Vec<&str>)> {
    let mut comments: Vec<(usize, Vec<&str>)> = Vec::new();
    let mut goes_on = false;
    for (at, line) in source.lines.iter().enumerate() {
        let comment = line.trim().strip_prefix("///");
        if let Some(text) = comment {
            if !goes_on {
                comments.push((at + 1, Vec::new()));
            }
            let (_, words) = comments.last_mut().expect("one was begun");
            words.extend(text.split_whitespace());
        }
        goes_on = comment.is_some();
    }
    comments
}

#[test]
fn public_items_but_for_fields_and_variants_have_comments() {
    let sources = sources();
    let tests = test_modules(&sources);
    let (mut missing, mut looked_at) = (Vec::new(), 0);
    for source in &sources {
        let mut modules = source.path.ancestors().map(|path| path.with_extension(""));
        if source.is_hidden() || modules.any(|module| tests.contains(&module)) {
            continue;
        }
        let (without, of) = undocumented(source, &sources);
        missing.extend(without);
        looked_at += of;
    }
    assert!(looked_at > 1_500, "{looked_at} items were looked at");
    assert!(
        missing.is_empty(),
        "{} of {looked_at} public items have no doc comment:\n{}",
        missing.len(),
        missing.join("\n")
    );
}

#[test]
fn few_comments_only_say_a_name_again() {
    let sources = sources();
    let (mut all, mut tiny) = (0, Vec::new());
    for source in &sources {
        for (at, words) in comments(source) {
            all += 1;
            if words.len() <= TINY_WORDS {
                let path = source.path.display();
                tiny.push(format!("{path}:{at}: {}", words.join(" ")));
            }
        }
    }
    assert!(all > 5_000, "{all} doc comments were read");
    assert!(
        tiny.len() * 100 <= all * MOST_TINY_PERCENT,
        "{} of {all} doc comments have at most {TINY_WORDS} words; at most {MOST_TINY_PERCENT} % \
         may. State a unit, a bound or what None means, or leave the comment of a field or variant \
         out:\n{}",
        tiny.len(),
        tiny.join("\n")
    );
}
