//! Another copy of the log: published, mirrored or backed up.

use std::{fs, io, path::PathBuf};

use evidenceos_notary::fetch::{self, Trust};
use evidenceos_tlog::{BundleId, tile::decode_entries};
use tokio::runtime::Handle;

use super::error::SourceError;

/// Entries in a bundle.
pub const WIDTH: u64 = 256;
/// The largest bundle: 256 entries with their lengths.
const MAX_BUNDLE: usize = 256 * (65_535 + 2);
/// The largest checkpoint that is read, in bytes.
const MAX_CHECKPOINT: usize = 64 << 10;

/// Another copy of the log.
pub enum Source {
    Directory(PathBuf),
    Url(String),
}

impl Source {
    /// A URL, with or without `/checkpoint`, or the directory of a log, a backup or a data
    /// directory.
    pub fn new(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") {
            let base = text.trim_end_matches('/');
            let base = base.strip_suffix("/checkpoint").unwrap_or(base);
            return Self::Url(base.to_owned());
        }
        // A data directory or a backup has its log in a subdirectory.
        let directory = PathBuf::from(text);
        let below = directory.join("log");
        Self::Directory(if below.join("checkpoint").exists() {
            below
        } else {
            directory
        })
    }

    fn read(
        &self,
        name: &str,
        limit: usize,
        runtime: &Handle,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(SourceError::Io { path, source }),
                }
            }
            Self::Url(base) => {
                let url = format!("{base}/{name}");
                runtime
                    .block_on(fetch::get(&url, limit, Trust::System))
                    .map_err(|source| SourceError::Fetch { url, source })
            }
        }
    }

    /// The bytes of the other log's newest checkpoint.
    pub fn checkpoint(&self, runtime: &Handle) -> Result<Vec<u8>, SourceError> {
        self.read("checkpoint", MAX_CHECKPOINT, runtime)?
            .ok_or_else(|| self.lacks("checkpoint"))
    }

    /// The entries of a bundle, as a log of `size` entries has it.
    pub fn bundle(
        &self,
        index: u64,
        size: u64,
        runtime: &Handle,
    ) -> Result<Vec<Vec<u8>>, SourceError> {
        let width = (size - index * WIDTH).min(WIDTH);
        let id = u16::try_from(width)
            .ok()
            .and_then(|width| BundleId::new(index, width).ok())
            .ok_or_else(|| self.lacks("a bundle of that index"))?;
        // If the log has grown since, it may have the full bundle only.
        let full = BundleId::new(index, WIDTH as u16).map(|id| id.to_string());
        let mut bytes = self.read(&id.to_string(), MAX_BUNDLE, runtime)?;
        if let (None, Ok(full)) = (&bytes, full) {
            bytes = self.read(&full, MAX_BUNDLE, runtime)?;
        }
        let bytes = bytes.ok_or_else(|| self.lacks(&id.to_string()))?;
        let entries = decode_entries(&bytes).map_err(|source| SourceError::BadBundle {
            log: self.to_string(),
            id,
            source,
        })?;
        if (entries.len() as u64) < width {
            return Err(self.lacks(&id.to_string()));
        }
        // The bundle of a grown log has entries that the checkpoint does not cover.
        Ok(entries[..width as usize]
            .iter()
            .map(|entry| entry.to_vec())
            .collect())
    }

    /// The error that the other log lacks `what`.
    pub fn lacks(&self, what: &str) -> SourceError {
        SourceError::Lacks {
            log: self.to_string(),
            what: what.to_owned(),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}
