//! One child, seen from its parent: its start, its messages, its end.
//!
//! Owns the life of the process and the distrust of its messages. Invariant: whatever a child does, its parent goes
//! on; a child that sends a forbidden message is ended, and none of its messages is used.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read as _};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use lru::LruCache;
use rustix::process::{Pid, Signal};

use crate::artifact::Artifact;
use crate::check::{ModuleInfo, PAGE_BYTES, Role};
use crate::child::{ARGUMENT, Bounds};
use crate::policy::{PolicyFailure, PolicyLimits, Vote};
use crate::run::{End, HostFault, Limits, Oracle, Ran};
use crate::wire::{CodeKey, FromChild, Link, MARGIN, MAX_CODE, Ready, ToChild, run_of};

/// The program that a child is: one whose `main` calls [`serve_if_child`](crate::serve_if_child) first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(pub PathBuf);

impl Default for Program {
    /// The running program itself, even if its file was replaced since it started.
    fn default() -> Self {
        Self("/proc/self/exe".into())
    }
}

/// The longest time until a child is ready.
const START: Duration = Duration::from_secs(30);

/// Pieces of code that a child keeps.
const KEPT_CODES: NonZero<usize> = NonZero::new(16).expect("not zero");

/// The cost of a call for a child beside its fuel, in units of fuel.
const CALL_FUEL: u64 = 10_000;

/// Longest output of a guest, in bytes.
const OUTPUT_BYTES: usize = 2_048;

/// Starts children, all on one thread of its own: the kernel ends a child with the *thread* that started it.
pub(crate) struct Nursery {
    orders: Sender<Order>,
    alive: Arc<Alive>,
}

/// The living children, by their process ids. A child is removed before its end is awaited, so this list has no id
/// that the system may have given to another process.
#[derive(Default)]
struct Alive {
    ids: Mutex<Ids>,
}

#[derive(Default)]
struct Ids {
    ids: HashSet<u32>,
    /// No child may be started any more.
    ended: bool,
}

impl Alive {
    fn ids(&self) -> MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child, unless all have been ended.
    fn start(&self, command: &mut Command) -> io::Result<std::process::Child> {
        // Hold the lock across the start: a child that starts while all are ended must not be
        // missed.
        let mut ids = self.ids();
        if ids.ended {
            return Err(io::Error::other("the sandbox has ended"));
        }
        let process = command.spawn()?;
        ids.ids.insert(process.id());
        Ok(process)
    }

    fn forget(&self, id: u32) {
        self.ids().ids.remove(&id);
    }

    fn end_all(&self) {
        let mut ids = self.ids();
        ids.ended = true;
        for id in &ids.ids {
            let id = i32::try_from(*id).ok().and_then(Pid::from_raw);
            if let Some(id) = id {
                // The child may have ended by itself.
                let _ = rustix::process::kill_process(id, Signal::KILL);
            }
        }
    }
}

struct Order {
    bounds: Bounds,
    to: Sender<io::Result<Starting>>,
}

impl Nursery {
    pub(crate) fn new(program: Program) -> io::Result<Self> {
        let (orders, taken) = channel::<Order>();
        let alive = Arc::<Alive>::default();
        let of_children = Arc::clone(&alive);
        thread::Builder::new()
            .name("nursery".to_owned())
            .spawn(move || {
                for order in taken {
                    // A caller that no longer waits needs no child.
                    let _ = order
                        .to
                        .send(Starting::new(&program, order.bounds, &of_children));
                }
            })?;
        Ok(Self { orders, alive })
    }

    /// Ends every child at once, and starts no other.
    pub(crate) fn end(&self) {
        self.alive.end_all();
    }

    /// A child that is ready.
    pub(crate) fn child(&self, bounds: Bounds) -> io::Result<Child> {
        self.order(bounds).child()
    }

    /// A child that will be ready.
    pub(crate) fn order(&self, bounds: Bounds) -> Ordered {
        let (to, child) = channel();
        // The thread ends with this nursery alone.
        let _ = self.orders.send(Order { bounds, to });
        Ordered(child)
    }
}

