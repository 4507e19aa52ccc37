//! `evidenceos demo`: the whole system on real data, in a daemon of its own.
//!
//! Owns the story and its expectations: an honest good model is certified, an honest weak one is not, an attacker that
//! spends the whole allowance is not and harms no other principal, and every receipt verifies from files alone. Exit
//! status 0 only if all of that happened. The demo uses real gRPC and the real daemon, with durable writes; only the
//! data is prepared.

mod attack;
mod data;
mod model;
mod report;
mod story;

use std::path::{Path, PathBuf};

use clap::Args;
use evidenceos_daemon::Config;

use crate::{
    client::{Client, Connection},
    error::CliError,
    output::{Output, progress},
};

/// The directory of the demo.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  evidenceos demo\n  evidenceos demo --data-dir /tmp/evidenceos-demo --json"
)]
pub struct DemoArgs {
    /// Where to keep the daemon's data, the receipts and the log; if a demo exists there, this one uses a numbered
    /// directory beside it.
    #[arg(long, default_value = "./demo-data", value_name = "DIR")]
    data_dir: PathBuf,
}

/// The directory that a demo makes, and in which it keeps everything.
pub struct Place {
    pub root: PathBuf,
}

impl Place {
    /// Makes a directory that did not exist.
    fn new(wanted: &Path) -> Result<Self, CliError> {
        let root = free(wanted);
        let place = Self { root };
        for dir in [
            place.receipts(),
            place.mirror(),
            place.root.join("predictions"),
        ] {
            std::fs::create_dir_all(&dir).map_err(CliError::file(dir))?;
        }
        Ok(place)
    }

    /// The daemon's data directory.
    pub fn daemon(&self) -> PathBuf {
        self.root.join("daemon")
    }

    /// The directory of the receipts.
    pub fn receipts(&self) -> PathBuf {
        self.root.join("receipts")
    }

    /// The log's entries and checkpoint.
    pub fn mirror(&self) -> PathBuf {
        self.root.join("mirror")
    }

    /// The log's verifier key.
    pub fn key(&self) -> PathBuf {
        self.root.join("log.vkey")
    }
}

/// The path itself if it does not exist, otherwise the first of `path-2`, `path-3`, … that does
/// not.
fn free(wanted: &Path) -> PathBuf {
    let numbered = |number: u32| {
        let mut name = wanted.as_os_str().to_owned();
        name.push(format!("-{number}"));
        PathBuf::from(name)
    };
    std::iter::once(wanted.to_owned())
        .chain((2..).map(numbered))
        .find(|path| !path.exists())
        .unwrap_or_else(|| wanted.to_owned())
}

impl DemoArgs {
    /// Runs the demo and stops its daemon, whatever the result.
    pub async fn run(self) -> Result<Output, CliError> {
        let place = Place::new(&self.data_dir)?;
        progress(&format!("data directory {}", place.root.display()));
        let config = Config {
            listeners: evidenceos_daemon::config::Listeners {
                // Any free port, since a daemon may already run.
                grpc: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
                ..Default::default()
            },
            data_dir: place.daemon(),
            ..Config::default()
        };
        let running = evidenceos_daemon::start(config)
            .await
            .map_err(|error| CliError::Failed(format!("the daemon cannot start: {error}")))?;
        let endpoint = format!("http://{}", running.grpc_address());
        progress(&format!("daemon on {endpoint}"));
        let connection = Connection::plain(endpoint);
        // No early return from here on: the daemon has to be stopped.
        let told = match Client::connect(&connection).await {
            Ok(client) => story::tell(&place, client).await,
            Err(error) => Err(error),
        };
        let stopped = running.stop().await;
        let told = told?;
        stopped.map_err(|error| {
            CliError::Failed(format!("the daemon did not stop cleanly: {error}"))
        })?;
        Ok(told.into_output(&place))
    }
}
