//! The fuzz targets: what a stranger sends goes in, and an assertion fails if a property does not hold.
//!
//! One module for each target, with one function `check`. The programs in `fuzz_targets` hand it the fuzzer's bytes;
//! the daemon's tests include this file and hand it every seed. docs/testing.md says what each target asserts.

pub mod accounts;
pub mod certificate;
pub mod credentials;
pub mod crl;
pub mod log;
pub mod module;
pub mod note;
pub mod opening;
pub mod preflight;
pub mod proof;
pub mod receipt;
pub mod record;
pub mod registration;
pub mod request;
pub mod roles;
pub mod tile;
pub mod trace;

/// What takes the bytes of a target.
pub type Check = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Check); 17] = [
    ("accounts", accounts::check),
    ("certificate", certificate::check),
    ("credentials", credentials::check),
    ("crl", crl::check),
    ("log", log::check),
    ("module", module::check),
    ("note", note::check),
    ("opening", opening::check),
    ("preflight", preflight::check),
    ("proof", proof::check),
    ("receipt", receipt::check),
    ("record", record::check),
    ("registration", registration::check),
    ("request", request::check),
    ("roles", roles::check),
    ("tile", tile::check),
    ("trace", trace::check),
];
