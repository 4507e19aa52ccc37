//! What an operator does with a data directory while no daemon serves it.
//!
//! `backup`, `fsck` and `accounts` look after what is there. If a database may not be the newest,
//! `recover` brings back what was signed, and `restart` goes on under another name or by the
//! operator's word; both work on a directory that is `opened`, and `source` is a log elsewhere.

pub mod accounts;
pub mod backup;
pub mod error;
pub mod fsck;
mod opened;
pub mod recover;
pub mod restart;
mod source;

use tokio::runtime::Handle;

use crate::{assemble::StartError, terminal};

/// A runtime for a command of its own.
fn with_runtime<T>(work: impl FnOnce(&Handle) -> Result<T, StartError>) -> Result<T, StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    work(runtime.handle())
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        terminal::complain(&warning);
    }
}

fn failed(error: &StartError) -> std::process::ExitCode {
    terminal::complain(&error);
    std::process::ExitCode::FAILURE
}
