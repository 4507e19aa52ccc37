//! Checks a data directory that no daemon serves: reads everything, writes nothing.
//!
//! A check is a function that looks at one subject and notes findings; `CHECKS` is their order.
//! Unreadable data is a finding of the check that needed it, and the next check goes on. To add a
//! check: a function in a module below, and a line in the list.
//!
//! Nothing is repaired here. A finding states the repair.

mod accounts;
mod decisions;
mod files;
mod history;
mod ledger;
mod rows;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{
    StoreError, row, sqlite,
    state::StateRow,
    tables::{StoredRow, Table, Tables},
};

/// The most findings that are kept per check; more are only counted.
const KEPT: usize = 100;
/// Rows between two reports of progress.
const STRIDE: u64 = 4_096;

/// The repair of a damaged row.
pub(crate) const RESTORE: &str = "keep a copy of the directory, restore the newest backup into another one (`evidenceos-daemon restore`), then recover the later entries (`evidenceos-daemon log recover`)";
/// The finding about a row whose key no release of ours writes.
pub(crate) const NO_KEY: &str =
    "its key, or a key that it names, has a length that no release writes";
/// The repair of damaged files of the log.
pub(crate) const REMAKE_LOG: &str = "if all checks of the database pass, remove the log directory: the next start makes it again from the entries";
/// The repair of a missing or damaged blob.
pub(crate) const BRING_BLOB: &str = "bring this file back from any backup; blobs never change";
/// The repair of sums that disagree.
pub(crate) const TELL: &str =
    "do not start the daemon on it; keep the directory and ask the maintainers of EvidenceOS";

/// An error in a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check that found it.
    pub check: String,
    /// The table, or the kind of file.
    pub table: String,
    /// The row or file.
    pub key: String,
    /// The error, as a sentence without its subject.
    pub what: String,
    /// The repair that the operator can make.
    pub repair: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {}: {}; {}",
            self.table, self.key, self.what, self.repair
        )
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The check's name, as in its findings.
    pub check: String,
    /// Rows, entries or files that it read.
    pub looked_at: u64,
    /// The number of findings.
    pub findings: u64,
}

/// The result of examining a data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Every check, in order.
    pub checks: Vec<Checked>,
    /// All findings, but at most a hundred per check.
    pub findings: Vec<Finding>,
    /// The key that signed the newest head, in hex.
    pub head_key_id: Option<String>,
}

impl Report {
    /// Whether there are no findings.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.checks.iter().all(|checked| checked.findings == 0)
    }

    /// Adds a check that was made elsewhere.
    pub fn add(&mut self, check: &str, looked_at: u64, findings: Vec<Finding>) {
        self.checks.push(Checked {
            check: check.to_owned(),
            looked_at,
            findings: findings.len() as u64,
        });
        self.findings.extend(findings.into_iter().take(KEPT));
    }
}

/// A callback for progress: the check, the amount done, the whole amount.
pub type Follow<'f> = dyn FnMut(&str, u64, u64) + 'f;

/// Checks one subject; returns the number of rows, entries or files read.
pub(crate) type Check = fn(&mut Examination<'_>) -> Result<u64, StoreError>;

/// All checks, in order: a check comes after those that it relies on.
const CHECKS: [(&str, Check); 20] = [
    ("database", rows::database),
    ("counters", rows::counters),
    ("holdouts", rows::holdouts),
    ("claims", rows::claims),
    ("pools", rows::pools),
    ("questions", rows::questions),
    ("requests", rows::requests),
    ("facts", rows::facts),
    ("entries", history::entries),
    ("head", history::head),
    ("log keys", history::log_keys),
    ("journal", history::journal),
    ("revocations", history::revocations),
    ("ledger", ledger::ledger),
    ("decisions", decisions::decisions),
    ("accounts", accounts::accounts),
    ("accounts.json", accounts::accounts_json),
    ("log files", files::log_files),
    ("modules and traces", files::modules_and_traces),
    ("blobs", files::blobs),
];

/// The data that the checks read, and their findings.
pub(crate) struct Examination<'f> {
    pub(crate) data_directory: PathBuf,
    pub(crate) tables: Box<dyn Tables>,
    pub(crate) state: StateRow,
    check: &'static str,
    found: Vec<Finding>,
    more: u64,
    follow: &'f mut Follow<'f>,
}

