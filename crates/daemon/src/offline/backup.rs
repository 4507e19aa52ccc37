//! `backup` and `restore`.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc,
};

use evidenceos_driver::{
    clock::unix_ms,
    mailbox::{CopyNews, CopyOrder, Mailbox},
};
use evidenceos_store::{
    StoreError,
    backup::{self, Manifest, Progress, Report, Stage},
    lock::DirectoryLock,
};

use super::error::BackupError;
use crate::{
    control::{self, ControlError},
    terminal,
};

const SOFTWARE: &str = concat!("evidenceosd/", env!("CARGO_PKG_VERSION"));

/// Backs up the directory that this process serves; its writer goes on with batches meanwhile.
///
/// # Errors
/// The error of `report` if it breaks the backup off; another one if the backup fails. The
/// destination is then incomplete.
pub fn of_served(
    mailbox: &Mailbox,
    data_directory: &Path,
    destination: &Path,
    report: &mut Report<'_, BackupError>,
) -> Result<Manifest, BackupError> {
    begin(data_directory, destination)?;
    let (news, copied) = mpsc::channel();
    mailbox.copy(CopyOrder {
        to: destination.to_owned(),
        news,
    });
    loop {
        match copied.recv() {
            Ok(CopyNews::Pages(pages)) => report(pages.progress())?,
            Ok(CopyNews::Done(done)) => break done?,
            Err(_) => return Err(BackupError::WriterEnded),
        }
    }
    backup::complete(data_directory, destination, SOFTWARE, unix_ms(), report)
}

fn begin(data_directory: &Path, destination: &Path) -> Result<(), BackupError> {
    if !destination.is_absolute() {
        return Err(BackupError::NotAbsolute(destination.to_owned()));
    }
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // The destination need not exist yet, so its parent tells where it is.
    let parent = destination.parent().unwrap_or(destination);
    if canonical(parent).starts_with(canonical(data_directory)) {
        return Err(BackupError::WithTheData(destination.to_owned()));
    }
    Ok(backup::prepare(destination)?)
}

fn at_rest(
    data_directory: &Path,
    lock: &DirectoryLock,
    destination: &Path,
    report: &mut Report<'_, BackupError>,
) -> Result<Manifest, BackupError> {
    begin(data_directory, destination)?;
    backup::copy_at_rest(data_directory, lock, destination, report)?;
    backup::complete(data_directory, destination, SOFTWARE, unix_ms(), report)
}

/// Runs `evidenceos-daemon backup`, with or without a daemon that serves.
#[must_use]
pub fn back_up(data_directory: &Path, destination: &Path, as_json: bool) -> ExitCode {
    let mut shown = Shown::new(as_json);
    let made = destination_of(destination).and_then(|destination| {
        if !data_directory.is_dir() {
            return Err(BackupError::NoData(data_directory.to_owned()));
        }
        match DirectoryLock::take(data_directory) {
            Ok(lock) => at_rest(data_directory, &lock, &destination, &mut |progress| {
                shown.follow(&progress);
                Ok(())
            }),
            // Another process holds the lock: perhaps a daemon that makes the backup.
            Err(held @ StoreError::Locked { .. }) => {
                ask(data_directory, destination, held, &mut |progress| {
                    shown.follow(progress);
                })
            }
            Err(error) => Err(error.into()),
        }
    });
    shown.end(made, |manifest| {
        format!(
            "backed up {} to {}: {}. Left out on purpose: {}",
            data_directory.display(),
            destination.display(),
            summary(manifest),
            manifest.excluded.join(", ")
        )
    })
}

/// Has the process that holds the directory make the backup.
fn ask(
    data_directory: &Path,
    destination: PathBuf,
    held: StoreError,
    follow: &mut dyn FnMut(&Progress),
) -> Result<Manifest, BackupError> {
    control::back_up(data_directory, destination, follow).map_err(|error| match error {
        // A daemon that is starting, and `fsck`, hold the directory and have no socket.
        source @ (ControlError::Io(_) | ControlError::NobodyAnswers { .. }) => {
            BackupError::Deaf { held, source }
        }
        error => error.into(),
    })
}

