//! `evidenceos bench`: runs `evidenceos-bench`, a tool that no release ships.

use std::{ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use clap::Args;

use crate::error::CliError;

/// Measure a daemon against the limits of this machine, by the tool `evidenceos-bench`.
#[derive(Debug, Clone, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:
  cargo build --release -p evidenceos-bench     builds the tool
  evidenceos bench --help                       what it measures, once it is built"
)]
pub struct BenchArgs {
    /// The arguments of the tool
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    arguments: Vec<OsString>,
}

impl BenchArgs {
    /// Replaces this process with the tool.
    ///
    /// # Errors
    /// [`CliError::Failed`] says how to build the tool if it is neither beside this program nor on the PATH.
    pub fn run(self, as_json: bool) -> CliError {
        let Some(tool) = find() else {
            return CliError::Failed(
                "`evidenceos-bench` is neither beside this program nor on the PATH: no release ships it; build it with `cargo build --release -p evidenceos-bench`"
                    .to_owned(),
            );
        };
        let mut command = Command::new(&tool);
        command.args(as_json.then_some("--json"));
        // There may be another build of `evidenceos` beside the tool: this one must be measured.
        let is_named = (self.arguments.iter())
            .any(|argument| argument.to_string_lossy().starts_with("--program"));
        if !is_named && let Ok(this) = std::env::current_exe() {
            command.arg("--program").arg(this);
        }
        let failed = command.args(self.arguments).exec();
        CliError::Failed(format!("{} cannot be run: {failed}", tool.display()))
    }
}

fn find() -> Option<PathBuf> {
    let name = "evidenceos-bench";
    let beside = std::env::current_exe()
        .ok()
        .map(|this| this.with_file_name(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join(name));
    beside
        .into_iter()
        .chain(on_path)
        .find(|file| file.is_file())
}
