//! The kernel's rules, played through `decide` on a stage as the driver does it.
//!
//! [`world::World`] is a store of maps; everything else are claims about what the kernel does,
//! but for [`comments`], which reads the sources of the whole workspace.

mod ancestors;
mod attacks;
mod budgets;
mod comments;
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
