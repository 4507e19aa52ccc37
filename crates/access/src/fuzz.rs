//! The entry points of the fuzz targets: revocation lists as files contain them. No other code
//! calls them.

use std::{path::PathBuf, sync::Arc};

use rustls::{RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};

use crate::tls::Revoked;

/// The facts read from a file of revocation lists.
#[derive(Debug, PartialEq, Eq)]
pub struct Lists {
    /// The number of lists.
    pub count: usize,
    /// When the first of them must be replaced.
    pub next_update_unix: Option<u64>,
    /// Whether one of them was issued by the authority.
    pub has_authority: bool,
    /// Whether WebPKI can check all of them.
    pub suit_webpki: bool,
    /// Whether they revoke the leaf.
    pub revoke_leaf: bool,
}

/// Reads a file's content; `None` if it is refused. Authority and leaf are certificates in DER.
///
/// # Panics
/// If the authority is not a certificate.
#[must_use]
pub fn revocation_lists(content: &[u8], authority: &[u8], leaf: &[u8]) -> Option<Lists> {
    let path = PathBuf::from("crl");
    let lists = Revoked::read(std::slice::from_ref(&path), &[content]).ok()?;
    let mut roots = RootCertStore::empty();
    let added = roots.add(CertificateDer::from(authority.to_vec()));
    added.unwrap_or_else(|error| panic!("the authority is no certificate: {error}"));
    let roots = Arc::new(roots);
    let provider = Arc::new(aws_lc_rs::default_provider());
    Some(Lists {
        count: lists.lists().count(),
        next_update_unix: lists.next_update_unix(),
        has_authority: lists.must_cover(&path, &roots).is_ok(),
        suit_webpki: lists.must_suit_webpki(&roots, &provider).is_ok(),
        revoke_leaf: lists.covers(&CertificateDer::from(leaf), &[]),
    })
}
