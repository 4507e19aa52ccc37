//! Policy oracles: small modules that may veto something, given a description of it.
//!
//! Owns one call of one oracle: its limits, the order of steps, and the report of a failure. The caller owns the
//! description, the set of oracles and the consequences of a vote. Invariant: a vote is a function of the module's
//! bytes, its limits and the input. Every call has an instance of its own, so nothing is remembered between calls,
//! and an oracle that fails has no vote: the caller must count that as a veto.
//!
//! ```text
//! alloc(len: i32) -> i32                          room for the input; 0: there is none
//! policy_oracle_decide(ptr: i32, len: i32) -> i32 0 pass, 1 defer, 2 reject
//! ```

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::artifact::Artifact;
use crate::check::{ModuleInfo, PAGE_BYTES};
use crate::pool::Pool;
use crate::rule::{Rule, Violation};
use crate::run::TrapCause;
use crate::sandbox::AdmitError;

/// The resources that one call of an oracle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyLimits {
    /// Fuel of both calls together: about one unit per instruction.
    pub fuel: u64,
    /// Most linear memory, in bytes. Growth beyond it answers −1.
    pub memory_bytes: u64,
    /// Longest input, in bytes.
    pub input_bytes: u64,
}

/// The vote of an oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Vote {
    /// The oracle has no objection.
    Pass,
    /// The oracle leaves the decision to a person.
    Defer,
    /// The oracle rejects the request.
    Reject,
}

/// The reason why an oracle has no vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyFailure {
    /// The input is longer than the limit; the oracle was not called.
    #[error("the input has {len} bytes, but max_input_bytes allows {most}")]
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
    /// It was stopped for a trap.
    #[error("{0}")]
    Trapped(TrapCause),
    /// `alloc` answered 0: there is no room for the input.
    #[error("alloc returned 0: it has no room for an input of {0} bytes")]
    NoRoom(u64),
    /// `alloc` answered an address at which the input does not fit.
    #[error(
        "alloc returned {address:#x}: an input of {len} bytes there ends outside its memory of {memory} bytes"
    )]
    RoomOutOfBounds {
        /// The address that `alloc` answered.
        address: u32,
        /// Length of the input.
        len: u64,
        /// Size of the memory.
        memory: u64,
    },
    /// The oracle returned a number that is not a vote.
    #[error("it decided {0}; a decision is 0 (pass), 1 (defer) or 2 (reject)")]
    NotAVote(i32),
    /// A fault of the host, in its words.
    #[error("{0}")]
    Host(String),
}

/// An admitted policy oracle, compiled, that can be asked any number of times, by many threads at once. Each call
/// runs in a child process.
pub struct PolicyModule {
    info: ModuleInfo,
    limits: PolicyLimits,
    code: Arc<Artifact>,
    children: Arc<Pool>,
}

impl PolicyModule {
    pub(crate) fn new(
        info: ModuleInfo,
        limits: PolicyLimits,
        code: Arc<Artifact>,
        children: Arc<Pool>,
    ) -> Self {
        Self {
            info,
            limits,
            code,
            children,
        }
    }

    /// The facts that admission learnt about the module.
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    /// The limits of each call.
    pub fn limits(&self) -> PolicyLimits {
        self.limits
    }

    /// Asks the oracle about `input`, in an instance of its own. Blocks until it has answered.
    ///
    /// # Errors
    /// [`PolicyFailure`] if it has no vote: count that as a veto.
    pub fn decide(&self, input: &[u8]) -> Result<Vote, PolicyFailure> {
        let (len, most) = (input.len() as u64, self.limits.input_bytes);
        if len > most || u32::try_from(len).is_err() {
            return Err(PolicyFailure::InputTooLarge { len, most });
        }
        self.children
            .with_child(&self.code, self.limits.fuel, false, |child| {
                child.decide(&self.code, self.limits, input)
            })
            .map_err(|fault| PolicyFailure::Host(fault.message))?
    }
}

/// A module must have room for the memory with which it starts.
pub(crate) fn must_carry(limits: PolicyLimits, info: &ModuleInfo) -> Result<(), AdmitError> {
    let needed = info.initial_memory_pages.saturating_mul(PAGE_BYTES);
    if needed <= limits.memory_bytes {
        return Ok(());
    }
    Err(AdmitError::Refused(vec![Violation {
        rule: Rule::Memory,
        offset: None,
        message: format!(
            "its memory has {needed} bytes at the start, but max_memory_bytes allows {}",
            limits.memory_bytes
        ),
    }]))
}

impl fmt::Debug for PolicyModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyModule")
            .field("info", &self.info)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
