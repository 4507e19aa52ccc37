//! EvidenceOS: proto.
