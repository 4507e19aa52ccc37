//! Admitting and settling runs: here leakage is reserved, priced and charged.
//!
//! Runs of one holdout settle in the order of their admission. k, c and the ordinal are read at the
//! settlement and nowhere else, and the evidence is looked at last: everything before it is a
//! function of what was already released.

use super::credit;
use crate::{
    bits::MicroBits,
    claim::{Claim, ClaimState, Outcome, PolicyCode, Reason, Settlement},
    command::{Decision, Event, Reply, RunEnd, RunReport},
    holdout::{Holdout, InFlight, Place},
    id::{ClaimId, Digest, HoldoutId},
    price::{self, Quote},
    record::{self, AnswerTally, Capsule, Ledger, RunPlace},
    refusal::{Pool, Refusal, Step},
    state::Stage,
};

pub(crate) fn admit(stage: &Stage<'_>, claim: &Claim) -> Result<Decision, Refusal> {
    claim.state.after(Step::Execute)?;
    if let Some(reply) = without_a_run(claim) {
        return Ok(Decision::reply(reply));
    }
    let holdout = stage
        .holdout(&claim.terms.holdout)
        .ok_or_else(|| Refusal::UnknownHoldout(claim.terms.holdout.to_hex()))?;
    holdout.must_take_claims()?;
    if holdout
        .description
        .null_spec
        .expired_at(stage.now_unix_ms())
    {
        return Err(Refusal::Stale);
    }
    // The settlement checks this again, since an ancestor may be revoked while the run goes on.
    if let Some(ancestor) = stage.revoked_ancestor(claim) {
        return Err(Refusal::Tainted { ancestor });
    }
    let duplicate_of = judged_before(stage, claim)?;
    let run = reserve(stage, claim, holdout, duplicate_of)?;
    let mut events = match duplicate_of {
        Some(_) => credit::reserve_one(stage, claim, holdout)?,
        None => {
            let bits = run.answers_reserved.saturating_add(run.sealed_reserved);
            credit::reserve(stage, claim, holdout, bits)?
        }
    };
    events.extend(admitted(claim, holdout, run));
    Ok(Decision {
        events,
        entries: Vec::new(),
        reply: Reply::Running(claim.id),
    })
}

/// The reply to a claim that has run, or is running.
fn without_a_run(claim: &Claim) -> Option<Reply> {
    match claim.state {
        ClaimState::Settled | ClaimState::Certified => {
            Some(Reply::Settled(Box::new(claim.clone())))
        }
        ClaimState::Executing => Some(Reply::Running(claim.id)),
        ClaimState::Uncommitted
        | ClaimState::Committed
        | ClaimState::Sealed
        | ClaimState::Revoked => None,
    }
}

/// The run with its reservations from the holdout's budgets.
fn reserve(
    stage: &Stage<'_>,
    claim: &Claim,
    holdout: &Holdout,
    duplicate_of: Option<ClaimId>,
) -> Result<InFlight, Refusal> {
    // A duplicate is never judged: it reserves no leakage, and so blocks no other claim.
    let (answers_reserved, sealed_reserved) = match duplicate_of {
        Some(_) => (MicroBits::ZERO, MicroBits::ZERO),
        None => (
            reserve_answers(stage, claim, holdout)?,
            reserve_settlement(stage, claim, holdout)?,
        ),
    };
    Ok(InFlight {
        number: holdout.admitted,
        claim: claim.id,
        owner: claim.terms.owner,
        answers_reserved,
        sealed_reserved,
        attempt: 0,
        engine: stage.engine().to_owned(),
        place: Some(Place {
            // Admissions are not entries. This number lets an auditor place the admission between
            // two capsules.
            ended_before: holdout.ended(),
            duplicate_of,
        }),
    })
}

/// The events of an admission, beside those of the credit that it reserves.
fn admitted(claim: &Claim, holdout: &Holdout, run: InFlight) -> Vec<Event> {
    let (holdout, number, place) = (holdout.id, run.number, run.place);
    let mut events = vec![Event::RunAdmitted { holdout, run }];
    events.extend(place.map(|place| Event::RunPlaced {
        holdout,
        number,
        place,
    }));
    // A duplicate has no verdict of its own to which a third claim could be referred.
    let is_duplicate = place.is_some_and(|place| place.duplicate_of.is_some());
    if let (false, Some(question)) = (is_duplicate, claim.question()) {
        events.push(Event::QuestionAsked {
            question,
            claim: claim.id,
        });
    }
    events
}

