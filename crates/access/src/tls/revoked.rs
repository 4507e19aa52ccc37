//! The client certificates that their authorities have revoked.
//!
//! Handshakes leave the lists to WebPKI, which checks their signatures. This module reads them
//! again for what WebPKI does not do: report their times, name the file with a problem, and look up
//! a certificate of an open connection.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use x509_parser::{
    certificate::X509Certificate, prelude::FromDer as _,
    revocation_list::CertificateRevocationList, x509::X509Name,
};

use super::TlsError;
use crate::certificate::without_leading_zeros;

/// The revocation lists of a set of files.
#[derive(Default)]
pub(crate) struct Revoked {
    lists: Vec<List>,
    /// Serial numbers without leading zero bytes, by the DER of the issuer's name.
    serials: HashMap<Vec<u8>, HashSet<Vec<u8>>>,
}

struct List {
    der: CertificateRevocationListDer<'static>,
    path: PathBuf,
    /// Its position in the file, from 1.
    at: usize,
    next_update_unix: u64,
}

impl Revoked {
    /// Parses the lists in the contents of files.
    pub fn read<C: AsRef<[u8]>>(paths: &[PathBuf], contents: &[C]) -> Result<Self, TlsError> {
        let mut revoked = Self::default();
        for (path, content) in paths.iter().zip(contents) {
            for (at, der) in (1..).zip(lists(path, content.as_ref())?) {
                revoked.add(path, at, der)?;
            }
        }
        Ok(revoked)
    }

    fn add(
        &mut self,
        path: &Path,
        at: usize,
        der: CertificateRevocationListDer<'static>,
    ) -> Result<(), TlsError> {
        let bad = |reason: &dyn std::fmt::Display| TlsError::BadCrl {
            path: path.to_owned(),
            at,
            reason: reason.to_string(),
        };
        let (rest, list) =
            CertificateRevocationList::from_der(&der).map_err(|error| bad(&error))?;
        if !rest.is_empty() {
            return Err(bad(&"there are bytes after it"));
        }
        let next_update = list
            .next_update()
            .ok_or_else(|| bad(&"it has no nextUpdate"))?;
        // A list that had to be replaced before 1970 is overdue at any time.
        let next_update_unix = next_update.timestamp().try_into().unwrap_or(0);
        // The authority is noted even if its list revokes nothing: `must_cover` requires a list of
        // each.
        let serials = self
            .serials
            .entry(list.issuer().as_raw().to_vec())
            .or_default();
        let numbers = list
            .iter_revoked_certificates()
            .map(|entry| entry.raw_serial());
        serials.extend(numbers.map(|serial| without_leading_zeros(serial).to_vec()));
        self.lists.push(List {
            der,
            path: path.to_owned(),
            at,
            next_update_unix,
        });
        Ok(())
    }

    /// The lists in WebPKI's form.
    pub fn lists(&self) -> impl Iterator<Item = CertificateRevocationListDer<'static>> {
        self.lists.iter().map(|list| list.der.clone())
    }

    /// The time by which the first of the lists must be replaced.
    pub fn next_update_unix(&self) -> Option<u64> {
        self.lists.iter().map(|list| list.next_update_unix).min()
    }

    /// Refuses overdue lists.
    pub fn must_be_current(&self, now_unix: u64) -> Result<(), TlsError> {
        let overdue = self
            .lists
            .iter()
            .find(|list| list.next_update_unix <= now_unix);
        overdue.map_or(Ok(()), |list| {
            Err(TlsError::CrlOverdue {
                path: list.path.clone(),
                at: list.at,
                next_update_unix: list.next_update_unix,
            })
        })
    }

    /// If there is any list, refuses lists that leave an authority out.
    pub fn must_cover(&self, path: &Path, roots: &RootCertStore) -> Result<(), TlsError> {
        if self.lists.is_empty() {
            return Ok(());
        }
        for root in &roots.roots {
            // A trust anchor has only the content of the sequence that a name is.
            let subject = root.subject.as_ref();
            let covered = self.serials.keys().any(|issuer| content(issuer) == subject);
            if !covered {
                return Err(TlsError::NoCrlOf {
                    path: path.to_owned(),
                    authority: readable(subject),
                });
            }
        }
        Ok(())
    }

    /// Refuses lists that WebPKI cannot check, each by its file.
    pub fn must_suit_webpki(
        &self,
        roots: &Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<(), TlsError> {
        for list in &self.lists {
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
                .with_crls([list.der.clone()])
                .build()
                .map_err(|error| TlsError::BadCrl {
                    path: list.path.clone(),
                    at: list.at,
                    reason: error.to_string(),
                })?;
        }
        Ok(())
    }

    /// Whether a certificate of a chain is revoked. One that cannot be read counts as revoked.
    pub fn covers(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> bool {
        let is_revoked = |der: &CertificateDer<'_>| match X509Certificate::from_der(der) {
            Ok((_, certificate)) => {
                let serial = without_leading_zeros(certificate.raw_serial());
                let serials = self.serials.get(certificate.issuer().as_raw());
                serials.is_some_and(|serials| serials.contains(serial))
            }
            Err(_) => true,
        };
        !self.lists.is_empty() && (is_revoked(leaf) || others.iter().any(is_revoked))
    }
}

impl std::fmt::Debug for Revoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revoked")
            .field("lists", &self.lists.len())
            .finish_non_exhaustive()
    }
}

fn lists(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    const SEQUENCE: u8 = 0x30;
    // DER begins with the tag of a sequence, PEM with text.
    if content.first() == Some(&SEQUENCE) {
        return Ok(vec![content.to_vec().into()]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(content)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::BadPem {
            path: path.to_owned(),
            source,
        })?;
    if lists.is_empty() {
        let path = path.to_owned();
        return Err(TlsError::NoCrl { path });
    }
    Ok(lists)
}

/// The content of a DER sequence, without its tag and length.
fn content(sequence: &[u8]) -> &[u8] {
    let length_bytes = match sequence.get(1) {
        Some(short) if *short < 0x80 => 1,
        // In the long form the first byte holds the number of length bytes that follow.
        Some(long) => 1 + usize::from(*long & 0x7f),
        None => 0,
    };
    sequence.get(1 + length_bytes..).unwrap_or_default()
}

/// A name's content as text, without control characters.
fn readable(subject: &[u8]) -> String {
    let mut sequence = vec![0x30];
    match u8::try_from(subject.len()) {
        Ok(short) if short < 0x80 => sequence.push(short),
        Ok(byte) => sequence.extend([0x81, byte]),
        Err(_) => {
            let length = u16::try_from(subject.len()).unwrap_or(u16::MAX);
            sequence.push(0x82);
            sequence.extend(length.to_be_bytes());
        }
    }
    sequence.extend(subject);
    X509Name::from_der(&sequence).map_or_else(
        |_| "an unreadable name".to_owned(),
        |(_, name)| name.to_string(),
    )
}
