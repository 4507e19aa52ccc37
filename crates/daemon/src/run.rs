//! The program: flags in, exit status out.

use std::{ffi::OsString, io::IsTerminal as _, process::ExitCode, time::Duration};

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Config, Flags, LogFormat},
    server::{self, Running},
};

/// Exit status for a configuration that cannot be used.
const BAD_CONFIG: u8 = 64;
/// How often the writer is looked after.
const LOOK_AFTER: Duration = Duration::from_millis(200);

/// The daemon as a program: reads the process's arguments and environment.
#[must_use]
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// The daemon with given arguments, the first being the program's name.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let flags = match Flags::try_parse_from(arguments) {
        Ok(flags) => flags,
        Err(error) => {
            // Help and version are errors of this kind too, and go to standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { BAD_CONFIG } else { 0 });
        }
    };
    let config = match flags.resolve() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("evidenceos-daemon: {error}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    set_up_logging(&config);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("evidenceos-daemon: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(serve(config))
}

fn set_up_logging(config: &Config) {
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second subscriber, as in a test, is not ours to replace.
    let _ = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

async fn serve(config: Config) -> ExitCode {
    let data_dir = config.data_dir.clone();
    let running = match server::start(config).await {
        Ok(running) => running,
        Err(error) => {
            eprintln!("evidenceos-daemon: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "EvidenceOS {} development server on {} over {}: loopback only, no credentials checked, every caller may do everything. Log key: {}",
        env!("CARGO_PKG_VERSION"),
        running.grpc_address(),
        data_dir.display(),
        running.log_vkey(),
    );
    if let Err(error) = until_told_to_stop(&running).await {
        eprintln!("evidenceos-daemon: cannot wait for signals: {error}");
        return ExitCode::FAILURE;
    }
    if !running.has_failed() {
        eprintln!("evidenceos-daemon: stopping; runs under way may finish");
    }
    match running.stop().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            // What the store holds is found out by the next start and by nobody else.
            eprintln!("evidenceos-daemon: {fatal}");
            std::process::abort();
        }
    }
}

async fn until_told_to_stop(running: &Running) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut look = tokio::time::interval(LOOK_AFTER);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = look.tick() => if running.has_failed() { return Ok(()) },
        }
    }
}
