//! The daemon from outside: real sockets, real files, one module a capability; but for
//! [`comments`], which reads the sources of the whole workspace.

#![allow(missing_docs, reason = "tests are claims by their names")]

mod anchors;
mod bad_input;
mod comments;
mod connections;
mod continuity;
mod credit;
mod damage;
mod full;
#[path = "../../../../fuzz/src/lib.rs"]
mod fuzz_targets;
mod gate;
mod guarded;
mod guests;
mod harness;
mod http2;
mod https_anchors;
mod keys;
mod lifecycle;
mod past;
#[path = "../../../access/tests/access/pki.rs"]
#[allow(dead_code, reason = "written for the tests of `evidenceos-access`")]
mod pki;
mod policies;
mod process;
mod promises;
mod protected;
mod publicity;
mod recovery;
mod roles;
mod secure;
mod seeds;
mod shape;
mod shut_out;
mod signed;
mod storage;
mod tls;
mod traces;
mod undecided;
mod web;
