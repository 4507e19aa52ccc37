//! Restoring a backup: read it, check it, and put it into an empty directory.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use evidenceos_failpoint::{self as failpoint, Point};

use super::{
    FORMAT, FileRecord, MANIFEST, Manifest, Progress, Report, Stage, hash, is_not_ours, prepare,
    sync_parent, walk,
};
use crate::{StoreError, blobs::sync_directory, facts::Restored, lock::DirectoryLock, sqlite};

/// The database's name during the restore: a start does not take it.
const HALF_RESTORED: &str = "evidenceos.db.restoring";

/// Reads the manifest of a backup.
///
/// # Errors
/// [`StoreError::Refused`] if there is none, as in an unfinished backup, or it is not ours;
/// [`StoreError::Io`] if it cannot be read.
pub fn manifest(backup: &Path) -> Result<Manifest, StoreError> {
    let path = backup.join(MANIFEST);
    if !path.exists() {
        return Err(StoreError::refused(
            format!(
                "{} is missing: this is not a backup, or one that was not finished",
                path.display()
            ),
            "take another",
        ));
    }
    let mut text = Vec::new();
    open_plain(backup, MANIFEST)?
        .read_to_end(&mut text)
        .map_err(StoreError::io("read", &path))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| {
        StoreError::refused(
            format!("{} is damaged ({error})", path.display()),
            "take another backup",
        )
    })?;
    if manifest.format != FORMAT {
        return Err(StoreError::refused(
            format!(
                "{} is of format {:?}, this program knows {FORMAT:?}",
                path.display(),
                manifest.format
            ),
            "use the release that made it, or a newer one",
        ));
    }
    Ok(manifest)
}

/// Checks every file of a backup against its manifest.
///
/// # Errors
/// [`StoreError::Refused`] or [`StoreError::Io`] with the first file that is missing, changed, or not a plain file
/// below the backup; the error of `report` if it stops the check.
pub fn check<E: From<StoreError>>(
    backup: &Path,
    report: &mut Report<'_, E>,
) -> Result<Manifest, E> {
    let manifest = manifest(backup)?;
    must_have_the_database(backup, &manifest)?;
    must_list_a_backup(backup, &manifest)?;
    read_all(backup, &manifest, report, &mut |_| Ok(Box::new(io::sink())))?;
    Ok(manifest)
}

fn must_have_the_database(backup: &Path, manifest: &Manifest) -> Result<(), StoreError> {
    let has = |file: &FileRecord| file.path == sqlite::DATABASE;
    if manifest.files.iter().any(has) {
        return Ok(());
    }
    Err(StoreError::refused(
        format!(
            "{} does not list the database",
            backup.join(MANIFEST).display()
        ),
        "take another backup",
    ))
}

/// Refuses a manifest with a path that a backup never has: secrets, policies, accounts.
fn must_list_a_backup(backup: &Path, manifest: &Manifest) -> Result<(), StoreError> {
    let mut seen = BTreeSet::new();
    let wrong = manifest
        .files
        .iter()
        .map(|file| file.path.as_str())
        .find(|path| !is_of_a_backup(path) || !seen.insert(*path));
    match wrong {
        None => Ok(()),
        Some(path) => Err(StoreError::refused(
            format!(
                "{} lists {path:?} twice, or a backup has no such file; nothing was restored",
                backup.join(MANIFEST).display()
            ),
            "Take another backup; bring keys/, secrets/ and policies back by hand",
        )),
    }
}

