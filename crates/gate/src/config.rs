//! The gate's settings: its lists of tools, its limits, and what it remembers.

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use clap::ValueEnum;
use evidenceos_access::Tokens;
use evidenceos_kernel::probe::Rules;
use serde::{Deserialize, Serialize};

/// High-risk tools by the published list.
const PUBLISHED_HIGH_RISK: [&str; 6] = [
    "exec",
    "shell.exec",
    "fs.write",
    "fs.delete_tree",
    "email.send",
    "payment.charge",
];
/// High-risk tools of agents, by the agents' own names for them.
const AGENTS_HIGH_RISK: [&str; 10] = [
    "Bash",
    "PowerShell",
    "exec_command",
    "shell",
    "sh",
    "terminal",
    "run_command",
    "Write",
    "Edit",
    "apply_patch",
];
/// Seconds of a day.
const DAY_S: u64 = 24 * 60 * 60;
/// The default rate of one principal, in decisions a second.
const FIFTY: NonZeroU32 = NonZeroU32::new(50).expect("not zero");

/// Which decisions are durable before they are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurableDecisions {
    /// All of them.
    All,
    /// Decisions that stop something, and decisions about tools that can do harm.
    Guarded,
}

/// The callers that the gate's defaults suit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeProfile {
    /// Agents that work all day: calls are counted and not compared, bodies may contain files, and commands that
    /// destroy a machine or a home are denied.
    #[default]
    Agents,
    /// The numbers of the published daemon.
    Published,
}

/// The gate for agents.
#[derive(Debug, Clone)]
pub struct PreflightConfig {
    /// The largest body of a tool call, in bytes.
    pub max_body_bytes: usize,
    /// Bearer tokens for the HTTP port, beside or instead of other credentials.
    pub token: Option<Tokens>,
    /// Whether a tool that can do no harm is allowed if nothing could be decided.
    pub fail_open_for_low_risk: bool,
    /// Tools that can do harm, by name.
    pub high_risk_tools: BTreeSet<String>,
    /// Whether a throttled shell gets an empty command instead of a denial.
    pub rewrites_shells: bool,
    /// Whether commands that destroy a machine or a home are denied without a policy module.
    pub guards_against_destruction: bool,
    /// How long a decision may take.
    pub timeout: Duration,
    /// Decisions a second of one principal.
    pub rate_limit: RateLimit,
    /// Decisions a second of all principals together.
    pub global_rate_limit: RateLimit,
    /// Whether a `paramsHash` that differs from the gate's own is an error.
    pub strict_hash: bool,
    /// The longest output of a tool that passes unshortened, in bytes of JSON.
    pub max_output_bytes: usize,
    /// Characters of a longer output that are shown.
    pub preview_chars: usize,
    /// Which decisions are durable before they are answered.
    pub durable: DurableDecisions,
    /// How long records of decisions are kept.
    pub keep: Duration,
    /// The rules by which tool calls count as probing.
    pub probe_tool_calls: Rules,
    /// The rules by which claims count as probing; `None`: claims are not counted.
    pub probe_claims: Option<Rules>,
    /// Whether the daemon freezes a caller that probes with claims; otherwise it only throttles, however many claims
    /// there are.
    pub freezes_claimants: bool,
    /// When a throttled caller may try again.
    pub probe_retry_after: Duration,
}

/// A limit of decisions a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit {
    /// No limit.
    Off,
    /// This many a second, and as many at once.
    PerSecond(NonZeroU32),
    /// Every call is refused.
    Nothing,
}

impl Default for PreflightConfig {
    /// The defaults of a gate without settings.
    fn default() -> Self {
        let agents = AGENTS_HIGH_RISK.map(str::to_owned);
        let published = Self::published();
        Self {
            max_body_bytes: 1 << 20,
            high_risk_tools: published
                .high_risk_tools
                .into_iter()
                .chain(agents)
                .collect(),
            rewrites_shells: false,
            guards_against_destruction: true,
            max_output_bytes: 1 << 20,
            probe_tool_calls: Rules::AGENT_CALLS,
            // Budgets bound what claims can learn. A class that shares one token, or a nightly run, must only
            // wait.
            freezes_claimants: false,
            ..Self::published()
        }
    }
}

impl PreflightConfig {
    /// The defaults of this profile.
    #[must_use]
    pub fn of(profile: ProbeProfile) -> Self {
        match profile {
            ProbeProfile::Agents => Self::default(),
            ProbeProfile::Published => Self::published(),
        }
    }

    /// The published defaults.
    fn published() -> Self {
        Self {
            max_body_bytes: 16_384,
            token: None,
            fail_open_for_low_risk: true,
            high_risk_tools: PUBLISHED_HIGH_RISK.map(str::to_owned).into(),
            rewrites_shells: true,
            guards_against_destruction: false,
            timeout: Duration::from_millis(120),
            rate_limit: RateLimit::PerSecond(FIFTY),
            global_rate_limit: RateLimit::Off,
            strict_hash: false,
            max_output_bytes: 4_096,
            preview_chars: 256,
            durable: DurableDecisions::Guarded,
            keep: Duration::from_secs(30 * DAY_S),
            probe_tool_calls: Rules::TOOL_CALLS,
            probe_claims: Some(Rules::CLAIMS),
            freezes_claimants: true,
            probe_retry_after: Duration::from_secs(3),
        }
    }

    /// Whether the HTTP port authenticates callers by its own token.
    #[must_use]
    pub fn authenticates(&self) -> bool {
        self.token.is_some()
    }
}
