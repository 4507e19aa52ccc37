//! The use cases of the daemon, each written once: gRPC, HTTP and the control socket parse, call a
//! service, and render.
//!
//! There are five services over the daemon's parts, each with what it needs. A service decides
//! nothing: it hands commands to the writer, reads rows beside it, and holds back what no anchor
//! covers yet. It knows no protocol: identities come as [`Principal`](crate::auth::Principal)s,
//! requests as the kernel's types, and failures are [`Error`]s.

mod accounts;
mod catalog;
mod claims;
mod collector;
mod compiling;
mod error;
mod holdouts;
mod log;
mod names;
mod probing;
mod rows;
mod server;
mod writer;

use std::sync::Arc;

pub use self::{
    accounts::{Accounts, Whose},
    catalog::Catalog,
    claims::{
        Asked, Bounds, Claims, Created, FEWEST_DIGITS, Offer, ProvenCapsule, ShownCapsule,
        ShownClaim, ids_that_begin, uncommit_forever,
    },
    collector::ServicesCollector,
    error::Error,
    holdouts::{Holdouts, Rekeying, ShownHoldout, Submission},
    log::{Log, Revocations, Revoked},
    names::Names,
    probing::Probing,
    rows::ShownRows,
    server::{Server, Setup},
    writer::{Writer, request_key},
};

/// The services of a daemon.
pub struct Services {
    pub claims: Arc<Claims>,
    pub holdouts: Arc<Holdouts>,
    pub log: Arc<Log>,
    pub accounts: Arc<Accounts>,
    pub server: Arc<Server>,
    pub names: Arc<Names>,
}
