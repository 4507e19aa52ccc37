//! Authenticates callers and finds their roles.
//!
//! Every listener uses this crate. It knows sockets, certificates, headers and bodies, but no RPC
//! framework, no web framework and no rules of claims.
//!
//! - [`Tls`] holds the server certificate, its key and the client CA, and replaces them while
//!   connections are open; [`incoming`] accepts connections and makes the handshakes.
//! - [`PeerCertificate`] gives the identity of a verified certificate.
//! - [`Uses`] remembers which request a signature was used for, so that it serves no other.
//! - [`HmacKeys`], [`Tokens`] and [`Policy`] are pure: bytes in, an answer out.
//! - [`Authenticator`] puts them together: one call's [`Credentials`] become an [`Identity`], or
//!   are [`Denied`].
//! - Listeners ask [`Callers`], which gives the kernel's form of a caller; [`once`] binds a
//!   signature to the body of one request.
//!
//! Invariants: an identity comes only from verified credentials; an invalid credential is never
//! ignored, the call is refused; no secret is shown by `Debug`, an error or a log line.

#![allow(
    missing_docs,
    reason = "a field or variant has a comment if its name and type do not say all; a test asks for all other items"
)]

mod authenticator;
mod callers;
mod certificate;
mod credentials;
mod denied;
mod deny;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod hmac;
mod listen;
pub mod once;
mod owners;
mod policy;
pub mod principal;
mod roles;
mod settings;
mod tls;
mod token;
mod uses;
mod verifier;
mod watch;

pub use crate::{
    authenticator::{Authenticator, Identity, Proof},
    callers::{Callers, Principal},
    certificate::{CertificateError, ClientAuth, IdentityKind, PeerCertificate},
    credentials::{Credentials, IDENTITY_HEADERS, strip_identity_headers},
    denied::Denied,
    files::{FileError, TlsFiles},
    hmac::{HmacKeys, HmacRules, Signed, TIMESTAMP_WINDOW_S},
    listen::{Connection, Connections, Counts, Incoming, Limits, Peer, Stats, incoming},
    owners::Owners,
    policy::Policy,
    roles::{Roles, UnknownRole},
    settings::{AuthSettings, token_problem},
    tls::{ClientCertificates, Reloaded, Reloads, Tls, TlsError},
    token::Tokens,
    uses::{Misused, Signature, Uses},
    watch::WATCH_EVERY,
};
