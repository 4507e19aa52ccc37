//! The daemon's commands about decisions on tool calls.

use std::sync::Arc;

use super::{Caller, Decision};
use crate::{
    decide::decisions,
    decision::{DecisionBatch, DecisionId},
    refusal::Refusal,
    state::{Stage, Wanted},
};

/// A command about decisions on tool calls.
#[derive(Debug, Clone)]
pub enum DecisionCommand {
    /// Put decisions into the log.
    Record(Box<NewDecisions>),
    /// Delete records of decisions; their roots stay in the log.
    Forget {
        /// The last decision whose record is deleted.
        through: DecisionId,
    },
}

/// Decisions to put into the log.
#[derive(Debug, Clone)]
pub struct NewDecisions {
    /// The batch, as the log will have it.
    pub batch: DecisionBatch,
    /// Their records, as the store keeps them.
    pub records: Arc<[u8]>,
}

impl DecisionCommand {
    /// Nothing to load: the records are stored beside the state.
    pub(crate) fn keys(&self, _: &mut Wanted<'_>) {
        match self {
            Self::Record(_) | Self::Forget { .. } => {}
        }
    }

    pub(crate) fn decide(&self, stage: &Stage<'_>, caller: &Caller) -> Result<Decision, Refusal> {
        match self {
            Self::Record(new) => decisions::record(stage, caller, new),
            Self::Forget { through } => decisions::forget(caller, *through),
        }
    }
}
