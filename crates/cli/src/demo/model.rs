//! Two honest models: one learns from all measurements, one from a single measurement.
//!
//! Deterministic: no randomness, fixed steps. Floats may differ in their last digit between machines; the demo's
//! results have margins far beyond that.

use super::data::Row;

/// Steps of gradient descent.
const STEPS: usize = 300;
/// The size of a step of gradient descent.
const RATE: f64 = 0.5;
/// L2 penalty on the weights.
const PENALTY: f64 = 0.01;

/// Anything that predicts 0 or 1.
pub trait Model {
    /// The prediction for one row's features.
    fn predict(&self, features: &[f64]) -> u8;

    /// Predictions for rows, in order.
    fn predict_all(&self, rows: &[Row]) -> Vec<u8> {
        rows.iter().map(|row| self.predict(&row.features)).collect()
    }
}

/// Logistic regression on standardised features.
pub struct Logistic {
    means: Vec<f64>,
    deviations: Vec<f64>,
    weights: Vec<f64>,
    bias: f64,
}

impl Logistic {
    /// Trains by full-batch gradient descent.
    pub fn train(rows: &[Row]) -> Self {
        let count = rows.len() as f64;
        let columns = rows.first().map_or(0, |row| row.features.len());
        let mean = |of: &dyn Fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / count;
        let means: Vec<f64> = (0..columns).map(|c| mean(&|row| row.features[c])).collect();
        let deviations: Vec<f64> = (0..columns)
            .map(|c| {
                // A column with the same value in every row must not lead to a division by zero.
                mean(&|row| (row.features[c] - means[c]).powi(2))
                    .sqrt()
                    .max(f64::MIN_POSITIVE)
            })
            .collect();
        let mut model = Self {
            means,
            deviations,
            weights: vec![0.0; columns],
            bias: 0.0,
        };
        let standard: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| model.standardise(&row.features))
            .collect();
        for _ in 0..STEPS {
            let mut slopes = vec![0.0; columns];
            let mut bias_slope = 0.0;
            for (row, x) in rows.iter().zip(&standard) {
                let error = 1.0 / (1.0 + (-model.score(x)).exp()) - f64::from(row.label);
                bias_slope += error / count;
                for (slope, value) in slopes.iter_mut().zip(x) {
                    *slope += error * value / count;
                }
            }
            model.bias -= RATE * bias_slope;
            for (weight, slope) in model.weights.iter_mut().zip(&slopes) {
                *weight -= RATE * (slope + PENALTY * *weight);
            }
        }
        model
    }

    fn standardise(&self, features: &[f64]) -> Vec<f64> {
        let scales = self.means.iter().zip(&self.deviations);
        features
            .iter()
            .zip(scales)
            .map(|(x, (mean, deviation))| (x - mean) / deviation)
            .collect()
    }

    fn score(&self, standard: &[f64]) -> f64 {
        self.bias
            + self
                .weights
                .iter()
                .zip(standard)
                .map(|(w, x)| w * x)
                .sum::<f64>()
    }
}

impl Model for Logistic {
    fn predict(&self, features: &[f64]) -> u8 {
        u8::from(self.score(&self.standardise(features)) > 0.0)
    }
}

/// One measurement and one threshold: benign if the measurement is at most the threshold.
pub struct Stump {
    feature: usize,
    at_most: f64,
}

impl Stump {
    /// The threshold that is right most often on the rows.
    pub fn train(rows: &[Row], feature: usize) -> Self {
        let right = |at_most: f64| {
            let stump = Self { feature, at_most };
            rows.iter()
                .filter(|row| stump.predict(&row.features) == row.label)
                .count()
        };
        let mut values: Vec<f64> = rows.iter().map(|row| row.features[feature]).collect();
        values.sort_by(f64::total_cmp);
        let best = values
            .into_iter()
            .fold((0, 0.0), |best: (usize, f64), value| {
                let count = right(value);
                if count > best.0 { (count, value) } else { best }
            });
        Self {
            feature,
            at_most: best.1,
        }
    }
}

impl Model for Stump {
    fn predict(&self, features: &[f64]) -> u8 {
        u8::from(features[self.feature] <= self.at_most)
    }
}

/// The share of equal bytes.
pub fn accuracy(predictions: &[u8], labels: &[u8]) -> f64 {
    let right = predictions
        .iter()
        .zip(labels)
        .filter(|(p, l)| p == l)
        .count();
    right as f64 / labels.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::data::Dataset;

    #[test]
    fn the_good_model_is_far_above_and_the_weak_one_just_above_the_null() {
        let data = Dataset::load().expect("embedded");
        let labels = data.labels();
        let good = accuracy(
            &Logistic::train(&data.training).predict_all(&data.holdout),
            &labels,
        );
        assert!(good > 0.96, "{good}");
        let feature = data
            .names
            .iter()
            .position(|name| name == "radius_error")
            .expect("there");
        let weak = accuracy(
            &Stump::train(&data.training, feature).predict_all(&data.holdout),
            &labels,
        );
        assert!((0.80..0.83).contains(&weak), "{weak}");
    }
}
