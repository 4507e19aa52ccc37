//! The decision on a tool call: combines the detector's level, the tool's risk and the policies'
//! votes. Pure.

use evidenceos_kernel::probe::Level;
use serde_json::{Map, Value, json};

use super::{
    risk::Risk,
    wire::{Decision, OutputDecision, ReasonCode},
};

/// The policies' combined vote on a tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Votes {
    /// None of the policies objects.
    Pass,
    /// One policy asks for a person, or failed.
    Defer {
        /// The id of the oracle that objected.
        oracle: String,
        /// The reason code of its manifest, 9000 to 9999.
        code: u16,
    },
    /// One policy rejects the call.
    Reject {
        /// The id of the oracle that objected.
        oracle: String,
        /// The reason code of its manifest, 9000 to 9999.
        code: u16,
    },
    /// The policies took too long, or could not be asked.
    Late,
}

/// A decision about a tool call.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The decision itself.
    pub decision: Decision,
    pub reason: ReasonCode,
    /// Parameters to use instead.
    pub rewritten: Option<Map<String, Value>>,
    /// The policy that objected.
    pub policy: Option<(String, u16)>,
}

impl Judgement {
    fn new(decision: Decision, reason: ReasonCode) -> Self {
        Self {
            decision,
            reason,
            rewritten: None,
            policy: None,
        }
    }
}

impl Risk {
    /// Judges a call by its tool, its caller's level and the policies' votes.
    pub fn judge(&self, tool: &str, level: Level, votes: Votes) -> Judgement {
        let probed = self.probed(tool, level);
        match votes {
            Votes::Pass => probed,
            Votes::Reject { oracle, code } => Judgement {
                policy: Some((oracle, code)),
                ..Judgement::new(Decision::Deny, ReasonCode::PolicyVeto)
            },
            // A denial is not softened.
            Votes::Defer { .. } | Votes::Late if probed.decision == Decision::Deny => probed,
            Votes::Defer { oracle, code } => Judgement {
                policy: Some((oracle, code)),
                ..Judgement::new(Decision::RequireHuman, ReasonCode::PolicyDefer)
            },
            // If policies cast no vote, every tool is stopped: a late policy must not be a way past
            // it.
            Votes::Late => Judgement::new(Decision::RequireHuman, ReasonCode::Unavailable),
        }
    }

    /// Harmless parameters for a tool, if it has any.
    fn harmless(&self, tool: &str) -> Option<Map<String, Value>> {
        if !self.is_rewritten(tool) {
            return None;
        }
        json!({ "command": "", "dry_run": true })
            .as_object()
            .cloned()
    }

    fn probed(&self, tool: &str, level: Level) -> Judgement {
        match level {
            Level::Clean => Judgement::new(Decision::Allow, ReasonCode::ProbeClean),
            Level::Escalate => Judgement::new(Decision::RequireHuman, ReasonCode::ProbeEscalate),
            Level::Freeze => Judgement::new(Decision::Deny, ReasonCode::ProbeFreeze),
            Level::Throttle if !self.is_high(tool) => {
                Judgement::new(Decision::Downgrade, ReasonCode::ProbeThrottle)
            }
            Level::Throttle => match self.harmless(tool) {
                Some(params) => Judgement {
                    rewritten: Some(params),
                    ..Judgement::new(Decision::Downgrade, ReasonCode::ProbeThrottle)
                },
                None => Judgement::new(Decision::Deny, ReasonCode::UnsafeRewrite),
            },
        }
    }
}

