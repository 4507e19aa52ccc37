//! Children that wait for work: a pool of those that run modules, and the next one that compiles.
//!
//! Owns their number, and the end of a child that has done enough. Invariant: a child that met a fault is never used
//! again, and a call waits for a turn before it creates a process.

use std::io;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::artifact::Artifact;
use crate::check::Role;
use crate::child::Bounds;
use crate::process::{Child, Compiled, Cost, Death, Nursery, Ordered};
use crate::run::HostFault;
use crate::wire::{CodeKey, Ready};

/// Fuel that one child gets in its life, but at least one call's. It ensures that no honest run meets the limit on
/// its processor time, which the kernel keeps.
const FUEL: u64 = 10_000_000_000;

/// Processor time of a child that runs: the dearest unit of fuel takes 27 ns.
const RUN_CPU_S: u64 = 500;

/// Memory of a child that runs: a guest's largest memory, and the engine's own.
const RUN_MEMORY_BYTES: u64 = (512 + 128) << 20;

/// Memory of a child that compiles. Admission only accepts modules that need less.
const COMPILE_MEMORY_BYTES: u64 = 320 << 20;

/// Processor time of a child that compiles. Admission only accepts modules that need at most a
/// fifth of it.
const COMPILE_CPU_S: u64 = 10;

/// The longest time for compiling, on the clock of a busy machine.
const COMPILE_PATIENCE: Duration = Duration::from_secs(120);

/// Modules that are compiled at a time.
const COMPILERS: usize = 2;

/// Niceness of children that do background work.
const BACKGROUND: i32 = 10;

/// Children that run guests or policy oracles.
pub(crate) struct Pool {
    nursery: Arc<Nursery>,
    niceness: i32,
    ready: Arc<Ready>,
    turns: Turns,
    idle: Mutex<Vec<Child>>,
}

impl Pool {
    /// A pool for guests, at most `most` at a time, with its first child. All children must match the first one's
    /// [`Ready`].
    pub(crate) fn for_guests(nursery: &Arc<Nursery>, most: usize) -> io::Result<Self> {
        let first = nursery.child(run_bounds(BACKGROUND))?;
        Ok(Self {
            nursery: Arc::clone(nursery),
            niceness: BACKGROUND,
            ready: Arc::new(first.ready().clone()),
            turns: Turns::new(most),
            idle: Mutex::new(vec![first]),
        })
    }

    /// A pool for policy oracles, at most `most` at a time, at normal priority: callers wait for
    /// their votes.
    pub(crate) fn for_policies(&self, most: usize) -> Self {
        Self {
            nursery: Arc::clone(&self.nursery),
            niceness: 0,
            ready: Arc::clone(&self.ready),
            turns: Turns::new(most),
            idle: Mutex::default(),
        }
    }

    /// Ends all children, of every pool over the same nursery.
    pub(crate) fn end(&self) {
        self.nursery.end();
    }

    /// The identity that each child must report.
    pub(crate) fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Lets a child work with this code, for at most this much fuel; `alone`: in a child that never works for another
    /// guest.
    pub(crate) fn with_child<T>(
        &self,
        code: &Artifact,
        fuel: u64,
        alone: bool,
        mut work: impl FnMut(&mut Child) -> Result<T, HostFault>,
    ) -> Result<T, HostFault> {
        let _turn = self.turns.take();
        let idle = (!alone).then(|| self.idle_child(&code.key, fuel)).flatten();
        let mut child = match idle {
            Some(child) => child,
            None => self.new_child()?,
        };
        // After a fault the child is dropped, which ends it: its state is unknown.
        let done = match work(&mut child) {
            // The child died while it waited, as happens on a system that is short of memory. Retry once: if code
            // kills a child while the child loads it, that looks the same, and must count.
            Err(_) if child.left_its_work_unread() => {
                child = self.new_child()?;
                work(&mut child)?
            }
            done => done?,
        };
        if !alone {
            lock(&self.idle).push(child);
        }
        Ok(done)
    }

    /// An idle child with this much fuel left, if possible one that has the code.
    fn idle_child(&self, key: &CodeKey, fuel: u64) -> Option<Child> {
        let mut idle = lock(&self.idle);
        // A child may have died meanwhile; another child then does the work that it leaves unread.
        idle.retain(|child| child.fuel().saturating_add(fuel) <= FUEL);
        let at = idle
            .iter()
            .rposition(|child| child.keeps(key))
            .or_else(|| idle.len().checked_sub(1))?;
        Some(idle.swap_remove(at))
    }

