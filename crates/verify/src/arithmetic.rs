//! The rules of prices, thresholds, evidence and answers, stated a second time.
//!
//! Nothing here calls the kernel's formulas: each was written again from the published rules, by another method if
//! there is one, so the verifier does not repeat an error of the kernel. `tests/arithmetic` compares both statements
//! over many inputs.
//!
//! Everything is integers or exact rationals; no float decides anything. Amounts of information are microbits (a
//! millionth of a bit) unless a name says otherwise.

pub mod evidence;
pub mod kraft;
pub mod log2;
pub mod prices;
pub mod score;
pub mod split;
