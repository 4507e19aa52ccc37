//! Checks which users besides the daemon's can write the directories of its files.
//!
//! A user who can write a directory, or one above it, can put another in its place: another database, other keys,
//! other policies. The rule: group and others must not have write access, except as deployments need.
//!
//! - A sticky directory (`/tmp`) is allowed: users cannot rename each other's files there.
//! - Group may write if the group is one of the process's own, or root's: Kubernetes creates volumes like this
//!   (`fsGroup`).
//! - If a mount point of root's is writable for all, like some volumes of Kubernetes, the process gets a warning
//!   unless it is root: it cannot change the mode, and a container has no other users.

use std::{
    collections::BTreeSet,
    fs::{self, Metadata, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};

use crate::StoreError;

const STICKY: u32 = 0o1000;

/// The process's identity for the file system.
struct Process {
    uid: u32,
    groups: BTreeSet<u32>,
}

impl Process {
    fn this() -> Self {
        // Without the list only the process's own group counts, which refuses more, not less.
        let more = rustix::process::getgroups().unwrap_or_default();
        let own = rustix::process::getegid();
        let groups = more.into_iter().chain([own]).map(|gid| gid.as_raw());
        Self {
            uid: rustix::process::geteuid().as_raw(),
            groups: groups.collect(),
        }
    }
}

/// A fault of a directory's permissions.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// The process must not work there.
    Refused { what: String, remedy: String },
    /// The process may work there, and its log warns the operator.
    Warned(String),
}

/// Refuses a directory that others can write, or that is below one. Returns warnings for the
/// operator. A directory that does not exist is no fault; those above it are checked.
///
/// # Errors
/// [`StoreError::Refused`] names the directory, its mode, and the command that mends it.
pub fn must_be_closed(directory: &Path) -> Result<Vec<String>, StoreError> {
    let process = Process::this();
    let mut warnings = Vec::new();
    for directory in with_all_above(directory)? {
        // The code that opens a missing or unreadable directory reports it.
        let Ok(metadata) = fs::metadata(&directory) else {
            continue;
        };
        let is_mount = is_mount(&directory, &metadata);
        match fault(&directory, &metadata, is_mount, &process) {
            None => {}
            Some(Fault::Warned(warning)) => warnings.push(warning),
            Some(Fault::Refused { what, remedy }) => return Err(StoreError::refused(what, remedy)),
        }
    }
    Ok(warnings)
}

/// Closes a directory to group and others if it is the process's own; otherwise others must not be
/// able to write it.
///
/// # Errors
/// [`StoreError::Io`] if it cannot be closed; [`StoreError::Refused`] if others can write it.
pub fn close(directory: &Path) -> Result<(), StoreError> {
    let metadata = fs::metadata(directory).map_err(StoreError::io("inspect", directory))?;
    let process = Process::this();
    if metadata.uid() == process.uid {
        if metadata.mode() & 0o077 == 0 {
            return Ok(());
        }
        // Group and others lose their rights; setuid, setgid and sticky bits stay as they are.
        let mode = metadata.mode() & 0o7700;
        return fs::set_permissions(directory, Permissions::from_mode(mode))
            .map_err(StoreError::io("close to others", directory));
    }
    let is_mount = is_mount(directory, &metadata);
    match fault(directory, &metadata, is_mount, &process) {
        Some(Fault::Refused { what, remedy }) => Err(StoreError::refused(what, remedy)),
        Some(Fault::Warned(_)) | None => Ok(()),
    }
}

/// The directory and all above it, as named and as resolved through links.
fn with_all_above(directory: &Path) -> Result<BTreeSet<PathBuf>, StoreError> {
    // The parent of a relative name with one part.
    let here = Path::new(".");
    let directory = if directory.as_os_str().is_empty() {
        here
    } else {
        directory
    };
    let named = std::path::absolute(directory).map_err(StoreError::io("find", directory))?;
    // A missing directory resolves to nothing.
    let real = directory.canonicalize().unwrap_or_default();
    let all = named.ancestors().chain(real.ancestors());
    let is_path = |path: &&Path| !path.as_os_str().is_empty();
    Ok(all.filter(is_path).map(Path::to_owned).collect())
}

/// Whether a file system is mounted there. The kernel also reports a bind mount within one file
/// system; before Linux 5.8 only a different device shows a mount.
fn is_mount(directory: &Path, metadata: &Metadata) -> bool {
    let statx = rustix::fs::statx(CWD, directory, AtFlags::empty(), StatxFlags::BASIC_STATS);
    if statx.is_ok_and(|statx| statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)) {
        return true;
    }
    let above = fs::metadata(directory.join(".."));
    above.is_ok_and(|above| above.dev() != metadata.dev())
}

fn fault(
    directory: &Path,
    metadata: &Metadata,
    is_mount: bool,
    process: &Process,
) -> Option<Fault> {
    let (mode, gid) = (metadata.mode(), metadata.gid());
    let of_group = mode & 0o020 != 0 && gid != 0 && !process.groups.contains(&gid);
    let of_others = mode & 0o002 != 0;
    if mode & STICKY != 0 || !(of_group || of_others) {
        return None;
    }
    let shown = format!("{} has mode {:04o}", directory.display(), mode & 0o7777);
    if is_mount && metadata.uid() == 0 && process.uid != 0 {
        return Some(Fault::Warned(format!(
            "{shown} and is a mount point of root's: other users of this machine could replace the daemon's files; if there are any, close it with `chmod go-w {}`",
            quoted(directory)
        )));
    }
    let who = match (of_group, of_others) {
        (true, true) => format!("group {gid} and others"),
        (true, false) => format!("group {gid}, which is not the daemon's,"),
        (false, _) => "others".to_owned(),
    };
    let rights = match (of_group, of_others) {
        (true, true) => "go-w",
        (true, false) => "g-w",
        (false, _) => "o-w",
    };
    Some(Fault::Refused {
        what: format!("{shown}: {who} can replace the daemon's files"),
        remedy: format!("run: chmod {rights} {}", quoted(directory)),
    })
}

