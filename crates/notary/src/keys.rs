//! The log's keys: the one that signs, those that signed before, and those that are ready.
//!
//! `evidenceos-keys` owns where keys are and who may read them; this module makes them the signers
//! of one log. The signing key may change while the daemon runs, so readers take it from
//! [`Keys::signer`] each time. A log never changes its key silently: see [`crate::rotation`].

use std::{path::Path, sync::Arc};

use evidenceos_driver::Signer;
use evidenceos_kernel::{id::Digest, log_key::LogKey};
use evidenceos_keys::{
    Directory, KeyError, KeyId, Ring, Secret,
    kms::{Kms, KmsError, KmsSigningKey},
    public_key,
};
use evidenceos_store::Head;
use evidenceos_tlog::{
    Checkpoint, Hash, SignedCheckpoint, SignerKey, VerifierKey,
    note::{self, KeyKind},
    sth,
};
use parking_lot::RwLock;
use thiserror::Error;

use crate::config::{KeyConfig, KeySource, KmsKeys};

/// Why the log cannot be signed.
#[derive(Debug, Error)]
pub enum LogKeyError {
    /// A key file cannot be read, or other users can read it.
    #[error(transparent)]
    Files(#[from] KeyError),
    /// The KMS gave no key or no signature.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// A first start has no key and must not make one.
    #[error(
        "{0} holds no signing key, and the daemon makes none if TLS and authentication are on: a log must not change its key because a volume was empty. Bring the key back, import it with `evidenceos keys import --from DIR`, or for a new log run `evidenceos keys generate` or start once with --generate-key"
    )]
    NotGenerated(std::path::PathBuf),
    /// The KMS gave another key than expected.
    #[error(
        "the KMS gave the key {found}, but EVIDENCEOS_KMS_EXPECT_KEY_ID is {expected}; nothing was signed"
    )]
    Unexpected { found: KeyId, expected: KeyId },
    /// The key that signed so far cannot link its successor.
    #[error(
        "key {old} has signed the log so far, and key {new} must take over; the old key must vouch for the new one, but it is missing. Bring {old}.key back beside the new key (for a KMS: EVIDENCEOS_KMS_PREVIOUS_KEY_ID), start once, then remove it"
    )]
    NoPredecessor {
        /// The key that has signed so far.
        old: KeyId,
        /// The key that would sign from now on.
        new: KeyId,
    },
    /// The key that signed the newest head that may be shown.
    #[error(
        "no anchor covers the entry by which key {0} passed the log on, so only an earlier head may be shown; key {0} must sign that head, but it is missing. Make an anchor reachable, or bring {0}.key back beside the new key (for a KMS: EVIDENCEOS_KMS_PREVIOUS_KEY_ID)"
    )]
    Earlier(KeyId),
    /// The requested origin is not the log's.
    #[error(
        "--log-origin {asked:?}: this log's origin is {kept:?} and cannot change; leave the flag out"
    )]
    OtherOrigin {
        /// The requested origin.
        asked: String,
        /// The log's origin.
        kept: String,
    },
    /// The origin cannot be a key name.
    #[error(
        "--log-origin {0:?} cannot name a log; use a host name and a path without spaces or plus signs"
    )]
    Origin(String),
}

/// Signs for one log, with a key in memory or through a KMS.
#[derive(Clone)]
pub struct LogSigner {
    origin: String,
    public_key: [u8; 32],
    place: Place,
}

#[derive(Clone)]
enum Place {
    Memory(Arc<SignerKey>),
    Kms(Arc<KmsSigningKey>),
}

impl LogSigner {
    /// A signer with a key in memory.
    ///
    /// # Errors
    /// If the origin cannot name a log.
    pub fn local(origin: &str, seed: &Secret) -> Result<Self, LogKeyError> {
        let key = SignerKey::from_seed(origin, **seed)
            .map_err(|_| LogKeyError::Origin(origin.to_owned()))?;
        Ok(Self {
            origin: origin.to_owned(),
            public_key: key.public_key(),
            place: Place::Memory(Arc::new(key)),
        })
    }

