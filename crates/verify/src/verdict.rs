//! Checks one trace under opened labels: recomputes every answer, and the whole outcome.
//!
//! Owns the order in which a settlement reaches its outcome: a trap, no output, an output that is not a symbol, a
//! revoked ancestor, a policy module's veto, no vector, out of reach, then the evidence. The capsule must state
//! exactly the result. Traces of releases before 2.2 do not state how the run ended; anything they leave open counts
//! as not checked.

use std::collections::{BTreeMap, HashSet};

use evidenceos_kernel::{
    claim::{Outcome, PolicyCode, Reason},
    id::Digest,
    record::{AnswerTally, Capsule},
    trace::{self, EMITTED, Record, TracedEnd, TracedRun},
};

use crate::{
    arithmetic::{prices, score},
    capsule::{Expected, digest_of_nothing, second_reason},
    fault::{Check, Fault},
    opening::{Opened, OpeningFailure, Replayed},
};

/// The longest output of a guest, in bytes.
const LONGEST_OUTPUT: usize = 2_048;

pub(crate) fn check(
    opened: &Opened<'_>,
    capsule: &Capsule,
    tainted: bool,
    bytes: &[u8],
) -> Result<Replayed, OpeningFailure> {
    if capsule.outcome == Outcome::Aborted || capsule.duplicate_of.is_some() {
        return Ok(Replayed {
            answers: 0,
            evidence_microbits: None,
            not_checkable: None,
        });
    }
    // The digest binds the trace to the capsule. Other bytes are not even parsed.
    let found = Digest::of(bytes);
    if found != capsule.trace_hash {
        return Err(OpeningFailure::TraceHash {
            found,
            wanted: capsule.trace_hash,
        });
    }
    let (items, records) = trace::parse(bytes)?;
    Check::Trace.equal("items", items, opened.registered.description.items)?;
    let traced = Traced::of(&records);
    let answers = check_answers(opened, capsule, &traced)?;
    let checked = match (traced.run, traced.end) {
        (Some(run), Some(end)) => {
            check_run(opened, capsule, run)?;
            check_end(capsule, end, &answers)?;
            follows(opened, capsule, tainted, &traced, run, end)?
        }
        _ => before_2_2(opened, capsule, tainted, &traced)?,
    };
    Ok(Replayed {
        answers: answers.asked,
        evidence_microbits: checked.evidence,
        not_checkable: checked.not_checkable,
    })
}

/// The records of a trace, by kind.
struct Traced<'t> {
    run: Option<&'t TracedRun>,
    end: Option<&'t TracedEnd>,
    judged: Option<&'t [u8]>,
    records: &'t [Record],
}

impl<'t> Traced<'t> {
    fn of(records: &'t [Record]) -> Self {
        let mut traced = Self {
            run: None,
            end: None,
            judged: None,
            records,
        };
        for record in records {
            match record {
                Record::Run(run) => traced.run = Some(run),
                Record::End(end) => traced.end = Some(end),
                Record::Judged(vector) => traced.judged = Some(vector),
                Record::Asked { .. } | Record::Replayed(_) | Record::Free(_) => {}
            }
        }
        traced
    }
}

/// The totals over the questions of a trace.
struct Answers {
    /// Questions that were answered and charged.
    asked: u32,
    /// All answered calls, including repeated and free ones.
    calls: u64,
}

