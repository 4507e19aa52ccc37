//! The identity of a certificate. The handshake has decided whether to trust it, by
//! [`crate::verifier`].
//!
//! The identity is the only URI in the subject alternative name, otherwise the first DNS name
//! there, otherwise the digest of the certificate. The common name is never an identity: a CA may
//! write into it whatever a client requests. Names count byte for byte, and a certificate is
//! refused if one of them has a character that a log, a terminal or another parser could take for
//! something else.

use std::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::{
    certificate::X509Certificate, error::X509Error, extensions::GeneralName, prelude::FromDer as _,
    time::ASN1Time,
};

use crate::principal;

/// The kind of a certificate's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdentityKind {
    /// The only URI of the subject alternative name.
    Uri,
    /// The first DNS name of the subject alternative name.
    Dns,
    /// Lowercase hex SHA-256 of the certificate's DER.
    Cert,
}

/// The extended key usage of TLS clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Its extended key usage lists clientAuth.
    Allowed,
    /// The certificate has no such extension, so it is for any purpose.
    Unrestricted,
    /// It lists other purposes only.
    Forbidden,
}

/// The facts read from a peer's leaf certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// What the identity is.
    pub kind: IdentityKind,
    /// The identity, of the kind that `kind` states.
    pub name: String,
    /// Every DNS name of the subject alternative name, even if the identity is another name.
    pub dns_names: Vec<String>,
    /// The serial number, big-endian, without leading zero bytes.
    pub serial: Vec<u8>,
    /// SHA-256 of the DER.
    pub sha256: [u8; 32],
    /// Whether a client may use it.
    pub client_auth: ClientAuth,
    /// The first second of its validity in Unix time; 0 if that is before 1970.
    pub not_before_unix: u64,
    /// Last second of its validity, Unix time.
    pub not_after_unix: u64,
}

/// Why a certificate has no identity.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CertificateError {
    /// The bytes are not a certificate, or its extensions cannot be read.
    #[error("it cannot be read as an X.509 certificate: {0}")]
    Unreadable(#[from] X509Error),
    /// There are bytes after the certificate.
    #[error("there are bytes after the certificate")]
    TrailingBytes,
    /// A URI or DNS name has a character outside 0x21-0x7e: it must not be skipped for the next
    /// name.
    #[error(
        "its subject alternative name has a URI or DNS name with a blank, a control character or a \
         character that is not ASCII; issue it with characters of 0x21-0x7e"
    )]
    UnreadableName,
    /// A common name has a control character. It is no identity, but tools show it.
    #[error("its common name has a control character; issue it without one")]
    ControlInCommonName,
    /// With several URIs, a peer could choose its identity.
    #[error("its subject alternative name has several URIs; issue it with one")]
    SeveralUris,
    /// A name is empty.
    #[error("its subject alternative name has an empty URI or DNS name")]
    EmptyName,
}

impl PeerCertificate {
    /// Reads a leaf certificate.
    ///
    /// # Errors
    /// If it cannot be read, or if its name is ambiguous.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(X509Error::from)?;
        // The digest is over all bytes. With a tail, one certificate could have any number of
        // digests, and a deny entry by digest would miss it.
        if !rest.is_empty() {
            return Err(CertificateError::TrailingBytes);
        }
        let sha256 = Sha256::digest(der).into();
        printable_common_names(&certificate)?;
        let names = AlternativeNames::of(&certificate)?;
        let (kind, name) = match names.identity()? {
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
            dns_names: names.dns,
            serial: without_leading_zeros(certificate.raw_serial()).to_vec(),
            sha256,
            client_auth,
            not_before_unix: unix(validity.not_before),
            not_after_unix: unix(validity.not_after),
        })
    }

    /// The principal of this certificate.
    #[must_use]
    pub fn principal(&self) -> String {
        principal::certificate(self.kind, &self.name)
    }

    /// Whether the certificate is valid at a time in Unix seconds.
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

/// The last second of any certificate's validity, Unix time.
pub(crate) fn not_after_unix(der: &[u8]) -> Result<u64, CertificateError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(X509Error::from)?;
    Ok(unix(certificate.validity().not_after))
}

/// A time before 1970 becomes 0.
fn unix(time: ASN1Time) -> u64 {
    time.timestamp().try_into().unwrap_or(0)
}

/// A serial number for comparison: DER puts a zero byte before a high bit.
pub(crate) fn without_leading_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

/// Whether a name has visible ASCII characters alone.
pub(crate) fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn printable_common_names(certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
    let is_control = |name: &str| name.chars().any(char::is_control);
    let mut names = certificate.subject().iter_common_name();
    // Names of string types that are not text are never shown.
    if names.any(|name| name.as_str().is_ok_and(is_control)) {
        return Err(CertificateError::ControlInCommonName);
    }
    Ok(())
}

/// The names in a subject alternative name that could be identities.
struct AlternativeNames {
    uris: Vec<String>,
    dns: Vec<String>,
}

impl AlternativeNames {
    fn of(certificate: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        let extension = certificate.subject_alternative_name()?;
        let names = extension
            .iter()
            .flat_map(|names| &names.value.general_names);
        for name in names {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                // Tags 2 and 6 are a DNS name and a URI. If an unreadable one were skipped, the
                // next name would become the identity.
                GeneralName::Invalid(tag, _) if matches!(tag.0, 2 | 6) => {
                    return Err(CertificateError::UnreadableName);
                }
                _ => {}
            }
        }
        // This includes names that are not the identity: a deny entry may name any of them.
        if !uris.iter().chain(&dns).all(|name| is_plain(name)) {
            return Err(CertificateError::UnreadableName);
        }
        Ok(Self { uris, dns })
    }

    /// The only URI, else the first DNS name.
    fn identity(&self) -> Result<Option<(IdentityKind, String)>, CertificateError> {
        let named = match (self.uris.as_slice(), self.dns.first()) {
            ([uri], _) => Some((IdentityKind::Uri, uri.clone())),
            ([], Some(dns)) => Some((IdentityKind::Dns, dns.clone())),
            ([], None) => None,
            _ => return Err(CertificateError::SeveralUris),
        };
        match named {
            Some((_, name)) if name.is_empty() => Err(CertificateError::EmptyName),
            named => Ok(named),
        }
    }
}
