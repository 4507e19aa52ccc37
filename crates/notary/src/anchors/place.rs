//! One anchor, and the head that it must remember.

use std::{
    io,
    path::{Path, PathBuf},
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_files::{denial, denial_within};
use evidenceos_store::{Head, StoreError, blobs};
use evidenceos_tlog::{Checkpoint, Hash};
use parking_lot::Mutex;

use super::{
    directory::{self, HeadFile},
    error::Unreadable,
};
use crate::{anchors::AnchorPlace, keys::LogSigner};

/// A head for anchors to remember.
#[derive(Debug, Clone)]
pub struct Tip {
    /// Name, size and root.
    pub(super) checkpoint: Checkpoint,
    /// The signed note; absent while a KMS still signs it.
    pub(super) note: Option<String>,
    /// SHA-256 of the log's public key, in hex.
    pub(super) key_id: String,
}

impl Tip {
    /// The unsigned head of a tree; `None` if its checkpoint would be invalid.
    #[must_use]
    pub fn unsigned(signer: &LogSigner, size: u64, root: Hash) -> Option<Self> {
        Some(Self {
            checkpoint: Checkpoint::new(signer.origin(), size, root).ok()?,
            note: None,
            key_id: signer.key_id().to_hex(),
        })
    }

    /// Entries that the head covers.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.checkpoint.size()
    }
}

impl From<&Head> for Tip {
    fn from(head: &Head) -> Self {
        let origin = head.checkpoint.lines().next().unwrap_or_default();
        Self {
            checkpoint: Checkpoint::new(origin, head.size, head.root())
                .unwrap_or_else(|error| unreachable!("our own head has a name: {error}")),
            note: Some(head.checkpoint.clone()),
            key_id: head.key_id.to_hex(),
        }
    }
}

/// One anchor, and what this process knows of it.
pub(super) struct Place {
    pub(super) at: AnchorPlace,
    /// An earlier start signed beside it and noted it in the database.
    pub(super) remembered: bool,
    /// Whether heads are written there; otherwise it is only compared, since the settings now name
    /// other anchors.
    pub(super) written: bool,
    /// The log's file in a directory, once this process signs.
    pub(super) file: Mutex<Option<HeadFile>>,
}

impl Place {
    pub(super) fn is_written(&self) -> bool {
        self.written && !matches!(self.at, AnchorPlace::Url(_))
    }

    pub(super) fn path(&self) -> PathBuf {
        match &self.at {
            AnchorPlace::File(path) | AnchorPlace::Directory(path) => path.clone(),
            AnchorPlace::Url(url) => PathBuf::from(url),
        }
    }

    /// Whether the place exists, so that it can know of a time before this start.
    pub(super) fn is_there(&self) -> bool {
        match &self.at {
            AnchorPlace::File(path) => path.is_file(),
            AnchorPlace::Directory(path) => path.is_dir(),
            AnchorPlace::Url(_) => true,
        }
    }

    /// Makes a directory for a log that begins; if that fails, the anchor does not answer.
    pub(super) fn make(&self) {
        if let AnchorPlace::Directory(path) = &self.at
            && self.written
            && let Err(error) = directory::make(path)
        {
            let error = self.why(error);
            tracing::warn!(anchor = %self.at, error, "an anchor directory cannot be made");
        }
    }

    /// Why the anchor does not answer; if the system denied it a file, with the command that mends it.
    pub(super) fn why(&self, error: impl Into<Unreadable>) -> String {
        let error = error.into();
        let denial = match (&self.at, error.io()) {
            (AnchorPlace::Directory(path), Some(io)) => denial_within(path, io),
            (AnchorPlace::File(path), Some(io)) => denial(path, io),
            _ => String::new(),
        };
        format!("{error}{denial}")
    }

    /// Writes the head; returns whether the anchor could take it: a file accepts only signed heads.
    pub(super) fn write(&self, tip: &Tip) -> io::Result<bool> {
        failpoint::pass(Point::LogHeadCommittedBeforeAnchor);
        match &self.at {
            AnchorPlace::File(path) => {
                let Some(note) = &tip.note else {
                    return Ok(false);
                };
                blobs::write_durably(path, note.as_bytes()).map_err(without_path)?;
            }
            AnchorPlace::Directory(path) => {
                let mut file = self.file.lock();
                let origin = tip.checkpoint.origin();
                let unsigned = || directory::unsigned(&tip.checkpoint, &tip.key_id);
                let text = tip.note.clone().unwrap_or_else(unsigned);
                // After an error the file is opened again: an operator may have replaced it.
                hold(&mut file, path, origin)?
                    .write(text.as_bytes())
                    .inspect_err(|_| *file = None)?;
            }
            AnchorPlace::Url(_) => return Ok(false),
        }
        failpoint::pass(Point::LogAnchorWritten);
        Ok(true)
    }
}

/// The error for a report that already names the anchor.
pub(super) fn without_path(error: StoreError) -> io::Error {
    match error {
        StoreError::Io {
            operation, source, ..
        } => io::Error::new(source.kind(), format!("cannot {operation} it: {source}")),
        other => io::Error::other(other),
    }
}

/// Opens the log's file in a directory, which this process holds from now on.
pub(super) fn hold<'f>(
    file: &'f mut Option<HeadFile>,
    directory: &Path,
    origin: &str,
) -> io::Result<&'f mut HeadFile> {
    match file {
        Some(held) => Ok(held),
        None => Ok(file.insert(HeadFile::take(directory, origin)?)),
    }
}
