//! The daemon under measurement: a process of its own, as shipped.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use evidenceos_proto::{
    GetServerInfoRequest, HealthRequest, ServerCounters, evidence_os_client::EvidenceOsClient,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    error::{BenchError, failed},
    load::{Load, Modules, Round},
};

/// A daemon, its port and its directory.
pub struct Daemon {
    child: Child,
    program: PathBuf,
    address: String,
    directory: PathBuf,
}

/// The resources that a daemon has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Bytes that it caused to be written to disk.
    pub written_bytes: u64,
    /// Bytes that it had to read from disk.
    pub read_bytes: u64,
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
    /// Processor time of all its threads, in seconds.
    pub cpu_s: f64,
    /// The counters in its metrics.
    pub counters: ServerCounters,
}

impl Usage {
    /// The use since an earlier reading; memory is the present value.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            written_bytes: self.written_bytes - before.written_bytes,
            read_bytes: self.read_bytes - before.read_bytes,
            rss_bytes: self.rss_bytes,
            cpu_s: self.cpu_s - before.cpu_s,
            counters: ServerCounters {
                commits: self.counters.commits - before.counters.commits,
                store_checkpoints: self.counters.store_checkpoints
                    - before.counters.store_checkpoints,
                rows_read: self.counters.rows_read - before.counters.rows_read,
                log_files_synced: self.counters.log_files_synced - before.counters.log_files_synced,
            },
        }
    }
}

/// A build of `evidenceos`.
#[derive(Debug, Clone)]
pub struct Program(PathBuf);

impl Program {
    /// The named build, or else the one beside this program, or else the one on the PATH.
    ///
    /// # Errors
    /// [`BenchError::Usage`] says how to build one.
    pub fn find(named: Option<&Path>) -> Result<Self, BenchError> {
        if let Some(named) = named {
            return match named.is_file() {
                true => Ok(Self(named.to_owned())),
                false => Err(BenchError::Usage(format!(
                    "{} is no program; name a build of `evidenceos`",
                    named.display()
                ))),
            };
        }
        let this = std::env::current_exe().map_err(|error| failed(&error))?;
        // The program beside the tool was built with it, so the figures are of the present sources.
        let beside = this.with_file_name("evidenceos");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|directory| directory.join("evidenceos"));
        let found = std::iter::once(beside)
            .chain(on_path)
            .find(|file| file.is_file());
        found.map(Self).ok_or_else(|| {
            BenchError::Usage(
                "there is no `evidenceos` to measure; build it with `cargo build --release -p evidenceos`, or name one with --program"
                    .to_owned(),
            )
        })
    }

    /// Starts it as a daemon on a free port of loopback.
    pub async fn start(&self, directory: &Path) -> Result<Daemon, BenchError> {
        self.start_with(directory, &[]).await
    }

    async fn start_with(&self, directory: &Path, more: &[&str]) -> Result<Daemon, BenchError> {
        let (child, address) = spawn(&self.0, directory, "127.0.0.1:0", more).await?;
        Ok(Daemon {
            child,
            program: self.0.clone(),
            address,
            directory: directory.to_owned(),
        })
    }

    /// The same with the gate for agents, and the addresses of the gate and its metrics. No caller
    /// is too fast for it, and no caller counts as probing.
    pub async fn start_with_gate(
        &self,
        directory: &Path,
    ) -> Result<(Daemon, [String; 2]), BenchError> {
        // Free now; if another program takes one in between, the start fails.
        let free = || std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| failed(&error));
        let address = |port: &std::net::TcpListener| {
            let address = port.local_addr().map_err(|error| failed(&error))?;
            Ok::<_, BenchError>(address.to_string())
        };
        let ports = [free()?, free()?];
        let [web, metrics] = [address(&ports[0])?, address(&ports[1])?];
        drop(ports);
        // In a window as short as the one below no caller comes near such numbers.
        let most = "65536";
        let gate = [
            "--preflight-listen",
            &web,
            "--metrics-listen",
            &metrics,
            "--preflight-rate-limit-rps=off",
            // A pause of the disk should show in the figure, not end the run.
            "--preflight-timeout-ms=10000",
            "--probe-throttle-total",
            most,
            "--probe-throttle-unique-semantic",
            most,
            "--probe-throttle-distinct-topics",
            most,
            "--probe-escalate-total",
            most,
            "--probe-escalate-unique-semantic",
            most,
            "--probe-escalate-distinct-topics",
            most,
            "--probe-freeze-total",
            most,
            "--probe-freeze-unique-semantic",
            most,
            "--probe-freeze-distinct-topics",
            most,
            "--probe-window-ms",
            "100",
        ];
        let daemon = self.start_with(directory, &gate).await?;
        Ok((daemon, [web, metrics]))
    }
}

