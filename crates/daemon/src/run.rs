//! The program: flags in, exit status out.

use std::{ffi::OsString, path::Path, process::ExitCode, time::Duration};

use evidenceos_telemetry::trace::Tracing;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    assemble::{self, Running, health::Condition},
    config::{self, AccountsCommand, Asked, CalledAs, Config, Flags, Layers},
    control, offline, terminal,
};

/// Exit status for a command line that cannot be understood: `EX_USAGE` of sysexits.
const BAD_USAGE: u8 = 64;
/// Exit status for settings that cannot be used: `EX_CONFIG`. A restart would not help; it may if a
/// file is missing or a KMS does not answer.
const BAD_CONFIG: u8 = 78;
/// Tasks that a thread may run before it looks for new events; with none left it looks at once. The
/// number exceeds the tasks of one busy round. Otherwise a thread would always find events before
/// it runs out of tasks, and would never take over tasks of another thread that the scheduler keeps
/// waiting: they would wait for a whole time slice.
const TASKS_BEFORE_EVENTS: u32 = 1_024;
/// How often the daemon checks whether the writer has failed.
const LOOK_AFTER: Duration = Duration::from_millis(200);
/// Large modules that were not used for this long, in two periods running, are no longer kept
/// ready.
const FORGET_AFTER: Duration = Duration::from_secs(15);

/// What a reload reads again.
const RELOADED: &str = "certificates, revocation lists, the role policy, secret files, \
    the active key if it is a file, and policy modules";

/// The daemon as a program: reads the process's arguments and environment.
#[must_use]
pub fn main() -> ExitCode {
    // A child must not read a setting or start a thread before its sandbox is in place.
    evidenceos_sandbox::serve_if_child().unwrap_or_else(|| run(std::env::args_os()))
}

/// Runs the daemon with these arguments, the first being the program's name.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    run_as(CalledAs::Daemon, arguments)
}

