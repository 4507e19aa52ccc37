//! Verification against logs that the real kernel wrote, and against what was done to them afterwards.

mod arithmetic;
mod before;
mod capsules;
mod decisions;
mod forger;
mod history;
mod known;
mod ledgers;
mod log;
mod opening;
mod receipt;
mod registrations;
mod relations;
mod scripted;
mod seeds;
mod traces;
mod trust;
mod world;
