//! The rules of prices, thresholds, evidence and answers, stated a second time.
//!
//! Nothing here calls the kernel's formulas: each was written again from the published rules, by another method
//! where there is one, so that an error of the kernel's is not repeated by its verifier. `tests/arithmetic`
//! compares both statements over many inputs.
//!
//! Everything is integers or exact rationals; no float decides anything. Amounts of information are microbits (a
//! millionth of a bit) unless a name says otherwise.

pub mod evidence;
pub mod kraft;
pub mod log2;
pub mod prices;
pub mod score;
pub mod split;