fn destination_of(path: &Path) -> Result<PathBuf, BackupError> {
    std::path::absolute(path).map_err(|source| BackupError::NoPlace {
        path: path.to_owned(),
        source,
    })
}

/// Runs `evidenceos-daemon restore` into a directory without data.
#[must_use]
pub fn restore(source: &Path, data_directory: &Path, as_json: bool) -> ExitCode {
    let mut shown = Shown::new(as_json);
    let restored = backup::restore(source, data_directory, &mut |progress| {
        shown.follow(&progress);
        Ok(())
    });
    shown.end(restored, |manifest| {
        format!(
            "restored {} from {}: {}.\n\
             Backups leave out keys/, secrets/ and certificates: bring them back, with their modes, before the next start.\n\
             All that was signed after this backup is missing here, so the directory is read-only: a daemon serves reads, and signs and charges nothing, until one of these says what happened:\n  \
             evidenceos-daemon log recover --from URL|DIR     brings the missing entries back, from the published log, a mirror or another backup\n  \
             evidenceos-daemon log restart --origin NEW --because TEXT     goes on under another name, if they are lost\n  \
             evidenceos-daemon log continue --nothing-was-signed-since --because TEXT     states that there are none\n\
             If an anchor (--anchor) remembers exactly this backup's head, as after a planned move, the start needs none of them; if an anchor remembers more, recover the missing entries: no statement can replace them.",
            data_directory.display(),
            source.display(),
            summary(manifest)
        )
    })
}

fn summary(manifest: &Manifest) -> String {
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    let head = match &manifest.head {
        Some(head) => format!("head {} {}", head.size, head.root),
        None => "no head yet".to_owned(),
    };
    format!(
        "{} entries, {head}, {} files, {bytes} bytes",
        manifest.entries,
        manifest.files.len()
    )
}

/// The output for the user.
struct Shown {
    as_json: bool,
    in_place: bool,
    stage: Option<Stage>,
}

impl Shown {
    fn new(as_json: bool) -> Self {
        Self {
            as_json,
            in_place: !as_json && std::io::stderr().is_terminal(),
            stage: None,
        }
    }

    fn follow(&mut self, progress: &Progress) {
        if self.as_json {
            terminal::say(&serde_json::json!({ "progress": progress }).to_string());
        } else if self.in_place {
            if self.stage.replace(progress.stage) != Some(progress.stage) {
                eprintln!();
            }
            eprint!(
                "\r{}: {} of {}   ",
                name(progress.stage),
                progress.done,
                progress.total
            );
        } else if self.stage.replace(progress.stage) != Some(progress.stage) {
            eprintln!("{} …", name(progress.stage));
        }
    }

    fn end(
        self,
        ended: Result<Manifest, BackupError>,
        say: impl Fn(&Manifest) -> String,
    ) -> ExitCode {
        if self.in_place && self.stage.is_some() {
            eprintln!();
        }
        match ended {
            Ok(manifest) if self.as_json => {
                terminal::say(&serde_json::json!({ "done": manifest }).to_string());
                ExitCode::SUCCESS
            }
            Ok(manifest) => {
                terminal::say(&say(&manifest));
                ExitCode::SUCCESS
            }
            Err(error) => {
                if self.as_json {
                    terminal::say(&serde_json::json!({ "failed": error.to_string() }).to_string());
                }
                terminal::complain(&error);
                ExitCode::FAILURE
            }
        }
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Database => "database, pages",
        Stage::Blobs => "blobs",
        Stage::Log => "log, entries",
        Stage::Digests => "digests, bytes",
        Stage::Files => "files, bytes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_holds_the_directory_and_takes_no_orders_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let _held = DirectoryLock::take(directory.path()).expect("free");
        let held = DirectoryLock::take(directory.path()).expect_err("held");
        let destination = directory.path().join("backup");
        let refused = ask(directory.path(), destination, held, &mut |_| {});
        let said = refused.expect_err("there is no socket").to_string();
        let process = format!("process {}", std::process::id());
        for part in [process.as_str(), "wait until it serves, or stop it"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
