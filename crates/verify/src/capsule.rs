//! Checks one capsule against itself, and against the holdout's description and ledger.
//!
//! Owns the rules of a single settlement: threshold, prices, reasons, the released e-value, the tally of answers.
//! Does not own the source of k, m and s (`log/`), or the formulas (`arithmetic/`).

use evidenceos_kernel::{
    claim::{Outcome, Reason},
    holdout::Description,
    id::{Digest, HoldoutId},
    price::SettlementPrices,
    record::{Capsule, RunPlace},
};

use crate::{
    arithmetic::{evidence::Bets, prices},
    fault::{Check, Fault},
};

/// The most oracle calls that a lane allows, and so the most that a run asks.
const MOST_CALLS: u32 = 1_024;
/// The oracle calls of each lane: a run that ended because it asked too often asked exactly one of
/// these numbers.
const LANE_CALLS: [u32; 2] = [64, 1_024];
/// The most fuel of a lane.
const MOST_FUEL: u64 = 1_000_000_000;
/// The most levels of a policy.
pub(crate) const MOST_LEVELS: u8 = 32;
/// The widest level: 64 bits.
const WIDEST_LEVEL_BITS: u64 = 64;

/// Checks a capsule against itself: this needs no log and no policy.
///
/// # Errors
/// The first [`Fault`].
pub fn check_capsule(capsule: &Capsule) -> Result<(), Fault> {
    check_names(capsule)?;
    check_ledger(capsule)?;
    check_outcome(capsule)?;
    check_e_value(capsule)?;
    check_tally(capsule)?;
    check_run(capsule)
}

/// SHA-256 of nothing: the digest of an absent output or trace.
pub(crate) fn digest_of_nothing() -> Digest {
    Digest::of(b"")
}

fn check_names(capsule: &Capsule) -> Result<(), Fault> {
    let topic = topic_id(capsule.holdout_id, capsule.null_spec_hash);
    Check::Identity.equal("topic_id_hex", capsule.topic_id, topic)?;
    Check::Dependencies.holds(
        capsule.dependencies.len() <= 64 && capsule.dependencies.is_sorted_by(|a, b| a < b),
        "dependencies are at most 64, sorted, none twice",
    )?;
    Check::Form.holds(
        (1..=256).contains(&capsule.engine.len()) && !capsule.engine.chars().any(char::is_control),
        "engine is 1 to 256 bytes of text without control characters",
    )?;
    Check::Form.holds(
        capsule.fuel <= MOST_FUEL,
        "fuel is at most the limit of the largest lane",
    )
}

/// `D("evidenceos:topic:v3", holdout_id ‖ null_spec_hash)`.
fn topic_id(holdout: HoldoutId, null_spec: Digest) -> Digest {
    Digest::of(
        &[
            b"evidenceos:topic:v3\0".as_slice(),
            &holdout.0,
            &null_spec.0,
        ]
        .concat(),
    )
}

fn check_ledger(capsule: &Capsule) -> Result<(), Fault> {
    let ledger = &capsule.ledger;
    Check::Ledger.holds(
        ledger.certified_before <= ledger.settled_before,
        "certified_before is at most settled_before",
    )?;
    Check::Ledger.holds(
        (1..1_000_000).contains(&ledger.alpha_micros),
        "alpha_micros is between 1 and 999999",
    )?;
    let ordinal = ledger.certified_before + 1;
    Check::Ledger.equal("ledger.ordinal", ledger.ordinal, ordinal)?;
    let no_such = || Fault::rule(Check::Ledger, "alpha can be divided for this ordinal");
    let divisor = prices::alpha_divisor(ledger.multiplicity, ordinal).ok_or_else(no_such)?;
    Check::Ledger.equal("ledger.alpha_divisor", ledger.alpha_divisor, divisor)?;
    let threshold = prices::threshold(ledger.k.get(), ledger.c.get(), ledger.alpha_micros, divisor)
        .ok_or_else(no_such)?;
    Check::Ledger.equal(
        "ledger.threshold_microbits",
        ledger.threshold.get(),
        threshold,
    )
}

