//! Blobs: bytes named by their SHA-256. Modules, traces and holdouts too large for a row are blobs.
//!
//! A blob is durable before the command that names it enters the writer's queue: temporary file,
//! fsync, rename, fsync of the directory. A blob that no row names is an orphan of an upload that
//! was not committed. The store sweeps it once no keeper holds it; the sweep at start-up removes
//! what a crash left.

mod directory;

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    path::Path,
    sync::Arc,
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::id::Digest;
use parking_lot::{Mutex, MutexGuard, RwLock};

pub(crate) use self::directory::write_durably_past;
pub use self::directory::{Directory, sync_directory, write_durably};
use crate::StoreError;

/// Storage for the bytes of blobs. It does not know which blobs are named or kept: [`Blobs`] does,
/// in the same way for every storage.
///
/// # Errors
/// Every method fails with the storage's error; a failed write leaves at most [`Lying::Debris`],
/// which [`BlobStorage::list`] returns.
#[allow(
    clippy::missing_errors_doc,
    reason = "all methods fail alike, as the trait says"
)]
pub trait BlobStorage: Send + Sync + std::fmt::Debug {
    /// Makes bytes durable under their name. Replaces other bytes that are stored there.
    fn put(&self, name: &Digest, bytes: &[u8]) -> Result<(), StoreError>;

    /// The bytes stored under a name, unchecked.
    fn get(&self, name: &Digest) -> Result<Vec<u8>, StoreError>;

    /// Removes a blob durably; succeeds if it is already gone.
    fn remove(&self, name: &Digest) -> Result<(), StoreError>;

    /// Lists the blobs and debris whose names begin with this byte.
    fn list(&self, shelf: u8) -> Result<Vec<Lying>, StoreError>;

    /// Removes a listed item from its shelf; it may reappear after a crash.
    fn discard(&self, shelf: u8, lying: &Lying) -> Result<(), StoreError>;
}

/// An item in the storage of blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lying {
    Blob(Digest),
    /// The leftover of an interrupted write.
    Debris(OsString),
}

/// Blobs, and the record of which must stay.
#[derive(Debug, Clone)]
pub struct Blobs {
    storage: Arc<dyn BlobStorage>,
    /// Names that this process has put: a row that names one may be on its way. Held for reading
    /// while a blob is put, for writing while one file is judged and removed. `None` after the
    /// sweep at start-up.
    fresh: Arc<RwLock<Option<HashSet<Digest>>>>,
    keeping: Arc<Mutex<Keeping>>,
}

/// Blobs that must stay although no row may name them yet, or any more.
#[derive(Debug, Default)]
struct Keeping {
    /// The keepers of each name.
    names: HashMap<Digest, Keepers>,
    /// The number of keepers of everything.
    all: usize,
    /// Blobs that were put and are no longer kept: perhaps no row names them.
    doubtful: Vec<Digest>,
    /// The number of releases of blobs and modules that a row had named.
    releases: u64,
}

#[derive(Debug, Default)]
struct Keepers {
    count: usize,
    /// Whether one of the keepers put the blob.
    have_put: bool,
}

/// Keeps a module or blob until dropped: a row that names it may be on its way.
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
        // If no keeper put it, a row named it when it was kept. Only a blob that was put may have
        // no row.
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

/// Every statement leaves the data behind this lock consistent, so a poisoned lock is safe to use.
fn lock(keeping: &Mutex<Keeping>) -> MutexGuard<'_, Keeping> {
    keeping.lock()
}

impl Blobs {
    /// The blobs under a data directory.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the directory cannot be created.
    pub fn open(data_directory: &Path) -> Result<Self, StoreError> {
        Ok(Self::over(Arc::new(Directory::open(data_directory)?)))
    }

    /// The blobs under a data directory, without changing it.
    #[must_use]
    pub fn at(data_directory: &Path) -> Self {
        Self::over(Arc::new(Directory::at(data_directory)))
    }

    /// The blobs of a storage that no other process changes.
    #[must_use]
    pub fn over(storage: Arc<dyn BlobStorage>) -> Self {
        Self {
            storage,
            fresh: Arc::new(RwLock::new(Some(HashSet::new()))),
            keeping: Arc::default(),
        }
    }

    /// Keeps the module or blob of this name, if it exists.
    #[must_use]
    pub fn keep(&self, name: Digest) -> Kept {
        self.kept(Some(name), false)
    }

    /// Keeps everything: while a copy is made, the blobs that its rows name must stay.
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

    /// The number of releases of blobs and modules that a row had named. A kept name that existed still exists as
    /// long as this number is unchanged.
    #[must_use]
    pub fn releases(&self) -> u64 {
        lock(&self.keeping).releases
    }

    /// Makes bytes durable and keeps them. When the last keeper is dropped, they are removed unless
    /// a row names them.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a file cannot be written.
    pub fn put_kept(&self, bytes: &[u8]) -> Result<Kept, StoreError> {
        // Keep it before it exists, so that no sweep in between takes it.
        let kept = self.kept(Some(Digest::of(bytes)), true);
        self.put(bytes)?;
        Ok(kept)
    }

