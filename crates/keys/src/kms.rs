//! Keys that a cloud KMS guards.
