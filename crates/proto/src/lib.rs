//! The wire: `evidenceos.v2` and its generated client and server stubs. Nothing else.
//!
//! The schema is `proto/evidenceos/v2/evidenceos.proto`; how messages map to the kernel's
//! commands is the daemon's business.

#![allow(
    missing_docs,
    clippy::all,
    reason = "all but one constant is generated"
)]

tonic::include_proto!("evidenceos.v2");

/// The compiled schema, as a serialised `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
