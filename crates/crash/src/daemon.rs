//! The daemon as a child process: this crate's own program, which acts as the daemon if its first argument says so.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    Failed, fail,
    recorder::{Arming, Recorder},
};

/// The first argument that makes this crate's program the daemon.
pub const AS_DAEMON: &str = "daemon";
/// Longer than any healthy operation takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings with which daemons are started.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// This crate's program, which runs the daemon.
    pub program: PathBuf,
    /// The library that intercepts the daemon's file operations.
    pub recorder: Recorder,
    /// The data directory, as the daemon's argument names it.
    pub directory: PathBuf,
    /// The file that lists the reached points.
    pub hits: PathBuf,
    /// The file that records all file operations.
    pub trace: Option<PathBuf>,
    /// While this file exists, nothing in the data directory can be changed.
    pub read_only_while: PathBuf,
    /// Environment variables besides those that every start has.
    pub variables: Vec<(&'static str, OsString)>,
    /// Seconds by which the daemon's clock is ahead.
    pub clock_s: i64,
}

/// The outcome of a start.
pub enum Started {
    /// The daemon takes calls now.
    Serves(Box<Daemon>),
    /// The daemon ended before that.
    Ended(ExitStatus, String),
}

/// A daemon that serves.
pub struct Daemon {
    child: Child,
    address: String,
    vkey: String,
    is_held: bool,
}

impl Launcher {
    fn command(&self, role: &str, armed: &[Arming]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(role)
            .env("LD_PRELOAD", self.recorder.path())
            .env("EVIDENCEOS_RECORDER_DIR", &self.directory)
            .env("EVIDENCEOS_RECORDER_CLOCK", self.clock_s.to_string())
            .env("EVIDENCEOS_RECORDER_READ_ONLY", &self.read_only_while)
            .env("EVIDENCEOS_FAILPOINT_HITS", &self.hits)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            // A test that fails must leave no daemon behind.
            .kill_on_drop(true);
        if let Some(trace) = &self.trace {
            command.env("EVIDENCEOS_RECORDER_TRACE", trace);
        }
        if !armed.is_empty() {
            let armed: Vec<String> = armed.iter().map(ToString::to_string).collect();
            command.env("EVIDENCEOS_FAILPOINT", armed.join(","));
        }
        command
    }

    fn launched(&self, mut command: Command) -> Result<Child, Failed> {
        let program = self.program.display();
        let spawned = command.spawn();
        spawned.map_err(|error| fail(format!("cannot start {program}: {error}")))
    }

    /// Starts a daemon and does not wait for it: it may not have got far.
    ///
    /// # Errors
    /// [`Failed`] if the program cannot be started.
    pub fn spawn(&self, armed: &[Arming]) -> Result<Child, Failed> {
        let mut command = self.command(AS_DAEMON, armed);
        command
            .args(["--listen", "127.0.0.1:0", "--preflight-listen", "off"])
            // The clients here are faster than any honest caller.
            .args(["--probe-claims", "off"])
            .args(["--metrics-listen", "off", "--log", "error", "--data-dir"])
            .arg(&self.directory);
        self.launched(command)
    }

    /// Starts this crate's program in another role, with the data directory as its argument.
    ///
    /// # Errors
    /// [`Failed`] if the program cannot be started.
    pub fn spawn_as(&self, role: &str, armed: &[Arming]) -> Result<Child, Failed> {
        let mut command = self.command(role, armed);
        command.arg(&self.directory);
        self.launched(command)
    }

    /// Runs a command of the daemon over the data directory to its end: whether it succeeded, and
    /// its output.
    ///
    /// # Errors
    /// [`Failed`] if the program cannot be started, or does not end.
    pub async fn run(
        &self,
        arguments: &[&str],
        armed: &[Arming],
    ) -> Result<(bool, String), Failed> {
        let mut command = self.command(AS_DAEMON, armed);
        command
            .args(arguments)
            .arg("--data-dir")
            .arg(&self.directory);
        let output = timeout(PATIENCE, command.output())
            .await
            .map_err(|_| fail("a command does not end"))?
            .map_err(fail)?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok((output.status.success(), said))
    }

