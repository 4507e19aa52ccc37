//! One run of a guest: its limits, its oracle, its report, and the words for how it ended.
//!
//! Owns the meaning of a run's end. What a run does is in `child::machine`; what follows from a report (prices,
//! verdicts) is the caller's. Invariant: a trap anywhere, also after the output, makes the run a trapped one.

use serde::{Deserialize, Serialize};

/// What one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
pub trait Oracle {
    /// The symbol for `vector`, which has [`Limits::items`] elements, each 0 or 1.
    ///
    /// # Errors
    /// [`AskError::AllowanceExhausted`] ends the run.
    fn ask(&mut self, vector: &[u8]) -> Result<u32, AskError>;
}

/// Why an oracle does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AskError {
    /// The claim may not be charged for another answer.
    #[error("the claim may not be charged for another answer")]
    AllowanceExhausted,
}

/// What a run did. Equal for equal modules, limits, answers and engines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
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

impl Ran {
    /// The report of a guest that has no room for the memory with which it starts.
    pub(crate) fn without_memory(initial_pages: u64) -> Self {
        Self {
            end: End::Trapped(TrapCause::OutOfMemory),
            judged: None,
            fuel_used: 0,
            memory_pages: initial_pages,
            oracle_calls: 0,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It emitted these bytes, at most 2,048 of them, and returned.
    Emitted(Vec<u8>),
    /// It returned without emitting anything.
    NoOutput,
    /// It was stopped before it could return.
    Trapped(TrapCause),
}

/// Why a run was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum TrapCause {
    /// The guest broke a rule of the machine.
    #[error("trap: {0}")]
    Trap(Broken),
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
    /// It emitted a second output.
    #[error("a second output was emitted")]
    EmittedTwice,
    /// An output of more than 2,048 bytes.
    #[error("the output exceeds 2048 bytes")]
    OutputTooLarge,
}

/// The rule of the machine that a guest broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    #[error("unreachable")]
    Unreachable,
    /// It divided an integer by zero.
    #[error("integer division by zero")]
    DivisionByZero,
    /// The quotient of two integers was none.
    #[error("integer overflow")]
    IntegerOverflow,
    /// It made an integer from a float that is none.
    #[error("invalid conversion to integer")]
    BadConversion,
    /// It called an empty entry of a table.
    #[error("indirect call of a null entry")]
    NullEntry,
    /// It called an entry of a table under a type that it does not have.
    #[error("indirect call with another type")]
    WrongType,
    /// It used a null reference.
    #[error("null reference")]
    NullReference,
    /// A rule that this list does not name.
    #[error("other")]
    Other,
}

/// A fault of the host's: the run has no result and says nothing about the guest. It may be run again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HostFault {
    /// What happened, for the operator's log.
    pub message: String,
    /// The child died, or said what it must not, while it ran this guest: it may be the guest's doing.
    pub while_running: bool,
}
