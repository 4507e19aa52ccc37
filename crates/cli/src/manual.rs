//! Manual pages and completion scripts, made from the commands themselves.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use serde_json::json;

use crate::{cli, error::CliError, output::Output};

/// Writes manual pages.
#[derive(Debug, Args)]
#[command(
    after_help = "Writes a page for each command: evidenceos.1, evidenceos-claim-run.1 and so on, and those of evidenceos-daemon.\n\n\
    Examples:\n  \
    evidenceos man /usr/local/share/man/man1\n  \
    evidenceos man pages && man -l pages/evidenceos-plan.1"
)]
pub struct ManArgs {
    /// The directory; it is made if it is missing.
    directory: PathBuf,
}

impl ManArgs {
    /// Runs the command and returns what it prints.
    pub fn run(self) -> Result<Output, CliError> {
        let directory = &self.directory;
        std::fs::create_dir_all(directory).map_err(CliError::file(directory))?;
        for command in [cli::whole(), cli::daemon()] {
            clap_mangen::generate_to(command, directory).map_err(CliError::file(directory))?;
        }
        let written = std::fs::read_dir(directory)
            .map_err(CliError::file(directory))?
            .count();
        Ok(Output::new(
            json!({ "directory": directory, "pages": written }),
            format!("{}: {written} pages", directory.display()),
        ))
    }
}

/// A completion script.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    evidenceos completions bash > ~/.local/share/bash-completion/completions/evidenceos\n  \
    evidenceos completions bash --daemon > ~/.local/share/bash-completion/completions/evidenceos-daemon")]
pub struct CompletionArgs {
    /// bash, zsh, fish, elvish or powershell.
    shell: Shell,
    /// Make the script for the name `evidenceos-daemon`.
    #[arg(long)]
    daemon: bool,
}

impl CompletionArgs {
    /// Runs the command and returns what it prints.
    pub fn run(self) -> Output {
        let (mut command, name): (Command, _) = if self.daemon {
            (cli::daemon(), "evidenceos-daemon")
        } else {
            (cli::whole(), "evidenceos")
        };
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        let script = String::from_utf8_lossy(&script).into_owned();
        Output {
            is_data: true,
            ..Output::new(json!({ "script": script }), script.trim_end())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let directory = tempfile::tempdir().expect("a directory");
        let args = ManArgs {
            directory: directory.path().join("man1"),
        };
        args.run().expect("written");
        let page = |name: &str| {
            let path = directory.path().join("man1").join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        assert!(page("evidenceos-claim-run.1").contains("evidenceos claim run claim.wasm"));
        assert!(page("evidenceos-admin-backup.1").contains("backup"));
        assert!(page("evidenceos-daemon.1").contains("development server"));
        assert!(page("evidenceos-serve.1").contains("data\\-dir"));
    }

    #[test]
    fn both_names_are_completed() {
        for daemon in [false, true] {
            let args = CompletionArgs {
                shell: Shell::Bash,
                daemon,
            };
            let script = args.run().text;
            let name = if daemon {
                "evidenceos-daemon"
            } else {
                "evidenceos"
            };
            assert!(script.contains(&format!("-o default {name}\n")), "{name}");
            for word in ["healthcheck", "--data-dir"] {
                assert!(script.contains(word), "{name} {word}");
            }
        }
    }
}
