//! The driver's commands about runs under way.

use super::{Caller, Decision};
use crate::{
    claim::{PolicyCode, Reason},
    decide::runs,
    id::{Digest, HoldoutId},
    record::AnswerTally,
    refusal::Refusal,
    score::Score,
    state::{Stage, Wanted},
};

/// A command about a run, identified by its holdout and its number there.
#[derive(Debug, Clone)]
pub enum RunCommand {
    /// Note that a run starts again: it was found unfinished, or it failed.
    BeginAgain {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
        /// True if the run failed, which counts towards its abort.
        failed: bool,
    },
    /// End a run. Only the oldest run of its holdout can end.
    Settle {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
        report: Box<RunReport>,
    },
    /// End the run of a claim that was judged before, under its first verdict.
    SettleDuplicate {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
    },
    /// End a run that cannot be repeated, at its worst case.
    Abort {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
    },
}

/// The report of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunReport {
    pub end: RunEnd,
    pub answers: AnswerTally,
    /// How right the judged vector is on the sealed part, if there is one.
    pub score: Option<Score>,
    /// Fuel that the run used.
    pub fuel: u64,
    /// Memory at the run's end, in Wasm pages.
    pub pages: u64,
    /// Digest of the trace.
    pub trace_hash: Digest,
    /// Length of the trace in bytes.
    pub trace_len: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// The run returned and had emitted this output.
    Emitted(Vec<u8>),
    /// The run returned without emitting.
    NoOutput,
    /// The module trapped for this reason.
    Trapped(Reason),
    /// The run returned and had emitted this output, and a policy module keeps it from being
    /// judged.
    Vetoed {
        output: Vec<u8>,
        /// The code that the policy module chose, 9000 to 9999.
        code: PolicyCode,
        /// True if the policy module defers the verdict, false if it rejects.
        deferred: bool,
    },
}

impl RunCommand {
    pub(crate) fn keys(&self, wanted: &mut Wanted<'_>) {
        match self {
            // The command touches its holdout alone.
            Self::BeginAgain { .. } => {}
            Self::Settle {
                holdout, number, ..
            } => {
                let Some(run) = wanted.stage().run(holdout, *number) else {
                    return;
                };
                wanted.want_run(*holdout, run);
                // A claim with a revoked ancestor is not judged, so the ancestors are needed.
                if let Some(claim) = wanted.stage().claim(&run.claim) {
                    wanted.want_ancestors(claim);
                }
            }
            Self::SettleDuplicate { holdout, number } | Self::Abort { holdout, number } => {
                if let Some(run) = wanted.stage().run(holdout, *number) {
                    wanted.want_run(*holdout, run);
                }
            }
        }
    }

    #[allow(
        clippy::unnecessary_wraps,
        reason = "the commands of every area are decided by the same signature"
    )]
    pub(crate) fn decide(&self, stage: &Stage<'_>, _: &Caller) -> Result<Decision, Refusal> {
        Ok(match self {
            Self::BeginAgain {
                holdout,
                number,
                failed,
            } => runs::begin_again(holdout, *number, *failed),
            Self::Settle {
                holdout,
                number,
                report,
            } => runs::settle(stage, holdout, *number, report),
            Self::SettleDuplicate { holdout, number } => {
                runs::settle_duplicate(stage, holdout, *number)
            }
            Self::Abort { holdout, number } => runs::abort(stage, holdout, *number),
        })
    }
}
