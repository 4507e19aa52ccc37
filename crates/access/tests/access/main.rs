//! The crate from outside, over real sockets on loopback.

mod callers;
mod handshakes;
mod listener;
mod names;
mod pki;
mod reload;
mod revocation;
mod server;
mod settings;
mod signatures;