/// Recomputes every answer, in order, and the tally that was charged.
fn check_answers(
    opened: &Opened<'_>,
    capsule: &Capsule,
    traced: &Traced<'_>,
) -> Result<Answers, OpeningFailure> {
    let (tally, check) = (&capsule.answers, Check::AnswersAgain);
    let prices = &opened.registered.description.policy.answer_prices;
    let mut counted = Counted {
        check,
        has_answers: opened.registered.description.answer_items > 0,
        allowance: capsule.run.map(|run| run.answers_reserved.get()),
        dearest: prices::dearest_answer(prices, tally.n_symbols)
            .ok_or(Fault::rule(check, "answers.n_symbols is an alphabet"))?,
        by_symbol: BTreeMap::new(),
        questions: HashSet::new(),
        asked: 0,
        replayed: 0,
        free: 0,
        charged: 0,
    };
    for record in traced.records {
        counted.count(opened, tally.n_symbols, record)?;
    }
    let refused = second_reason(capsule) == Some(Reason::AllowanceExhausted);
    counted.must_be(tally, refused)?;
    let calls = u64::from(counted.asked) + u64::from(counted.replayed) + counted.free;
    check_calls(capsule, calls)?;
    Ok(Answers {
        asked: counted.asked,
        calls,
    })
}

/// The totals over a trace's records so far.
struct Counted<'a> {
    check: Check,
    has_answers: bool,
    /// Microbits that the run had for its questions; unknown in a log of the first release.
    allowance: Option<u64>,
    /// Microbits of the dearest answer.
    dearest: u64,
    by_symbol: BTreeMap<u32, u32>,
    questions: HashSet<&'a [u8]>,
    asked: u32,
    replayed: u32,
    free: u64,
    charged: u64,
}

impl<'a> Counted<'a> {
    /// The kernel admits a question at its dearest answer, before it reads a label.
    fn fits(&self) -> bool {
        let needed = self.charged.saturating_add(self.dearest);
        self.allowance.is_none_or(|most| needed <= most)
    }

    fn count(
        &mut self,
        opened: &Opened<'_>,
        n_symbols: u32,
        record: &'a Record,
    ) -> Result<(), OpeningFailure> {
        let check = self.check;
        match record {
            Record::Asked {
                n_symbols: alphabet,
                symbol,
                vector,
            } => {
                check.equal("answers.n_symbols", n_symbols, *alphabet)?;
                self.answer(opened, n_symbols, *symbol, vector)?;
            }
            Record::Replayed(first) => {
                check.holds(*first < self.asked, "a replay repeats an earlier question")?;
                self.replayed += 1;
            }
            Record::Free(count) => {
                check.holds(
                    !self.has_answers && *count > 0 && self.free == 0,
                    "questions are free only without an answer part, and counted once",
                )?;
                self.free = u64::from(*count);
            }
            Record::Judged(_) | Record::Run(_) | Record::End(_) => {}
        }
        Ok(())
    }

    fn answer(
        &mut self,
        opened: &Opened<'_>,
        n_symbols: u32,
        stated: u32,
        vector: &'a [u8],
    ) -> Result<(), OpeningFailure> {
        let check = self.check;
        check.holds(
            self.has_answers,
            "a holdout without an answer part answers nothing",
        )?;
        check.holds(
            self.questions.insert(vector),
            "a question that was asked before is answered again without charge",
        )?;
        check.holds(
            self.fits(),
            "a question is answered only if its dearest answer fits the allowance",
        )?;
        let computed = score::answer(vector, &opened.labels, &opened.part, n_symbols);
        if computed != stated {
            return Err(OpeningFailure::Answer {
                question: self.asked,
                stated,
                computed,
            });
        }
        *self.by_symbol.entry(stated).or_insert(0) += 1;
        let prices = &opened.registered.description.policy.answer_prices;
        let price = prices::answer(prices, n_symbols, stated).unwrap_or(self.dearest);
        self.charged = self.charged.saturating_add(price);
        self.asked += 1;
        Ok(())
    }

    /// Checks that the tally states these totals, and that the run ended for want of bits only if they were spent.
    fn must_be(&self, tally: &AnswerTally, refused: bool) -> Result<(), Fault> {
        let check = self.check;
        let by_symbol = self
            .by_symbol
            .iter()
            .map(|(&symbol, &count)| (symbol, count));
        check.holds(
            by_symbol.eq(tally.by_symbol.iter().copied()),
            "answers.by_symbol counts the answers of the trace",
        )?;
        check.equal("answers.replayed", tally.replayed, self.replayed)?;
        let charged = tally.charged.get();
        check.equal("answers.charged_microbits", charged, self.charged)?;
        check.holds(
            !refused || self.allowance.is_none() || !self.fits(),
            "a question is refused only if its dearest answer does not fit the allowance",
        )
    }
}

