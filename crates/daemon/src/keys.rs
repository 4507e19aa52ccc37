//! The keys of a data directory: the log's signing key, and two secrets of the daemon's own.
//!
//! | file in `keys/` | what | if lost |
//! |---|---|---|
//! | `<key-id>.key` | Ed25519 seed; the name is the hex SHA-256 of its public key | the log cannot go on |
//! | `owners.secret` | keys the owner tags in public records | nobody owns the claims any more |
//! | `holdouts.secret` | encrypts the holdouts | the holdouts are gone |
//!
//! All are 32 random bytes in a file of mode 0600, made at the first start and never again: a
//! daemon that finds a log but no key stops, since a log must not change its identity because a
//! volume was empty.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use evidenceos_driver::Signer;
use evidenceos_kernel::id::{Digest, OwnerTag};
use evidenceos_store::{Head, StoreError, blobs};
use evidenceos_tlog::{Checkpoint, Hash, SignedCheckpoint, SignerKey, VerifierKey, sth};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

/// 32 secret bytes; never shown.
pub type Secret = Zeroizing<[u8; 32]>;

const OWNERS: &str = "owners.secret";
const HOLDOUTS: &str = "holdouts.secret";

/// Why the keys cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A file or directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key that others can read.
    #[error(
        "{path} has mode {mode:o} and owner {owner}; a key must belong to this user ({user}) or root and be closed to everybody else: chmod 600 {path}"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// Us.
        user: u32,
    },
    /// A file that is no key.
    #[error("{path} is not a key: {what}")]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A log without its keys.
    #[error(
        "the data directory has a log, but {0} is missing; bring the keys directory back from a backup"
    )]
    Missing(PathBuf),
    /// More than one signing key.
    #[error("{0} holds several signing keys; leave only the one that signs the log")]
    Several(PathBuf),
    /// The origin of the log.
    #[error("--log-origin {asked:?}: this log's origin is {kept:?}, for ever; leave the flag out")]
    OtherOrigin {
        /// What was asked for.
        asked: String,
        /// What the log has.
        kept: String,
    },
    /// An origin that cannot be a key name.
    #[error(
        "--log-origin {0:?} cannot name a log; use a host name and a path without spaces or plus signs"
    )]
    Origin(String),
    /// No random bytes.
    #[error("the operating system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// The keys of a data directory.
pub struct Keys {
    /// Signs the log's heads.
    pub signer: LocalSigner,
    owners: Secret,
    /// Encrypts the holdouts.
    pub holdouts: Secret,
}

impl Keys {
    /// Loads the keys, or makes them at the first start.
    ///
    /// # Errors
    /// Where a key is missing, open to others, or no key at all.
    pub fn open(
        data_directory: &Path,
        head: Option<&Head>,
        origin: Option<&str>,
    ) -> Result<Self, KeyError> {
        let directory = data_directory.join("keys");
        let first_start = head.is_none();
        if first_start && !directory.exists() {
            DirBuilder::new()
                .mode(0o700)
                .create(&directory)
                .map_err(StoreError::io("create", &directory))?;
            blobs::sync_directory(data_directory)?;
        }
        let seed = signing_seed(&directory, first_start)?;
        let public = ed25519_dalek::SigningKey::from_bytes(&seed)
            .verifying_key()
            .to_bytes();
        let key_id = Digest(sth::key_id(&public).0);
        let origin = choose_origin(head, origin, key_id)?;
        let signer = LocalSigner::new(&origin, &seed, key_id)?;
        Ok(Self {
            signer,
            owners: secret(&directory.join(OWNERS), first_start)?,
            holdouts: secret(&directory.join(HOLDOUTS), first_start)?,
        })
    }

    /// The tag of a principal in public records.
    #[must_use]
    pub fn owner_tag(&self, principal: &str) -> OwnerTag {
        let mut tag = OwnerTag([0; 16]);
        tag.0
            .copy_from_slice(&self.keyed("owner", principal.as_bytes()).0[..16]);
        tag
    }

    /// A digest that nobody without the owners' secret can compute.
    #[must_use]
    pub fn keyed(&self, purpose: &str, bytes: &[u8]) -> Digest {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.owners.as_slice())
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(bytes);
        Digest(mac.finalize().into_bytes().into())
    }
}

/// Signs with a key in memory.
#[derive(Clone)]
pub struct LocalSigner {
    origin: String,
    key: std::sync::Arc<SignerKey>,
    key_id: Digest,
}

impl LocalSigner {
    fn new(origin: &str, seed: &Secret, key_id: Digest) -> Result<Self, KeyError> {
        let key = SignerKey::from_seed(origin, **seed)
            .map_err(|_| KeyError::Origin(origin.to_owned()))?;
        Ok(Self {
            origin: origin.to_owned(),
            key: std::sync::Arc::new(key),
            key_id,
        })
    }

    /// The log's name.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// SHA-256 of the public key.
    #[must_use]
    pub fn key_id(&self) -> Digest {
        self.key_id
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.verifier().public_key().to_owned()
    }

    /// What verifiers need, as a C2SP verifier key.
    #[must_use]
    pub fn verifier(&self) -> VerifierKey {
        self.key.verifier().clone()
    }

    /// Ed25519 over bytes.
    #[must_use]
    pub fn sign_bytes(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign_bytes(bytes)
    }
}

impl Signer for LocalSigner {
    fn sign(&self, size: u64, root: Hash) -> Head {
        let checkpoint = Checkpoint::new(&self.origin, size, root)
            .and_then(|checkpoint| SignedCheckpoint::sign(checkpoint, &self.key))
            .unwrap_or_else(|error| unreachable!("our own origin signs: {error}"));
        Head {
            size,
            root: root.0,
            signature: self
                .sign_bytes(sth::sth_digest(size, root).as_bytes())
                .to_vec(),
            key_id: self.key_id,
            checkpoint: checkpoint.to_string(),
        }
    }
}

