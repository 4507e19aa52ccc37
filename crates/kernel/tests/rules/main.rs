//! The kernel's rules, played through `decide` on a stage as the driver does it.
//!
//! [`world::World`] is a store of maps; everything else are claims about what the kernel does.

mod ancestors;
mod attacks;
mod budgets;
mod comparisons;
mod continuity;
mod credit;
mod duplicates;
mod fences;
mod holdouts;
mod leakage;
mod lifecycle;
mod random;
mod records;
mod recovery;
mod requests;
mod sizes;
mod stages;
mod storage;
mod verdicts;
mod withdrawals;
mod world;