    fn remote(origin: &str, key: Arc<KmsSigningKey>) -> Result<Self, LogKeyError> {
        let public_key = key.public_key();
        let signer = Self {
            origin: origin.to_owned(),
            public_key,
            place: Place::Kms(key),
        };
        VerifierKey::new(origin, KeyKind::Ed25519, &public_key)
            .map(|_| signer)
            .map_err(|_| LogKeyError::Origin(origin.to_owned()))
    }

    /// The same key for a log with another name.
    ///
    /// # Errors
    /// If the name cannot name a log.
    pub fn under(&self, origin: &str) -> Result<Self, LogKeyError> {
        let unusable = || LogKeyError::Origin(origin.to_owned());
        let place = match &self.place {
            Place::Memory(key) => {
                Place::Memory(Arc::new(key.named(origin).map_err(|_| unusable())?))
            }
            Place::Kms(key) => Place::Kms(Arc::clone(key)),
        };
        VerifierKey::new(origin, KeyKind::Ed25519, &self.public_key).map_err(|_| unusable())?;
        Ok(Self {
            origin: origin.to_owned(),
            public_key: self.public_key,
            place,
        })
    }

    /// The log's name, the first line of each checkpoint.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// SHA-256 of the public key.
    #[must_use]
    pub fn key_id(&self) -> Digest {
        Digest(KeyId::of(&self.public_key).0)
    }

    /// The raw Ed25519 key, 32 bytes.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    /// The C2SP verifier key.
    #[must_use]
    pub fn verifier(&self) -> VerifierKey {
        verifier(&self.origin, &self.public_key)
    }

    /// Whether the key never leaves a KMS.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self.place, Place::Kms(_))
    }

    /// An Ed25519 signature of bytes, if the key is in memory.
    #[must_use]
    pub fn sign_here(&self, bytes: &[u8]) -> Option<[u8; 64]> {
        match &self.place {
            Place::Memory(key) => Some(key.sign_bytes(bytes)),
            Place::Kms(_) => None,
        }
    }

    /// An Ed25519 signature of bytes, by memory or KMS.
    ///
    /// # Errors
    /// If the KMS does not sign.
    pub async fn sign_bytes(&self, bytes: &[u8]) -> Result<[u8; 64], KmsError> {
        match &self.place {
            Place::Memory(key) => Ok(key.sign_bytes(bytes)),
            Place::Kms(key) => key.sign(bytes).await,
        }
    }

    /// The signed head of a tree: signs the wire's digest and the checkpoint's text.
    ///
    /// # Errors
    /// If the KMS does not sign.
    pub async fn sign_head(&self, size: u64, root: Hash) -> Result<Head, KmsError> {
        let key = match &self.place {
            Place::Memory(key) => return Ok(self.head_by(key, size, root)),
            Place::Kms(key) => key,
        };
        let checkpoint = self.checkpoint(size, root);
        let signature = key.sign(sth::sth_digest(size, root).as_bytes()).await?;
        let note = key.sign(checkpoint.to_string().as_bytes()).await?;
        let signed = SignedCheckpoint::from_signature(checkpoint.clone(), &self.verifier(), &note)
            .unwrap_or_else(|error| unreachable!("our own signature was checked: {error}"));
        Ok(self.head(&checkpoint, &signature, signed.to_string()))
    }

    /// The signed head by a key in memory. Its signatures need no check: its public key comes from
    /// its own seed.
    fn head_by(&self, key: &SignerKey, size: u64, root: Hash) -> Head {
        let checkpoint = self.checkpoint(size, root);
        let signature = key.sign_bytes(sth::sth_digest(size, root).as_bytes());
        let note = note::sign(&checkpoint.to_string(), &[key])
            .unwrap_or_else(|error| unreachable!("a checkpoint is the text of a note: {error}"));
        self.head(&checkpoint, &signature, note.to_string())
    }

    fn checkpoint(&self, size: u64, root: Hash) -> Checkpoint {
        Checkpoint::new(&self.origin, size, root)
            .unwrap_or_else(|error| unreachable!("our own origin was checked: {error}"))
    }

    fn head(&self, checkpoint: &Checkpoint, signature: &[u8; 64], note: String) -> Head {
        Head {
            size: checkpoint.size(),
            root: checkpoint.root().0,
            signature: signature.to_vec(),
            key_id: self.key_id(),
            checkpoint: note,
        }
    }
}