/// The earlier claim that asked the same, if it was judged and not revoked. Judging the same vector
/// under the same terms again would tell nothing new, yet cost every submitter budget.
fn judged_before(stage: &Stage<'_>, claim: &Claim) -> Result<Option<ClaimId>, Refusal> {
    let earlier = claim
        .question()
        .and_then(|question| stage.asked_before(&question))
        .and_then(|id| stage.claim(&id))
        .filter(|earlier| earlier.id != claim.id);
    match earlier {
        Some(earlier) if earlier.state == ClaimState::Executing => {
            Err(Refusal::SameClaimRunning(earlier.id))
        }
        Some(earlier) if earlier.has_standing_verdict() => Ok(Some(earlier.id)),
        // A claim that was not judged, or was revoked, left no valid verdict: the question may be
        // asked again.
        _ => Ok(None),
    }
}

/// The answer allowance of a run. If undeclared, it is the worst case of its calls, cut to the
/// budgets that are left. The claim waits for amounts that other runs have reserved, so the
/// allowance does not depend on other runs under way.
fn reserve_answers(
    stage: &Stage<'_>,
    claim: &Claim,
    holdout: &Holdout,
) -> Result<MicroBits, Refusal> {
    let policy = &holdout.description.policy;
    let own = stage.pool(holdout.id, claim.terms.owner).answers;
    let own_budget = holdout.principal_answer_budget();
    let own_left = own.left(own_budget);
    let all_left = holdout.answers.left(policy.answer_budget);
    let needed = match claim.terms.max_answer_microbits {
        Some(declared) => MicroBits(declared),
        None => most_asked(claim, holdout).min(own_left).min(all_left),
    };
    for (pool, meter, budget, left) in [
        (Pool::PrincipalAnswers, own, own_budget, own_left),
        (
            Pool::Answers,
            holdout.answers,
            policy.answer_budget,
            all_left,
        ),
    ] {
        // Charges are never refunded, so this refusal is final; reservations may be released, so
        // the next refusal lets the claim wait.
        if needed > left {
            return Err(Refusal::BudgetExhausted { pool, needed, left });
        }
        if needed > meter.free(budget) {
            return Err(Refusal::Reserved { pool });
        }
    }
    Ok(needed)
}

/// The cost of all calls of a claim's lane at the dearest symbol.
fn most_asked(claim: &Claim, holdout: &Holdout) -> MicroBits {
    let asks = claim
        .commitment
        .as_ref()
        .is_some_and(|commitment| commitment.module.asks);
    if !asks || holdout.description.answer_items == 0 {
        return MicroBits::ZERO;
    }
    let calls = u64::from(claim.terms.lane.max_oracle_calls());
    // A product that does not fit is more than any budget, and `reserve_answers` cuts it to what is
    // left.
    holdout
        .description
        .policy
        .answer_prices
        .dearest(claim.terms.oracle_num_symbols)
        .ok()
        .and_then(|dearest| dearest.checked_mul(calls))
        .unwrap_or(MicroBits::MAX)
}

/// The worst price of this run's settlement, however the runs before it end.
fn reserve_settlement(
    stage: &Stage<'_>,
    claim: &Claim,
    holdout: &Holdout,
) -> Result<MicroBits, Refusal> {
    let policy = &holdout.description.policy;
    let ahead = holdout.in_flight.len() as u64;
    let worst = |ahead| {
        policy.settlement_prices.worst_case(
            holdout.settled,
            holdout.certified,
            ahead,
            claim.terms.levels,
        )
    };
    let needed = worst(ahead);
    let own = stage.pool(holdout.id, claim.terms.owner).sealed;
    let fence = policy.principal_sealed_budget.unwrap_or(MicroBits::MAX);
    let pools = [
        (Pool::Sealed, holdout.sealed, holdout.sealed_budget()),
        (Pool::PrincipalSealed, own, fence),
    ];
    let Some((short, ..)) = pools
        .into_iter()
        .find(|(_, meter, budget)| needed > meter.free(*budget))
    else {
        return Ok(needed);
    };
    // The price with no run ahead: if that exceeds what is left, the claim can never be admitted.
    let least = worst(0);
    for (pool, meter, budget) in pools {
        let left = meter.left(budget);
        if least > left {
            return Err(Refusal::BudgetExhausted {
                pool,
                needed: least,
                left,
            });
        }
    }
    Err(Refusal::Reserved { pool: short })
}

