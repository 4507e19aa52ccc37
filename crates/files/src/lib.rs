//! Files that users give to a program: why the system denies one, and the byte order mark before a text.
//!
//! Owns the sentence that an operator reads after "Permission denied": which file or directory denies access, its
//! mode and owner, this process's user and group, and a command that mends it. Does not know the purpose of the
//! files.

use std::{
    fs::{self, Metadata},
    io::{Error, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD};

/// The byte order mark that editors put before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A text's bytes without a byte order mark.
#[must_use]
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// The end of an error's sentence: why the system denied an operation on `path`, and what to run. Empty unless the
/// system denied access or the file system is read-only.
#[must_use]
pub fn denial(path: &Path, error: &Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {}
        ErrorKind::ReadOnlyFilesystem => {
            return "; its file system is mounted read-only: mount it writable, or name another place".to_owned();
        }
        _ => return String::new(),
    }
    let us = Process::this();
    let Some((culprit, metadata)) = culprit(path) else {
        return format!("; this process is uid {}, gid {}", us.uid, us.gid);
    };
    format!(
        "; {} has mode {:04o} and belongs to uid {}, gid {}, and this process is uid {}, gid {}. {}",
        culprit.display(),
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
        us.uid,
        us.gid,
        us.remedy(path, &culprit, &metadata)
    )
}

/// As [`denial`], for a directory of which this process uses every file. It names one file only if the directory is the
/// process's own: in another user's directory the system would deny one file after the other.
#[must_use]
pub fn denial_within(directory: &Path, error: &Error) -> String {
    let us = Process::this();
    let is_ours = fs::metadata(directory).is_ok_and(|directory| directory.uid() == us.uid);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let closed = entries
        .map(|entry| entry.path())
        .find(|path| is_ours && !can_be_used(path));
    denial(closed.as_deref().unwrap_or(directory), error)
}

/// This process's user and group.
struct Process {
    uid: u32,
    gid: u32,
}

impl Process {
    fn this() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    fn remedy(&self, path: &Path, culprit: &Path, metadata: &Metadata) -> String {
        let Self { uid, gid } = self;
        let (shown, wanted) = (quoted(culprit), quoted(path));
        if metadata.uid() == *uid {
            return format!("Run: chmod u+rwX {shown}");
        }
        if culprit == path {
            let recursive = if metadata.is_dir() { "-R " } else { "" };
            return format!("Run: sudo chown {recursive}{uid}:{gid} {shown}");
        }
        // If something cannot be made in a system directory, root makes it for this process; the directory stays
        // unchanged.
        let is_parent = path.parent() == Some(culprit);
        if is_parent && can_be_searched(culprit) {
            return format!(
                "Run: sudo install -d -o {uid} -g {gid} {wanted} (if it is a directory), or name another place"
            );
        }
        format!("Name a place that uid {uid} can reach, or let it through: sudo chmod o+x {shown}")
    }
}

/// The path that denies access: the first directory above that cannot be searched, otherwise the file itself,
/// otherwise its parent.
fn culprit(path: &Path) -> Option<(PathBuf, Metadata)> {
    let above: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .filter(|above| *above != Path::new(""))
        .collect();
    let closed = above.iter().rev().find(|above| !can_be_searched(above));
    let parent = above.first().copied().unwrap_or(Path::new("."));
    let candidates = closed.copied().into_iter().chain([path, parent]);
    candidates
        .into_iter()
        .find_map(|place| Some((place.to_owned(), fs::metadata(place).ok()?)))
}

fn can_be_searched(directory: &Path) -> bool {
    // The check uses the effective user, as opening a file does.
    rustix::fs::accessat(CWD, directory, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

fn can_be_used(file: &Path) -> bool {
    let wanted = Access::READ_OK | Access::WRITE_OK;
    rustix::fs::accessat(CWD, file, wanted, AtFlags::EACCESS).is_ok()
}

/// A path quoted for a shell: the operator pastes the command.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn denied(path: &Path) -> String {
        denial(path, &ErrorKind::PermissionDenied.into())
    }

    fn with_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }

    #[test]
    fn a_denial_names_the_place_its_owner_and_a_command() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a file");
        fs::write(&file, "x").expect("written");
        with_mode(&file, 0o440);
        let us = Process::this();
        let text = denied(&file);
        for part in [
            format!("{} has mode 0440", file.display()),
            format!("belongs to uid {}, gid {}", us.uid, us.gid),
            format!("this process is uid {}", us.uid),
            format!("Run: chmod u+rwX '{}'", file.display()),
        ] {
            assert!(text.contains(&part), "{part} is not in {text}");
        }
    }

    #[test]
    fn what_is_another_users_is_given_to_this_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let metadata = fs::metadata(directory.path()).expect("it is there");
        let other = Process {
            uid: metadata.uid() + 1,
            gid: 7,
        };
        let path = directory.path();
        let own = other.remedy(path, path, &metadata);
        assert_eq!(
            own,
            format!("Run: sudo chown -R {}:7 {}", other.uid, path.display())
        );
        let new = other.remedy(&path.join("data"), path, &metadata);
        assert!(
            new.contains(&format!("install -d -o {} -g 7", other.uid)),
            "{new}"
        );
        let below = other.remedy(&path.join("a/data"), path, &metadata);
        assert!(below.contains("sudo chmod o+x"), "{below}");
    }

    #[test]
    fn what_is_not_there_is_denied_by_its_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let (found, _) = culprit(&directory.path().join("new")).expect("a directory");
        assert_eq!(found, directory.path());
        let (found, _) = culprit(Path::new("surely-not-here")).expect("this directory");
        assert_eq!(found, Path::new("."));
    }

    #[test]
    fn other_errors_have_no_remedy_here() {
        let path = Path::new("/tmp");
        assert_eq!(denial(path, &ErrorKind::NotFound.into()), "");
        let read_only = denial(path, &ErrorKind::ReadOnlyFilesystem.into());
        assert!(read_only.contains("read-only"), "{read_only}");
    }

    #[test]
    fn a_mark_is_taken_off_once() {
        assert_eq!(without_mark(b"\xef\xbb\xbfa"), b"a");
        assert_eq!(without_mark(b"a"), b"a");
        assert_eq!(without_mark(b"\xef\xbb\xbf\xef\xbb\xbf"), b"\xef\xbb\xbf");
    }
}
