//! A log's entries on disk: written by `log entries`, read by `verify --log`.
//!
//! Two forms. A directory is laid out as C2SP tlog-tiles has it (`checkpoint`, `tile/entries/NNN[.p/W]`), which is
//! also what a daemon keeps in its data directory's `log/`. A file has one entry a line: entries are canonical JSON,
//! which contains no line feed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use evidenceos_kernel::id::ClaimId;
use evidenceos_tlog::{
    BundleId,
    tile::{TILE_WIDTH, decode_entries, encode_entries},
};

use crate::error::CliError;

/// A log as read from disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLog {
    /// The entries, from 0.
    pub entries: Vec<Vec<u8>>,
    /// The signed note beside them; a file of lines has none.
    pub checkpoint: Option<String>,
}

impl StoredLog {
    /// Reads a directory or a file.
    ///
    /// # Errors
    /// If a file cannot be read or is not a bundle. This does not check the entries; the checkpoint
    /// does.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        if path.is_dir() {
            return Self::read_tiles(path);
        }
        let bytes = fs::read(path).map_err(CliError::file(path))?;
        // The line feed at the end leaves an empty line.
        let lines = bytes
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty());
        Ok(Self {
            entries: lines.map(<[u8]>::to_vec).collect(),
            checkpoint: None,
        })
    }

    fn read_tiles(dir: &Path) -> Result<Self, CliError> {
        let path = dir.join("checkpoint");
        let checkpoint = fs::read_to_string(&path).map_err(CliError::file(&path))?;
        let size = size_of(&checkpoint)
            .ok_or_else(|| CliError::Failed(format!("{} is not a checkpoint", path.display())))?;
        let mut entries = Vec::new();
        while (entries.len() as u64) < size {
            let index = entries.len() as u64 / u64::from(TILE_WIDTH);
            // The checkpoint may end within a bundle, and does not cover the rest of it.
            let wanted = (size - entries.len() as u64).min(u64::from(TILE_WIDTH));
            entries.extend(read_bundle(dir, index, wanted as u16)?);
        }
        Ok(Self {
            entries,
            checkpoint: Some(checkpoint),
        })
    }

    /// Writes a mirror for [`StoredLog::read`] and any tlog-tiles reader of bundles. The checkpoint comes last, so
    /// that an interrupted mirror has all that its checkpoint covers.
    pub fn write_tiles(&self, dir: &Path) -> Result<(), CliError> {
        for (index, bundle) in self.entries.chunks(usize::from(TILE_WIDTH)).enumerate() {
            let id = bundle_id(index as u64, bundle.len() as u16)?;
            let bytes =
                encode_entries(bundle).map_err(|error| CliError::Protocol(error.to_string()))?;
            let path = dir.join(id.to_string());
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(CliError::file(parent))?;
            }
            fs::write(&path, bytes).map_err(CliError::file(&path))?;
        }
        let path = dir.join("checkpoint");
        let checkpoint = self.checkpoint.as_deref().unwrap_or_default();
        fs::write(&path, checkpoint).map_err(CliError::file(&path))
    }
}

/// The tree size on the second line of a checkpoint, unverified: it only tells how much to read.
pub fn size_of(checkpoint: &str) -> Option<u64> {
    checkpoint.lines().nth(1)?.parse().ok()
}

fn bundle_id(index: u64, width: u16) -> Result<BundleId, CliError> {
    BundleId::new(index, width).map_err(|error| CliError::Protocol(error.to_string()))
}

/// A bundle of that width, or a fuller one cut to it: a server may delete partial bundles once they
/// are full.
fn read_bundle(dir: &Path, index: u64, width: u16) -> Result<Vec<Vec<u8>>, CliError> {
    let exact = dir.join(bundle_id(index, width)?.to_string());
    let path = if exact.exists() {
        exact
    } else {
        dir.join(bundle_id(index, TILE_WIDTH)?.to_string())
    };
    let bytes = fs::read(&path).map_err(CliError::file(&path))?;
    let malformed = |what: String| CliError::Failed(format!("{}: {what}", path.display()));
    let entries = decode_entries(&bytes).map_err(|error| malformed(error.to_string()))?;
    if entries.len() < usize::from(width) {
        return Err(malformed(format!(
            "{} entries, {width} are needed",
            entries.len()
        )));
    }
    Ok(entries[..usize::from(width)]
        .iter()
        .map(|entry| entry.to_vec())
        .collect())
}

/// The file of a claim's trace in a directory of traces.
pub fn trace_path(dir: &Path, claim_id_hex: &str) -> PathBuf {
    dir.join(format!("{claim_id_hex}.trace"))
}

/// The claims whose traces are in a directory.
pub fn traced_claims(dir: &Path) -> Result<Vec<ClaimId>, CliError> {
    let mut claims = Vec::new();
    for entry in fs::read_dir(dir).map_err(CliError::file(dir))? {
        let name = entry.map_err(CliError::file(dir))?.file_name();
        // A directory of traces may hold other files too.
        let claim = name
            .to_str()
            .and_then(|name| name.strip_suffix(".trace"))
            .and_then(ClaimId::from_hex);
        claims.extend(claim);
    }
    // The order of a directory listing differs between machines.
    claims.sort_unstable();
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_read_as_it_was_written() {
        for count in [1usize, 255, 256, 257, 600] {
            let dir = tempfile::tempdir().expect("a directory");
            let log = StoredLog {
                entries: (0..count)
                    .map(|i| format!("{{\"n\":{i}}}").into_bytes())
                    .collect(),
                checkpoint: Some(format!("example.org/log\n{count}\nroot\n")),
            };
            log.write_tiles(dir.path()).expect("written");
            assert_eq!(StoredLog::read(dir.path()).expect("read"), log);
            let file = dir.path().join("entries.jsonl");
            fs::write(&file, log.entries.join(&b'\n')).expect("written");
            assert_eq!(StoredLog::read(&file).expect("read").entries, log.entries);
        }
    }
}