pub(crate) fn begin_again(holdout: &HoldoutId, number: u64, failed: bool) -> Decision {
    let begun = Event::RunBegunAgain {
        holdout: *holdout,
        number,
    };
    let failure = failed.then_some(Event::RunFailed {
        holdout: *holdout,
        number,
    });
    Decision {
        events: failure.into_iter().chain([begun]).collect(),
        entries: Vec::new(),
        reply: Reply::Done,
    }
}

pub(crate) fn settle(
    stage: &Stage<'_>,
    holdout: &HoldoutId,
    number: u64,
    report: &RunReport,
) -> Decision {
    let (holdout, run, claim) = oldest(stage, holdout, number);
    // Runs ahead of this one may have raised k and the ordinal since its admission.
    let terms = SettlementTerms::now(holdout, claim);
    let tainted = stage.revoked_ancestor(claim).is_some();
    let verdict = judge(holdout, claim, report, &terms, tainted);
    let output = match &report.end {
        RunEnd::Emitted(output) | RunEnd::Vetoed { output, .. } if claim.accepts_output(output) => {
            output.clone()
        }
        RunEnd::Emitted(_) | RunEnd::Vetoed { .. } | RunEnd::NoOutput | RunEnd::Trapped(_) => {
            Vec::new()
        }
    };
    let ending = Ending {
        holdout,
        run,
        claim,
        terms: &terms,
        report,
        verdict,
    };
    ending.conclude(stage, output)
}

pub(crate) fn abort(stage: &Stage<'_>, holdout: &HoldoutId, number: u64) -> Decision {
    let (holdout, run, claim) = oldest(stage, holdout, number);
    let terms = SettlementTerms::now(holdout, claim);
    let report = RunReport {
        end: RunEnd::Trapped(Reason::Aborted),
        // The run's answers are unknown: its worst case is charged.
        answers: AnswerTally {
            n_symbols: claim.terms.oracle_num_symbols,
            charged: run.answers_reserved,
            ..AnswerTally::default()
        },
        score: None,
        fuel: 0,
        pages: 0,
        trace_hash: Digest::of(b""),
        trace_len: 0,
    };
    let verdict = Verdict {
        outcome: Outcome::Aborted,
        reasons: vec![Reason::Rejected, Reason::Aborted],
        price: run.sealed_reserved,
        e_value_log2: None,
    };
    let ending = Ending {
        holdout,
        run,
        claim,
        terms: &terms,
        report: &report,
        verdict,
    };
    ending.conclude(stage, Vec::new())
}

/// Ends a duplicate under its first verdict: nothing ran, and nothing is looked at.
pub(crate) fn settle_duplicate(stage: &Stage<'_>, holdout: &HoldoutId, number: u64) -> Decision {
    let (holdout, run, claim) = oldest(stage, holdout, number);
    let terms = SettlementTerms::now(holdout, claim);
    let report = RunReport {
        end: RunEnd::Trapped(Reason::Duplicate),
        answers: AnswerTally {
            n_symbols: claim.terms.oracle_num_symbols,
            ..AnswerTally::default()
        },
        score: None,
        fuel: 0,
        pages: 0,
        trace_hash: Digest::of(b""),
        trace_len: 0,
    };
    let verdict = Verdict::not_judged(Reason::Duplicate);
    let ending = Ending {
        holdout,
        run,
        claim,
        terms: &terms,
        report: &report,
        verdict,
    };
    ending.conclude(stage, Vec::new())
}

fn oldest<'s>(
    stage: &'s Stage<'_>,
    holdout: &HoldoutId,
    number: u64,
) -> (&'s Holdout, &'s InFlight, &'s Claim) {
    let holdout = stage
        .holdout(holdout)
        .expect("a run's holdout is registered");
    let run = holdout
        .in_flight
        .front()
        .expect("a run that settles is under way");
    // If this run settled early, runs ahead of it could still change the m and s that price it.
    assert_eq!(
        run.number, number,
        "runs settle in the order in which they were admitted"
    );
    let claim = stage.claim(&run.claim).expect("a run's claim was loaded");
    (holdout, run, claim)
}

