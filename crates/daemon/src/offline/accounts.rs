//! Commands about an `accounts.json` that the daemon did not write, while the daemon is stopped.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use evidenceos_driver::clock::unix_ms;
use evidenceos_store::{
    FileError, Location, OpenedStore, Rows, StoreError,
    accounts::{AccountsJson, Listed, digest, parse},
    blobs::write_durably,
    lock::DirectoryLock,
};

use crate::accounts::{AccountsError, Approval, write_now};

struct Stopped {
    _lock: DirectoryLock,
    opened: OpenedStore,
}

fn open(directory: &Path) -> Result<Stopped, AccountsError> {
    let store = Location::in_directory(directory);
    if !store.exists() {
        return Err(AccountsError::NoDatabase(directory.to_owned()));
    }
    let lock = DirectoryLock::take(directory)?;
    Ok(Stopped {
        _lock: lock,
        opened: store.open()?,
    })
}

/// Has the next start import a file as the accounts; returns what that changes, in lines.
///
/// # Errors
/// `AccountsError::Because`, `AccountsError::NoDatabase`, `AccountsError::Missing` or
/// `AccountsError::NotImportable` if the operator must give something else; `AccountsError::Store`
/// if the daemon runs, or the file cannot be put in place.
pub fn import(
    directory: &Path,
    from: Option<&Path>,
    because: &str,
) -> Result<Vec<String>, AccountsError> {
    let because = because.trim();
    if !(1..=256).contains(&because.len()) || because.chars().any(char::is_control) {
        return Err(AccountsError::Because);
    }
    let stopped = open(directory)?;
    let file = AccountsJson::of(directory);
    let bytes = match from {
        Some(path) => fs::read(path).map_err(FileError::of("read", path))?,
        None => file
            .read()?
            .ok_or_else(|| AccountsError::Missing(file.path()))?,
    };
    let listed = parse(&bytes).map_err(AccountsError::NotImportable)?;
    let lines = differences(&*stopped.opened.rows, &listed)?;
    let approval = Approval {
        sha256: digest(&bytes),
        reason: because.to_owned(),
    };
    // The approval comes first: alone it changes nothing, since it names the file by its digest.
    approval.give(directory)?;
    if from.is_some() {
        write_durably(&file.path(), &bytes)?;
    }
    Ok(lines)
}

fn differences(
    rows: &dyn Rows,
    listed: &BTreeMap<String, Listed>,
) -> Result<Vec<String>, StoreError> {
    let mut before = BTreeMap::new();
    rows.all_accounts(&mut |account| {
        before.insert(account.principal.clone(), Listed::from(&account));
        Ok(())
    })?;
    // The credit of all accounts together may exceed 64 bits.
    let sum = |accounts: &BTreeMap<String, Listed>| -> u128 {
        accounts
            .values()
            .map(|a| u128::from(a.credit_balance))
            .sum()
    };
    let new = listed.keys().filter(|name| !before.contains_key(*name));
    let changed = listed
        .iter()
        .filter(|(name, listed)| before.get(*name).is_some_and(|before| before != *listed));
    let absent = before.keys().filter(|name| !listed.contains_key(*name));
    let mut after = before.clone();
    after.extend(
        listed
            .iter()
            .map(|(name, listed)| (name.clone(), listed.clone())),
    );
    Ok(vec![
        format!(
            "{} accounts in the file: {} new, {} changed; {} that it does not name keep their state",
            listed.len(),
            new.count(),
            changed.count(),
            absent.count()
        ),
        format!(
            "credit of all accounts: {} before, {} after",
            sum(&before),
            sum(&after)
        ),
        "the next start of the daemon imports it, as an entry of the log".to_owned(),
    ])
}

/// Writes the file again from the database; returns where the replaced file is kept, if the daemon
/// had not written it.
///
/// # Errors
/// `AccountsError::Store` if the daemon runs, or the file cannot be written;
/// `AccountsError::NoDatabase` if no daemon has served the directory yet.
pub fn export(directory: &Path) -> Result<Option<PathBuf>, AccountsError> {
    let mut stopped = open(directory)?;
    let file = AccountsJson::of(directory);
    let mut before = None;
    let mut kept = None;
    if let Some(bytes) = file.read()? {
        before = stopped.opened.found.accounts_files.find(&digest(&bytes));
        // A file that the daemon did not write may be an operator's work, so it is kept.
        if before.is_none() {
            let copy = directory.join(format!("accounts.json.replaced-{}", unix_ms()));
            write_durably(&copy, &bytes)?;
            kept = Some(copy);
        }
    }
    // The approval goes first: after a crash the next start must not import what the operator has
    // abandoned.
    Approval::withdraw(directory)?;
    let OpenedStore { store, rows, .. } = &mut stopped.opened;
    write_now(&mut **store, directory, &**rows, before)?;
    Ok(kept)
}