/// A child that is starting.
pub(crate) struct Ordered(Receiver<io::Result<Starting>>);

impl Ordered {
    /// Blocks until the child has started or failed to.
    pub(crate) fn child(self) -> io::Result<Child> {
        self.0.recv().map_err(io::Error::other)??.child()
    }
}

/// A process of ours, which ends when this value is dropped.
struct Process {
    process: std::process::Child,
    alive: Arc<Alive>,
}

/// A child that has not reported ready yet.
struct Starting {
    process: Process,
    link: Link<UnixStream>,
}

impl Starting {
    fn new(program: &Program, bounds: Bounds, alive: &Arc<Alive>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut arguments: Vec<OsString> = vec![ARGUMENT.into()];
        arguments.extend(bounds.to_arguments().map(OsString::from));
        let mut command = Command::new(&program.0);
        if *program == Program::default()
            && let Some(name) = std::env::args_os().next()
        {
            // The name that `ps` shows: the one by which the program was started.
            command.arg0(name);
        }
        // The environment may hold secrets, and inherited output would let a child write where the
        // daemon does.
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let process = alive.start(&mut command).map_err(|error| {
            let program = program.0.display();
            io::Error::new(
                error.kind(),
                format!("{program} cannot be started: {error}"),
            )
        })?;
        Ok(Self {
            process: Process {
                process,
                alive: Arc::clone(alive),
            },
            link: Link::new(ours),
        })
    }

    /// Waits until it is ready.
    fn child(mut self) -> io::Result<Child> {
        // A child that hangs before it is ready must not block its caller forever. A run may take
        // as long as its fuel lasts.
        self.link.socket().set_read_timeout(Some(START))?;
        let ready = match self.link.receive(MARGIN) {
            Ok(Some(FromChild::Ready(ready))) => ready,
            Ok(Some(other)) => {
                let message = format!("the child sent {other:?} before it was ready");
                return Err(io::Error::other(message));
            }
            Ok(None) => return Err(io::Error::other(self.process.death().to_string())),
            Err(error) => return Err(error),
        };
        self.link.socket().set_read_timeout(None)?;
        Ok(Child {
            process: self.process,
            link: self.link,
            ready,
            kept: LruCache::new(KEPT_CODES),
            fuel: 0,
            left_unread: false,
        })
    }
}

/// A child process with its link, and the code that it keeps.
pub(crate) struct Child {
    process: Process,
    link: Link<UnixStream>,
    ready: Ready,
    kept: LruCache<CodeKey, ()>,
    /// Fuel that its runs may have used so far.
    fuel: u64,
    /// It died with its work unread.
    left_unread: bool,
}

impl Child {
    /// Whether it died while it waited for work: then no work is at fault.
    pub(crate) fn has_ended(&mut self) -> bool {
        // If the process cannot be inspected, its next use will fail.
        matches!(self.process.process.try_wait(), Ok(Some(_)))
    }

    /// Whether it died before it had read all of its last work: it started none of it, or died while it loaded the
    /// code.
    pub(crate) fn left_its_work_unread(&self) -> bool {
        self.left_unread
    }

    /// The child's report about itself.
    pub(crate) fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The fuel of all its runs so far.
    pub(crate) fn fuel(&self) -> u64 {
        self.fuel
    }

    pub(crate) fn keeps(&self, key: &CodeKey) -> bool {
        self.kept.contains(key)
    }

