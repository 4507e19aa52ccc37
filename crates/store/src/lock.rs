//! The lock that admits one process per data directory.
//!
//! `flock` on a file of its own, released by the operating system when the process dies. Never on
//! the database: closing any other descriptor of that file would drop SQLite's own locks.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use crate::StoreError;

/// Holds the lock of the directory until it is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
}

impl Drop for DirectoryLock {
    /// Closing the file is not enough: a child that another thread forks at this moment has a copy
    /// of the descriptor until it executes its program, and would keep the lock that long.
    /// Unlocking ends it for every copy.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "cannot release the data directory's lock; it ends with the process");
        }
    }
}

impl DirectoryLock {
    /// Takes the lock of the directory, which must exist.
    ///
    /// # Errors
    /// [`StoreError::Locked`] names the process that holds it: stop that process, or use another
    /// directory. [`StoreError::Io`] if the lock's file cannot be opened or written.
    pub fn take(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("LOCK");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            // The file has the holder's number until this process holds the lock.
            .truncate(false)
            .open(&path)
            .map_err(StoreError::io("open", denying(directory, &path)))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder's number is a courtesy; the message is true without it.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(StoreError::locked(
                    format!("{} is in use by {holder}", directory.display()),
                    "stop that daemon, or give this one another --data-dir",
                ));
            }
            Err(TryLockError::Error(source)) => {
                return Err(StoreError::Io {
                    operation: "lock",
                    path,
                    source,
                });
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(StoreError::io("write", &path))?;
        Ok(Self { file })
    }
}

/// The path that the operator must give to this process: the lock's file if only that belongs to another user, or
/// else the whole directory, since the lock is only the first of its files.
fn denying<'a>(directory: &'a Path, lock: &'a Path) -> &'a Path {
    let us = rustix::process::geteuid().as_raw();
    let is_ours = fs::metadata(directory).is_ok_and(|directory| directory.uid() == us);
    if is_ours && lock.exists() {
        lock
    } else {
        directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_holds_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = DirectoryLock::take(directory.path()).expect("free");
        let refused = DirectoryLock::take(directory.path())
            .expect_err("held")
            .to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        drop(held);
        DirectoryLock::take(directory.path()).expect("free again");
    }

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = DirectoryLock::take(directory.path()).expect("free");
        // The copy stands for a child's between fork and exec.
        let _copy = held.file.try_clone().expect("a descriptor");
        drop(held);
        DirectoryLock::take(directory.path()).expect("free again");
    }
    #[test]
    fn a_directory_without_a_lock_is_what_denies() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = directory.path().join("LOCK");
        assert_eq!(denying(directory.path(), &lock), directory.path());
        drop(DirectoryLock::take(directory.path()).expect("free"));
        assert_eq!(denying(directory.path(), &lock), lock);
    }
}
