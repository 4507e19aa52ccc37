//! Files named by the SHA-256 of their content: modules, traces and holdouts too large for a row.
//!
//! A blob is durable before the command that names it enters the writer's queue: temporary file,
//! fsync, rename, fsync of the directory. What no row names is an orphan, of an upload that never
//! was committed, and is swept at start-up.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::id::Digest;

use crate::StoreError;

/// A directory of blobs.
#[derive(Debug, Clone)]
pub struct Blobs {
    directory: PathBuf,
    /// What this process has put: a row that names it may be on its way. Held for reading while
    /// something is put, for writing while one file is judged and removed. `None` once everything
    /// was swept.
    fresh: Arc<RwLock<Option<HashSet<Digest>>>>,
}

impl Blobs {
    /// The blobs under a data directory.
    ///
    /// # Errors
    /// Where the directory cannot be created.
    pub fn open(data_directory: &Path) -> Result<Self, StoreError> {
        let blobs = Self::at(data_directory);
        let directory = &blobs.directory;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(StoreError::io("create", directory))?;
        // Also where it was there: whoever made it may have died before this.
        sync_directory(data_directory)?;
        Ok(blobs)
    }

    /// The blobs under a data directory, which is left as it is.
    #[must_use]
    pub fn at(data_directory: &Path) -> Self {
        Self {
            directory: data_directory.join("blobs"),
            fresh: Arc::new(RwLock::new(Some(HashSet::new()))),
        }
    }

    /// Makes bytes durable; returns their name.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let name = Digest::of(bytes);
        let path = self.path(&name);
        self.keep(name);
        let _not_swept_meanwhile = self.fresh.read().unwrap_or_else(PoisonError::into_inner);
        let parent = path.parent().unwrap_or(&self.directory);
        // What is there and damaged is put in place again.
        if self.get(&name).is_ok() {
            // Whoever put it may have died, or be about to, before its name is durable.
            sync_directory(parent)?;
            sync_directory(&self.directory)?;
            return Ok(name);
        }
        fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
        let (synced, renamed) = (Point::BlobTmp, Point::BlobRenamedBeforeCommit);
        write_durably_past(&path, bytes, Some(synced), Some(renamed))?;
        sync_directory(&self.directory)?;
        Ok(name)
    }

    /// The bytes of a blob, checked against its name.
    ///
    /// # Errors
    /// Where it is missing, unreadable, or not what its name says.
    pub fn get(&self, name: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.path(name);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        if Digest::of(&bytes) != *name {
            return Err(StoreError::Damaged {
                table: "blobs",
                key: name.to_hex(),
                what: "its content has another digest",
            });
        }
        Ok(bytes)
    }

    /// Removes a blob that no row names any more; one that is gone already is fine.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(&self, name: &Digest) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => sync_directory(path.parent().unwrap_or(&self.directory)),
        }
    }

    /// From now on a sweep leaves a blob alone, also one that an earlier process put.
    fn keep(&self, name: Digest) {
        // Once everything is swept nobody must wait for others' puts.
        let all_swept = self
            .fresh
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none();
        if all_swept {
            return;
        }
        let mut fresh = self.fresh.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(fresh) = fresh.as_mut() {
            fresh.insert(name);
        }
    }

    /// Removes what no row names and what an interrupted write left, once; not what this process
    /// has put. No clock is asked: files may be older or younger than they look.
    ///
    /// # Errors
    /// Where a directory cannot be read, or `is_named` fails.
    pub fn sweep(
        &self,
        mut is_named: impl FnMut(&Digest) -> Result<bool, StoreError>,
    ) -> Result<usize, StoreError> {
        let list = |path: &Path| -> Result<Vec<PathBuf>, StoreError> {
            fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
                .map_err(StoreError::io("list", path))
        };
        let mut swept = 0;
        for parent in list(&self.directory)?
            .into_iter()
            .filter(|path| path.is_dir())
        {
            for path in list(&parent)? {
                // Nothing is put until this file is judged, so a temporary one is nobody's.
                let fresh = self.fresh.write().unwrap_or_else(PoisonError::into_inner);
                let Some(fresh) = fresh.as_ref() else {
                    return Ok(swept);
                };
                let wanted = match digest_of(&parent, &path) {
                    Some(digest) => fresh.contains(&digest) || is_named(&digest)?,
                    None => false,
                };
                if !wanted {
                    failpoint::pass(Point::BlobSweepMid);
                    fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
                    swept += 1;
                }
            }
        }
        *self.fresh.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(swept)
    }

    fn path(&self, name: &Digest) -> PathBuf {
        let hex = name.to_hex();
        self.directory.join(&hex[..2]).join(&hex[2..])
    }
}

fn digest_of(parent: &Path, path: &Path) -> Option<Digest> {
    let mut hex = parent.file_name()?.to_str()?.to_owned();
    hex.push_str(path.file_name()?.to_str()?);
    Digest::from_hex(&hex)
}

/// Puts a whole file in place: temporary file beside it, fsync, rename, fsync of the directory. A
/// crash leaves the old file or the new one.
///
/// # Errors
/// Where any step fails; the old file is then still there.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_durably_past(path, bytes, None, None)
}

/// As [`write_durably`]; names the moments before and after the rename.
pub(crate) fn write_durably_past(
    path: &Path,
    bytes: &[u8],
    synced: Option<Point>,
    renamed: Option<Point>,
) -> Result<(), StoreError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| StoreError::Io {
        operation: "draw random bytes for",
        path: path.to_owned(),
        source: io::Error::other(error),
    })?;
    let temporary = path.with_extension(format!("{}.tmp", hex::encode(random)));
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(StoreError::io("write", &temporary))
        .inspect(|()| synced.into_iter().for_each(failpoint::pass))
        .and_then(|()| fs::rename(&temporary, path).map_err(StoreError::io("rename", path)));
    if written.is_err() {
        // Best effort: what stays is swept at the next start.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    renamed.into_iter().for_each(failpoint::pass);
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Where the directory cannot be opened or synced.
pub fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreError::io("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_what_its_name_says_or_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(directory.path()).expect("writable");
        let name = blobs.put(b"content").expect("writable");
        assert_eq!(blobs.put(b"content").expect("there already"), name);
        assert_eq!(blobs.get(&name).expect("there"), b"content");
        fs::write(blobs.path(&name), b"another").expect("writable");
        assert!(matches!(blobs.get(&name), Err(StoreError::Damaged { .. })));
        assert!(matches!(
            blobs.get(&Digest([0; 32])),
            Err(StoreError::Io { .. })
        ));
    }

    #[test]
    fn sweeping_leaves_what_is_named_or_put_since_the_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let before = Blobs::open(directory.path()).expect("writable");
        let [named, orphan, again] =
            [b"named", b"lost ", b"again"].map(|bytes| before.put(bytes).expect("writable"));
        let temporary = before.path(&orphan).with_extension("0123456789abcdef.tmp");
        fs::write(&temporary, b"half").expect("writable");
        // A client that was not answered sends the same bytes after a restart. They are there, and
        // no row names them yet.
        let blobs = Blobs::open(directory.path()).expect("writable");
        let new = blobs.put(b"new").expect("writable");
        assert_eq!(blobs.put(b"again").expect("there"), again);
        let swept = blobs.sweep(|name| Ok(*name == named));
        assert_eq!(swept.expect("readable"), 2);
        for kept in [named, again, new] {
            assert!(blobs.get(&kept).is_ok());
        }
        assert!(blobs.get(&orphan).is_err() && !temporary.exists());
    }
}
