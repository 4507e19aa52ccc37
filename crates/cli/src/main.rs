//! `evidenceos`: serve, submit claims, administer holdouts, read the log, verify offline, see the demo.
//!
//! Deliberately thin: it reads the environment once and passes it on as a value; everything else is in the modules.

mod account;
mod bench;
mod budgets;
mod chart;
mod claim;
mod cli;
mod client;
mod confirm;
mod connection;
mod demo;
mod entries;
mod error;
mod files;
mod forecast;
mod holdout;
mod items;
mod keys;
mod lab;
mod labels;
mod log;
mod manual;
mod null_spec;
mod output;
mod pack;
mod paging;
mod plan;
mod policy;
mod principal;
mod probe;
mod render;
mod server;
mod units;
mod verify;

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use evidenceos_daemon::config::CalledAs;

fn main() -> ExitCode {
    // The daemon, the demo and the checks of policy modules run guests in child processes, which
    // run this program.
    if let Some(status) = evidenceos_sandbox::serve_if_child() {
        return status;
    }
    // Under the daemon's name it is the daemon, except for commands that only this program has: in
    // the image, an init container runs `evidenceos-daemon keys import`.
    if is_called("evidenceos-daemon") && !asks_for_a_command() {
        return evidenceos_daemon::main();
    }
    if let Some((called_as, arguments)) = daemons_part() {
        return evidenceos_daemon::run_as(called_as, arguments);
    }
    let cli = cli::Cli::of_the_process();
    let token = std::env::var("EVIDENCEOS_BEARER_TOKEN").ok();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the operating system refuses timers or sockets: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(cli::run(cli, token))
}

/// The arguments of `evidenceos serve …` and `evidenceos admin …`, which the daemon parses itself:
/// some have the names of this program's own options.
fn daemons_part() -> Option<(CalledAs, Vec<OsString>)> {
    let mut arguments = std::env::args_os();
    let program = arguments.next()?;
    let called_as = match arguments.next()?.to_str()? {
        "serve" => CalledAs::Serve,
        "admin" => CalledAs::Admin,
        _ => return None,
    };
    Some((
        called_as,
        std::iter::once(program).chain(arguments).collect(),
    ))
}

/// Whether the first argument is a command that only this program has. Both programs have `log`:
/// under the daemon's name it is the daemon's.
fn asks_for_a_command() -> bool {
    let first = std::env::args_os().nth(1);
    let is_only_ours = |word: &OsStr| {
        cli::Cli::has_command(word) && !evidenceos_daemon::config::Flags::has_command(word)
    };
    first.is_some_and(|word| is_only_ours(&word))
}

/// Whether the program was started under this name: the image has one binary under two names.
fn is_called(name: &str) -> bool {
    let program = std::env::args_os().next();
    program.is_some_and(|path| Path::new(&path).file_name() == Some(OsStr::new(name)))
}
