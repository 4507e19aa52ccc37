//! The keys under which holdouts are encrypted, in files or wrapped by a KMS.
//!
//! One key is active; others are known during a rotation, and a tag in each blob tells which key it
//! needs. In `<data-dir>/secrets/`, `holdouts.secret` is the active key itself and
//! `holdouts.wrapped` is the key wrapped by a KMS, which is no secret; `holdouts-next.*` is the key
//! of an unfinished rotation. A rotation commits all holdouts at once, so that after a crash any
//! blob tells whether the next key has become the active one.

use evidenceos_keys::{
    Directory, KeyError, Secret, draw,
    kms::{KeyRef, KeyRefError, Kms, KmsError},
    secrets,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::runtime::Handle;

const ACTIVE: &str = "holdouts";
const NEXT: &str = "holdouts-next";

/// Why the holdouts' keys cannot be used.
#[derive(Debug, Error)]
pub enum HoldoutKeyError {
    /// A key file cannot be read, or other users can read it.
    #[error(transparent)]
    Files(#[from] KeyError),
    /// The KMS did not wrap or unwrap a key.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The key is wrapped, and no KMS is configured.
    #[error(
        "{0} was wrapped by a KMS; configure it (EVIDENCEOS_KEY_PROVIDER=kms, EVIDENCEOS_KMS_PROVIDER) so that it can be unwrapped"
    )]
    NoKms(std::path::PathBuf),
    /// The key decrypts no holdout.
    #[error(
        "holdouts.secret {0} does not decrypt the holdouts of this directory; bring their holdouts.secret back from a backup"
    )]
    Another(String),
    /// The wrapped key is malformed.
    #[error("{path} is damaged: {source}; bring it back from a backup")]
    Damaged {
        path: std::path::PathBuf,
        source: KeyRefError,
    },
}

/// The first bytes of a key's digest: tells which key a blob needs, and nothing about the key.
pub type Tag = [u8; 8];

/// A key with its tag.
#[derive(Clone)]
pub struct HoldoutKey {
    pub tag: Tag,
    pub secret: Secret,
}

impl HoldoutKey {
    /// A key, with the tag that follows from it.
    #[must_use]
    pub fn new(secret: Secret) -> Self {
        // The prefix distinguishes the tag from any other digest of the key.
        let digest = Sha256::new()
            .chain_update("evidenceos:holdout_key:v1\0")
            .chain_update(secret.as_slice())
            .finalize();
        let mut tag = Tag::default();
        tag.copy_from_slice(&digest[..8]);
        Self { tag, secret }
    }
}

/// The known keys.
#[derive(Clone)]
pub struct HoldoutKeys {
    /// Encrypts new items.
    pub active: HoldoutKey,
    /// Decrypt older items, or those that a rotation has written.
    pub others: Vec<HoldoutKey>,
}

impl HoldoutKeys {
    /// The key with a tag.
    #[must_use]
    pub fn of(&self, tag: &Tag) -> Option<&HoldoutKey> {
        std::iter::once(&self.active)
            .chain(&self.others)
            .find(|key| key.tag == *tag)
    }

    /// Makes another key the active one.
    pub fn follow(&mut self, next: HoldoutKey) {
        self.others.retain(|key| key.tag != next.tag);
        let old = std::mem::replace(&mut self.active, next);
        self.others.push(old);
    }
}

/// The places of the keys.
pub struct KeyShelf {
    own: Directory,
    imported: Option<Directory>,
    kms: Option<Wrapping>,
}

/// The KMS that wraps and unwraps keys.
struct Wrapping {
    kms: Kms,
    /// The KMS key that wraps new keys; `None`: new keys are in files.
    resource: Option<String>,
    runtime: Handle,
}

impl KeyShelf {
    /// The places of a data directory's keys. With `resource`, the KMS wraps new keys.
    #[must_use]
    pub fn new(
        own: Directory,
        imported: Option<Directory>,
        kms: Option<(Kms, Option<String>)>,
        runtime: Handle,
    ) -> Self {
        let kms = kms.map(|(kms, resource)| Wrapping {
            kms,
            resource,
            runtime,
        });
        Self { own, imported, kms }
    }