/// Runs the daemon under one of its names; `evidenceos serve` and `evidenceos admin` are two of
/// them.
#[must_use]
pub fn run_as(called_as: CalledAs, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let asked = match Flags::ask(called_as, arguments) {
        Ok(asked) => asked,
        Err(error) => {
            // Help and version are errors of this kind too, and go to standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { BAD_USAGE } else { 0 });
        }
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => return bad_config(&error),
    };
    match asked {
        Asked::Backup {
            data_dir,
            destination,
            json,
        } => offline::backup::back_up(&data_dir, &destination, json),
        Asked::Restore {
            data_dir,
            source,
            json,
        } => offline::backup::restore(&source, &data_dir, json),
        Asked::RecoverLog { layers, from } => match Config::new(&layers.settings) {
            Ok(config) => offline::recover::run_recover(&config, &from),
            Err(error) => bad_config(&error),
        },
        Asked::RestartLog {
            layers,
            origin,
            because,
            charged,
        } => match Config::new(&layers.settings) {
            Ok(config) => offline::restart::run_restart(&config, &origin, &because, &charged),
            Err(error) => bad_config(&error),
        },
        Asked::ContinueLog { layers, because } => match Config::new(&layers.settings) {
            Ok(config) => offline::restart::run_continue(&config, &because),
            Err(error) => bad_config(&error),
        },
        Asked::Fsck { layers, json } => match Config::new(&layers.settings) {
            Ok(config) => offline::fsck::run(&config, json),
            Err(error) => bad_config(&error),
        },
        Asked::Healthcheck { data_dir } => healthcheck(&data_dir),
        Asked::Reload { data_dir } => match control::reload(&data_dir) {
            Ok(()) => {
                terminal::say(&format!("{RELOADED} were read again"));
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        },
        Asked::Show(layers) => show(&layers),
        Asked::Accounts(what) => look_after_accounts(&what),
        Asked::Check(layers) => match Config::new(&layers.settings) {
            Ok(config) => check(&config),
            Err(error) => bad_config(&error),
        },
        Asked::Serve(layers) => match Config::new(&layers.settings) {
            Ok(config) => begin(config),
            Err(error) => bad_config(&error),
        },
    }
}

fn bad_config(error: &config::ConfigError) -> ExitCode {
    for problem in &error.0 {
        terminal::complain(&problem);
    }
    ExitCode::from(BAD_CONFIG)
}

fn show(layers: &Layers) -> ExitCode {
    for line in layers.shown() {
        terminal::say(&line);
    }
    ExitCode::SUCCESS
}

fn healthcheck(data_dir: &Path) -> ExitCode {
    match control::condition(data_dir) {
        Ok(Condition::Serving) => {
            terminal::say("serving");
            ExitCode::SUCCESS
        }
        Ok(condition) => {
            terminal::say(&format!("not serving: {condition:?}"));
            ExitCode::FAILURE
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    terminal::complain(&error);
    ExitCode::FAILURE
}

fn look_after_accounts(what: &AccountsCommand) -> ExitCode {
    let done = match what {
        AccountsCommand::Import {
            file,
            because,
            directory,
        } => offline::accounts::import(&directory.data_dir, file.as_deref(), because),
        AccountsCommand::Export { directory } => {
            let path = directory.data_dir.join("accounts.json");
            offline::accounts::export(&directory.data_dir).map(|kept| {
                let written = format!("wrote {} from the database", path.display());
                let kept = kept.map(|kept| format!("the old file is now {}", kept.display()));
                std::iter::once(written).chain(kept).collect()
            })
        }
    };
    match done {
        Ok(lines) => {
            lines.iter().for_each(|line| terminal::say(line));
            ExitCode::SUCCESS
        }
        Err(error) => {
            terminal::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn check(config: &Config) -> ExitCode {
    let checked = config::check(config);
    for warning in &checked.warnings {
        terminal::say(&format!("warning: {warning}"));
    }
    if !checked.problems.is_empty() {
        return bad_config(&config::ConfigError(checked.problems));
    }
    terminal::say(&format!(
        "Configuration OK: gRPC on {}{}. {}",
        config.listeners.grpc,
        if config.listeners.tls.is_some() {
            " under TLS"
        } else {
            ""
        },
        if config.is_development() {
            "Development mode: no authentication."
        } else {
            "Callers must authenticate."
        }
    ));
    ExitCode::SUCCESS
}

fn begin(config: Config) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .event_interval(TASKS_BEFORE_EVENTS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::complain(&format_args!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let tracing = match Tracing::start(&config.telemetry) {
            Ok(tracing) => tracing,
            Err(error) => {
                terminal::complain(&error);
                return ExitCode::from(BAD_CONFIG);
            }
        };
        // This comes before any key is read.
        if !config.allow_core_dumps {
            keep_memory_private();
        }
        if let Err(error) = evidenceos_heap::give_back() {
            tracing::warn!(%error, "the process cannot give back memory after a burst of calls");
        }
        let ended = serve(config).await;
        // A collector that does not answer blocks a separate thread, not this one.
        let _ = tokio::task::spawn_blocking(|| tracing.end()).await;
        ended
    })
}

/// Prevents core files and debuggers of the same user: keys are in this process's memory.
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let done = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .and_then(|()| rustix::process::setrlimit(Resource::Core, none));
    if let Err(error) = done {
        tracing::warn!(%error, "a crash may write this process's memory, keys included, to a core file");
    }
}

async fn serve(config: Config) -> ExitCode {
    let data_dir = config.data_dir.clone();
    let development = config.is_development();
    // A daemon that is told to stop while it starts ends once it has started, never in between.
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            terminal::complain(&format_args!("cannot wait for signals: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut running = match assemble::start(config).await {
        Ok(running) => running,
        Err(error) => {
            terminal::complain(&error);
            return ExitCode::FAILURE;
        }
    };
    let held = running.is_held();
    terminal::say(&format!(
        "EvidenceOS {} {} on {} over {}{}{}. Log key: {}",
        env!("CARGO_PKG_VERSION"),
        if development {
            "development server"
        } else {
            "serves"
        },
        running.grpc_address(),
        data_dir.display(),
        match (development, held) {
            (false, _) => "",
            (true, false) => ": no credentials checked, every caller may do everything",
            (true, true) => ": no credentials checked, every caller may read everything",
        },
        if held {
            ". It serves reads only: its log says why, and what to do"
        } else {
            ""
        },
        running.log_vkey(),
    ));
    tell_supervisor(&[NotifyState::Ready]);
    until_told_to_stop(&mut running, &mut signals).await;
    tell_supervisor(&[NotifyState::Stopping]);
    if !running.has_failed() {
        tracing::info!("stopping; runs under way may finish");
    }
    match running.stop().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            // Only the next start can find out what the store holds.
            terminal::complain(&fatal);
            std::process::abort();
        }
    }
}

/// The signals that an operator or a supervisor sends.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on none of these signals ends the process by itself.
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

async fn until_told_to_stop(running: &mut Running, signals: &mut Signals) {
    let mut look = tokio::time::interval(LOOK_AFTER);
    let mut forget = tokio::time::interval(FORGET_AFTER);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            // No client waits for an answer to a signal; the log has the problems.
            _ = signals.hangup.recv() => drop(reload(running).await),
            asked = running.reload_asked() => {
                let done = reload(running).await;
                // The client may have gone.
                let _ = asked.send(done);
            }
            _ = look.tick() => if running.has_failed() { return },
            _ = forget.tick() => running.forget_unused(),
        }
    }
}

async fn reload(running: &Running) -> Result<(), Vec<String>> {
    // Without its time, systemd takes a reload for a failed one.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell_supervisor(&[NotifyState::Reloading, now]);
    }
    let done = running.reload().await;
    match &done {
        Ok(()) => tracing::info!("{RELOADED} were read again"),
        Err(problems) => {
            for problem in problems {
                tracing::error!(problem, "not taken over; the daemon keeps the old state");
            }
        }
    }
    tell_supervisor(&[NotifyState::Ready]);
    done
}

/// Reports the state to systemd, if systemd started the process.
fn tell_supervisor(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot report the state to the service manager");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn memory_with_keys_is_in_no_core_file_and_no_debugger() {
        keep_memory_private();
        assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    }
}
