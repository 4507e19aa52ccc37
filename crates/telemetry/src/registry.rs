//! The registry: all counts with their names, shown as text.

use std::{fmt::Debug, hash::Hash};

use parking_lot::RwLock;
use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{self, Unit},
};

use crate::process::ProcessCollector;

/// The prefix of every name except those of the process.
const PREFIX: &str = "evidenceos";

/// All counts of a process. Parts register at their start, and then count without the registry.
pub struct Registry(RwLock<registry::Registry>);

/// Bounds of a histogram, in ascending order.
#[derive(Debug, Clone, Copy)]
pub struct Bounds(pub &'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry with only the process's metrics.
    #[must_use]
    pub fn new() -> Self {
        let mut whole = registry::Registry::default();
        whole.register_collector(Box::new(ProcessCollector::new()));
        Self(RwLock::new(whole))
    }

    /// Registers a counter; its name is shown with `_total` at the end.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.own(|own| own.register(name, help, counter.clone()));
        counter
    }

    /// Registers a family of counters, one for each set of labels.
    #[must_use]
    pub fn counters<L>(&self, name: &str, help: &str) -> Family<L, Counter>
    where
        L: Clone + Eq + Hash + EncodeLabelSet + Debug + Send + Sync + 'static,
    {
        let family = Family::default();
        self.own(|own| own.register(name, help, Family::clone(&family)));
        family
    }

    /// Registers a histogram of numbers that have no unit.
    #[must_use]
    pub fn histogram(&self, name: &str, help: &str, bounds: Bounds) -> Histogram {
        let histogram = bounds.new_metric();
        self.own(|own| own.register(name, help, histogram.clone()));
        histogram
    }

    /// Registers a histogram of times, in seconds.
    #[must_use]
    pub fn timing(&self, name: &str, help: &str, bounds: Bounds) -> Histogram {
        let histogram = bounds.new_metric();
        self.own(|own| own.register_with_unit(name, help, Unit::Seconds, histogram.clone()));
        histogram
    }

    /// Registers a family of histograms of times, in seconds.
    #[must_use]
    pub fn timings<L>(&self, name: &str, help: &str, bounds: Bounds) -> Family<L, Histogram, Bounds>
    where
        L: Clone + Eq + Hash + EncodeLabelSet + Debug + Send + Sync + 'static,
    {
        let family = Family::new_with_constructor(bounds);
        self.own(|own| own.register_with_unit(name, help, Unit::Seconds, Family::clone(&family)));
        family
    }

    /// Shows values that a part keeps itself, read at each scrape.
    pub fn collect(&self, collector: impl Collector) {
        self.own(|own| own.register_collector(Box::new(collector)));
    }

    /// Everything, as OpenMetrics text.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.0.read())
            .unwrap_or_else(|error| unreachable!("text is written into memory: {error}"));
        text
    }

    fn own(&self, register: impl FnOnce(&mut registry::Registry)) {
        register(self.0.write().sub_registry_with_prefix(PREFIX));
    }
}