    /// Loads the keys; a first start makes one.
    ///
    /// # Errors
    /// If a key is missing, cannot be unwrapped, or other users can read it.
    pub fn load(&self, first_start: bool) -> Result<HoldoutKeys, HoldoutKeyError> {
        let mut found = Vec::new();
        found.extend(self.stored(ACTIVE)?);
        if let Some(imported) = &self.imported {
            found.extend(imported.read(secrets::HOLDOUTS)?);
        }
        // An interrupted rotation may have committed: then blobs need this key, which `settle`
        // finds out. If it is the only key, it was about to become the active one.
        found.extend(self.stored(NEXT)?);
        if found.is_empty() {
            // Holdouts may be encrypted under the missing key, and a new one would decrypt none of
            // them.
            if !first_start {
                let missing = self.own.path().join(secrets::HOLDOUTS);
                return Err(KeyError::Missing(missing).into());
            }
            let secret = draw()?;
            self.store(ACTIVE, &secret)?;
            found.push(secret);
        }
        let mut keys = found.into_iter().map(HoldoutKey::new);
        let active = keys
            .next()
            .unwrap_or_else(|| unreachable!("one was found or made"));
        Ok(HoldoutKeys {
            active,
            others: keys.collect(),
        })
    }

    /// Makes the key of a rotation, durably.
    ///
    /// # Errors
    /// If it cannot be stored or wrapped.
    pub fn make_next(&self) -> Result<HoldoutKey, HoldoutKeyError> {
        let secret = draw()?;
        self.store(NEXT, &secret)?;
        Ok(HoldoutKey::new(secret))
    }

    /// Makes the next key the active one; the old one is destroyed, unless it was imported.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn promote(&self) -> Result<(), HoldoutKeyError> {
        let is_wrapped = self.own.read_text(&file(NEXT, true))?.is_some();
        if !is_wrapped && self.own.read(&file(NEXT, false))?.is_none() {
            return Ok(());
        }
        // The old key's other form goes first. After a crash in between, the next key is the only
        // one and hence active; in the other order two keys could be left, and the old one would be
        // read.
        self.own.remove(&file(ACTIVE, !is_wrapped))?;
        self.own
            .rename(&file(NEXT, is_wrapped), &file(ACTIVE, is_wrapped))?;
        Ok(())
    }

    /// Deletes the next key: its rotation did not take place.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn forget_next(&self) -> Result<(), HoldoutKeyError> {
        self.own.remove(&file(NEXT, true))?;
        self.own.remove(&file(NEXT, false))?;
        Ok(())
    }

    /// Finishes or undoes a rotation after a crash: the next key becomes active if a blob needs it
    /// or there is no other, and is deleted otherwise.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn settle(
        &self,
        keys: &mut HoldoutKeys,
        in_use: Option<Tag>,
    ) -> Result<(), HoldoutKeyError> {
        let Some(next) = self.stored(NEXT)?.map(HoldoutKey::new) else {
            return Ok(());
        };
        let is_promoted = keys.active.tag == next.tag;
        if is_promoted || in_use == Some(next.tag) {
            tracing::warn!("finishing a rotation of the holdouts' key that a crash interrupted");
            if !is_promoted {
                keys.follow(next);
            }
            self.promote()
        } else {
            self.forget_next()
        }
    }

    /// The place of new keys, for an operator.
    #[must_use]
    pub fn place(&self) -> String {
        match self.wraps_with() {
            Some((_, resource)) => format!("wrapped by {resource}"),
            None => format!("in {}", self.own.path().display()),
        }
    }

    fn wraps_with(&self) -> Option<(&Wrapping, &str)> {
        let wrapping = self.kms.as_ref()?;
        Some((wrapping, wrapping.resource.as_deref()?))
    }

    fn stored(&self, name: &str) -> Result<Option<Secret>, HoldoutKeyError> {
        let wrapped = file(name, true);
        let Some(text) = self.own.read_text(&wrapped)? else {
            return Ok(self.own.read(&file(name, false))?);
        };
        let path = || self.own.path().join(&wrapped);
        let key: KeyRef = text
            .trim()
            .parse()
            .map_err(|source| HoldoutKeyError::Damaged {
                path: path(),
                source,
            })?;
        let wrapping = self
            .kms
            .as_ref()
            .ok_or_else(|| HoldoutKeyError::NoKms(path()))?;
        Ok(Some(wrapping.runtime.block_on(wrapping.kms.unwrap(&key))?))
    }

    fn store(&self, name: &str, secret: &Secret) -> Result<(), HoldoutKeyError> {
        match self.wraps_with() {
            Some((wrapping, resource)) => {
                let key = wrapping
                    .runtime
                    .block_on(wrapping.kms.wrap(resource, secret))?;
                self.own
                    .write_bytes(&file(name, true), format!("{key}\n").as_bytes())?;
            }
            None => self.own.write(&file(name, false), secret)?,
        }
        Ok(())
    }
}

