//! The daemon from outside: real sockets, real files, one module a capability.

#![allow(missing_docs, reason = "tests are claims by their names")]

mod bad_input;
mod guests;
mod harness;
mod keys;
mod lifecycle;
mod process;
mod publicity;
