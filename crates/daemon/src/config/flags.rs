//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::{ConfigError, Layers, Settings};

/// The EvidenceOS daemon: keeps holdouts, runs claims, certifies what the evidence carries.
///
/// Without flags it is a development server on loopback, where every caller has every role.
#[derive(Clone, Parser)]
#[command(
    name = "evidenceos-daemon",
    version = crate::VERSION,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  evidenceos-daemon                                   serve 127.0.0.1:50051 over ./data
  evidenceos-daemon --data-dir /srv/evidenceos        another directory
  evidenceos-daemon --listen 127.0.0.1:0 --log debug  any free port, more log lines
  evidenceos-daemon config check --config /etc/evidenceos/config.toml
  evidenceos-daemon backup /mnt/backups/today         copy ./data, also while it is served

With TLS, for callers with certificates (`evidenceos lab init ops` makes a set to try):
  evidenceos-daemon --listen 0.0.0.0:50051 --data-dir ops/data --anchor ops/anchor \\
    --tls-cert ops/certs/server.crt --tls-key ops/certs/server.key \\
    --mtls-client-ca ops/certs/ca.crt --require-client-cert \\
    --auth-policy ops/certs/policy.toml --generate-key

Then, in another terminal:
  evidenceos holdout add labels.csv --ref mine --p0 0.8
  evidenceos claim pack predictions.csv -o claim.wasm
  evidenceos claim run claim.wasm --holdout mine

