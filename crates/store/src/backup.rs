//! Backups: a copy of a data directory that is checked while it is made, and the restore.
//!
//! The database is copied through the writer (see [`crate::Copier`]). Everything else is made to
//! match the copy, not the present: the blobs that its rows name, each checked against its name,
//! and the log's files, made anew from its entries, all of which are read on the way and must lead
//! to the signed root. `backup.json` comes last and has the digest of each file: a directory
//! without it is not a backup.
//!
//! Secrets stay behind: signing keys, the daemon's own secrets, certificates. They change rarely;
//! the operator backs them up separately, with fewer readers. No process may have the database of a
//! backup open in SQLite while its file is read here.

mod restore;

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::id::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::restore::{check, manifest, no_backup_any_more, put_into_place, restore};
use crate::{
    StoreError,
    blobs::{self, Blobs, sync_directory},
    facts::Restored,
    guard,
    lock::DirectoryLock,
    log::Integrator,
    sqlite::{self, AtRest, SqliteRows},
    state::StateRow,
    tables::{Table, Tables as _},
};

/// The manifest's file name.
pub const MANIFEST: &str = "backup.json";
/// The format of the manifest.
const FORMAT: &str = "evidenceos.backup.v1";
/// Paths that are never in a backup.
const EXCLUDED: [&str; 6] = [
    "LOCK",
    "control.sock",
    "keys",
    "secrets",
    "certificates",
    "accounts.json",
];
/// Entries that a new file system may have and still count as empty.
const NOT_OURS: [&str; 3] = ["lost+found", ".gitkeep", ".gitignore"];
/// Names of blobs read at once.
const PAGE: usize = 1_024;
/// Bytes hashed or copied at once.
const CHUNK: usize = 1 << 20;

/// The content of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `evidenceos.backup.v1` in this release.
    pub format: String,
    /// Name and version of the program that made the backup.
    pub software: String,
    /// Time of the backup, in Unix milliseconds.
    pub created_unix_ms: u64,
    /// Entries of the log.
    pub entries: u64,
    /// The newest signed head; absent before the first.
    pub head: Option<BackedUpHead>,
    /// Number of the last journal row.
    pub journal_seq: u64,
    /// Every file but this one, sorted by path.
    pub files: Vec<FileRecord>,
    /// Paths left out on purpose.
    pub excluded: Vec<String>,
}

/// The head of a backup's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUpHead {
    /// Entries that it covers.
    pub size: u64,
    /// Root hash, in hex.
    pub root: String,
    /// SHA-256 of the public key, in hex.
    pub key_id: String,
    /// The signed note over the same tree, in C2SP's format.
    pub checkpoint: String,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Relative path, with `/` between its parts.
    pub path: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// The SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// The progress of a backup or a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The part under way.
    pub stage: Stage,
    /// The amount done, in the unit of the stage.
    pub done: u64,
    /// The whole amount, as far as it is known.
    pub total: u64,
}

/// The parts of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The database, in pages.
    Database,
    /// The blobs, counted in files.
    Blobs,
    /// The log's files, in entries.
    Log,
    /// The digests of all files, counted in bytes.
    Digests,
    /// Restoring files, counted in bytes.
    Files,
}

/// A callback for the progress of a backup; if it returns an error, the backup stops.
pub type Report<'r, E = StoreError> = dyn FnMut(Progress) -> Result<(), E> + 'r;

/// Creates the directory that a backup goes into, or takes an empty one.
///
/// # Errors
/// [`StoreError::Refused`] if it is not empty, or others can write it; [`StoreError::Io`] if it
/// cannot be created or closed to others.
pub fn prepare(destination: &Path) -> Result<(), StoreError> {
    match fs::read_dir(destination) {
        Ok(entries) => {
            must_be_empty(destination, entries)?;
            guard::close(destination)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_private(destination)?;
            // A new directory's name is durable only with the directory above it.
            sync_parent(destination)
        }
        Err(error) => Err(StoreError::io("list", destination)(error)),
    }
}

fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn must_be_empty(directory: &Path, entries: fs::ReadDir) -> Result<(), StoreError> {
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", directory))?;
        let name = entry.file_name();
        // A container's mount point for keys is not data.
        if name == "keys" && is_empty_directory(&entry.path()) {
            continue;
        }
        if !is_not_ours(&name) {
            return Err(StoreError::refused(
                format!(
                    "{} is not empty ({} is in it)",
                    directory.display(),
                    name.display()
                ),
                "name an empty directory, or one that does not exist yet",
            ));
        }
    }
    Ok(())
}

