//! Why a listener has no TLS, or keeps its old files. Each text names the file and what is wrong.

use std::path::PathBuf;

use rustls::{pki_types::pem, server::VerifierBuilderError};
use thiserror::Error;

use crate::{CertificateError, FileError};

/// Why a set of files cannot serve.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or should not be readable.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no certificate in it.
    #[error("no PEM certificate found in {}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// Its PEM is damaged.
    #[error("{} is not PEM: {source}", path.display())]
    BadPem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// There is no key in it that we could read. What there is stays untold.
    #[error(
        "no PEM private key found in {}: it must be PKCS#8, PKCS#1 or SEC1, and not encrypted",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key are not a pair.
    #[error("the key {} does not belong to the certificate {}", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The TLS library refuses the pair.
    #[error("certificate {} with key {}: {source}", cert.display(), key.display())]
    BadPair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A certificate of the chain cannot be read.
    #[error("certificate {at} in {}: {source}", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// Its place in the file, from 1.
        at: usize,
        /// Why.
        source: CertificateError,
    },
    /// A CA certificate cannot be read.
    #[error("CA certificate {at} in {}: {source}", path.display())]
    BadCa {
        /// The file.
        path: PathBuf,
        /// Its place in the file, from 1.
        at: usize,
        /// Why.
        source: rustls::Error,
    },
    /// Client certificates are asked for, and nothing says from whom.
    #[error("client certificates need a client CA file")]
    NoClientCa,
    /// A CA is given, and nobody is asked for a certificate.
    #[error("the client CA {} is not used; ask for client certificates, or leave it out", path.display())]
    UnusedClientCa {
        /// The file.
        path: PathBuf,
    },
    /// Revocation lists are given, and nobody is asked for a certificate.
    #[error("the revocation list {} is not used; ask for client certificates, or leave it out", path.display())]
    UnusedClientCrl {
        /// The file.
        path: PathBuf,
    },
    /// There is no revocation list in it.
    #[error("no revocation list found in {}: it must be PEM (X509 CRL) or DER", path.display())]
    NoCrl {
        /// The file.
        path: PathBuf,
    },
    /// A revocation list cannot be read, or is of a kind that is not checked.
    #[error(
        "revocation list {at} in {}: {reason}; have the authority issue a whole X.509 v2 list of its own, with a nextUpdate",
        path.display()
    )]
    BadCrl {
        /// The file.
        path: PathBuf,
        /// Its place in the file, from 1.
        at: usize,
        /// Why.
        reason: String,
    },
    /// The time of a revocation list is over: what was revoked since is not in it.
    #[error(
        "revocation list {at} in {} is past its nextUpdate ({next_update_unix} s since 1970): get the authority's newest list and put it there",
        path.display()
    )]
    CrlOverdue {
        /// The file.
        path: PathBuf,
        /// Its place in the file, from 1.
        at: usize,
        /// Unix time.
        next_update_unix: u64,
    },
    /// An authority has no revocation list, so that every client of it would be refused.
    #[error(
        "no revocation list of the authority {authority:?} in {}: with --mtls-client-crl give a list of each authority, an empty one if it has revoked nothing",
        path.display()
    )]
    NoCrlOf {
        /// The file of the authorities.
        path: PathBuf,
        /// Its subject.
        authority: String,
    },
    /// The client CA gives no verifier.
    #[error("client CA: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The provider lacks a protocol version.
    #[error("TLS 1.2 and 1.3: {0}")]
    Versions(rustls::Error),
}
