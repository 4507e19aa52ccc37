//! One call of a policy oracle: its steps in order, and the report of a failure.

use wasmtime::Store;

use super::code::PolicyCode;
use super::machine::{Space, Trapped};
use crate::policy::{PolicyFailure, PolicyLimits, Vote};
use crate::run::TrapCause;

/// Asks the oracle about `input`, in an instance of its own.
pub(crate) fn decide(
    code: &PolicyCode,
    limits: PolicyLimits,
    input: &[u8],
) -> Result<Vote, PolicyFailure> {
    let space = Space::of(limits.memory_bytes);
    let mut store = Store::new(code.instance.module().engine(), space);
    store.limiter(|space| space);
    let answer = ask(code, &mut store, limits.fuel, input);
    let was_refused = store.data().refused_growth;
    match answer {
        Ok(Ok(0)) => Ok(Vote::Pass),
        Ok(Ok(1)) => Ok(Vote::Defer),
        Ok(Ok(2)) => Ok(Vote::Reject),
        Ok(Ok(other)) => Err(PolicyFailure::NotAVote(other)),
        Ok(Err(failure)) => Err(failure),
        Err(error) => Err(told(error, was_refused)),
    }
}

/// The calls, in order. The outer error is the engine's: a trap, or a fault of the host.
fn ask(
    code: &PolicyCode,
    store: &mut Store<Space>,
    fuel: u64,
    input: &[u8],
) -> wasmtime::Result<Result<i32, PolicyFailure>> {
    store.set_fuel(fuel)?;
    let instance = code.instance.instantiate(&mut *store)?;
    let mut function = |export| {
        instance
            .get_module_export(&mut *store, export)
            .and_then(|export| export.into_func())
            .ok_or_else(|| wasmtime::Error::msg("an admitted module has lost an export"))
    };
    let (alloc, decide) = (function(&code.alloc)?, function(&code.decide)?);
    let memory = instance
        .get_module_export(&mut *store, &code.memory)
        .and_then(|export| export.into_memory())
        .ok_or_else(|| wasmtime::Error::msg("an admitted module has lost its memory"))?;

    let len = u32::try_from(input.len())?;
    let address = alloc.typed::<u32, u32>(&*store)?.call(&mut *store, len)?;
    if address == 0 && len > 0 {
        // 0 is the C allocator's report of failure. Written there, the input would overwrite data that decides about
        // it.
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

fn told(error: wasmtime::Error, was_refused_memory: bool) -> PolicyFailure {
    match Trapped::from_error(error) {
        Ok(Trapped { cause, .. }) => match cause {
            TrapCause::OutOfFuel => PolicyFailure::OutOfFuel,
            TrapCause::OutOfMemory => PolicyFailure::OutOfMemory,
            // An allocator that is refused memory commonly gives up with a trap.
            _ if was_refused_memory => PolicyFailure::OutOfMemory,
            cause => PolicyFailure::Trapped(cause),
        },
        Err(fault) => PolicyFailure::Host(fault),
    }
}
