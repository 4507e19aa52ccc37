//! The data directory and the contents of its database.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc};

use evidenceos_store::{
    Done, Found, OpenedStore, Rows, StoreEngine, StoreError, backup,
    blobs::sync_directory,
    facts::{Fact, Facts},
};

use super::StartError;
use crate::{
    accounts::{self, AtStart},
    config::Config,
    metrics::Metrics,
};

/// The database of a locked directory, before the daemon decides anything.
pub struct Data {
    pub store: Box<dyn StoreEngine>,
    /// Connections that read committed rows.
    pub readers: Arc<dyn Rows>,
    /// What the store held when it was opened.
    pub found: Found,
    /// What the store has done since the start, for other threads to read.
    pub done: Arc<Done>,
    /// The state of `accounts.json` at the start.
    pub accounts_json: AtStart,
}

impl Data {
    /// Opens the database of a directory whose lock is held.
    ///
    /// # Errors
    /// If the database cannot be opened, or if `accounts.json` is neither the daemon's nor
    /// approved.
    pub fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StartError> {
        let directory = config.data_dir.as_path();
        let OpenedStore {
            mut store,
            rows: readers,
            mut found,
        } = config.store().open()?;
        store.keep_free(config.min_free_bytes);
        note_backup(directory, &mut *store, &mut found.facts)?;
        let watching = Arc::clone(metrics);
        store.observe(Box::new(move |batch, took| watching.committed(batch, took)));
        let done = store.done();
        metrics.keeps(Arc::clone(&done));
        let accounts_json = accounts::look(directory, &found)?;
        Ok(Self {
            store,
            readers,
            found,
            done,
            accounts_json,
        })
    }
}

/// Makes the directory if it is missing.
///
/// # Errors
/// [`StartError::Store`] if it cannot be made; [`StartError::Refused`] if the path is something
/// else.
pub fn prepare_directory(directory: &Path) -> Result<(), StartError> {
    if !directory.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(StoreError::io("create", directory))?;
        // Otherwise a power cut could lose the directory with the log that began in it.
        if let Some(parent) = directory
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            sync_directory(parent)?;
        }
    }
    if !directory.is_dir() {
        return Err(StartError::refused(
            format!("{} is not a directory", directory.display()),
            "give a --data-dir that is a directory or does not exist yet",
        ));
    }
    Ok(())
}

/// Marks the directory as restored if an operator copied a backup's files into place. Backups of
/// earlier releases do not say so in their database.
///
/// # Errors
/// If the mark cannot be read or written.
pub fn note_backup(
    directory: &Path,
    store: &mut dyn StoreEngine,
    facts: &mut Facts,
) -> Result<(), StoreError> {
    let Some(restored) = backup::put_into_place(directory)? else {
        return Ok(());
    };
    if facts.restored.is_none() {
        let fact = Fact::Restored(Some(restored));
        facts.note(&fact);
        let noted = store.remember(vec![fact]);
        noted.must_be_durable("the mark of a restored backup")?;
    }
    // The file goes only once the database says the same: a crash in between must not lose the fact
    // that this is a backup.
    backup::no_backup_any_more(directory)
}
