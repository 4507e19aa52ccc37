//! One run of a guest: its limits, its oracle, its report, and how an ending is told.
//!
//! Owns the meaning of a run's end. What host functions do is in `host`; what follows from a report (prices,
//! verdicts) is the caller's. Invariant: a trap anywhere, also after the output, makes the run a trapped one.

use std::any::Any;

use wasmtime::{Memory, ResourceLimiter, Store, Trap};

use crate::check::PAGE_BYTES;
use crate::host::{Guest, Stop};
use crate::rule::bounds;
use crate::sandbox::Prepared;

/// What one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Fuel: about one unit per instruction, one per byte of a bulk memory operation, and for a call of the host
    /// 32 units and one per eight bytes that it reads.
    pub fuel: u64,
    /// Most linear memory, in bytes. Growth beyond it answers −1, as the specification has it.
    pub memory_bytes: u64,
    /// Most calls of the oracle; one more traps.
    pub oracle_calls: u32,
    /// Length that every vector must have: the holdout's items.
    pub items: u64,
    /// Fuel per logical epoch; 0: the epoch is always 0.
    pub epoch_size: u64,
}

/// Answers a guest's questions.
///
/// It is moved into the run and handed back after it, since the engine owns what its host functions reach.
pub trait Oracle: Any + Send {
    /// The symbol for `vector`, which has [`Limits::items`] elements, each 0 or 1.
    ///
    /// # Errors
    /// [`AskError::AllowanceExhausted`] ends the run.
    fn ask(&mut self, vector: &[u8]) -> Result<u32, AskError>;
}

/// Why an oracle does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The claim may not be charged for another answer.
    #[error("the claim may not be charged for another answer")]
    AllowanceExhausted,
}

/// What a run did. Equal for equal modules, limits, answers and engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunReport {
    /// How it ended.
    pub end: End,
    /// The vector to be judged: [`Limits::items`] elements, each 0 or 1. `None` if there is none, and always after a
    /// trap.
    ///
    /// For a module that imports `submit_predictions`, the last vector given to it before the output; for any other,
    /// the last one asked about before the output. What follows the output is still answered and counted, but never
    /// judged.
    pub judged: Option<Vec<u8>>,
    /// Fuel used, at most [`Limits::fuel`].
    ///
    /// It is all of it after [`TrapCause::OutOfFuel`], and also after an instruction that trapped by itself (a
    /// division, an access): compiled code saves its count at calls and returns only, so what such a guest burnt is
    /// not known, and burning must not be free.
    pub fuel_used: u64,
    /// Linear memory at the end, in pages of 64 KiB.
    pub memory_pages: u64,
    /// Calls of the oracle, the one that failed included.
    pub oracle_calls: u32,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It emitted these bytes, at most 2,048 of them, and returned.
    Emitted(Vec<u8>),
    /// It returned without emitting anything.
    NoOutput,
    /// It was stopped.
    Trapped(TrapCause),
}

/// Why a run was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrapCause {
    /// The guest broke a rule of the machine: a division by zero, an `unreachable`.
    #[error("trap: {0}")]
    Trap(&'static str),
    /// The fuel was used up.
    #[error("out of fuel")]
    OutOfFuel,
    /// The initial memory exceeds the lane's, or the stack was exhausted.
    #[error("out of memory")]
    OutOfMemory,
    /// A vector with another length than the holdout, or with an element that is neither 0 nor 1.
    #[error("a vector must have one byte per item of the holdout, each 0 or 1")]
    InvalidVector,
    /// The oracle may not be charged for another answer.
    #[error("the claim may not be charged for another answer")]
    AllowanceExhausted,
    /// More oracle calls than the lane allows.
    #[error("more oracle calls than the lane allows")]
    TooManyCalls,
    /// An access outside a memory or a table.
    #[error("access out of bounds")]
    OutOfBounds,
    /// A second output.
    #[error("a second output was emitted")]
    EmittedTwice,
    /// An output of more than 2,048 bytes.
    #[error("the output exceeds 2048 bytes")]
    OutputTooLarge,
}

/// A fault of the host's, such as no address space for a guest: the run has no result and says nothing about the
/// guest. It may be run again.
#[derive(Debug, thiserror::Error)]
#[error("the engine failed: {message}")]
pub struct HostFault {
    /// The engine's words.
    pub message: String,
}

/// Runs `prepared` once; the oracle comes back with the report.
pub(crate) fn run<O: Oracle>(
    prepared: &Prepared,
    limits: &Limits,
    oracle: O,
) -> Result<(RunReport, O), HostFault> {
    let (report, oracle) = run_boxed(prepared, limits, Box::new(oracle))?;
    let oracle: Box<dyn Any> = oracle;
    let oracle = oracle
        .downcast()
        .expect("the oracle that comes back is the one that went in");
    Ok((report, *oracle))
}

