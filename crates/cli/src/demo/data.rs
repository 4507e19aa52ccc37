//! The demo's data: 569 tumours, split reproducibly into training rows and a private holdout.
//!
//! Source: `examples/data/README.md` (Breast Cancer Wisconsin, UCI, CC BY 4.0). The file is part of the program, so
//! that the demo needs nothing but itself.

use sha2::{Digest as _, Sha256};

use crate::error::CliError;

const CSV: &[u8] = include_bytes!("../../../../examples/data/breast-cancer-wisconsin.csv");
/// Rows that every submitter may train on; the other 440 are the holdout.
const TRAINING_ROWS: usize = 129;
const SPLIT_DOMAIN: &[u8] = b"evidenceos/demo/split/v1";

/// One tumour of the data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its number in the file, from 0.
    pub number: usize,
    /// The thirty measurements of the tumour.
    pub features: Vec<f64>,
    /// 1 if it is benign, 0 if it is malignant.
    pub label: u8,
}

/// The two parts, and the names of the measurements.
pub struct Dataset {
    /// Names of the features.
    pub names: Vec<String>,
    /// Public rows with their labels.
    pub training: Vec<Row>,
    /// The features are public; the custodian keeps the labels.
    pub holdout: Vec<Row>,
}

impl Dataset {
    /// The embedded data; rows are ordered by the hash of their number, the first ones train.
    pub fn load() -> Result<Self, CliError> {
        let broken = |what: String| CliError::Protocol(format!("the embedded data: {what}"));
        let mut reader = csv::Reader::from_reader(CSV);
        let header = reader
            .headers()
            .map_err(|error| broken(error.to_string()))?;
        let names: Vec<String> = header.iter().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for (number, record) in reader.records().enumerate() {
            let record = record.map_err(|error| broken(error.to_string()))?;
            let cells: Vec<f64> = record
                .iter()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map_err(|error| broken(format!("row {number}: {error}")))?;
            let Some((label, features)) = cells.split_last() else {
                return Err(broken(format!("row {number} is empty")));
            };
            rows.push(Row {
                number,
                features: features.to_vec(),
                label: u8::from(*label == 1.0),
            });
        }
        rows.sort_by_cached_key(|row| {
            let mut hash = Sha256::new();
            hash.update(SPLIT_DOMAIN);
            hash.update((row.number as u64).to_be_bytes());
            <[u8; 32]>::from(hash.finalize())
        });
        let holdout = rows.split_off(TRAINING_ROWS.min(rows.len()));
        Ok(Self {
            names,
            training: rows,
            holdout,
        })
    }

    /// The holdout's labels, in its order.
    pub fn labels(&self) -> Vec<u8> {
        self.holdout.iter().map(|row| row.label).collect()
    }

    /// The holdout's item ids.
    pub fn items(&self) -> Vec<String> {
        self.holdout
            .iter()
            .map(|row| format!("tumour-{}", row.number))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_is_reproducible_and_leaves_enough_sealed() {
        let data = Dataset::load().expect("embedded");
        assert_eq!((data.training.len(), data.holdout.len()), (129, 440));
        assert_eq!(data.names.len(), 31);
        assert!(data.holdout.len() - data.holdout.len() / 5 >= 350);
        let benign: usize = data.labels().iter().map(|&label| usize::from(label)).sum();
        assert_eq!(benign, 277);
    }
}