    /// Removes blobs that were put, are no longer kept, and that no row names. Returns their
    /// number.
    ///
    /// # Errors
    /// If a file cannot be removed, or `is_named` fails; the rest is tried again.
    pub fn sweep_doubtful(
        &self,
        mut is_named: impl FnMut(&Digest) -> Result<bool, StoreError>,
    ) -> Result<usize, StoreError> {
        // While this lock is held, no keeper can take one of them until it is judged and gone.
        let mut keeping = lock(&self.keeping);
        let mut swept = 0;
        // While a copy is made, its rows may name any of them.
        if keeping.all > 0 {
            return Ok(swept);
        }
        while let Some(at) = (keeping.doubtful.iter()).position(|name| !keeping.keeps(name)) {
            let name = keeping.doubtful[at];
            if !is_named(&name)? {
                self.storage.remove(&name)?;
                swept += 1;
            }
            keeping.doubtful.swap_remove(at);
        }
        Ok(swept)
    }

    /// Releases names that rows have and nothing needs any more. Unkept `names` are given to `forget`, which removes
    /// the rows durably and returns the names that are blobs; kept ones stay in `names`.
    ///
    /// # Errors
    /// The error of `forget`, or [`StoreError::Io`] if a file cannot be removed.
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
        // Remove the rows first, durably: a crash in between leaves an orphan for the sweep, and no
        // row without its file.
        let forgotten = forget(&free).inspect_err(|_| names.extend(&free))?;
        for name in forgotten {
            self.storage.remove(&name)?;
        }
        Ok(())
    }

    /// Makes bytes durable; returns their name.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a file cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let name = Digest::of(bytes);
        // Note the name before looking at the storage: the sweep at start-up must not remove the
        // blob between that look and the commit of its row.
        self.note_fresh(name);
        let _not_swept_meanwhile = self.fresh.read();
        self.storage.put(&name, bytes)?;
        Ok(name)
    }

    /// The bytes of a blob, checked against its name.
    ///
    /// # Errors
    /// [`StoreError`] if it is missing, unreadable, or does not match its name.
    pub fn get(&self, name: &Digest) -> Result<Vec<u8>, StoreError> {
        let bytes = self.storage.get(name)?;
        if Digest::of(&bytes) != *name {
            return Err(StoreError::Damaged {
                table: "blobs",
                key: name.to_hex(),
                what: "its content has another digest",
            });
        }
        Ok(bytes)
    }

    /// Removes a blob that no row names any more, or has it swept when its last keeper is dropped;
    /// succeeds if it is already gone.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be removed.
    pub fn remove(&self, name: &Digest) -> Result<(), StoreError> {
        let mut keeping = lock(&self.keeping);
        if keeping.keeps(name) {
            keeping.doubtful.push(*name);
            return Ok(());
        }
        self.storage.remove(name)
    }

    /// From now on the sweep at start-up leaves this blob alone, even if an earlier process put it.
    fn note_fresh(&self, name: Digest) {
        // After the sweep, a put must not wait for other puts.
        let all_swept = self.fresh.read().is_none();
        if all_swept {
            return;
        }
        let mut fresh = self.fresh.write();
        if let Some(fresh) = fresh.as_mut() {
            fresh.insert(name);
        }
    }

    /// Removes, once, blobs that no row names and leftovers of interrupted writes, but not blobs
    /// that this process has put. It ignores file times: files may be older or younger than they
    /// look.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read; the error of `is_named`.
    pub fn sweep(
        &self,
        mut is_named: impl FnMut(&Digest) -> Result<bool, StoreError>,
    ) -> Result<usize, StoreError> {
        let mut swept = 0;
        for shelf in 0..=u8::MAX {
            for lying in self.storage.list(shelf)? {
                // No put can start until this is judged, so debris belongs to no write under way.
                let fresh = self.fresh.write();
                let Some(fresh) = fresh.as_ref() else {
                    return Ok(swept);
                };
                let wanted = match &lying {
                    Lying::Blob(name) => fresh.contains(name) || is_named(name)?,
                    Lying::Debris(_) => false,
                };
                if !wanted {
                    failpoint::pass(Point::BlobSweepMid);
                    self.storage.discard(shelf, &lying)?;
                    swept += 1;
                }
            }
        }
        *self.fresh.write() = None;
        Ok(swept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &tempfile::TempDir, name: &Digest) -> std::path::PathBuf {
        let hex = name.to_hex();
        let shelf = directory.path().join("blobs").join(&hex[..2]);
        shelf.join(&hex[2..])
    }

    #[test]
    fn a_blob_is_what_its_name_says_or_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(directory.path()).expect("writable");
        let name = blobs.put(b"content").expect("writable");
        assert_eq!(blobs.put(b"content").expect("there already"), name);
        assert_eq!(blobs.get(&name).expect("there"), b"content");
        std::fs::write(file(&directory, &name), b"another").expect("writable");
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
        let temporary = file(&directory, &orphan).with_extension("0123456789abcdef.tmp");
        std::fs::write(&temporary, b"half").expect("writable");
        // A client without a reply sends the same bytes after a restart. They exist, and no row
        // names them yet.
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