/// The verifier key of a log's key.
#[must_use]
pub fn verifier(origin: &str, public_key: &[u8; 32]) -> VerifierKey {
    VerifierKey::new(origin, KeyKind::Ed25519, public_key)
        .unwrap_or_else(|error| unreachable!("our own origin was checked: {error}"))
}

/// A key in memory, in the form in which the driver signs with it.
pub struct InMemory {
    signer: LogSigner,
    key: Arc<SignerKey>,
}

impl InMemory {
    /// The signer, if its key is in memory.
    #[must_use]
    pub fn of(signer: &LogSigner) -> Option<Self> {
        match &signer.place {
            Place::Memory(key) => Some(Self {
                signer: signer.clone(),
                key: Arc::clone(key),
            }),
            Place::Kms(_) => None,
        }
    }
}

impl Signer for InMemory {
    fn sign(&self, size: u64, root: Hash) -> Head {
        self.signer.head_by(&self.key, size, root)
    }

    fn origin(&self) -> &str {
        &self.signer.origin
    }

    fn public_key(&self) -> [u8; 32] {
        self.signer.public_key
    }

    fn sign_bytes(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign_bytes(bytes)
    }
}

/// A signing key that this start makes, for a directory that has none.
pub struct NewKey {
    ring: Ring,
    seed: Secret,
}

impl NewKey {
    /// A key for a new log, if keys are in files, there is none, and one may be made.
    ///
    /// # Errors
    /// If the key directory cannot be used.
    pub fn wanted(config: &KeyConfig) -> Result<Option<Self>, LogKeyError> {
        if !config.generate || !matches!(config.source, KeySource::Files(_)) {
            return Ok(None);
        }
        let ring = Ring::open_or_create(&config.directory)?;
        if !ring.keys().is_empty() {
            return Ok(None);
        }
        let seed = Ring::draw()?;
        Ok(Some(Self { ring, seed }))
    }

    /// SHA-256 of its public key.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        KeyId::of(&public_key(&self.seed)).0
    }

    /// Saves the key in the key directory.
    ///
    /// # Errors
    /// If the key directory cannot be written.
    pub fn save(mut self) -> Result<(), LogKeyError> {
        self.ring.add(&self.seed)?;
        Ok(())
    }
}

/// The keys that a log finds at a start: the one that signs, and its predecessor.
pub struct LogKeys {
    /// The key that signs from now on.
    pub signer: LogSigner,
    /// The key that has signed so far, if it is another: it must vouch for the new one.
    pub predecessor: Option<LogSigner>,
    /// Other known public keys, outside of the log's history.
    known: Vec<[u8; 32]>,
}

impl LogKeys {
    /// Every available public key, including the signing one.
    #[must_use]
    pub fn public_keys(&self) -> Vec<[u8; 32]> {
        let mut keys = self.known.clone();
        keys.push(self.signer.public_key());
        keys
    }

