//! Whether the daemon serves, as probes and the control socket are told.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

/// Whether calls are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Not yet: what was acknowledged before is being brought back.
    Starting,
    /// The daemon serves calls.
    Serving,
    /// The daemon drains: it takes no new calls.
    Stopping,
}

/// The daemon's condition, as probes see it.
pub struct Health(ArcSwap<Condition>);

impl Default for Health {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(Condition::Starting))
    }
}

impl Health {
    /// Everything that was acknowledged before can be served again.
    pub fn serves(&self) {
        self.0.store(Arc::new(Condition::Serving));
    }

    /// No new work is taken.
    pub fn stops(&self) {
        self.0.store(Arc::new(Condition::Stopping));
    }

    /// How it is now.
    pub fn condition(&self) -> Condition {
        **self.0.load()
    }
}