/// The second reason: the reason why a claim was not certified.
pub(crate) fn second_reason(capsule: &Capsule) -> Option<Reason> {
    Reason::of_code(*capsule.reason_codes.get(1)?)
}

fn check_outcome(capsule: &Capsule) -> Result<(), Fault> {
    let second = second_reason(capsule);
    Check::Outcome.holds(reasons_fit(capsule), "reason_codes fit the outcome")?;
    Check::Price.holds(
        capsule.outcome != Outcome::NotJudged || capsule.ledger.price.get() == 0,
        "ledger.price_microbits is 0 for a claim that was not judged",
    )?;
    let is_duplicate = second == Some(Reason::Duplicate);
    Check::Duplicate.holds(
        is_duplicate == capsule.duplicate_of.is_some(),
        "duplicate_of_hex is present if and only if the reason is 122",
    )?;
    Check::Duplicate.holds(
        capsule.duplicate_of != Some(capsule.claim_id),
        "a claim is not a duplicate of itself",
    )?;
    // Nothing ran, or nothing is known about the run.
    let without_run = is_duplicate || capsule.outcome == Outcome::Aborted;
    Check::Outcome.holds(
        !without_run
            || capsule.trace_hash == digest_of_nothing()
                && capsule.structured_output_hash == digest_of_nothing()
                && capsule.fuel == 0
                && (capsule.answers.asked, capsule.answers.replayed) == (0, 0)
                && capsule.answers.by_symbol.is_empty(),
        "a claim that was aborted, or a duplicate, has no trace, no output, no fuel and no answers",
    )?;
    let without_output = second.map(Run::of) == Some(Run::WithoutOutput);
    Check::Outcome.holds(
        without_run
            || without_output == (capsule.structured_output_hash == digest_of_nothing()),
        "structured_output_hash_hex is the hash of no bytes if and only if the run trapped or emitted nothing valid",
    )?;
    Check::Outcome.holds(
        without_run || capsule.trace_hash != digest_of_nothing(),
        "trace_hash_hex is the hash of a trace",
    )
}

/// Whether the outcome of a capsule allows its reasons.
fn reasons_fit(capsule: &Capsule) -> bool {
    let codes = capsule.reason_codes.as_slice();
    let second = second_reason(capsule);
    match capsule.outcome {
        Outcome::Certified => codes == [Reason::Approved.code()],
        Outcome::NotCertified => codes == [Reason::Rejected.code(), Reason::BelowThreshold.code()],
        Outcome::Aborted => codes == [Reason::Rejected.code(), Reason::Aborted.code()],
        Outcome::NotJudged => {
            let by_policy = matches!(second, Some(Reason::Policy(_)));
            let first = codes.first().copied();
            // Only a policy module can defer a verdict.
            codes.len() == 2
                && second.is_some_and(|reason| Run::of(reason) != Run::AnyOther)
                && (first == Some(Reason::Rejected.code())
                    || by_policy && first == Some(Reason::Deferred.code()))
        }
    }
}

/// The kind of run that the second reason of a capsule implies.
#[derive(PartialEq)]
enum Run {
    /// The run emitted nothing, or nothing valid; the sealed part was not looked at.
    WithoutOutput,
    /// The output, if the claim ran, was not judged: the sealed part was not looked at.
    NotJudged,
    /// The reason implies neither.
    AnyOther,
}

impl Run {
    fn of(reason: Reason) -> Self {
        match reason {
            Reason::Trap
            | Reason::Unreachable
            | Reason::NotAdmitted
            | Reason::OutOfFuel
            | Reason::OutOfMemory
            | Reason::InvalidVector
            | Reason::AllowanceExhausted
            | Reason::TooManyCalls
            | Reason::OutOfBounds
            | Reason::EmittedTwice
            | Reason::NoOutput
            | Reason::InvalidOutput => Self::WithoutOutput,
            Reason::OutOfReach
            | Reason::NothingToJudge
            | Reason::AncestorRevoked
            | Reason::Duplicate
            | Reason::Policy(_) => Self::NotJudged,
            Reason::Approved
            | Reason::Rejected
            | Reason::Deferred
            | Reason::BelowThreshold
            | Reason::Aborted => Self::AnyOther,
        }
    }
}

