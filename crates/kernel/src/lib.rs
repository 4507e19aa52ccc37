//! EvidenceOS: kernel.

pub mod bits;
pub mod cj;
pub mod evidence;
mod kraft;
pub mod log2;
pub mod planner;
pub mod price;
pub mod score;
pub mod split;
mod wide;
