//! The detector of probing, for many threads: for tool calls at the gate, and for claims.
//!
//! It identifies a principal by its tag, and bounds how many it remembers. Time is monotonic.

use std::{num::NonZeroUsize, time::Instant};

use evidenceos_kernel::{
    id::OwnerTag,
    probe::{Call, Detector, Observed, Rules, RulesError},
};
use parking_lot::Mutex;

/// Parts of the detector, each with its own lock.
const SHARDS: usize = 16;
/// The most principals that the detector for tool calls remembers.
const PRINCIPALS: usize = 32_768;
/// The most sessions that it remembers.
const OPERATIONS: usize = 65_536;
/// The most principals whose claims are remembered.
const CLAIMANTS: usize = 4_096;

/// The detector, in parts, for many threads.
pub struct Probes {
    shards: Vec<Mutex<Detector>>,
    started: Instant,
    rules: Rules,
}

impl Probes {
    /// A detector for tool calls.
    ///
    /// # Errors
    /// If the rules are invalid.
    pub fn of_tool_calls(rules: Rules) -> Result<Self, RulesError> {
        Self::new(rules, PRINCIPALS, OPERATIONS)
    }

    /// A detector for claims.
    ///
    /// # Errors
    /// If the rules are invalid.
    pub fn of_claims(rules: Rules) -> Result<Self, RulesError> {
        Self::new(rules, CLAIMANTS, CLAIMANTS)
    }

    fn new(rules: Rules, principals: usize, operations: usize) -> Result<Self, RulesError> {
        let each = |of: usize| NonZeroUsize::new(of / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shards = (0..SHARDS)
            .map(|_| Detector::new(rules, each(principals), each(operations)).map(Mutex::new))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            shards,
            started: Instant::now(),
            rules,
        })
    }

    /// The rules of every shard.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Counts a call at the present time.
    pub fn observe(&self, call: &Call) -> Observed {
        self.shard(&call.principal)
            .lock()
            .observe(self.now_ms(), call)
    }

    /// Counts a denied call at the present time.
    pub fn denied(&self, principal: &OwnerTag) {
        self.shard(principal)
            .lock()
            .denied(self.now_ms(), *principal);
    }

    fn shard(&self, principal: &OwnerTag) -> &Mutex<Detector> {
        // A tag is part of a keyed digest, so its first byte spreads principals evenly.
        &self.shards[usize::from(principal.0[0]) % SHARDS]
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
