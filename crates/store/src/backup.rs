//! Backups: a copy of a data directory that is checked while it is made, and the way back.
//!
//! The database is copied through the writer (see [`crate::Copier`]). Everything else is made to
//! fit the copy and not the moment: the blobs that its rows name, each checked against its name,
//! and the log's files, made anew from its entries, which thereby are all read and lead to the
//! signed root. `backup.json` comes last and has the digest of each file: a directory without it
//! is no backup.
//!
//! What is secret stays behind: signing keys, the daemon's own secrets, certificates. They change
//! rarely and are backed up apart, where fewer people can read them. Nobody may have the database
//! of a backup open in SQLite while its file is read here.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{
            DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
        },
    },
    path::Path,
    sync::Arc,
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::id::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

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

/// What a backup says of itself.
pub const MANIFEST: &str = "backup.json";
/// The format of the manifest.
const FORMAT: &str = "evidenceos.backup.v1";
/// What is never in a backup.
const EXCLUDED: [&str; 6] = [
    "LOCK",
    "control.sock",
    "keys",
    "secrets",
    "certificates",
    "accounts.json",
];
/// What a new file system may have in it and still be empty.
const NOT_OURS: [&str; 3] = ["lost+found", ".gitkeep", ".gitignore"];
/// The database while it is brought back: a start does not take it.
const HALF_RESTORED: &str = "evidenceos.db.restoring";
/// Names of blobs read at once.
const PAGE: usize = 1_024;
/// Bytes hashed or copied at once.
const CHUNK: usize = 1 << 20;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `evidenceos.backup.v1` in this release.
    pub format: String,
    /// Name and version of the program that made the backup.
    pub software: String,
    /// When, in Unix milliseconds.
    pub created_unix_ms: u64,
    /// Entries of the log.
    pub entries: u64,
    /// The newest signed head; absent before the first.
    pub head: Option<BackedUpHead>,
    /// Number of the last journal row.
    pub journal_seq: u64,
    /// Every file but this one, sorted by path.
    pub files: Vec<FileRecord>,
    /// What was left out on purpose.
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
    /// Relative, with `/` between its parts.
    pub path: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// The SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// How far a backup or a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// How much of it is done.
    pub done: u64,
    /// How much there is, as far as is known.
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
    /// Bringing files back, in bytes.
    Files,
}

/// Told how far a backup is; an error breaks it off.
pub type Report<'r> = dyn FnMut(Progress) -> Result<(), StoreError> + 'r;

/// Makes or takes the empty directory that a backup goes into.
///
/// # Errors
/// [`StoreError::Refused`] if something is in it already, or others can write it;
/// [`StoreError::Io`] if it cannot be made or closed to others.
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
        // A container's mount point for keys is no data.
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
                "name a directory that is, or that does not exist yet",
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

/// Copies the database of a data directory that no daemon serves, and whose lock is held.
///
/// # Errors
/// The store's error if it cannot be read or the copy not be written; that of `report` if it breaks
/// the copy off.
pub fn copy_at_rest(
    data_directory: &Path,
    _held: &DirectoryLock,
    destination: &Path,
    report: &mut Report<'_>,
) -> Result<(), StoreError> {
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
    /// As progress of a backup.
    #[must_use]
    pub fn progress(self) -> Progress {
        Progress {
            stage: Stage::Database,
            done: self.copied,
            total: self.total,
        }
    }
}

