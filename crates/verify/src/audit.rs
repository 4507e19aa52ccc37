//! Checks opened holdouts against a replayed log: every label and every trace, and that no trace is missing or left
//! over.
//!
//! Owns the rule which claims must have a trace and which must not. Does not own the check of one trace
//! (`verdict.rs`), or the source of traces.

use std::collections::HashSet;

use evidenceos_kernel::{
    claim::Outcome,
    id::{ClaimId, HoldoutId},
};

use crate::{
    fault::{Check, Fault},
    log::LogReport,
    opening::{Opening, OpeningFailure},
};

/// An error that an opening or a trace shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFinding {
    /// The claim; `None` if the finding is about the opening.
    pub claim: Option<ClaimId>,
    /// Index of the claim's capsule.
    pub index: Option<u64>,
    pub failure: OpeningFailure,
}

impl std::fmt::Display for AuditFinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.index, self.claim) {
            (Some(index), Some(claim)) => write!(f, "entry {index}, claim {claim}: ")?,
            (None, Some(claim)) => write!(f, "claim {claim}: ")?,
            (_, None) => {}
        }
        write!(f, "{} ({})", self.failure, self.failure.check())
    }
}

/// The findings about one opened holdout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    pub holdout: HoldoutId,
    /// Its claims whose runs ended, each with a verdict to check.
    pub verdicts: u64,
    /// Verdicts that were recomputed and hold.
    pub checked: u64,
    /// Answers that were recomputed and hold.
    pub answers: u64,
    /// Claims whose trace is missing.
    pub missing: Vec<ClaimId>,
    /// Claims whose verdict their trace does not decide, and why.
    pub not_checkable: Vec<(ClaimId, &'static str)>,
    /// In the order of the log; empty if all is well.
    pub findings: Vec<AuditFinding>,
}

/// The findings about all opened holdouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditReport {
    /// One for each opening, in their order.
    pub holdouts: Vec<Audited>,
    /// Traces that no claim of the log needs.
    pub left_over: Vec<AuditFinding>,
}

impl AuditReport {
    /// The findings, in order.
    pub fn findings(&self) -> impl Iterator<Item = &AuditFinding> {
        let of_holdouts = self.holdouts.iter().flat_map(|holdout| &holdout.findings);
        of_holdouts.chain(&self.left_over)
    }

    /// Whether every verdict was checked and holds.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.findings().next().is_none()
            && self
                .holdouts
                .iter()
                .all(|holdout| holdout.checked == holdout.verdicts)
    }
}

/// Checks openings and traces against a sound log. `traced` names the available traces; `trace_of` reads one.
///
/// # Errors
/// Only the errors of `trace_of`.
pub fn audit<E>(
    report: &LogReport,
    openings: &[Opening],
    traced: &[ClaimId],
    mut trace_of: impl FnMut(&ClaimId) -> Result<Vec<u8>, E>,
) -> Result<AuditReport, E> {
    let there: HashSet<&ClaimId> = traced.iter().collect();
    let mut holdouts = Vec::new();
    for opening in openings {
        holdouts.push(audit_one(report, opening, &there, &mut trace_of)?);
    }
    Ok(AuditReport {
        holdouts,
        left_over: left_over(report, traced),
    })
}

fn audit_one<E>(
    report: &LogReport,
    opening: &Opening,
    there: &HashSet<&ClaimId>,
    trace_of: &mut impl FnMut(&ClaimId) -> Result<Vec<u8>, E>,
) -> Result<Audited, E> {
    let mut audited = Audited {
        holdout: opening.holdout_id,
        verdicts: 0,
        checked: 0,
        answers: 0,
        missing: Vec::new(),
        not_checkable: Vec::new(),
        findings: Vec::new(),
    };
    let opened = match open(report, opening) {
        Ok(opened) => opened,
        Err(failure) => {
            audited.findings.push(AuditFinding {
                claim: None,
                index: None,
                failure,
            });
            return Ok(audited);
        }
    };
    for (index, capsule) in &report.capsules {
        let claim = capsule.claim_id;
        // An aborted run left no trace and a duplicate has none: neither counts as missing.
        let ran = capsule.outcome != Outcome::Aborted && capsule.duplicate_of.is_none();
        if capsule.holdout_id != opening.holdout_id || !ran {
            continue;
        }
        audited.verdicts += 1;
        // Missing traces are listed apart from the findings, since the caller may allow them.
        if !there.contains(&claim) {
            audited.missing.push(claim);
            continue;
        }
        let tainted = report.tainted.binary_search(index).is_ok();
        match opened.check_trace(capsule, tainted, &trace_of(&claim)?) {
            Ok(replayed) => {
                audited.answers += u64::from(replayed.answers);
                match replayed.not_checkable {
                    Some(why) => audited.not_checkable.push((claim, why)),
                    None => audited.checked += 1,
                }
            }
            Err(failure) => audited.findings.push(AuditFinding {
                claim: Some(claim),
                index: Some(*index),
                failure,
            }),
        }
    }
    Ok(audited)
}

fn open<'r>(
    report: &'r LogReport,
    opening: &Opening,
) -> Result<crate::opening::Opened<'r>, OpeningFailure> {
    let ledger = report
        .holdout(&opening.holdout_id)
        .ok_or(OpeningFailure::Commitment(Fault::UnknownHoldout(
            opening.holdout_id,
        )))?;
    Check::Retirement.holds(
        ledger.opened,
        "the log does not say that this holdout was opened; fetch its newest entries",
    )?;
    opening.check(&ledger.registered)
}

/// Finds traces that belong to no run of the log: a trace without a capsule means that its entry was left out; a
/// trace of a claim whose capsule says that nothing ran means that it ran.
fn left_over(report: &LogReport, traced: &[ClaimId]) -> Vec<AuditFinding> {
    let settled: std::collections::HashMap<ClaimId, (u64, bool)> = report
        .capsules
        .iter()
        .map(|(index, capsule)| {
            let ran = capsule.outcome != Outcome::Aborted && capsule.duplicate_of.is_none();
            (capsule.claim_id, (*index, ran))
        })
        .collect();
    traced
        .iter()
        .filter_map(|claim| {
            let (index, rule) = match settled.get(claim) {
                None => (
                    None,
                    "there is a trace, but no capsule in this log: an entry was left out or changed",
                ),
                Some((index, false)) => (
                    Some(*index),
                    "there is a trace, but the capsule says that no run ended",
                ),
                Some((_, true)) => return None,
            };
            Some(AuditFinding {
                claim: Some(*claim),
                index,
                failure: OpeningFailure::Fault(Fault::rule(Check::Traces, rule)),
            })
        })
        .collect()
}
