//! Callers in the form in which the kernel knows them, and the checks before a call reaches its
//! handler.
//!
//! Identity comes from [`Authenticator`] alone: a verified certificate, a token, a signature.
//! Headers in which a client states its identity are dropped before any other code sees them.
//!
//! Long calls are checked again: [`Callers::roles_now`] tells whether the caller's credential would
//! still be accepted, and [`Callers::changes`] tells when that may have changed.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use evidenceos_kernel::command::Caller;
use evidenceos_telemetry::Registry;
use http::HeaderMap;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tokio::sync::watch;

use crate::{
    Authenticator, Credentials, Denied, Identity, Misused, Owners, Peer, Proof, Roles, Signature,
    Tokens, Uses,
};

/// A caller, and the name from which its tag is made.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The verified name, which roles and accounts use.
    pub name: String,
    /// The caller in the kernel's form.
    pub caller: Caller,
    /// The caller's roles.
    pub roles: Roles,
    /// Part of the key of the caller's requests: processes that share a secret each count from 1.
    pub request_scope: Option<String>,
    /// The credential that verified it.
    pub proof: Proof,
}

impl Principal {
    /// The signature of the call, if it is signed.
    #[must_use]
    pub fn signature(&self) -> Option<&Signature> {
        match &self.proof {
            Proof::Signature(signature) => Some(signature),
            _ => None,
        }
    }
}

/// Authenticates callers by rules that can be replaced at any time.
pub struct Callers {
    authenticator: ArcSwap<Authenticator>,
    owners: Arc<Owners>,
    uses: Uses,
    identified: Family<Identified, Counter>,
    /// Counts changes that may affect whether callers are accepted.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Identified {
    /// `mtls`, `bearer`, `hmac`, `anonymous`, or `denied`.
    by: &'static str,
}

impl Callers {
    /// Authenticates callers with `authenticator`, makes their tags with `owners`, and remembers
    /// signatures in `uses`. `registry` counts the identified calls by kind of credential.
    #[must_use]
    pub fn new(
        authenticator: Authenticator,
        owners: Arc<Owners>,
        uses: Uses,
        registry: &Registry,
    ) -> Self {
        Self {
            authenticator: ArcSwap::from_pointee(authenticator),
            owners,
            uses,
            identified: registry.counters(
                "identified_calls",
                "Calls by how the caller was authenticated, denied calls included",
            ),
            changes: watch::Sender::new(0),
        }
    }

    /// The authenticator in force.
    #[must_use]
    pub fn authenticator(&self) -> Arc<Authenticator> {
        self.authenticator.load_full()
    }

    /// Uses another authenticator from now on.
    pub fn follow(&self, authenticator: Arc<Authenticator>) {
        self.authenticator.store(authenticator);
        self.changed();
    }

    /// Has the rights of calls under way checked again.
    pub fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// The count of changes that may affect whether callers are accepted.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether callers are not authenticated: a development server.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.authenticator.load().is_development()
    }

    /// Authenticates the caller of a call.
    ///
    /// # Errors
    /// If there is no credential, or an invalid one.
    pub fn identify(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Principal, Denied> {
        self.identify_with(None, path, headers, peer)
    }

    /// Authenticates the caller of a call on a port that has its own tokens. These are credentials
    /// like any others; if no others are configured, the call needs one of them.
    ///
    /// # Errors
    /// As [`Callers::identify`].
    pub fn identify_with(
        &self,
        own: Option<&Tokens>,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Principal, Denied> {
        let credentials = Credentials {
            path,
            headers,
            certificate: peer.and_then(Peer::certificate),
        };
        // Revocation is checked first: no other credential makes up for a revoked certificate.
        let identified = not_revoked(peer).and_then(|()| {
            let authenticator = self.authenticator.load();
            authenticator.identify_with(own, unix_s(), &credentials)
        });
        let by = identified.as_ref().map_or("denied", |known| known.kind);
        self.identified.get_or_create(&Identified { by }).inc();
        // Only an authenticated caller keeps a connection from giving way to others: strangers must
        // not.
        if let (Ok(_), Some(peer)) = (&identified, peer) {
            peer.is_known();
        }
        identified.map(|identity| self.principal(identity))
    }

    /// The present roles of the caller of a call under way.
    ///
    /// # Errors
    /// If the caller's credential would not be accepted now.
    pub fn roles_now(&self, principal: &Principal, peer: Option<&Peer>) -> Result<Roles, Denied> {
        not_revoked(peer)?;
        let certificate = peer.and_then(Peer::certificate);
        let authenticator = self.authenticator.load();
        authenticator.roles_now(None, unix_s(), &principal.proof, certificate)
    }

    /// Binds a signature to the request with this digest.
    ///
    /// # Errors
    /// If the signature was used for another request, or cannot be remembered.
    pub fn bind(&self, signature: &Signature, request: &[u8; 32]) -> Result<(), Misused> {
        self.uses.bind(unix_s(), signature, request)
    }

    fn principal(&self, identity: Identity) -> Principal {
        Principal {
            caller: Caller {
                tag: self.owners.tag(&identity.principal),
                operator: identity.roles.operator,
                auditor: identity.roles.auditor,
            },
            name: identity.principal,
            roles: identity.roles,
            request_scope: identity.request_scope,
            proof: identity.proof,
        }
    }
}

/// Accepts a connection without a certificate, or with one that no authority has revoked.
fn not_revoked(peer: Option<&Peer>) -> Result<(), Denied> {
    if peer.is_some_and(Peer::is_revoked) {
        return Err(Denied::CertificateRevoked);
    }
    Ok(())
}

/// The system clock in seconds of Unix time; 0 before 1970.
fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
