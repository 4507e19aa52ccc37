//! Where the log's keys are, and what a start may do about them.

use std::path::PathBuf;

use evidenceos_keys::{
    KeyId,
    kms::{KeyRef, KmsSettings},
};

/// How a log finds its keys at a start.
#[derive(Debug, Clone)]
pub struct KeyConfig {
    /// Where the key that signs is.
    pub source: KeySource,
    /// The directory of keys in files. With a KMS keys of the time before may still lie there.
    pub directory: PathBuf,
    /// Whether a key may be made for a log that begins, where the directory has none.
    pub generate: bool,
    /// The name of a log that begins; a log that is there keeps its own.
    pub origin: Option<String>,
}

/// Where the log's key is.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// In the key directory; the one that signs, if one is asked for.
    Files(Option<KeyId>),
    /// In a KMS, wrapped by it or never leaving it.
    Kms(Box<KmsKeys>),
}

/// Keys in a KMS.
#[derive(Debug, Clone)]
pub struct KmsKeys {
    /// How it is reached.
    pub settings: KmsSettings,
    /// The log's key. Without a ciphertext it never leaves the KMS; the mock's own key has no name.
    pub key: Option<KeyRef>,
    /// The key before it.
    pub previous: Option<KeyRef>,
    /// The id that the log's key must have.
    pub expect: Option<KeyId>,
    /// What wraps the key of the holdouts; absent: it lies in a file.
    pub holdout_key: Option<String>,
}

impl Default for KeySource {
    fn default() -> Self {
        Self::Files(None)
    }
}
