//! Answers a guest's questions from the labels, and charges for them.
//!
//! A question is priced before the labels are read, and traps if its dearest answer would not fit
//! into the allowance. A repeated question is free, and answered from memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use evidenceos_driver::Work;
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    bits::MicroBits,
    id::Digest,
    price::AnswerPrices,
    record::AnswerTally,
    score,
    trace::{TraceWriter, TracedRun},
};
use evidenceos_sandbox::{AskError, Oracle};

use crate::vault::OpenHoldout;

/// The oracle of one run: prices questions, answers them, writes the trace.
pub(crate) struct Metered {
    holdout: Arc<OpenHoldout>,
    prices: AnswerPrices,
    n_symbols: u32,
    left: MicroBits,
    charged: MicroBits,
    /// The answers so far, by the question's digest: the number of its first asking, and the
    /// symbol.
    answered: HashMap<Digest, (u32, u32)>,
    by_symbol: BTreeMap<u32, u32>,
    replayed: u32,
    pub(crate) trace: TraceWriter,
}

impl Metered {
    pub(crate) fn new(work: &Work, holdout: Arc<OpenHoldout>, run: &TracedRun) -> Self {
        Self {
            holdout,
            prices: work.description.policy.answer_prices.clone(),
            n_symbols: work.claim.terms.oracle_num_symbols,
            left: work.allowance,
            charged: MicroBits::ZERO,
            answered: HashMap::new(),
            by_symbol: BTreeMap::new(),
            replayed: 0,
            trace: TraceWriter::new(work.description.items, run),
        }
    }

    pub(crate) fn tally(&self, asked: u32) -> AnswerTally {
        AnswerTally {
            n_symbols: self.n_symbols,
            asked,
            replayed: self.replayed,
            by_symbol: self.by_symbol.iter().map(|(&s, &n)| (s, n)).collect(),
            charged: self.charged,
        }
    }
}

impl Oracle for Metered {
    fn ask(&mut self, vector: &[u8]) -> Result<u32, AskError> {
        failpoint::pass(Point::WorkRunMid);
        let answer_items = self.holdout.split().answer_items;
        // Without an answer part, an answer reveals nothing, so it costs nothing.
        if answer_items == 0 {
            self.trace.free();
            return Ok(0);
        }
        let question = Digest::of(vector);
        if let Some(&(number, symbol)) = self.answered.get(&question) {
            self.replayed += 1;
            self.trace.replayed(number);
            return Ok(symbol);
        }
        // The price is that of the dearest answer, before the labels are read: a refusal must
        // reveal nothing about them.
        let dearest = self
            .prices
            .dearest(self.n_symbols)
            .map_err(|_| AskError::AllowanceExhausted)?;
        if dearest > self.left {
            return Err(AskError::AllowanceExhausted);
        }
        let symbol = score::answer(
            vector,
            self.holdout.labels(),
            self.holdout.part_mask(),
            self.n_symbols,
            answer_items,
        );
        // If the table lacks the symbol, the dearest price is charged: no answer is free by
        // accident.
        let price = self.prices.price(self.n_symbols, symbol).unwrap_or(dearest);
        self.left = self.left.saturating_sub(price);
        self.charged = self.charged.saturating_add(price);
        *self.by_symbol.entry(symbol).or_insert(0) += 1;
        self.trace.asked(vector, self.n_symbols, symbol);
        let number = self.answered.len() as u32;
        self.answered.insert(question, (number, symbol));
        Ok(symbol)
    }
}
