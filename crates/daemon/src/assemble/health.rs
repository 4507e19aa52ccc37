//! The daemon's condition, as health probes and the control socket report it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

/// Whether the daemon serves calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// The daemon recovers acknowledged state and takes no calls yet.
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
    /// Reports that everything acknowledged before can be served again.
    pub fn serves(&self) {
        self.0.store(Arc::new(Condition::Serving));
    }

    /// Reports that the daemon takes no new work.
    pub fn stops(&self) {
        self.0.store(Arc::new(Condition::Stopping));
    }

    /// The present condition.
    pub fn condition(&self) -> Condition {
        **self.0.load()
    }
}
