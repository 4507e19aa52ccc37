//! One run of a guest, and the causes for which the engine stops one.

use wasmtime::{Memory, ResourceLimiter, Store, Trap};

use super::code::GuestCode;
use super::host::{Guest, Stop};
use crate::check::PAGE_BYTES;
use crate::rule::bounds;
use crate::run::{Broken, End, Limits, Oracle, Ran, TrapCause};

/// The inputs of a run beside its code.
pub(crate) struct Task {
    pub(crate) limits: Limits,
    /// The module imports `submit_predictions`, so questions are not judged.
    pub(crate) submits: bool,
    /// Its memory at the start, in pages.
    pub(crate) initial_pages: u64,
    /// The segments that the code does not carry: address and contents.
    pub(crate) data: Vec<(u32, Vec<u8>)>,
}

/// Runs `code` once, in a store of its own.
pub(crate) fn run(code: &GuestCode, task: &Task, oracle: Box<dyn Oracle>) -> Result<Ran, Fault> {
    let (limits, initial_pages) = (&task.limits, task.initial_pages);
    if initial_pages.saturating_mul(PAGE_BYTES) > limits.memory_bytes {
        return Ok(Ran::without_memory(initial_pages));
    }
    let mut store = Store::new(
        code.instance.module().engine(),
        Guest::new(*limits, task.submits, oracle),
    );
    store.limiter(|guest| &mut guest.space);
    store.set_fuel(limits.fuel).map_err(fault)?;
    let outcome = execute(code, task, &mut store);
    let fuel_left = store.get_fuel().map_err(fault)?;
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
        (Some(trapped), _) => (End::Trapped(trapped.cause_after(&guest.space)), None),
        (None, Some(output)) => (End::Emitted(output), guest.judged),
        (None, None) => (End::NoOutput, guest.judged),
    };
    Ok(Ran {
        end,
        judged,
        fuel_used: limits.fuel.saturating_sub(fuel_left),
        memory_pages,
        oracle_calls: guest.oracle_calls,
    })
}

fn execute(code: &GuestCode, task: &Task, store: &mut Store<Guest>) -> wasmtime::Result<()> {
    let instance = code.instance.instantiate(&mut *store)?;
    let memory: Option<Memory> = instance
        .get_module_export(&mut *store, &code.memory)
        .and_then(|export| export.into_memory());
    store.data_mut().memory = memory;
    if let Some(memory) = memory {
        // Admission saw that every segment fits the initial memory.
        for (address, bytes) in &task.data {
            memory.write(&mut *store, *address as usize, bytes)?;
        }
    }
    let run = instance
        .get_module_export(&mut *store, &code.run)
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
    /// Reads the engine's error. An error that neither a host function of ours nor the machine
    /// raised is a fault of the host.
    pub(crate) fn from_error(error: wasmtime::Error) -> Result<Self, Fault> {
        if let Some(Stop(cause)) = error.downcast_ref() {
            return Ok(Self {
                cause: *cause,
                is_fuel_known: *cause != TrapCause::OutOfFuel,
            });
        }
        match error.downcast_ref::<Trap>() {
            Some(trap) => Ok(Self::from_trap(*trap)),
            None => Err(fault(error)),
        }
    }

    /// The cause for a run with this space. A language whose allocation fails ends in `unreachable`: its user should
    /// read about memory, not about a panic.
    fn cause_after(&self, space: &Space) -> TrapCause {
        match self.cause {
            TrapCause::Trap(Broken::Unreachable) if space.refused_growth => TrapCause::OutOfMemory,
            cause => cause,
        }
    }

    fn from_trap(trap: Trap) -> Self {
        let cause = match trap {
            Trap::OutOfFuel => TrapCause::OutOfFuel,
            Trap::StackOverflow => TrapCause::OutOfMemory,
            Trap::MemoryOutOfBounds | Trap::TableOutOfBounds => TrapCause::OutOfBounds,
            Trap::UnreachableCodeReached => TrapCause::Trap(Broken::Unreachable),
            Trap::IntegerDivisionByZero => TrapCause::Trap(Broken::DivisionByZero),
            Trap::IntegerOverflow => TrapCause::Trap(Broken::IntegerOverflow),
            Trap::BadConversionToInteger => TrapCause::Trap(Broken::BadConversion),
            Trap::IndirectCallToNull => TrapCause::Trap(Broken::NullEntry),
            Trap::BadSignature => TrapCause::Trap(Broken::WrongType),
            Trap::NullReference => TrapCause::Trap(Broken::NullReference),
            _ => TrapCause::Trap(Broken::Other),
        };
        // Code saves its count before `unreachable` and before every call, and a call is the place
        // at which a stack ends.
        Self {
            cause,
            is_fuel_known: matches!(trap, Trap::UnreachableCodeReached | Trap::StackOverflow),
        }
    }
}

/// A fault of the host, in the engine's words.
pub(crate) type Fault = String;

fn fault(error: wasmtime::Error) -> Fault {
    format!("the engine failed: {error:#}")
}

/// The space that a run may grow into.
pub(crate) struct Space {
    memory_bytes: u64,
    /// A growth of its memory was refused.
    pub(crate) refused_growth: bool,
}

impl Space {
    pub(crate) fn of(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            refused_growth: false,
        }
    }
}

impl ResourceLimiter for Space {
    fn memory_growing(
        &mut self,
        _: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits =
            desired as u64 <= self.memory_bytes && maximum.is_none_or(|maximum| desired <= maximum);
        self.refused_growth |= !fits;
        Ok(fits)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // Our own refusals are answered with −1. If the operating system refused, the guest must not see it: its next
        // steps would depend on the machine.
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
