//! Files named by the SHA-256 of their content: modules, traces and holdouts too large for a row.
//!
//! A blob is durable before the command that names it enters the writer's queue: temporary file,
//! fsync, rename, fsync of the directory. What no row names is an orphan, of an upload that was not
//! committed: it is swept once nobody keeps it, and what a crash left is swept at start-up.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
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
    keeping: Arc<Mutex<Keeping>>,
}

/// What must stay although no row may name it yet, or any more.
#[derive(Debug, Default)]
struct Keeping {
    /// Who keeps each name.
    names: HashMap<Digest, Keepers>,
    /// How many keep everything.
    all: usize,
    /// What was put and is not kept any more: no row may name it.
    doubtful: Vec<Digest>,
    /// How often something was released that a row had named.
    releases: u64,
}

#[derive(Debug, Default)]
struct Keepers {
    count: usize,
    /// Whether one of them has put it.
    have_put: bool,
}

/// As long as this is there, a module or blob stays: a row that names it may be on its way.
#[derive(Debug)]
pub struct Kept {
    /// `None` keeps every module and blob.
    name: Option<Digest>,
    keeping: Arc<Mutex<Keeping>>,
}

impl Clone for Kept {
    fn clone(&self) -> Self {
        lock(&self.keeping).count(self.name, false);
        Self {
            name: self.name,
            keeping: Arc::clone(&self.keeping),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut keeping = lock(&self.keeping);
        let Some(name) = self.name else {
            keeping.all -= 1;
            return;
        };
        let Some(keepers) = keeping.names.get_mut(&name) else {
            return;
        };
        keepers.count -= 1;
        if keepers.count > 0 {
            return;
        }
        // What nobody put was named by a row when it was kept. Only what was put may have no row.
        if keepers.have_put {
            keeping.doubtful.push(name);
        }
        keeping.names.remove(&name);
    }
}

impl Keeping {
    fn count(&mut self, name: Option<Digest>, has_put: bool) {
        let Some(name) = name else {
            self.all += 1;
            return;
        };
        let keepers = self.names.entry(name).or_default();
        keepers.count += 1;
        keepers.have_put |= has_put;
    }

