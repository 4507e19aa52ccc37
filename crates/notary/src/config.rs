//! The settings of the log's keys.

use std::path::PathBuf;

use evidenceos_keys::{
    KeyId,
    kms::{KeyRef, KmsSettings},
};

/// The settings by which a start finds the log's keys.
#[derive(Debug, Clone)]
pub struct KeyConfig {
    /// The source of the signing key.
    pub source: KeySource,
    /// The directory of keys in files. With a KMS, it may still have older keys.
    pub directory: PathBuf,
    /// Whether a new log may get a new key if the directory has none.
    pub generate: bool,
    /// The name of a new log; an existing log keeps its own.
    pub origin: Option<String>,
}

/// The source of the log's key.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// The key directory, with the id of the requested key, if one is requested.
    Files(Option<KeyId>),
    /// A KMS, which wraps the key or never releases it.
    Kms(Box<KmsKeys>),
}

/// Keys in a KMS.
#[derive(Debug, Clone)]
pub struct KmsKeys {
    /// How to reach the KMS.
    pub settings: KmsSettings,
    /// The log's key. Without a ciphertext it never leaves the KMS; the mock's own key has no name.
    pub key: Option<KeyRef>,
    /// The key that signed before.
    pub previous: Option<KeyRef>,
    /// The id that the log's key must have.
    pub expect: Option<KeyId>,
    /// The KMS key that wraps the holdouts' key; `None`: that key is in a file.
    pub holdout_key: Option<String>,
}

impl Default for KeySource {
    fn default() -> Self {
        Self::Files(None)
    }
}
