//! Verification against logs that the real kernel wrote, and against what was done to them afterwards.

mod arithmetic;
mod before;
mod forger;
mod history;
mod log;
mod opening;
mod receipt;
mod trust;
mod world;
