//! The name of a key in the configuration: `<kms-key-resource>|<base64-ciphertext>`, or the resource alone.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The longest text of a [`KeyRef`], in bytes.
pub const MAX_KEY_REF: usize = 4096;

/// The key, and the bytes that it wraps. The text form splits at the first `|`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRef {
    /// The provider's name of the key: an id, ARN or alias (AWS), `projects/…` (GCP), a URL (Azure).
    pub resource: String,
    /// The wrapped 32 bytes; `None` if the key never leaves the KMS.
    pub ciphertext: Option<Vec<u8>>,
}

/// The reason why a text is not a [`KeyRef`].
#[derive(Debug, thiserror::Error)]
pub enum KeyRefError {
    /// It has more than [`MAX_KEY_REF`] bytes.
    #[error("the KMS key id has {0} bytes; at most {MAX_KEY_REF} are allowed")]
    Long(usize),
    /// There is nothing, or nothing before the `|`.
    #[error("the KMS key id names no key; expected <kms-key-resource>|<base64-ciphertext>")]
    NoResource,
    /// There is nothing after the `|`.
    #[error(
        "the KMS key id ends with `|`; write the ciphertext after it, or leave the `|` out to sign inside the KMS"
    )]
    NoCiphertext,
    /// The ciphertext is not base64.
    #[error("the ciphertext in the KMS key id is not standard base64 with padding: {0}")]
    Base64(#[from] base64::DecodeError),
}

impl FromStr for KeyRef {
    type Err = KeyRefError;

    fn from_str(text: &str) -> Result<Self, KeyRefError> {
        if text.len() > MAX_KEY_REF {
            return Err(KeyRefError::Long(text.len()));
        }
        let (resource, ciphertext) = match text.split_once('|') {
            None => (text, None),
            Some((_, "")) => return Err(KeyRefError::NoCiphertext),
            Some((resource, base64)) => (resource, Some(STANDARD.decode(base64)?)),
        };
        if resource.is_empty() {
            return Err(KeyRefError::NoResource);
        }
        Ok(Self {
            resource: resource.into(),
            ciphertext,
        })
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        match &self.ciphertext {
            Some(ciphertext) => write!(f, "|{}", STANDARD.encode(ciphertext)),
            None => Ok(()),
        }
    }
}
