//! The daemon's settings: flags over environment over a file over defaults.
//!
//! [`Settings`] lists them as written, [`Layers`] knows where each came from, [`Config`] is what
//! they mean together. The parser of the flags reads the environment once. Every problem is
//! reported, not only the first. Incomplete security settings are problems; they never lead to a
//! weaker server.

mod anchors;
mod check;
mod credit;
mod flags;
mod identity;
mod keys;
mod layers;
mod listeners;
mod preflight;
mod secret_files;
mod settings;

use std::{num::NonZero, path::PathBuf, thread, time::Duration};

pub use check::{Checked, check};
pub use evidenceos_gate::{DurableDecisions, PreflightConfig, ProbeProfile, RateLimit};
use evidenceos_kernel::account::Accounting;
use evidenceos_notary::{KeyConfig, anchors::AnchorConfig};
pub use evidenceos_notary::{
    KeySource, KmsKeys,
    anchors::{AnchorPlace, Anchoring},
};
use evidenceos_sandbox::{EngineError, Program, Sandbox};
use evidenceos_store::Location;
pub use flags::{AccountsCommand, Asked, CalledAs, Flags, without_empty_variables};
pub use identity::IdentityConfig;
pub use layers::{Layers, Origin};
pub use listeners::{Listeners, TlsConfig};
pub use settings::Settings;
use thiserror::Error;

