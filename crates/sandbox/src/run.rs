//! One run of a guest: its limits, its oracle, its report, and its end.
//!
//! Owns the meaning of a run's end. `child::machine` executes a run; the caller owns the consequences of a report
//! (prices, verdicts). Invariant: a trap anywhere, also after the output, makes the run a trapped one.

use serde::{Deserialize, Serialize};

/// The resources that one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Fuel: about one unit per instruction, one per byte of a bulk memory operation, and for a call of the host
    /// 32 units and one per eight bytes that it reads.
    pub fuel: u64,
    /// Most linear memory, in bytes. Growth beyond it answers −1, as in the specification.
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

/// The reason why an oracle does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AskError {
    /// The claim may not be charged for another answer.
    #[error("the claim may not be charged for another answer")]
    AllowanceExhausted,
}

/// The report of a run. Equal for equal modules, limits, answers and engines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    pub end: End,
    /// The vector to be judged: [`Limits::items`] elements, each 0 or 1. `None` if there is none, and always after a
    /// trap.
    ///
    /// For a module that imports `submit_predictions`, the last vector given to it before the output; for any other,
    /// the last one asked about before the output. Questions after the output are still answered and counted, but
    /// never judged.
    pub judged: Option<Vec<u8>>,
    /// Fuel used, at most [`Limits::fuel`].
    ///
    /// It is the whole limit after [`TrapCause::OutOfFuel`], and also after an instruction that trapped by itself (a
    /// division, an access): compiled code saves its count only at calls and returns, so the fuel that such a guest
    /// burnt is unknown, and burning must not be free.
    pub fuel_used: u64,
    /// Linear memory at the end, in pages of 64 KiB.
    pub memory_pages: u64,
    /// Calls of the oracle, including a failed one.
    pub oracle_calls: u32,
}

impl Ran {
    /// The report of a guest whose limits have no room for its initial memory.
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

/// The cause for which a run was stopped.
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
    /// The module was admitted by an earlier release and is refused by this one, so it did not begin. No child reports this.
    #[error("this release refuses the module")]
    NotAdmitted,
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
    /// The result of an integer operation does not fit.
    #[error("integer overflow")]
    IntegerOverflow,
    /// The guest converted a float that has no integer value.
    #[error("invalid conversion to integer")]
    BadConversion,
    /// The guest called an empty entry of a table.
    #[error("indirect call of a null entry")]
    NullEntry,
    /// The guest called an entry of a table under another type than its own.
    #[error("indirect call with another type")]
    WrongType,
    /// The guest used a null reference.
    #[error("null reference")]
    NullReference,
    /// A rule that this list does not name.
    #[error("other")]
    Other,
}

/// A fault of the host: the run has no result and says nothing about the guest. It may be run again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HostFault {
    /// The event, for the operator's log.
    pub message: String,
    /// The child died, or sent a forbidden message, while it ran this guest: the guest may be the cause.
    pub while_running: bool,
}