/// The decision on an output, and its reason.
pub fn judge_output(level: Level, too_long: bool) -> (OutputDecision, Option<&'static str>) {
    match level {
        // A long output never weakens a decision that stops it.
        Level::Freeze => (OutputDecision::Block, Some("probe_freeze")),
        Level::Escalate => (OutputDecision::RequireHuman, Some("probe_escalate")),
        Level::Throttle | Level::Clean if too_long => {
            (OutputDecision::Redact, Some("output_too_large"))
        }
        Level::Throttle => (OutputDecision::Redact, Some("probe_throttle")),
        Level::Clean => (OutputDecision::Allow, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn risk() -> Risk {
        Risk::new(["exec", "fs.write"], true, true)
    }

    fn reject() -> Votes {
        Votes::Reject {
            oracle: "o".to_owned(),
            code: 9_001,
        }
    }

    fn defer() -> Votes {
        Votes::Defer {
            oracle: "o".to_owned(),
            code: 9_002,
        }
    }

    #[test]
    fn levels_risk_and_votes_make_one_decision() {
        use Decision as D;
        use Level as L;
        use ReasonCode as R;
        for (tool, level, votes, decision, reason) in [
            ("search", L::Clean, Votes::Pass, D::Allow, R::ProbeClean),
            ("exec", L::Clean, Votes::Pass, D::Allow, R::ProbeClean),
            (
                "search",
                L::Throttle,
                Votes::Pass,
                D::Downgrade,
                R::ProbeThrottle,
            ),
            (
                "exec",
                L::Throttle,
                Votes::Pass,
                D::Downgrade,
                R::ProbeThrottle,
            ),
            (
                "fs.write",
                L::Throttle,
                Votes::Pass,
                D::Deny,
                R::UnsafeRewrite,
            ),
            (
                "search",
                L::Escalate,
                Votes::Pass,
                D::RequireHuman,
                R::ProbeEscalate,
            ),
            ("search", L::Freeze, Votes::Pass, D::Deny, R::ProbeFreeze),
            ("search", L::Clean, reject(), D::Deny, R::PolicyVeto),
            ("search", L::Freeze, reject(), D::Deny, R::PolicyVeto),
            ("search", L::Clean, defer(), D::RequireHuman, R::PolicyDefer),
            (
                "search",
                L::Throttle,
                defer(),
                D::RequireHuman,
                R::PolicyDefer,
            ),
            ("search", L::Freeze, defer(), D::Deny, R::ProbeFreeze),
            ("fs.write", L::Throttle, defer(), D::Deny, R::UnsafeRewrite),
            (
                "search",
                L::Clean,
                Votes::Late,
                D::RequireHuman,
                R::Unavailable,
            ),
            (
                "search",
                L::Escalate,
                Votes::Late,
                D::RequireHuman,
                R::Unavailable,
            ),
            (
                "EXEC ",
                L::Throttle,
                Votes::Pass,
                D::Downgrade,
                R::ProbeThrottle,
            ),
            (
                "Fs.Write",
                L::Throttle,
                Votes::Pass,
                D::Deny,
                R::UnsafeRewrite,
            ),
            (
                "search",
                L::Throttle,
                Votes::Late,
                D::RequireHuman,
                R::Unavailable,
            ),
            (
                "exec",
                L::Clean,
                Votes::Late,
                D::RequireHuman,
                R::Unavailable,
            ),
            ("search", L::Freeze, Votes::Late, D::Deny, R::ProbeFreeze),
        ] {
            let judged = risk().judge(tool, level, votes.clone());
            assert_eq!(
                (judged.decision, judged.reason),
                (decision, reason),
                "{tool} {level:?} {votes:?}"
            );
        }
    }

    #[test]
    fn only_a_shell_has_a_harmless_form() {
        for name in ["exec", "EXEC", " exec "] {
            let shell = risk().judge(name, Level::Throttle, Votes::Pass);
            let rewritten = serde_json::to_string(&shell.rewritten).expect("JSON");
            assert_eq!(rewritten, r#"{"command":"","dry_run":true}"#, "{name:?}");
        }
        let search = risk().judge("search", Level::Throttle, Votes::Pass);
        assert_eq!(search.rewritten, None);
    }

    #[test]
    fn an_empty_command_is_run_by_nobody_who_did_not_ask_for_it() {
        let agents = Risk::new(["exec", "bash"], true, false);
        for name in ["exec", "Bash"] {
            let judged = agents.judge(name, Level::Throttle, Votes::Pass);
            assert_eq!(
                (judged.decision, judged.reason, judged.rewritten),
                (Decision::Deny, ReasonCode::UnsafeRewrite, None),
                "{name}"
            );
        }
    }

    #[test]
    fn length_never_weakens_what_stops_an_output() {
        use OutputDecision as O;
        for (level, too_long, decision) in [
            (Level::Clean, false, O::Allow),
            (Level::Clean, true, O::Redact),
            (Level::Throttle, false, O::Redact),
            (Level::Throttle, true, O::Redact),
            (Level::Escalate, true, O::RequireHuman),
            (Level::Freeze, true, O::Block),
        ] {
            assert_eq!(
                judge_output(level, too_long).0,
                decision,
                "{level:?} {too_long}"
            );
        }
    }
}
