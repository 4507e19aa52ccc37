//! Secrets in files. A file that every user of the machine can read or write is refused, as key
//! files are. The group may read it, because Kubernetes gives a mounted secret to a group.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use evidenceos_files::denial;
use thiserror::Error;
use zeroize::Zeroizing;

/// The longest file of a secret, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// The bits of a file's mode for other users.
const OTHERS: u32 = 0o007;

/// Why a secret file is refused. No error contains the secret.
#[derive(Debug, Error)]
pub(super) enum SecretFileError {
    /// It cannot be opened or read.
    #[error("{path}: {source}{}", denial(path, source))]
    Io { path: PathBuf, source: io::Error },
    /// The path is a directory or a pipe.
    #[error("{0}: it is not a regular file")]
    NotRegular(PathBuf),
    /// Every user of the machine could read or replace it.
    #[error(
        "{path} has a secret and is open to all users (mode {mode:04o}): run `chmod o= {path}`; for a Kubernetes Secret set defaultMode: 0440"
    )]
    Open { path: PathBuf, mode: u32 },
    /// Longer than the limit: its end would be cut off.
    #[error(
        "{0}: the file is longer than {MAX_BYTES} bytes; remove the secrets that are no longer used"
    )]
    TooLong(PathBuf),
    /// It contains only line feeds.
    #[error("{0}: the file is empty")]
    Empty(PathBuf),
}

/// A secret in a file, without the line feed that editors put at its end. Links are followed.
///
/// # Errors
/// [`SecretFileError`]: the path and what is wrong, with the command that mends it.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let failed = |source| SecretFileError::Io {
        path: path.to_owned(),
        source,
    };
    // This comes before the file is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(SecretFileError::NotRegular(path.to_owned()));
    }
    let file = File::open(path).map_err(failed)?;
    // The mode of the opened file counts, so that no process can exchange the file between the
    // check and the read.
    closed_to_others(path, &file.metadata().map_err(failed)?)?;
    let mut text = Zeroizing::new(String::new());
    // One byte beyond the limit shows that a file is too long: if it were cut, its last secret would be a shorter one.
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(SecretFileError::TooLong(path.to_owned()));
    }
    // Editors add a line feed at the end, and some a byte order mark at the start: neither is part
    // of the secret.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let trimmed = text.trim_end_matches(['\n', '\r']);
    if trimmed.is_empty() {
        return Err(SecretFileError::Empty(path.to_owned()));
    }
    Ok(Zeroizing::new(trimmed.to_owned()))
}

/// Refuses a file with secrets that every user of the machine could read or replace.
///
/// # Errors
/// [`SecretFileError::Open`]: the path, its mode, and the command that mends it.
pub(super) fn closed_to_others(path: &Path, metadata: &Metadata) -> Result<(), SecretFileError> {
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    Err(SecretFileError::Open {
        path: path.to_owned(),
        mode,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_secret_that_everybody_can_use_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        // Kubernetes mounts a secret this way.
        let version = directory.path().join("..2026");
        fs::create_dir(&version).expect("a directory");
        symlink("..2026", directory.path().join("..data")).expect("a link");
        symlink("..data/token", directory.path().join("token")).expect("a link");
        let path = directory.path().join("token");
        fs::write(&path, "a secret\n").expect("written");
        for (mode, taken) in [
            (0o600, true),
            (0o400, true),
            (0o440, true),
            (0o640, true),
            (0o660, true),
            (0o644, false),
            (0o444, false),
            (0o666, false),
            (0o602, false),
            (0o601, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            match read(&path) {
                Ok(secret) => assert!(taken && *secret == "a secret", "{mode:o}"),
                Err(error) => {
                    let problem = error.to_string();
                    assert!(!taken, "{mode:o}: {problem}");
                    let command = format!("run `chmod o= {}`", path.display());
                    assert!(problem.contains(&command), "{problem}");
                    assert!(problem.contains(&format!("mode {mode:04o}")), "{problem}");
                    assert!(!problem.contains("a secret\n"), "{problem}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_file_or_says_nothing_is_refused_with_its_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        let name = path.display().to_string();
        let missing = read(&path).expect_err("missing").to_string();
        assert!(missing.starts_with(&name), "{missing}");
        fs::write(&path, "\r\n").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        assert!(
            read(&path)
                .expect_err("empty")
                .to_string()
                .contains("the file is empty")
        );
        for (length, taken) in [(1 << 20, true), ((1 << 20) + 1, false)] {
            fs::write(&path, "s".repeat(length)).expect("written");
            match read(&path) {
                Ok(secret) => assert!(taken && secret.len() == length),
                Err(error) => {
                    let problem = error.to_string();
                    assert!(
                        !taken && problem.contains("longer than 1048576 bytes"),
                        "{problem}"
                    );
                }
            }
        }
        let problem = read(directory.path()).expect_err("a directory").to_string();
        assert!(problem.contains("not a regular file"), "{problem}");
    }
}