/// Checks the released e-value. Without the policy, the width of a level is not known, but its bounds are; without
/// levels the value is exact.
fn check_e_value(capsule: &Capsule) -> Result<(), Fault> {
    let ledger = &capsule.ledger;
    if capsule.outcome != Outcome::Certified {
        return Check::Outcome.holds(
            capsule.e_value_log2.is_none(),
            "only a certified claim has an e_value_log2",
        );
    }
    let Some(stated) = capsule.e_value_log2 else {
        return Err(Fault::rule(
            Check::Outcome,
            "a certified claim has an e_value_log2",
        ));
    };
    let base = prices::released_exponent(ledger.alpha_micros, ledger.alpha_divisor, 0, 0);
    // A capsule of an earlier release does not state the number of levels that its claim chose.
    let levels = capsule.run.map_or(MOST_LEVELS, |run| run.levels);
    // A price of exactly c is that of a claim without levels, or of one level.
    let is_base = levels <= 1 || ledger.price == ledger.c;
    if is_base {
        Check::Outcome.equal("e_value_log2", stated, base)?;
    }
    let most = base + u64::from(levels.saturating_sub(1)) * WIDEST_LEVEL_BITS;
    Check::Outcome.holds(
        (base..=most).contains(&stated),
        "e_value_log2 is between log2(1/alpha), rounded down, and what the highest level can add",
    )?;
    Check::Price.holds(
        ledger.price >= ledger.c,
        "a certification is charged at least c",
    )
}

fn check_tally(capsule: &Capsule) -> Result<(), Fault> {
    let answers = &capsule.answers;
    Check::Answers.holds(
        (2..=65_536).contains(&answers.n_symbols),
        "answers.n_symbols is between 2 and 65536",
    )?;
    Check::Answers.holds(
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
    Check::Answers.holds(
        counted + u64::from(answers.replayed) <= u64::from(answers.asked),
        "answers.asked counts every answer and replay",
    )?;
    Check::Answers.holds(
        answers.asked <= MOST_CALLS,
        "answers.asked is at most the limit of the largest lane",
    )?;
    Check::Answers.holds(
        second_reason(capsule) != Some(Reason::TooManyCalls) || LANE_CALLS.contains(&answers.asked),
        "a claim that asked too often has asked 64 or 1,024 times",
    )
}

/// Checks a capsule's statements about its admission, as far as the capsule alone can show.
fn check_run(capsule: &Capsule) -> Result<(), Fault> {
    let Some(run) = capsule.run else {
        return Check::Duplicate.holds(
            capsule.duplicate_of.is_none(),
            "a duplicate's capsule has a run",
        );
    };
    Check::Admission.holds(
        run.ended_before <= run.number,
        "run.ended_before is at most run.number",
    )?;
    Check::Admission.holds(run.levels <= MOST_LEVELS, "run.levels is at most 32")?;
    let charged = capsule.answers.charged;
    // The answers of an aborted run are unknown, so it is charged everything that it had reserved.
    if capsule.outcome == Outcome::Aborted {
        Check::Price.equal(
            "ledger.price_microbits",
            capsule.ledger.price.get(),
            run.sealed_reserved.get(),
        )?;
        return Check::Answers.equal(
            "answers.charged_microbits",
            charged.get(),
            run.answers_reserved.get(),
        );
    }
    Check::Price.holds(
        capsule.ledger.price <= run.sealed_reserved,
        "ledger.price_microbits is at most run.sealed_reserved_microbits",
    )?;
    Check::Answers.holds(
        charged <= run.answers_reserved,
        "answers.charged_microbits is at most run.answers_reserved_microbits",
    )?;
    Check::Duplicate.holds(
        capsule.duplicate_of.is_none()
            || (run.sealed_reserved.get(), run.answers_reserved.get()) == (0, 0),
        "a duplicate reserves nothing",
    )
}

/// The values that a capsule must state under its holdout's description, given k, m and s before
/// it.
pub(crate) struct Expected<'a> {
    pub(crate) description: &'a Description,
    pub(crate) bets: &'a Bets,
    pub(crate) k: u64,
    pub(crate) settled: u64,
    pub(crate) certified: u64,
}

