//! Commands on a data directory that no daemon serves.
//!
//! `backup`, `fsck` and `accounts` work on what is there. If a database may not be the newest,
//! `recover` appends the missing signed entries, and `restart` continues under another name or on
//! the operator's statement. Both work on an `opened` directory; `source` is another copy of the
//! log.

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

/// Runs `work` with a runtime of its own.
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