/// A path quoted for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
    if text.bytes().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN_GROUP: u32 = 4_000;

    fn with_mode(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let kept = tempfile::tempdir().expect("a directory");
        let path = kept.path().join("above/data");
        fs::create_dir_all(&path).expect("made");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
        (kept, path)
    }

    /// The fault of a directory with this mode, whose group is the process's own or not.
    fn fault_of(mode: u32, own_group: bool, is_mount: bool, uid: u32) -> Option<Fault> {
        let (_kept, path) = with_mode(mode);
        let metadata = fs::metadata(&path).expect("there");
        // If root runs the tests, root's group is its own, so the table uses another group.
        let _ = std::os::unix::fs::chown(&path, None, Some(OWN_GROUP));
        let gid = fs::metadata(&path).expect("there").gid();
        let groups = if own_group { [gid].into() } else { [].into() };
        let process = Process { uid, groups };
        let metadata = if gid == metadata.gid() {
            metadata
        } else {
            fs::metadata(&path).expect("there")
        };
        fault(&path, &metadata, is_mount, &process)
    }

    #[test]
    fn group_and_others_must_not_write() {
        let is_root = rustix::process::geteuid().is_root();
        for (mode, own_group, refused) in [
            (0o700, false, false),
            (0o755, false, false),
            (0o775, true, false),
            (0o2775, true, false),
            (0o2770, true, false),
            (0o1777, false, false),
            (0o3777, true, false),
            (0o777, true, true),
            (0o2777, true, true),
            (0o702, true, true),
            (0o772, true, true),
            // Only root can give the directory a group that is not ours.
            (0o775, false, is_root),
            (0o770, false, is_root),
        ] {
            let found = fault_of(mode, own_group, false, 7);
            if !is_root && !own_group && mode & 0o020 != 0 {
                continue;
            }
            assert_eq!(found.is_some(), refused, "{mode:o} {own_group}: {found:?}");
            if let Some(Fault::Refused { remedy, .. }) = found {
                assert!(remedy.contains("run: chmod "), "{remedy}");
            }
        }
    }

    #[test]
    fn a_mount_point_of_roots_is_a_warning_for_others_than_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for (is_mount, uid, warned) in [(true, 7, true), (true, 0, false), (false, 7, false)] {
            let found = fault_of(0o777, true, is_mount, uid).expect("a fault");
            assert_eq!(matches!(found, Fault::Warned(_)), warned, "{found:?}");
        }
    }

    #[test]
    fn the_command_is_one_that_a_shell_takes() {
        for (path, shown) in [
            ("/srv/data-1", "/srv/data-1"),
            ("/srv/my data", "'/srv/my data'"),
            ("/srv/it's;x", r"'/srv/it'\''s;x'"),
        ] {
            assert_eq!(quoted(Path::new(path)), shown);
        }
    }

    #[test]
    fn a_mount_point_is_known() {
        for (path, mounted) in [("/proc", true), ("/proc/self", false)] {
            let path = Path::new(path).canonicalize().expect("there");
            let metadata = fs::metadata(&path).expect("there");
            assert_eq!(is_mount(&path, &metadata), mounted, "{}", path.display());
        }
    }

    #[test]
    fn a_directory_above_counts_as_the_directory_does() {
        let (_kept, path) = with_mode(0o700);
        assert!(must_be_closed(&path).is_ok());
        let above = path.parent().expect("one");
        for (mode, sound) in [(0o777, false), (0o1777, true), (0o755, true)] {
            fs::set_permissions(above, Permissions::from_mode(mode)).expect("ours");
            let checked = must_be_closed(&path);
            assert_eq!(checked.is_ok(), sound, "{mode:o}: {checked:?}");
        }
        // Also check above the target of a link, and above the link.
        let other = tempfile::tempdir().expect("a directory");
        let link = other.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("made");
        assert!(must_be_closed(&link).is_ok());
        fs::set_permissions(above, Permissions::from_mode(0o777)).expect("ours");
        let refused = must_be_closed(&link).expect_err("open above");
        assert!(refused.to_string().contains("chmod o-w"), "{refused}");
        fs::set_permissions(above, Permissions::from_mode(0o755)).expect("ours");
        fs::set_permissions(other.path(), Permissions::from_mode(0o777)).expect("ours");
        must_be_closed(&link).expect_err("the link can be put elsewhere");
    }

    #[test]
    fn an_open_directory_of_ours_is_closed() {
        for (mode, then) in [(0o755, 0o700), (0o2775, 0o2700), (0o700, 0o700)] {
            let (_kept, path) = with_mode(mode);
            close(&path).expect("ours");
            let metadata = fs::metadata(&path).expect("there");
            assert_eq!(metadata.mode() & 0o7777, then, "{mode:o}");
        }
    }

    #[test]
    fn what_is_above_a_relative_name_is_where_the_process_is() {
        let here = with_all_above(Path::new(".")).expect("found");
        assert_eq!(with_all_above(Path::new("")).expect("found"), here);
        let below = with_all_above(Path::new("keys")).expect("found");
        assert!(below.is_superset(&here));
    }
}