/// Completes a backup whose database was copied into `destination`: blobs, log, digests, manifest.
/// When this returns, all of it is durable.
///
/// # Errors
/// [`StoreError::Refused`], [`StoreError::Damaged`] or [`StoreError::Io`] if something that the copy
/// names is missing, damaged, or cannot be written; that of `report` if it breaks the backup off. The
/// directory is then no backup, and has no manifest: begin it anew elsewhere.
pub fn complete(
    data_directory: &Path,
    destination: &Path,
    software: &str,
    now_unix_ms: u64,
    report: &mut Report<'_>,
) -> Result<Manifest, StoreError> {
    // SQLite has synced nothing; what it left is on its way to the disk while the rest is copied.
    let state = copied_state(destination)?;
    let restored = Restored {
        made_unix_ms: now_unix_ms,
        entries: state.counters.next_index,
    };
    // In the copy itself: however it comes into place, whoever serves it knows what it is.
    sqlite::mark_restored(&sqlite::path_in(destination), restored)?;
    copy_blobs(data_directory, destination, report)?;
    make_log(destination, &state, report)?;
    // Every connection of ours to the copy is closed: its file can be read as any other.
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
    // A directory with a manifest is a backup: all that it lists is durable by now.
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

fn copy_blobs(
    data_directory: &Path,
    destination: &Path,
    report: &mut Report<'_>,
) -> Result<(), StoreError> {
    let database = AtRest::open(destination)?;
    let (from, to) = (Blobs::at(data_directory), Blobs::open(destination)?);
    let total = database.count(Table::Blobs)?;
    let mut done = 0;
    let mut page = database.page(Table::Blobs, None, PAGE)?;
    while let Some(last) = page.last() {
        let after = last.key.clone();
        for row in &page {
            let name = named(row.key_bytes(0))?;
            // A daemon that serves meanwhile keeps what is copied here; see `Blobs::keep_all`.
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

/// A blob's name, as its row has it.
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

/// The log's files as its entries give them. What was published meanwhile may be newer than the
/// copy, and files ahead of a database stop a start.
fn make_log(
    destination: &Path,
    state: &StateRow,
    report: &mut Report<'_>,
) -> Result<(), StoreError> {
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

/// What SQLite leaves beside a database that was only read: an index of an empty WAL.
fn remove_shared_memory(destination: &Path) -> Result<(), StoreError> {
    let beside = sqlite::beside(&sqlite::path_in(destination));
    for (path, is_wal) in beside.into_iter().zip([true, false]) {
        match fs::metadata(&path) {
            Ok(metadata) if is_wal && metadata.len() > 0 => {
                return Err(StoreError::refused(
                    format!(
                        "{} is not empty: somebody else writes into the backup",
                        path.display()
                    ),
                    "begin it anew elsewhere",
                ));
            }
            Ok(_) => fs::remove_file(&path).map_err(StoreError::io("remove", &path))?,
            Err(_) => {}
        }
    }
    Ok(())
}

/// Syncs and hashes every file, and syncs every directory.
fn seal_files(destination: &Path, report: &mut Report<'_>) -> Result<Vec<FileRecord>, StoreError> {
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

/// Every regular file below a directory, by its relative path; closes the directories in it to
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
                    format!("{} is no name of ours", below.display()),
                    "begin the backup anew elsewhere",
                )
            })?);
        }
    }
    sync_directory(&directory)
}

fn hash(
    file: &mut impl Read,
    path: &Path,
    to: &mut impl io::Write,
    read: &mut dyn FnMut(u64) -> Result<(), StoreError>,
) -> Result<(u64, String), StoreError> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let length = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        digest.update(&chunk[..length]);
        to.write_all(&chunk[..length])
            .map_err(StoreError::io("write", path))?;
        bytes += length as u64;
        read(length as u64)?;
    }
    Ok((bytes, hex::encode(digest.finalize())))
}

