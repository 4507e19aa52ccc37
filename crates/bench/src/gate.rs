//! The gate for agents against an HTTP server that does nothing: decisions a second, their times,
//! and the daemon's memory after a million callers.
//!
//! Both servers are processes of their own on the same cores as the load, which is raw HTTP/1.1
//! over persistent connections.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, routing::post};
use evidenceos_notary::fetch::{self, Trust};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Child,
    task::JoinSet,
};

use crate::{
    child::{Daemon, Program, launch},
    error::{BenchError, failed},
    stats::Samples,
};

/// The kind of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// A caller that was never seen, in a session that was never seen.
    Strangers,
    /// The same caller, in sessions of a few calls.
    OneCaller,
    /// A tool that can do harm: the decision is durable before the reply.
    Durable,
}

impl std::fmt::Display for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Strangers => "a new principal each time",
            Self::OneCaller => "one busy principal",
            Self::Durable => "durable before the answer",
        })
    }
}

/// A round of calls.
#[derive(Debug, Clone)]
pub struct Calls {
    /// Connections that call at once.
    pub connections: usize,
    /// Durations, as the client measures them.
    pub times: Samples,
    /// Duration of the round, in seconds.
    pub seconds: f64,
}

impl Calls {
    /// Calls of all connections a second.
    pub fn per_s(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }
}

/// All figures of the gate.
#[derive(Debug, Clone)]
pub struct GateFigures {
    /// A server that does nothing.
    pub noop: Calls,
    /// The gate, with 64 connections.
    pub decisions: Vec<(Asking, Calls)>,
    /// One connection: median and 99th percentile as the client measures them, in microseconds.
    pub alone_us: (f64, f64),
    /// The same as the server measures them: upper bounds.
    pub served_us: (f64, f64),
    /// Resident memory before, after a million callers, and after half a million more, in bytes.
    pub rss_bytes: [u64; 3],
}

/// The address of a noop server or a gate.
struct Target {
    address: String,
    path: &'static str,
}

/// Serves the noop until it is killed.
///
/// # Errors
/// [`BenchError`] if no port is available.
pub async fn serve_noop() -> Result<(), BenchError> {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(|error| failed(&error))?;
    println!("{}", listener.local_addr().map_err(|error| failed(&error))?);
    let noop = |body: Bytes| async move { format!("{{\"len\":{}}}", body.len()) };
    let routes = Router::new().route("/noop", post(noop));
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |tcp| {
            // Without it answers arrive later, but are still right.
            let _ = tcp.set_nodelay(true);
        }),
        routes,
    )
    .await
    .map_err(|error| failed(&error))
}

async fn noop_server() -> Result<(Child, Target), BenchError> {
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut command = std::process::Command::new(program);
    command.arg("--serve-noop");
    let (child, line) = launch(command).await?;
    let target = Target {
        address: line.trim().to_owned(),
        path: "/noop",
    };
    Ok((child, target))
}

/// The gate of a daemon of its own.
pub struct Gate {
    daemon: Daemon,
    target: Target,
    metrics: String,
}

impl Gate {
    /// Starts a daemon with a gate.
    pub async fn open(program: &Program, directory: &Path) -> Result<Self, BenchError> {
        let (daemon, [web, metrics]) = program.start_with_gate(directory).await?;
        let target = Target {
            address: web,
            path: "/v1/preflight_tool_call",
        };
        Ok(Self {
            daemon,
            target,
            metrics,
        })
    }

    /// Calls from this many connections for this long.
    pub async fn round(
        &self,
        connections: usize,
        asking: Asking,
        time: Duration,
    ) -> Result<Calls, BenchError> {
        calls(&self.target, connections, asking, time).await
    }

    /// The daemon's resident memory, in bytes.
    pub async fn rss_bytes(&self) -> Result<u64, BenchError> {
        Ok(self.daemon.usage().await?.rss_bytes)
    }

    /// Stops the daemon and waits for its end.
    pub async fn close(self) -> Result<(), BenchError> {
        self.daemon.stop().await
    }
}

/// Measures a gate, and a server that does nothing.
pub async fn measure(
    program: &Program,
    scratch: &Path,
    round: Duration,
    long: Duration,
) -> Result<GateFigures, BenchError> {
    let (noop, target) = noop_server().await?;
    let noop_calls = calls(&target, 64, Asking::Strangers, round).await?;
    let gate = Gate::open(program, &scratch.join("gate")).await?;
    let alone = gate.round(1, Asking::OneCaller, round).await?;
    // Ask before the other loads, so that the histogram has only the lone caller's calls.
    let served_us = served_us(&gate.metrics).await?;
    let idle = gate.rss_bytes().await?;
    let mut decisions = Vec::new();
    for (asking, time) in [
        (Asking::Strangers, round),
        (Asking::OneCaller, long),
        (Asking::Durable, round),
    ] {
        let figure = gate.round(64, asking, time).await?;
        decisions.push((asking, figure));
    }
    // Their traces in memory are bounded, however many more come.
    strangers(&gate.target, 1_000_000).await?;
    let after = gate.rss_bytes().await?;
    strangers(&gate.target, 500_000).await?;
    let more = gate.rss_bytes().await?;
    gate.close().await?;
    drop(noop);
    let [p50, _, p99] = alone.times.percentiles();
    Ok(GateFigures {
        noop: noop_calls,
        decisions,
        alone_us: (p50, p99),
        served_us,
        rss_bytes: [idle, after, more],
    })
}

