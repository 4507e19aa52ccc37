//! Who a certificate is. Whether it may be believed was decided in the handshake, by
//! [`crate::verifier`].
//!
//! The identity is the only URI in the subject alternative name, else the first DNS name there,
//! else the digest of the certificate. The common name is never an identity: any CA writes into it
//! what it is asked to. Names count byte for byte, and a certificate is refused if one of them has
//! a character that a log, a terminal or another parser could take for something else.

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
    /// Its extended key usage lists clientAuth.
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
    /// The identity, of the kind that `kind` states.
    pub name: String,
    /// Every DNS name of the subject alternative name, also if the identity is another.
    pub dns_names: Vec<String>,
    /// The serial number, big-endian, without leading zero bytes.
    pub serial: Vec<u8>,
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
    /// A URI or DNS name with a character outside 0x21-0x7e: not to be skipped for the next name.
    #[error(
        "its subject alternative name has a URI or DNS name with a blank, a control character or a \
         character that is not ASCII; issue it with characters of 0x21-0x7e"
    )]
    UnreadableName,
    /// A common name with a control character. It identifies nobody, but tools show it.
    #[error("its common name has a control character; issue it without")]
    ControlInCommonName,
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
        // The digest is over all bytes. With a tail, one certificate would have any number of
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

/// A serial number as it is compared: DER puts a zero byte before a high bit.
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
    // Names of other string types than UTF-8's relatives are never shown.
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
                // Tags 2 and 6 are a DNS name and a URI. If one that cannot be read were passed
                // over, the next name would become the identity.
                GeneralName::Invalid(tag, _) if matches!(tag.0, 2 | 6) => {
                    return Err(CertificateError::UnreadableName);
                }
                _ => {}
            }
        }
        // Also those that are not the identity: a deny rule may name any of them.
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
