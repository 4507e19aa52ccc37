//! EvidenceOS: kernel.