/// Whether a backup can have a file with this path: the database, blobs, the log's files, and paths
/// that earlier releases listed if they existed.
fn is_of_a_backup(path: &str) -> bool {
    let is_hex = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_name = |name: &&str| {
        !name.starts_with('.')
            && (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        [name] => *name == sqlite::DATABASE || is_not_ours(name.as_ref()),
        ["blobs", first, rest] => {
            first.len() == 2 && rest.len() == 62 && is_hex(&[*first, *rest].concat())
        }
        ["log", names @ ..] => (1..=12).contains(&names.len()) && names.iter().all(is_name),
        _ => false,
    }
}

/// Opens a plain file of a backup, refusing links on the path below the backup.
fn open_plain(backup: &Path, relative: &str) -> Result<File, StoreError> {
    use rustix::{
        fs::{Mode, OFlags},
        io::Errno,
    };
    let path = backup.join(relative);
    let must_be = |what: &str| {
        StoreError::refused(
            format!(
                "{} is {what}, and a backup has plain files only; nothing was restored",
                path.display()
            ),
            "Copy the backup with `cp -rL`, if you know where it leads",
        )
    };
    let failed = |errno: Errno| match errno {
        Errno::LOOP | Errno::NOTDIR => must_be("a symbolic link, or below one"),
        errno => StoreError::io("open", &path)(errno.into()),
    };
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: OwnedFd = rustix::fs::open(backup, directory, Mode::empty()).map_err(failed)?;
    let (above, name) = relative.rsplit_once('/').unwrap_or(("", relative));
    // Open each part below the previous one, so that no link can take its place in between.
    for part in above.split('/').filter(|part| !part.is_empty()) {
        let flags = directory | OFlags::NOFOLLOW;
        at = rustix::fs::openat(&at, part, flags, Mode::empty()).map_err(failed)?;
    }
    // Without NONBLOCK a pipe in the place of a file would block us forever.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(&at, name, flags, Mode::empty()).map_err(failed)?);
    let metadata = file.metadata().map_err(StoreError::io("inspect", &path))?;
    if !metadata.is_file() {
        return Err(must_be("not a regular file"));
    }
    if metadata.nlink() > 1 {
        return Err(must_be("a hard link: another name leads to it too"));
    }
    Ok(file)
}

type Target = Box<dyn io::Write>;

fn read_all<E: From<StoreError>>(
    backup: &Path,
    manifest: &Manifest,
    report: &mut Report<'_, E>,
    target: &mut dyn FnMut(&FileRecord) -> Result<Target, StoreError>,
) -> Result<(), E> {
    let total = manifest.files.iter().map(|file| file.bytes).sum();
    let mut done = 0;
    let ours = |record: &&FileRecord| !is_not_ours(record.path.as_ref());
    for record in manifest.files.iter().filter(ours) {
        let path = backup.join(&record.path);
        let mut file = open_plain(backup, &record.path)?;
        let mut to = target(record)?;
        let (bytes, sha256) = hash(&mut file, &path, &mut to, &mut |read| {
            done += read;
            report(Progress {
                stage: Stage::Files,
                done,
                total,
            })
        })?;
        to.flush().map_err(StoreError::io("sync", &path))?;
        // The file may have changed since `check` read it.
        if bytes != record.bytes || sha256 != record.sha256 {
            return Err(StoreError::refused(
                format!(
                    "{} does not match {MANIFEST}: the backup was damaged or changed after it was made",
                    path.display()
                ),
                "take another",
            )
            .into());
        }
    }
    Ok(())
}

/// A file that is synced when it is flushed.
struct Durable(File);

impl io::Write for Durable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// Marks a database from a backup of an older release, which does not state that it is a copy.
fn mark_as_restored(database: &Path, manifest: &Manifest) -> Result<(), StoreError> {
    let restored = Restored {
        made_unix_ms: manifest.created_unix_ms,
        entries: manifest.entries,
    };
    sqlite::mark_restored(database, restored)?;
    // `mark_restored` leaves the sync to its caller.
    File::open(database)
        .and_then(|file| file.sync_all())
        .map_err(StoreError::io("sync", database))?;
    // These files are named after the half-restored database: after the rename nothing would find
    // them.
    for path in sqlite::beside(database) {
        if path.exists() {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Whether an operator put a backup into place as it is, without `restore`: then its manifest is in
/// the directory. For backups of earlier releases there is no other sign.
///
/// # Errors
/// As [`manifest`], if there is a manifest.
pub fn put_into_place(data_directory: &Path) -> Result<Option<Restored>, StoreError> {
    if !data_directory.join(MANIFEST).exists() {
        return Ok(None);
    }
    // A damaged manifest is a sign too.
    let known = manifest(data_directory).ok();
    Ok(Some(Restored {
        made_unix_ms: known.as_ref().map_or(0, |found| found.created_unix_ms),
        entries: known.as_ref().map_or(0, |found| found.entries),
    }))
}

/// Removes the manifest of a backup that is served from now on, after its database notes that it is
/// one: the directory no longer matches the list.
///
/// # Errors
/// [`StoreError::Io`] if it cannot be removed.
pub fn no_backup_any_more(data_directory: &Path) -> Result<(), StoreError> {
    let path = data_directory.join(MANIFEST);
    fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
    sync_directory(data_directory)
}

/// Restores a backup into a directory that is empty or does not exist. Every file is checked before
/// the first is written, and again while it is copied; the database gets its name last, so a start
/// does not take a half-restored directory.
///
/// # Errors
/// [`StoreError::Refused`] if the backup is not whole, or the directory is not empty;
/// [`StoreError::Io`] if a file cannot be read or written; the error of `report` if it stops the
/// restore.
pub fn restore<E: From<StoreError>>(
    backup: &Path,
    data_directory: &Path,
    report: &mut Report<'_, E>,
) -> Result<Manifest, E> {
    prepare(data_directory)?;
    // A daemon started meanwhile must not create a database of its own here.
    let lock = DirectoryLock::take(data_directory)?;
    let manifest = check(backup, report)?;
    read_all(backup, &manifest, report, &mut |record| {
        let name = match record.path.as_str() {
            sqlite::DATABASE => HALF_RESTORED,
            path => path,
        };
        let path = data_directory.join(name);
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(StoreError::io("create", parent))?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        Ok(Box::new(Durable(file)))
    })?;
    mark_as_restored(&data_directory.join(HALF_RESTORED), &manifest)?;
    // The walk syncs every directory: all names are durable before the database gets its own.
    let mut files = Vec::new();
    walk(data_directory, Path::new(""), &mut files)?;
    let database = sqlite::path_in(data_directory);
    failpoint::pass(Point::RestoreBeforeSwap);
    fs::rename(data_directory.join(HALF_RESTORED), &database)
        .map_err(StoreError::io("rename", &database))?;
    failpoint::pass(Point::RestoreAfterSwap);
    sync_directory(data_directory)?;
    sync_parent(data_directory)?;
    drop(lock);
    Ok(manifest)
}