    /// Starts a daemon and waits until it serves or has ended.
    ///
    /// # Errors
    /// [`Failed`] if it does neither.
    pub async fn start(&self, armed: &[Arming]) -> Result<Started, Failed> {
        let mut child = self.spawn(armed)?;
        let stdout = child.stdout.take().ok_or_else(|| fail("no output"))?;
        let mut line = String::new();
        let mut lines = BufReader::new(stdout);
        let read = timeout(PATIENCE, lines.read_line(&mut line)).await;
        read.map_err(|_| fail("a start takes for ever"))?
            .map_err(fail)?;
        let mut stderr = child.stderr.take().ok_or_else(|| fail("no errors"))?;
        // A daemon that serves prints a first line. Without one it has ended.
        if line.is_empty() {
            let status = ended(&mut child).await?;
            let mut said = String::new();
            stderr.read_to_string(&mut said).await.map_err(fail)?;
            return Ok(Started::Ended(status, said));
        }
        // Its later output helps a reader of a failed test.
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // Every stop under load prints this, so it is not a sign of failure.
                if !line.contains("stopping; runs under way") {
                    eprintln!("  daemon: {line}");
                }
            }
        });
        let address = line
            .split_whitespace()
            .find(|word| word.parse::<std::net::SocketAddr>().is_ok());
        let vkey = line.split("Log key: ").nth(1);
        match (address, vkey) {
            (Some(address), Some(vkey)) => Ok(Started::Serves(Box::new(Daemon {
                address: address.to_owned(),
                vkey: vkey.trim().to_owned(),
                is_held: line.contains("serves reads only"),
                child,
            }))),
            _ => Err(fail(format!("the daemon says {line:?}"))),
        }
    }

    /// Starts a daemon that must serve without help.
    ///
    /// # Errors
    /// [`Failed`] if it does not.
    pub async fn serve(&self) -> Result<Daemon, Failed> {
        match self.start(&[]).await? {
            Started::Serves(daemon) => Ok(*daemon),
            Started::Ended(status, said) => Err(fail(format!(
                "{} does not start ({status}): {said}",
                self.directory.display()
            ))),
        }
    }
}

/// Waits for the end of a process.
///
/// # Errors
/// [`Failed`] if it does not end.
pub async fn ended(child: &mut Child) -> Result<ExitStatus, Failed> {
    timeout(PATIENCE, child.wait())
        .await
        .map_err(|_| fail("a process does not end"))?
        .map_err(fail)
}

impl Daemon {
    /// The address at which it takes calls.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether it signs and charges nothing.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// The key that verifies its log.
    #[must_use]
    pub fn vkey(&self) -> &str {
        &self.vkey
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Errors
    /// [`Failed`] if the process cannot be waited for.
    pub async fn kill(mut self) -> Result<(), Failed> {
        // A dead process cannot be killed.
        let _ = self.child.start_kill();
        ended(&mut self.child).await.map(drop)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// [`Failed`] if it goes on.
    pub async fn ended(&mut self) -> Result<ExitStatus, Failed> {
        ended(&mut self.child).await
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// [`Failed`] if that cannot be determined.
    pub fn has_ended(&mut self) -> Result<bool, Failed> {
        Ok(self.child.try_wait().map_err(fail)?.is_some())
    }

    /// Sends SIGTERM to the daemon.
    ///
    /// # Errors
    /// [`Failed`] if it has already ended.
    pub fn terminate(&self) -> Result<(), Failed> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        let pid = id.and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| fail("the daemon has ended before it was told to"))?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(fail)
    }

    /// Sends SIGTERM, and expects a clean end.
    ///
    /// # Errors
    /// [`Failed`] if it ends otherwise.
    pub async fn stop(mut self) -> Result<(), Failed> {
        self.terminate()?;
        let status = self.ended().await?;
        if status.success() {
            Ok(())
        } else {
            Err(fail(format!(
                "told to stop, the daemon ended with {status}"
            )))
        }
    }
}

/// Converts a path into the form in which the recorder compares it.
///
/// # Errors
/// [`Failed`] if it is missing.
pub fn absolute(path: &Path) -> Result<PathBuf, Failed> {
    path.canonicalize()
        .map_err(|error| fail(format!("{}: {error}", path.display())))
}
