//! Policy oracles: small modules that may veto something, given a description of it.
//!
//! Owns one call of one oracle: its limits, the order of steps, and how a failure is told. What is described, which
//! oracles there are and what follows from a vote is the caller's. Invariant: a vote is a function of the module's
//! bytes, its limits and the input. Every call has an instance of its own, so nothing is remembered between calls, and
//! an oracle that fails has no vote: whoever asked must take that for a veto.
//!
//! ```text
//! alloc(len: i32) -> i32                          room for the input; 0: there is none
//! policy_oracle_decide(ptr: i32, len: i32) -> i32 0 pass, 1 defer, 2 reject
//! ```

use std::fmt;

use wasmtime::{Engine, InstancePre, Linker, Module, ModuleExport, ResourceLimiter, Store};

use crate::abi::{POLICY_ALLOC, POLICY_DECIDE};
use crate::check::{ModuleInfo, PAGE_BYTES};
use crate::rule::{Rule, Violation};
use crate::run::{HostFault, Space, TrapCause, Trapped};
use crate::sandbox::AdmitError;

/// What one call of an oracle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyLimits {
    /// Fuel of both calls together: about one unit per instruction.
    pub fuel: u64,
    /// Most linear memory, in bytes. Growth beyond it answers −1.
    pub memory_bytes: u64,
    /// Longest input, in bytes.
    pub input_bytes: u64,
}

/// What an oracle says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vote {
    /// It has nothing against it.
    Pass,
    /// Somebody else is to decide.
    Defer,
    /// It must not happen.
    Reject,
}

/// Why an oracle has no vote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyFailure {
    /// The input is longer than the oracle takes; it was not called.
    #[error("the input has {len} bytes, and max_input_bytes allows {most}")]
    InputTooLarge {
        /// Length of the input.
        len: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// It asked for more memory than it may have, or exhausted its stack, and then trapped.
    #[error("out of memory: it needs more than max_memory_bytes or the stack of 256 KiB")]
    OutOfMemory,
    /// It used up its fuel: too much work, or an endless loop.
    #[error("out of fuel: max_fuel was used up without a decision")]
    OutOfFuel,
    /// It was stopped for what it did.
    #[error("{0}")]
    Trapped(TrapCause),
    /// `alloc` answered 0: there is no room for the input.
    #[error("alloc answered 0: it has no room for an input of {0} bytes")]
    NoRoom(u64),
    /// `alloc` answered an address at which the input does not fit.
    #[error(
        "alloc answered {address:#x}: an input of {len} bytes there ends outside its memory of {memory} bytes"
    )]
    RoomOutOfBounds {
        /// The address.
        address: u32,
        /// Length of the input.
        len: u64,
        /// Size of the memory.
        memory: u64,
    },
    /// The decision is none.
    #[error("it decided {0}, which is none of 0 (pass), 1 (defer) and 2 (reject)")]
    NotAVote(i32),
    /// A fault of the host's.
    #[error("the engine failed: {0}")]
    Host(String),
}

/// An admitted policy oracle, compiled, that can be asked any number of times, by many threads at once.
pub struct PolicyModule {
    info: ModuleInfo,
    limits: PolicyLimits,
    instance: InstancePre<PolicySpace>,
    memory: ModuleExport,
    alloc: ModuleExport,
    decide: ModuleExport,
}

impl PolicyModule {
    pub(crate) fn compile(
        engine: &Engine,
        wasm: &[u8],
        info: ModuleInfo,
        limits: PolicyLimits,
    ) -> Result<Self, AdmitError> {
        let needed = info.initial_memory_pages.saturating_mul(PAGE_BYTES);
        if needed > limits.memory_bytes {
            return Err(AdmitError::Refused(vec![Violation {
                rule: Rule::Memory,
                offset: None,
                message: format!(
                    "its memory has {needed} bytes at the start, and max_memory_bytes allows {}",
                    limits.memory_bytes
                ),
            }]));
        }
        Self::link(engine, wasm, info, limits)
            .map_err(|error| AdmitError::Engine(format!("{error:#}")))
    }

    fn link(
        engine: &Engine,
        wasm: &[u8],
        info: ModuleInfo,
        limits: PolicyLimits,
    ) -> wasmtime::Result<Self> {
        let module = Module::new(engine, wasm)?;
        let export = |name| {
            module
                .get_export_index(name)
                .ok_or_else(|| wasmtime::Error::msg(format!("no export `{name}`")))
        };
        Ok(Self {
            info,
            limits,
            memory: export("memory")?,
            alloc: export(POLICY_ALLOC)?,
            decide: export(POLICY_DECIDE)?,
            instance: Linker::new(engine).instantiate_pre(&module)?,
        })
    }