fn run_boxed(
    prepared: &Prepared,
    limits: &Limits,
    oracle: Box<dyn Oracle>,
) -> Result<(RunReport, Box<dyn Oracle>), HostFault> {
    let initial_pages = prepared.info().initial_memory_pages;
    if initial_pages.saturating_mul(PAGE_BYTES) > limits.memory_bytes {
        let end = End::Trapped(TrapCause::OutOfMemory);
        let report = RunReport {
            end,
            judged: None,
            fuel_used: 0,
            memory_pages: initial_pages,
            oracle_calls: 0,
        };
        return Ok((report, oracle));
    }
    let mut store = Store::new(
        prepared.engine(),
        Guest::new(*limits, prepared.info().submits, oracle),
    );
    store.limiter(|guest| &mut guest.space);
    store.set_fuel(limits.fuel).map_err(host_fault)?;
    let outcome = execute(prepared, &mut store);
    let fuel_left = store.get_fuel().map_err(host_fault)?;
    let memory_pages = store
        .data()
        .memory
        .map_or(initial_pages, |memory| memory.size(&store));
    let guest = store.into_data();

    let trapped = outcome.err().map(Trapped::from_error).transpose()?;
    let fuel_left = if trapped.as_ref().is_none_or(|trapped| trapped.is_fuel_known) {
        fuel_left
    } else {
        0
    };
    let (end, judged) = match (trapped, guest.output) {
        (Some(trapped), _) => (End::Trapped(trapped.cause), None),
        (None, Some(output)) => (End::Emitted(output), guest.judged),
        (None, None) => (End::NoOutput, guest.judged),
    };
    let report = RunReport {
        end,
        judged,
        fuel_used: limits.fuel.saturating_sub(fuel_left),
        memory_pages,
        oracle_calls: guest.oracle_calls,
    };
    Ok((report, guest.oracle))
}

fn execute(prepared: &Prepared, store: &mut Store<Guest>) -> wasmtime::Result<()> {
    let instance = prepared.code.instance.instantiate(&mut *store)?;
    let memory: Option<Memory> = instance
        .get_module_export(&mut *store, &prepared.code.memory)
        .and_then(|export| export.into_memory());
    store.data_mut().memory = memory;
    if let Some(memory) = memory {
        // Admission saw that every segment fits the initial memory.
        for (address, bytes) in &prepared.data {
            memory.write(&mut *store, *address as usize, bytes)?;
        }
    }
    let run = instance
        .get_module_export(&mut *store, &prepared.code.run)
        .and_then(|export| export.into_func());
    match run {
        Some(run) => run.typed::<(), ()>(&store)?.call(store, ()),
        None => Err(wasmtime::Error::msg(
            "an admitted module has lost its `run`",
        )),
    }
}

/// A run that was stopped by a host function or by the machine.
pub(crate) struct Trapped {
    pub(crate) cause: TrapCause,
    /// The code had saved its count of fuel when it stopped.
    is_fuel_known: bool,
}

impl Trapped {
    /// An error that neither a host function of ours nor the machine raised is the host's fault.
    pub(crate) fn from_error(error: wasmtime::Error) -> Result<Self, HostFault> {
        if let Some(Stop(cause)) = error.downcast_ref() {
            return Ok(Self {
                cause: *cause,
                is_fuel_known: *cause != TrapCause::OutOfFuel,
            });
        }
        match error.downcast_ref::<Trap>() {
            Some(trap) => Ok(Self::from_trap(*trap)),
            None => Err(host_fault(error)),
        }
    }

    fn from_trap(trap: Trap) -> Self {
        let cause = match trap {
            Trap::OutOfFuel => TrapCause::OutOfFuel,
            Trap::StackOverflow => TrapCause::OutOfMemory,
            Trap::MemoryOutOfBounds | Trap::TableOutOfBounds => TrapCause::OutOfBounds,
            Trap::UnreachableCodeReached => TrapCause::Trap("unreachable"),
            Trap::IntegerDivisionByZero => TrapCause::Trap("integer division by zero"),
            Trap::IntegerOverflow => TrapCause::Trap("integer overflow"),
            Trap::BadConversionToInteger => TrapCause::Trap("invalid conversion to integer"),
            Trap::IndirectCallToNull => TrapCause::Trap("indirect call of a null entry"),
            Trap::BadSignature => TrapCause::Trap("indirect call with another type"),
            Trap::NullReference => TrapCause::Trap("null reference"),
            _ => TrapCause::Trap("other"),
        };
        // Code saves before `unreachable` and before every call, which is where a stack ends.
        Self {
            cause,
            is_fuel_known: matches!(trap, Trap::UnreachableCodeReached | Trap::StackOverflow),
        }
    }
}

pub(crate) fn host_fault(error: wasmtime::Error) -> HostFault {
    HostFault {
        message: format!("{error:#}"),
    }
}

/// The space that a run may grow into.
pub(crate) struct Space {
    pub(crate) memory_bytes: u64,
}

impl ResourceLimiter for Space {
    fn memory_growing(
        &mut self,
        _: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired as u64 <= self.memory_bytes && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // Refusals of ours are answered with −1. If the operating system refused, the guest must not see it: what it
        // does next would depend on the machine.
        match error.downcast_ref::<std::io::Error>() {
            Some(_) => Err(error),
            None => Ok(()),
        }
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired as u64 <= bounds::TABLE_ELEMENTS
            && maximum.is_none_or(|maximum| desired <= maximum))
    }
}