/// The daemon's configuration, checked and merged from flags, environment and file.
#[derive(Debug, Clone)]
pub struct Config {
    /// The addresses to serve, and how they are protected.
    pub listeners: Listeners,
    /// How callers are authenticated.
    pub identity: IdentityConfig,
    /// Where the log's key is.
    pub keys: KeySource,
    /// Whether an empty key directory gets a key at the first start.
    pub generate_key: bool,
    /// The program of the processes in which guests and policy modules run; users cannot set it.
    pub guest_program: Program,
    /// The directory of everything durable.
    pub data_dir: PathBuf,
    /// The directory of the signing keys, if it is not `keys` in the data directory.
    pub key_dir: Option<PathBuf>,
    /// The log's name, which the first start fixes.
    pub log_origin: Option<String>,
    /// The settings of logs and traces.
    pub telemetry: evidenceos_telemetry::trace::Config,
    /// How long a stop waits for runs under way.
    pub drain: Duration,
    /// How long the ports stay open after a stop is asked for.
    pub drain_delay: Duration,
    /// How long the daemon keeps the module of an unexecuted claim; `None`: for ever.
    pub claims_keep: Option<Duration>,
    /// The gate for agents.
    pub preflight: PreflightConfig,
    /// Whether a crash may write the process's memory to a file.
    pub allow_core_dumps: bool,
    /// The prices of runs, and the credit of new accounts.
    pub accounting: Accounting,
    /// The anchors, which remember the newest head outside of the data directory.
    pub anchors: Anchoring,
    /// Whether to sign if no anchor answers.
    pub anchor_optional: bool,
    /// The log to begin in an empty data directory, by name, although its key existed before and no
    /// anchor confirms that the key has signed nothing.
    pub begin_log: Option<String>,
    /// Whether to serve without authentication a data directory that was served with it before.
    pub serve_unprotected: bool,
    /// Bytes that must be free on the disk for new work; 0: no limit.
    pub min_free_bytes: u64,
    /// Whether to load policy modules without a signature.
    pub allow_unsigned_policies: bool,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Config {
    /// A development server: gRPC alone, on loopback.
    fn default() -> Self {
        Self {
            listeners: Listeners::default(),
            identity: IdentityConfig::default(),
            keys: KeySource::default(),
            generate_key: true,
            guest_program: Program::default(),
            data_dir: PathBuf::from("./data"),
            key_dir: None,
            log_origin: None,
            telemetry: evidenceos_telemetry::trace::Config::default(),
            drain: Duration::from_secs(20),
            drain_delay: Duration::ZERO,
            claims_keep: Some(30 * DAY),
            preflight: PreflightConfig::default(),
            allow_core_dumps: false,
            accounting: Accounting::default(),
            anchors: Anchoring::default(),
            anchor_optional: false,
            begin_log: None,
            serve_unprotected: false,
            min_free_bytes: evidenceos_store::room::KEEP_FREE,
            allow_unsigned_policies: false,
        }
    }
}

/// All problems of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// How many runs of one principal are computed at a time: as many as there are processors. Twice as
/// many are computed in all, so that another principal's run does not wait for them.
#[must_use]
pub fn guests_a_principal() -> usize {
    thread::available_parallelism().map_or(2, NonZero::get)
}

/// The settings of logs and traces. The filter is checked here, so that its problem is reported
/// with the others and `config check` finds it.
fn telemetry(
    settings: &Settings,
    problems: &mut Vec<String>,
) -> evidenceos_telemetry::trace::Config {
    let default = evidenceos_telemetry::trace::Config::default();
    let config = evidenceos_telemetry::trace::Config {
        filter: settings.log.clone().unwrap_or(default.filter),
        format: settings.log_format.unwrap_or(default.format),
        otlp_endpoint: collector(settings.otlp_endpoint.as_deref(), problems),
    };
    if let Err(error) = config.check() {
        problems.push(format!("--log {:?}: {error}", config.filter));
    }
    config
}

/// The collector of traces. Traces hold no secrets, so plain http is allowed.
fn collector(endpoint: Option<&str>, problems: &mut Vec<String>) -> Option<String> {
    let endpoint = endpoint?;
    let uri = endpoint.parse::<http::Uri>().ok();
    let is_url = uri.is_some_and(|uri| {
        uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https"))
    });
    if !is_url {
        problems.push(format!(
            "--otlp-endpoint {endpoint:?}: write a URL, as http://127.0.0.1:4317"
        ));
    }
    Some(endpoint.to_owned())
}

impl Config {
    /// Checks the settings and what they mean together.
    ///
    /// # Errors
    /// Every problem, one a line.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let default = Self::default();
        let mut problems = Vec::new();
        let listeners = Listeners::new(settings, &mut problems);
        let identity = IdentityConfig::new(settings, &listeners, &mut problems);
        let is_protected = listeners.tls.is_some() && identity.authenticates();
        let preflight = preflight::gate(settings, &mut problems);
        listeners.must_be_protected(settings, &identity, &preflight, &mut problems);
        let keys = keys::source(settings, is_protected, &mut problems);
        let data_dir = settings.data_dir.clone().unwrap_or(default.data_dir);
        let anchors = anchors::places(settings, &data_dir, &mut problems);
        let config = Self {
            guest_program: default.guest_program,
            listeners,
            identity,
            keys,
            generate_key: settings.generate_key.unwrap_or(!is_protected),
            data_dir,
            key_dir: settings.key_dir.clone(),
            log_origin: settings.log_origin.clone(),
            telemetry: telemetry(settings, &mut problems),
            drain: settings
                .drain_seconds
                .map_or(default.drain, Duration::from_secs),
            drain_delay: delay(settings.drain_delay.as_deref(), &mut problems),
            claims_keep: match settings.claims_keep_days {
                None => default.claims_keep,
                Some(0) => None,
                Some(days) => Some(DAY * u32::try_from(days).unwrap_or(u32::MAX)),
            },
            preflight,
            allow_core_dumps: settings.allow_core_dumps.unwrap_or(false),
            accounting: credit::accounting(settings, &mut problems),
            anchors,
            anchor_optional: settings.anchor_optional.unwrap_or(false),
            begin_log: settings.begin_log.clone(),
            serve_unprotected: settings.serve_unprotected,
            min_free_bytes: settings.min_free_bytes.unwrap_or(default.min_free_bytes),
            allow_unsigned_policies: settings.allow_unsigned_policies.unwrap_or(false),
        };
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError(problems))
        }
    }

    /// The storage engine and its place.
    #[must_use]
    pub fn store(&self) -> Location {
        Location::in_directory(&self.data_dir)
    }

    /// The sandbox of these settings.
    ///
    /// # Errors
    /// [`EngineError`] if no guest can run on this machine.
    pub fn sandbox(&self) -> Result<Sandbox, EngineError> {
        Sandbox::new(evidenceos_sandbox::Config {
            program: self.guest_program.clone(),
            guests: 2 * guests_a_principal(),
            ..Default::default()
        })
    }

    /// The directory of the signing keys.
    #[must_use]
    pub fn keys_path(&self) -> PathBuf {
        let beside = || self.data_dir.join("keys");
        self.key_dir.clone().unwrap_or_else(beside)
    }

    /// The settings by which a start finds the log's keys.
    #[must_use]
    pub fn log_keys(&self) -> KeyConfig {
        KeyConfig {
            source: self.keys.clone(),
            directory: self.keys_path(),
            generate: self.generate_key,
            origin: self.log_origin.clone(),
        }
    }

    /// The settings of the anchors.
    #[must_use]
    pub fn anchoring(&self) -> AnchorConfig {
        AnchorConfig {
            data_dir: self.data_dir.clone(),
            anchors: self.anchors.clone(),
            optional: self.anchor_optional,
        }
    }

    /// The directory of the policy modules.
    #[must_use]
    pub fn policies_path(&self) -> PathBuf {
        self.data_dir.join(evidenceos_gate::policies::DIRECTORY)
    }

    /// Whether this is a development server, which authenticates no caller.
    #[must_use]
    pub fn is_development(&self) -> bool {
        !self.identity.authenticates()
    }
}

/// A time such as 5s, 500ms or 5; zero if none is given.
fn delay(text: Option<&str>, problems: &mut Vec<String>) -> Duration {
    let Some(text) = text else {
        return Duration::ZERO;
    };
    let (number, unit_ms) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1_000),
    };
    match number.parse::<u64>() {
        Ok(number) if number.saturating_mul(unit_ms) <= 300_000 => {
            // The guard has bounded the product, so that it does not overflow here.
            Duration::from_millis(number * unit_ms)
        }
        _ => {
            problems.push(format!(
                "--drain-delay {text:?}: give a time of at most 300s, as 5s or 500ms"
            ));
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests;
