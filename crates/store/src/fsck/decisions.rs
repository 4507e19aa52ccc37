//! Checks records of decisions about tool calls against their roots in the log.

use super::{Examination, RESTORE, each};
use crate::{StoreError, decisions, tables::Table};

/// Every stored row matches its entry.
pub(super) fn decisions(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let total = on.tables.count(Table::Decisions)?;
    each(on, Table::Decisions, total, |on, row| {
        let entry = on.tables.row(Table::Entries, &[row.number_in(0).into()])?;
        let entry = entry.as_ref().map_or(&[][..], |entry| entry.bytes(1));
        let first = row.number();
        if let Err(what) = decisions::check(first, row.bytes(1), entry) {
            on.note("decisions", format!("{first:016x}"), what, RESTORE);
        }
        Ok(())
    })
}
