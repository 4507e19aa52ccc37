//! gRPC: each method parses, asks a service, renders. Nothing here decides anything.
//!
//! `service` says which handler answers which method; aliases of the published wire (`Freeze`,
//! `Seal`, `GetCapsule`) end in `claims`; statuses are made in [`status`] alone. A call passes
//! these layers before its handler: `counting`, `callers` and the bounds of a call (`fields`,
//! `places`, `pace`, `lasting`).

mod accounts;
mod call;
mod callers;
mod claims;
mod connection;
mod counting;
mod counts;
mod fields;
#[doc(hidden)]
pub mod fuzz;
mod holdouts;
mod lasting;
mod log;
mod pace;
mod parse;
mod places;
mod registration;
mod render;
pub mod rules;
mod server;
mod service;
pub mod status;
mod subject;

pub use callers::CallersLayer;
pub use connection::GrpcConnection;
pub use counting::CountLayer;
pub use service::Service;