/// Checks the number of calls. A call without an answer leaves no record: it is the last, and ended
/// the run.
fn check_calls(capsule: &Capsule, answered: u64) -> Result<(), Fault> {
    let stated = u64::from(capsule.answers.asked);
    let most = match second_reason(capsule) {
        Some(Reason::AllowanceExhausted) => {
            return Check::AnswersAgain.equal("answers.asked", stated, answered + 1);
        }
        Some(Reason::OutOfFuel | Reason::InvalidVector | Reason::OutOfBounds | Reason::Trap) => {
            answered + 1
        }
        _ => answered,
    };
    Check::AnswersAgain.holds(
        (answered..=most).contains(&stated),
        "answers.asked counts the calls of the trace, and one that ended the run",
    )
}

/// Checks that the trace and the capsule are of the same run.
fn check_run(opened: &Opened<'_>, capsule: &Capsule, run: &TracedRun) -> Result<(), Fault> {
    let check = Check::Run;
    check.equal("claim_id_hex", capsule.claim_id, run.claim_id)?;
    check.equal("owner_tag_hex", capsule.owner_tag, run.owner_tag)?;
    check.equal("wasm_hash_hex", capsule.wasm_hash, run.wasm_hash)?;
    check.equal("seal_hash_hex", capsule.seal_hash, run.seal_hash)?;
    check.equal("engine", capsule.engine.as_str(), run.engine.as_str())?;
    check.equal(
        "answers.n_symbols",
        capsule.answers.n_symbols,
        run.n_symbols,
    )?;
    check.equal(
        "ledger.alpha_micros",
        capsule.ledger.alpha_micros,
        run.alpha_micros
            .min(opened.registered.description.policy.alpha_micros),
    )?;
    // If an earlier release admitted the run and this one executed it, only the trace states its place.
    let Some(place) = capsule.run else {
        return Ok(());
    };
    check.equal("run.number", place.number, run.number)?;
    check.equal("run.levels", place.levels, run.levels)?;
    // Traces of the first builds of release 2.2 do not state the facts of the admission.
    let Some(admission) = &run.admission else {
        return Ok(());
    };
    check.equal(
        "run.ended_before",
        place.ended_before,
        admission.ended_before,
    )?;
    check.equal(
        "run.answers_reserved_microbits",
        place.answers_reserved,
        admission.answers_reserved,
    )?;
    check.holds(
        capsule.dependencies == admission.dependencies,
        "dependencies are the capsules of the claim's parents",
    )
}

fn check_end(capsule: &Capsule, end: &TracedEnd, answers: &Answers) -> Result<(), Fault> {
    let check = Check::Run;
    check.equal("fuel", capsule.fuel, end.fuel)?;
    check.equal("answers.asked", capsule.answers.asked, end.asked)?;
    check.holds(
        answers.calls <= u64::from(end.asked),
        "a trace has no more answers than calls",
    )?;
    check.holds(
        end.output.len() <= LONGEST_OUTPUT,
        "an output has at most 2,048 bytes",
    )
}

/// The recomputed results, and the reason why something could not be recomputed.
#[derive(Default)]
struct Checked {
    evidence: Option<i64>,
    not_checkable: Option<&'static str>,
}

/// The end of a run that follows from everything before the evidence.
enum Ending {
    /// Not judged: the reason, and whether a policy module deferred the verdict.
    NotJudged(Reason, bool),
    /// The sealed part was looked at.
    Judged,
}

