//! EvidenceOS: tlog.
