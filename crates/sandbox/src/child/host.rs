//! The host's functions for a guest.
//!
//! Owns the state of a running guest and the order of checks in every call. Invariant: a call costs fuel before it
//! touches a byte, in proportion to the bytes, so a guest cannot make the host work for free; and checks look only at
//! the guest's own bytes and limits.

use wasmtime::{Caller, Linker, Memory};

use super::machine::Space;
use crate::abi::HostFunction;
use crate::run::{AskError, Limits, Oracle, TrapCause};

/// Fuel for any call of the host.
const CALL_FUEL: u64 = 32;

/// Bytes that the host reads for one unit of fuel.
const BYTES_PER_FUEL: u64 = 8;

/// Longest output, in bytes.
const OUTPUT_BYTES: usize = 2_048;

/// A guest that runs.
pub(crate) struct Guest {
    limits: Limits,
    /// The module imports `submit_predictions`, so questions are not judged.
    submits: bool,
    pub(crate) oracle: Box<dyn Oracle>,
    pub(crate) space: Space,
    /// `None` until the guest is instantiated.
    pub(crate) memory: Option<Memory>,
    pub(crate) oracle_calls: u32,
    pub(crate) judged: Option<Vec<u8>>,
    pub(crate) output: Option<Vec<u8>>,
}

/// A host function's reason to end the run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Stop(pub(crate) TrapCause);

impl Guest {
    pub(crate) fn new(limits: Limits, submits: bool, oracle: Box<dyn Oracle>) -> Self {
        let space = Space::of(limits.memory_bytes);
        Self {
            limits,
            submits,
            oracle,
            space,
            memory: None,
            oracle_calls: 0,
            judged: None,
            output: None,
        }
    }

    fn set_judged(&mut self, vector: &[u8]) {
        if self.output.is_none() {
            let judged = self.judged.get_or_insert_default();
            judged.clear();
            judged.extend_from_slice(vector);
        }
    }
}

/// Offers `function` as `module::name`, for emit with or without its result.
pub(crate) fn link(
    linker: &mut Linker<Guest>,
    module: &str,
    name: &str,
    function: HostFunction,
    has_result: bool,
) -> wasmtime::Result<()> {
    match (function, has_result) {
        (HostFunction::Ask, _) => linker.func_wrap(module, name, ask)?,
        (HostFunction::Submit, _) => linker.func_wrap(module, name, submit)?,
        (HostFunction::Epoch, _) => linker.func_wrap(module, name, epoch)?,
        (HostFunction::Emit, true) => linker.func_wrap(
            module,
            name,
            |caller: Caller<'_, Guest>, ptr: u32, len: u32| emit(caller, ptr, len).map(|()| 0),
        )?,
        (HostFunction::Emit, false) => linker.func_wrap(module, name, emit)?,
    };
    Ok(())
}

fn ask(mut caller: Caller<'_, Guest>, ptr: u32, len: u32) -> wasmtime::Result<u32> {
    let guest = caller.data_mut();
    if guest.oracle_calls == guest.limits.oracle_calls {
        return stop(TrapCause::TooManyCalls);
    }
    // A call that fails counts too: the report has every call that was made.
    guest.oracle_calls += 1;
    let (vector, guest) = read_vector(&mut caller, ptr, len)?;
    match guest.oracle.ask(vector) {
        Ok(symbol) => {
            if !guest.submits {
                guest.set_judged(vector);
            }
            Ok(symbol)
        }
        Err(AskError::AllowanceExhausted) => stop(TrapCause::AllowanceExhausted),
    }
}

fn submit(mut caller: Caller<'_, Guest>, ptr: u32, len: u32) -> wasmtime::Result<u32> {
    let (vector, guest) = read_vector(&mut caller, ptr, len)?;
    guest.set_judged(vector);
    Ok(0)
}

fn emit(mut caller: Caller<'_, Guest>, ptr: u32, len: u32) -> wasmtime::Result<()> {
    if caller.data().output.is_some() {
        return stop(TrapCause::EmittedTwice);
    }
    if len as usize > OUTPUT_BYTES {
        return stop(TrapCause::OutputTooLarge);
    }
    let (bytes, guest) = read(&mut caller, ptr, len)?;
    guest.output = Some(bytes.to_vec());
    Ok(())
}

fn epoch(mut caller: Caller<'_, Guest>) -> wasmtime::Result<u64> {
    burn(&mut caller, 0)?;
    let used = caller.data().limits.fuel.saturating_sub(caller.get_fuel()?);
    Ok(used
        .checked_div(caller.data().limits.epoch_size)
        .unwrap_or(0))
}

/// A vector at `ptr`: one byte per item, each 0 or 1.
fn read_vector<'a>(
    caller: &'a mut Caller<'_, Guest>,
    ptr: u32,
    len: u32,
) -> wasmtime::Result<(&'a [u8], &'a mut Guest)> {
    if u64::from(len) != caller.data().limits.items {
        return stop(TrapCause::InvalidVector);
    }
    let (vector, guest) = read(caller, ptr, len)?;
    // Read all bytes whatever the first ones are; the compiler can then take many at once.
    if vector.iter().fold(0, |all, byte| all | byte) > 1 {
        return stop(TrapCause::InvalidVector);
    }
    Ok((vector, guest))
}

/// The guest's bytes at `ptr`, charged in fuel.
fn read<'a>(
    caller: &'a mut Caller<'_, Guest>,
    ptr: u32,
    len: u32,
) -> wasmtime::Result<(&'a [u8], &'a mut Guest)> {
    burn(caller, u64::from(len).div_ceil(BYTES_PER_FUEL))?;
    let Some(memory) = caller.data().memory else {
        return stop(TrapCause::OutOfBounds);
    };
    let (bytes, guest) = memory.data_and_store_mut(caller);
    // Two numbers of 32 bits do not overflow 64.
    let range = ptr as usize..ptr as usize + len as usize;
    match bytes.get(range) {
        Some(bytes) => Ok((bytes, guest)),
        None => stop(TrapCause::OutOfBounds),
    }
}

fn burn(caller: &mut Caller<'_, Guest>, fuel: u64) -> wasmtime::Result<()> {
    match caller.get_fuel()?.checked_sub(CALL_FUEL + fuel) {
        Some(left) => caller.set_fuel(left),
        None => stop(TrapCause::OutOfFuel),
    }
}

fn stop<T>(cause: TrapCause) -> wasmtime::Result<T> {
    Err(Stop(cause).into())
}
