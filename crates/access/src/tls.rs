//! The server's side of TLS: certificate, key and client CA as one set, replaced as one.
//!
//! Invariants: the set in use was read together and belongs together; an invalid set leaves the old
//! one in place; a new set comes with a new session cache, so that no session that the old CA
//! admitted is resumed under the new one, and each listener checks its open connections again.

mod error;
mod revoked;

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

pub use self::error::TlsError;
pub(crate) use self::revoked::Revoked;
use crate::{
    certificate::not_after_unix,
    files::{FileSet, TlsFiles},
    verifier::Verifier,
};

/// Whether clients present certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked for one.
    None,
    /// They may present one; it must be valid.
    Optional,
    /// A connection without a valid certificate is refused.
    Required,
}

/// The TLS of a listener.
pub struct Tls {
    pub(crate) files: TlsFiles,
    options: Options,
    serving: ArcSwap<Serving>,
    /// Fingerprint of the last refused set. The lock is held while files are read, so that reloads
    /// follow one another.
    refused: Mutex<Option<[u8; 32]>>,
    followers: Mutex<Vec<Follower>>,
    reloads: watch::Sender<Reloads>,
}

/// Ends the connections of a listener that are invalid under a new set of files; returns their
/// number. `None` if the listener is gone.
type Follower = Box<dyn Fn(&Serving) -> Option<usize> + Send + Sync>;

/// The result of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// The files have not changed.
    Unchanged,
    /// New handshakes use the new set.
    Replaced,
}

/// The number of reloads since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reloads {
    /// A new set was put in place.
    pub replaced: u64,
    /// Refused sets; a set that the watcher finds again is counted once.
    pub failures: u64,
}

/// Options that all reloads share.
#[derive(Debug)]
struct Options {
    client_certificates: ClientCertificates,
    alpn: Vec<Vec<u8>>,
    allow_client_cert_without_eku: bool,
}

/// An invalid set.
struct Refused {
    error: TlsError,
    /// Whether the last refused set was another one.
    is_new: bool,
}

/// The loaded form of one set of files.
pub(crate) struct Serving {
    pub config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    revoked: Arc<Revoked>,
    digest: [u8; 32],
    not_after_unix: u64,
}

impl Tls {
    /// Reads the files and prepares them for TLS 1.3 and 1.2.
    ///
    /// # Errors
    /// If a file cannot be read, or the files do not belong together; each error names the path.
    pub fn load(
        files: TlsFiles,
        client_certificates: ClientCertificates,
        alpn: &[&[u8]],
        allow_client_cert_without_eku: bool,
    ) -> Result<Arc<Self>, TlsError> {
        match (client_certificates, &files.client_ca) {
            (ClientCertificates::None, Some(path)) => {
                return Err(TlsError::UnusedClientCa { path: path.clone() });
            }
            (ClientCertificates::None, None) | (_, Some(_)) => {}
            (_, None) => return Err(TlsError::NoClientCa),
        }
        if let (None, Some(path)) = (&files.client_ca, files.client_crls.first()) {
            return Err(TlsError::UnusedClientCrl { path: path.clone() });
        }
        let options = Options {
            client_certificates,
            alpn: alpn.iter().map(|protocol| protocol.to_vec()).collect(),
            allow_client_cert_without_eku,
        };
        let serving = Serving::new(&files, &options, &files.read()?)?;
        serving.revoked.must_be_current(now_unix())?;
        Ok(Arc::new(Self {
            files,
            options,
            serving: ArcSwap::from_pointee(serving),
            refused: Mutex::new(None),
            followers: Mutex::default(),
            reloads: watch::Sender::new(Reloads::default()),
        }))
    }

    /// Reads the files again and puts them in place if they changed. Open connections go on if
    /// their client presented no certificate, or one whose chain is valid under the new files; the
    /// others are ended, except those with a revoked certificate, which [`crate::Peer::is_revoked`]
    /// reports. Blocks on the file system, and checks each open connection's chain once.
    ///
    /// # Errors
    /// As for [`Tls::load`]. The old set stays in use, and the failure is counted. An unchanged
    /// revocation list that is past its next update is a failure too.
    pub fn reload(&self) -> Result<Reloaded, TlsError> {
        self.exchange().map_err(|refused| {
            self.count_failure();
            refused.error
        })
    }

