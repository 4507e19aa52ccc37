//! Commands that cannot be undone: they ask at a terminal, and otherwise demand `--yes`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Args;
use evidenceos_daemon::terminal;

use crate::error::CliError;

/// Whether the user has agreed beforehand.
#[derive(Debug, Clone, Copy, Args)]
pub struct Yes {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Yes {
    /// Asks, unless `--yes` was given.
    ///
    /// # Errors
    /// [`CliError::Failed`] if the answer is no; [`CliError::Usage`] if there is no terminal to ask at:
    /// give `--yes`.
    pub fn must_agree(self, question: &str) -> Result<(), CliError> {
        if self.yes {
            return Ok(());
        }
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(CliError::Usage(format!(
                "{question} There is no terminal to ask at; give --yes"
            )));
        }
        eprint!("{} [y/N] ", terminal::text(question));
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if read.is_ok() && is_yes(&answer) {
            return Ok(());
        }
        Err(CliError::Failed("not done".to_owned()))
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for yes in ["y\n", "YES\r\n", " yes "] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yeah\n", "no\n"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}