/// The origin is kept in every head; it can be chosen before the first one only.
fn choose_origin(
    head: Option<&Head>,
    asked: Option<&str>,
    key_id: Digest,
) -> Result<String, KeyError> {
    let kept = head
        .and_then(|head| head.checkpoint.lines().next())
        .map(str::to_owned);
    match (kept, asked) {
        (Some(kept), Some(asked)) if kept != asked => Err(KeyError::OtherOrigin {
            asked: asked.to_owned(),
            kept,
        }),
        (Some(kept), _) => Ok(kept),
        (None, Some(asked)) => Ok(asked.to_owned()),
        (None, None) => Ok(format!("evidenceos.local/{}", &key_id.to_hex()[..16])),
    }
}

fn signing_seed(directory: &Path, first_start: bool) -> Result<Secret, KeyError> {
    let mut keys: Vec<PathBuf> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .or_else(|error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(StoreError::io("list", directory)(error)),
        })?;
    keys.retain(|path| path.extension().is_some_and(|extension| extension == "key"));
    match keys.as_slice() {
        [] if first_start => {
            let seed = draw()?;
            write(&directory.join(format!("{}.key", key_id(&seed))), &seed)?;
            Ok(seed)
        }
        [] => Err(KeyError::Missing(directory.join("<key-id>.key"))),
        [path] => {
            let seed = read(path)?;
            let id = key_id(&seed);
            if path.file_stem().and_then(|stem| stem.to_str()) == Some(&id) {
                Ok(seed)
            } else {
                Err(KeyError::NotAKey {
                    path: path.clone(),
                    what: format!("its name does not match its content; it must be named {id}.key"),
                })
            }
        }
        _ => Err(KeyError::Several(directory.to_owned())),
    }
}

fn key_id(seed: &Secret) -> String {
    let public = ed25519_dalek::SigningKey::from_bytes(seed)
        .verifying_key()
        .to_bytes();
    sth::key_id(&public).to_hex()
}

fn secret(path: &Path, first_start: bool) -> Result<Secret, KeyError> {
    if path.exists() {
        return read(path);
    }
    if !first_start {
        return Err(KeyError::Missing(path.to_owned()));
    }
    let secret = draw()?;
    write(path, &secret)?;
    Ok(secret)
}

/// 32 bytes from the operating system.
///
/// # Errors
/// Where it has none.
pub fn draw() -> Result<Secret, KeyError> {
    let mut secret = Secret::default();
    getrandom::fill(secret.as_mut_slice()).map_err(KeyError::Random)?;
    Ok(secret)
}

/// Reads a key, checking on the open file that it is one and that nobody else can read it.
fn read(path: &Path) -> Result<Secret, KeyError> {
    let no_follow = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC).bits();
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(no_follow as i32)
        .open(path)
        .map_err(StoreError::io("open", path))?;
    let metadata = file.metadata().map_err(StoreError::io("read", path))?;
    let user = rustix::process::geteuid().as_raw();
    let (mode, owner) = (metadata.mode() & 0o777, metadata.uid());
    if mode & 0o077 != 0 || (owner != user && owner != 0) {
        return Err(KeyError::Open {
            path: path.to_owned(),
            mode,
            owner,
            user,
        });
    }
    let not_a_key = |what: &str| KeyError::NotAKey {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    if !metadata.is_file() || metadata.len() != 32 {
        return Err(not_a_key("it must be a file of 32 bytes"));
    }
    let mut secret = Secret::default();
    file.read_exact(secret.as_mut_slice())
        .map_err(StoreError::io("read", path))?;
    Ok(secret)
}

/// Puts a key in place whole: temporary file of mode 0600, fsync, rename, fsync of the directory.
fn write(path: &Path, secret: &Secret) -> Result<(), KeyError> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(secret.as_slice())
                .and_then(|()| file.sync_all())
        })
        .map_err(StoreError::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(StoreError::io("rename", path))?;
    path.parent().map_or(Ok(()), blobs::sync_directory)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn head(keys: &Keys) -> Head {
        keys.signer.sign(1, Hash([7; 32]))
    }

    #[test]
    fn keys_made_at_the_first_start_are_found_at_the_next() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Keys::open(directory.path(), None, None).expect("first start");
        let head = head(&first);
        let second = Keys::open(directory.path(), Some(&head), None).expect("second start");
        assert_eq!(first.signer.origin(), second.signer.origin());
        assert_eq!(first.owner_tag("anonymous"), second.owner_tag("anonymous"));
        assert_ne!(first.owner_tag("anonymous"), first.owner_tag("bearer:00"));
        assert!(matches!(
            Keys::open(directory.path(), Some(&head), Some("other.example/log")),
            Err(KeyError::OtherOrigin { .. })
        ));
    }

    #[test]
    fn a_log_without_its_keys_stops() {
        let directory = tempfile::tempdir().expect("a directory");
        let keys = Keys::open(directory.path(), None, None).expect("first start");
        let head = head(&keys);
        for name in [OWNERS, HOLDOUTS] {
            let path = directory.path().join("keys").join(name);
            let kept = fs::read(&path).expect("written");
            fs::remove_file(&path).expect("there");
            assert!(matches!(
                Keys::open(directory.path(), Some(&head), None),
                Err(KeyError::Missing(_))
            ));
            fs::write(&path, kept).expect("writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let head = head(&Keys::open(directory.path(), None, None).expect("first start"));
        let path = directory.path().join("keys").join(OWNERS);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("ours");
        let refused = Keys::open(directory.path(), Some(&head), None)
            .err()
            .expect("open to others");
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
    }
}
