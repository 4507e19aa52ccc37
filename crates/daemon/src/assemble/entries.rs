//! The names that the log of a store has had.

use evidenceos_kernel::continuity::LogStarted;
use evidenceos_store::{Rows, StoreError, facts::Facts};

/// Every name that the log has had. They differ from today's if the log was restarted under another
/// name.
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