/// Compares the outcome that follows from a trace of the present format with the capsule's.
fn follows(
    opened: &Opened<'_>,
    capsule: &Capsule,
    tainted: bool,
    traced: &Traced<'_>,
    run: &TracedRun,
    end: &TracedEnd,
) -> Result<Checked, Fault> {
    let is_symbol = is_symbol(&end.output, run.n_symbols);
    let ending = ending(opened, capsule, tainted, traced.judged, end, is_symbol)?;
    // The trace does not keep the output of a run that trapped.
    let returned = matches!(end.code, EMITTED | 9_000..=9_999);
    let output = if returned && is_symbol {
        Digest::of(&end.output)
    } else {
        digest_of_nothing()
    };
    Check::Verdict.equal(
        "structured_output_hash_hex",
        capsule.structured_output_hash,
        output,
    )?;
    match ending {
        Ending::NotJudged(reason, deferred) => {
            let first = if deferred {
                Reason::Deferred
            } else {
                Reason::Rejected
            };
            must_end(capsule, Outcome::NotJudged, &[first, reason])?;
            Ok(Checked::default())
        }
        Ending::Judged => check_evidence(opened, capsule, traced.judged.unwrap_or_default()),
    }
}

/// The reasons not to judge, in the order in which a settlement checks them.
fn ending(
    opened: &Opened<'_>,
    capsule: &Capsule,
    tainted: bool,
    judged: Option<&[u8]>,
    end: &TracedEnd,
    is_symbol: bool,
) -> Result<Ending, Fault> {
    let check = Check::Verdict;
    let veto = PolicyCode::new(end.code);
    check.holds(
        !end.deferred || veto.is_some(),
        "only a policy module defers a verdict",
    )?;
    let reason = Reason::of_code(end.code);
    let trapped = match (end.code, reason) {
        (EMITTED, _) => None,
        // 119 here means an output that was too long; other invalid outputs have the code `EMITTED`.
        (110..=117 | 119 | 123 | 124, Some(reason)) => Some(reason),
        (118, Some(Reason::NoOutput)) => {
            check.holds(end.output.is_empty(), "a run without output emits nothing")?;
            return Ok(Ending::NotJudged(Reason::NoOutput, false));
        }
        (_, Some(Reason::Policy(_))) => None,
        _ => {
            return Err(Fault::rule(
                check,
                "the trace ends with a code that a run can end with",
            ));
        }
    };
    if let Some(reason) = trapped {
        check.holds(
            judged.is_none(),
            "a run that trapped has no vector to judge",
        )?;
        return Ok(Ending::NotJudged(reason, false));
    }
    check.holds(
        veto.is_none() || judged.is_some() && is_symbol,
        "policies are asked about runs that could be judged, and about no other",
    )?;
    if !is_symbol {
        return Ok(Ending::NotJudged(Reason::InvalidOutput, false));
    }
    if tainted {
        return Ok(Ending::NotJudged(Reason::AncestorRevoked, false));
    }
    if let Some(code) = veto {
        return Ok(Ending::NotJudged(Reason::Policy(code), end.deferred));
    }
    if judged.is_none() {
        return Ok(Ending::NotJudged(Reason::NothingToJudge, false));
    }
    if !expected(opened, capsule).within_reach(capsule.ledger.threshold.get()) {
        return Ok(Ending::NotJudged(Reason::OutOfReach, false));
    }
    Ok(Ending::Judged)
}

/// One big-endian symbol of the alphabet, in as many whole bytes as its largest symbol takes.
fn is_symbol(output: &[u8], n_symbols: u32) -> bool {
    let largest = u64::from(n_symbols.saturating_sub(1));
    let len = match largest {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xff_ffff => 3,
        _ => 4,
    };
    // The length is compared below; eight bytes keep the value of a longer output from overflowing.
    let value = output
        .iter()
        .take(8)
        .fold(0u64, |value, &byte| value * 256 + u64::from(byte));
    output.len() == len && value <= largest
}

