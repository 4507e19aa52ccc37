//! EvidenceOS: driver.
