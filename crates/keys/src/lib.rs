//! Keys: the ring of signing keys, the KMS providers, and the keys of the holdouts.

pub mod kms;
