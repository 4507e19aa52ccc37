//! Who calls, as the kernel knows him, and what is asked before a call gets to its handler.
//!
//! Identity comes from `evidenceos-access` alone: a verified certificate, a token, a signature.
//! Headers in which a client says who it is are dropped before anything else sees them.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use evidenceos_access::{
    Authenticator, Credentials, Denied, Identity, Peer, Roles, Tokens, bearer_token, principal,
};
use evidenceos_kernel::command::Caller;
use http::HeaderMap;
use tonic::transport::server::Connected;

use crate::{config::IdentityConfig, keys::Keys, metrics::Metrics, server::unix_ms};

/// A caller, and the name that its tag was made from.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Its name.
    pub name: String,
    /// What the kernel knows of it.
    pub caller: Caller,
    /// What it may do.
    pub roles: Roles,
    /// Part of the key of its requests: processes that share a secret count from 1 each.
    pub request_scope: Option<String>,
}

/// Tells callers apart; what it is told can be read again while it does.
pub struct Gate {
    config: IdentityConfig,
    authenticator: ArcSwap<Authenticator>,
    keys: Arc<Keys>,
    metrics: Arc<Metrics>,
}

impl Gate {
    /// A gate.
    #[must_use]
    pub fn new(
        config: IdentityConfig,
        authenticator: Authenticator,
        keys: Arc<Keys>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            config,
            authenticator: ArcSwap::from_pointee(authenticator),
            keys,
            metrics,
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
        let credentials = Credentials {
            path,
            headers,
            certificate: peer.and_then(Peer::certificate),
        };
        let identified = self
            .authenticator
            .load()
            .identify(unix_ms() / 1_000, &credentials);
        self.metrics.identified(identified.as_ref().map(|i| i.kind));
        identified.map(|identity| self.principal(identity))
    }

    /// Who makes a call on a port that has tokens of its own: one of them is enough, and without
    /// other credentials configured one of them is needed.
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
        let Some(own) = own else {
            return self.identify(path, headers, peer);
        };
        let token = match bearer_token(headers) {
            Ok(token) => token,
            Err(denied) => return self.denied(denied),
        };
        if let Some(token) = token
            && let Some(roles) = own.roles(token)
        {
            self.metrics.identified(Ok("bearer"));
            return Ok(self.principal(Identity {
                principal: principal::bearer(token),
                roles,
                request_scope: None,
                kind: "bearer",
            }));
        }
        match token {
            _ if !self.is_open() => self.identify(path, headers, peer),
            Some(_) => self.denied(Denied::UnknownToken),
            None => self.denied(Denied::Missing(
                "send \"authorization: Bearer <token>\"".to_owned(),
            )),
        }
    }

    fn denied<T>(&self, denied: Denied) -> Result<T, Denied> {
        self.metrics.identified(Err(&denied));
        Err(denied)
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
        }
    }
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
