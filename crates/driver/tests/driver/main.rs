//! The driver with a store in memory, runs that end when the test says so, and injected faults.

mod batches;
mod bench;
mod fakes;
mod faults;
mod heads;
mod mailbox;
mod policies;
mod queues;
mod restarts;
mod signing;
mod simulation;
