//! The sandbox: admission, the caches, and modules made ready to run.
//!
//! Owns the decision what is compiled and when. This process compiles and runs no code of a stranger: children do
//! both (`pool`). Invariant: a module is compiled once for its code, however many modules carry that code with other
//! data: `claim pack` puts predictions into data segments, so every claim brings its own module, and compiling is by
//! far the dearest step of a claim. The sandbox therefore cuts the data out, compiles the rest and caches it by its
//! own hash, and writes the data into each fresh instance, exactly as instantiation would have done.

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::artifact::Artifact;
use crate::cache::{Bound, Cache, Key};
use crate::check::{Layout, ModuleInfo, PAGE_BYTES, Role, inspect};
use crate::policy::{PolicyLimits, PolicyModule, must_carry};
use crate::pool::{Compilers, NotCompiled, Pool};
use crate::process::{Cost, Nursery, Program};
use crate::rule::Violation;
use crate::run::{HostFault, Limits, Oracle, Ran};
use crate::wire::Walls;

/// The program of the children, their numbers, and the bounds of the caches, in counts and estimated bytes; least
/// recently used values go first.
#[derive(Debug, Clone)]
pub struct Config {
    /// The program of the children.
    pub program: Program,
    /// Most guests that run at a time.
    pub guests: usize,
    /// Most policy oracles that are asked at a time.
    pub policies: usize,
    /// Most modules kept ready to run.
    pub modules: usize,
    /// Most bytes of their data.
    pub module_bytes: usize,
    /// Most pieces of compiled code.
    pub codes: usize,
    /// Most bytes of compiled code.
    pub code_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            program: Program::default(),
            guests: processors,
            policies: processors,
            modules: 256,
            module_bytes: 16 << 20,
            codes: 64,
            code_bytes: 16 << 20,
        }
    }
}

/// The reason why there is no sandbox: no child can be started, or the engine does not accept its settings on this
/// machine.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a process to run guests in: {message}")]
pub struct EngineError {
    /// The cause, as the end of the sentence.
    pub message: String,
}

/// The reason why a module cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// It breaks rules of admission.
    #[error("the module breaks {} of the rules, first: {}", .0.len(), FirstOf(.0))]
    Refused(Vec<Violation>),
    /// It passed admission, but the engine would not compile it.
    #[error("the engine refused the module: {0}")]
    Engine(String),
    /// It passed admission, but compiling it took more than any module may.
    #[error("the module is too expensive to compile: it needed {0}")]
    TooExpensive(&'static str),
    /// The host failed. The caller may try again.
    #[error("the module could not be compiled now: {0}")]
    Host(String),
}

/// Shows the first violation, of which there is always one.
struct FirstOf<'a>(&'a [Violation]);

impl fmt::Display for FirstOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.first().map_or(Ok(()), |violation| violation.fmt(f))
    }
}

/// Admits modules, and lets children compile and run them. Cheap to share by reference or in an `Arc`; all methods
/// take `&self`.
pub struct Sandbox {
    prepared: Cache<Prepared>,
    codes: Cache<Artifact>,
    compilers: Compilers,
    guests: Pool,
    policies: Arc<Pool>,
}

/// An admitted module, compiled, that can be run any number of times, by many threads at once.
pub struct Prepared {
    info: ModuleInfo,
    code: Arc<Artifact>,
    /// The segments that the code does not carry.
    data: Vec<Segment>,
}

/// A data segment: its address and its contents.
type Segment = (u32, Box<[u8]>);

impl Sandbox {
    /// Starts the first children, which takes some milliseconds. They end with the process, or when this and all
    /// [`PolicyModule`]s are dropped.
    ///
    /// # Errors
    /// [`EngineError`] if a child cannot be started.
    pub fn new(config: Config) -> Result<Self, EngineError> {
        let failed = |error: std::io::Error| EngineError {
            message: error.to_string(),
        };
        let nursery = Arc::new(Nursery::new(config.program).map_err(failed)?);
        let guests = Pool::for_guests(&nursery, config.guests).map_err(failed)?;
        Ok(Self {
            prepared: Cache::new(Bound {
                count: config.modules,
                bytes: config.module_bytes,
            }),
            codes: Cache::new(Bound {
                count: config.codes,
                bytes: config.code_bytes,
            }),
            compilers: Compilers::new(&guests),
            policies: Arc::new(guests.for_policies(config.policies)),
            guests,
        })
    }

    /// Ends every child at once: runs under way get a [`HostFault`], and nothing can be run or compiled any more.
    pub fn end(&self) {
        self.guests.end();
    }

    /// Drops large modules and large code that no caller has used since the last call but one: they are made again
    /// when they are needed.
    pub fn forget_unused(&self) {
        self.prepared.forget_unused();
        self.codes.forget_unused();
    }

    /// A short stable text for everything on which a result depends besides the module, its limits and the answers:
    /// `wasmtime-48.0.8/x86_64/0123456789abcdef`.
    pub fn engine_id(&self) -> &str {
        &self.guests.ready().engine_id
    }

    /// The kernel's walls around the children, beside their limits.
    pub fn walls(&self) -> Walls {
        self.guests.ready().walls
    }

    /// Checks and compiles `wasm`, or finds it in the cache. Callers with the same module share one compilation, and
    /// so do modules that differ only in their data.
    ///
    /// # Errors
    /// [`AdmitError`] if the module cannot be run; after [`AdmitError::Host`] alone the caller may try again.
    pub fn prepare(&self, wasm: &[u8]) -> Result<Arc<Prepared>, AdmitError> {
        self.prepare_timed(wasm, &mut Duration::default())
    }

