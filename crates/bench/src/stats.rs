//! Percentiles of durations.

use std::time::Duration;

/// Durations in microseconds, sorted when percentiles are requested.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one duration, in microseconds.
    pub fn add(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64() * 1e6);
    }

    /// Adds all samples of another set.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The median, the 95th and the 99th percentile, in microseconds.
    pub fn percentiles(&self) -> [f64; 3] {
        at([0.50, 0.95, 0.99], self.0.clone())
    }

    /// The median, in microseconds.
    pub fn p50(&self) -> f64 {
        self.percentiles()[0]
    }
}

/// The first quartile, the median and the third quartile.
pub fn quartiles(values: Vec<f64>) -> [f64; 3] {
    at([0.25, 0.50, 0.75], values)
}

/// The values at these shares of all; 0 if there are none.
fn at(shares: [f64; 3], mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    shares.map(|share| {
        let index = (share * values.len() as f64) as usize;
        let last = values.len().saturating_sub(1);
        values.get(index.min(last)).copied().unwrap_or(0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_hundred() {
        let mut samples = Samples::default();
        (1..=100)
            .rev()
            .for_each(|us| samples.add(Duration::from_micros(us)));
        let [p50, p95, p99] = samples.percentiles().map(f64::round);
        assert_eq!((p50, p95, p99), (51.0, 96.0, 100.0));
    }
}
