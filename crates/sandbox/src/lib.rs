//! EvidenceOS: sandbox.
