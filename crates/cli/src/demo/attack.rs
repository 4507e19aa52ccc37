//! The boosting attack on a leaderboard: it learns the labels from answers alone.
//!
//! After Blum and Hardt 2015 (arXiv 1502.04585): ask about vectors that are no better than coins, keep what scored
//! above one half and the complement of what scored below, and vote. The vote is better than any of its voters, and
//! knows nothing but the holdout. Each question follows the present vote on a random half of the items and opposes it
//! on the other, so that the answer tells which half of the vote to trust.

use sha2::{Digest as _, Sha256};

/// What an attacker has learnt about each item from the answers so far.
pub struct Booster {
    votes: Vec<f64>,
    asked: u64,
}

impl Booster {
    /// Knows nothing about `items` items.
    pub fn new(items: usize) -> Self {
        Self {
            votes: vec![0.0; items],
            asked: 0,
        }
    }

    /// The next question: the vote so far, flipped at random items.
    pub fn question(&self) -> Vec<u8> {
        let coins = coins(self.asked, self.votes.len());
        self.vote()
            .iter()
            .zip(coins)
            .map(|(vote, coin)| vote ^ coin)
            .collect()
    }

    /// Learns from the last question's accuracy above one half: it is the question's weight in the
    /// vote.
    pub fn learn(&mut self, question: &[u8], above_half: f64) {
        for (vote, bit) in self.votes.iter_mut().zip(question) {
            *vote += above_half * (2.0 * f64::from(*bit) - 1.0);
        }
        self.asked += 1;
    }

    /// The labels that the answers so far suggest.
    pub fn vote(&self) -> Vec<u8> {
        self.votes
            .iter()
            .map(|&vote| u8::from(vote > 0.0))
            .collect()
    }
}

/// Pseudo-random bits for one question: SHA-256 in counter mode, so that every run of the demo asks the
/// same questions.
fn coins(question: u64, items: usize) -> impl Iterator<Item = u8> {
    let block = move |counter: u64| {
        let mut hash = Sha256::new();
        hash.update(b"evidenceos/demo/attack/v1");
        hash.update(question.to_be_bytes());
        hash.update(counter.to_be_bytes());
        <[u8; 32]>::from(hash.finalize())
    };
    (0u64..)
        .flat_map(block)
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1))
        .take(items)
}

/// What an ordinary leaderboard reveals: the vote after this many exact accuracies on the very items that it ranks
/// by.
pub fn naive_leaderboard(labels: &[u8], questions: u64) -> Vec<u8> {
    let mut booster = Booster::new(labels.len());
    for _ in 0..questions {
        let question = booster.question();
        // Coins are right half of the time, so only the distance from one half carries information.
        let above_half = super::model::accuracy(&question, labels) - 0.5;
        booster.learn(&question, above_half);
    }
    booster.vote()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{data::Dataset, model::accuracy};

    #[test]
    fn a_thousand_exact_answers_give_the_holdout_away() {
        let labels = Dataset::load().expect("embedded").labels();
        let shown = accuracy(&naive_leaderboard(&labels, 1_000), &labels);
        assert!(shown > 0.9, "{shown}");
    }

    #[test]
    fn a_few_bits_do_not() {
        let labels = Dataset::load().expect("embedded").labels();
        let mut booster = Booster::new(labels.len());
        for _ in 0..32 {
            let question = booster.question();
            let symbol = accuracy(&question, &labels) > 0.5;
            booster.learn(&question, if symbol { 1.0 } else { -1.0 });
        }
        assert!(accuracy(&booster.vote(), &labels) < 0.7);
    }
}