    /// A reload that ignores a set that it has refused before.
    pub(crate) fn reload_if_new(&self) -> Option<Result<Reloaded, TlsError>> {
        match self.exchange() {
            Ok(reloaded) => Some(Ok(reloaded)),
            Err(refused) if refused.is_new => {
                self.count_failure();
                Some(Err(refused.error))
            }
            Err(_told_before) => None,
        }
    }

    /// The last second at which every certificate of the server's chain is valid, Unix time.
    #[must_use]
    pub fn not_after_unix(&self) -> u64 {
        self.serving.load().not_after_unix
    }

    /// The time by which the first of the revocation lists must be replaced, Unix time; `None`
    /// without a list.
    #[must_use]
    pub fn crl_next_update_unix(&self) -> Option<u64> {
        self.serving.load().revoked.next_update_unix()
    }

    /// Whether the lists in force revoke a certificate of a chain.
    pub(crate) fn is_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        match chain {
            [leaf, others @ ..] => self.serving.load().revoked.covers(leaf, others),
            [] => false,
        }
    }

    /// The number of failed reloads.
    #[must_use]
    pub fn reload_failures(&self) -> u64 {
        self.reloads.borrow().failures
    }

    /// A receiver for the counts of reloads.
    #[must_use]
    pub fn reloads(&self) -> watch::Receiver<Reloads> {
        self.reloads.subscribe()
    }

    /// The set that new handshakes use.
    pub(crate) fn serving(&self) -> Arc<Serving> {
        self.serving.load_full()
    }

    /// Has a listener check its connections each time that a new set is put in place.
    pub(crate) fn at_exchange(
        &self,
        follower: impl Fn(&Serving) -> Option<usize> + Send + Sync + 'static,
    ) {
        let mut followers = self.followers.lock();
        followers.push(Box::new(follower));
    }

    /// Puts a set in place, and ends the connections that are invalid under it.
    fn put_in_place(&self, serving: Serving) {
        let serving = Arc::new(serving);
        // New handshakes already use the new set, so followers miss no connection in between.
        self.serving.store(Arc::clone(&serving));
        let mut ended = 0;
        let mut followers = self.followers.lock();
        followers.retain(|follower| {
            let of_one = follower(&serving);
            ended += of_one.unwrap_or_default();
            of_one.is_some()
        });
        if ended > 0 {
            tracing::info!(
                ended,
                "closed connections, because the new TLS files do not verify their client certificates"
            );
        }
        self.reloads.send_modify(|reloads| reloads.replaced += 1);
    }

    fn exchange(&self) -> Result<Reloaded, Refused> {
        let mut last_refused = self.refused.lock();
        let (fingerprint, fresh) = match self.files.read() {
            Ok(set) if set.digest == self.serving.load().digest => {
                match self.serving.load().revoked.must_be_current(now_unix()) {
                    Ok(()) => {
                        *last_refused = None;
                        return Ok(Reloaded::Unchanged);
                    }
                    // The revoked certificates stay revoked; but the operator must learn that the
                    // list is overdue.
                    Err(error) => (set.digest, Err(error)),
                }
            }
            Ok(set) => {
                let fresh = Serving::new(&self.files, &self.options, &set).and_then(|fresh| {
                    fresh.revoked.must_be_current(now_unix())?;
                    Ok(fresh)
                });
                (set.digest, fresh)
            }
            // There is no content to compare, so the error's text identifies the set: the same
            // failure is reported once.
            Err(error) => {
                let text = error.to_string();
                (Sha256::digest(text).into(), Err(error.into()))
            }
        };
        match fresh {
            Ok(serving) => {
                self.put_in_place(serving);
                *last_refused = None;
                Ok(Reloaded::Replaced)
            }
            Err(error) => {
                let is_new = last_refused.replace(fingerprint) != Some(fingerprint);
                Err(Refused { error, is_new })
            }
        }
    }

    fn count_failure(&self) {
        self.reloads.send_modify(|reloads| reloads.failures += 1);
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Serving {
    fn new(files: &TlsFiles, options: &Options, set: &FileSet) -> Result<Self, TlsError> {
        // The provider is explicit: the process's default may be missing, or another one.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(&files.cert, &set.cert)?;
        let not_after_unix = chain_not_after_unix(&files.cert, &chain)?;
        let key = PrivateKeyDer::from_pem_slice(&set.key).map_err(|_secret| TlsError::NoKey {
            path: files.key.clone(),
        })?;
        let revoked = Arc::new(Revoked::read(&files.client_crls, &set.client_crls)?);
        let verifier = client_verifier(files, options, set, &revoked, &provider)?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(TlsError::Versions)?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|source| pair_error(files, source))?;
        config.alpn_protocols.clone_from(&options.alpn);
        // A client that lists its weakest cipher first still gets the server's strongest.
        config.ignore_client_order = true;
        Ok(Self {
            config: Arc::new(config),
            verifier,
            revoked,
            digest: set.digest,
            not_after_unix,
        })
    }

    /// Checks a client's certificate as a full handshake would. A resumed session carries the
    /// certificate of its first handshake, which may have expired since; an open connection carries
    /// one that was verified under older files.
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        match (&self.verifier, chain) {
            (Some(verifier), [leaf, intermediates @ ..]) => verifier
                .verify_client_cert(leaf, intermediates, now)
                .map(|_| ()),
            _ => Ok(()),
        }
    }
}