fn file(name: &str, is_wrapped: bool) -> String {
    let extension = if is_wrapped { "wrapped" } else { "secret" };
    format!("{name}.{extension}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use evidenceos_keys::kms::{KmsSettings, Provider};

    use super::*;

    fn mock() -> Kms {
        let mut settings = KmsSettings::new(Provider::Mock);
        settings.mock_key = Some(Secret::new([4; 32]));
        Kms::new(settings).expect("a good mock")
    }

    struct Home {
        directory: tempfile::TempDir,
        runtime: tokio::runtime::Runtime,
    }

    impl Home {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().expect("a directory"),
                runtime: tokio::runtime::Runtime::new().expect("a runtime"),
            }
        }

        fn shelf(&self, wrap_with: Option<&str>) -> KeyShelf {
            let own = secrets::directory(self.directory.path()).expect("writable");
            let kms = Some((mock(), wrap_with.map(str::to_owned)));
            KeyShelf::new(own, None, kms, self.runtime.handle().clone())
        }

        fn has(&self, name: &str) -> bool {
            self.directory.path().join("secrets").join(name).exists()
        }
    }

    #[test]
    fn the_first_key_is_made_once_in_a_file_or_wrapped() {
        for (wrap_with, name) in [
            (None, "holdouts.secret"),
            (Some("vault"), "holdouts.wrapped"),
        ] {
            let home = Home::new();
            let shelf = home.shelf(wrap_with);
            assert!(shelf.load(false).is_err(), "nothing to find yet");
            let made = shelf.load(true).expect("first start");
            let found = shelf.load(false).expect("made before");
            assert_eq!(made.active.tag, found.active.tag);
            assert!(home.has(name));
        }
    }

    #[test]
    fn a_rotation_ends_after_a_crash_the_way_its_commit_went() {
        for committed in [true, false] {
            let home = Home::new();
            let shelf = home.shelf(None);
            let old = shelf.load(true).expect("first start").active.tag;
            let next = shelf.make_next().expect("writable").tag;
            // After the crash, both keys are known until it is clear which one the blobs need.
            let mut keys = shelf.load(false).expect("both");
            assert!(keys.of(&old).is_some() && keys.of(&next).is_some());
            let in_use = if committed { next } else { old };
            shelf.settle(&mut keys, Some(in_use)).expect("writable");
            assert!(keys.active.tag == in_use);
            let keys = shelf.load(false).expect("one");
            assert_eq!((keys.active.tag, keys.others.len()), (in_use, 0));
        }
    }

    #[test]
    fn a_crash_while_a_key_changes_its_form_leaves_the_new_key() {
        for (from, to, old) in [
            (None, Some("vault"), "holdouts.secret"),
            (Some("vault"), None, "holdouts.wrapped"),
        ] {
            for has_holdouts in [true, false] {
                let home = Home::new();
                home.shelf(from).load(true).expect("first start");
                let shelf = home.shelf(to);
                let next = shelf.make_next().expect("writable").tag;
                // The crash comes between the two steps of the promotion.
                fs::remove_file(home.directory.path().join("secrets").join(old)).expect("there");
                let mut keys = shelf.load(false).expect("the next one");
                let in_use = has_holdouts.then_some(next);
                shelf.settle(&mut keys, in_use).expect("writable");
                assert_eq!((keys.active.tag, keys.others.len()), (next, 0));
                let keys = shelf.load(false).expect("one");
                assert_eq!((keys.active.tag, keys.others.len()), (next, 0));
            }
        }
    }

    #[test]
    fn a_rotation_moves_the_key_out_of_the_kms_and_leaves_nothing_behind() {
        let home = Home::new();
        home.shelf(Some("vault")).load(true).expect("first start");
        let shelf = home.shelf(None);
        let next = shelf.make_next().expect("writable").tag;
        shelf.promote().expect("writable");
        assert!(home.has("holdouts.secret"));
        assert!(!home.has("holdouts.wrapped") && !home.has("holdouts-next.secret"));
        assert_eq!(shelf.load(false).expect("there").active.tag, next);
    }

    #[test]
    fn a_rotation_moves_the_key_into_the_kms_and_leaves_nothing_behind() {
        let home = Home::new();
        home.shelf(None).load(true).expect("first start");
        let shelf = home.shelf(Some("vault"));
        let next = shelf.make_next().expect("wrapped").tag;
        shelf.promote().expect("writable");
        assert!(home.has("holdouts.wrapped"));
        assert!(!home.has("holdouts.secret") && !home.has("holdouts-next.wrapped"));
        assert_eq!(shelf.load(false).expect("unwrapped").active.tag, next);
    }
}
