//! What the daemon is told: flags over environment over a file over defaults.
//!
//! [`Settings`] is the list as written, [`Layers`] knows which of them came from where, [`Config`]
//! is what they mean together. The environment is read once, by the parser of the flags. Every
//! problem is reported, not only the first. Incomplete security settings are problems, never a
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
    /// What is served where, and how it is protected.
    pub listeners: Listeners,
    /// How callers are authenticated.
    pub identity: IdentityConfig,
    /// Where the log's key is.
    pub keys: KeySource,
    /// Whether an empty ring is filled at the first start.
    pub generate_key: bool,
    /// The program of the processes in which guests and policies run; no setting of users.
    pub guest_program: Program,
    /// Everything durable is under here.
    pub data_dir: PathBuf,
    /// Where the signing keys are, if not in `keys` there.
    pub key_dir: Option<PathBuf>,
    /// The log's name; fixed by the first start.
    pub log_origin: Option<String>,
    /// What is logged and traced.
    pub telemetry: evidenceos_telemetry::trace::Config,
    /// How long a stop waits for runs under way.
    pub drain: Duration,
    /// How long the ports stay open after a stop was asked for.
    pub drain_delay: Duration,
    /// The gate for agents.
    pub preflight: PreflightConfig,
    /// Whether a crash may leave the process's memory in a file.
    pub allow_core_dumps: bool,
    /// What runs cost, and what new accounts start with.
    pub accounting: Accounting,
    /// What remembers the newest head outside of the data directory.
    pub anchors: Anchoring,
    /// Whether to go on where no anchor answers.
    pub anchor_optional: bool,
    /// The name of the log that an empty data directory is to begin although its key was there
    /// before and no anchor knows that it has signed nothing.
    pub begin_log: Option<String>,
    /// Whether to serve a data directory without authentication that was served with it.
    pub serve_unprotected: bool,
    /// Bytes of the disk that must be free for new work; 0: anything will do.
    pub min_free_bytes: u64,
    /// Whether to take policy oracles that nobody has signed.
    pub allow_unsigned_policies: bool,
}

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

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// Runs of one principal that are computed at a time: as many as there are processors. Twice as many
/// are computed in all, so that another principal's run does not wait for this one's.
#[must_use]
pub fn guests_a_principal() -> usize {
    thread::available_parallelism().map_or(2, NonZero::get)
}

/// What is logged and traced. The filter is checked here, so that its problem is reported with the
/// others and `config check` finds it.
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

/// Where traces go; nothing of what they hold is secret, so plain http is taken.
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
    /// What settings mean together.
    ///
    /// # Errors
    /// Every problem, a line each.
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

    /// Which engine keeps the store, and where.
    #[must_use]
    pub fn store(&self) -> Location {
        Location::in_directory(&self.data_dir)
    }

    /// The sandbox that these settings ask for.
    ///
    /// # Errors
    /// [`EngineError`] if no guest can be run here.
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

    /// How the log finds its keys at a start.
    #[must_use]
    pub fn log_keys(&self) -> KeyConfig {
        KeyConfig {
            source: self.keys.clone(),
            directory: self.keys_path(),
            generate: self.generate_key,
            origin: self.log_origin.clone(),
        }
    }

    /// What remembers the newest head.
    #[must_use]
    pub fn anchoring(&self) -> AnchorConfig {
        AnchorConfig {
            data_dir: self.data_dir.clone(),
            anchors: self.anchors.clone(),
            optional: self.anchor_optional,
        }
    }

    /// The directory of the policy oracles.
    #[must_use]
    pub fn policies_path(&self) -> PathBuf {
        self.data_dir.join(evidenceos_gate::policies::DIRECTORY)
    }

    /// Whether it is a development server, which authenticates nobody.
    #[must_use]
    pub fn is_development(&self) -> bool {
        !self.identity.authenticates()
    }
}

/// A time such as 5s, 500ms or 5; none is none.
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
