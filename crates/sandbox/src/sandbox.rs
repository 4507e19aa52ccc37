//! The sandbox: one engine, the caches, and modules made ready to run.
//!
//! Owns compilation. Invariant: a module is compiled once for its code, however many modules carry that code with
//! other data: `claim pack` puts predictions into data segments, so every claim brings its own module, and compiling
//! is by far the dearest step of a claim. Data is therefore cut out, the rest compiled and cached by its own hash, and
//! the data written into each fresh instance, exactly as instantiation would have done it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use wasmtime::{Engine, ExternType, InstancePre, Linker, Module, ModuleExport};

use crate::abi::HostFunction;
use crate::cache::{Bound, Cache, Key};
use crate::check::{Layout, ModuleInfo, Role, inspect};
use crate::engine::{engine_id, new_engine};
use crate::host::{Guest, link};
use crate::policy::{PolicyLimits, PolicyModule};
use crate::rule::Violation;
use crate::run::{AskError, HostFault, Limits, Oracle, RunReport, run};

/// Code that compiles in turn, in bytes of its module without data.
const LARGE_CODE_BYTES: usize = 32 << 10;

/// How much the sandbox keeps. Bounds are on counts and on estimated bytes; least recently used goes first.
#[derive(Debug, Clone, Copy)]
pub struct Config {
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
        Self {
            modules: 256,
            module_bytes: 16 << 20,
            codes: 64,
            code_bytes: 16 << 20,
        }
    }
}

/// Why there is no sandbox: the engine does not accept its settings on this machine.
#[derive(Debug, thiserror::Error)]
#[error("the engine cannot be set up: {message}")]
pub struct EngineError {
    /// The engine's words.
    pub message: String,
}

/// Why a module cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// It breaks rules of admission.
    #[error("the module breaks {} of the rules, first: {}", .0.len(), FirstOf(.0))]
    Refused(Vec<Violation>),
    /// It passed admission, but the engine would not compile it.
    #[error("the engine refused the module: {0}")]
    Engine(String),
}

/// Shows the first violation, of which there is always one.
struct FirstOf<'a>(&'a [Violation]);

impl fmt::Display for FirstOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.first().map_or(Ok(()), |violation| violation.fmt(f))
    }
}

/// Admits, compiles and runs guests. Cheap to share by reference or in an `Arc`; all methods take `&self`.
pub struct Sandbox {
    engine: Engine,
    engine_id: String,
    prepared: Cache<Prepared>,
    codes: Cache<Code>,
    /// Held while large code compiles.
    large_compilation: Mutex<()>,
}

/// An admitted module, compiled and linked, that can be run any number of times, by many threads at once.
pub struct Prepared {
    info: ModuleInfo,
    pub(crate) code: Arc<Code>,
    /// The segments that the code does not carry.
    pub(crate) data: Vec<(u32, Box<[u8]>)>,
}

/// A data segment: its address and its contents.
type Segment = (u32, Box<[u8]>);

/// Compiled code with its imports resolved.
pub(crate) struct Code {
    pub(crate) instance: InstancePre<Guest>,
    pub(crate) run: ModuleExport,
    pub(crate) memory: ModuleExport,
    /// Length of the executable image.
    image_bytes: usize,
}

impl Sandbox {
    /// Sets up the engine and measures its stack once, in about a millisecond.
    ///
    /// # Errors
    /// [`EngineError`] if the engine does not run on this machine.
    pub fn new(config: Config) -> Result<Self, EngineError> {
        let engine = new_engine().map_err(|error| EngineError {
            message: format!("{error:#}"),
        })?;
        let mut sandbox = Self {
            engine_id: String::new(),
            prepared: Cache::new(Bound {
                count: config.modules,
                bytes: config.module_bytes,
            }),
            codes: Cache::new(Bound {
                count: config.codes,
                bytes: config.code_bytes,
            }),
            large_compilation: Mutex::new(()),
            engine,
        };
        let stack_probe = sandbox
            .measure_stack()
            .map_err(|message| EngineError { message })?;
        sandbox.engine_id = engine_id(&sandbox.engine, stack_probe);
        Ok(sandbox)
    }

    /// A short stable text for all on which a result depends besides the module, its limits and the answers:
    /// `wasmtime-48.0.8/x86_64/0123456789abcdef`.
    pub fn engine_id(&self) -> &str {
        &self.engine_id
    }

    /// Checks, compiles and links `wasm`, or finds it in the cache. Callers with the same module share one
    /// compilation, and so do modules that differ in their data alone.
    ///
    /// # Errors
    /// [`AdmitError`] if the module cannot be run; never for a reason that could pass.
    pub fn prepare(&self, wasm: &[u8]) -> Result<Arc<Prepared>, AdmitError> {
        let key: Key = Sha256::digest(wasm).into();
        self.prepared.get_or_build(key, || {
            let (info, layout) = inspect(wasm, Role::Guest).map_err(AdmitError::Refused)?;
            let (code_only, data) = separate(wasm, &layout);
            let code_key = Sha256::digest(&code_only).into();
            let code = self.codes.get_or_build(code_key, || {
                let code = self.compile(&code_only)?;
                let bytes = code.bytes();
                Ok((code, bytes))
            })?;
            // The code is counted here too: evicted from its own cache, it lives on as long as this module.
            let bytes = data.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() + code.bytes();
            Ok((Prepared { info, code, data }, bytes))
        })
    }

