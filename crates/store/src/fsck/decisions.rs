//! Records of decisions about tool calls against the roots that the log has of them.

use rusqlite::{OptionalExtension as _, params};

use super::{Examination, RESTORE, each};
use crate::{StoreError, decisions, sqlite};

/// Every row that is kept is what its entry says.
pub(super) fn decisions(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let total = sqlite::count(&on.connection, "decisions")?;
    each(
        on,
        "SELECT first, idx, records FROM decisions WHERE first > ?1 ORDER BY first LIMIT ?2",
        total,
        |row| Ok((row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?)),
        |on, first, (index, records)| {
            let entry: Option<Vec<u8>> = on
                .connection
                .prepare_cached("SELECT bytes FROM entries WHERE idx = ?1")?
                .query_row(params![index], |row| row.get(0))
                .optional()?;
            let entry = entry.unwrap_or_default();
            if let Err(what) = decisions::check(first as u64, &records, &entry) {
                on.note("decisions", format!("{first:016x}"), what, RESTORE);
            }
            Ok(())
        },
    )
}
