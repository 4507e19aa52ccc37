//! The data directory, and what its database holds.

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

/// The database of a locked directory, before anything is decided over it.
pub struct Data {
    pub store: Box<dyn StoreEngine>,
    /// What reads beside it.
    pub readers: Arc<dyn Rows>,
    /// What the store held when it was opened.
    pub found: Found,
    /// What it has done since the start.
    pub done: Arc<Done>,
    /// What lies there as `accounts.json`.
    pub accounts_json: AtStart,
}

impl Data {
    /// Opens the database of a directory whose lock is held.
    ///
    /// # Errors
    /// If the database cannot be opened, or `accounts.json` is none of ours.
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

/// Makes the directory, if it is not there.
///
/// # Errors
/// [`StartError::Store`] if it cannot be made; [`StartError::Refused`] if it is something else.
pub fn prepare_directory(directory: &Path) -> Result<(), StartError> {
    if !directory.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(StoreError::io("create", directory))?;
        // Else a power cut could leave no directory, and a log that began in it.
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
            "give a --data-dir that is one, or does not exist yet",
        ));
    }
    Ok(())
}

/// A backup that was put into place as it is, by a copy of its files, is marked here: those of the
/// releases before do not say in the database what they are.
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
        noted.must_be_durable("that this is a backup")?;
    }
    // The mark goes once the database says the same: a crash in between must not lose that this is
    // a backup.
    backup::no_backup_any_more(directory)
}