fn make_private(directory: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(StoreError::io("create", directory))
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    match path.parent().filter(|up| !up.as_os_str().is_empty()) {
        Some(parent) => sync_directory(parent),
        None => sync_directory(Path::new(".")),
    }
}

/// Copies the database of a data directory that no daemon serves. The caller holds its lock.
///
/// # Errors
/// [`StoreError`] if the database cannot be read or the copy cannot be written; the error of
/// `report` if it stops the copy.
pub fn copy_at_rest<E: From<StoreError>>(
    data_directory: &Path,
    _held: &DirectoryLock,
    destination: &Path,
    report: &mut Report<'_, E>,
) -> Result<(), E> {
    let database = AtRest::open(data_directory)?;
    let mut broken_off = None;
    let copied = database.copy(destination, &mut |pages| match report(pages.progress()) {
        Ok(()) => std::ops::ControlFlow::Continue(()),
        Err(error) => {
            broken_off = Some(error);
            std::ops::ControlFlow::Break(())
        }
    })?;
    match (copied, broken_off) {
        (std::ops::ControlFlow::Break(()), Some(error)) => Err(error),
        _ => Ok(()),
    }
}

impl crate::Pages {
    /// The copy's progress as progress of a backup.
    #[must_use]
    pub fn progress(self) -> Progress {
        Progress {
            stage: Stage::Database,
            done: self.copied,
            total: self.total,
        }
    }
}

/// Completes a backup whose database was copied into `destination`: blobs, log, digests, manifest. When this returns,
/// all of it is durable.
///
/// # Errors
/// [`StoreError::Refused`], [`StoreError::Damaged`] or [`StoreError::Io`] if a file that the copy names is missing or
/// damaged, or a file cannot be written; the error of `report` if it stops the backup. The directory then has no
/// manifest and is not a backup: start again in another directory.
pub fn complete<E: From<StoreError>>(
    data_directory: &Path,
    destination: &Path,
    software: &str,
    now_unix_ms: u64,
    report: &mut Report<'_, E>,
) -> Result<Manifest, E> {
    // SQLite has not synced the copy; its pages reach the disk while the rest is copied.
    let state = copied_state(destination)?;
    let restored = Restored {
        made_unix_ms: now_unix_ms,
        entries: state.counters.next_index,
    };
    // Mark the copy itself: however it is put into place, the daemon that serves it knows that it
    // is a copy.
    sqlite::mark_restored(&sqlite::path_in(destination), restored)?;
    copy_blobs(data_directory, destination, report)?;
    make_log(destination, &state, report)?;
    // All our connections to the copy are closed, so its file can be read like any other.
    remove_shared_memory(destination)?;
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        software: software.to_owned(),
        created_unix_ms: now_unix_ms,
        entries: state.counters.next_index,
        head: state.head.as_ref().map(|head| BackedUpHead {
            size: head.size,
            root: hex::encode(head.root),
            key_id: head.key_id.to_hex(),
            checkpoint: head.checkpoint.clone(),
        }),
        journal_seq: state.journal_seq,
        files: seal_files(destination, report)?,
        excluded: EXCLUDED.map(str::to_owned).into(),
    };
    let mut json = serde_json::to_vec_pretty(&manifest)
        .unwrap_or_else(|error| unreachable!("a manifest is plain data: {error}"));
    json.push(b'\n');
    failpoint::pass(Point::BackupManifest);
    // A directory with a manifest is a backup: everything it lists is durable by now.
    let path = destination.join(MANIFEST);
    blobs::write_durably(&path, &json)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))
        .map_err(StoreError::io("close to others", &path))?;
    sync_parent(destination)?;
    Ok(manifest)
}

fn copied_state(destination: &Path) -> Result<StateRow, StoreError> {
    AtRest::open(destination)?.state()?.ok_or_else(|| {
        StoreError::refused(
            "the database has no state yet",
            "start the daemon once, then back it up",
        )
    })
}

fn copy_blobs<E: From<StoreError>>(
    data_directory: &Path,
    destination: &Path,
    report: &mut Report<'_, E>,
) -> Result<(), E> {
    let database = AtRest::open(destination)?;
    let (from, to) = (Blobs::at(data_directory), Blobs::open(destination)?);
    let total = database.count(Table::Blobs)?;
    let mut done = 0;
    let mut page = database.page(Table::Blobs, None, PAGE)?;
    while let Some(last) = page.last() {
        let after = last.key.clone();
        for row in &page {
            let name = named(row.key_bytes(0))?;
            // A daemon that serves meanwhile keeps the copied blobs; see `Blobs::keep_all`.
            to.put(&from.get(&name)?)?;
            done += 1;
            report(Progress {
                stage: Stage::Blobs,
                done,
                total,
            })?;
        }
        page = database.page(Table::Blobs, Some(&after), PAGE)?;
    }
    Ok(())
}

