//! Where each setting came from: a flag, the environment, the file, or nowhere.

use std::collections::BTreeMap;

use clap::{ArgMatches, Args as _, parser::ValueSource};
use evidenceos_files::denial;
use toml::{Table, Value};

use super::{ConfigError, Settings, secret_files, settings::SECRETS};

/// Where a setting came from, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A flag on the command line.
    Flag,
    Environment,
    /// The file that `--config` names.
    File,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
        })
    }
}

/// The merged settings, and the origin of each.
pub struct Layers {
    /// The strongest value of each setting.
    pub settings: Settings,
    /// The origin of each setting, by name.
    pub origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// Merges the parsed flags and environment with the file that they name. `matches` are those
    /// that `given` was made from.
    ///
    /// # Errors
    /// If the file cannot be read, or has unknown settings.
    pub fn new(given: Settings, matches: &ArgMatches) -> Result<Self, ConfigError> {
        let one = |problem: String| ConfigError(vec![problem]);
        let mut table = Table::new();
        let mut origins = BTreeMap::new();
        if let Some(path) = &given.config {
            let failed = |error: &dyn std::fmt::Display| {
                one(format!("--config {}: {error}", path.display()))
            };
            let text = std::fs::read_to_string(path).map_err(|error| {
                let why = denial(path, &error);
                failed(&format_args!("{error}{why}"))
            })?;
            // A byte order mark that an editor put before the text is no setting.
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            // Names and kinds are checked here, so that a message shows the line.
            toml::from_str::<Settings>(text).map_err(|error| failed(&error))?;
            table = text.parse().map_err(|error| failed(&error))?;
            if table.keys().any(|name| SECRETS.contains(&name.as_str())) {
                let metadata = std::fs::metadata(path).map_err(|error| failed(&error))?;
                secret_files::closed_to_others(path, &metadata)
                    .map_err(|problem| one(format!("--config {problem}")))?;
            }
            origins.extend(table.keys().map(|name| (name.clone(), Origin::File)));
        }
        let over = Table::try_from(&given).map_err(|error| one(error.to_string()))?;
        for (name, value) in over {
            let source = matches.value_source(&name);
            let origin = match source {
                Some(ValueSource::EnvVariable) => Origin::Environment,
                _ => Origin::Flag,
            };
            origins.insert(name.clone(), origin);
            table.insert(name, value);
        }
        let (begin_log, serve_unprotected) = (given.begin_log.clone(), given.serve_unprotected);
        let settings =
            Settings::deserialize_table(table).map_err(|error| one(error.to_string()))?;
        Ok(Self {
            // It holds for one start, so it is not in a file for the next.
            settings: Settings {
                begin_log,
                serve_unprotected,
                ..settings
            },
            origins,
        })
    }

    /// One line for each setting, by name: `name = value` and its origin, or the default as a comment if it was not
    /// given. Secrets are hidden.
    #[must_use]
    pub fn shown(&self) -> Vec<String> {
        let table = Table::try_from(&self.settings).unwrap_or_default();
        let mut lines: Vec<String> = table
            .iter()
            .filter_map(|(name, value)| {
                let origin = self.origins.get(name)?;
                let value = if SECRETS.contains(&name.as_str()) {
                    "(hidden)".to_owned()
                } else {
                    value.to_string()
                };
                Some(format!("{name} = {value}  # {origin}"))
            })
            .collect();
        let known = Settings::augment_args(clap::Command::new("settings"));
        let left_out = known.get_arguments().filter(|argument| {
            let name = argument.get_id().as_str();
            !self.origins.contains_key(name) && !NOT_SHOWN.contains(&name)
        });
        lines.extend(left_out.map(|argument| {
            let name = argument.get_id();
            match default_of(argument) {
                Some(default) => format!("# {name} = {default}  # default"),
                None => format!("# {name}  # not set"),
            }
        }));
        // Sorted by name, whether given or not.
        lines.sort_unstable_by(|one, other| {
            let name = |line: &str| line.trim_start_matches("# ").to_owned();
            name(one).cmp(&name(other))
        });
        lines
    }
}

/// Settings that are not part of a configuration: the file itself, and those for one start.
const NOT_SHOWN: [&str; 3] = ["config", "begin_log", "serve_unprotected"];

/// The default in a setting's help text.
fn default_of(argument: &clap::Arg) -> Option<String> {
    let help = argument.get_help()?.to_string();
    let (_, default) = help.rsplit_once("[default: ")?;
    Some(default.trim_end_matches(']').to_owned())
}

impl Settings {
    fn deserialize_table(table: Table) -> Result<Self, toml::de::Error> {
        Value::Table(table).try_into()
    }
}
