//! Operators' commands about holdouts.

use super::{Caller, Decision};
use crate::{
    decide::{holdouts, keys, withdrawal},
    holdout::{Description, NarrowerBudgets},
    id::{Digest, HoldoutId},
    refusal::Refusal,
    state::{Stage, Wanted},
};

/// A command about holdouts.
#[derive(Debug, Clone)]
pub enum HoldoutCommand {
    /// Register a holdout whose items are in the store already.
    Put(Box<PutHoldout>),
    /// Take no more claims on a holdout.
    Retire {
        holdout: HoldoutId,
        /// In the operator's words; 1–256 bytes.
        reason: String,
    },
    /// Make a retired holdout's labels public.
    Open { holdout: HoldoutId },
    /// Withdraw a holdout that released nothing.
    Withdraw {
        holdout: HoldoutId,
        /// In the operator's words; 1–256 bytes.
        reason: String,
    },
    /// Lower a holdout's budgets, or restore them up to the registered maximum.
    SetBudgets {
        holdout: HoldoutId,
        /// Budgets that are absent stay as they are.
        narrower: NarrowerBudgets,
    },
    /// Note that the holdouts' items are encrypted under another key.
    Rekey {
        /// The generation of holdouts that was encrypted.
        generation: u64,
        /// Each holdout's new blob.
        blobs: Vec<(HoldoutId, Digest)>,
    },
}

/// A holdout to register; its bulk is in the store already.
#[derive(Debug, Clone)]
pub struct PutHoldout {
    /// The name by which claims refer to it; unique on the server.
    pub reference: String,
    /// Its public description.
    pub description: Description,
    /// Digest of its encrypted items.
    pub blob: Digest,
    /// Keyed digest of its labels.
    pub labels_key: Digest,
    /// Whether its items have ids.
    pub has_item_ids: bool,
    /// The generation of holdouts that the labels were compared with.
    pub generation: u64,
    /// Whether its labels agree beyond chance with those of each earlier holdout that is not
    /// withdrawn; empty if its items are declared fresh.
    pub compared: Vec<(HoldoutId, bool)>,
}

impl HoldoutCommand {
    /// Nothing to load: every holdout stays in memory.
    pub(crate) fn keys(&self, _: &mut Wanted<'_>) {
        match self {
            Self::Put(_)
            | Self::Retire { .. }
            | Self::Open { .. }
            | Self::Withdraw { .. }
            | Self::SetBudgets { .. }
            | Self::Rekey { .. } => {}
        }
    }

    pub(crate) fn decide(&self, stage: &Stage<'_>, caller: &Caller) -> Result<Decision, Refusal> {
        match self {
            Self::Put(put) => holdouts::put(stage, caller, put),
            Self::Retire { holdout, reason } => holdouts::retire(stage, caller, holdout, reason),
            Self::Open { holdout } => holdouts::open(stage, caller, holdout),
            Self::Withdraw { holdout, reason } => {
                withdrawal::withdraw(stage, caller, holdout, reason)
            }
            Self::SetBudgets { holdout, narrower } => {
                holdouts::narrow(stage, caller, holdout, *narrower)
            }
            Self::Rekey { generation, blobs } => keys::rekey(stage, caller, *generation, blobs),
        }
    }
}