    /// Finds the signing key in files or a KMS, and its predecessor if the log was signed by
    /// another key. Asks the KMS, so it must not be called on a thread that serves.
    ///
    /// # Errors
    /// If there is no key, it is not the expected one, or no predecessor can vouch for it.
    pub fn find(
        config: &KeyConfig,
        head: Option<&Head>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, LogKeyError> {
        let so_far = head.map(|head| KeyId(head.key_id.0));
        let path = &config.directory;
        let (found, ring) = match &config.source {
            // Only a new log may get a new key: an empty volume must not change the key of an
            // existing log.
            KeySource::Files(asked) => {
                let ring = file_ring(path, config.generate && head.is_none())?;
                let id = ring.choose(*asked, so_far)?;
                (Found::Seed(ring.seed(id)?), Some(ring))
            }
            KeySource::Kms(keys) => {
                let found = runtime.block_on(in_kms(keys, keys.key.as_ref()))?;
                // Keys from before the KMS may still be there.
                let ring = path.exists().then(|| Ring::open(path)).transpose()?;
                (found, ring)
            }
        };
        if let KeySource::Kms(keys) = &config.source
            && let Some(expected) = keys.expect
            && found.id() != expected
        {
            let found = found.id();
            return Err(LogKeyError::Unexpected { found, expected });
        }
        let origin = choose_origin(head, config.origin.as_deref(), found.id())?;
        let predecessor = match so_far.filter(|old| *old != found.id()) {
            None => None,
            Some(old) => {
                let new = found.id();
                let before = predecessor(&config.source, ring.as_ref(), old, runtime)?
                    .ok_or(LogKeyError::NoPredecessor { old, new })?;
                Some(before.signer(&origin)?)
            }
        };
        let known = ring.map_or_else(Vec::new, |ring| ring.keys().values().copied().collect());
        Ok(Self {
            signer: found.signer(&origin)?,
            predecessor,
            known,
        })
    }
}

enum Found {
    Seed(Secret),
    Kms(Arc<KmsSigningKey>),
}

impl Found {
    fn id(&self) -> KeyId {
        KeyId::of(&match self {
            Self::Seed(seed) => public_key(seed),
            Self::Kms(key) => key.public_key(),
        })
    }

    fn signer(self, origin: &str) -> Result<LogSigner, LogKeyError> {
        match self {
            Self::Seed(seed) => LogSigner::local(origin, &seed),
            Self::Kms(key) => LogSigner::remote(origin, key),
        }
    }
}

fn file_ring(path: &Path, may_generate: bool) -> Result<Ring, LogKeyError> {
    let mut ring = if may_generate || path.exists() {
        Ring::open_or_create(path)?
    } else {
        return Err(LogKeyError::NotGenerated(path.to_owned()));
    };
    if ring.keys().is_empty() {
        if !may_generate {
            return Err(LogKeyError::NotGenerated(path.to_owned()));
        }
        ring.generate()?;
    }
    Ok(ring)
}

/// A key in the KMS: unwrapped into memory, or one that stays there. The mock's own key needs no
/// name.
async fn in_kms(
    keys: &KmsKeys,
    key: Option<&evidenceos_keys::kms::KeyRef>,
) -> Result<Found, LogKeyError> {
    let kms = Kms::new(keys.settings.clone())?;
    let own = evidenceos_keys::kms::KeyRef {
        resource: "mock".to_owned(),
        ciphertext: None,
    };
    match key {
        Some(key) if key.ciphertext.is_none() => {
            Ok(Found::Kms(Arc::new(kms.signing_key(&key.resource).await?)))
        }
        key => Ok(Found::Seed(kms.unwrap(key.unwrap_or(&own)).await?)),
    }
}

fn predecessor(
    source: &KeySource,
    ring: Option<&Ring>,
    old: KeyId,
    runtime: &tokio::runtime::Handle,
) -> Result<Option<Found>, LogKeyError> {
    if let Some(ring) = ring.filter(|ring| ring.keys().contains_key(&old)) {
        return Ok(Some(Found::Seed(ring.seed(old)?)));
    }
    let KeySource::Kms(keys) = source else {
        return Ok(None);
    };
    let Some(previous) = &keys.previous else {
        return Ok(None);
    };
    // The setting may name a key that never signed this log, and that cannot vouch for a new one.
    let found = runtime.block_on(in_kms(keys, Some(previous)))?;
    Ok(Some(found).filter(|found| found.id() == old))
}

/// A signer with an earlier key of the log, for a head of its time.
///
/// # Errors
/// If the key is missing or cannot be used.
pub fn earlier(
    config: &KeyConfig,
    origin: &str,
    key: &LogKey,
    runtime: &tokio::runtime::Handle,
) -> Result<LogSigner, LogKeyError> {
    let path = &config.directory;
    let ring = path.exists().then(|| Ring::open(path)).transpose()?;
    let id = KeyId(key.id.0);
    predecessor(&config.source, ring.as_ref(), id, runtime)?
        .ok_or(LogKeyError::Earlier(id))?
        .signer(origin)
}

/// Every head contains the origin; it can be chosen only before the first one.
fn choose_origin(
    head: Option<&Head>,
    asked: Option<&str>,
    key: KeyId,
) -> Result<String, LogKeyError> {
    let kept = head
        .and_then(|head| head.checkpoint.lines().next())
        .map(str::to_owned);
    match (kept, asked) {
        (Some(kept), Some(asked)) if kept != asked => Err(LogKeyError::OtherOrigin {
            asked: asked.to_owned(),
            kept,
        }),
        (Some(kept), _) => Ok(kept),
        (None, Some(asked)) => Ok(asked.to_owned()),
        (None, None) => Ok(format!("evidenceos.local/{}", &key.to_string()[..16])),
    }
}

/// The keys of a served log.
pub struct Keys {
    log: RwLock<Log>,
}

struct Log {
    signer: LogSigner,
    /// A key that the writer has received and not yet used.
    next: Option<LogSigner>,
    history: Vec<LogKey>,
    known: Vec<[u8; 32]>,
}

impl Keys {
    /// The keys of a log, with its history.
    #[must_use]
    pub fn new(log: LogKeys, history: Vec<LogKey>) -> Self {
        Self {
            log: RwLock::new(Log {
                signer: log.signer,
                next: None,
                history,
                known: log.known,
            }),
        }
    }

