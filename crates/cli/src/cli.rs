//! The command line: all commands, and help with examples for each.
//!
//! Owns only the tree of commands; each command's module owns its arguments and its work.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use evidenceos_daemon::config::without_empty_variables;

use crate::{
    account::AccountCommand,
    bench::BenchArgs,
    claim::ClaimCommand,
    connection::{Connection, ConnectionArgs, Implicit},
    demo::DemoArgs,
    error::CliError,
    holdout::HoldoutCommand,
    keys::KeysCommand,
    lab::LabCommand,
    log::LogCommand,
    manual::{CompletionArgs, ManArgs},
    output::{Output, print_error},
    plan::PlanArgs,
    policy::PolicyCommand,
    principal::PrincipalCommand,
    probe::ProbeArgs,
    server::ServerCommand,
    verify::VerifyArgs,
};

/// Certify claims about a private holdout, however often it is asked.
#[derive(Debug, Parser)]
#[command(
    name = "evidenceos",
    version = evidenceos_daemon::VERSION,
    after_help = "Exit codes: 0 done; 1 failed; 2 wrong usage; 4 settled but not certified (with --require-certified).\n\n\
        Examples:\n  \
        evidenceos demo\n  \
        evidenceos serve --data-dir ./data\n  \
        evidenceos holdout add labels.csv --p0 0.5\n  \
        evidenceos claim run claim.wasm --holdout labels --receipt receipt.json\n  \
        evidenceos verify receipt.json --key log.vkey"
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
    /// Plan a holdout: what it could certify, before it is registered.
    Plan(Box<PlanArgs>),
    /// Register, show, retire and open holdouts.
    #[command(subcommand)]
    Holdout(HoldoutCommand),
    /// Make, run, read and withdraw claims.
    #[command(subcommand)]
    Claim(ClaimCommand),
    /// Show, grant and limit credit.
    #[command(subcommand)]
    Account(AccountCommand),
    /// Compute a principal from a URI, a certificate, a token or a key id.
    Principal(PrincipalCommand),
    /// Read the public log.
    #[command(subcommand)]
    Log(LogCommand),
    /// Ask a server about itself.
    #[command(subcommand)]
    Server(ServerCommand),
    /// Check whether a server can be reached and trusted from this machine.
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
    /// See EvidenceOS work on real data, in a daemon of its own.
    Demo(DemoArgs),
    /// Measure a daemon against the limits of this machine, by the tool `evidenceos-bench`.
    Bench(BenchArgs),
    /// Print a completion script for a shell.
    Completions(CompletionArgs),
    /// Write manual pages.
    Man(ManArgs),
}

/// Arguments that the daemon parses itself if `serve` or `admin` comes first. Only arguments after
/// other options get here.
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
    /// Parses the process's arguments; prints help and ends the process if they are not understood.
    pub fn of_the_process() -> Self {
        let matches = without_empty_variables(Self::command()).get_matches();
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        cli.connection.from_environment = Implicit::of(&matches);
        cli
    }

    /// Whether a word is one of the commands.
    pub fn has_command(word: &std::ffi::OsStr) -> bool {
        word.to_str()
            .is_some_and(|word| Self::command().find_subcommand(word).is_some())
    }
}

/// Runs the command; the environment's token is passed as a value.
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
    // Commands that work only on files must not fail because of the environment's connection
    // settings, so these are read only if needed.
    let connection = || Connection::new(cli.connection, token_from_environment);
    match cli.command {
        Command::Serve(_) | Command::Admin(_) => Err(CliError::Usage(
            "`serve` and `admin` come first: `evidenceos serve …`, `evidenceos admin COMMAND …`"
                .to_owned(),
        )),
        Command::Plan(args) => args.run(),
        Command::Holdout(command) => command.run(&connection()?).await,
        Command::Claim(command) => command.run(&connection()?).await,
        Command::Account(command) => command.run(&connection()?).await,
        Command::Principal(command) => command.run(),
        Command::Log(command) => command.run(&connection()?, cli.json).await,
        Command::Server(command) => command.run(&connection()?).await,
        Command::Probe(args) => args.run(&connection()?).await,
        Command::Keys(command) => command.run().await,
        Command::Policy(command) => command.run(),
        Command::Lab(command) => command.run(),
        Command::Verify(args) => args.run(),
        Command::Demo(args) => args.run().await,
        Command::Bench(args) => Err(args.run(cli.json)),
        Command::Completions(args) => Ok(args.run()),
        Command::Man(args) => args.run(),
    }
}

/// The whole program: its own commands, and the daemon's flags and commands behind `serve` and `admin`, which the
/// daemon parses itself.
pub fn whole() -> clap::Command {
    let own = Cli::command();
    let global: Vec<String> = own
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect();
    // A global option is completed everywhere, and must not be there twice.
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

/// The program under the daemon's name: the daemon's flags and commands, and the commands that only this program
/// has.
pub fn daemon() -> clap::Command {
    let daemon = evidenceos_daemon::config::Flags::command();
    let has = |name: &str| daemon.find_subcommand(name).is_some();
    let more: Vec<clap::Command> = Cli::command()
        .get_subcommands()
        .filter(|command| {
            !has(command.get_name()) && !["serve", "admin"].contains(&command.get_name())
        })
        .cloned()
        .collect();
    daemon.subcommands(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// Words that name no actor, or a person where a principal is meant.
    const VAGUE: [&str; 12] = [
        "whoever",
        "anybody",
        "nobody",
        "everybody",
        "somebody",
        "one's own",
        "whom",
        "he",
        "his",
        "him",
        "himself",
        "thereby",
    ];

    #[test]
    fn help_names_its_actors() {
        fn check(command: &clap::Command) {
            let arguments = command.get_arguments().filter_map(clap::Arg::get_help);
            let own = [
                command.get_about(),
                command.get_long_about(),
                command.get_after_help(),
            ];
            for text in own.into_iter().flatten().chain(arguments) {
                let text = text.to_string().to_lowercase();
                let words: Vec<&str> = text
                    .split(|c: char| !c.is_alphanumeric() && c != '\'')
                    .collect();
                for vague in VAGUE {
                    assert!(
                        !words.contains(&vague),
                        "{}: {vague:?} in {text:?}",
                        command.get_name()
                    );
                }
            }
            command.get_subcommands().for_each(check);
        }
        check(&whole());
        check(&daemon());
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
