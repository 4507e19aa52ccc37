//! The operator's end of the control socket. Everything here blocks.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    time::Duration,
};

use evidenceos_store::{StoreError, backup};

use super::wire::{self, News, Order, SOCKET};
use crate::assemble::health::Condition;

/// How long a daemon may think about how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the daemon that serves a data directory for a backup, and follows it to its end. Blocks.
///
/// # Errors
/// Where nobody answers, or the daemon says that it failed.
pub fn back_up(
    data_directory: &Path,
    destination: PathBuf,
    follow: &mut dyn FnMut(&backup::Progress),
) -> Result<backup::Manifest, StoreError> {
    for news in order(data_directory, &Order::Backup { destination }, None)? {
        match news? {
            News::Progress(progress) => follow(&progress),
            News::Done(manifest) => return Ok(*manifest),
            News::Failed(why) => return Err(StoreError::Unusable(why)),
            News::Health(_) | News::Reloaded => break,
        }
    }
    Err(StoreError::Unusable(
        "the daemon ended before it was done, or had no room for another order; what was begun is not complete".to_owned(),
    ))
}

/// Asks the daemon that serves a data directory how it is. Blocks, for two seconds at most.
///
/// # Errors
/// Where nobody answers.
pub fn condition(data_directory: &Path) -> Result<Condition, StoreError> {
    let mut news = order(data_directory, &Order::Health, Some(HEALTH_TIMEOUT))?;
    match news.next().transpose()? {
        Some(News::Health(condition)) => Ok(condition),
        Some(News::Failed(why)) => Err(StoreError::Unusable(why)),
        _ => Err(StoreError::Unusable(
            "the daemon had no room for another order".to_owned(),
        )),
    }
}

/// Has the daemon that serves a data directory read its files again. Blocks.
///
/// # Errors
/// Where nobody answers; or a line for each file that could not be taken over.
pub fn reload(data_directory: &Path) -> Result<(), StoreError> {
    let mut news = order(data_directory, &Order::Reload, None)?;
    match news.next().transpose()? {
        Some(News::Reloaded) => Ok(()),
        Some(News::Failed(why)) => Err(StoreError::Unusable(why)),
        _ => Err(StoreError::Unusable(
            "the daemon ended, or had no room for another order".to_owned(),
        )),
    }
}

/// Gives an order, and reads what is answered line by line.
fn order(
    data_directory: &Path,
    order: &Order,
    patience: Option<Duration>,
) -> Result<impl Iterator<Item = Result<News, StoreError>> + use<>, StoreError> {
    let path = data_directory.join(SOCKET);
    let failed = |operation| StoreError::io(operation, path.clone());
    let connected = wire::short_path(data_directory, SOCKET)
        .and_then(|(_directory, short)| StdStream::connect(short));
    let mut stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            StoreError::Unusable(format!(
                "nobody answers at {}; is {} the directory of a daemon that runs?",
                path.display(),
                data_directory.display()
            ))
        }
        _ => failed("connect to the daemon at")(error),
    })?;
    // A backup may be silent for long, so that only a look at the health is given up.
    stream
        .set_read_timeout(patience)
        .map_err(failed("read from"))?;
    let written = stream.write_all(&wire::line(order));
    written.map_err(failed("write to"))?;
    let lines = BufReader::new(stream).lines();
    Ok(lines.map(move |line| {
        let line = line.map_err(StoreError::io("read from", path.clone()))?;
        serde_json::from_str(&line).map_err(|error| {
            StoreError::Unusable(format!(
                "the daemon answered {line:?}, which this release does not understand ({error}); use the daemon's own release"
            ))
        })
    }))
}