    /// What admission learnt about the module.
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    /// What a call may use.
    pub fn limits(&self) -> PolicyLimits {
        self.limits
    }

    /// Asks the oracle about `input`, on this thread, in an instance of its own.
    ///
    /// # Errors
    /// [`PolicyFailure`] where it has no vote.
    pub fn decide(&self, input: &[u8]) -> Result<Vote, PolicyFailure> {
        let (len, most) = (input.len() as u64, self.limits.input_bytes);
        let wasm_len = u32::try_from(len).ok().filter(|_| len <= most);
        let Some(wasm_len) = wasm_len else {
            return Err(PolicyFailure::InputTooLarge { len, most });
        };
        let space = PolicySpace {
            space: Space {
                memory_bytes: self.limits.memory_bytes,
            },
            was_refused: false,
        };
        let mut store = Store::new(self.instance.module().engine(), space);
        store.limiter(|space| space);
        let answer = self.ask(&mut store, input, wasm_len);
        let was_refused = store.data().was_refused;
        match answer {
            Ok(Ok(0)) => Ok(Vote::Pass),
            Ok(Ok(1)) => Ok(Vote::Defer),
            Ok(Ok(2)) => Ok(Vote::Reject),
            Ok(Ok(other)) => Err(PolicyFailure::NotAVote(other)),
            Ok(Err(failure)) => Err(failure),
            Err(error) => Err(told(error, was_refused)),
        }
    }

    /// The calls, in order. The outer error is the engine's: a trap, or a fault of the host's.
    fn ask(
        &self,
        store: &mut Store<PolicySpace>,
        input: &[u8],
        len: u32,
    ) -> wasmtime::Result<Result<i32, PolicyFailure>> {
        store.set_fuel(self.limits.fuel)?;
        let instance = self.instance.instantiate(&mut *store)?;
        let mut function = |export| {
            instance
                .get_module_export(&mut *store, export)
                .and_then(|export| export.into_func())
                .ok_or_else(|| wasmtime::Error::msg("an admitted module has lost an export"))
        };
        let (alloc, decide) = (function(&self.alloc)?, function(&self.decide)?);
        let memory = instance
            .get_module_export(&mut *store, &self.memory)
            .and_then(|export| export.into_memory())
            .ok_or_else(|| wasmtime::Error::msg("an admitted module has lost its memory"))?;

        let address = alloc.typed::<u32, u32>(&*store)?.call(&mut *store, len)?;
        if address == 0 && len > 0 {
            // The C allocator's word for failure. Written there, the input would overwrite what decides about it.
            return Ok(Err(PolicyFailure::NoRoom(len.into())));
        }
        if memory.write(&mut *store, address as usize, input).is_err() {
            return Ok(Err(PolicyFailure::RoomOutOfBounds {
                address,
                len: len.into(),
                memory: memory.data_size(&*store) as u64,
            }));
        }
        let decide = decide.typed::<(u32, u32), i32>(&*store)?;
        decide.call(&mut *store, (address, len)).map(Ok)
    }
}

fn told(error: wasmtime::Error, was_refused_memory: bool) -> PolicyFailure {
    match Trapped::from_error(error) {
        Ok(Trapped { cause, .. }) => match cause {
            TrapCause::OutOfFuel => PolicyFailure::OutOfFuel,
            TrapCause::OutOfMemory => PolicyFailure::OutOfMemory,
            // An allocator that is refused memory commonly gives up with a trap.
            _ if was_refused_memory => PolicyFailure::OutOfMemory,
            cause => PolicyFailure::Trapped(cause),
        },
        Err(HostFault { message }) => PolicyFailure::Host(message),
    }
}

/// The space of a call, which remembers whether growth was refused.
struct PolicySpace {
    space: Space,
    was_refused: bool,
}

impl ResourceLimiter for PolicySpace {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let is_granted = self.space.memory_growing(current, desired, maximum)?;
        self.was_refused |= !is_granted;
        Ok(is_granted)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.space.memory_grow_failed(error)
    }

    fn table_growing(&mut self, _: usize, _: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        // Admission leaves no tables.
        Ok(false)
    }
}

impl fmt::Debug for PolicyModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyModule")
            .field("info", &self.info)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