impl Expected<'_> {
    fn prices(&self) -> SettlementPrices {
        self.description.policy.settlement_prices
    }

    fn c(&self) -> u64 {
        prices::certified(self.prices(), self.settled, self.certified, 0, 0)
    }

    fn not_certified(&self) -> u64 {
        prices::not_certified(self.prices(), self.settled, self.certified)
    }

    /// Checks everything that the description and the ledger fix, prices and answer charges included.
    pub(crate) fn check(&self, capsule: &Capsule) -> Result<(), Fault> {
        let (description, ledger) = (self.description, &capsule.ledger);
        let policy = &description.policy;
        Check::Identity.equal(
            "policy_hash_hex",
            capsule.policy_hash,
            hash("evidenceos:policy:v1", &policy.to_object().to_bytes()),
        )?;
        Check::Identity.equal(
            "null_spec_hash_hex",
            capsule.null_spec_hash,
            hash(
                "evidenceos:null_spec:v1",
                &description.null_spec.to_object().to_bytes(),
            ),
        )?;
        let (answer, sealed, units) = capsule.items;
        Check::Identity.equal("items.answer", answer, description.answer_items)?;
        Check::Identity.equal("items.sealed", sealed, description.sealed_items)?;
        Check::Identity.equal("items.units", units, description.sealed_units)?;
        Check::Ledger.equal("ledger.k_microbits", ledger.k.get(), self.k)?;
        Check::Ledger.equal("ledger.settled_before", ledger.settled_before, self.settled)?;
        Check::Ledger.equal(
            "ledger.certified_before",
            ledger.certified_before,
            self.certified,
        )?;
        Check::Ledger.equal("ledger.c_microbits", ledger.c.get(), self.c())?;
        Check::Ledger.holds(
            ledger.alpha_micros <= policy.alpha_micros,
            "a claim's alpha is at most its holdout's",
        )?;
        Check::Ledger.equal(
            "ledger.multiplicity",
            ledger.multiplicity.as_str(),
            policy.multiplicity.as_str(),
        )?;
        // k, m and s are compared first: a wrong one explains every number that follows from it.
        check_capsule(capsule)?;
        if let Some(run) = &capsule.run {
            Check::Admission.holds(
                run.levels <= policy.levels,
                "run.levels is at most that of the holdout policy",
            )?;
        }
        self.check_reach(capsule)?;
        self.check_price(capsule)?;
        self.check_answers(capsule)
    }

    /// A claim that no vector could pass is never judged, and only such a claim is refused for that reason.
    fn check_reach(&self, capsule: &Capsule) -> Result<(), Fault> {
        let within = self.within_reach(capsule.ledger.threshold.get());
        let said_out_of_reach = second_reason(capsule) == Some(Reason::OutOfReach);
        Check::Reach.holds(
            !(within && said_out_of_reach),
            "the claim was called out of reach, but a perfect vector would pass",
        )?;
        let judged = matches!(capsule.outcome, Outcome::Certified | Outcome::NotCertified);
        Check::Reach.holds(
            within || !judged,
            "the claim was judged, although not even a perfect vector could pass",
        )
    }

    /// Whether a vector without a wrong item would be certified.
    pub(crate) fn within_reach(&self, threshold: u64) -> bool {
        self.bets.most(self.description.sealed_units) >= i128::from(threshold)
    }

    fn check_price(&self, capsule: &Capsule) -> Result<(), Fault> {
        let stated = capsule.ledger.price.get();
        let exactly = |computed| Check::Price.equal("ledger.price_microbits", stated, computed);
        match capsule.outcome {
            Outcome::NotCertified => exactly(self.not_certified()),
            Outcome::NotJudged => exactly(0),
            // With `run`, the price is exactly its worst case; in older capsules the worst case depends on the number
            // of runs under way.
            Outcome::Aborted if capsule.run.is_some() => Ok(()),
            Outcome::Aborted => Check::Price.holds(
                stated >= self.c().max(self.not_certified()),
                "an aborted claim is charged its worst case, which is no less than the dearest symbol",
            ),
            Outcome::Certified if self.levels_that_fit(capsule).next().is_some() => Ok(()),
            Outcome::Certified if self.most_levels(capsule) > 0 => Err(Fault::rule(
                Check::Price,
                "ledger.price_microbits and e_value_log2 are those of one released level",
            )),
            Outcome::Certified => exactly(self.c()),
        }
    }

    fn most_levels(&self, capsule: &Capsule) -> u8 {
        capsule
            .run
            .map_or(self.description.policy.levels, |run| run.levels)
    }

    /// The (levels, level) under which a certified capsule's price and released e-value are right. A capsule of an
    /// earlier release does not state the number of levels that its claim chose.
    pub(crate) fn levels_that_fit<'c>(
        &'c self,
        capsule: &'c Capsule,
    ) -> impl Iterator<Item = (u8, u8)> + 'c {
        let ledger = &capsule.ledger;
        let width = self.description.policy.level_width.get();
        self.levels_of_that_price(capsule)
            .filter(move |&(_, level)| {
                let (alpha, divisor) = (ledger.alpha_micros, ledger.alpha_divisor);
                capsule.e_value_log2
                    == Some(prices::released_exponent(alpha, divisor, level, width))
            })
    }

    /// The (levels, level) with this price here.
    fn levels_of_that_price(&self, capsule: &Capsule) -> impl Iterator<Item = (u8, u8)> + '_ {
        let stated = capsule.ledger.price.get();
        let chosen = match capsule.run {
            Some(RunPlace { levels, .. }) => levels..=levels.min(MOST_LEVELS),
            None => 0..=self.description.policy.levels,
        };
        chosen
            .flat_map(|levels| (0..levels.max(1)).map(move |level| (levels, level)))
            .filter(move |&(levels, level)| {
                let (m, s) = (self.settled, self.certified);
                prices::certified(self.prices(), m, s, levels, level) == stated
            })
    }

    fn check_answers(&self, capsule: &Capsule) -> Result<(), Fault> {
        let answers = &capsule.answers;
        let policy = &self.description.policy;
        Check::Answers.holds(
            (2..=policy.max_symbols).contains(&answers.n_symbols),
            "answers.n_symbols is an alphabet that the policy allows",
        )?;
        if self.description.answer_items == 0 {
            Check::Answers.holds(
                answers.by_symbol.is_empty() && answers.replayed == 0 && answers.charged.get() == 0,
                "a holdout without an answer part charges and repeats no answers",
            )?;
        }
        // The answers of an aborted claim are unknown, and charged at its worst case.
        if capsule.outcome == Outcome::Aborted {
            return Ok(());
        }
        let mut charged = Some(0u64);
        for &(symbol, count) in &answers.by_symbol {
            let cost = prices::answer(&policy.answer_prices, answers.n_symbols, symbol)
                .and_then(|price| price.checked_mul(count.into()));
            charged = charged
                .zip(cost)
                .and_then(|(sum, cost)| sum.checked_add(cost));
        }
        let charged = charged
            .ok_or_else(|| Fault::rule(Check::Answers, "answers.by_symbol can be priced"))?;
        Check::Answers.equal("answers.charged_microbits", answers.charged.get(), charged)
    }

    /// The amount that this settlement adds to k. If the stated price cannot be right, the right price counts: then
    /// one wrong entry is one finding, and does not cause one for every entry after it.
    pub(crate) fn charge(&self, capsule: &Capsule) -> u64 {
        let stated = capsule.ledger.price.get();
        match capsule.outcome {
            Outcome::Certified if self.levels_of_that_price(capsule).next().is_some() => stated,
            Outcome::Certified => self.c(),
            Outcome::NotCertified => self.not_certified(),
            Outcome::NotJudged => 0,
            Outcome::Aborted => stated,
        }
    }
}

fn hash(domain: &str, canonical: &[u8]) -> Digest {
    Digest::of(&[domain.as_bytes(), &[0], canonical].concat())
}
