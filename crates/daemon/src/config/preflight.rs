//! The gate for agents: what it takes for granted, how much it bears, what it remembers.

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use evidenceos_access::{Roles, Tokens, token_problem};
use evidenceos_kernel::probe::{Rules, Thresholds};

use super::{Settings, secret_files};

/// Tools that can do harm, unless others are named.
const HIGH_RISK: &str = "exec,shell.exec,fs.write,fs.delete_tree,email.send,payment.charge";
/// The largest body that may be configured: 1 MiB.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Which decisions are durable before they are answered.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum DurableDecisions {
    /// All of them.
    All,
    /// Those that stop something, and those about tools that can do harm.
    Guarded,
}

/// The gate for agents.
#[derive(Debug, Clone)]
pub struct PreflightConfig {
    /// The largest body of a tool call, in bytes.
    pub max_body_bytes: usize,
    /// A token that is needed on the HTTP port, beside or instead of other credentials.
    pub token: Option<Tokens>,
    /// Whether a tool that can do no harm is let through where nothing could be decided.
    pub fail_open_for_low_risk: bool,
    /// Tools that can do harm.
    pub high_risk_tools: BTreeSet<String>,
    /// How long a decision may take.
    pub timeout: Duration,
    /// Decisions a second of one principal; none: as many as it likes.
    pub rate_limit: RateLimit,
    /// Decisions a second of all together.
    pub global_rate_limit: RateLimit,
    /// Whether a `paramsHash` that is not ours is an error.
    pub strict_hash: bool,
    /// The longest output of a tool that is let through as it is, in bytes of JSON.
    pub max_output_bytes: usize,
    /// Characters that are shown of a longer one.
    pub preview_chars: usize,
    /// Which decisions are durable before they are answered.
    pub durable: DurableDecisions,
    /// How long records of decisions are kept.
    pub keep: Duration,
    /// When tool calls are probing.
    pub probe_tool_calls: Rules,
    /// When claims are probing; none: never.
    pub probe_claims: Option<Rules>,
    /// When a throttled caller may try again.
    pub probe_retry_after: Duration,
}

/// How many a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit {
    /// As many as there are.
    Off,
    /// So many, and as many at once.
    PerSecond(NonZeroU32),
    /// Nothing is let through.
    Nothing,
}

impl RateLimit {
    fn new(flag: &str, text: Option<&str>, default: Self, problems: &mut Vec<String>) -> Self {
        match text {
            None => default,
            Some("off") => Self::Off,
            Some(text) => match text.parse::<u32>() {
                Ok(rps) => NonZeroU32::new(rps).map_or(Self::Nothing, Self::PerSecond),
                Err(error) => {
                    problems.push(format!(
                        "{flag} {text:?}: {error}; give a number of calls a second, or \"off\""
                    ));
                    default
                }
            },
        }
    }
}

impl Default for PreflightConfig {
    fn default() -> Self {
        Self::new(&Settings::default(), &mut Vec::new())
    }
}

impl PreflightConfig {
    pub(super) fn new(settings: &Settings, problems: &mut Vec<String>) -> Self {
        let fifty = NonZeroU32::new(50).map_or(RateLimit::Off, RateLimit::PerSecond);
        let tools = settings
            .preflight_high_risk_tools
            .as_deref()
            .unwrap_or(HIGH_RISK);
        let max_body_bytes = settings.preflight_max_body_bytes.unwrap_or(16_384);
        if !(256..=MAX_BODY_BYTES).contains(&max_body_bytes) {
            problems.push(format!(
                "--preflight-max-body-bytes {max_body_bytes}: must be from 256 to {MAX_BODY_BYTES}"
            ));
        }
        let timeout_ms = settings.preflight_timeout_ms.unwrap_or(120);
        if timeout_ms == 0 {
            problems.push("--preflight-timeout-ms must be at least 1".to_owned());
        }
        let keep_days = settings.decisions_keep_days.unwrap_or(30);
        if keep_days == 0 {
            problems.push("--decisions-keep-days must be at least 1".to_owned());
        }
        Self {
            max_body_bytes,
            token: token(settings, problems),
            fail_open_for_low_risk: settings.preflight_fail_open_for_low_risk.unwrap_or(true),
            high_risk_tools: tools
                .split(',')
                .map(str::trim)
                .filter(|tool| !tool.is_empty())
                .map(str::to_owned)
                .collect(),
            timeout: Duration::from_millis(timeout_ms),
            rate_limit: RateLimit::new(
                "--preflight-rate-limit-rps",
                settings.preflight_rate_limit_rps.as_deref(),
                fifty,
                problems,
            ),
            global_rate_limit: RateLimit::new(
                "--preflight-global-rate-limit-rps",
                settings.preflight_global_rate_limit_rps.as_deref(),
                RateLimit::Off,
                problems,
            ),
            strict_hash: settings.preflight_strict_hash.unwrap_or(false),
            max_output_bytes: settings
                .postflight_default_max_output_bytes
                .unwrap_or(4_096),
            preview_chars: settings.postflight_preview_chars.unwrap_or(256),
            durable: settings
                .decisions_durable
                .unwrap_or(DurableDecisions::Guarded),
            keep: Duration::from_secs(keep_days.saturating_mul(24 * 60 * 60)),
            probe_tool_calls: tool_calls(settings, problems),
            probe_claims: claims(settings, problems),
            probe_retry_after: Duration::from_millis(
                settings.probe_throttle_retry_after_ms.unwrap_or(3_000),
            ),
        }
    }

