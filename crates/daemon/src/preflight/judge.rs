//! What a tool call is told: the detector's level, the tool's risk and the policies' votes, made
//! one decision. Pure.

use std::collections::BTreeSet;

use evidenceos_kernel::probe::Level;
use serde_json::{Map, Value, json};

use super::wire::{Decision, OutputDecision, ReasonCode};

/// What policies say of a tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Votes {
    /// None objects.
    Pass,
    /// One wants a person to look, or failed.
    Defer {
        /// Which.
        oracle: String,
        /// Its code.
        code: u16,
    },
    /// One rejects.
    Reject {
        /// Which.
        oracle: String,
        /// Its code.
        code: u16,
    },
    /// They took too long.
    Late,
}

/// A decision about a tool call.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// What is to become of it.
    pub decision: Decision,
    /// Why.
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

/// Which tools can do harm, and what is done where nothing can be decided.
#[derive(Debug, Clone)]
pub struct Risk {
    /// Tools that can do harm.
    pub high: BTreeSet<String>,
    /// Whether the others are let through where nothing can be decided.
    pub fail_open_for_low: bool,
}

impl Risk {
    /// Whether a tool can do harm.
    pub fn is_high(&self, tool: &str) -> bool {
        self.high.contains(tool)
    }

    /// Whether a call of a tool goes on where nothing can be decided.
    pub fn lets_through(&self, tool: &str) -> bool {
        self.fail_open_for_low && !self.is_high(tool)
    }

    /// Judges a call.
    pub fn judge(&self, tool: &str, level: Level, votes: Votes) -> Judgement {
        let probed = self.probed(tool, level);
        match votes {
            Votes::Pass => probed,
            Votes::Reject { oracle, code } => Judgement {
                policy: Some((oracle, code)),
                ..Judgement::new(Decision::Deny, ReasonCode::PolicyVeto)
            },
            // What is denied already is not softened.
            Votes::Defer { .. } | Votes::Late if probed.decision == Decision::Deny => probed,
            Votes::Defer { oracle, code } => Judgement {
                policy: Some((oracle, code)),
                ..Judgement::new(Decision::RequireHuman, ReasonCode::PolicyDefer)
            },
            Votes::Late if probed.decision == Decision::Allow && self.lets_through(tool) => {
                Judgement::new(Decision::Allow, ReasonCode::Unavailable)
            }
            Votes::Late => Judgement::new(Decision::RequireHuman, ReasonCode::Unavailable),
        }
    }

    fn probed(&self, tool: &str, level: Level) -> Judgement {
        match level {
            Level::Clean => Judgement::new(Decision::Allow, ReasonCode::ProbeClean),
            Level::Escalate => Judgement::new(Decision::RequireHuman, ReasonCode::ProbeEscalate),
            Level::Freeze => Judgement::new(Decision::Deny, ReasonCode::ProbeFreeze),
            Level::Throttle if !self.is_high(tool) => {
                Judgement::new(Decision::Downgrade, ReasonCode::ProbeThrottle)
            }
            Level::Throttle => match harmless(tool) {
                Some(params) => Judgement {
                    rewritten: Some(params),
                    ..Judgement::new(Decision::Downgrade, ReasonCode::ProbeThrottle)
                },
                None => Judgement::new(Decision::Deny, ReasonCode::UnsafeRewrite),
            },
        }
    }
}

/// Parameters with which a tool does no harm, for the few that have such.
fn harmless(tool: &str) -> Option<Map<String, Value>> {
    if !["exec", "shell.exec"].contains(&tool) {
        return None;
    }
    json!({ "command": "", "dry_run": true })
        .as_object()
        .cloned()
}

/// What is to become of an output, and the word for it.
pub fn judge_output(level: Level, too_long: bool) -> (OutputDecision, Option<&'static str>) {
    match level {
        // Length never weakens what stops an output.
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

    fn risk(fail_open_for_low: bool) -> Risk {
        Risk {
            high: ["exec", "fs.write"].map(str::to_owned).into(),
            fail_open_for_low,
        }
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
            ("search", L::Clean, Votes::Late, D::Allow, R::Unavailable),
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
            let judged = risk(true).judge(tool, level, votes.clone());
            assert_eq!(
                (judged.decision, judged.reason),
                (decision, reason),
                "{tool} {level:?} {votes:?}"
            );
        }
    }

    #[test]
    fn nothing_is_let_through_undecided_where_that_is_not_wanted() {
        let judged = risk(false).judge("search", Level::Clean, Votes::Late);
        assert_eq!(judged.decision, Decision::RequireHuman);
    }

    #[test]
    fn only_a_shell_has_a_harmless_form() {
        let shell = risk(true).judge("exec", Level::Throttle, Votes::Pass);
        let rewritten = serde_json::to_string(&shell.rewritten).expect("JSON");
        assert_eq!(rewritten, r#"{"command":"","dry_run":true}"#);
        let search = risk(true).judge("search", Level::Throttle, Votes::Pass);
        assert_eq!(search.rewritten, None);
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
