//! The crate from outside, over real sockets on loopback.

mod callers;
mod handshakes;
mod listener;
mod pki;
mod reload;
mod server;
mod settings;
mod signatures;
