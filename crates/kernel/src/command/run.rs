//! What the driver commands about runs under way.

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

/// A command about a run, which its holdout and its number there name.
#[derive(Debug, Clone)]
pub enum RunCommand {
    /// Note that a run is begun again: it was found unfinished, or it failed.
    BeginAgain {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
        /// Whether it failed, which counts towards its abort.
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

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunReport {
    pub end: RunEnd,
    pub answers: AnswerTally,
    /// How right the judged vector is on the sealed part, if there is one.
    pub score: Option<Score>,
    /// In units of fuel.
    pub fuel: u64,
    /// Memory at its end, in Wasm pages.
    pub pages: u64,
    /// Digest of the trace.
    pub trace_hash: Digest,
    /// Length of the trace in bytes.
    pub trace_len: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// It returned after emitting this.
    Emitted(Vec<u8>),
    /// It returned without emitting.
    NoOutput,
    /// The module trapped for this reason.
    Trapped(Reason),
    /// It returned after emitting this, and a policy keeps it from being judged.
    Vetoed {
        output: Vec<u8>,
        /// The code that the policy chose, 9000 to 9999.
        code: PolicyCode,
        /// Whether somebody else is to decide, instead of nobody.
        deferred: bool,
    },
}

impl RunCommand {
    pub(crate) fn keys(&self, wanted: &mut Wanted<'_>) {
        match self {
            // It touches its holdout alone.
            Self::BeginAgain { .. } => {}
            Self::Settle {
                holdout, number, ..
            } => {
                let Some(run) = wanted.stage().run(holdout, *number) else {
                    return;
                };
                wanted.want_run(*holdout, run);
                // A claim on a revoked ancestor is not judged.
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
