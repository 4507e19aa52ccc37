//! Who calls, as the kernel knows the caller, and what is asked before a call gets to its handler.
//!
//! Identity comes from [`Authenticator`] alone: a verified certificate, a token, a signature.
//! Headers in which a client says who it is are dropped before anything else sees them.
//!
//! A call that lasts is asked again: [`Callers::roles_now`] says whether what its caller showed
//! would still be taken, and [`Callers::changes`] when that may have changed.

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

/// A caller, and the name that its tag was made from.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The verified name, as roles and accounts have it.
    pub name: String,
    /// What the kernel knows of it.
    pub caller: Caller,
    /// What it may do.
    pub roles: Roles,
    /// Part of the key of its requests: processes that share a secret count from 1 each.
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

/// Tells callers apart; what it is told can be read again while it does.
pub struct Callers {
    authenticator: ArcSwap<Authenticator>,
    owners: Arc<Owners>,
    uses: Uses,
    identified: Family<Identified, Counter>,
    /// Counts what may have changed the answer to who may call.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Identified {
    /// `mtls`, `bearer`, `hmac`, `anonymous`, or `denied`.
    by: &'static str,
}

impl Callers {
    /// Tells callers apart by `authenticator`; their tags are made with `owners`, and `uses`
    /// remembers signatures. How calls were identified is counted in `registry`.
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
                "Calls by how the caller was identified; denied ones included",
            ),
            changes: watch::Sender::new(0),
        }
    }

    /// What tells callers apart now.
    #[must_use]
    pub fn authenticator(&self) -> Arc<Authenticator> {
        self.authenticator.load_full()
    }

    /// Tells callers apart by this from now on.
    pub fn follow(&self, authenticator: Arc<Authenticator>) {
        self.authenticator.store(authenticator);
        self.changed();
    }

    /// Has calls under way asked again whether they may go on.
    pub fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Counts what may have changed who may call.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether callers are not authenticated: a development server.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.authenticator.load().is_development()
    }

    /// Who makes a call.
    ///
    /// # Errors
    /// Where there is no credential, or one that does not hold.
    pub fn identify(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Principal, Denied> {
        self.identify_with(None, path, headers, peer)
    }

    /// Who makes a call on a port that has tokens of its own: one of them is a credential like any
    /// other, and without other credentials configured one of them is needed.
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
        // Revocation is looked at first: no other credential carries a revoked certificate.
        let identified = not_revoked(peer).and_then(|()| {
            let authenticator = self.authenticator.load();
            authenticator.identify_with(own, unix_s(), &credentials)
        });
        let by = identified.as_ref().map_or("denied", |known| known.kind);
        self.identified.get_or_create(&Identified { by }).inc();
        // Only a known caller keeps a connection from giving way to others: strangers must not.
        if let (Ok(_), Some(peer)) = (&identified, peer) {
            peer.is_known();
        }
        identified.map(|identity| self.principal(identity))
    }

    /// The roles that the caller of a call under way has now.
    ///
    /// # Errors
    /// If what it showed would not be taken now.
    pub fn roles_now(&self, principal: &Principal, peer: Option<&Peer>) -> Result<Roles, Denied> {
        not_revoked(peer)?;
        let certificate = peer.and_then(Peer::certificate);
        let authenticator = self.authenticator.load();
        authenticator.roles_now(None, unix_s(), &principal.proof, certificate)
    }

    /// Binds a signature to the request of a digest.
    ///
    /// # Errors
    /// If it serves another request, or cannot be remembered.
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

/// A connection without a certificate, or with one that no authority has revoked.
fn not_revoked(peer: Option<&Peer>) -> Result<(), Denied> {
    if peer.is_some_and(Peer::is_revoked) {
        return Err(Denied::CertificateRevoked);
    }
    Ok(())
}

/// What the system's clock says, in seconds of Unix time; 0 before 1970.
fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
