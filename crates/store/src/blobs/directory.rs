//! Blobs as files of a directory: `ab/cdef…` for the digest `abcdef…`.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::id::Digest;

use super::{BlobStorage, Lying};
use crate::StoreError;

/// A directory of blobs.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The blobs under a data directory; creates the directory.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be created.
    pub fn open(data_directory: &Path) -> Result<Self, StoreError> {
        let directory = Self::at(data_directory);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory.path)
            .map_err(StoreError::io("create", &directory.path))?;
        // Sync even if the directory existed: the process that created it may have died before
        // this.
        sync_directory(data_directory)?;
        Ok(directory)
    }

    /// The blobs under a data directory, without changing it.
    #[must_use]
    pub fn at(data_directory: &Path) -> Self {
        Self {
            path: data_directory.join("blobs"),
        }
    }

    fn file(&self, name: &Digest) -> PathBuf {
        let hex = name.to_hex();
        self.path.join(&hex[..2]).join(&hex[2..])
    }

    fn remove_file(path: &Path) -> Result<(), StoreError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}

impl BlobStorage for Directory {
    fn put(&self, name: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.file(name);
        let parent = path.parent().unwrap_or(&self.path);
        // A damaged file is written again.
        if fs::read(&path).is_ok_and(|found| found == bytes) {
            // The process that put it may have died, or be about to die, before its name is
            // durable.
            sync_directory(parent)?;
            return sync_directory(&self.path);
        }
        fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
        let (synced, renamed) = (Point::BlobTmp, Point::BlobRenamedBeforeCommit);
        write_durably_past(&path, bytes, Some(synced), Some(renamed))?;
        // The parent may be new, and its name is durable only with the directory above it.
        sync_directory(&self.path)
    }

    fn get(&self, name: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.file(name);
        fs::read(&path).map_err(StoreError::io("read", &path))
    }

    fn remove(&self, name: &Digest) -> Result<(), StoreError> {
        let path = self.file(name);
        Self::remove_file(&path)?;
        sync_directory(path.parent().unwrap_or(&self.path))
    }

    fn list(&self, shelf: u8) -> Result<Vec<Lying>, StoreError> {
        let shelf = hex::encode([shelf]);
        let path = self.path.join(&shelf);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("list", path)(error)),
        };
        let lying = entries.map(|entry| {
            let name = entry?.file_name();
            Ok(
                match Digest::from_hex(&format!("{shelf}{}", name.display())) {
                    Some(digest) => Lying::Blob(digest),
                    None => Lying::Debris(name),
                },
            )
        });
        lying
            .collect::<io::Result<_>>()
            .map_err(StoreError::io("list", path))
    }

    fn discard(&self, shelf: u8, lying: &Lying) -> Result<(), StoreError> {
        Self::remove_file(&match lying {
            Lying::Blob(name) => self.file(name),
            Lying::Debris(name) => self.path.join(hex::encode([shelf])).join(name),
        })
    }
}

/// Puts a whole file in place: temporary file beside it, fsync, rename, fsync of the directory. A
/// crash leaves the old file or the new one.
///
/// # Errors
/// [`StoreError::Io`] if a step fails; if a step before the rename fails, the old file is still in
/// place.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_durably_past(path, bytes, None, None)
}

/// As [`write_durably`]; passes the failpoints named for the moments before and after the rename.
pub(crate) fn write_durably_past(
    path: &Path,
    bytes: &[u8],
    synced: Option<Point>,
    renamed: Option<Point>,
) -> Result<(), StoreError> {
    // Two uploads of the same bytes must not write into one temporary file.
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| StoreError::Io {
        operation: "draw random bytes for",
        path: path.to_owned(),
        source: io::Error::other(error),
    })?;
    let temporary = path.with_extension(format!("{}.tmp", hex::encode(random)));
    // Sync before the rename: a crash must not leave the name with half of the content.
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(StoreError::io("write", &temporary))
        .inspect(|()| synced.into_iter().for_each(failpoint::pass))
        .and_then(|()| fs::rename(&temporary, path).map_err(StoreError::io("rename", path)));
    if written.is_err() {
        // Best effort: the next start sweeps a leftover.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    renamed.into_iter().for_each(failpoint::pass);
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// [`StoreError::Io`] if the directory cannot be opened or synced.
pub fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreError::io("sync", path))
}
