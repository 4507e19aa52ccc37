//! The KMS calls against clouds of our own, which check every request as the real ones do and
//! decrypt and sign for real. The library runs in a child process: credentials come from the
//! environment, as the SDKs find them, and this process changes nothing of its own.

#![cfg_attr(
    not(all(feature = "kms-aws", feature = "kms-gcp", feature = "kms-azure")),
    allow(dead_code, reason = "the helpers serve the tests of every provider")
)]

#[cfg(feature = "kms-aws")]
mod aws;
#[cfg(feature = "kms-azure")]
mod azure;
mod child;
mod cloud;
#[cfg(any(feature = "kms-aws", feature = "kms-gcp", feature = "kms-azure"))]
mod every;
#[cfg(feature = "kms-gcp")]
mod gcp;
mod mock;
#[cfg(feature = "kms-aws")]
mod moto;
mod rules;

/// What every test wraps.
const SECRET: [u8; 32] = *b"the 32 bytes of a signing key...";
