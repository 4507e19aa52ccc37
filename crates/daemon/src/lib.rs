//! EvidenceOS: daemon.