impl Examination<'_> {
    /// Adds a finding to the running check; beyond [`KEPT`] it only counts.
    pub(crate) fn note(
        &mut self,
        table: &str,
        key: impl ToString,
        what: impl Into<String>,
        repair: &str,
    ) {
        if self.found.len() == KEPT {
            self.more += 1;
            return;
        }
        self.found.push(Finding {
            check: self.check.to_owned(),
            table: table.to_owned(),
            key: key.to_string(),
            what: what.into(),
            repair: repair.to_owned(),
        });
    }

    /// Notes a finding unless a condition holds.
    pub(crate) fn must(
        &mut self,
        holds: bool,
        (table, key): (&str, impl ToString),
        what: impl FnOnce() -> String,
        repair: &str,
    ) {
        if !holds {
            self.note(table, key, what(), repair);
        }
    }

    /// The value of a row, or a finding.
    pub(crate) fn decoded<T: serde::de::DeserializeOwned>(
        &mut self,
        table: &'static str,
        key: impl ToString + Clone,
        bytes: &[u8],
    ) -> Option<T> {
        match row::decode(table, key.clone(), bytes) {
            Ok(value) => Some(value),
            Err(StoreError::Damaged { what, .. }) => {
                self.note(table, key, what, RESTORE);
                None
            }
            Err(error) => {
                self.note(table, key, error.to_string(), RESTORE);
                None
            }
        }
    }

    /// Reports the progress of the running check.
    pub(crate) fn progress(&mut self, done: u64, total: u64) {
        if done.is_multiple_of(STRIDE) {
            (self.follow)(self.check, done, total);
        }
    }
}

/// Examines a data directory. The caller holds its lock.
///
/// # Errors
/// [`StoreError::Refused`] if there is no database of ours, or its state row is missing: then
/// nothing could be compared. [`StoreError::Database`] if it cannot be opened.
pub fn examine<'f>(
    data_directory: &Path,
    _held: &crate::lock::DirectoryLock,
    follow: &'f mut Follow<'f>,
) -> Result<Report, StoreError> {
    let tables = sqlite::AtRest::open_current(data_directory)?;
    let state = tables.state()?.ok_or_else(|| {
        StoreError::refused(
            format!(
                "{} has no state row: no daemon has ever served it, or the database is damaged",
                tables.path().display()
            ),
            RESTORE,
        )
    })?;
    let mut examination = Examination {
        data_directory: data_directory.to_owned(),
        tables: Box::new(tables),
        state,
        check: "",
        found: Vec::new(),
        more: 0,
        follow,
    };
    let mut report = Report {
        head_key_id: examination
            .state
            .head
            .as_ref()
            .map(|head| head.key_id.to_hex()),
        ..Report::default()
    };
    for (name, check) in CHECKS {
        examination.check = name;
        (examination.follow)(name, 0, 0);
        let looked_at = check(&mut examination).unwrap_or_else(|error| {
            let what = format!("the rest cannot be read: {error}");
            examination.note("database", name, what, RESTORE);
            0
        });
        let findings = std::mem::take(&mut examination.found);
        report.checks.push(Checked {
            check: name.to_owned(),
            looked_at,
            findings: findings.len() as u64 + std::mem::take(&mut examination.more),
        });
        report.findings.extend(findings);
    }
    Ok(report)
}

/// Runs through a table's rows. Reads them page by page, so that a check may note findings and read
/// other rows meanwhile.
pub(crate) fn each(
    on: &mut Examination<'_>,
    table: Table,
    total: u64,
    mut look: impl FnMut(&mut Examination<'_>, &StoredRow) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    const PAGE: usize = 512;
    let mut done = 0;
    let mut page = on.tables.page(table, None, PAGE)?;
    while let Some(last) = page.last() {
        let after = last.key.clone();
        for row in &page {
            look(on, row)?;
            done += 1;
            on.progress(done, total);
        }
        page = on.tables.page(table, Some(&after), PAGE)?;
    }
    Ok(done)
}
