//! Who a certificate is. Whether it may be believed was decided in the handshake, by
//! [`crate::verifier`].
//!
//! The identity is the only URI in the subject alternative name, else the first DNS name there,
//! else the digest of the certificate. The common name is never an identity: any CA writes into it
//! what it is asked to. Names count byte for byte.

use std::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::{
    certificate::X509Certificate, error::X509Error, extensions::GeneralName, prelude::FromDer as _,
    time::ASN1Time,
};

use crate::principal;

/// What a certificate is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdentityKind {
    /// The only URI of the subject alternative name.
    Uri,
    /// The first DNS name of the subject alternative name.
    Dns,
    /// Lowercase hex SHA-256 of the certificate's DER.
    Cert,
}

/// What the extended key usage says about TLS clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// It lists clientAuth.
    Allowed,
    /// There is no such extension, so the certificate is for anything.
    Unrestricted,
    /// It lists other purposes only.
    Forbidden,
}

/// What is read from a peer's leaf certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// What the identity is.
    pub kind: IdentityKind,
    /// The identity.
    pub name: String,
    /// SHA-256 of the DER.
    pub sha256: [u8; 32],
    /// Whether it may be used by a client.
    pub client_auth: ClientAuth,
    /// First second of its validity, Unix time; 0 where it lies before 1970.
    pub not_before_unix: u64,
    /// Last second of its validity, Unix time.
    pub not_after_unix: u64,
}

/// Why a certificate has no identity.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CertificateError {
    /// The bytes are no certificate, or its extensions cannot be read.
    #[error("it cannot be read as an X.509 certificate: {0}")]
    Unreadable(#[from] X509Error),
    /// There are bytes after the certificate.
    #[error("there are bytes after the certificate")]
    TrailingBytes,
    /// A URI or DNS name of other than ASCII characters: not to be skipped for the next.
    #[error("its subject alternative name has a URI or DNS name that is not ASCII")]
    UnreadableName,
    /// With several, a peer could choose who it is.
    #[error("its subject alternative name has several URIs; issue it with one")]
    SeveralUris,
    /// A name of no characters.
    #[error("its subject alternative name has an empty URI or DNS name")]
    EmptyName,
}

impl PeerCertificate {
    /// Reads a leaf certificate.
    ///
    /// # Errors
    /// Where it cannot be read, or its name could be taken in two ways.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(X509Error::from)?;
        if !rest.is_empty() {
            return Err(CertificateError::TrailingBytes);
        }
        let sha256 = Sha256::digest(der).into();
        let (kind, name) = match alternative_name(&certificate)? {
            Some(named) => named,
            None => (IdentityKind::Cert, hex::encode(sha256)),
        };
        let client_auth = match certificate.extended_key_usage()? {
            None => ClientAuth::Unrestricted,
            Some(usage) if usage.value.client_auth => ClientAuth::Allowed,
            Some(_) => ClientAuth::Forbidden,
        };
        let validity = certificate.validity();
        Ok(Self {
            kind,
            name,
            sha256,
            client_auth,
            not_before_unix: unix(validity.not_before),
            not_after_unix: unix(validity.not_after),
        })
    }

    /// The name of this caller.
    #[must_use]
    pub fn principal(&self) -> String {
        principal::certificate(self.kind, &self.name)
    }

    /// Whether it is valid at a time.
    #[must_use]
    pub fn is_valid_at(&self, now_unix: u64) -> bool {
        (self.not_before_unix..=self.not_after_unix).contains(&now_unix)
    }
}

impl IdentityKind {
    /// `uri`, `dns` or `cert`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uri => "uri",
            Self::Dns => "dns",
            Self::Cert => "cert",
        }
    }
}

impl fmt::Display for IdentityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The last second of a certificate's validity, Unix time; whoever it is for.
pub(crate) fn not_after_unix(der: &[u8]) -> Result<u64, CertificateError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(X509Error::from)?;
    Ok(unix(certificate.validity().not_after))
}

/// Before 1970 is 0.
fn unix(time: ASN1Time) -> u64 {
    time.timestamp().try_into().unwrap_or(0)
}

/// The only URI, else the first DNS name.
fn alternative_name(
    certificate: &X509Certificate<'_>,
) -> Result<Option<(IdentityKind, String)>, CertificateError> {
    let Some(names) = certificate.subject_alternative_name()? else {
        return Ok(None);
    };
    let mut uris = Vec::new();
    let mut dns_names = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(dns) => dns_names.push(*dns),
            GeneralName::Invalid(tag, _) if matches!(tag.0, 2 | 6) => {
                return Err(CertificateError::UnreadableName);
            }
            _ => {}
        }
    }
    let named = match (uris.as_slice(), dns_names.first()) {
        ([uri], _) => Some((IdentityKind::Uri, (*uri).to_owned())),
        ([], Some(dns)) => Some((IdentityKind::Dns, (*dns).to_owned())),
        ([], None) => None,
        _ => return Err(CertificateError::SeveralUris),
    };
    match named {
        Some((_, name)) if name.is_empty() => Err(CertificateError::EmptyName),
        named => Ok(named),
    }
}