    /// The signer of the log at this moment.
    #[must_use]
    pub fn signer(&self) -> LogSigner {
        self.read(|log| log.signer.clone())
    }

    /// The log's name, the first line of each checkpoint.
    #[must_use]
    pub fn origin(&self) -> String {
        self.read(|log| log.signer.origin.clone())
    }

    /// A public key by its id, from the log's history or among the ready keys; with the size from
    /// which it signs, if it does.
    #[must_use]
    pub fn public_key(&self, id: Digest) -> Option<([u8; 32], Option<u64>)> {
        self.read(|log| {
            let signed = log.history.iter().find(|key| key.id == id);
            signed
                .map(|key| (key.public_key, Some(key.since_size)))
                .or_else(|| {
                    let ready = log.known.iter().find(|key| Digest::of(*key) == id);
                    ready.map(|key| (*key, None))
                })
        })
    }

    /// The keys that have signed the log, in order.
    #[must_use]
    pub fn history(&self) -> Vec<LogKey> {
        self.read(|log| log.history.clone())
    }

    /// Notes the key that the writer receives.
    pub fn expect(&self, next: LogSigner) {
        self.write(|log| log.next = Some(next));
    }

    /// Notes that the writer now signs with a key.
    pub fn took_over(&self, key: &LogKey) {
        // The writer decides: a later reload may have noted another key since.
        self.write(|log| {
            if let Some(next) = log.next.take_if(|next| next.public_key == key.public_key) {
                log.signer = next;
            }
            log.history.push(*key);
        });
    }

    fn read<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.log.read())
    }

    fn write(&self, change: impl FnOnce(&mut Log)) {
        change(&mut self.log.write());
    }
}

/// The directory of imported secrets, if there is one.
///
/// # Errors
/// If other users can read it.
pub fn imported(config: &KeyConfig) -> Result<Option<Directory>, KeyError> {
    let path = &config.directory;
    path.exists().then(|| Directory::open(path)).transpose()
}
