//! Where each setting came from: a flag, the environment, the file, or nowhere.

use std::collections::BTreeMap;

use clap::{ArgMatches, parser::ValueSource};
use toml::{Table, Value};

use super::{ConfigError, Settings, secret_files, settings::SECRETS};

/// Where a setting came from, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    Environment,
    /// The file of `--config`.
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

/// Settings put together, and where each came from.
pub struct Layers {
    /// The strongest of each.
    pub settings: Settings,
    /// By the setting's name.
    pub origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// Puts the parsed flags and environment over the file that they name. `matches` are those
    /// that `given` was made from.
    ///
    /// # Errors
    /// Where the file cannot be read, or names settings that there are not.
    pub fn new(given: Settings, matches: &ArgMatches) -> Result<Self, ConfigError> {
        let one = |problem: String| ConfigError(vec![problem]);
        let mut table = Table::new();
        let mut origins = BTreeMap::new();
        if let Some(path) = &given.config {
            let failed = |error: &dyn std::fmt::Display| {
                one(format!("--config {}: {error}", path.display()))
            };
            let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
            // Names and kinds are checked here, so that a message shows the line.
            toml::from_str::<Settings>(&text).map_err(|error| failed(&error))?;
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
        let begin_log = given.begin_log.clone();
        let settings =
            Settings::deserialize_table(table).map_err(|error| one(error.to_string()))?;
        Ok(Self {
            // No file has it, so that it is not there at the next start.
            settings: Settings {
                begin_log,
                ..settings
            },
            origins,
        })
    }

    /// One line a setting that was given: name, value, where it came from. Secrets are hidden.
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
        lines.sort_unstable();
        lines
    }
}

impl Settings {
    fn deserialize_table(table: Table) -> Result<Self, toml::de::Error> {
        Value::Table(table).try_into()
    }
}
