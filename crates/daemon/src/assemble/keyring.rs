//! The keys of a data directory: the log's, the owners' secret, the holdouts'.

use std::path::Path;

use evidenceos_access::Owners;
use evidenceos_custody::{HoldoutKeyError, HoldoutKeys, KeyShelf, Vault};
use evidenceos_kernel::holdout::{Holdout, HoldoutStatus};
use evidenceos_keys::{kms::Kms, secrets};
use evidenceos_notary::{
    KeySource,
    keys::{self, LogKeyError, LogKeys, NewKey},
};
use evidenceos_store::{
    StoreEngine,
    blobs::Blobs,
    facts::{Beginning, Fact, Facts},
};

use super::{StartError, data::Data, owners};
use crate::config::Config;

/// Every key of the daemon: the log's, the holdouts', and the one that makes owner tags.
pub struct Keyring {
    /// The log's keys: the one that signs, and those that signed before.
    pub log: LogKeys,
    /// Makes the owner tags of principals.
    pub owners: Owners,
    /// Whether this start made the log's key, or an earlier start that died before the log began.
    pub made_key: bool,
    shelf: KeyShelf,
    holdouts: HoldoutKeys,
}

impl Keyring {
    /// Finds the keys; a first start makes the missing ones. Blocks.
    ///
    /// # Errors
    /// If a required key is missing or cannot be used.
    pub fn find(
        config: &Config,
        data: &mut Data,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, StartError> {
        let directory: &Path = &config.data_dir;
        let first_start = data.found.head.is_none();
        let own = secrets::directory(directory)?;
        let made_now = first_start && make_key(config, &data.found.facts, &mut *data.store)?;
        let imported = keys::imported(&config.log_keys())?;
        let log = LogKeys::find(&config.log_keys(), data.found.head.as_ref(), runtime)?;
        let made_key = made_now || (first_start && is_own(&data.found.facts, &log));
        let owners = owners::open(&own, imported.as_ref(), first_start)?;
        let shelf = KeyShelf::new(own, imported, kms(config)?, runtime.clone());
        let holdouts = shelf.load(first_start)?;
        Ok(Self {
            log,
            owners,
            made_key,
            shelf,
            holdouts,
        })
    }

    /// The vault of the holdouts' items with the key that encrypts them, and where that key is.
    /// Finishes or undoes a change of keys that a crash interrupted.
    ///
    /// # Errors
    /// If the key is missing.
    pub fn open_vault<'h>(
        shelf: KeyShelf,
        mut keys: HoldoutKeys,
        mut holdouts: impl Iterator<Item = &'h Holdout>,
        blobs: &Blobs,
    ) -> Result<(Vault, KeyShelf), StartError> {
        let vault = Vault::new(keys.clone(), blobs.clone());
        // The items of a withdrawn holdout are gone.
        let kept = holdouts.find(|holdout| holdout.status != HoldoutStatus::Withdrawn);
        let in_use = match kept {
            Some(holdout) => vault.tag_of(&holdout.blob)?,
            None => None,
        };
        shelf.settle(&mut keys, in_use)?;
        // A missing key stops the start here: otherwise every run on a holdout would fail later.
        if let Some(tag) = in_use {
            let key = keys.of(&tag).cloned();
            vault.follow(key.ok_or_else(|| HoldoutKeyError::Another(shelf.place()))?);
        }
        Ok((vault, shelf))
    }

    /// The log's keys and the owners' secret, and the holdouts' keys.
    #[must_use]
    pub fn apart(self) -> (LogKeys, Owners, KeyShelf, HoldoutKeys) {
        (self.log, self.owners, self.shelf, self.holdouts)
    }
}

/// Makes the signing key if there is none and one may be made. The database records the key's id
/// before the key is saved: after a crash in between, there is no key that could have signed a log.
fn make_key(
    config: &Config,
    facts: &Facts,
    store: &mut dyn StoreEngine,
) -> Result<bool, StartError> {
    let Some(new) = NewKey::wanted(&config.log_keys())? else {
        return Ok(false);
    };
    let beginning = Beginning { key_id: new.id() };
    if facts.beginning != Some(beginning) {
        let fact = Fact::Beginning(Some(beginning));
        let noted = store.remember(vec![fact]);
        noted.must_be_durable("the note of a new key")?;
    }
    new.save()?;
    Ok(true)
}

/// Whether an earlier start made this key and died before it began the log.
fn is_own(facts: &Facts, keys: &LogKeys) -> bool {
    let id = keys.signer.key_id().0;
    !keys.signer.is_remote() && facts.beginning == Some(Beginning { key_id: id })
}

fn kms(config: &Config) -> Result<Option<(Kms, Option<String>)>, LogKeyError> {
    match &config.keys {
        KeySource::Files(_) => Ok(None),
        KeySource::Kms(keys) => {
            let kms = Kms::new(keys.settings.clone())?;
            Ok(Some((kms, keys.holdout_key.clone())))
        }
    }
}
