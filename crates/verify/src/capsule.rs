//! What one capsule says about itself, and what the holdout's ledger says about it.
//!
//! Owns the arithmetic of a single settlement: threshold, prices, the released e-value, the tally of answers.
//! Does not own where k, m and s come from (`log.rs`). Every formula is the kernel's own; none is written twice.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Outcome, PolicyCode, Reason},
    holdout::Description,
    price,
    record::{Capsule, Ledger},
};

use crate::fault::Fault;

/// Checks what a capsule says against itself: no log and no policy is needed.
///
/// # Errors
/// The first [`Fault`].
pub fn check_capsule(capsule: &Capsule) -> Result<(), Fault> {
    check_ledger(&capsule.ledger)?;
    check_outcome(capsule)?;
    check_tally(capsule)
}

fn check_ledger(ledger: &Ledger) -> Result<(), Fault> {
    Fault::unless(
        ledger.certified_before <= ledger.settled_before,
        "certified_before is at most settled_before",
    )?;
    // Guards the kernel's own preconditions before its formulas are called.
    Fault::unless(
        (1..price::ALPHA_WHOLE_MICROS).contains(&ledger.alpha_micros),
        "alpha_micros is between 1 and 999999",
    )?;
    Fault::unless_equal(
        "ledger.ordinal",
        ledger.ordinal,
        ledger.certified_before + 1,
    )?;
    let divisor = ledger.multiplicity.divisor(ledger.ordinal);
    Fault::unless_equal("ledger.alpha_divisor", ledger.alpha_divisor, divisor)?;
    let threshold = price::threshold(ledger.k, ledger.c, ledger.alpha_micros, divisor);
    Fault::unless_equal(
        "ledger.threshold_microbits",
        ledger.threshold.get(),
        threshold.get(),
    )
}

fn check_outcome(capsule: &Capsule) -> Result<(), Fault> {
    let codes = capsule.reason_codes.as_slice();
    let by_policy = codes
        .get(1)
        .is_some_and(|&code| PolicyCode::new(code).is_some());
    let first = match capsule.outcome {
        Outcome::Certified => Reason::Approved,
        // Only a policy can leave it to somebody else.
        Outcome::NotJudged if by_policy && codes[0] == Reason::Deferred.code() => Reason::Deferred,
        Outcome::NotCertified | Outcome::NotJudged | Outcome::Aborted => Reason::Rejected,
    };
    let second = match capsule.outcome {
        Outcome::Certified => None,
        Outcome::NotCertified => Some(Reason::BelowThreshold.code()),
        Outcome::Aborted => Some(Reason::Aborted.code()),
        // Any of the reasons not to look at the sealed part.
        Outcome::NotJudged => Some(
            codes
                .get(1)
                .copied()
                .filter(|&code| {
                    code > Reason::BelowThreshold.code() && code != Reason::Aborted.code()
                })
                .unwrap_or(0),
        ),
    };
    let wanted: Vec<u16> = std::iter::once(first.code()).chain(second).collect();
    Fault::unless(codes == wanted, "reason_codes fit the outcome")?;
    match capsule.outcome {
        Outcome::Certified => {
            let ledger = &capsule.ledger;
            let least = price::released_log2(
                ledger.alpha_micros,
                ledger.alpha_divisor,
                0,
                MicroBits::from_bits(1),
            );
            Fault::unless(
                capsule.e_value_log2.is_some_and(|stated| stated >= least),
                "a certified claim's e_value_log2 is at least log2(1/alpha), rounded down",
            )?;
            Fault::unless(
                ledger.price >= ledger.c,
                "a certification is charged at least c",
            )
        }
        Outcome::NotCertified | Outcome::NotJudged | Outcome::Aborted => Fault::unless(
            capsule.e_value_log2.is_none(),
            "only a certified claim has an e_value_log2",
        ),
    }?;
    match capsule.outcome {
        Outcome::NotJudged => {
            Fault::unless_equal("ledger.price_microbits", capsule.ledger.price.get(), 0)
        }
        Outcome::Certified | Outcome::NotCertified | Outcome::Aborted => Ok(()),
    }
}

