//! A directory of secret files: every check is made on the open descriptor, never on a path, which
//! another process may have replaced since.
//!
//! A secret is a regular file of 32 bytes that belongs to us or root and is closed to all other
//! users. A file that is not secret but decides something may be read by others, never written. The
//! directory belongs to us or root, and no other user can write it: a user who can rename files in
//! it chooses our keys.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use evidenceos_failpoint::{self as failpoint, Point};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawMode, Stat};
use zeroize::Zeroizing;

use crate::{KeyError, Secret, ring::ACTIVE};

const DIRECTORY: Mode = Mode::RWXU;
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A directory that was opened and checked.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory and checks which users may write it.
    ///
    /// # Errors
    /// [`KeyError`] if it is missing, or another user could put keys into it.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let directory = Self::open_unchecked(path)?;
        directory.check()?;
        Ok(directory)
    }

    fn open_unchecked(path: &Path) -> Result<Self, KeyError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(path, flags, Mode::empty()).map_err(KeyError::errno("open", path))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Opens a directory, or creates it with mode 0700.
    ///
    /// # Errors
    /// As [`Directory::open`], and if it cannot be created.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyError> {
        match rustix::fs::mkdir(path, DIRECTORY) {
            Ok(()) => sync_parent(path)?,
            // The process that created it may have died before this sync. If we cannot open the
            // parent, an operator created the directory and is responsible for it.
            Err(rustix::io::Errno::EXIST) => sync_parent(path).unwrap_or(()),
            Err(errno) => return Err(KeyError::errno("create", path)(errno)),
        }
        Self::open(path)
    }

    /// The directory's path, as it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check(&self) -> Result<(), KeyError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(KeyError::errno("inspect", &self.path))?;
        let mode = bits(&stat);
        if is_ours(&stat) && mode & 0o022 == 0 {
            return Ok(());
        }
        Err(KeyError::Permissions {
            path: self.path.clone(),
            mode,
            owner: stat.st_uid,
            wanted: "the directory must be writable by its owner only",
            user: us(),
            command: mend(&self.path, &stat, "go-w"),
        })
    }

    /// Names of all entries except those that begin with a dot, sorted.
    ///
    /// # Errors
    /// [`KeyError::Io`] if it cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, KeyError> {
        let failed = |errno| KeyError::errno("list", &self.path)(errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that is not text is not a name of ours.
            if let Ok(name) = entry.file_name().to_str()
                && !name.starts_with('.')
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Reads a secret; `None` if there is no file of that name.
    ///
    /// # Errors
    /// [`KeyError`] if it is open to others, not ours, or not a file of 32 bytes.
    pub fn read(&self, name: &str) -> Result<Option<Secret>, KeyError> {
        let path = self.path.join(name);
        // Without NONBLOCK a pipe that another user put here would block us forever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            // The checks below would be about the link's target, whose directory other users may be
            // able to write.
            Err(rustix::io::Errno::LOOP) => {
                return Err(KeyError::NotAKey {
                    path,
                    what: "it is a symbolic link; bring keys from a mount with `evidenceos keys import --from DIR`".to_owned(),
                });
            }
            Err(errno) => return Err(KeyError::errno("open", path)(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(KeyError::errno("inspect", &path))?;
        check_secret(&path, &stat)?;
        read_secret(File::from(fd), &path).map(Some)
    }

    /// Puts a secret in place whole, mode 0600: temporary file, sync, rename, sync of the
    /// directory. Replaces an existing one.
    ///
    /// # Errors
    /// [`KeyError::Io`] if the directory cannot be written.
    pub fn write(&self, name: &str, secret: &Secret) -> Result<(), KeyError> {
        self.write_bytes(name, secret.as_slice())
    }

    /// As [`Directory::write`], for bytes of any length.
    ///
    /// # Errors
    /// As [`Directory::write`].
    pub fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<(), KeyError> {
        self.write_as(name, bytes, FILE)
    }

    /// As [`Directory::write_bytes`], for files that [`Directory::read_guarded`] reads: mode 0644.
    ///
    /// # Errors
    /// As [`Directory::write`].
    pub fn write_guarded(&self, name: &str, bytes: &[u8]) -> Result<(), KeyError> {
        self.write_as(name, bytes, FILE | Mode::RGRP | Mode::ROTH)
    }

    fn write_as(&self, name: &str, bytes: &[u8], mode: Mode) -> Result<(), KeyError> {
        let temporary = format!(".{name}.new");
        let failed = |operation| KeyError::errno(operation, self.path.join(name));
        // A crash of ours left it; no other user may write here.
        match rustix::fs::unlinkat(&self.fd, &temporary, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(failed("replace")(errno)),
        }
        // `EXCL` refuses a file or link that appeared since the removal: the secret must not go
        // into a file that another process has open.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, &temporary, flags, mode).map_err(failed("write"))?;
        let mut file = File::from(fd);
        // Make the bytes durable before the name: a loss of power must not leave a key's name with
        // an empty file.
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(KeyError::io("write", self.path.join(name)))?;
        failpoint::pass(Point::KeysGenerateTmp);
        rustix::fs::renameat(&self.fd, &temporary, &self.fd, name).map_err(failed("rename"))?;
        failpoint::pass(if name == ACTIVE {
            Point::KeysActivateRenamed
        } else {
            Point::KeysGenerateRenamed
        });
        // Without this sync a loss of power could undo the rename, and take a key that has signed
        // by then.
        rustix::fs::fsync(&self.fd).map_err(failed("sync"))
    }

    /// Removes a file, if it exists.
    ///
    /// # Errors
    /// [`KeyError::Io`] if the directory cannot be written.
    pub fn remove(&self, name: &str) -> Result<(), KeyError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            // Without the sync a removed file could be back after a loss of power.
            Ok(()) => rustix::fs::fsync(&self.fd).map_err(KeyError::errno("sync", &self.path)),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(KeyError::errno("remove", self.path.join(name))(errno)),
        }
    }

    /// Renames a file over another, durably.
    ///
    /// # Errors
    /// [`KeyError::Io`] if it is missing, or the directory cannot be written.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), KeyError> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to)
            .and_then(|()| rustix::fs::fsync(&self.fd))
            .map_err(KeyError::errno("rename", self.path.join(from)))
    }

    /// Reads a small text file that is not secret; `None` if it is missing.
    ///
    /// # Errors
    /// [`KeyError`] if it cannot be read, is not a regular file, or is longer than 16 KiB.
    pub fn read_text(&self, name: &str) -> Result<Option<String>, KeyError> {
        const MOST: u64 = 16 << 10;
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(KeyError::errno("open", path)(errno)),
        };
        let unfit = |what: String| KeyError::Unfit {
            path: path.clone(),
            what,
        };
        let stat = rustix::fs::fstat(&fd).map_err(KeyError::errno("inspect", &path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(unfit("is not a regular file".to_owned()));
        }
        let mut text = String::new();
        // Read one byte beyond the limit, to tell a file that is too long from one that just fits: a text that is cut
        // names another key, or none.
        File::from(fd)
            .take(MOST + 1)
            .read_to_string(&mut text)
            .map_err(KeyError::io("read", &path))?;
        if text.len() as u64 > MOST {
            return Err(unfit(format!("is longer than {MOST} bytes")));
        }
        Ok(Some(text))
    }

    /// Reads a file that is not secret, but that only we may have written; `None` if there is no
    /// file of that name. `most` bounds its length in bytes.
    ///
    /// # Errors
    /// [`KeyError`] if others can write it, or it is not ours, not a regular file, or longer.
    pub fn read_guarded(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, KeyError> {
        let path = self.path.join(name);
        let unfit = |what: String| KeyError::Unfit {
            path: path.clone(),
            what,
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP) => {
                return Err(unfit(
                    "is a symbolic link; put the file itself there (cp -L)".to_owned(),
                ));
            }
            Err(errno) => return Err(KeyError::errno("open", path)(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(KeyError::errno("inspect", &path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(unfit("is not a regular file".to_owned()));
        }
        if !(is_ours(&stat) && bits(&stat) & 0o022 == 0) {
            return Err(KeyError::Permissions {
                mode: bits(&stat),
                owner: stat.st_uid,
                wanted: "the file must not be writable by group or others",
                user: us(),
                command: mend(&path, &stat, "go-w"),
                path,
            });
        }
        let mut bytes = Vec::new();
        // Read one byte beyond the limit, to tell a file that is too long from one that just fits.
        File::from(fd)
            .take(most.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(KeyError::io("read", &path))?;
        if bytes.len() as u64 > most {
            return Err(unfit(format!("is longer than {most} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Closes the directory and every file in it to others, as far as they are ours. Returns the
    /// changed paths.
    ///
    /// # Errors
    /// [`KeyError`] if a file cannot be opened, or its mode cannot be changed.
    pub fn fix_permissions(path: &Path) -> Result<Vec<PathBuf>, KeyError> {
        let directory = Self::open_unchecked(path)?;
        let mut changed = Vec::new();
        let stat = rustix::fs::fstat(&directory.fd).map_err(KeyError::errno("inspect", path))?;
        if bits(&stat) & 0o077 != 0 {
            rustix::fs::fchmod(&directory.fd, DIRECTORY).map_err(KeyError::errno("chmod", path))?;
            changed.push(path.to_owned());
        }
        for name in directory.names()? {
            let path = path.join(&name);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let fd = match rustix::fs::openat(&directory.fd, &name, flags, Mode::empty()) {
                Ok(fd) => fd,
                // A link has no mode of its own, and its target is not ours to change.
                Err(rustix::io::Errno::LOOP) => continue,
                Err(errno) => return Err(KeyError::errno("open", path)(errno)),
            };
            let stat = rustix::fs::fstat(&fd).map_err(KeyError::errno("inspect", &path))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && bits(&stat) & 0o077 != 0
            {
                rustix::fs::fchmod(fd.as_fd(), FILE).map_err(KeyError::errno("chmod", &path))?;
                changed.push(path);
            }
        }
        Ok(changed)
    }
}

/// Reads 32 bytes from an open file, and ensures that there are no more.
pub(crate) fn read_secret(mut file: File, path: &Path) -> Result<Secret, KeyError> {
    // The 33rd byte shows a file that is too long: its length may have changed since the check, and
    // an import makes no check.
    let mut bytes = Zeroizing::new([0_u8; 33]);
    let mut length = 0;
    while length < bytes.len() {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyError::io("read", path)(error)),
        }
    }
    let mut secret = Secret::default();
    if length != secret.len() {
        return Err(not_32_bytes(path));
    }
    secret.copy_from_slice(&bytes[..32]);
    Ok(secret)
}

fn check_secret(path: &Path, stat: &Stat) -> Result<(), KeyError> {
    let mode = bits(stat);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size != 32 {
        return Err(not_32_bytes(path));
    }
    if is_ours(stat) && mode & 0o077 == 0 {
        return Ok(());
    }
    Err(KeyError::Permissions {
        path: path.to_owned(),
        mode,
        owner: stat.st_uid,
        wanted: "a key must have mode 0600 or stricter",
        user: us(),
        command: mend(path, stat, "600"),
    })
}

fn not_32_bytes(path: &Path) -> KeyError {
    KeyError::NotAKey {
        path: path.to_owned(),
        what: "a key is a regular file of exactly 32 bytes, the raw Ed25519 seed".to_owned(),
    }
}

fn is_ours(stat: &Stat) -> bool {
    stat.st_uid == us() || stat.st_uid == 0
}

pub(crate) fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Permission bits without set-group-id and sticky, which mounts set and which grant no access.
fn bits(stat: &Stat) -> u32 {
    (stat.st_mode as RawMode) & 0o777
}

fn mend(path: &Path, stat: &Stat, mode: &str) -> String {
    let path = quoted(path.as_os_str());
    // If a file of root's were closed to its group, this process could not read it either.
    if stat.st_uid == us() {
        format!("chmod {mode} {path}")
    } else {
        format!("sudo chown {} {path} && sudo chmod {mode} {path}", us())
    }
}

fn quoted(path: &OsStr) -> String {
    // The operator pastes the command into a shell, in which a path with a blank or a quote must
    // stay one path.
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn sync_parent(path: &Path) -> Result<(), KeyError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        // A relative path of one part has an empty parent, which cannot be opened.
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(KeyError::io("sync", parent))
}