/// The median and the 99th percentile of the daemon's decisions, from its own histogram: the upper
/// bounds of their buckets, in microseconds.
async fn served_us(metrics: &str) -> Result<(f64, f64), BenchError> {
    let url = format!("http://{metrics}/metrics");
    let page = fetch::get(&url, 4 << 20, Trust::System).await;
    let page = page.map_err(|error| failed(&error))?.unwrap_or_default();
    let buckets: Vec<(f64, f64)> = String::from_utf8_lossy(&page)
        .lines()
        .filter_map(|line| {
            let labels = line.strip_prefix("evidenceos_decision_seconds_bucket{")?;
            let (labels, count) = labels.split_once("} ")?;
            let bound = labels.split("le=\"").nth(1)?.split('"').next()?;
            let bound = if bound == "+Inf" {
                f64::INFINITY
            } else {
                bound.parse().ok()?
            };
            Some((bound, count.parse().ok()?))
        })
        .collect();
    // Buckets are cumulative, so the last one counts all calls.
    let all = buckets.last().map_or(0.0, |(_, count)| *count);
    let at = |share: f64| {
        let found = buckets.iter().find(|(_, count)| *count >= share * all);
        found.map_or(f64::INFINITY, |(bound, _)| bound * 1e6)
    };
    if all == 0.0 {
        return Err(failed(&"the daemon has timed no decision"));
    }
    Ok((at(0.5), at(0.99)))
}

/// Numbers of callers that were never seen.
static NEXT: AtomicU64 = AtomicU64::new(0);

async fn strangers(target: &Target, calls: u64) -> Result<(), BenchError> {
    let end = NEXT.load(Ordering::Relaxed) + calls;
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let mut connection = Connection::open(target).await?;
        tasks.spawn(async move {
            while NEXT.load(Ordering::Relaxed) < end {
                connection.call(Asking::Strangers, 0).await?;
            }
            Ok::<_, BenchError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| failed(&error))??;
    }
    Ok(())
}

async fn calls(
    target: &Target,
    connections: usize,
    asking: Asking,
    time: Duration,
) -> Result<Calls, BenchError> {
    let started = Instant::now();
    let numbers = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut connection = Connection::open(target).await?;
        let numbers = Arc::clone(&numbers);
        tasks.spawn(async move {
            let mut samples = Samples::default();
            while started.elapsed() < time {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let before = Instant::now();
                connection.call(asking, number).await?;
                samples.add(before.elapsed());
            }
            Ok::<_, BenchError>(samples)
        });
    }
    let mut times = Samples::default();
    while let Some(done) = tasks.join_next().await {
        times.extend(&done.map_err(|error| failed(&error))??);
    }
    Ok(Calls {
        connections,
        times,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A persistent connection.
struct Connection {
    stream: TcpStream,
    path: &'static str,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    async fn open(target: &Target) -> Result<Self, BenchError> {
        let stream = TcpStream::connect(&target.address)
            .await
            .map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        Ok(Self {
            stream,
            path: target.path,
            request: Vec::with_capacity(512),
            answer: vec![0; 4_096],
        })
    }

    /// Makes one call; fails if the reply is not 200.
    async fn call(&mut self, asking: Asking, number: u64) -> Result<(), BenchError> {
        use std::io::Write as _;
        // Known callers have numbers that strangers never reach.
        let (tool, who) = match asking {
            Asking::Strangers => ("search.web", NEXT.fetch_add(1, Ordering::Relaxed)),
            Asking::OneCaller => ("search.web", u64::MAX),
            Asking::Durable => ("fs.write", u64::MAX - 1),
        };
        let session = if asking == Asking::Strangers {
            who
        } else {
            number / 16
        };
        self.request.clear();
        let body = format!(
            r#"{{"toolName":"{tool}","params":{{"query":"weather in Ghent","n":{}}},"sessionId":"session-{session}","agentId":"bench"}}"#,
            number % 8
        );
        write!(
            self.request,
            "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-request-id: r-{number}\r\nauthorization: Bearer caller-{who}\r\ncontent-length: {}\r\n\r\n{body}",
            self.path,
            body.len()
        )
        .map_err(|error| failed(&error))?;
        let io = |error: std::io::Error| failed(&error);
        self.stream.write_all(&self.request).await.map_err(io)?;
        let mut filled = 0;
        loop {
            let read = self
                .stream
                .read(&mut self.answer[filled..])
                .await
                .map_err(io)?;
            if read == 0 {
                return Err(failed(&"the server closed a connection"));
            }
            filled += read;
            if is_whole(&self.answer[..filled]) {
                break;
            }
        }
        if self.answer.starts_with(b"HTTP/1.1 200") {
            Ok(())
        } else {
            let text = String::from_utf8_lossy(&self.answer[..filled]).into_owned();
            Err(failed(&text))
        }
    }
}

/// Whether a head and the body that it announces have arrived.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let head = &answer[..end];
    let length = head
        .split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .find_map(|line| line.trim().strip_prefix("content-length: "))
        .and_then(|length| length.parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}