fn client_verifier(
    files: &TlsFiles,
    options: &Options,
    set: &FileSet,
    revoked: &Arc<Revoked>,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let (Some(path), Some(pem)) = (&files.client_ca, &set.client_ca) else {
        return Ok(None);
    };
    let mut roots = RootCertStore::empty();
    for (at, certificate) in (1..).zip(certificates(path, pem)?) {
        roots.add(certificate).map_err(|source| TlsError::BadCa {
            path: path.clone(),
            at,
            source,
        })?;
    }
    revoked.must_cover(path, &roots)?;
    let roots = Arc::new(roots);
    revoked.must_suit_webpki(&roots, provider)?;
    // With lists, every certificate of a chain needs a list of its issuer: without one it is
    // refused.
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
        .with_crls(revoked.lists());
    let webpki = match options.client_certificates {
        ClientCertificates::Required => builder,
        ClientCertificates::Optional | ClientCertificates::None => builder.allow_unauthenticated(),
    }
    .build()?;
    Ok(Some(Arc::new(Verifier {
        webpki,
        allow_without_eku: options.allow_client_cert_without_eku,
        revoked: Arc::clone(revoked),
    })))
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let path = || path.to_owned();
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::BadPem {
            path: path(),
            source,
        })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path() });
    }
    Ok(chain)
}

fn chain_not_after_unix(path: &Path, chain: &[CertificateDer<'_>]) -> Result<u64, TlsError> {
    (1..).zip(chain).try_fold(u64::MAX, |earliest, (at, der)| {
        let not_after = not_after_unix(der).map_err(|source| TlsError::BadCertificate {
            path: path.to_owned(),
            at,
            source,
        })?;
        Ok(earliest.min(not_after))
    })
}

fn pair_error(files: &TlsFiles, source: rustls::Error) -> TlsError {
    let (cert, key) = (files.cert.clone(), files.key.clone());
    match source {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch { cert, key },
        source => TlsError::BadPair { cert, key, source },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        date_time_ymd,
    };

    use super::*;

    /// A resumed session skips the checks of its certificate, so the listener makes them again.
    #[test]
    fn a_certificate_that_expired_since_its_session_began_is_refused() {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().expect("a key");
        let ca_pem = ca.self_signed(&ca_key).expect("a CA").pem();
        let issuer = Issuer::new(ca, ca_key);
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = date_time_ymd(2500, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &issuer).expect("a leaf");

        let path = |name: &str| Path::new(name).to_owned();
        let files = TlsFiles {
            cert: path("server.crt"),
            key: path("server.key"),
            client_ca: Some(path("ca.crt")),
            client_crls: Vec::new(),
        };
        let options = Options {
            client_certificates: ClientCertificates::Required,
            alpn: Vec::new(),
            allow_client_cert_without_eku: false,
        };
        let bytes = |pem: String| zeroize::Zeroizing::new(pem.into_bytes());
        let set = FileSet {
            cert: bytes(leaf.pem()),
            key: bytes(key.serialize_pem()),
            client_ca: Some(bytes(ca_pem)),
            client_crls: Vec::new(),
            digest: [0; 32],
        };
        let serving = Serving::new(&files, &options, &set).expect("a set that fits");
        let end = serving.not_after_unix;
        let verify = |at: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
            serving.verify(&[leaf.der().clone()], now)
        };
        assert!(verify(end).is_ok());
        assert!(verify(end + 1).is_err());
        assert!(
            serving.verify(&[], UnixTime::now()).is_ok(),
            "none was shown"
        );
    }
}