fn check_tally(capsule: &Capsule) -> Result<(), Fault> {
    let answers = &capsule.answers;
    Fault::unless(
        answers.by_symbol.is_sorted_by(|a, b| a.0 < b.0)
            && answers.by_symbol.iter().all(|&(_, count)| count > 0)
            && answers
                .by_symbol
                .iter()
                .all(|&(symbol, _)| symbol < answers.n_symbols),
        "answers.by_symbol is sorted, counts above zero, symbols of the alphabet",
    )?;
    let counted: u64 = answers
        .by_symbol
        .iter()
        .map(|&(_, count)| u64::from(count))
        .sum();
    Fault::unless(
        counted + u64::from(answers.replayed) <= u64::from(answers.asked),
        "answers.asked counts every answer and replay",
    )
}

/// What a capsule must say under its holdout's description, given k, m and s before it.
pub(crate) struct Expected<'a> {
    pub(crate) description: &'a Description,
    pub(crate) k: MicroBits,
    pub(crate) settled: u64,
    pub(crate) certified: u64,
}

impl Expected<'_> {
    /// Checks everything that the description and the ledger fix, prices and answer charges included.
    pub(crate) fn check(&self, capsule: &Capsule) -> Result<(), Fault> {
        let (description, ledger) = (self.description, &capsule.ledger);
        let policy = &description.policy;
        Fault::unless_equal("policy_hash_hex", capsule.policy_hash, policy.hash())?;
        Fault::unless_equal(
            "null_spec_hash_hex",
            capsule.null_spec_hash,
            description.null_spec.hash(),
        )?;
        let (answer, sealed, units) = capsule.items;
        Fault::unless_equal("items.answer", answer, description.answer_items)?;
        Fault::unless_equal("items.sealed", sealed, description.sealed_items)?;
        Fault::unless_equal("items.units", units, description.sealed_units)?;
        Fault::unless_equal("ledger.k_microbits", ledger.k.get(), self.k.get())?;
        Fault::unless_equal("ledger.settled_before", ledger.settled_before, self.settled)?;
        Fault::unless_equal(
            "ledger.certified_before",
            ledger.certified_before,
            self.certified,
        )?;
        let quote = policy.settlement_prices.quote(self.settled, self.certified);
        Fault::unless_equal("ledger.c_microbits", ledger.c.get(), quote.certified.get())?;
        Fault::unless(
            ledger.alpha_micros <= policy.alpha_micros,
            "a claim's alpha is no laxer than its holdout's",
        )?;
        Fault::unless_equal(
            "ledger.multiplicity",
            ledger.multiplicity.as_str(),
            policy.multiplicity.as_str(),
        )?;
        check_capsule(capsule)?;
        self.check_reach(capsule)?;
        self.check_price(capsule)?;
        self.check_answers(capsule)
    }

    /// A claim that no vector could pass is never judged, and only such a one is refused a look for it.
    fn check_reach(&self, capsule: &Capsule) -> Result<(), Fault> {
        let within = self
            .description
            .null_spec
            .bets
            .can_reach(self.description.sealed_units, capsule.ledger.threshold);
        let said_out_of_reach = capsule.reason_codes.contains(&Reason::OutOfReach.code());
        Fault::unless(
            !(within && said_out_of_reach),
            "the claim was called out of reach, but a perfect vector would pass",
        )?;
        let judged = matches!(capsule.outcome, Outcome::Certified | Outcome::NotCertified);
        Fault::unless(
            within || !judged,
            "the claim was judged, although not even a perfect vector could pass",
        )
    }

    fn check_price(&self, capsule: &Capsule) -> Result<(), Fault> {
        let stated = capsule.ledger.price;
        let mismatch = |computed: MicroBits| {
            Fault::unless_equal("ledger.price_microbits", stated.get(), computed.get())
        };
        let quote = self
            .description
            .policy
            .settlement_prices
            .quote(self.settled, self.certified);
        match capsule.outcome {
            Outcome::NotCertified => mismatch(quote.not_certified),
            Outcome::NotJudged => mismatch(MicroBits::ZERO),
            // The worst case at its admission, which depends on how many runs were under way.
            Outcome::Aborted => Fault::unless(
                stated >= quote.certified.min(quote.not_certified),
                "an aborted claim is charged its worst case, which is no less than the cheapest symbol",
            ),
            Outcome::Certified if self.levels_that_fit(capsule).next().is_some() => Ok(()),
            Outcome::Certified if self.description.policy.levels > 0 => Err(Fault::Rule(
                "ledger.price_microbits and e_value_log2 are those of one released level",
            )),
            Outcome::Certified => mismatch(quote.certified),
        }
    }

    /// The (levels, level) under which a certified capsule's price and released e-value are right. How many
    /// levels a claim chose is not in its capsule.
    pub(crate) fn levels_that_fit<'c>(
        &'c self,
        capsule: &'c Capsule,
    ) -> impl Iterator<Item = (u8, u8)> + 'c {
        let ledger = &capsule.ledger;
        let width = self.description.policy.level_width;
        self.levels_of_that_price(ledger.price)
            .filter(move |&(_, level)| {
                let (alpha, divisor) = (ledger.alpha_micros, ledger.alpha_divisor);
                capsule.e_value_log2 == Some(price::released_log2(alpha, divisor, level, width))
            })
    }

    /// The (levels, level) that cost so much here.
    fn levels_of_that_price(&self, stated: MicroBits) -> impl Iterator<Item = (u8, u8)> + '_ {
        let policy = &self.description.policy;
        (0..=policy.levels)
            .flat_map(|levels| (0..levels.max(1)).map(move |level| (levels, level)))
            .filter(move |&(levels, level)| {
                let (m, s) = (self.settled, self.certified);
                policy.settlement_prices.level_price(m, s, levels, level) == stated
            })
    }

    fn check_answers(&self, capsule: &Capsule) -> Result<(), Fault> {
        let answers = &capsule.answers;
        let policy = &self.description.policy;
        // Its answers are unknown, and charged at their worst case: the budgets bound it.
        if capsule.outcome == Outcome::Aborted {
            return Fault::unless(
                answers.by_symbol.is_empty(),
                "an aborted claim's answers are unknown",
            );
        }
        if self.description.answer_items == 0 {
            return Fault::unless(
                answers.by_symbol.is_empty() && answers.charged == MicroBits::ZERO,
                "a holdout without an answer part charges no answers",
            );
        }
        Fault::unless(
            (2..=policy.max_symbols).contains(&answers.n_symbols),
            "answers.n_symbols is an alphabet that the policy allows",
        )?;
        let mut charged = MicroBits::ZERO;
        for &(symbol, count) in &answers.by_symbol {
            let cost = policy
                .answer_prices
                .price(answers.n_symbols, symbol)
                .ok()
                .and_then(|price| price.checked_mul(count.into()));
            charged = cost
                .and_then(|cost| charged.checked_add(cost))
                .ok_or(Fault::Rule("answers.by_symbol can be priced"))?;
        }
        Fault::unless_equal(
            "answers.charged_microbits",
            answers.charged.get(),
            charged.get(),
        )
    }

    /// What this settlement adds to k. Where the stated price cannot be right, the price that is: then one wrong
    /// entry is one finding, and not one for every entry after it.
    pub(crate) fn charge(&self, capsule: &Capsule) -> MicroBits {
        let quote = self
            .description
            .policy
            .settlement_prices
            .quote(self.settled, self.certified);
        match capsule.outcome {
            Outcome::Certified => {
                let stated = capsule.ledger.price;
                match self.levels_of_that_price(stated).next() {
                    Some(_) => stated,
                    None => quote.certified,
                }
            }
            Outcome::NotCertified => quote.not_certified,
            Outcome::NotJudged => MicroBits::ZERO,
            Outcome::Aborted => capsule.ledger.price,
        }
    }
}