impl Daemon {
    /// The address at which it takes calls.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Result<EvidenceOsClient<Channel>, BenchError> {
        connect(&self.address).await
    }

    /// The resources that it has used.
    pub async fn usage(&self) -> Result<Usage, BenchError> {
        let pid = self
            .child
            .id()
            .ok_or_else(|| failed(&"the daemon has ended"))?;
        let mut client = self.connect().await?;
        let info = client.get_server_info(GetServerInfoRequest {}).await;
        let info = info.map_err(|status| failed(&status))?.into_inner();
        let io = proc_file(pid, "io")?;
        let status = proc_file(pid, "status")?;
        let stat = proc_file(pid, "stat")?;
        // Fields 14 and 15 after the name in parentheses, in ticks of 10 ms.
        let ticks: u64 = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum();
        Ok(Usage {
            written_bytes: number_after(&io, "write_bytes:"),
            read_bytes: number_after(&io, "read_bytes:"),
            // The kernel reports KiB here.
            rss_bytes: number_after(&status, "VmRSS:") * 1_024,
            cpu_s: ticks as f64 / 100.0,
            counters: info.counters.unwrap_or_default(),
        })
    }

    /// Kills the daemon under load, starts it again on its port, and returns the milliseconds until
    /// it served.
    pub async fn kill_and_restart(&mut self, load: &Load) -> Result<f64, BenchError> {
        let during = load.round(16, Modules::Shared, Round::Time(Duration::from_secs(2)));
        let kill = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.child.kill().await
        };
        // The calls under way fail, as intended.
        let (_, killed) = tokio::join!(during, kill);
        killed.map_err(|error| failed(&error))?;
        // The clock starts with the new daemon: the time that the old one took to die does not
        // count.
        let before = Instant::now();
        let (child, _) = spawn(&self.program, &self.directory, &self.address, &[]).await?;
        self.child = child;
        // It has already printed its address, but it serves only once a call is answered.
        let mut client = self.connect().await?;
        client
            .health(HealthRequest {})
            .await
            .map_err(|status| failed(&status))?;
        Ok(before.elapsed().as_secs_f64() * 1e3)
    }

    /// Stops it as an operator would.
    pub async fn stop(mut self) -> Result<(), BenchError> {
        let pid = self
            .child
            .id()
            .ok_or_else(|| failed(&"the daemon has ended"))?;
        let terminated = Command::new("kill").arg(pid.to_string()).status().await;
        terminated.map_err(|error| failed(&error))?;
        let status = self.child.wait().await.map_err(|error| failed(&error))?;
        if status.success() {
            Ok(())
        } else {
            Err(failed(&format!("the daemon ended with {status}")))
        }
    }
}

/// Starts a program under its other name, and waits until it prints its address.
async fn spawn(
    program: &Path,
    directory: &Path,
    listen: &str,
    more: &[&str],
) -> Result<(Child, String), BenchError> {
    let mut command = std::process::Command::new(program);
    // The program's name makes it the daemon.
    command
        .arg0("evidenceos-daemon")
        .args(["--listen", listen])
        .args(more)
        // One caller creates more claims than any honest caller.
        .args(["--probe-claims", "off"])
        .args(["--log", "error"])
        // One caller runs more claims than a day's credit pays for.
        .args(["--default-credit-limit", "9007199254740991", "--data-dir"])
        .arg(directory);
    for port in ["--preflight-listen", "--metrics-listen"] {
        if !more.contains(&port) {
            command.args([port, "off"]);
        }
    }
    let (child, line) = launch(command).await?;
    // The daemon prints its address in its first line. If it fails, it ends without one.
    let address = line
        .split_whitespace()
        .find(|word| word.parse::<std::net::SocketAddr>().is_ok())
        .ok_or_else(|| failed(&"the daemon did not start"))?;
    Ok((child, address.to_owned()))
}

/// Starts a program that is killed with its owner, and waits for its first line.
pub async fn launch(mut command: std::process::Command) -> Result<(Child, String), BenchError> {
    command.stdout(Stdio::piped());
    // A benchmark that fails must leave no daemon behind.
    let mut child = Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&error))?;
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| failed(&"the program has no output"))?;
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line).await;
    read.map_err(|error| failed(&error))?;
    Ok((child, line))
}

/// A connection to a daemon.
pub async fn connect(address: &str) -> Result<EvidenceOsClient<Channel>, BenchError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| failed(&error))?
        .tcp_nodelay(true);
    let channel = endpoint.connect().await.map_err(|error| failed(&error))?;
    Ok(EvidenceOsClient::new(channel))
}

fn proc_file(pid: u32, name: &str) -> Result<String, BenchError> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    std::fs::read_to_string(&path).map_err(BenchError::file(path))
}

fn number_after(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}