/// The terms of a settlement, read at the moment of settling.
struct SettlementTerms {
    k: MicroBits,
    quote: Quote,
    ordinal: u64,
    alpha_micros: u32,
    divisor: u64,
    threshold: MicroBits,
}

impl SettlementTerms {
    fn now(holdout: &Holdout, claim: &Claim) -> Self {
        let policy = &holdout.description.policy;
        let k = holdout.sealed.charged;
        let quote = policy
            .settlement_prices
            .quote(holdout.settled, holdout.certified);
        // The count never decreases: a revoked certificate has used its share of α.
        let ordinal = holdout.certified + 1;
        // A claim may ask for a lower α than the holdout policy's, never for a higher one.
        let alpha_micros = claim.terms.alpha_micros.min(policy.alpha_micros);
        let divisor = policy.multiplicity.divisor(ordinal);
        let threshold = price::threshold(k, quote.certified, alpha_micros, divisor);
        Self {
            k,
            quote,
            ordinal,
            alpha_micros,
            divisor,
            threshold,
        }
    }
}

struct Verdict {
    outcome: Outcome,
    reasons: Vec<Reason>,
    price: MicroBits,
    e_value_log2: Option<u64>,
}

impl Verdict {
    /// The sealed part was not looked at: nothing is released about it.
    fn not_judged(reason: Reason) -> Self {
        Self {
            outcome: Outcome::NotJudged,
            reasons: vec![Reason::Rejected, reason],
            price: MicroBits::ZERO,
            e_value_log2: None,
        }
    }

    /// The evidence reached `level` out of `levels`.
    fn certified(holdout: &Holdout, terms: &SettlementTerms, levels: u8, level: u8) -> Self {
        let policy = &holdout.description.policy;
        Self {
            outcome: Outcome::Certified,
            reasons: vec![Reason::Approved],
            // The price is that of the node at which the threshold was computed, before this
            // settlement counts.
            price: policy.settlement_prices.level_price(
                holdout.settled,
                holdout.certified,
                levels,
                level,
            ),
            e_value_log2: Some(price::released_log2(
                terms.alpha_micros,
                terms.divisor,
                level,
                policy.level_width,
            )),
        }
    }

    /// A policy module keeps the sealed part from being looked at.
    fn vetoed(code: PolicyCode, deferred: bool) -> Self {
        let general = if deferred {
            Reason::Deferred
        } else {
            Reason::Rejected
        };
        Self {
            reasons: vec![general, Reason::Policy(code)],
            ..Self::not_judged(Reason::Policy(code))
        }
    }
}

/// The verdict. Every reason not to judge is checked before the evidence is looked at.
fn judge(
    holdout: &Holdout,
    claim: &Claim,
    report: &RunReport,
    terms: &SettlementTerms,
    tainted: bool,
) -> Verdict {
    // `docs/formats.md` states this order, and the verifier checks in it too: the capsule must
    // state the first reason that holds.
    match &report.end {
        RunEnd::Trapped(reason) => return Verdict::not_judged(*reason),
        RunEnd::NoOutput => return Verdict::not_judged(Reason::NoOutput),
        RunEnd::Emitted(output) | RunEnd::Vetoed { output, .. }
            if !claim.accepts_output(output) =>
        {
            return Verdict::not_judged(Reason::InvalidOutput);
        }
        RunEnd::Emitted(_) | RunEnd::Vetoed { .. } => {}
    }
    if tainted {
        return Verdict::not_judged(Reason::AncestorRevoked);
    }
    if let RunEnd::Vetoed { code, deferred, .. } = &report.end {
        return Verdict::vetoed(*code, *deferred);
    }
    let Some(score) = &report.score else {
        return Verdict::not_judged(Reason::NothingToJudge);
    };
    let description = &holdout.description;
    let null_spec = &description.null_spec;
    // If no vector can be certified, the verdict is known beforehand and says nothing about labels,
    // so it is not charged.
    if !null_spec.can_reach(description.sealed_units, terms.threshold) {
        return Verdict::not_judged(Reason::OutOfReach);
    }
    let evidence = null_spec.evidence_of(score);
    let policy = &description.policy;
    let levels = claim.terms.levels;
    match price::level_reached(evidence, terms.threshold, policy.level_width, levels) {
        Some(level) => Verdict::certified(holdout, terms, levels, level),
        None => Verdict {
            outcome: Outcome::NotCertified,
            reasons: vec![Reason::Rejected, Reason::BelowThreshold],
            price: terms.quote.not_certified,
            e_value_log2: None,
        },
    }
}

