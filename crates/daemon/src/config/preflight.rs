//! The settings of the gate for agents.

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use evidenceos_access::{Roles, Tokens, token_problem};
use evidenceos_gate::{PreflightConfig, RateLimit};
use evidenceos_kernel::probe::{Rules, Thresholds};

use super::{Settings, secret_files};

/// The largest body that may be configured: 1 MiB.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Seconds of a day.
const DAY_S: u64 = 24 * 60 * 60;

/// The gate of these settings, with defaults for those that are missing.
pub(super) fn gate(settings: &Settings, problems: &mut Vec<String>) -> PreflightConfig {
    let default = PreflightConfig::of(settings.probe_profile.unwrap_or_default());
    let max_body_bytes = settings
        .preflight_max_body_bytes
        .unwrap_or(default.max_body_bytes);
    if !(256..=MAX_BODY_BYTES).contains(&max_body_bytes) {
        problems.push(format!(
            "--preflight-max-body-bytes {max_body_bytes}: must be from 256 to {MAX_BODY_BYTES}"
        ));
    }
    if settings.preflight_timeout_ms == Some(0) {
        problems.push("--preflight-timeout-ms must be at least 1".to_owned());
    }
    if settings.decisions_keep_days == Some(0) {
        problems.push("--decisions-keep-days must be at least 1".to_owned());
    }
    let millis = |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
    PreflightConfig {
        max_body_bytes,
        token: token(settings, problems),
        fail_open_for_low_risk: settings
            .preflight_fail_open_for_low_risk
            .unwrap_or(default.fail_open_for_low_risk),
        high_risk_tools: settings
            .preflight_high_risk_tools
            .as_deref()
            .map_or(default.high_risk_tools, tools),
        rewrites_shells: default.rewrites_shells,
        guards_against_destruction: default.guards_against_destruction,
        timeout: millis(settings.preflight_timeout_ms, default.timeout),
        rate_limit: rate_limit(
            "--preflight-rate-limit-rps",
            settings.preflight_rate_limit_rps.as_deref(),
            default.rate_limit,
            problems,
        ),
        global_rate_limit: rate_limit(
            "--preflight-global-rate-limit-rps",
            settings.preflight_global_rate_limit_rps.as_deref(),
            default.global_rate_limit,
            problems,
        ),
        strict_hash: settings
            .preflight_strict_hash
            .unwrap_or(default.strict_hash),
        max_output_bytes: settings
            .postflight_default_max_output_bytes
            .unwrap_or(default.max_output_bytes),
        preview_chars: settings
            .postflight_preview_chars
            .unwrap_or(default.preview_chars),
        durable: settings.decisions_durable.unwrap_or(default.durable),
        keep: settings.decisions_keep_days.map_or(default.keep, |days| {
            Duration::from_secs(days.saturating_mul(DAY_S))
        }),
        probe_tool_calls: tool_calls(settings, default.probe_tool_calls, problems),
        probe_claims: claims(settings, problems),
        // An operator that sets the levels means all of them, freezing included.
        freezes_claimants: default.freezes_claimants || settings.probe_claims.is_some(),
        probe_retry_after: millis(
            settings.probe_throttle_retry_after_ms,
            default.probe_retry_after,
        ),
    }
}

/// Names of tools, separated by commas.
fn tools(text: &str) -> BTreeSet<String> {
    text.split(',')
        .map(str::trim)
        .filter(|tool| !tool.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A rate in calls a second: a number, or `off`.
fn rate_limit(
    flag: &str,
    text: Option<&str>,
    default: RateLimit,
    problems: &mut Vec<String>,
) -> RateLimit {
    match text {
        None => default,
        Some("off") => RateLimit::Off,
        Some(text) => match text.parse::<u32>() {
            Ok(rps) => NonZeroU32::new(rps).map_or(RateLimit::Nothing, RateLimit::PerSecond),
            Err(error) => {
                problems.push(format!(
                    "{flag} {text:?}: {error}; give a number of calls a second, or \"off\""
                ));
                default
            }
        },
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

fn tool_calls(settings: &Settings, default: Rules, problems: &mut Vec<String>) -> Rules {
    let own = [
        settings.probe_throttle_total,
        settings.probe_throttle_unique_semantic,
        settings.probe_throttle_distinct_topics,
        settings.probe_escalate_total,
        settings.probe_escalate_unique_semantic,
        settings.probe_escalate_distinct_topics,
        settings.probe_freeze_total,
        settings.probe_freeze_unique_semantic,
        settings.probe_freeze_distinct_topics,
    ];
    // If an operator sets levels but no profile, the missing levels are the published ones, as before there
    // were profiles.
    let default = match settings.probe_profile {
        None if own.iter().any(Option::is_some) => Rules::TOOL_CALLS,
        _ => default,
    };
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
        ..default
    };
    if let Err(error) = rules.check() {
        // The problem stops the start, so the default never serves in place of the requested rules.
        problems.push(format!("--probe-…: {error}"));
        return default;
    }
    rules
}

/// `off`, or three levels separated by commas, each as `total/hashes/topics`.
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
        ..Rules::CLAIMS
    };
    if let Err(error) = rules.check() {
        problems.push(format!("--probe-claims {text:?}: {error}"));
    }
    Some(rules)
}
