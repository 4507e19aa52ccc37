//! What the daemon is told: flags over environment over a file over defaults.
//!
//! The environment is read once, here. Every problem is reported, not only the first.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use serde::Deserialize;
use thiserror::Error;

/// How the log lines of the daemon look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// The daemon's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where gRPC is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Everything durable is under here.
    pub data_dir: PathBuf,
    /// The log's name; fixed by the first start.
    pub log_origin: Option<String>,
    /// What is logged, as a `tracing` filter.
    pub log: String,
    /// How.
    pub log_format: LogFormat,
    /// How long a stop waits for runs under way.
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50051)),
            data_dir: PathBuf::from("./data"),
            log_origin: None,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            drain: Duration::from_secs(20),
        }
    }
}

/// The EvidenceOS daemon: keeps holdouts, runs claims, certifies what the evidence carries.
///
/// Started bare it is a development server on loopback, for one user who may do everything.
#[derive(Debug, Clone, Default, Parser)]
#[command(
    name = "evidenceos-daemon",
    version,
    after_help = "Examples:
  evidenceos-daemon                                   serve 127.0.0.1:50051 over ./data
  evidenceos-daemon --data-dir /srv/evidenceos        another directory
  evidenceos-daemon --listen 127.0.0.1:0 --log debug  any free port, more words

Then, in another terminal:
  evidenceos holdout add labels.csv --ref mine --p0 0.8
  evidenceos claim pack predictions.csv -o claim.wasm
  evidenceos claim run claim.wasm --holdout mine"
)]
pub struct Flags {
    /// Where to serve gRPC: IP address and port [default: 127.0.0.1:50051]
    #[arg(long, env = "EVIDENCEOS_LISTEN", value_name = "IP:PORT")]
    listen: Option<String>,
    /// Directory of everything durable [default: ./data]
    #[arg(long, env = "EVIDENCEOS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Name of the log, at the first start only [default: evidenceos.local/ and the key's first 16 digits]
    #[arg(long, env = "EVIDENCEOS_LOG_ORIGIN", value_name = "NAME")]
    log_origin: Option<String>,
    /// What to log: error, warn, info, debug, trace, or a filter for parts [default: info]
    #[arg(long, env = "EVIDENCEOS_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How to log [default: text]
    #[arg(long, env = "EVIDENCEOS_LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
    /// Seconds that a stop waits for runs under way [default: 20]
    #[arg(long, env = "EVIDENCEOS_DRAIN_SECONDS", value_name = "SECONDS")]
    drain_seconds: Option<u64>,
    /// TOML file with the same settings (listen = "…", data_dir = "…", …); flags and environment win
    #[arg(long, env = "EVIDENCEOS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    listen: Option<String>,
    data_dir: Option<PathBuf>,
    log_origin: Option<String>,
    log: Option<String>,
    log_format: Option<LogFormat>,
    drain_seconds: Option<u64>,
}

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Flags {
    /// The configuration that flags, environment and file make together.
    ///
    /// # Errors
    /// Every problem, a line each.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => read(path).map_err(|problem| ConfigError(vec![problem]))?,
            None => ConfigFile::default(),
        };
        let default = Config::default();
        let mut problems = Vec::new();
        let listen = match self.listen.or(file.listen) {
            Some(text) => listen_address(&text).unwrap_or_else(|problem| {
                problems.push(problem);
                default.listen
            }),
            None => default.listen,
        };
        let config = Config {
            listen,
            data_dir: self.data_dir.or(file.data_dir).unwrap_or(default.data_dir),
            log_origin: self.log_origin.or(file.log_origin),
            log: self.log.or(file.log).unwrap_or(default.log),
            log_format: self
                .log_format
                .or(file.log_format)
                .unwrap_or(default.log_format),
            drain: self
                .drain_seconds
                .or(file.drain_seconds)
                .map_or(default.drain, Duration::from_secs),
        };
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log) {
            problems.push(format!("--log {:?}: {error}", config.log));
        }
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError(problems))
        }
    }
}

/// Beyond loopback a server needs TLS and authentication, which this release does not have.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("--listen {text:?}: must be an IP address and a port, as 127.0.0.1:50051")
    })?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!(
            "--listen {text}: without TLS and authentication the daemon serves loopback only; use 127.0.0.1 or [::1]"
        ))
    }
}

fn read(path: &std::path::Path) -> Result<ConfigFile, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("--config {}: {error}", path.display()))?;
    toml::from_str(&text).map_err(|error| format!("--config {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> Flags {
        Flags::try_parse_from([&["evidenceos-daemon"], arguments].concat()).expect("known flags")
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:1\"\ndrain_seconds = 3\n").expect("writable");
        let path = path.to_str().expect("text");
        let config = flags(&["--config", path, "--listen", "127.0.0.1:2"])
            .resolve()
            .expect("fine");
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.drain, Duration::from_secs(3));
        assert_eq!(config.data_dir, PathBuf::from("./data"));
    }

    #[test]
    fn every_problem_is_reported() {
        let refused = flags(&["--listen", "0.0.0.0:50051", "--log", "a=b=c"]).resolve();
        assert_eq!(refused.expect_err("two problems").0.len(), 2);
        assert!(flags(&["--config", "/nowhere"]).resolve().is_err());
    }
}
