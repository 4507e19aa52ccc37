//! The ring: the signing keys of a data directory, in files.
//!
//! `<directory>/<key-id>.key` is a 32-byte Ed25519 seed; the key id is the hex SHA-256 of its
//! public key, and a file with another name is an error. One key signs; the ring keeps the others.
//! Only [`Ring::activate`] and the functions that add keys write here, so a read-only directory
//! works.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use ed25519_dalek::SigningKey;
use sha2::{Digest as _, Sha256};

use crate::{Directory, KeyError, Secret, draw};

const SUFFIX: &str = ".key";
pub(crate) const ACTIVE: &str = "active_key_id";

/// SHA-256 of an Ed25519 public key; shown in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 32]);

impl KeyId {
    /// The id of a public key.
    #[must_use]
    pub fn of(public_key: &[u8; 32]) -> Self {
        Self(Sha256::digest(public_key).into())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut id = [0; 32];
        match hex::decode_to_slice(text.trim(), &mut id) {
            Ok(()) => Ok(Self(id)),
            Err(_) => Err(KeyError::NotAnId(text.to_owned())),
        }
    }
}

/// The public key of a seed.
#[must_use]
pub fn public_key(seed: &Secret) -> [u8; 32] {
    SigningKey::from_bytes(seed).verifying_key().to_bytes()
}

/// The signing keys of a directory. Seeds are not kept in memory: they are read again when they are
/// needed.
#[derive(Debug)]
pub struct Ring {
    directory: Directory,
    keys: BTreeMap<KeyId, [u8; 32]>,
}

impl Ring {
    /// Reads and checks every key of a directory.
    ///
    /// # Errors
    /// [`KeyError`] if the directory or any key in it is open to others, not ours, or misnamed.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        Self::over(Directory::open(path)?)
    }

    /// As [`Ring::open`]; creates the directory if it is missing.
    ///
    /// # Errors
    /// As [`Ring::open`], and if it cannot be created.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyError> {
        Self::over(Directory::open_or_create(path)?)
    }

    fn over(directory: Directory) -> Result<Self, KeyError> {
        let mut keys = BTreeMap::new();
        for name in directory.names()? {
            let Some(stem) = name.strip_suffix(SUFFIX) else {
                continue;
            };
            // The file may have been removed since the names were listed.
            let Some(seed) = directory.read(&name)? else {
                continue;
            };
            let public = public_key(&seed);
            let found = KeyId::of(&public);
            // Otherwise a file that was copied or renamed would sign under the id of another key.
            if found.to_string() != stem {
                let path = directory.path().join(&name);
                return Err(KeyError::WrongName { path, found });
            }
            keys.insert(found, public);
        }
        Ok(Self { directory, keys })
    }

    /// The path of the ring.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Every key id with its public key.
    #[must_use]
    pub fn keys(&self) -> &BTreeMap<KeyId, [u8; 32]> {
        &self.keys
    }

    /// The file of a key.
    #[must_use]
    pub fn file_of(&self, id: KeyId) -> PathBuf {
        self.path().join(file_name(id))
    }

    /// The seed of a key.
    ///
    /// # Errors
    /// [`KeyError`] if the ring has no such key, or its file has changed.
    pub fn seed(&self, id: KeyId) -> Result<Secret, KeyError> {
        let unknown = || KeyError::Unknown {
            directory: self.path().to_owned(),
            id,
        };
        if !self.keys.contains_key(&id) {
            return Err(unknown());
        }
        let seed = self.directory.read(&file_name(id))?.ok_or_else(unknown)?;
        let found = KeyId::of(&public_key(&seed));
        if found == id {
            Ok(seed)
        } else {
            let path = self.file_of(id);
            Err(KeyError::WrongName { path, found })
        }
    }

    /// The key that the operator chose with [`Ring::activate`], if any.
    ///
    /// # Errors
    /// [`KeyError::Unfit`] if the file of the choice is invalid, with the command that writes
    /// another; another [`KeyError`] if it cannot be read, or names no key of the ring.
    pub fn activated(&self) -> Result<Option<KeyId>, KeyError> {
        let text = self.directory.read_text(ACTIVE).map_err(choose_again)?;
        let Some(text) = text else {
            return Ok(None);
        };
        self.known(text.parse()?).map(Some)
    }

    /// The key that signs: the requested one, or else the activated one, or else the one that has
    /// signed so far, or else the only one.
    ///
    /// # Errors
    /// [`KeyError`] if that key is missing, there is none, or there are several and no choice.
    pub fn choose(&self, asked: Option<KeyId>, so_far: Option<KeyId>) -> Result<KeyId, KeyError> {
        if let Some(id) = asked {
            return self.known(id);
        }
        if let Some(id) = self.activated()? {
            return Ok(id);
        }
        if let Some(id) = so_far.filter(|id| self.keys.contains_key(id)) {
            return Ok(id);
        }
        let mut ids = self.keys.keys();
        match (ids.next(), ids.next()) {
            (None, _) => Err(KeyError::Empty(self.path().to_owned())),
            (Some(only), None) => Ok(*only),
            (Some(_), Some(_)) => Err(KeyError::NotChosen {
                directory: self.path().to_owned(),
                count: self.keys.len(),
            }),
        }
    }

    /// Creates a key and puts it into the ring; it does not sign yet.
    ///
    /// # Errors
    /// [`KeyError`] if there are no random bytes, or the directory cannot be written.
    pub fn generate(&mut self) -> Result<KeyId, KeyError> {
        self.add(&draw()?)
    }

    /// A new key that is in no ring yet.
    ///
    /// # Errors
    /// [`KeyError::Random`] if there are no random bytes.
    pub fn draw() -> Result<Secret, KeyError> {
        draw()
    }

    /// Puts a key into the ring; an existing one stays.
    ///
    /// # Errors
    /// [`KeyError::Io`] if the directory cannot be written.
    pub fn add(&mut self, seed: &Secret) -> Result<KeyId, KeyError> {
        let public = public_key(seed);
        let id = KeyId::of(&public);
        if self.keys.insert(id, public).is_none() {
            self.directory.write(&file_name(id), seed)?;
        }
        Ok(id)
    }

    /// Chooses the key that signs from the next start or reload on.
    ///
    /// # Errors
    /// [`KeyError`] if the ring has no such key, or the directory cannot be written.
    pub fn activate(&self, id: KeyId) -> Result<(), KeyError> {
        // A choice that names no key of the ring would stop the next start.
        let id = self.known(id)?;
        self.directory
            .write_bytes(ACTIVE, format!("{id}\n").as_bytes())
    }

    fn known(&self, id: KeyId) -> Result<KeyId, KeyError> {
        if self.keys.contains_key(&id) {
            Ok(id)
        } else {
            Err(KeyError::Unknown {
                directory: self.path().to_owned(),
                id,
            })
        }
    }
}

fn file_name(id: KeyId) -> String {
    format!("{id}{SUFFIX}")
}

/// Adds the remedy to the error of a file that does not name the active key.
fn choose_again(error: KeyError) -> KeyError {
    match error {
        KeyError::Unfit { path, what } => KeyError::Unfit {
            path,
            what: format!("{what}; remove it and run `evidenceos keys activate KEY_ID`"),
        },
        other => other,
    }
}