On SIGHUP and on `evidenceos-daemon reload`, the daemon reads certificates, revocation lists, the role policy, secret
files, the active key and policy modules again."
)]
pub struct Flags {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Subcommand)]
enum Command {
    /// Check or show the configuration without serving
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Import an edited accounts.json, or regenerate it (daemon stopped)
    Accounts {
        #[command(subcommand)]
        what: AccountsCommand,
    },
    /// Copy the data directory, whether or not a daemon serves it
    ///
    /// The copy is consistent, checked while it is made, and complete once `backup.json` is in it.
    /// Signing keys, the daemon's secrets and certificates are not in it: back them up apart.
    #[command(after_help = "Examples:
  evidenceos-daemon backup /mnt/backups/2026-11-24
  evidenceos-daemon backup --data-dir /srv/evidenceos --json /mnt/backups/today")]
    Backup {
        /// A directory that is empty, or does not exist yet; the daemon's user must be able to write there
        destination: PathBuf,
        #[command(flatten)]
        place: Place,
        /// Print progress and result as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Bring a backup back into an empty data directory
    ///
    /// Every file is checked first. Bring keys/ and secrets/ back too. The daemon serves it
    /// read-only until an anchor or an operator confirms that it is the newest: see
    /// `evidenceos-daemon log --help`.
    #[command(after_help = "Example:
  evidenceos-daemon restore /mnt/backups/2026-11-24 --data-dir /srv/evidenceos")]
    Restore {
        /// The backup
        source: PathBuf,
        #[command(flatten)]
        place: Place,
        /// Print progress and result as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Recover, restart or continue a log whose database may not be the newest (daemon stopped)
    Log {
        #[command(subcommand)]
        what: LogCommand,
    },
    /// Check all of a data directory (daemon stopped)
    ///
    /// Nothing is written. Exit status: 0 all is well, 1 something is wrong, 2 the directory cannot
    /// be examined.
    #[command(after_help = "Examples:
  evidenceos-daemon fsck
  evidenceos-daemon fsck --data-dir /srv/evidenceos --json | jq .findings")]
    Fsck {
        #[command(flatten)]
        settings: Box<Settings>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Ask the daemon that serves a data directory whether it takes calls
    ///
    /// For containers and supervisors: over the directory's control socket, so that neither ports
    /// nor certificates matter. Exit status: 0 it does, 1 it does not, or no daemon answers.
    #[command(after_help = "Examples:
  evidenceos-daemon healthcheck
  evidenceos-daemon healthcheck --data-dir /srv/evidenceos")]
    Healthcheck {
        #[command(flatten)]
        place: Place,
    },
    /// Make the daemon read its files again, as on SIGHUP
    ///
    /// Certificates, revocation lists, the role policy, secret files (tokens and HMAC keys), the
    /// active key and policy modules. If one of them cannot be read or is invalid, the command
    /// reports it and the daemon keeps the old one.
    #[command(after_help = "Example:
  evidenceos-daemon reload --data-dir /srv/evidenceos")]
    Reload {
        #[command(flatten)]
        place: Place,
    },
}

/// The commands for a log whose database is older than the log, or may be.
#[derive(Clone, Subcommand)]
pub enum LogCommand {
    /// Append the entries that are missing, byte for byte, and charge holdouts what they charged
    ///
    /// Everything is checked before anything is changed: the entries must lead to the other log's
    /// root, and its head must be signed by this log's key. Accounts and the claims' own rows are
    /// not in a log; claims that were created after the backup stay unknown.
    #[command(after_help = "Examples:
  evidenceos-daemon log recover --from https://log.example.org/
  evidenceos-daemon log recover --data-dir /srv/evidenceos --from /mnt/mirror")]
    Recover {
        /// The published log, a mirror (`evidenceos log entries -o DIR`), or another backup or data directory
        #[arg(long, value_name = "URL|DIR")]
        from: String,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Continue the log under another name, if the missing entries are lost
    ///
    /// The first entry binds the old head. Every holdout is exhausted, since its leakage is
    /// unknown, unless you state its charge. Runs under way are aborted.
    #[command(after_help = "Example:
  evidenceos-daemon log restart --origin log.example.org/2 --because \"the disk and its mirror were lost\" --charged mine=12.5")]
    Restart {
        /// The log's new name
        #[arg(long, value_name = "NAME")]
        origin: String,
        /// Why, 1 to 256 bytes; it goes into the public log
        #[arg(long, value_name = "TEXT")]
        because: String,
        /// The most that each part of a holdout was charged in the lost entries, in bits;
        /// repeatable
        #[arg(long, value_name = "HOLDOUT=BITS")]
        charged: Vec<String>,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// State in the log that it was signed nowhere else since its newest entry, and go on
    ///
    /// For a directory that was restored from a backup, or whose anchors are gone, if you are sure
    /// that nothing is missing. It is your word, and public. Refused if an anchor knows more.
    #[command(after_help = "Example:
  evidenceos-daemon log continue --nothing-was-signed-since --because \"moved to another machine; the old one was stopped before the backup\"")]
    Continue {
        /// The statement itself; required
        #[arg(long, required = true)]
        nothing_was_signed_since: bool,
        /// Why you are sure, 1 to 256 bytes; it goes into the public log
        #[arg(long, value_name = "TEXT")]
        because: String,
        #[command(flatten)]
        settings: Box<Settings>,
    },
}

/// The commands about `accounts.json`.
#[derive(Clone, Subcommand)]
pub enum AccountsCommand {
    /// Have the next start import the file as the accounts; the log records it
    #[command(after_help = "Examples:
  evidenceos-daemon accounts import --because \"restored after the disk failed\"
  evidenceos-daemon accounts import other/accounts.json --data-dir /srv/evidenceos --because \"moved here\"

Accounts that the file does not name stay as they are.")]
    Import {
        /// The file [default: accounts.json in the data directory]
        file: Option<PathBuf>,
        /// Why, 1 to 256 bytes; it goes into the public log
        #[arg(long, value_name = "TEXT")]
        because: String,
        /// Where.
        #[command(flatten)]
        directory: DataDir,
    },
    /// Write the file again from the database; an edited file is kept beside it
    Export {
        /// Where.
        #[command(flatten)]
        directory: DataDir,
    },
}

/// The data directory of a stopped daemon.
#[derive(Clone, Args)]
pub struct DataDir {
    /// Directory of everything durable
    #[arg(
        long,
        env = "EVIDENCEOS_DATA_DIR",
        value_name = "DIR",
        default_value = "./data"
    )]
    pub data_dir: PathBuf,
}

