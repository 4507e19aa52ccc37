//! The lines of the control socket, and where the socket is.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use evidenceos_store::backup;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::assemble::health::Condition;

/// The socket's name in the data directory.
pub const SOCKET: &str = "control.sock";

/// A client's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Back up the data directory.
    Backup {
        /// An absolute path; the directory is empty or does not exist yet.
        destination: PathBuf,
    },
    /// Report whether calls are served.
    Health,
    /// Read certificates, roles, secret files, the active key and policy modules again, as on SIGHUP.
    Reload,
}

/// An answer of the daemon, one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// How far a backup is; more lines follow.
    Progress(backup::Progress),
    /// The backup is complete.
    Done(Box<backup::Manifest>),
    /// The backup failed, and why.
    Failed(String),
    /// Whether calls are served.
    Health(Condition),
    /// Everything was read again.
    Reloaded,
}

/// A path to `name` in `directory` that fits into a socket address, however long the directory's
/// own path is. It is valid while the descriptor is open.
pub(super) fn short_path(directory: &Path, name: &str) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()));
    Ok((fd, path))
}

/// A message as one line.
pub(super) fn line(of: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(of)
        .unwrap_or_else(|error| unreachable!("orders and news are plain data: {error}"));
    line.push(b'\n');
    line
}