/// Reads the manifest of a backup.
///
/// # Errors
/// [`StoreError::Refused`] if there is none, which is how an unfinished backup looks, or it is not
/// ours; [`StoreError::Io`] if it cannot be read.
pub fn manifest(backup: &Path) -> Result<Manifest, StoreError> {
    let path = backup.join(MANIFEST);
    if !path.exists() {
        return Err(StoreError::refused(
            format!(
                "{} is missing: this is no backup, or one that was not finished",
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
/// [`StoreError::Refused`] or [`StoreError::Io`] with the first file that is missing, changed, or not
/// a plain file below the backup; that of `report` if it breaks the check off.
pub fn check(backup: &Path, report: &mut Report<'_>) -> Result<Manifest, StoreError> {
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

/// Nothing is brought back that a backup never has: no secrets, no policies, no accounts.
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
                "{} lists {path:?}, which is no file of a backup, or twice; nothing was restored",
                backup.join(MANIFEST).display()
            ),
            "Take another backup; bring keys/, secrets/ and policies back by hand",
        )),
    }
}

/// Whether a backup can have a file with this path: the database, blobs, the log's files; and what
/// earlier releases listed if it was there before.
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

/// Opens a file of a backup: a plain one, with no link on the way to it below the backup.
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
    // Each part is opened below the one before, so that no link can take its place in between.
    for part in above.split('/').filter(|part| !part.is_empty()) {
        let flags = directory | OFlags::NOFOLLOW;
        at = rustix::fs::openat(&at, part, flags, Mode::empty()).map_err(failed)?;
    }
    // Without NONBLOCK a pipe in the place of a file would hold us for ever.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(&at, name, flags, Mode::empty()).map_err(failed)?);
    let metadata = file.metadata().map_err(StoreError::io("inspect", &path))?;
    if !metadata.is_file() {
        return Err(must_be("no regular file"));
    }
    if metadata.nlink() > 1 {
        return Err(must_be("a hard link: another name leads to it too"));
    }
    Ok(file)
}

type Target = Box<dyn io::Write>;

fn read_all(
    backup: &Path,
    manifest: &Manifest,
    report: &mut Report<'_>,
    target: &mut dyn FnMut(&FileRecord) -> Result<Target, StoreError>,
) -> Result<(), StoreError> {
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
        // The file may have been changed since `check` read it.
        if bytes != record.bytes || sha256 != record.sha256 {
            return Err(StoreError::refused(
                format!(
                    "{} is not what {MANIFEST} says: the backup was damaged or changed after it was made",
                    path.display()
                ),
                "take another",
            ));
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

/// Backups of older releases do not say in the database what they are.
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
    // They are named after the half-restored file: nothing would find them after the rename.
    for path in sqlite::beside(database) {
        if path.exists() {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Whether a directory is a backup that somebody put into place as it is, without `restore`: its
/// manifest is in it. Of the releases before there is no other sign.
///
/// # Errors
/// As [`manifest`], if there is a manifest.
pub fn put_into_place(data_directory: &Path) -> Result<Option<Restored>, StoreError> {
    if !data_directory.join(MANIFEST).exists() {
        return Ok(None);
    }
    // A manifest that is damaged says as much.
    let known = manifest(data_directory).ok();
    Ok(Some(Restored {
        made_unix_ms: known.as_ref().map_or(0, |found| found.created_unix_ms),
        entries: known.as_ref().map_or(0, |found| found.entries),
    }))
}

/// Takes the manifest away from a backup that is served from now on, once that is noted in its
/// database: what it lists is not what lies there any more.
///
/// # Errors
/// [`StoreError::Io`] if it cannot be removed.
pub fn no_backup_any_more(data_directory: &Path) -> Result<(), StoreError> {
    let path = data_directory.join(MANIFEST);
    fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
    sync_directory(data_directory)
}

/// Brings a backup back into a directory that is empty or does not exist. Every file is checked
/// before the first is written, and again while it is copied; the database gets its name last, so
/// that a start does not take a directory that is half restored.
///
/// # Errors
/// [`StoreError::Refused`] if the backup is not whole, or the directory not empty;
/// [`StoreError::Io`] if a file cannot be read or written; that of `report` if it breaks off.
pub fn restore(
    backup: &Path,
    data_directory: &Path,
    report: &mut Report<'_>,
) -> Result<Manifest, StoreError> {
    prepare(data_directory)?;
    // A daemon that is started meanwhile must not make a database of its own here.
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
