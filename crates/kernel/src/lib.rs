//! EvidenceOS: kernel.

pub mod bits;
mod kraft;
pub mod log2;
pub mod price;
pub mod score;
pub mod split;
mod wide;
