//! `docs/formats.md` as the forger's table: for each field, the checks that may refuse a change of it, and whether it
//! is an operator's own statement.

use std::collections::{BTreeMap, BTreeSet};

use evidenceos_verify::Check;

/// What the documentation says of a field.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) checks: BTreeSet<Check>,
    pub(super) statement: Statement,
}

/// Whether nothing but signatures binds a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statement {
    /// Something does.
    Never,
    /// Nothing does for a run that left no trace.
    WithoutTrace,
    /// Nothing does for a holdout that was withdrawn.
    IfWithdrawn,
    /// Nothing does, within the bounds of the checks.
    Always,
}

/// The rows of each kind of entry, by field.
pub(super) struct Table(BTreeMap<String, BTreeMap<String, Row>>);

impl Table {
    pub(super) fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/formats.md");
        let text = std::fs::read_to_string(path).expect("the documentation is in the repository");
        let mut kinds: BTreeMap<String, BTreeMap<String, Row>> = BTreeMap::new();
        let mut kind = None;
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("### ") {
                kind = title
                    .strip_prefix('`')
                    .and_then(|rest| rest.split('`').next());
            }
            let (Some(kind), Some(row)) = (kind, line.strip_prefix("| `")) else {
                continue;
            };
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [field, _, covered, ""] = cells.as_slice() else {
                // Files have their own tables.
                continue;
            };
            let field = field.trim_end_matches('`').to_owned();
            let rows = kinds.entry(kind.to_owned()).or_default();
            assert!(
                rows.insert(field, Row::read(covered)).is_none(),
                "twice: {line}"
            );
        }
        Self(kinds)
    }

    /// The row of a field, or of the nearest field around it.
    pub(super) fn row(&self, kind: &str, field: &str) -> Option<&Row> {
        let rows = self.0.get(kind)?;
        let mut field = field;
        loop {
            if let Some(row) = rows.get(field) {
                return Some(row);
            }
            field = field.rsplit_once('.')?.0;
        }
    }

    /// Whether a field has a row of its own.
    pub(super) fn has(&self, kind: &str, field: &str) -> bool {
        self.0
            .get(kind)
            .is_some_and(|rows| rows.contains_key(field))
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}

impl Row {
    fn read(covered: &str) -> Self {
        let named = covered.split('`').skip(1).step_by(2);
        let checks = named
            .filter_map(|name| Check::ALL.iter().find(|check| check.name() == name))
            .copied()
            .collect();
        let statement = if covered.contains("statement without a trace") {
            Statement::WithoutTrace
        } else if covered.contains("statement if withdrawn") {
            Statement::IfWithdrawn
        } else if covered.contains("statement") {
            Statement::Always
        } else {
            Statement::Never
        };
        Self { checks, statement }
    }
}