/// A blob's name, as its row states it.
fn named(bytes: &[u8]) -> Result<Digest, StoreError> {
    bytes
        .try_into()
        .map(Digest)
        .map_err(|_| StoreError::Damaged {
            table: "blobs",
            key: hex::encode(bytes),
            what: "no digest has this length",
        })
}

/// Makes the log's files from the copy's entries. The published files may be newer than the copy,
/// and a start refuses files ahead of the database.
fn make_log<E: From<StoreError>>(
    destination: &Path,
    state: &StateRow,
    report: &mut Report<'_, E>,
) -> Result<(), E> {
    let total = state.head.as_ref().map_or(0, |head| head.size);
    let stage = Stage::Log;
    report(Progress {
        stage,
        done: 0,
        total,
    })?;
    let rows = Arc::new(SqliteRows::open(destination)?);
    let done = Integrator::recover(destination, rows, state.head.as_ref())?
        .tree()
        .size();
    report(Progress { stage, done, total })
}

/// Removes the files that SQLite leaves beside a database that was only read: an index of an empty
/// WAL.
fn remove_shared_memory(destination: &Path) -> Result<(), StoreError> {
    let beside = sqlite::beside(&sqlite::path_in(destination));
    for (path, is_wal) in beside.into_iter().zip([true, false]) {
        match fs::metadata(&path) {
            Ok(metadata) if is_wal && metadata.len() > 0 => {
                return Err(StoreError::refused(
                    format!(
                        "{} is not empty: another process writes into the backup",
                        path.display()
                    ),
                    "start a new backup in another directory",
                ));
            }
            Ok(_) => fs::remove_file(&path).map_err(StoreError::io("remove", &path))?,
            Err(_) => {}
        }
    }
    Ok(())
}

/// Syncs and hashes every file, and syncs every directory.
fn seal_files<E: From<StoreError>>(
    destination: &Path,
    report: &mut Report<'_, E>,
) -> Result<Vec<FileRecord>, E> {
    let mut files = Vec::new();
    walk(destination, Path::new(""), &mut files)?;
    files.sort();
    let mut total = 0;
    for relative in &files {
        let path = destination.join(relative);
        total += fs::metadata(&path)
            .map_err(StoreError::io("inspect", &path))?
            .len();
    }
    let mut done = 0;
    let mut records = Vec::new();
    for relative in files {
        let path = destination.join(&relative);
        let mut file = File::open(&path).map_err(StoreError::io("open", &path))?;
        file.set_permissions(Permissions::from_mode(0o600))
            .and_then(|()| file.sync_all())
            .map_err(StoreError::io("sync", &path))?;
        let (bytes, sha256) = hash(&mut file, &path, &mut io::sink(), &mut |read| {
            done += read;
            report(Progress {
                stage: Stage::Digests,
                done,
                total,
            })
        })?;
        records.push(FileRecord {
            path: relative,
            bytes,
            sha256,
        });
    }
    Ok(records)
}

fn is_not_ours(name: &std::ffi::OsStr) -> bool {
    NOT_OURS.iter().any(|not_ours| name == *not_ours)
}

/// Lists every regular file below a directory by its relative path; closes the directories in it to
/// others, and syncs them.
fn walk(root: &Path, relative: &Path, files: &mut Vec<String>) -> Result<(), StoreError> {
    let directory = root.join(relative);
    let failed = || StoreError::io("list", &directory);
    for entry in fs::read_dir(&directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let below = relative.join(entry.file_name());
        let kind = entry.file_type().map_err(failed())?;
        if kind.is_dir() {
            if !is_not_ours(&entry.file_name()) {
                guard::close(&entry.path())?;
                walk(root, &below, files)?;
            }
        } else if !is_not_ours(&entry.file_name()) {
            files.push(below.to_str().map(str::to_owned).ok_or_else(|| {
                StoreError::refused(
                    format!("{} is not a file name that a daemon gives", below.display()),
                    "start a new backup in another directory",
                )
            })?);
        }
    }
    sync_directory(&directory)
}

fn hash<E: From<StoreError>>(
    file: &mut impl Read,
    path: &Path,
    to: &mut impl io::Write,
    read: &mut dyn FnMut(u64) -> Result<(), E>,
) -> Result<(u64, String), E> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let length = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StoreError::io("read", path)(error).into()),
        };
        digest.update(&chunk[..length]);
        to.write_all(&chunk[..length])
            .map_err(StoreError::io("write", path))?;
        bytes += length as u64;
        read(length as u64)?;
    }
    Ok((bytes, hex::encode(digest.finalize())))
}
