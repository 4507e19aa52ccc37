//! The store on a real disk: what is written is read back, what is damaged is never served, and
//! what a crash leaves is made whole.

mod accounts;
mod backup;
mod contract;
mod damage;
mod decisions;
mod disk;
mod fsck;
mod log;
mod sources;
mod upkeep;
