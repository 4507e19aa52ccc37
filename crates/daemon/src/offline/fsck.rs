//! `fsck`: reads everything in a data directory and reports what is wrong.

use std::{io::IsTerminal as _, process::ExitCode};

use evidenceos_keys::{Directory, KeyError, KeyId, Ring, secrets};
use evidenceos_notary::KeySource;
use evidenceos_store::{
    fsck::{self, Finding, Report},
    lock::DirectoryLock,
};

use crate::{assemble::StartError, config::Config, terminal};

/// Exit status if something is wrong.
const FINDINGS: u8 = 1;
/// Exit status if the directory could not be examined.
const NOT_EXAMINED: u8 = 2;

/// Examines the data directory of a configuration. Writes nothing but the lock's file.
///
/// # Errors
/// [`StartError::Store`] if a daemon serves it, or it has no database; [`StartError::Refused`] if
/// it is not a directory.
pub fn examine(
    config: &Config,
    follow: &mut dyn FnMut(&str, u64, u64),
) -> Result<Report, StartError> {
    let directory = &config.data_dir;
    if !directory.is_dir() {
        return Err(StartError::refused(
            format!("{} is not a directory", directory.display()),
            "give the --data-dir of a daemon",
        ));
    }
    let lock = DirectoryLock::take(directory)?;
    let mut report = fsck::examine(directory, &lock, follow)?;
    keys(config, &mut report);
    Ok(report)
}

/// Checks that the daemon's secrets are there and closed to other users, and, if keys are files,
/// that the key that signed last is there.
fn keys(config: &Config, report: &mut Report) {
    let mut findings = Vec::new();
    let mut looked_at = 0;
    let mut note = |key: String, what: String| {
        findings.push(Finding {
            check: "keys".to_owned(),
            table: "keys".to_owned(),
            key,
            what,
            repair: "bring it back from the backup of your keys, with its mode; a daemon without it does not start".to_owned(),
        });
    };
    let path = config.keys_path();
    let imported = path.exists().then(|| Directory::open(&path)).transpose();
    let own = Directory::open(&config.data_dir.join("secrets"));
    let read = |directory: &Result<Option<Directory>, KeyError>, name: &str| match directory {
        Ok(Some(directory)) => directory.read(name),
        _ => Ok(None),
    };
    let own = own.map(Some);
    for (place, directory) in [
        (path.clone(), &imported),
        (config.data_dir.join("secrets"), &own),
    ] {
        if let Err(error) = directory {
            note(place.display().to_string(), error.to_string());
        }
    }
    let wrapped = |own: &Result<Option<Directory>, KeyError>| match own {
        Ok(Some(own)) => own
            .read_text("holdouts.wrapped")
            .is_ok_and(|text| text.is_some()),
        _ => false,
    };
    for name in secrets::NAMES {
        looked_at += 1;
        match (read(&imported, name), read(&own, name)) {
            // If a KMS wraps the holdouts' key, the plain file is missing on purpose.
            (Ok(None), Ok(None)) if name == secrets::HOLDOUTS && wrapped(&own) => {}
            (Ok(None), Ok(None)) => note(name.to_owned(), "it is missing".to_owned()),
            (Err(error), _) | (_, Err(error)) => note(name.to_owned(), error.to_string()),
            _ => {}
        }
    }
    if let (KeySource::Files(_), Some(signed)) = (&config.keys, &report.head_key_id) {
        looked_at += 1;
        match (Ring::open(&path), signed.parse::<KeyId>()) {
            (Ok(ring), Ok(id)) if ring.keys().contains_key(&id) => {}
            (Ok(_), _) => note(
                format!("{signed}.key"),
                "it signed the newest head, and is missing".to_owned(),
            ),
            (Err(error), _) => note(path.display().to_string(), error.to_string()),
        }
    }
    report.add("keys", looked_at, findings);
}

/// Runs `evidenceos-daemon fsck` and prints its report.
#[must_use]
pub fn run(config: &Config, as_json: bool) -> ExitCode {
    let in_place = !as_json && std::io::stderr().is_terminal();
    let examined = examine(config, &mut |check, done, total| {
        if in_place && done > 0 {
            eprint!("\r{check}: {done} of {total}   ");
        }
    });
    if in_place {
        eprint!("\r{:60}\r", "");
    }
    let report = match examined {
        Ok(report) => report,
        Err(error) => {
            if as_json {
                terminal::say(&serde_json::json!({ "failed": error.to_string() }).to_string());
            }
            terminal::complain(&error);
            return ExitCode::from(NOT_EXAMINED);
        }
    };
    if as_json {
        terminal::say(&format!(
            "{}",
            serde_json::json!({
                "clean": report.is_clean(),
                "checks": report.checks,
                "findings": report.findings,
            })
        ));
    } else {
        show(&report);
    }
    if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FINDINGS)
    }
}

fn show(report: &Report) {
    for checked in &report.checks {
        match checked.findings {
            0 => terminal::say(&format!(
                "{:20} {:>10}  ok",
                checked.check, checked.looked_at
            )),
            n => terminal::say(&format!(
                "{:20} {:>10}  {n} wrong",
                checked.check, checked.looked_at
            )),
        }
        for finding in &report.findings {
            if finding.check == checked.check {
                terminal::say(&format!("  {}", terminal::line(&finding.to_string())));
            }
        }
    }
}
