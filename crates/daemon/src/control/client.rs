//! The client of the control socket. Everything here blocks.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    time::Duration,
};

use evidenceos_store::{FileError, backup};

use super::{
    error::ControlError,
    wire::{self, News, Order, SOCKET},
};
use crate::assemble::health::Condition;

/// How long the daemon may take to report its condition.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the daemon that serves a data directory for a backup, and follows it to its end. Blocks.
///
/// # Errors
/// [`ControlError::NobodyAnswers`] if no daemon serves the directory; [`ControlError::Failed`] if
/// the daemon reports why there is no backup; another variant if the connection fails.
pub fn back_up(
    data_directory: &Path,
    destination: PathBuf,
    follow: &mut dyn FnMut(&backup::Progress),
) -> Result<backup::Manifest, ControlError> {
    for news in order(data_directory, &Order::Backup { destination }, None)? {
        match news? {
            News::Progress(progress) => follow(&progress),
            News::Done(manifest) => return Ok(*manifest),
            News::Failed(why) => return Err(ControlError::Failed(why)),
            News::Health(_) | News::Reloaded => break,
        }
    }
    Err(ControlError::HungUp(
        "the daemon ended before it was done, or had no room for another command; the work is not complete",
    ))
}

/// Asks the daemon that serves a data directory for its condition. Blocks for at most two seconds.
///
/// # Errors
/// As [`back_up`].
pub fn condition(data_directory: &Path) -> Result<Condition, ControlError> {
    let mut news = order(data_directory, &Order::Health, Some(HEALTH_TIMEOUT))?;
    match news.next().transpose()? {
        Some(News::Health(condition)) => Ok(condition),
        Some(News::Failed(why)) => Err(ControlError::Failed(why)),
        _ => Err(ControlError::HungUp(
            "the daemon had no room for another command",
        )),
    }
}

/// Has the daemon that serves a data directory read its files again. Blocks.
///
/// # Errors
/// As [`back_up`]; [`ControlError::Failed`] has one line for each file that was not taken over.
pub fn reload(data_directory: &Path) -> Result<(), ControlError> {
    let mut news = order(data_directory, &Order::Reload, None)?;
    match news.next().transpose()? {
        Some(News::Reloaded) => Ok(()),
        Some(News::Failed(why)) => Err(ControlError::Failed(why)),
        _ => Err(ControlError::HungUp(
            "the daemon ended, or had no room for another command",
        )),
    }
}

/// Sends an order and reads the answers line by line.
fn order(
    data_directory: &Path,
    order: &Order,
    patience: Option<Duration>,
) -> Result<impl Iterator<Item = Result<News, ControlError>> + use<>, ControlError> {
    let path = data_directory.join(SOCKET);
    let failed = |operation| FileError::of(operation, path.clone());
    let connected = wire::short_path(data_directory, SOCKET)
        .and_then(|(_directory, short)| StdStream::connect(short));
    let mut stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NobodyAnswers {
            socket: path.clone(),
            directory: data_directory.to_owned(),
        },
        _ => failed("connect to the daemon at")(error).into(),
    })?;
    // A backup may be silent for long, so only the question for the condition has a time limit.
    stream
        .set_read_timeout(patience)
        .map_err(failed("read from"))?;
    let written = stream.write_all(&wire::line(order));
    written.map_err(failed("write to"))?;
    let lines = BufReader::new(stream).lines();
    Ok(lines.map(move |line| {
        let line = line.map_err(FileError::of("read from", path.clone()))?;
        serde_json::from_str(&line).map_err(|source| ControlError::OtherRelease { line, source })
    }))
}
