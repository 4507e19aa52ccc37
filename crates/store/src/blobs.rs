//! Bytes named by their SHA-256: modules, traces and holdouts too large for a row.
//!
//! A blob is durable before the command that names it enters the writer's queue: temporary file,
//! fsync, rename, fsync of the directory. What no row names is an orphan, of an upload that was not
//! committed: it is swept once nobody keeps it, and what a crash left is swept at start-up.

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

/// Where the bytes of blobs lie. It knows nothing of which blobs are named or kept: that is
/// [`Blobs`]' business, and the same wherever they lie.
///
/// # Errors
/// Every method fails with what the storage says; nothing is half done then but what
/// [`BlobStorage::list`] gives as [`Lying::Debris`].
#[allow(
    clippy::missing_errors_doc,
    reason = "all methods fail alike, as the trait says"
)]
pub trait BlobStorage: Send + Sync + std::fmt::Debug {
    /// Makes bytes durable under their name. What lies there already and is another is replaced.
    fn put(&self, name: &Digest, bytes: &[u8]) -> Result<(), StoreError>;

    /// The bytes under a name, as they lie.
    fn get(&self, name: &Digest) -> Result<Vec<u8>, StoreError>;

    /// Removes a blob durably; one that is gone already is fine.
    fn remove(&self, name: &Digest) -> Result<(), StoreError>;

    /// What lies there under names that begin with a byte.
    fn list(&self, shelf: u8) -> Result<Vec<Lying>, StoreError>;

    /// Removes something that was listed on a shelf; it may come back after a crash.
    fn discard(&self, shelf: u8, lying: &Lying) -> Result<(), StoreError>;
}

/// Something that lies where blobs do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lying {
    Blob(Digest),
    /// What an interrupted write left.
    Debris(OsString),
}

/// Blobs, and which of them must stay.
#[derive(Debug, Clone)]
pub struct Blobs {
    storage: Arc<dyn BlobStorage>,
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
    keeping.lock()
}

impl Blobs {
    /// The blobs under a data directory.
    ///
    /// # Errors
    /// Where the directory cannot be created.
    pub fn open(data_directory: &Path) -> Result<Self, StoreError> {
        Ok(Self::over(Arc::new(Directory::open(data_directory)?)))
    }

    /// The blobs under a data directory, which is left as it is.
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
                self.storage.remove(&name)?;
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
            self.storage.remove(&name)?;
        }
        Ok(())
    }

    /// Makes bytes durable; returns their name.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let name = Digest::of(bytes);
        // Noted before the storage is looked at: the sweep at start-up must not remove it between
        // that look and the commit of its row.
        self.note_fresh(name);
        let _not_swept_meanwhile = self.fresh.read();
        self.storage.put(&name, bytes)?;
        Ok(name)
    }

    /// The bytes of a blob, checked against its name.
    ///
    /// # Errors
    /// Where it is missing, unreadable, or not what its name says.
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
        self.storage.remove(name)
    }

    /// From now on the sweep at start-up leaves a blob alone, also one that an earlier process put.
    fn note_fresh(&self, name: Digest) {
        // Once everything is swept nobody must wait for others' puts.
        let all_swept = self.fresh.read().is_none();
        if all_swept {
            return;
        }
        let mut fresh = self.fresh.write();
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
        let mut swept = 0;
        for shelf in 0..=u8::MAX {
            for lying in self.storage.list(shelf)? {
                // Nothing is put until this is judged, so that debris is of no write under way.
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
