//! A directory that remembers the newest head of each log, in a separate file for each.
//!
//! A file has two slots of 4 KiB, written in turn, in place, and synced: a write that a crash tears
//! spoils one slot, and the other still has the previous head. Nothing is allocated after the file
//! was made, so a full disk stops no write. The process that signs a log keeps its file locked: a
//! second process over a copy of the data directory fails at once.
//!
//! An error names the file, not the directory: the caller's report names the directory and who may use it.
//!
//! The bytes are text, so that an operator can read them: a line with the digest and length of what
//! follows, the signed checkpoint (or, while a KMS still signs, the unsigned one), line feeds.

use std::{
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use evidenceos_tlog::{Checkpoint, Note};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The size of one write of a head: a page.
const SLOT: usize = 4_096;
/// The start of a slot.
const MAGIC: &str = "evidenceos anchor v1";
/// The suffix of the files with heads.
const SUFFIX: &str = ".head";
/// Longer names are digests.
const LONGEST_NAME: usize = 180;
/// The line of a head after which the log went on under another name.
const RESTARTED: &str = "restarted as ";
/// The line of a head without a signature that names the log's key.
const KEY: &str = "key ";
/// The lock of a start that may begin a log, held until the first head is written.
const LOCK: &str = "LOCK";
/// The largest file that is searched for a head that an operator copied here.
const MOST_FOREIGN: u64 = 64 << 10;
/// How long to wait for another process that begins a log.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for a process that releases a file.
const TAKE_PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Why the contents of a directory cannot be known.
#[derive(Debug, Error)]
pub enum HeadError {
    /// A file or the directory cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Both slots of a file are damaged.
    #[error("neither of its two heads can be read")]
    Torn,
    /// One file of a directory.
    #[error("its {name}: {source}")]
    Of {
        /// The file's name in the directory.
        name: String,
        source: Box<HeadError>,
    },
}

impl HeadError {
    /// What the system said, if it is that.
    pub(super) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io(error) => Some(error),
            Self::Torn => None,
            Self::Of { source, .. } => source.io(),
        }
    }
}

/// A head that an anchor remembers.
#[derive(Debug, Clone)]
pub struct Known {
    /// Name, size and root.
    pub checkpoint: Checkpoint,
    /// The note in the file; unsigned if it is only a checkpoint's text.
    pub text: Vec<u8>,
}

impl Known {
    /// Parses a signed or unsigned checkpoint.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let signed = || Note::parse(text).ok()?.text().parse().ok();
        let unsigned = || std::str::from_utf8(text).ok()?.parse().ok();
        Some(Self {
            checkpoint: signed().or_else(unsigned)?,
            text: text.to_owned(),
        })
    }

    /// The log that continued this one, if it was restarted.
    #[must_use]
    pub fn successor(&self) -> Option<&str> {
        let mut lines = self.checkpoint.extensions().iter();
        lines.find_map(|line| line.strip_prefix(RESTARTED))
    }

    /// The log's keys that an unsigned head names: SHA-256 in hex.
    pub fn named_keys(&self) -> impl Iterator<Item = &str> {
        let lines = self.checkpoint.extensions().iter();
        lines.filter_map(|line| line.strip_prefix(KEY))
    }
}

/// The text of an unsigned head, with the log's key.
#[must_use]
pub fn unsigned(checkpoint: &Checkpoint, key_id: &str) -> String {
    format!("{checkpoint}{KEY}{key_id}\n")
}

/// Notes that a log continued under another name, if the directory knows the log.
///
/// # Errors
/// If its file cannot be read or written.
pub fn succeeded(
    directory: &Path,
    old_origin: &str,
    new_origin: &str,
    key_id: &str,
) -> io::Result<()> {
    let path = file_of(directory, old_origin);
    if read(&path).map_err(io::Error::other)?.is_none() {
        return Ok(());
    }
    let mut file = HeadFile::take(directory, old_origin)?;
    if let Some(known) = file.known()? {
        let text = format!(
            "{}{RESTARTED}{new_origin}\n",
            unsigned(&known.checkpoint, key_id)
        );
        file.write(text.as_bytes())?;
    }
    Ok(())
}

