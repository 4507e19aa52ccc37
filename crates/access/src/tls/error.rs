//! Why a listener has no TLS, or keeps its old files. Each text names the file and the problem.

use std::path::PathBuf;

use rustls::{pki_types::pem, server::VerifierBuilderError};
use thiserror::Error;

use crate::{CertificateError, FileError};

/// Why a set of files cannot serve.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or other users can read it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file contains no certificate.
    #[error("no PEM certificate found in {}", path.display())]
    NoCertificate { path: PathBuf },
    /// The file's PEM is damaged.
    #[error("{} is not PEM: {source}", path.display())]
    BadPem { path: PathBuf, source: pem::Error },
    /// The file contains no key that can be read. The error does not tell what it contains.
    #[error(
        "no PEM private key found in {}: it must be PKCS#8, PKCS#1 or SEC1, and not encrypted",
        path.display()
    )]
    NoKey { path: PathBuf },
    /// Certificate and key do not belong together.
    #[error("the key {} does not belong to the certificate {}", key.display(), cert.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    /// The TLS library refuses the pair.
    #[error("certificate {} with key {}: {source}", cert.display(), key.display())]
    BadPair {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    /// A certificate of the chain cannot be read.
    #[error("certificate {at} in {}: {source}", path.display())]
    BadCertificate {
        path: PathBuf,
        /// Its position in the file, from 1.
        at: usize,
        source: CertificateError,
    },
    /// A CA certificate cannot be read.
    #[error("CA certificate {at} in {}: {source}", path.display())]
    BadCa {
        path: PathBuf,
        /// Its position in the file, from 1.
        at: usize,
        source: rustls::Error,
    },
    /// Client certificates are requested, but no authority for them is configured.
    #[error("client certificates need a client CA file")]
    NoClientCa,
    /// A CA is given, but no client is asked for a certificate.
    #[error("the client CA {} is not used; ask for client certificates, or leave it out", path.display())]
    UnusedClientCa { path: PathBuf },
    /// Revocation lists are given, but no client is asked for a certificate.
    #[error("the revocation list {} is not used; ask for client certificates, or leave it out", path.display())]
    UnusedClientCrl { path: PathBuf },
    /// The file contains no revocation list.
    #[error("no revocation list found in {}: it must be PEM (X509 CRL) or DER", path.display())]
    NoCrl { path: PathBuf },
    /// A revocation list cannot be read, or is of an unsupported kind.
    #[error(
        "revocation list {at} in {}: {reason}; have the authority issue a whole X.509 v2 list of its own, with a nextUpdate",
        path.display()
    )]
    BadCrl {
        path: PathBuf,
        /// Its position in the file, from 1.
        at: usize,
        reason: String,
    },
    /// A revocation list is overdue: it lacks what was revoked since.
    #[error(
        "revocation list {at} in {} is past its nextUpdate ({next_update_unix} s since 1970): get the authority's newest list and put it there",
        path.display()
    )]
    CrlOverdue {
        path: PathBuf,
        /// Its position in the file, from 1.
        at: usize,
        /// In seconds since 1970-01-01 UTC.
        next_update_unix: u64,
    },
    /// An authority has no revocation list, so every client of it would be refused.
    #[error(
        "no revocation list of the authority {authority:?} in {}: with --mtls-client-crl give a list of each authority, an empty one if it has revoked nothing",
        path.display()
    )]
    NoCrlOf {
        /// The file with the authorities.
        path: PathBuf,
        /// The subject of the authority's certificate.
        authority: String,
    },
    /// The client CA cannot be used by a verifier.
    #[error("client CA: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The provider lacks a protocol version.
    #[error("TLS 1.2 and 1.3: {0}")]
    Versions(rustls::Error),
}