    /// Compiles a module and uses this child up: one module's effects on a compiler must not meet the next module.
    /// `patience` is the longest time on the clock.
    pub(crate) fn compile(
        &mut self,
        role: Role,
        wasm: &[u8],
        patience: Duration,
    ) -> Result<Compiled, Death> {
        let link = &mut self.link;
        let mut compile = || {
            link.socket().set_read_timeout(Some(patience))?;
            link.send(&ToChild::Compile { role, wasm })?;
            link.receive_code(MAX_CODE + MARGIN)?
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        match compile() {
            Ok(code) => Ok(Compiled {
                cost: Cost {
                    code_bytes: code.as_ref().map_or(0, |code| code.len() as u64),
                    ..Cost::of(self.process.process.id())
                },
                code,
            }),
            Err(error) => {
                self.left_unread = is_unread(&error);
                Err(self.death_after(&error))
            }
        }
    }

    /// Runs a guest, and has `oracle` answer its questions.
    ///
    /// # Errors
    /// [`HostFault`], after which this child must not be used.
    pub(crate) fn run(
        &mut self,
        code: &Artifact,
        info: &ModuleInfo,
        data: &[(u32, Box<[u8]>)],
        limits: &Limits,
        oracle: &mut dyn Oracle,
    ) -> Result<Ran, HostFault> {
        self.fuel = self
            .fuel
            .saturating_add(limits.fuel)
            .saturating_add(CALL_FUEL);
        let mut heard = false;
        let outcome = self
            .keep(code)
            .and_then(|()| self.link.send(&run_of(code.key, info, limits, data)))
            .and_then(|()| self.conversation(limits, oracle, &mut heard));
        match outcome {
            Ok(Ok(report)) => {
                // Fuel that the run did not use is not counted.
                self.fuel -= limits.fuel.saturating_sub(report.fuel_used);
                Ok(report)
            }
            Ok(Err(message)) => Err(HostFault {
                message,
                while_running: false,
            }),
            Err(error) => {
                // After its first message, unread data is an answer, and the guest is at work.
                self.left_unread = !heard && is_unread(&error);
                Err(HostFault {
                    message: self.death_after(&error).to_string(),
                    while_running: true,
                })
            }
        }
    }

    /// Answers questions until the run has ended. `heard`: whether the child has sent anything.
    fn conversation(
        &mut self,
        limits: &Limits,
        oracle: &mut dyn Oracle,
        heard: &mut bool,
    ) -> io::Result<Result<Ran, String>> {
        let items = usize::try_from(limits.items).map_err(io::Error::other)?;
        let most = items + OUTPUT_BYTES + MARGIN;
        // There is one more round than questions allowed: the last one must bring the end.
        for asked in 0..=limits.oracle_calls {
            let said = self.link.receive(most)?;
            *heard = true;
            match said {
                Some(FromChild::Asked(vector))
                    if asked < limits.oracle_calls && is_vector(vector, items) =>
                {
                    let answer = oracle.ask(vector);
                    self.link.send(&ToChild::Answer(answer))?;
                }
                Some(FromChild::Ended(Ok(report))) if is_possible(&report, limits, asked) => {
                    return Ok(Ok(report));
                }
                Some(FromChild::Ended(Err(fault))) => return Ok(Err(fault)),
                Some(_) => break,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Err(io::Error::other(
            "the child sent a report that no run can have",
        ))
    }

    /// Asks a policy oracle.
    ///
    /// # Errors
    /// [`HostFault`], after which this child must not be used.
    pub(crate) fn decide(
        &mut self,
        code: &Artifact,
        limits: PolicyLimits,
        input: &[u8],
    ) -> Result<Result<Vote, PolicyFailure>, HostFault> {
        self.fuel = self.fuel.saturating_add(CALL_FUEL);
        let key = code.key;
        let mut ask = || {
            self.keep(code)?;
            self.link.send(&ToChild::Decide { key, limits, input })?;
            match self.link.receive(MARGIN)? {
                Some(FromChild::Voted(voted)) => Ok(voted),
                Some(_) => Err(io::Error::other("the child did not answer with a vote")),
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        };
        ask().map_err(|error| {
            self.left_unread = is_unread(&error);
            HostFault {
                message: self.death_after(&error).to_string(),
                while_running: true,
            }
        })
    }

    /// Sends it code that it does not have.
    fn keep(&mut self, code: &Artifact) -> io::Result<()> {
        if self.kept.get(&code.key).is_some() {
            return Ok(());
        }
        // The child keeps the code in this list: only the parent evicts, and tells the child.
        let instead_of = self.kept.push(code.key, ()).map(|(key, ())| key);
        self.link.send(&ToChild::Keep {
            key: code.key,
            seal: code.seal,
            role: code.role,
            code: &code.code,
            instead_of,
        })
    }

    /// Ends it, and returns the known cause of its death. `error` is the error of the last message.
    fn death_after(&mut self, error: &io::Error) -> Death {
        if is_unread(error) || error.kind() == io::ErrorKind::UnexpectedEof {
            return self.process.death();
        }
        self.process.end();
        Death::Ended(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it did not answer".to_owned(),
            _ => error.to_string(),
        })
    }
}

impl Process {
    /// The cause of its death, which closed the socket.
    fn death(&mut self) -> Death {
        self.alive.forget(self.process.id());
        // A child that closed the socket and stays alive is ended; if it is already dying, its cause of death is
        // settled.
        let _ = self.process.kill();
        let status = match self.process.wait() {
            Ok(status) => status,
            Err(error) => return Death::Ended(error.to_string()),
        };
        let mut words = String::new();
        if let Some(stderr) = &mut self.process.stderr {
            // No other process has the pipe's other end: a child creates no processes.
            let _ = stderr.take(MARGIN as u64).read_to_string(&mut words);
        }
        Death::of(status, &words)
    }

    fn end(&mut self) {
        self.alive.forget(self.process.id());
        // The child may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// The result of compiling.
pub(crate) struct Compiled {
    /// The code, or the engine's reason for refusing it.
    pub(crate) code: Result<Box<[u8]>, String>,
    pub(crate) cost: Cost,
}

/// The resources that a child has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// The most memory that was resident, in bytes, the program's own included.
    pub peak_bytes: u64,
    /// Processor time, user and system; zero if the system does not say.
    pub cpu: Duration,
    /// The machine code that it made, in bytes.
    pub code_bytes: u64,
}

impl Cost {
    /// The cost of a living process; zero if the system does not report it.
    fn of(process: u32) -> Self {
        let read = |name| std::fs::read_to_string(format!("/proc/{process}/{name}"));
        let peak = read("status").ok().and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        });
        let cpu = read("schedstat")
            .ok()
            .and_then(|stat| stat.split(' ').next()?.parse().ok());
        Self {
            peak_bytes: peak.unwrap_or_default() << 10,
            cpu: Duration::from_nanos(cpu.unwrap_or_default()),
            code_bytes: 0,
        }
    }
}

/// The cause of a child's death.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Death {
    /// The child needed more memory than its limit.
    Memory,
    /// The child needed more processor time than its limit.
    Time,
    /// The child needed more stack than there is.
    Stack,
    /// The child panicked with these words: a fault of ours.
    Panicked(String),
    /// The child was ended from outside, or ended at a wrong time.
    Ended(String),
}

impl Death {
    fn of(status: ExitStatus, words: &str) -> Self {
        let first = words.lines().find(|line| !line.trim().is_empty());
        match status.signal() {
            Some(libc::SIGXCPU) => Self::Time,
            // The standard library prints this before it aborts; the signal alone would not show
            // the cause.
            Some(libc::SIGABRT) if words.contains("memory allocation of") => Self::Memory,
            Some(libc::SIGABRT) if words.contains("has overflowed its stack") => Self::Stack,
            Some(libc::SIGKILL) => Self::Ended(
                "it was killed: the system was short of memory, or another process ended it"
                    .to_owned(),
            ),
            Some(signal) => Self::Ended(format!(
                "signal {signal} ended it{}",
                first.map(|line| format!(": {line}")).unwrap_or_default()
            )),
            None if status.success() => Self::Ended("it ended by itself".to_owned()),
            None => Self::Panicked(first.unwrap_or("it panicked without a message").to_owned()),
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its process has ended: ")?;
        match self {
            Self::Memory => f.write_str("it needed more memory than it may have"),
            Self::Time => f.write_str("it needed more processor time than it may have"),
            Self::Stack => f.write_str("it needed more stack than it may have"),
            Self::Panicked(words) | Self::Ended(words) => f.write_str(words),
        }
    }
}

/// Whether the error shows that the child died before it had read all its input: the system closes a socket with
/// unread input differently.
fn is_unread(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Whether a guest may ask about this vector: one byte for each item, each 0 or 1.
fn is_vector(vector: &[u8], items: usize) -> bool {
    vector.len() == items && vector.iter().fold(0, |all, byte| all | byte) <= 1
}

/// Whether a run within these limits, with this many answered questions, can have such a report.
fn is_possible(report: &Ran, limits: &Limits, answered: u32) -> bool {
    let items = usize::try_from(limits.items).unwrap_or(usize::MAX);
    let has_vector = report
        .judged
        .as_ref()
        .is_none_or(|vector| is_vector(vector, items));
    let end = match &report.end {
        End::Emitted(output) => output.len() <= OUTPUT_BYTES,
        End::NoOutput => true,
        End::Trapped(_) => report.judged.is_none(),
    };
    // The failed call is counted, but was not asked if its vector was invalid.
    let calls = report.oracle_calls >= answered
        && report.oracle_calls <= answered + 1
        && report.oracle_calls <= limits.oracle_calls;
    let pages = report.memory_pages.saturating_mul(PAGE_BYTES) <= limits.memory_bytes;
    has_vector && end && calls && pages && report.fuel_used <= limits.fuel
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::TrapCause;

    #[test]
    fn a_death_is_told_by_what_the_system_says_of_it() {
        let by = ExitStatus::from_raw;
        let cases = [
            (by(libc::SIGXCPU), "", Death::Time),
            (
                by(libc::SIGABRT),
                "memory allocation of 80 bytes failed\n",
                Death::Memory,
            ),
            (
                by(libc::SIGABRT),
                "\nthread 'main' (1) has overflowed its stack\nfatal runtime error",
                Death::Stack,
            ),
            (
                by(101 << 8),
                "\nthread 'main' panicked at x.rs:1:1:\nno",
                Death::Panicked("thread 'main' panicked at x.rs:1:1:".to_owned()),
            ),
            (by(0), "", Death::Ended("it ended by itself".to_owned())),
            (
                by(libc::SIGSEGV),
                "",
                Death::Ended("signal 11 ended it".to_owned()),
            ),
        ];
        for (status, words, death) in cases {
            assert_eq!(Death::of(status, words), death);
        }
        assert!(matches!(Death::of(by(libc::SIGKILL), ""), Death::Ended(_)));
    }

    #[test]
    fn a_report_that_no_run_can_have_is_not_believed() {
        let limits = Limits {
            fuel: 100,
            memory_bytes: 1 << 20,
            oracle_calls: 3,
            items: 2,
            epoch_size: 0,
        };
        let honest = Ran {
            end: End::Emitted(vec![1; OUTPUT_BYTES]),
            judged: Some(vec![0, 1]),
            fuel_used: 100,
            memory_pages: 1,
            oracle_calls: 2,
        };
        assert!(is_possible(&honest, &limits, 2));
        assert!(is_possible(&honest, &limits, 1));
        type Change = fn(&mut Ran);
        let changes: [Change; 9] = [
            |report| report.fuel_used = 101,
            |report| report.memory_pages = 17,
            |report| report.oracle_calls = 4,
            |report| report.oracle_calls = 1,
            |report| report.judged = Some(vec![0]),
            |report| report.judged = Some(vec![0, 1, 1]),
            |report| report.judged = Some(vec![0, 2]),
            |report| report.end = End::Emitted(vec![1; OUTPUT_BYTES + 1]),
            |report| report.end = End::Trapped(TrapCause::OutOfFuel),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut report = honest.clone();
            change(&mut report);
            assert!(!is_possible(&report, &limits, 2), "change {number}");
        }
    }
}
