//! The names of the log that a store's entries are of.

use evidenceos_kernel::continuity::LogStarted;
use evidenceos_store::{Rows, StoreError, facts::Facts};

/// The names that the log had: others than today's, if it was begun anew.
pub fn former_origins(readers: &dyn Rows, facts: &Facts) -> Result<Vec<String>, StoreError> {
    let first = readers.entries(0, 1)?;
    let started = first
        .first()
        .and_then(|entry| LogStarted::parse(&entry.bytes).ok());
    Ok(started
        .map(|started| started.origin)
        .into_iter()
        .chain(facts.former.iter().cloned())
        .collect())
}