/// The file of a log in an anchor directory.
#[must_use]
pub fn file_of(directory: &Path, origin: &str) -> PathBuf {
    let mut name = String::new();
    for byte in origin.bytes() {
        // Lower case only: a file system may ignore case.
        let plain = byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        if plain || (byte == b'.' && !name.is_empty()) {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02x}");
        }
    }
    if name.len() > LONGEST_NAME {
        name = hex::encode(Sha256::digest(origin.as_bytes()));
    }
    directory.join(name + SUFFIX)
}

/// Makes the directory, one level deep, with access for its owner alone.
///
/// # Errors
/// If it cannot be made.
pub fn make(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(error),
        // The directory's name must survive a power cut, like the heads in it.
        Ok(()) => sync(directory.parent().unwrap_or(directory)),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The head in a log's file; `None` if the file is missing, or no head was ever written in full.
///
/// # Errors
/// [`HeadError::Io`] if the file cannot be read, [`HeadError::Torn`] if both slots are damaged.
pub fn read(path: &Path) -> Result<Option<Known>, HeadError> {
    match fs::read(path) {
        Ok(bytes) => match newest(&bytes) {
            Some((_, known)) => Ok(Some(known)),
            None if is_new(&bytes) => Ok(None),
            None => Err(HeadError::Torn),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Every head in a directory, with its file, including those that an operator copied there.
///
/// # Errors
/// [`HeadError::Io`] if the directory cannot be read, [`HeadError::Of`] if a head file cannot be:
/// its content is then unknown.
pub fn scan(directory: &Path) -> Result<Vec<(PathBuf, Known)>, HeadError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let failed = |source| HeadError::Of {
            name: name.clone().into_owned(),
            source: Box::new(source),
        };
        let metadata = fs::metadata(&path).map_err(|error| failed(error.into()))?;
        if !metadata.is_file() {
            continue;
        }
        if name.ends_with(SUFFIX) {
            let known = read(&path).map_err(failed)?;
            found.extend(known.map(|known| (path, known)));
        } else if metadata.len() <= MOST_FOREIGN {
            let bytes = fs::read(&path).map_err(|error| failed(error.into()))?;
            found.extend(Known::parse(&bytes).map(|known| (path, known)));
        }
    }
    Ok(found)
}

/// Whether at most one head was ever written: a slot is still empty. A crash that tore the very
/// first write leaves this state.
fn is_new(bytes: &[u8]) -> bool {
    let blank = |slot: &[u8]| slot.iter().all(|byte| [0, b'\n'].contains(byte));
    bytes.len() < 2 * SLOT || bytes.chunks(SLOT).any(blank)
}

/// The valid slot with the largest head, by number.
fn newest(bytes: &[u8]) -> Option<(usize, Known)> {
    let slots = bytes.chunks(SLOT).take(2).enumerate();
    slots
        .filter_map(|(number, slot)| Some((number, unpack(slot)?)))
        .max_by_key(rank)
}

/// Of two heads the larger is newer; of equal ones, the one that names a successor.
fn rank((_, known): &(usize, Known)) -> (u64, bool) {
    (known.checkpoint.size(), known.successor().is_some())
}

fn unpack(slot: &[u8]) -> Option<Known> {
    let end = slot.iter().position(|&byte| byte == b'\n')?;
    let line = std::str::from_utf8(&slot[..end]).ok()?;
    let (digest, length) = line.strip_prefix(MAGIC)?.trim_start().split_once(' ')?;
    let text = slot.get(end + 1..)?.get(..length.parse().ok()?)?;
    if hex::encode(Sha256::digest(text)) != digest {
        return None;
    }
    Known::parse(text)
}

fn pack(text: &[u8]) -> io::Result<Vec<u8>> {
    let digest = hex::encode(Sha256::digest(text));
    let mut slot = format!("{MAGIC} {digest} {}\n", text.len()).into_bytes();
    slot.extend_from_slice(text);
    if slot.len() > SLOT {
        return Err(io::Error::other(
            "the signed head is longer than a slot; give the log a shorter name",
        ));
    }
    slot.resize(SLOT, b'\n');
    Ok(slot)
}

/// A log's file, locked by the process that signs the log.
#[derive(Debug)]
pub struct HeadFile {
    path: PathBuf,
    file: File,
    device_and_inode: (u64, u64),
    /// The file's last known content: only changed bytes are parsed again.
    found: Option<Found>,
}

#[derive(Debug)]
struct Found {
    bytes: Vec<u8>,
    newest: Option<(usize, Known)>,
}

impl HeadFile {
    /// Opens and locks the file of a log, and makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be opened, or another process holds it.
    pub fn take(directory: &Path, origin: &str) -> io::Result<Self> {
        let path = file_of(directory, origin);
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        // The file is locked before it is read: the process that holds it may be writing.
        lock(&file, TAKE_PATIENCE)?;
        let metadata = file.metadata()?;
        if metadata.len() < 2 * SLOT as u64 {
            // The file is filled, not only sized: the blocks are there even if the disk is full
            // later.
            file.write_all_at(
                &[b'\n'; 2 * SLOT][metadata.len() as usize..],
                metadata.len(),
            )?;
            file.sync_all()?;
        }
        // The file's name must survive a power cut, or its heads would be lost with it.
        if is_new {
            sync(directory)?;
        }
        Ok(Self {
            path,
            file,
            device_and_inode: (metadata.dev(), metadata.ino()),
            found: None,
        })
    }

    /// The head in the file; `None` while it is new.
    ///
    /// # Errors
    /// If the file was removed or replaced, or cannot be read.
    pub fn known(&mut self) -> io::Result<Option<Known>> {
        let newest = &self.look()?.newest;
        Ok(newest.as_ref().map(|(_, known)| known.clone()))
    }

    fn look(&mut self) -> io::Result<&mut Found> {
        let bytes = self.bytes()?;
        let found = self.found.take().filter(|found| found.bytes == bytes);
        Ok(self.found.insert(found.unwrap_or_else(|| Found {
            newest: newest(&bytes),
            bytes,
        })))
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        // A removed or replaced file must be noticed: what is written to a file without a name is
        // lost.
        let there = fs::metadata(&self.path)?;
        if (there.dev(), there.ino()) != self.device_and_inode {
            return Err(io::Error::other("another file was put in its place"));
        }
        let mut bytes = vec![0; 2 * SLOT];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Writes a head durably, into the slot that does not have the newest one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let slot = pack(text)?;
        let number = match self.look()?.newest {
            Some((0, _)) => 1,
            _ => 0,
        };
        let mut found = self.found.take();
        self.file.write_all_at(&slot, (number * SLOT) as u64)?;
        self.file.sync_data()?;
        // Only what is certainly in the file is remembered; after an error it is read again.
        if let Some(found) = &mut found {
            found.bytes[number * SLOT..][..SLOT].copy_from_slice(&slot);
            let written = Known::parse(text).map(|known| (number, known));
            let before = found.newest.take();
            found.newest = before.into_iter().chain(written).max_by_key(rank);
        }
        self.found = found;
        Ok(())
    }
}

impl Drop for HeadFile {
    fn drop(&mut self) {
        // A child that is being forked has a copy of the descriptor: see the data directory's lock.
        let _ = self.file.unlock();
    }
}

/// Held while a log begins: if two starts share an anchor directory, the second sees the first's
/// head.
#[derive(Debug)]
pub struct BeginLock {
    file: File,
}

impl BeginLock {
    /// Takes the lock; waits some seconds for another start that holds it.
    ///
    /// # Errors
    /// If the directory cannot be written, or another start takes too long.
    pub fn take(directory: &Path) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("its {LOCK} file: {error}"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join(LOCK))
            .map_err(named)?;
        lock(&file, BEGIN_PATIENCE).map_err(named)?;
        Ok(Self { file })
    }
}

impl Drop for BeginLock {
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

fn lock(file: &File, patience: Duration) -> io::Result<()> {
    let until = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another process holds it: a daemon over this data directory or a copy of it runs; stop one of the two",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use evidenceos_tlog::Hash;

    use super::*;

    fn head(origin: &str, size: u64) -> Vec<u8> {
        Checkpoint::new(origin, size, Hash([size as u8; 32]))
            .expect("a name")
            .to_string()
            .into_bytes()
    }

    fn size(path: &Path) -> Option<u64> {
        read(path)
            .expect("readable")
            .map(|known| known.checkpoint.size())
    }

    #[test]
    fn names_are_safe_and_tell_logs_apart() {
        let at = Path::new("/a");
        for (origin, name) in [
            ("evidenceos.local/0123", "evidenceos.local%2f0123.head"),
            ("../up", "%2e.%2fup.head"),
            ("Big", "%42ig.head"),
            ("ü", "%c3%bc.head"),
        ] {
            assert_eq!(file_of(at, origin), at.join(name));
        }
        let long = file_of(at, &"x".repeat(500));
        assert!(long.file_name().expect("a name").len() < 255);
        assert_ne!(long, file_of(at, &"x".repeat(501)));
    }

    #[test]
    fn heads_are_written_in_turn_and_a_torn_one_leaves_the_one_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut file = HeadFile::take(directory.path(), "o").expect("new");
        let path = file_of(directory.path(), "o");
        assert!(file.known().expect("readable").is_none());
        assert_eq!(size(&path), None, "made, and nothing written yet");
        for n in 1..=5 {
            file.write(&head("o", n)).expect("written");
            assert_eq!(size(&path), Some(n));
            assert_eq!(fs::metadata(&path).expect("there").len(), 8_192);
        }
        // 5 is in the first slot, 4 in the second: any byte of the newest may be damaged.
        let whole = fs::read(&path).expect("there");
        for at in [0, 30, 100, 120] {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            fs::write(&path, &torn).expect("writable");
            assert_eq!(size(&path), Some(4), "byte {at}");
        }
        let mut both = whole.clone();
        both[30] ^= 1;
        both[SLOT + 30] ^= 1;
        fs::write(&path, &both).expect("writable");
        assert!(read(&path).is_err(), "nobody knows what it remembered");
        assert!(scan(directory.path()).is_err());
    }

    #[test]
    fn errors_leave_the_name_of_the_directory_to_who_reports_them() {
        let home = tempfile::tempdir().expect("a directory");
        let (missing, there) = (home.path().join("missing"), home.path().join("there"));
        fs::create_dir(&there).expect("ours");
        let both = [b'x'; 2 * SLOT];
        fs::write(there.join("torn.head"), both).expect("writable");
        fs::create_dir(there.join(LOCK)).expect("ours");
        let errors = [
            scan(&missing).expect_err("not there").to_string(),
            scan(&there)
                .expect_err("neither head can be read")
                .to_string(),
            BeginLock::take(&missing).expect_err("no place").to_string(),
            BeginLock::take(&there).expect_err("in the way").to_string(),
            HeadFile::take(&missing, "o")
                .expect_err("no place")
                .to_string(),
            make(&missing.join("below"))
                .expect_err("no place")
                .to_string(),
        ];
        for error in errors {
            assert!(!error.contains(&*home.path().to_string_lossy()), "{error}");
        }
    }

    #[test]
    fn one_process_holds_a_file_and_notices_if_it_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut file = HeadFile::take(directory.path(), "o").expect("new");
        let held = HeadFile::take(directory.path(), "o").expect_err("held");
        assert_eq!(held.kind(), io::ErrorKind::WouldBlock);
        file.write(&head("o", 1)).expect("written");
        let path = file_of(directory.path(), "o");
        let bytes = fs::read(&path).expect("there");
        fs::remove_file(&path).expect("ours");
        assert!(file.write(&head("o", 2)).is_err(), "it is gone");
        fs::write(&path, bytes).expect("writable");
        assert!(file.write(&head("o", 2)).is_err(), "it is another");
        drop(file);
        HeadFile::take(directory.path(), "o").expect("free again");
    }

    #[test]
    fn a_scan_finds_what_an_operator_put_there() {
        let directory = tempfile::tempdir().expect("a directory");
        HeadFile::take(directory.path(), "o")
            .expect("new")
            .write(&head("o", 3))
            .expect("written");
        for (name, bytes) in [
            ("copied", head("p", 7)),
            (".gitkeep", Vec::new()),
            ("README", b"text".to_vec()),
        ] {
            fs::write(directory.path().join(name), bytes).expect("writable");
        }
        let mut found: Vec<(String, u64)> = scan(directory.path())
            .expect("readable")
            .iter()
            .map(|(_, known)| {
                (
                    known.checkpoint.origin().to_owned(),
                    known.checkpoint.size(),
                )
            })
            .collect();
        found.sort();
        assert_eq!(found, [("o".to_owned(), 3), ("p".to_owned(), 7)]);
    }
}
