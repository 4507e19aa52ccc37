//! The known state of the anchors, for other parts and for metrics.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use evidenceos_telemetry::write::gauge;

/// The known state of the anchors, for other threads to read.
#[derive(Debug, Default)]
pub struct State {
    /// Anchors that heads are compared with.
    pub configured: AtomicU64,
    /// Anchors that answered at the last attempt.
    pub answering: AtomicU64,
    /// Nothing is signed or charged until one answers.
    pub held: AtomicBool,
    why: Mutex<String>,
}

/// Shows the state as metrics.
#[derive(Debug)]
pub struct StateCollector(pub Arc<State>);

impl State {
    /// Why nothing is signed or charged; `None` if the log is signed.
    #[must_use]
    pub fn held_because(&self) -> Option<String> {
        let held = self.held.load(Relaxed);
        held.then(|| self.why.lock().clone())
    }

    /// Notes that nothing is signed, with the reason.
    pub fn hold(&self, why: &str) {
        why.clone_into(&mut self.why.lock());
        self.held.store(true, Relaxed);
    }

    /// Notes that signing continues.
    pub fn let_go(&self) {
        self.held.store(false, Relaxed);
    }
}

impl Collector for StateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let anchors = &self.0;
        for (name, help, value) in [
            (
                "anchors",
                "Anchors that were given; with none a data directory restored from an older state is not noticed",
                anchors.configured.load(Relaxed),
            ),
            (
                "anchors_answering",
                "Anchors that answered when they were last asked or written",
                anchors.answering.load(Relaxed),
            ),
            (
                "signing_held",
                "1 while nothing is signed or charged, since no anchor answers",
                u64::from(anchors.held.load(Relaxed)),
            ),
        ] {
            gauge(&mut encoder, name, help, None, value)?;
        }
        Ok(())
    }
}