    /// The module with this SHA-256, if it is kept ready.
    pub fn prepared(&self, sha256: &[u8; 32]) -> Option<Arc<Prepared>> {
        self.prepared.get(sha256)
    }

    /// Runs a module once, on this thread, until it ends or its fuel does. The oracle is handed back.
    ///
    /// # Errors
    /// [`HostFault`] if the host failed the guest; whatever a guest does wrong is a report instead.
    pub fn run<O: Oracle>(
        &self,
        prepared: &Prepared,
        limits: &Limits,
        oracle: O,
    ) -> Result<(RunReport, O), HostFault> {
        run(prepared, limits, oracle)
    }

    /// Checks, compiles and links a policy oracle. Nothing is cached: it is done once, when policies are loaded.
    ///
    /// # Errors
    /// As [`Sandbox::prepare`]; and where `limits` do not carry the module's initial memory.
    pub fn prepare_policy(
        &self,
        wasm: &[u8],
        limits: PolicyLimits,
    ) -> Result<PolicyModule, AdmitError> {
        let (info, _) = inspect(wasm, Role::Policy).map_err(AdmitError::Refused)?;
        PolicyModule::compile(&self.engine, wasm, info, limits)
    }

    /// Large code waits for other large code: compiling it takes tens of megabytes and up to seconds. Packed modules
    /// and small programs never wait.
    fn compile(&self, code_only: &[u8]) -> Result<Code, AdmitError> {
        let _turn = (code_only.len() > LARGE_CODE_BYTES).then(|| {
            self.large_compilation
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        });
        Code::compile(&self.engine, code_only)
            .map_err(|error| AdmitError::Engine(format!("{error:#}")))
    }

    /// Fuel that an endless recursion burns: a measure of how many frames the stack holds.
    fn measure_stack(&self) -> Result<u64, String> {
        let code = Code::compile(&self.engine, &crate::pack::stack_probe())
            .map_err(|error| format!("{error:#}"))?;
        let (info, _) = inspect(&crate::pack::stack_probe(), Role::Guest)
            .map_err(|_| "the stack probe is not admitted")?;
        let prepared = Prepared {
            info,
            code: Arc::new(code),
            data: Vec::new(),
        };
        let limits = Limits {
            fuel: 1 << 40,
            memory_bytes: 1 << 20,
            oracle_calls: 0,
            items: 0,
            epoch_size: 0,
        };
        let (report, _) = self
            .run(&prepared, &limits, Silent)
            .map_err(|fault| fault.to_string())?;
        Ok(report.fuel_used)
    }
}

/// Asked by nobody.
struct Silent;

impl Oracle for Silent {
    fn ask(&mut self, _: &[u8]) -> Result<u32, AskError> {
        Err(AskError::AllowanceExhausted)
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("engine_id", &self.engine_id)
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
    /// What admission learnt about the module.
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.code.instance.module().engine()
    }
}

impl Code {
    /// What a module costs beside its image: metadata, the pre-linked imports, a mapping.
    const OVERHEAD_BYTES: usize = 16 << 10;

    fn compile(engine: &Engine, wasm: &[u8]) -> wasmtime::Result<Self> {
        let module = Module::new(engine, wasm)?;
        let mut linker = Linker::new(engine);
        // The same function may be imported many times; its last definition is as good as its first.
        linker.allow_shadowing(true);
        for import in module.imports() {
            let has_result = matches!(import.ty(), ExternType::Func(ty) if ty.results().len() > 0);
            if let Some(function) = HostFunction::named(import.module(), import.name()) {
                link(
                    &mut linker,
                    import.module(),
                    import.name(),
                    function,
                    has_result,
                )?;
            }
        }
        let export = |name| {
            module
                .get_export_index(name)
                .ok_or_else(|| wasmtime::Error::msg(format!("no export `{name}`")))
        };
        let image = module.image_range();
        Ok(Self {
            run: export("run")?,
            memory: export("memory")?,
            image_bytes: image.end as usize - image.start as usize,
            instance: linker.instantiate_pre(&module)?,
        })
    }

    fn bytes(&self) -> usize {
        self.image_bytes + Self::OVERHEAD_BYTES
    }
}

const MODULE_HEADER: &[u8; 8] = b"\0asm\x01\0\0\0";
const DATA_SECTION: u8 = 11;

/// The module without custom sections and, where no code can tell, without its data; and that data.
///
/// Code sees segments only through `memory.init` and `data.drop`, which need a data count section.
fn separate(wasm: &[u8], layout: &Layout) -> (Vec<u8>, Vec<Segment>) {
    let cuts_data = !layout.code_may_name_segments;
    let mut code = MODULE_HEADER.to_vec();
    for (id, range) in &layout.sections {
        if !(cuts_data && *id == DATA_SECTION) {
            let data = &wasm[range.clone()];
            wasm_encoder::Section::append_to(
                &wasm_encoder::RawSection { id: *id, data },
                &mut code,
            );
        }
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
