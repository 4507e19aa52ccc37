//! Errors of keys, with their remedies.

use std::{io, path::PathBuf};

use evidenceos_files::denial;
use thiserror::Error;

use crate::KeyId;

/// The reason why keys cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A file or directory operation failed.
    #[error("cannot {operation} {path}: {source}{}", denial(path, source))]
    Io {
        /// The failed operation, as a verb.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Another user could read or change a key.
    #[error(
        "{path} has mode {mode:04o} and owner uid {owner}; {wanted}, owned by uid {user} (us) or root. Run: {command}"
    )]
    Permissions {
        /// The file or directory.
        path: PathBuf,
        /// The permission bits that the file has.
        mode: u32,
        /// The uid of the file's owner.
        owner: u32,
        /// The rule that it breaks, as a part of the sentence.
        wanted: &'static str,
        /// The effective uid of this process.
        user: u32,
        /// The command that mends it.
        command: String,
    },
    /// A file is not a key.
    #[error("{path} is not a key: {what}")]
    NotAKey { path: PathBuf, what: String },
    /// A file is not of the required kind, whatever its content.
    #[error("{path} {what}")]
    Unfit {
        path: PathBuf,
        /// The kind of file that was found.
        what: String,
    },
    /// A key file has the name of another key.
    #[error(
        "{path} holds the key {found}: its name does not match its content; rename it to {found}.key"
    )]
    WrongName {
        path: PathBuf,
        /// The key that the file contains.
        found: KeyId,
    },
    /// The ring has no key with this id.
    #[error("{directory} has no key {id}; `evidenceos keys list` shows the keys in it")]
    Unknown {
        /// The directory of the ring.
        directory: PathBuf,
        id: KeyId,
    },
    /// A text is not a key id.
    #[error("{0:?} is not a key id: 64 hex digits, the SHA-256 of the public key")]
    NotAnId(String),
    /// The ring has no key to sign with.
    #[error(
        "{0} holds no signing key; make one with `evidenceos keys generate`, bring them from a mount with `evidenceos keys import --from DIR`, or restore them from a backup"
    )]
    Empty(PathBuf),
    /// The ring has several keys and the operator has chosen none.
    #[error(
        "{directory} holds {count} signing keys and none is activated; choose one with `evidenceos keys activate KEY-ID` or --active-key-id"
    )]
    NotChosen {
        /// The directory of the ring.
        directory: PathBuf,
        /// The number of signing keys that the ring holds.
        count: usize,
    },
    /// A secret that the data directory depends on is missing.
    #[error("the data directory has a log, but {0} is missing; bring it back from a backup")]
    Missing(PathBuf),
    /// All users can read a mounted key.
    #[error(
        "{path} can be read by all users (mode {mode:04o}); close a mounted key to others: 0440 or stricter. For a Kubernetes Secret set defaultMode: 0440"
    )]
    WorldReadable {
        path: PathBuf,
        /// The permission bits that the file has.
        mode: u32,
    },
    /// A link leads out of the mount.
    #[error("{0} is a link that leads out of the imported directory; copy the key itself there")]
    LeadsOut(PathBuf),
    /// A file with the same name contains another secret.
    #[error("{0} is there already and holds something else; nothing was overwritten")]
    Differs(PathBuf),
    /// The operating system gave no random bytes.
    #[error("the operating system returned no random bytes: {0}")]
    Random(getrandom::Error),
}

impl KeyError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn errno(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        let wrap = Self::io(operation, path);
        move |errno| wrap(errno.into())
    }
}