/// Selects a data directory.
#[derive(Clone, Args)]
struct Place {
    /// The data directory [default: ./data]
    #[arg(long, env = "EVIDENCEOS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The daemon's TOML file, to take the data directory from
    #[arg(long, env = "EVIDENCEOS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    fn data_dir(self, matches: &ArgMatches) -> Result<PathBuf, ConfigError> {
        let given = Settings {
            data_dir: self.data_dir,
            config: self.config,
            ..Settings::default()
        };
        let settings = Layers::new(given, matches)?.settings;
        Ok(settings
            .data_dir
            .unwrap_or_else(|| super::Config::default().data_dir))
    }
}

#[derive(Clone, Subcommand)]
enum ConfigCommand {
    /// Check whether the daemon would start, and print warnings
    Check {
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Print every setting that was given and where it came from; secrets are hidden
    Show {
        #[command(flatten)]
        settings: Box<Settings>,
    },
}

/// The request of a command line.
pub enum Asked {
    /// Serve until a signal comes.
    Serve(Layers),
    /// Check whether the daemon would start.
    Check(Layers),
    /// Print the settings and their origins.
    Show(Layers),
    /// Import `accounts.json`, or write it again.
    Accounts(AccountsCommand),
    /// Append the log's missing entries.
    RecoverLog {
        /// Of which data directory.
        layers: Layers,
        from: String,
    },
    /// Continue the log under another name.
    RestartLog {
        /// In which data directory.
        layers: Layers,
        /// The log's name from then on.
        origin: String,
        /// The operator's reason, for the log.
        because: String,
        /// The stated charges of holdouts.
        charged: Vec<String>,
    },
    /// State that nothing was signed elsewhere.
    ContinueLog {
        /// In which data directory.
        layers: Layers,
        /// The operator's reason, for the log.
        because: String,
    },
    /// Check a data directory.
    Fsck { layers: Layers, json: bool },
    /// Copy a data directory.
    Backup {
        data_dir: PathBuf,
        destination: PathBuf,
        /// One JSON object a line instead of text.
        json: bool,
    },
    /// Restore a backup.
    Restore {
        data_dir: PathBuf,
        source: PathBuf,
        /// One JSON object a line instead of text.
        json: bool,
    },
    /// Ask the daemon of a data directory whether it takes calls.
    Healthcheck { data_dir: PathBuf },
    /// Have the daemon of a data directory read its files again.
    Reload { data_dir: PathBuf },
}

/// A command that treats an environment variable with an empty value as unset: Compose passes
/// `${NAME:-}`, and Kubernetes an empty value.
#[must_use]
pub fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|v| v.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(clap::builder::Resettable::Reset),
            false => arg,
        })
        .mut_subcommands(without_empty_variables)
}

/// The program name under which the daemon's arguments are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalledAs {
    /// `evidenceos-daemon`: serves, or runs one of its commands.
    Daemon,
    /// `evidenceos serve`: serves.
    Serve,
    /// `evidenceos admin`: runs a command.
    Admin,
}

impl CalledAs {
    /// The command line under this name, with its help.
    fn command(self) -> clap::Command {
        let command = without_empty_variables(Flags::command());
        match self {
            Self::Daemon => command,
            Self::Serve => renamed(command)
                .bin_name("evidenceos serve")
                .mut_subcommands(|command| command.hide(true))
                .disable_help_subcommand(true),
            Self::Admin => renamed(command)
                .bin_name("evidenceos admin")
                .about("Look after a data directory and its daemon: configuration, backups, checks, recovery")
                .long_about(None)
                .after_help("Examples:
  evidenceos admin config check --config /etc/evidenceos/config.toml
  evidenceos admin backup /mnt/backups/today          copy ./data, also while it is served
  evidenceos admin fsck --data-dir /srv/evidenceos
  evidenceos admin reload")
                .mut_args(|arg| arg.hide(true))
                .subcommand_required(true)
                .arg_required_else_help(true),
        }
    }

    /// Whether the name allows a command, or its absence.
    fn admits(self, has_command: bool) -> bool {
        match self {
            Self::Daemon => true,
            Self::Serve => !has_command,
            Self::Admin => has_command,
        }
    }
}

/// Rewrites the examples to call `evidenceos serve` and `evidenceos admin`.
fn renamed(command: clap::Command) -> clap::Command {
    let words: Vec<String> = Flags::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    renamed_by(command, &words)
}

fn renamed_by(mut command: clap::Command, words: &[String]) -> clap::Command {
    let rename = |text: &clap::builder::StyledStr| {
        let mut text = text.to_string();
        for word in words {
            let (before, after) = (
                format!("evidenceos-daemon {word}"),
                format!("evidenceos admin {word}"),
            );
            text = text.replace(&before, &after);
        }
        text.replace("evidenceos-daemon", "evidenceos serve")
    };
    if let Some(text) = command.get_about().map(rename) {
        command = command.about(text);
    }
    if let Some(text) = command.get_long_about().map(rename) {
        command = command.long_about(text);
    }
    if let Some(text) = command.get_after_help().map(rename) {
        command = command.after_help(text);
    }
    command.mut_subcommands(|command| renamed_by(command, words))
}

impl Flags {
    /// Whether a word is one of the commands.
    #[must_use]
    pub fn has_command(word: &std::ffi::OsStr) -> bool {
        word.to_str()
            .is_some_and(|word| Self::command().find_subcommand(word).is_some())
    }