    /// Whether the HTTP port knows its callers by a token of its own.
    #[must_use]
    pub fn authenticates(&self) -> bool {
        self.token.is_some()
    }
}

fn token(settings: &Settings, problems: &mut Vec<String>) -> Option<Tokens> {
    let flag = "--preflight-require-bearer-token";
    let token = match (
        &settings.preflight_require_bearer_token,
        &settings.preflight_require_bearer_token_file,
    ) {
        (Some(_), Some(_)) => {
            problems.push(format!("{flag} and {flag}-file are both given; keep one"));
            return None;
        }
        (Some(token), None) => zeroize::Zeroizing::new(token.clone()),
        (None, Some(path)) => match secret_files::read(path) {
            Ok(token) => token,
            Err(problem) => {
                problems.push(format!("{flag}-file {problem}"));
                return None;
            }
        },
        (None, None) => return None,
    };
    let token = token.trim();
    if let Some(problem) = token_problem(token) {
        problems.push(format!("{flag}: {problem}"));
        return None;
    }
    let mut tokens = Tokens::default();
    tokens.add(token.as_bytes(), Roles::SUBMITTER);
    Some(tokens)
}

fn tool_calls(settings: &Settings, problems: &mut Vec<String>) -> Rules {
    let default = Rules::TOOL_CALLS;
    let level = |given: [Option<u32>; 3], default: Thresholds| Thresholds {
        total: given[0].unwrap_or(default.total),
        distinct_hashes: given[1].unwrap_or(default.distinct_hashes),
        distinct_topics: given[2].unwrap_or(default.distinct_topics),
    };
    let rules = Rules {
        window_ms: settings.probe_window_ms.unwrap_or(default.window_ms),
        throttle: level(
            [
                settings.probe_throttle_total,
                settings.probe_throttle_unique_semantic,
                settings.probe_throttle_distinct_topics,
            ],
            default.throttle,
        ),
        escalate: level(
            [
                settings.probe_escalate_total,
                settings.probe_escalate_unique_semantic,
                settings.probe_escalate_distinct_topics,
            ],
            default.escalate,
        ),
        freeze: level(
            [
                settings.probe_freeze_total,
                settings.probe_freeze_unique_semantic,
                settings.probe_freeze_distinct_topics,
            ],
            default.freeze,
        ),
    };
    if let Err(error) = rules.check() {
        // The problem stops the start, so that the default never serves in place of what was asked
        // for.
        problems.push(format!("--probe-…: {error}"));
        return default;
    }
    rules
}

/// `off`, or three levels as `total/hashes/topics`, with commas between them.
fn claims(settings: &Settings, problems: &mut Vec<String>) -> Option<Rules> {
    let text = match settings.probe_claims.as_deref() {
        None => return Some(Rules::CLAIMS),
        Some("off") => return None,
        Some(text) => text,
    };
    let level = |text: &str| {
        let mut numbers = text.split('/').map(|number| number.trim().parse().ok());
        let level = Thresholds {
            total: numbers.next()??,
            distinct_hashes: numbers.next()??,
            distinct_topics: numbers.next()??,
        };
        numbers.next().is_none().then_some(level)
    };
    let levels: Option<Vec<Thresholds>> = text.split(',').map(level).collect();
    let [throttle, escalate, freeze] = levels.as_deref().unwrap_or_default() else {
        problems.push(format!(
            "--probe-claims {text:?}: give \"off\", or calls/different/holdouts to throttle, escalate and freeze, as 600/300/64,1200/600/128,2400/1200/256"
        ));
        return None;
    };
    let rules = Rules {
        window_ms: settings.probe_window_ms.unwrap_or(Rules::CLAIMS.window_ms),
        throttle: *throttle,
        escalate: *escalate,
        freeze: *freeze,
    };
    if let Err(error) = rules.check() {
        problems.push(format!("--probe-claims {text:?}: {error}"));
    }
    Some(rules)
}
