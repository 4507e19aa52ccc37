//! The command line: what can be said, and help with examples for each of it.
//!
//! Owns nothing but the tree of commands; each command's module owns its arguments and its work.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use evidenceos_daemon::config::without_empty_variables;

use crate::{
    account::AccountCommand,
    bench::BenchArgs,
    claim::ClaimCommand,
    connection::{Connection, ConnectionArgs},
    demo::DemoArgs,
    error::CliError,
    holdout::HoldoutCommand,
    keys::KeysCommand,
    lab::LabCommand,
    log::LogCommand,
    output::{Output, print_error},
    policy::PolicyCommand,
    probe::ProbeArgs,
    server::ServerCommand,
    verify::VerifyArgs,
};

/// Certify claims about a private holdout, however often it is asked.
#[derive(Debug, Parser)]
#[command(
    name = "evidenceos",
    version,
    after_help = "Exit codes: 0 done; 1 failed; 2 wrong usage; 4 settled but not certified (with --require-certified).\n\n\
        Examples:\n  \
        evidenceos demo\n  \
        evidenceos serve --data-dir ./data\n  \
        evidenceos holdout add labels.csv --p0 0.5\n  \
        evidenceos claim run claim.wasm --holdout labels --receipt receipt.json\n  \
        evidenceos verify receipt.json --key \"$(evidenceos log key)\""
)]
pub struct Cli {
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// Print one JSON object on stdout; progress stays on stderr.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve holdouts: the daemon.
    Serve(DaemonArgs),
    /// Back up, restore, check and repair a data directory.
    Admin(DaemonArgs),
    /// Register, show, retire and open holdouts.
    #[command(subcommand)]
    Holdout(HoldoutCommand),
    /// Make, run, read and withdraw claims.
    #[command(subcommand)]
    Claim(ClaimCommand),
    /// Show, grant and limit credit.
    #[command(subcommand)]
    Account(AccountCommand),
    /// Read the public log.
    #[command(subcommand)]
    Log(LogCommand),
    /// Ask a server about itself.
    #[command(subcommand)]
    Server(ServerCommand),
    /// Look whether a server can be reached and trusted from here.
    Probe(ProbeArgs),
    /// Make, choose, import and wrap signing keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Check, sign and trust policy oracles.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Make certificates and keys to try a server with.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Check receipts, logs and opened holdouts offline.
    Verify(VerifyArgs),
    /// See the whole of it work on real data, in a daemon of its own.
    Demo(DemoArgs),
    /// Measure a daemon against the limits of this machine, by the tool `evidenceos-bench`.
    Bench(BenchArgs),
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  evidenceos completions bash > ~/.local/share/bash-completion/completions/evidenceos"
    )]
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: Shell,
    },
}

/// Arguments that the daemon reads itself, if its word comes first: here are only those that came
/// behind other options.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  evidenceos serve --help\n  evidenceos admin --help"
)]
struct DaemonArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<String>,
}

impl Cli {
    /// What the process was called with; prints help and ends it where that is not understood.
    pub fn of_the_process() -> Self {
        let matches = without_empty_variables(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Whether a word names one of the commands.
    pub fn has_command(word: &std::ffi::OsStr) -> bool {
        word.to_str()
            .is_some_and(|word| Self::command().find_subcommand(word).is_some())
    }
}

/// Does what the arguments say; the environment's token comes in as a value.
pub async fn run(cli: Cli, token_from_environment: Option<String>) -> ExitCode {
    let as_json = cli.json;
    match execute(cli, token_from_environment).await {
        Ok(output) => {
            output.print(as_json);
            ExitCode::from(output.exit_code)
        }
        Err(error) => {
            print_error(&error, as_json);
            ExitCode::from(error.exit_code())
        }
    }
}

async fn execute(cli: Cli, token_from_environment: Option<String>) -> Result<Output, CliError> {
    // What works on files alone runs wherever the environment says that a daemon is.
    let connection = || Connection::new(cli.connection, token_from_environment);
    match cli.command {
        Command::Serve(_) | Command::Admin(_) => Err(CliError::Usage(
            "`serve` and `admin` come first: `evidenceos serve …`, `evidenceos admin COMMAND …`"
                .to_owned(),
        )),
        Command::Holdout(command) => command.run(&connection()?).await,
        Command::Claim(command) => command.run(&connection()?).await,
        Command::Account(command) => command.run(&connection()?).await,
        Command::Log(command) => command.run(&connection()?, cli.json).await,
        Command::Server(command) => command.run(&connection()?).await,
        Command::Probe(args) => args.run(&connection()?).await,
        Command::Keys(command) => command.run().await,
        Command::Policy(command) => command.run(),
        Command::Lab(command) => command.run(),
        Command::Verify(args) => args.run(),
        Command::Demo(args) => args.run().await,
        Command::Bench(args) => Err(args.run(cli.json)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut completed(), "evidenceos", &mut script);
            let script = String::from_utf8_lossy(&script).into_owned();
            Ok(Output::new(
                serde_json::json!({ "script": script }),
                script.trim_end(),
            ))
        }
    }
}

/// All that can be completed: this program's commands, and the daemon's flags and commands behind `serve`
/// and `admin`, which the daemon reads itself.
fn completed() -> clap::Command {
    let own = Cli::command();
    let global: Vec<String> = own
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect();
    // What is global here is completed everywhere, and must not be there twice.
    let is_new = |argument: &&clap::Arg| {
        let long = argument.get_long();
        long.is_none_or(|long| !global.iter().any(|global| global == long))
    };
    let daemon = evidenceos_daemon::config::Flags::command();
    let flags: Vec<clap::Arg> = daemon.get_arguments().filter(is_new).cloned().collect();
    let commands: Vec<clap::Command> = daemon.get_subcommands().cloned().collect();
    own.mut_subcommand("serve", |serve| {
        serve.args(flags).groups(daemon.get_groups().cloned())
    })
    .mut_subcommand("admin", |admin| admin.subcommands(commands))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_does_something_has_an_example() {
        fn check(command: &clap::Command) {
            let children: Vec<_> = command
                .get_subcommands()
                .filter(|c| c.get_name() != "help")
                .collect();
            if children.is_empty() {
                let help = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    help.contains("evidenceos "),
                    "{} has no example",
                    command.get_name()
                );
            }
            children.into_iter().for_each(check);
        }
        check(&Cli::command());
    }
}
