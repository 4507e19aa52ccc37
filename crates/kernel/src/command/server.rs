//! Commands about the server as a whole.

use super::{Caller, Decision};
use crate::{
    decide::server,
    in_force::InForce,
    refusal::Refusal,
    state::{Stage, Wanted},
};

/// A command about the server.
#[derive(Debug, Clone)]
pub enum ServerCommand {
    /// State the policies in force from here on; does nothing if they are in force already.
    StatePolicies(InForce),
    /// Accept the system clock after a forward jump.
    ConfirmClock {
        /// Time before the jump, in Unix milliseconds.
        from_unix_ms: u64,
        /// Time after the jump, in Unix milliseconds.
        to_unix_ms: u64,
    },
}

impl ServerCommand {
    /// Nothing to load: these commands read only what stays in memory.
    pub(crate) fn keys(&self, _: &mut Wanted<'_>) {
        match self {
            Self::StatePolicies(_) | Self::ConfirmClock { .. } => {}
        }
    }

    pub(crate) fn decide(&self, stage: &Stage<'_>, caller: &Caller) -> Result<Decision, Refusal> {
        match self {
            Self::StatePolicies(in_force) => server::state_policies(stage, caller, *in_force),
            Self::ConfirmClock {
                from_unix_ms,
                to_unix_ms,
            } => server::confirm_clock(caller, *from_unix_ms, *to_unix_ms),
        }
    }
}
