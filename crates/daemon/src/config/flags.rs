//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::{ConfigError, Layers, Settings};

/// The EvidenceOS daemon: keeps holdouts, runs claims, certifies what the evidence carries.
///
/// Started bare it is a development server on loopback, for one user who may do everything.
#[derive(Clone, Parser)]
#[command(
    name = "evidenceos-daemon",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  evidenceos-daemon                                   serve 127.0.0.1:50051 over ./data
  evidenceos-daemon --data-dir /srv/evidenceos        another directory
  evidenceos-daemon --listen 127.0.0.1:0 --log debug  any free port, more words
  evidenceos-daemon config check --config /etc/evidenceos/config.toml

With TLS, for callers with certificates (`evidenceos lab init ops` makes a set to try):
  evidenceos-daemon --listen 0.0.0.0:50051 --data-dir ops/data \\
    --tls-cert ops/certs/server.crt --tls-key ops/certs/server.key \\
    --mtls-client-ca ops/certs/ca.crt --require-client-cert \\
    --auth-policy ops/certs/policy.toml --generate-key

Then, in another terminal:
  evidenceos holdout add labels.csv --ref mine --p0 0.8
  evidenceos claim pack predictions.csv -o claim.wasm
  evidenceos claim run claim.wasm --holdout mine

On SIGHUP certificates, roles, secret files and the active key are read again."
)]
pub struct Flags {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Subcommand)]
enum Command {
    /// Look at the configuration without serving
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Settle what an accounts.json that is not the daemon's is good for, while it is stopped
    Accounts {
        #[command(subcommand)]
        what: AccountsCommand,
    },
}

/// What to do about `accounts.json`.
#[derive(Clone, Subcommand)]
pub enum AccountsCommand {
    /// Let the next start make the accounts what the file says; recorded in the log
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
    /// Write the file again from the database; an edited one is kept beside it
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

#[derive(Clone, Subcommand)]
enum ConfigCommand {
    /// Say whether the daemon would start, and what an operator should know
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

/// What the command line asks for.
pub enum Asked {
    /// Serve.
    Serve(Layers),
    /// Say whether it would.
    Check(Layers),
    /// Print the settings.
    Show(Layers),
    /// Look after `accounts.json`.
    Accounts(AccountsCommand),
}

impl Flags {
    /// What arguments, environment and file ask for; the first argument is the program's name.
    ///
    /// # Errors
    /// Where clap does not understand the arguments; help and version are errors of its kind too.
    pub fn ask(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Result<Asked, ConfigError>, clap::Error> {
        let matches = Self::command().try_get_matches_from(arguments)?;
        let flags = Self::from_arg_matches(&matches)?;
        if let Some(Command::Accounts { what }) = flags.command {
            return Ok(Ok(Asked::Accounts(what)));
        }
        let inner = matches
            .subcommand()
            .and_then(|(_, config)| config.subcommand())
            .map(|(_, matches)| matches);
        Ok(match (flags.command, inner) {
            (Some(Command::Config { what }), Some(matches)) => match what {
                ConfigCommand::Check { settings } => {
                    Layers::new(*settings, matches).map(Asked::Check)
                }
                ConfigCommand::Show { settings } => {
                    Layers::new(*settings, matches).map(Asked::Show)
                }
            },
            _ => Layers::new(flags.settings, &matches).map(Asked::Serve),
        })
    }
}