    fn keeps(&self, name: &Digest) -> bool {
        self.all > 0 || self.names.contains_key(name)
    }
}

/// What is behind this lock is whole between any two statements.
fn lock(keeping: &Mutex<Keeping>) -> MutexGuard<'_, Keeping> {
    keeping.lock().unwrap_or_else(PoisonError::into_inner)
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
            keeping: Arc::default(),
        }
    }

    /// Keeps the module or blob of this name, where it is there.
    #[must_use]
    pub fn keep(&self, name: Digest) -> Kept {
        self.kept(Some(name), false)
    }

    /// Keeps everything: while a copy is made, what its rows name must not go.
    #[must_use]
    pub fn keep_all(&self) -> Kept {
        self.kept(None, false)
    }

    fn kept(&self, name: Option<Digest>, has_put: bool) -> Kept {
        lock(&self.keeping).count(name, has_put);
        Kept {
            name,
            keeping: Arc::clone(&self.keeping),
        }
    }

    /// How often something was released that a row had named. What was there when it was kept is there
    /// as long as this number is the same.
    #[must_use]
    pub fn releases(&self) -> u64 {
        lock(&self.keeping).releases
    }

    /// Makes bytes durable and keeps them. Once nobody does, they go unless a row names them.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn put_kept(&self, bytes: &[u8]) -> Result<Kept, StoreError> {
        // It is kept before it is there, so that no sweep in between takes it.
        let kept = self.kept(Some(Digest::of(bytes)), true);
        self.put(bytes)?;
        Ok(kept)
    }

    /// Removes what was put, is not kept any more, and that no row names. Returns how much that is.
    ///
    /// # Errors
    /// If a file cannot be removed, or `is_named` fails; the rest is tried again.
    pub fn sweep_doubtful(
        &self,
        mut is_named: impl FnMut(&Digest) -> Result<bool, StoreError>,
    ) -> Result<usize, StoreError> {
        // Nobody begins to keep one of them until it is judged and gone.
        let mut keeping = lock(&self.keeping);
        let mut swept = 0;
        // While a copy is made, its rows may name any of them.
        if keeping.all > 0 {
            return Ok(swept);
        }
        while let Some(at) = (keeping.doubtful.iter()).position(|name| !keeping.keeps(name)) {
            let name = keeping.doubtful[at];
            if !is_named(&name)? {
                self.remove_file(&name)?;
                swept += 1;
            }
            keeping.doubtful.swap_remove(at);
        }
        Ok(swept)
    }

    /// Lets go of what rows name and nothing needs any more. Of `names`, those that nobody keeps are given
    /// to `forget`, which removes the rows durably and returns the names of those that are blobs; the others
    /// stay in `names`.
    ///
    /// # Errors
    /// As `forget`, or if a file cannot be removed.
    pub(crate) fn release(
        &self,
        names: &mut Vec<Digest>,
        forget: impl FnOnce(&[Digest]) -> Result<Vec<Digest>, StoreError>,
    ) -> Result<(), StoreError> {
        let mut keeping = lock(&self.keeping);
        let (kept, free): (Vec<_>, Vec<_>) = names.drain(..).partition(|name| keeping.keeps(name));
        *names = kept;
        if free.is_empty() {
            return Ok(());
        }
        keeping.releases += 1;
        // The rows go first, durably: a crash in between leaves an orphan for the sweep, and no row
        // without its file.
        let forgotten = forget(&free).inspect_err(|_| names.extend(&free))?;
        for name in forgotten {
            self.remove_file(&name)?;
        }
        Ok(())
    }

    /// Makes bytes durable; returns their name.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let name = Digest::of(bytes);
        let path = self.path(&name);
        // Noted before the file is looked at: the sweep at start-up must not remove it between that
        // look and the commit of its row.
        self.note_fresh(name);
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
        // The parent may be new, and its name is durable only with the directory above it.
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

    /// Removes a blob that no row names any more, or has it swept once nobody keeps it; one that is
    /// gone already is fine.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(&self, name: &Digest) -> Result<(), StoreError> {
        let mut keeping = lock(&self.keeping);
        if keeping.keeps(name) {
            keeping.doubtful.push(*name);
            return Ok(());
        }
        self.remove_file(name)
    }

    fn remove_file(&self, name: &Digest) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => sync_directory(path.parent().unwrap_or(&self.directory)),
        }
    }

    /// From now on the sweep at start-up leaves a blob alone, also one that an earlier process put.
    fn note_fresh(&self, name: Digest) {
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
    // Two uploads of the same bytes must not write into one temporary file.
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| StoreError::Io {
        operation: "draw random bytes for",
        path: path.to_owned(),
        source: io::Error::other(error),
    })?;
    let temporary = path.with_extension(format!("{}.tmp", hex::encode(random)));
    // The sync comes before the rename: a crash must not leave the name with half of the content.
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
    fn what_nobody_keeps_or_names_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(directory.path()).expect("writable");
        let sweep = |named: &[Digest]| {
            let is_named = |name: &Digest| Ok(named.contains(name));
            blobs.sweep_doubtful(is_named).expect("removable")
        };
        let name = Digest::of(b"content");
        let kept = blobs.put_kept(b"content").expect("writable");
        let also = kept.clone();
        drop(kept);
        assert_eq!(sweep(&[]), 0, "the other keeps it");
        let all = blobs.keep_all();
        drop(also);
        assert_eq!(sweep(&[]), 0, "everything is kept");
        drop(all);
        assert_eq!(sweep(&[name]), 0, "a row names it");
        assert!(blobs.get(&name).is_ok());
        drop(blobs.put_kept(b"content").expect("there already"));
        assert_eq!(sweep(&[]), 1);
        assert!(blobs.get(&name).is_err());
    }

    #[test]
    fn what_is_kept_is_not_released() {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(directory.path()).expect("writable");
        let [one, other] = [b"one  ", b"other"].map(|bytes| blobs.put(bytes).expect("writable"));
        let kept = blobs.keep(one);
        let mut names = vec![one, other];
        let all = |free: &[Digest]| Ok(free.to_vec());
        blobs.release(&mut names, all).expect("removable");
        assert_eq!((names.as_slice(), blobs.releases()), ([one].as_slice(), 1));
        assert!(blobs.get(&one).is_ok() && blobs.get(&other).is_err());
        drop(kept);
        blobs.release(&mut names, all).expect("removable");
        assert!(names.is_empty() && blobs.get(&one).is_err());
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
