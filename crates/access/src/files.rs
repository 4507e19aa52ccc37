//! Reads an operator's files: whole, bounded, and with errors that say what to mend.
//!
//! A set of files is read until two readings agree, so that a set that is being replaced is never
//! half old and half new. Symlinks are followed: Kubernetes mounts secrets as links.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use evidenceos_files::{denial, without_mark};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// The most bytes that a certificate, key, CA or policy file may have.
const MAX_BYTES: u64 = 1 << 20;

/// The most bytes that a revocation list may have: about 400,000 entries.
const MAX_CRL_BYTES: u64 = 16 << 20;

/// How often a set is read before it is given up as unstable.
const READINGS: usize = 5;

/// The bits of a file's mode for other users.
const OTHERS: u32 = 0o007;
/// The bit of a file's mode that lets every user write.
const OTHERS_WRITE: u32 = 0o002;

/// The files of a TLS listener, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by its intermediates.
    pub cert: PathBuf,
    /// The private key of the certificate. Other users must not be able to read it.
    pub key: PathBuf,
    /// The CA certificates that must have issued client certificates.
    pub client_ca: Option<PathBuf>,
    /// Lists of revoked client certificates, PEM or DER.
    pub client_crls: Vec<PathBuf>,
}

/// A file that cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It could not be read.
    #[error("cannot read {}: {source}{remedy}", path.display())]
    Unreadable {
        path: PathBuf,
        source: io::Error,
        /// The command that mends it, at the end of the sentence; empty if none is known.
        remedy: String,
    },
    /// The path is a directory or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    /// The file exceeds the limit for its kind.
    #[error("{} has more than {max} bytes", path.display())]
    TooLong {
        path: PathBuf,
        /// The most bytes that it may have.
        max: u64,
    },
    /// Every user of the machine can use the private key.
    #[error(
        "the private key {} is open to all users (mode {mode:04o}): run `chmod o= {}`",
        path.display(), path.display()
    )]
    OpenKey {
        path: PathBuf,
        /// The file's permission bits, as `chmod` takes them.
        mode: u32,
    },
    /// Every user of the machine could give themselves roles.
    #[error(
        "{} can be written by all users (mode {mode:04o}): run `chmod o-w {}`",
        path.display(), path.display()
    )]
    Writable {
        path: PathBuf,
        /// The file's permission bits, as `chmod` takes them.
        mode: u32,
    },
    /// Each reading found another content.
    #[error("the files next to {} changed while the server read them; it reads them again later", path.display())]
    Unsteady {
        /// The server's certificate, which is beside the other files.
        path: PathBuf,
    },
}

/// The contents of [`TlsFiles`] at one time.
pub(crate) struct FileSet {
    pub cert: Zeroizing<Vec<u8>>,
    pub key: Zeroizing<Vec<u8>>,
    pub client_ca: Option<Zeroizing<Vec<u8>>>,
    /// As many as [`TlsFiles::client_crls`].
    pub client_crls: Vec<Zeroizing<Vec<u8>>>,
    /// SHA-256 over all of it.
    pub digest: [u8; 32],
}

impl TlsFiles {
    /// Every problem that keeps these files from being read.
    #[must_use]
    pub fn problems(&self) -> Vec<FileError> {
        let lists = self.client_crls.iter().map(|path| read_crl(path).err());
        let others = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        let others = others.into_iter().flatten().map(|path| read(path).err());
        others.chain(lists).flatten().collect()
    }

    /// A set on which two readings in a row agree.
    pub(crate) fn read(&self) -> Result<FileSet, FileError> {
        let mut last = self.read_once()?;
        for _ in 1..READINGS {
            let again = self.read_once()?;
            if again.digest == last.digest {
                return Ok(again);
            }
            last = again;
        }
        Err(FileError::Unsteady {
            path: self.cert.clone(),
        })
    }

