//! The bindings in a file, so that a restart does not forget them.
//!
//! Records of equal length are appended, one write each, before the daemon acts on a request. They
//! are not synced: if the process dies, none is lost; after a power cut, the last ones may be. Cut
//! or garbled records are skipped. When most records have expired, the others are written to a new
//! file, which replaces the old one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use sha2::{Digest as _, Sha256};

/// Key, name, request, end, checksum.
const RECORD_BYTES: usize = 16 + 16 + 16 + 8 + 8;
/// The most expired records that are left in the file.
const SLACK: usize = 4_096;

/// The request that a signature is bound to, and the end of the binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding {
    /// Digest of the key's id.
    pub key: [u8; 16],
    /// Digest of the signature's own parts.
    pub name: [u8; 16],
    /// Digest of the request.
    pub request: [u8; 16],
    /// The last second at which the signature is accepted, Unix time.
    pub end_unix: u64,
}

/// The file, which the first record creates.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    records: usize,
    /// Whether the log already says that the file cannot be written.
    complained: bool,
}

impl Journal {
    /// Reads the records of an earlier process; none if there is no file.
    pub fn open(path: PathBuf) -> io::Result<(Self, Vec<Binding>)> {
        let mut content = Vec::new();
        match File::open(&path) {
            Ok(mut file) => file.read_to_end(&mut content).map(drop)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let bindings: Vec<Binding> = content
            .chunks_exact(RECORD_BYTES)
            .filter_map(Binding::read)
            .collect();
        let journal = Self {
            path,
            // The first record makes a new file. The earlier file may end in half a record, after
            // which no reader would find the next one.
            file: None,
            records: 0,
            complained: false,
        };
        Ok((journal, bindings))
    }

    /// Appends a binding. `live` has all bindings that have not expired, including this one,
    /// `count` of them.
    pub fn append(&mut self, binding: &Binding, count: usize, live: impl Iterator<Item = Binding>) {
        // The file is rewritten once more than half of it has expired: that costs each record a
        // constant.
        let written = if self.file.is_none() || self.records > 2 * count + SLACK {
            self.write_anew(count, live)
        } else {
            self.write(&binding.record())
        };
        match written {
            Ok(()) => self.complained = false,
            Err(error) => {
                // The bindings in memory stay in force: only a restart would forget them.
                self.file = None;
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::error!(
                        %error,
                        path = %self.path.display(),
                        "cannot record used signatures; until this works again, a restart forgets them"
                    );
                }
            }
        }
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(record)?;
        self.records += 1;
        Ok(())
    }

    /// Replaces the file by one with only these bindings.
    fn write_anew(&mut self, count: usize, live: impl Iterator<Item = Binding>) -> io::Result<()> {
        let records: Vec<u8> = live.flat_map(|binding| binding.record()).collect();
        let fresh = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&records)?;
        // If the process dies before this, the old file is left, which has the earlier bindings.
        fs::rename(&fresh, &self.path)?;
        self.file = Some(file);
        self.records = count;
        Ok(())
    }
}

impl Binding {
    fn record(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        let (content, checksum) = record.split_at_mut(RECORD_BYTES - 8);
        let parts = [
            &self.key[..],
            &self.name,
            &self.request,
            &self.end_unix.to_be_bytes(),
        ];
        content.copy_from_slice(&parts.concat());
        checksum.copy_from_slice(&Sha256::digest(&*content)[..8]);
        record
    }

    fn read(record: &[u8]) -> Option<Self> {
        let part = |at: usize| record.get(at..at + 16)?.try_into().ok();
        let binding = Self {
            key: part(0)?,
            name: part(16)?,
            request: part(32)?,
            end_unix: u64::from_be_bytes(record.get(48..56)?.try_into().ok()?),
        };
        (binding.record() == *record).then_some(binding)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn binding(number: u8) -> Binding {
        Binding {
            key: [1; 16],
            name: [number; 16],
            request: [number ^ 0xff; 16],
            end_unix: 1_800_000_000 + u64::from(number),
        }
    }

    #[test]
    fn what_was_appended_is_read_again_and_a_cut_or_garbled_record_is_passed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("used");
        let (mut journal, before) = Journal::open(path.clone()).expect("no file");
        assert!(before.is_empty() && !path.exists());
        let all: Vec<Binding> = (0..5).map(binding).collect();
        for (at, binding) in all.iter().enumerate() {
            journal.append(binding, at + 1, all[..=at].iter().copied());
        }
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_, read) = Journal::open(path.clone()).expect("readable");
        assert_eq!(read, all);
        let mut bytes = fs::read(&path).expect("readable");
        assert_eq!(bytes.len(), 5 * RECORD_BYTES);
        bytes[RECORD_BYTES + 20] ^= 1;
        bytes.truncate(5 * RECORD_BYTES - 1);
        fs::write(&path, bytes).expect("writable");
        let (_, read) = Journal::open(path).expect("readable");
        assert_eq!(read, [all[0], all[2], all[3]]);
    }

    #[test]
    fn records_that_are_over_leave_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("used");
        let (mut journal, _) = Journal::open(path.clone()).expect("no file");
        let live = [binding(7)];
        for _ in 0..3 * SLACK {
            journal.append(&live[0], 1, live.iter().copied());
        }
        let bytes = fs::metadata(&path).expect("there").len();
        assert!(bytes <= (SLACK as u64 + 3) * RECORD_BYTES as u64, "{bytes}");
        let (_, read) = Journal::open(path).expect("readable");
        assert_eq!(read.first(), Some(&live[0]));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_tried_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("missing");
        let path = missing.join("used");
        let (mut journal, _) = Journal::open(path.clone()).expect("no file");
        let live = [binding(1), binding(2)];
        journal.append(&live[0], 1, live[..1].iter().copied());
        assert!(journal.complained);
        fs::create_dir(&missing).expect("a directory");
        journal.append(&live[1], 2, live.iter().copied());
        assert!(!journal.complained);
        let (_, read) = Journal::open(path).expect("readable");
        assert_eq!(read, live, "also what could not be written before");
    }
}
