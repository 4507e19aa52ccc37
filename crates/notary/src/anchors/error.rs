//! Errors of anchors: what stops a log, and why an anchor cannot be read.

use std::{io, path::PathBuf};

use evidenceos_files::denial;
use evidenceos_store::{FileError, StoreError};
use evidenceos_tlog::Hash;
use thiserror::Error;

use super::directory::HeadError;
use crate::{anchors::AnchorPlace, fetch::FetchError};

/// The advice if an anchor knows more than the database, or other entries.
const WAYS_OUT: &str = "With the daemon stopped, `evidenceos-daemon log recover --from URL|DIR` brings the missing entries back from the published log, a mirror or another backup; if there is none, `evidenceos-daemon log restart --origin NEW --because TEXT` begins a new log that names this one";

/// Why a log may not begin or continue beside its anchors.
#[derive(Debug, Error)]
pub enum AnchorError {
    /// An anchor's path cannot be resolved, or the anchor cannot be written.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The log's own entries cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory beside the data directory is missing and cannot be made.
    #[error(
        "the anchor directory {path} cannot be made ({source}{}): nothing would remember the log's newest head outside of the data directory. Name a directory that can be written, best on another disk, with --anchor DIR/, or give --anchor none",
        denial(path, source)
    )]
    NotMade { path: PathBuf, source: io::Error },
    /// The anchor remembers another log.
    #[error(
        "anchor {place} remembers another log, {found:?}, and ours is {ours:?}; give this daemon an anchor of its own"
    )]
    OtherLog {
        place: AnchorPlace,
        /// The name of the other log.
        found: String,
        ours: String,
    },
    /// Two roots were signed for one size.
    #[error(
        "anchor {place} remembers {size} entries with root {found}, ours with as many has root {ours}: the log was forked. Nothing was signed. {}",
        WAYS_OUT
    )]
    Forked {
        place: AnchorPlace,
        size: u64,
        found: Hash,
        ours: Hash,
    },
    /// Another daemon signed this log further than this one did.
    #[error(transparent)]
    Ahead(Ahead),
    /// An anchor is ahead, so the operator cannot state the opposite.
    #[error("it cannot be stated that nothing was signed since: {0}")]
    Contradicted(String),
    /// `--begin-log` names another log than the one that would begin.
    #[error(
        "--begin-log {stated:?} names another log than the one that would begin here, {origin:?}; name that one, or set --log-origin"
    )]
    OtherBegins { stated: String, origin: String },
    /// No anchor can remember the log that would begin.
    #[error(
        "no anchor answers, and a new log must not begin without one: {silent}. Make one reachable (an anchor directory must exist: mkdir), or give --anchor-optional"
    )]
    NoneAnswers {
        /// Each anchor, and why it does not answer.
        silent: String,
    },
    /// An anchor remembers the log that would begin.
    #[error(
        "the data directory is empty, but anchor {place} remembers {size} entries of {origin:?}: the directory was lost, or the wrong one is mounted. Bring it back, or restore a backup (`evidenceos-daemon restore`); for another log give another --log-origin and --anchor"
    )]
    Lost {
        place: AnchorPlace,
        size: u64,
        origin: String,
    },
    /// Nothing confirms that the key has signed no log of this name.
    #[error(
        "the data directory is empty, and the signing key was there before this start: if the key has signed a log, a second one under its name would be a fork ({seen}). Nothing was signed. If the log was lost or is mounted elsewhere, bring its directory back or restore a backup (`evidenceos-daemon restore`). If it is a new log, do one of these: make an anchor directory outside of the data directory (mkdir DIR) and name it with --anchor DIR/; take the key away, and let the start make one; or, once you are sure, state that the key has signed no log of this name: --begin-log {origin}"
    )]
    MayHaveSigned {
        /// The answers of the anchors.
        seen: String,
        origin: String,
    },
}

impl From<AnchorError> for evidenceos_driver::Fatal {
    fn from(error: AnchorError) -> Self {
        match error {
            AnchorError::Store(error) => error.into(),
            error => Self::Halted(error.into()),
        }
    }
}

/// What an anchor remembers beyond the log.
#[derive(Debug, Error)]
pub enum Ahead {
    /// The log was continued under another name.
    #[error(
        "anchor {place} remembers that {origin:?} was restarted as {successor:?}: this directory is from before that, and what it still takes for unspent was charged there. Serve the directory of {successor:?}"
    )]
    Restarted {
        place: AnchorPlace,
        origin: String,
        successor: String,
    },
    /// More entries were signed.
    #[error(
        "anchor {place} remembers {size} entries with root {root}, the database has {own}: it was brought back from an older state, or another daemon signs a copy of it. {}",
        WAYS_OUT
    )]
    Longer {
        place: AnchorPlace,
        size: u64,
        root: Hash,
        /// The number of entries in the database.
        own: u64,
    },
}

/// Why the content of an anchor is unknown. The caller's report names the anchor.
#[derive(Debug, Error)]
pub(super) enum Unreadable {
    /// A file of one log.
    #[error(transparent)]
    File(#[from] io::Error),
    /// A directory with a file for each log.
    #[error(transparent)]
    Directory(#[from] HeadError),
    /// A published log.
    #[error(transparent)]
    Url(#[from] FetchError),
    /// The content is not a checkpoint.
    #[error("there is no checkpoint in it")]
    NoCheckpoint,
}

impl Unreadable {
    /// What the system said, if it is of files.
    pub(super) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::File(error) => Some(error),
            Self::Directory(error) => error.io(),
            Self::Url(_) | Self::NoCheckpoint => None,
        }
    }
}
