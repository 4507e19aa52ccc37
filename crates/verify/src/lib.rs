//! EvidenceOS: verify.
