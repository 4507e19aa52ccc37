//! EvidenceOS: store.
