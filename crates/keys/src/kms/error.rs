//! Errors of a KMS, which name the provider, the key, the endpoint and the cause.
//!
//! The SDKs' own error values are not kept: their `Debug` holds the raw response, which may hold the plaintext. Only
//! the sentence of the deepest cause is kept.

use std::time::Duration;

use super::settings::{Problem, Provider};

/// The reason why a KMS call failed.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// The settings cannot work; each problem is one sentence.
    #[error("the KMS settings are wrong: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Settings(Vec<Problem>),
    /// A call to the KMS failed, as `fault` says.
    #[error("{provider} KMS, {operation} with {resource} at {endpoint}: {fault}")]
    Call {
        provider: Provider,
        /// The requested operation.
        operation: &'static str,
        /// The key's name in the configuration.
        resource: String,
        /// The endpoint that was called.
        endpoint: String,
        /// The cause of the failure.
        #[source]
        fault: Fault,
    },
}

/// The cause of a failed call.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The KMS, its credentials or the way to it failed: the deepest cause, in its own words.
    #[error("{0}")]
    Refused(String),
    /// No answer arrived within the timeout, which includes finding credentials.
    #[error(
        "no answer within {0:?}; check that the endpoint can be reached, or raise EVIDENCEOS_KMS_TIMEOUT"
    )]
    Deadline(Duration),
    /// The plaintext is not a key of 32 bytes.
    #[error("the plaintext has {0} bytes, and a key has 32; wrap the key again with `keys wrap`")]
    Length(usize),
    /// A part of the answer is missing, or does not match its checksum.
    #[error("{0}; the answer was damaged in transit and is not used")]
    Damaged(&'static str),
    /// The signature is not the key's.
    #[error("the signature does not verify with the key's public half, and is not used")]
    BadSignature,
    /// The key is not an Ed25519 key.
    #[error(
        "not an Ed25519 public key ({0}); make the key as ECC_NIST_EDWARDS25519 (AWS) or EC_SIGN_ED25519 (GCP)"
    )]
    KeyKind(String),
    /// The provider or the mode does not support this.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl Fault {
    /// The deepest cause of `error`, after `label` (a service's error code) if there is one.
    #[cfg(any(feature = "kms-aws", feature = "kms-gcp", feature = "kms-azure"))]
    pub(super) fn of(label: Option<&str>, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut deepest = error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        let cause = deepest.to_string();
        Self::Refused(match label {
            Some(label) if !cause.contains(label) => format!("{label}: {cause}"),
            _ => cause,
        })
    }
}