    /// As [`Sandbox::prepare`]; adds to `spent` the time for checking and compiling, without the wait for this
    /// module's turn. A module in the cache adds nothing.
    ///
    /// # Errors
    /// As [`Sandbox::prepare`].
    pub fn prepare_timed(
        &self,
        wasm: &[u8],
        spent: &mut Duration,
    ) -> Result<Arc<Prepared>, AdmitError> {
        let key: Key = Sha256::digest(wasm).into();
        self.prepared.get_or_build(key, || {
            let began = Instant::now();
            let inspected = inspect(wasm, Role::Guest).map_err(AdmitError::Refused);
            // A refused module took its time too, and its caller has to wait for that.
            *spent += began.elapsed();
            let (info, layout) = inspected?;
            let (code_only, data) = separate(wasm, &layout);
            let code = self.code(code_only, spent)?;
            // Count the code here too: evicted from its own cache, it lives on as long as this module.
            let bytes = data.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() + code.bytes();
            Ok((Prepared { info, code, data }, bytes))
        })
    }

    /// The module with this SHA-256, if it is kept ready.
    pub fn prepared(&self, sha256: &[u8; 32]) -> Option<Arc<Prepared>> {
        self.prepared.get(sha256)
    }

    /// Runs a module once, in a child, until it ends or its fuel does. `oracle` is asked on this thread, which waits.
    /// `alone`: in a child that runs no other guest before or after.
    ///
    /// # Errors
    /// [`HostFault`] if the host failed; any fault of the guest is a report instead.
    pub fn run(
        &self,
        prepared: &Prepared,
        limits: &Limits,
        alone: bool,
        oracle: &mut dyn Oracle,
    ) -> Result<Ran, HostFault> {
        let initial_pages = prepared.info.initial_memory_pages;
        // The run cannot start, so it needs no process.
        if initial_pages.saturating_mul(PAGE_BYTES) > limits.memory_bytes {
            return Ok(Ran::without_memory(initial_pages));
        }
        let Prepared { info, code, data } = prepared;
        self.guests.with_child(code, limits.fuel, alone, |child| {
            child.run(code, info, data, limits, oracle)
        })
    }

    /// Checks and compiles a policy oracle. Nothing is cached: this happens once, when policy modules are loaded.
    ///
    /// # Errors
    /// As [`Sandbox::prepare`]; also if `limits` do not carry the module's initial memory.
    pub fn prepare_policy(
        &self,
        wasm: &[u8],
        limits: PolicyLimits,
    ) -> Result<PolicyModule, AdmitError> {
        let (info, _) = inspect(wasm, Role::Policy).map_err(AdmitError::Refused)?;
        must_carry(limits, &info)?;
        let code = self.compile(Role::Policy, info.sha256, wasm, &mut Duration::default())?;
        let children = Arc::clone(&self.policies);
        Ok(PolicyModule::new(info, limits, Arc::new(code), children))
    }

    /// The cost of compiling `wasm`, whether it is admitted or not. Nothing is kept.
    ///
    /// # Errors
    /// [`AdmitError`] of every kind but [`AdmitError::Refused`].
    pub fn cost_of(&self, wasm: &[u8]) -> Result<Cost, AdmitError> {
        let (_, cost) = self
            .compilers
            .compile(Role::Guest, wasm, &mut Duration::default())?;
        Ok(cost)
    }

    fn code(&self, code_only: Vec<u8>, spent: &mut Duration) -> Result<Arc<Artifact>, AdmitError> {
        let key = Sha256::digest(&code_only).into();
        self.codes.get_or_build(key, || {
            let code = self.compile(Role::Guest, key, &code_only, spent)?;
            let bytes = code.bytes();
            Ok((code, bytes))
        })
    }

    fn compile(
        &self,
        role: Role,
        key: Key,
        wasm: &[u8],
        spent: &mut Duration,
    ) -> Result<Artifact, AdmitError> {
        let (code, _) = self.compilers.compile(role, wasm, spent)?;
        Ok(Artifact::new(self.engine_id(), role, key, code))
    }
}

impl From<NotCompiled> for AdmitError {
    fn from(why: NotCompiled) -> Self {
        match why {
            NotCompiled::Refused(words) => Self::Engine(words),
            NotCompiled::TooExpensive(of_what) => Self::TooExpensive(of_what),
            NotCompiled::Host(words) => Self::Host(words),
        }
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("engine_id", &self.engine_id())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Prepared {
    /// The facts that admission learnt about the module.
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }
}

const MODULE_HEADER: &[u8; 8] = b"\0asm\x01\0\0\0";
const DATA_SECTION: u8 = 11;

/// The module without custom sections and, if no code can notice, without its data; and that data.
///
/// Code sees segments only through `memory.init` and `data.drop`, which need a data count section.
fn separate(wasm: &[u8], layout: &Layout) -> (Vec<u8>, Vec<Segment>) {
    let cuts_data = !layout.code_may_name_segments;
    let kept = || {
        let sections = layout.sections.iter();
        sections.filter(|(id, _)| !(cuts_data && *id == DATA_SECTION))
    };
    // An id and a length take at most six bytes.
    let len: usize = kept().map(|(_, range)| range.len() + 6).sum();
    let mut code = Vec::with_capacity(MODULE_HEADER.len() + len);
    code.extend_from_slice(MODULE_HEADER);
    for (id, range) in kept() {
        let data = &wasm[range.clone()];
        wasm_encoder::Section::append_to(&wasm_encoder::RawSection { id: *id, data }, &mut code);
    }
    let data = if cuts_data {
        layout
            .segments
            .iter()
            .map(|(address, range)| (*address, wasm[range.clone()].into()))
            .collect()
    } else {
        Vec::new()
    };
    (code, data)
}