/// A run that ends, with all that its capsule and its settlement state.
struct Ending<'a> {
    holdout: &'a Holdout,
    run: &'a InFlight,
    claim: &'a Claim,
    terms: &'a SettlementTerms,
    report: &'a RunReport,
    verdict: Verdict,
}

impl Ending<'_> {
    /// The entry, what it charges, and the end of the claim.
    fn conclude(self, stage: &Stage<'_>, output: Vec<u8>) -> Decision {
        let capsule = self.capsule(stage.now_unix_ms(), &output).to_bytes();
        let bits = (self.report.answers.charged).saturating_add(self.verdict.price);
        let outcome = self.verdict.outcome;
        let burned = credit::burn(stage, self.claim, outcome, bits, self.report);
        let (holdout, claim) = (self.holdout.id, self.claim.id);
        let mut events = vec![Event::RunSettled {
            holdout,
            claim,
            settlement: Box::new(self.settlement(stage, &capsule, output)),
        }];
        events.extend(burned);
        Decision {
            events,
            entries: vec![capsule],
            reply: Reply::Done,
        }
    }

    fn capsule(&self, now_unix_ms: u64, output: &[u8]) -> Capsule {
        let (claim, run, description) = (self.claim, self.run, &self.holdout.description);
        let commitment = claim
            .commitment
            .as_ref()
            .expect("a claim that runs was committed");
        Capsule {
            claim_id: claim.id,
            topic_id: claim.terms.topic_id(),
            structured_output_hash: Digest::of(output),
            owner_tag: claim.terms.owner,
            holdout_id: self.holdout.id,
            policy_hash: description.policy.hash(),
            null_spec_hash: claim.terms.null_spec_hash,
            wasm_hash: commitment.module.hash,
            seal_hash: claim.seal_hash.expect("a claim that runs was sealed"),
            dependencies: commitment.capsules_of_parents(),
            trace_hash: self.report.trace_hash,
            outcome: self.verdict.outcome,
            reason_codes: record::reason_codes(&self.verdict.reasons),
            answers: self.report.answers.clone(),
            ledger: self.ledger(),
            items: (
                description.answer_items,
                description.sealed_items,
                description.sealed_units,
            ),
            e_value_log2: self.verdict.e_value_log2,
            fuel: self.report.fuel,
            settled_unix_ms: now_unix_ms,
            engine: run.engine.clone(),
            run: run.place.map(|place| RunPlace {
                number: run.number,
                ended_before: place.ended_before,
                levels: claim.terms.levels,
                answers_reserved: run.answers_reserved,
                sealed_reserved: run.sealed_reserved,
            }),
            // A duplicate may be aborted too, when the log goes on under another name.
            duplicate_of: run
                .place
                .and_then(|place| place.duplicate_of)
                .filter(|_| self.verdict.reasons.contains(&Reason::Duplicate)),
        }
    }

    /// The verdict's ledger: its price, and its place in the order of verdicts.
    fn ledger(&self) -> Ledger {
        Ledger {
            k: self.terms.k,
            c: self.terms.quote.certified,
            price: self.verdict.price,
            settled_before: self.holdout.settled,
            certified_before: self.holdout.certified,
            ordinal: self.terms.ordinal,
            alpha_micros: self.terms.alpha_micros,
            alpha_divisor: self.terms.divisor,
            multiplicity: self.holdout.description.policy.multiplicity,
            threshold: self.terms.threshold,
        }
    }

    fn settlement(self, stage: &Stage<'_>, capsule: &[u8], output: Vec<u8>) -> Settlement {
        Settlement {
            outcome: self.verdict.outcome,
            reasons: self.verdict.reasons,
            output,
            e_value_log2: self.verdict.e_value_log2,
            answers_charged: self.report.answers.charged,
            price: self.verdict.price,
            threshold: self.terms.threshold,
            fuel: self.report.fuel,
            trace_hash: self.report.trace_hash,
            trace_len: self.report.trace_len,
            capsule_hash: Digest::of(capsule),
            index: stage.next_index(),
            settled_unix_ms: stage.now_unix_ms(),
        }
    }
}