    fn new_child(&self) -> Result<Child, HostFault> {
        let child = self.nursery.child(run_bounds(self.niceness));
        child
            .and_then(|child| must_be_alike(&self.ready, child.ready()).map(|()| child))
            .map_err(|error| HostFault {
                message: format!("cannot start a process to run it: {error}"),
                while_running: false,
            })
    }
}

fn run_bounds(niceness: i32) -> Bounds {
    Bounds {
        memory_bytes: RUN_MEMORY_BYTES,
        cpu_s: RUN_CPU_S,
        niceness,
    }
}

/// Another engine could give another result for the same run; a missing wall would break a promise.
fn must_be_alike(first: &Ready, other: &Ready) -> io::Result<()> {
    if first == other {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "a child reports {other:?}, but the first child reported {first:?}"
    )))
}

/// Children that compile, one for each module.
pub(crate) struct Compilers {
    nursery: Arc<Nursery>,
    ready: Arc<Ready>,
    turns: Turns,
    next: Mutex<Ordered>,
}

/// The reason why there is no compiled code.
#[derive(Debug)]
pub(crate) enum NotCompiled {
    /// The engine refused the code for this reason.
    Refused(String),
    /// The resource of which the module needed too much.
    TooExpensive(&'static str),
    /// A fault of the host: compiling may be tried again.
    Host(String),
}

impl Compilers {
    pub(crate) fn new(pool: &Pool) -> Self {
        Self {
            nursery: Arc::clone(&pool.nursery),
            ready: Arc::clone(&pool.ready),
            turns: Turns::new(COMPILERS),
            next: Mutex::new(pool.nursery.order(COMPILE_BOUNDS)),
        }
    }

    /// Compiles an admitted module; adds the time that its child took to `spent`.
    pub(crate) fn compile(
        &self,
        role: Role,
        wasm: &[u8],
        spent: &mut Duration,
    ) -> Result<(Box<[u8]>, Cost), NotCompiled> {
        let _turn = self.turns.take();
        let child = || {
            let child = self.child();
            child.map_err(|error| {
                NotCompiled::Host(format!("cannot start a process to compile it: {error}"))
            })
        };
        let mut first = child()?;
        let began = Instant::now();
        let mut compiled = first.compile(role, wasm, COMPILE_PATIENCE);
        if compiled.is_err() && first.left_its_work_unread() {
            compiled = child()?.compile(role, wasm, COMPILE_PATIENCE);
        }
        *spent += began.elapsed();
        match compiled {
            Ok(Compiled { code, cost }) => {
                code.map(|code| (code, cost)).map_err(NotCompiled::Refused)
            }
            Err(Death::Memory) => Err(NotCompiled::TooExpensive("more than 320 MiB of memory")),
            Err(Death::Time) => Err(NotCompiled::TooExpensive(
                "more than 10 s of processor time",
            )),
            Err(Death::Stack) => Err(NotCompiled::TooExpensive("more than 8 MiB of stack")),
            Err(Death::Panicked(words)) => Err(NotCompiled::Refused(words)),
            Err(death @ Death::Ended(_)) => Err(NotCompiled::Host(death.to_string())),
        }
    }

    /// The waiting child, and an order for the next one.
    fn child(&self) -> io::Result<Child> {
        // The next child starts while this one works, so that the next module need not wait for a
        // process.
        let after = self.nursery.order(COMPILE_BOUNDS);
        let next = mem::replace(&mut *lock(&self.next), after);
        // It may have waited for hours, and died before or after it reported ready.
        let waited = next.child().ok();
        let alive = waited.and_then(|mut child| (!child.has_ended()).then_some(child));
        let child = match alive {
            Some(child) => child,
            None => self.nursery.child(COMPILE_BOUNDS)?,
        };
        must_be_alike(&self.ready, child.ready())?;
        Ok(child)
    }
}

const COMPILE_BOUNDS: Bounds = Bounds {
    memory_bytes: COMPILE_MEMORY_BYTES,
    cpu_s: COMPILE_CPU_S,
    niceness: BACKGROUND,
};

/// Limits the number of simultaneous turns.
struct Turns {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Turns {
    fn new(most: usize) -> Self {
        Self {
            free: Mutex::new(most.max(1)),
            freed: Condvar::new(),
        }
    }

    /// Waits for a turn, which ends when the returned value is dropped.
    fn take(&self) -> Turn<'_> {
        let mut free = self
            .freed
            .wait_while(lock(&self.free), |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Turn(self)
    }
}

struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

/// Every statement leaves the data behind these locks consistent, so a poisoned lock is safe to
/// use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