    /// Parses arguments, environment and file; the first argument is the program's name.
    ///
    /// # Errors
    /// If clap does not understand the arguments. Help and version are errors of this kind too.
    pub fn ask(
        called_as: CalledAs,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Result<Asked, ConfigError>, clap::Error> {
        let mut known = called_as.command();
        let matches = known.try_get_matches_from_mut(arguments)?;
        let flags = Self::from_arg_matches(&matches)?;
        if !called_as.admits(flags.command.is_some()) {
            return Err(known.error(
                clap::error::ErrorKind::InvalidSubcommand,
                "`evidenceos serve` takes no command; run `evidenceos admin COMMAND`",
            ));
        }
        let Some(command) = flags.command else {
            return Ok(Layers::new(flags.settings, &matches).map(Asked::Serve));
        };
        Ok(command.asked(innermost(&matches)))
    }
}

impl Command {
    /// The request; `inner` has the matches of the command's arguments.
    fn asked(self, inner: &ArgMatches) -> Result<Asked, ConfigError> {
        match self {
            Self::Accounts { what } => Ok(Asked::Accounts(what)),
            Self::Config {
                what: ConfigCommand::Check { settings },
            } => Layers::new(*settings, inner).map(Asked::Check),
            Self::Config {
                what: ConfigCommand::Show { settings },
            } => Layers::new(*settings, inner).map(Asked::Show),
            Self::Log { what } => match what {
                LogCommand::Recover { from, settings } => {
                    Layers::new(*settings, inner).map(|layers| Asked::RecoverLog { layers, from })
                }
                LogCommand::Restart {
                    origin,
                    because,
                    charged,
                    settings,
                } => Layers::new(*settings, inner).map(|layers| Asked::RestartLog {
                    layers,
                    origin,
                    because,
                    charged,
                }),
                LogCommand::Continue {
                    nothing_was_signed_since: _,
                    because,
                    settings,
                } => Layers::new(*settings, inner)
                    .map(|layers| Asked::ContinueLog { layers, because }),
            },
            Self::Fsck { settings, json } => {
                Layers::new(*settings, inner).map(|layers| Asked::Fsck { layers, json })
            }
            Self::Backup {
                destination,
                place,
                json,
            } => place.data_dir(inner).map(|data_dir| Asked::Backup {
                data_dir,
                destination,
                json,
            }),
            Self::Restore {
                source,
                place,
                json,
            } => place.data_dir(inner).map(|data_dir| Asked::Restore {
                data_dir,
                source,
                json,
            }),
            Self::Healthcheck { place } => place
                .data_dir(inner)
                .map(|data_dir| Asked::Healthcheck { data_dir }),
            Self::Reload { place } => place
                .data_dir(inner)
                .map(|data_dir| Asked::Reload { data_dir }),
        }
    }
}

/// The matches of the innermost subcommand.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    match matches.subcommand() {
        Some((_, inner)) => innermost(inner),
        None => matches,
    }
}
