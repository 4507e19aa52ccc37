//! `evidenceos keys`, `policy` and `lab`: on files, and with the daemon that uses what they made.

mod daemon;
mod keys;
mod lab;
mod place;
mod policy;
mod terminal;
