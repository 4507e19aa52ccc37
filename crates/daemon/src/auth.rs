//! Who calls, as the kernel knows the caller, and what is asked before a call gets to its handler.
//!
//! Identity comes from `evidenceos-access` alone: a verified certificate, a token, a signature.
//! Headers in which a client says who it is are dropped before anything else sees them.
//!
//! A call that lasts is asked again: [`Gate::roles_now`] says whether what its caller showed would
//! still be taken, and [`Gate::changes`] when that may have changed.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use evidenceos_access::{
    Authenticator, Credentials, Denied, Identity, Misused, Peer, Proof, Roles, Signature, Tokens,
    Uses,
};
use evidenceos_kernel::command::Caller;
use http::HeaderMap;
use tokio::sync::watch;
use tonic::transport::server::Connected;

use crate::{clock::unix_ms, config::IdentityConfig, keys::Keys, metrics::Metrics};

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
pub struct Gate {
    config: IdentityConfig,
    authenticator: ArcSwap<Authenticator>,
    keys: Arc<Keys>,
    metrics: Arc<Metrics>,
    uses: Uses,
    /// Counts what may have changed the answer to who may call.
    changes: watch::Sender<u64>,
}

impl Gate {
    /// A gate that authenticates callers as `config` demands.
    #[must_use]
    pub fn new(
        config: IdentityConfig,
        authenticator: Authenticator,
        keys: Arc<Keys>,
        metrics: Arc<Metrics>,
        uses: Uses,
    ) -> Self {
        Self {
            config,
            authenticator: ArcSwap::from_pointee(authenticator),
            keys,
            metrics,
            uses,
            changes: watch::Sender::new(0),
        }
    }

    /// Reads policy and secrets again, and leaves all as it was.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read_again(&self) -> Result<Arc<Authenticator>, Vec<String>> {
        self.config.load().map(Arc::new)
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

    /// Whether nobody is asked who he is.
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
    /// As [`Gate::identify`].
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
            authenticator.identify_with(own, unix_ms() / 1_000, &credentials)
        });
        self.metrics.identified(identified.as_ref().map(|i| i.kind));
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
        authenticator.roles_now(None, unix_ms() / 1_000, &principal.proof, certificate)
    }

    /// Binds a signature to the request of a digest.
    ///
    /// # Errors
    /// If it serves another request, or cannot be remembered.
    pub fn bind(&self, signature: &Signature, request: &[u8; 32]) -> Result<(), Misused> {
        self.uses.bind(unix_ms() / 1_000, signature, request)
    }

    fn principal(&self, identity: Identity) -> Principal {
        Principal {
            caller: Caller {
                tag: self.keys.owner_tag(&identity.principal),
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

/// A connection, as the gRPC server wants it.
pub struct GrpcConnection(pub evidenceos_access::Connection);

/// What the layers of the gRPC server learn of a connection.
#[derive(Debug, Clone)]
pub struct GrpcPeer(pub Peer);

impl GrpcPeer {
    /// Where it calls from.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

impl Connected for GrpcConnection {
    type ConnectInfo = GrpcPeer;

    fn connect_info(&self) -> GrpcPeer {
        GrpcPeer(self.0.peer().clone())
    }
}

mod io {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::GrpcConnection;

    impl AsyncRead for GrpcConnection {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for GrpcConnection {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            self.0.is_write_vectored()
        }
    }
}