    fn read_once(&self) -> Result<FileSet, FileError> {
        let (cert, _) = read(&self.cert)?;
        let (key, mode) = read(&self.key)?;
        if mode & OTHERS != 0 {
            let path = self.key.clone();
            return Err(FileError::OpenKey { path, mode });
        }
        let client_ca = match &self.client_ca {
            Some(path) => Some(read(path)?.0),
            None => None,
        };
        let client_crls = self
            .client_crls
            .iter()
            .map(|path| read_crl(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut hash = Sha256::new();
        let always = [Some(&cert), Some(&key), client_ca.as_ref()];
        for content in always.into_iter().chain(client_crls.iter().map(Some)) {
            // Digests have equal length, so that no byte can move from one file to the next
            // unnoticed.
            hash.update(Sha256::digest(content.map_or(&[][..], |content| content)));
        }
        Ok(FileSet {
            cert,
            key,
            client_ca,
            client_crls,
            digest: hash.finalize().into(),
        })
    }
}

/// The text of a file that grants rights. Other users must not be able to write it.
pub(crate) fn read_policy(path: &Path) -> Result<String, FileError> {
    let (bytes, mode) = read(path)?;
    if mode & OTHERS_WRITE != 0 {
        let path = path.to_owned();
        return Err(FileError::Writable { path, mode });
    }
    String::from_utf8(without_mark(&bytes).to_vec()).map_err(|error| {
        unreadable(
            path,
            io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()),
        )
    })
}

/// A list of revoked certificates. If every user could write it, every user could remove an entry.
fn read_crl(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let (bytes, mode) = read_at_most(path, MAX_CRL_BYTES)?;
    if mode & OTHERS_WRITE != 0 {
        let path = path.to_owned();
        return Err(FileError::Writable { path, mode });
    }
    Ok(bytes)
}

/// The content and permission bits of a file.
fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), FileError> {
    read_at_most(path, MAX_BYTES)
}

fn read_at_most(path: &Path, max: u64) -> Result<(Zeroizing<Vec<u8>>, u32), FileError> {
    let failed = |source| unreadable(path, source);
    // This comes before the file is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        let path = path.to_owned();
        return Err(FileError::NotAFile { path });
    }
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    // The buffer gets its size at once: a growing vector leaves copies of a key behind.
    let size = usize::try_from(metadata.len().min(max)).unwrap_or(0);
    let mut content = Zeroizing::new(Vec::with_capacity(size + 1));
    // One byte beyond the limit distinguishes a file that is too long from one that just fits.
    file.take(max + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > max {
        let path = path.to_owned();
        return Err(FileError::TooLong { path, max });
    }
    Ok((content, metadata.mode() & 0o7777))
}

fn unreadable(path: &Path, source: io::Error) -> FileError {
    let remedy = match source.kind() {
        io::ErrorKind::NotFound => {
            "; make it, or make a set to try with `evidenceos lab init DIR`".to_owned()
        }
        _ => denial(path, &source),
    };
    FileError::Unreadable {
        path: path.to_owned(),
        source,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("missing");
        let error = read(&missing).expect_err("missing").to_string();
        assert!(error.starts_with(&format!("cannot read {}: ", missing.display())));
        assert!(error.contains("lab init"), "{error}");

        let error = read(directory.path()).expect_err("a directory");
        assert!(matches!(error, FileError::NotAFile { .. }));

        let long = directory.path().join("long");
        File::create(&long)
            .and_then(|file| file.set_len(MAX_BYTES + 1))
            .expect("a long file");
        assert!(matches!(read(&long), Err(FileError::TooLong { .. })));

        let error = unreadable(&long, io::ErrorKind::PermissionDenied.into()).to_string();
        for part in [
            "has mode 0",
            "belongs to uid",
            "this process is uid",
            "Run: ",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_policy_that_everybody_can_write_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("roles.toml");
        fs::write(&path, "default = \"none\"").expect("written");
        for (mode, taken) in [(0o644, true), (0o440, true), (0o646, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            assert_eq!(read_policy(&path).is_ok(), taken, "{mode:o}");
        }
    }
}