fn must_end(capsule: &Capsule, outcome: Outcome, reasons: &[Reason]) -> Result<(), Fault> {
    Check::Verdict.equal("outcome", capsule.outcome.as_str(), outcome.as_str())?;
    let wanted: Vec<u16> = reasons.iter().map(|reason| reason.code()).collect();
    let show = |codes: &[u16]| format!("{codes:?}");
    Check::Verdict.equal("reason_codes", show(&capsule.reason_codes), show(&wanted))
}

fn expected<'a>(opened: &'a Opened<'_>, capsule: &Capsule) -> Expected<'a> {
    Expected {
        description: &opened.registered.description,
        bets: &opened.bets,
        k: capsule.ledger.k.get(),
        settled: capsule.ledger.settled_before,
        certified: capsule.ledger.certified_before,
    }
}

/// Recomputes the evidence, and whether it reached the threshold and the level.
fn check_evidence(opened: &Opened<'_>, capsule: &Capsule, vector: &[u8]) -> Result<Checked, Fault> {
    let score = score::sealed(vector, &opened.labels, &opened.part, &opened.units);
    let evidence = opened.bets.evidence(&score);
    let ledger = &capsule.ledger;
    let width = opened.registered.description.policy.level_width.get();
    let level_of = |levels| prices::level_reached(evidence, ledger.threshold.get(), width, levels);
    match level_of(0) {
        None => must_end(
            capsule,
            Outcome::NotCertified,
            &[Reason::Rejected, Reason::BelowThreshold],
        )?,
        Some(_) => {
            must_end(capsule, Outcome::Certified, &[Reason::Approved])?;
            let expected = expected(opened, capsule);
            let released = expected
                .levels_that_fit(capsule)
                .any(|(levels, level)| level_of(levels) == Some(level));
            Check::Verdict.holds(
                released,
                "the released level is the one that the evidence reached",
            )?;
        }
    }
    Ok(Checked {
        evidence: i64::try_from(evidence).ok(),
        not_checkable: None,
    })
}

/// The results of a trace of a release before 2.2, which has no run and no end.
fn before_2_2(
    opened: &Opened<'_>,
    capsule: &Capsule,
    tainted: bool,
    traced: &Traced<'_>,
) -> Result<Checked, Fault> {
    let check = Check::Verdict;
    check.holds(
        capsule.run.is_none(),
        "if a capsule has a run, its trace has one too",
    )?;
    if matches!(capsule.outcome, Outcome::Certified | Outcome::NotCertified) {
        check.holds(!tainted, "a claim with a revoked ancestor is not judged")?;
        let vector = traced.judged.ok_or(Fault::rule(
            check,
            "a judged claim's trace ends with the judged vector",
        ))?;
        return check_evidence(opened, capsule, vector);
    }
    let not_checkable = match second_reason(capsule) {
        Some(Reason::NothingToJudge) => {
            check.holds(
                traced.judged.is_none(),
                "a claim that submitted nothing has no vector to judge in its trace",
            )?;
            None
        }
        Some(Reason::OutOfReach) => {
            check.holds(
                traced.judged.is_some(),
                "a claim out of reach has a vector to judge",
            )?;
            None
        }
        Some(Reason::AncestorRevoked) => None,
        Some(Reason::NoOutput | Reason::InvalidOutput) => {
            Some("the trace of an earlier release does not say what the run emitted")
        }
        Some(Reason::Policy(_)) => {
            check.holds(
                traced.judged.is_some(),
                "policies are asked about runs that could be judged, and about no other",
            )?;
            Some("the trace of an earlier release does not say that a policy vetoed the claim")
        }
        _ => {
            check.holds(
                traced.judged.is_none(),
                "a run that trapped has no vector to judge",
            )?;
            (traced.judged.is_none())
                .then_some("the trace of an earlier release does not say how the run ended")
        }
    };
    Ok(Checked {
        evidence: None,
        not_checkable,
    })
}
