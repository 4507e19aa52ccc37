//! The handling of one request: authenticate the caller, apply the rate, parse, decide, record.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{extract::Request, http::StatusCode};
use evidenceos_access::{Misused, Principal};
use evidenceos_kernel::{
    id::Digest,
    probe::{Call, Level, Observed},
};
use evidenceos_telemetry::trace::AUDIT;
use serde_json::json;

use super::{
    Api, Known, NoBody, SOON_S, Unknown,
    draft::Draft,
    guard::{GUARD, GUARD_CODE, destroys},
    judge::{Judgement, Votes, judge_output},
    parse::{self, Body, Malformed, ToolCall},
    read, says_too_large, short, status_of,
    wire::{
        Answer, BudgetDelta, Decision, OutputDecision, OutputVerdict, ReasonCode, ToolDecision,
        Truncated,
    },
};
use crate::{
    policies::{Policies, Verdict, Veto, preflight_input},
    recorder::{NotNoted, Noted},
};

/// The session of calls that do not name one.
const NO_SESSION: &str = "no-session";

pub(super) type Refused<T> = Answer<T>;

/// How much the answer depends on a decision's record.
#[derive(Clone, Copy)]
pub(super) enum Care {
    /// The answer waits until the record is durable.
    Durable,
    /// Without a record, the call is stopped.
    Recorded,
    /// If too many records wait, the answer goes out without one.
    Spare,
}

impl Care {
    pub(super) fn of(durable: bool, goes_on: bool) -> Self {
        match (durable, goes_on) {
            (true, _) => Self::Durable,
            (false, false) => Self::Recorded,
            (false, true) => Self::Spare,
        }
    }
}

impl Api {
    pub(super) async fn preflight(&self, request: Request) -> Answer<ToolDecision> {
        self.try_preflight(request)
            .await
            .unwrap_or_else(|refused| refused)
    }

    async fn try_preflight(
        &self,
        request: Request,
    ) -> Result<Answer<ToolDecision>, Refused<ToolDecision>> {
        if says_too_large(request.headers(), self.config.max_body_bytes) {
            return Err(self.malformed(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"));
        }
        let Known {
            principal,
            headers,
            body,
        } = self.known(request).map_err(|who| self.unknown(who))?;
        let request_id = parse::request_id(&headers).map_err(|wrong| self.invalid(wrong))?;
        // The rate comes before the body: a caller over it costs no memory.
        self.rates
            .take(&principal.caller.tag)
            .map_err(|wait| self.rate_limited(wait))?;
        let bytes = read(body, self.config.max_body_bytes)
            .await
            .map_err(|why| self.unread(why))?;
        let call = ToolCall::parse(&bytes, self.config.strict_hash)
            .map_err(|wrong| self.invalid(wrong))?;
        if self.risk.is_high(&call.tool_name) && is_blank(call.session_id.as_deref()) {
            self.counts.failed("session_required");
            let detail = "a tool that can do harm is called within a session: send sessionId";
            let body = ToolDecision {
                reason_detail: principal.roles.auditor.then_some(detail.into()),
                ..ToolDecision::bare(Decision::Deny, ReasonCode::SessionRequired)
            };
            return Err(Answer::new(StatusCode::BAD_REQUEST, body));
        }
        let answer = self.judge(&principal, &call).await;
        // Names and digests only: a tool's parameters belong to the caller.
        tracing::debug!(
            target: AUDIT,
            request_id,
            caller = %principal.caller.tag,
            tool = call.tool_name,
            decision = answer.body.decision.word(),
            reason = answer.body.reason_code.word(),
            decision_id = answer.body.decision_id,
            "preflight"
        );
        Ok(answer)
    }

    /// The answer to a request without a valid credential, or with a signature for another request.
    fn unknown(&self, unknown: Unknown) -> Refused<ToolDecision> {
        match unknown {
            Unknown::Caller => {
                let body = ToolDecision::bare(Decision::Deny, ReasonCode::Unauthorized);
                Answer {
                    challenge: true,
                    ..Answer::new(StatusCode::UNAUTHORIZED, body)
                }
            }
            Unknown::Signature(misused) => self.misused(misused),
        }
    }

    /// The answer to a body that was not read.
    fn unread(&self, why: NoBody) -> Refused<ToolDecision> {
        match why {
            NoBody::Misused(misused) => self.misused(misused),
            NoBody::TooLarge => self.malformed(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            NoBody::Slow => self.malformed(StatusCode::REQUEST_TIMEOUT, Malformed::Slow.word()),
            NoBody::Broken => self.malformed(StatusCode::BAD_REQUEST, "broken"),
        }
    }

    /// Judges a well-formed call within its rate.
    async fn judge(&self, principal: &Principal, call: &ToolCall) -> Answer<ToolDecision> {
        let session = call.session_id.as_deref();
        let observed = self.observe(principal, session, &call.tool_name, &call.params_hash);
        // One set serves the whole call: a reload must not mix the digest of one set with the votes
        // of another.
        let policies = self.parts.policies.load_full();
        let policies_digest = policies.digest();
        let goes_on = self
            .risk
            .lets_through(&call.tool_name, !policies.oracles().is_empty());
        // A destructive command is denied before a policy is asked: no policy could allow it.
        let votes = if self.stops_destruction(call) {
            Votes::Reject {
                oracle: GUARD.to_owned(),
                code: GUARD_CODE,
            }
        } else {
            self.votes(policies, call).await
        };
        let judged = self
            .risk
            .judge(&call.tool_name, self.level(&observed), votes);
        if judged.decision == Decision::Deny {
            self.probes.denied(&principal.caller.tag);
        }
        let mut body = ToolDecision {
            reason_detail: detail_of(&judged, principal),
            rewritten_params: judged.rewritten.clone(),
            budget_delta: Some(BudgetDelta {
                spent: 1,
                remaining: self.remaining(&observed, observed.operation_calls),
            }),
            params_hash: Some(call.params_hash.to_hex()),
            ..ToolDecision::bare(judged.decision, judged.reason)
        };
        let durable = self.must_be_durable(&call.tool_name, judged.decision.stops());
        let noted = self
            .note(
                Care::of(durable, goes_on),
                Draft::preflight(principal, call, &judged, policies_digest),
            )
            .await;
        match noted {
            Ok(noted) => {
                body.decision_id = Some(noted.id.to_string());
                body.receipt_hash = Some(noted.leaf.to_hex());
                Answer::new(StatusCode::OK, body)
            }
            Err(_) if !durable && goes_on => Answer::new(StatusCode::OK, body),
            Err(why) => self.unrecorded(goes_on, judged.decision, why),
        }
    }

    /// Whether the gate guards against destructive commands and this call runs one.
    fn stops_destruction(&self, call: &ToolCall) -> bool {
        self.config.guards_against_destruction
            && self.risk.is_shell(&call.tool_name)
            && serde_json::from_slice(&call.canonical_params).is_ok_and(|params| destroys(&params))
    }

    /// The answer if a decision had to be recorded and was not; `goes_on` says whether the tool is
    /// then allowed.
    fn unrecorded(&self, goes_on: bool, decision: Decision, why: NotNoted) -> Answer<ToolDecision> {
        self.counts.failed(match why {
            NotNoted::Full => "record_queue_full",
            NotNoted::Stopping => "stopping",
            NotNoted::NotDurable => "not_durable",
        });
        if goes_on && !decision.stops() {
            let body = ToolDecision::bare(Decision::Allow, ReasonCode::Unavailable);
            return Answer::new(StatusCode::OK, body);
        }
        let decision = match decision {
            Decision::Deny => Decision::Deny,
            Decision::Allow | Decision::Downgrade | Decision::RequireHuman => {
                Decision::RequireHuman
            }
        };
        let body = ToolDecision::bare(decision, ReasonCode::Unavailable);
        Answer::new(StatusCode::SERVICE_UNAVAILABLE, body).retry_after(SOON_S)
    }

    /// A signature that was used for another request stops the tool, as an invalid one does.
    fn misused(&self, misused: Misused) -> Refused<ToolDecision> {
        self.counts.failed("signature_misused");
        let reason = match misused {
            Misused::OtherRequest | Misused::TooLate => ReasonCode::Unauthorized,
            Misused::Full => ReasonCode::RateLimited,
        };
        let body = ToolDecision {
            reason_detail: Some(misused.text().into()),
            ..ToolDecision::bare(Decision::Deny, reason)
        };
        let answer = Answer::new(status_of(misused), body);
        match misused {
            Misused::Full => answer.retry_after(SOON_S),
            Misused::OtherRequest | Misused::TooLate => Answer {
                challenge: true,
                ..answer
            },
        }
    }

    fn invalid(&self, wrong: Malformed) -> Refused<ToolDecision> {
        Answer {
            detail: Some(wrong.sentence()),
            ..self.malformed(StatusCode::BAD_REQUEST, wrong.word())
        }
    }

    fn malformed(&self, status: StatusCode, kind: &'static str) -> Refused<ToolDecision> {
        self.counts.failed(kind);
        let body = ToolDecision::bare(Decision::Deny, ReasonCode::InvalidInput);
        Answer::new(status, body)
    }

    /// Published clients carry a call out after `DOWNGRADE` without other parameters, so an
    /// undecided call is denied: calling faster must not be a way past a policy.
    fn rate_limited(&self, wait: Duration) -> Refused<ToolDecision> {
        self.counts.failed("rate_limited");
        let body = ToolDecision::bare(Decision::Deny, ReasonCode::RateLimited);
        Answer::new(StatusCode::TOO_MANY_REQUESTS, body).retry_after(whole_seconds(wait))
    }

    /// Counts a call of a tool.
    fn observe(
        &self,
        principal: &Principal,
        session: Option<&str>,
        tool: &str,
        asked: &Digest,
    ) -> Observed {
        // Calls without a session share one: leaving it out must not be a way past a session's
        // limit.
        let operation = Digest::of(session.unwrap_or(NO_SESSION).as_bytes());
        let mut name = [0; 16];
        name.copy_from_slice(&operation.0[..16]);
        self.probes.observe(&Call {
            principal: principal.caller.tag,
            operation: name,
            topic: short(&Digest::of(tool.as_bytes())),
            hash: short(asked),
        })
    }

    /// The caller's level. By the published rules, a session with as many calls as freeze a window is
    /// frozen for good.
    fn level(&self, observed: &Observed) -> Level {
        let rules = self.probes.rules();
        if rules.is_for_life && observed.operation_calls >= rules.freeze.total {
            Level::Freeze
        } else {
            observed.level
        }
    }

    /// The remaining calls: of a session's life by the published rules, which count `of_session`; otherwise of
    /// the window.
    fn remaining(&self, observed: &Observed, of_session: u32) -> u64 {
        let rules = self.probes.rules();
        let spent = if rules.is_for_life {
            of_session
        } else {
            observed.calls
        };
        u64::from(rules.freeze.total.saturating_sub(spent))
    }

    /// The policies' votes, within their time. They compute on separate threads: their fuel is
    /// bounded, so a late one ends by itself.
    async fn votes(&self, policies: Arc<Policies>, call: &ToolCall) -> Votes {
        if policies.oracles().is_empty() {
            return Votes::Pass;
        }
        let Ok(permit) = Arc::clone(&self.asking).try_acquire_owned() else {
            self.counts.failed("policy_busy");
            return Votes::Late;
        };
        let input = preflight_input(
            &call.tool_name,
            call.agent_id.as_deref(),
            call.session_id.as_deref(),
            &call.canonical_params,
        );
        let asked = tokio::task::spawn_blocking(move || {
            // The permit stays with the work, even if the call no longer waits: the computation is
            // bounded.
            let _permit = permit;
            policies.decide(&input)
        });
        let vote = |veto: Veto| (veto.oracle_id.to_string(), veto.reason_code.get());
        match tokio::time::timeout(self.config.timeout, asked).await {
            Ok(Ok(Verdict::Approve)) => Votes::Pass,
            Ok(Ok(Verdict::Defer(veto))) => {
                let (oracle, code) = vote(veto);
                Votes::Defer { oracle, code }
            }
            Ok(Ok(Verdict::Reject(veto))) => {
                let (oracle, code) = vote(veto);
                Votes::Reject { oracle, code }
            }
            Ok(Err(panic)) => {
                tracing::error!(%panic, "asking the policies failed");
                Votes::Late
            }
            Err(_elapsed) => {
                self.counts.failed("policy_timeout");
                Votes::Late
            }
        }
    }

    pub(super) async fn note(&self, care: Care, draft: Draft<'_>) -> Result<Noted, NotNoted> {
        let record = draft.record(self.parts.clock.now_unix_ms());
        let patience = self.config.timeout;
        match care {
            Care::Durable => self.parts.recorder.note_durably(patience, record).await,
            Care::Recorded => self.parts.recorder.note_or_wait(patience, record).await,
            Care::Spare => self.parts.recorder.note(record),
        }
    }
}

impl Api {
    pub(super) async fn postflight(&self, request: Request) -> Answer<OutputVerdict> {
        self.try_postflight(request)
            .await
            .unwrap_or_else(|refused| refused)
    }

    async fn try_postflight(
        &self,
        request: Request,
    ) -> Result<Answer<OutputVerdict>, Refused<OutputVerdict>> {
        let max = self.config.max_body_bytes;
        let too_large = || blocked(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large");
        if says_too_large(request.headers(), max) {
            return Err(too_large());
        }
        let misused = |misused| match misused {
            Misused::OtherRequest | Misused::TooLate => {
                blocked(StatusCode::BAD_REQUEST, "signature_used")
            }
            Misused::Full => {
                blocked(StatusCode::TOO_MANY_REQUESTS, "rate_limited").retry_after(SOON_S)
            }
        };
        let Known {
            principal,
            headers,
            body,
        } = self.known(request).map_err(|unknown| match unknown {
            Unknown::Caller => blocked(StatusCode::BAD_REQUEST, "unauthorized"),
            Unknown::Signature(why) => misused(why),
        })?;
        parse::request_id(&headers)
            .map_err(|_| blocked(StatusCode::BAD_REQUEST, "missing_request_id"))?;
        // The tool call is over: only the limit for all callers applies.
        if let Err(wait) = self.rates.take_of_all() {
            let answer = blocked(StatusCode::TOO_MANY_REQUESTS, "rate_limited");
            return Err(answer.retry_after(whole_seconds(wait)));
        }
        let bytes = read(body, max).await.map_err(|no_body| match no_body {
            NoBody::Misused(why) => misused(why),
            NoBody::TooLarge => too_large(),
            NoBody::Slow => blocked(StatusCode::REQUEST_TIMEOUT, "slow"),
            NoBody::Broken => blocked(StatusCode::BAD_REQUEST, "broken"),
        })?;
        let called = Called::parse(&bytes, |tool| self.risk.is_high(tool))
            .map_err(|reason| blocked(StatusCode::BAD_REQUEST, reason))?;
        let asked = called.output_hash.unwrap_or(called.params_hash);
        let session = called.session_id.as_deref();
        let observed = self.observe(&principal, session, &called.tool_name, &asked);
        if !called.has_status {
            return Err(blocked(StatusCode::BAD_REQUEST, "invalid_status"));
        }
        Ok(self.judge_called(&principal, &called, &observed).await)
    }

    async fn judge_called(
        &self,
        principal: &Principal,
        called: &Called,
        observed: &Observed,
    ) -> Answer<OutputVerdict> {
        let output = called.output.as_deref().unwrap_or_default();
        let too_long = output.len() > self.config.max_output_bytes;
        let (decision, reason) = judge_output(observed.level, too_long);
        // A stopped output must not be shown in part either.
        let shows = too_long && decision == OutputDecision::Redact;
        let mut body = OutputVerdict {
            decision,
            reason,
            output_rewrite: shows.then(|| Truncated {
                truncated: true,
                len: output.len() as u64,
                sha256: Digest::of(output.as_bytes()).to_hex(),
                preview: output.chars().take(self.config.preview_chars).collect(),
            }),
            budget_delta: Some(1.0),
            budget_remaining_bits: Some(
                self.remaining(observed, observed.operation_distinct) as f64
            ),
            receipt_hash: String::new(),
            decision_id: None,
        };
        // The receipt covers the answer before the receipt and the decision's number are added to
        // it.
        let receipt = called.receipt(&body);
        let durable = self.must_be_durable(&called.tool_name, decision.stops());
        let draft = Draft::postflight(principal, called, &body, receipt);
        let has_policies = !self.parts.policies.load().oracles().is_empty();
        let goes_on = self.risk.lets_through(&called.tool_name, has_policies);
        match self.note(Care::of(durable, goes_on), draft).await {
            Ok(noted) => body.decision_id = Some(noted.id.to_string()),
            Err(_) if !durable && goes_on => {}
            Err(_) => {
                let answer = blocked(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
                return answer.retry_after(SOON_S);
            }
        }
        body.receipt_hash = receipt.to_hex();
        Answer::new(StatusCode::OK, body)
    }
}

/// The text that explains a decision beside its reason.
fn detail_of(judged: &Judgement, principal: &Principal) -> Option<Cow<'static, str>> {
    if let Some((oracle, code)) = &judged.policy {
        return Some(format!("{oracle} ({code})").into());
    }
    let has_no_form = judged.reason == ReasonCode::UnsafeRewrite && principal.roles.auditor;
    has_no_form.then_some("this tool has no harmless form to be called with instead".into())
}

fn blocked(status: StatusCode, reason: &'static str) -> Answer<OutputVerdict> {
    Answer::new(status, OutputVerdict::blocked(reason))
}

/// Whether no session is given.
fn is_blank(session: Option<&str>) -> bool {
    session.is_none_or(|session| session.trim().is_empty())
}

pub(super) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// A tool call that was made.
pub(super) struct Called {
    pub(super) tool_name: String,
    pub(super) params_hash: Digest,
    /// The hash's text as it was sent, for the receipt.
    params_hash_text: String,
    output_hash_text: Option<String>,
    pub(super) output_hash: Option<Digest>,
    pub(super) preflight_receipt: Option<Digest>,
    pub(super) session_id: Option<String>,
    pub(super) agent_id: Option<String>,
    /// The output as compact JSON.
    output: Option<String>,
    has_status: bool,
}

impl Called {
    /// Parses a body; the error is the reason on the wire.
    fn parse(bytes: &[u8], is_high_risk: impl Fn(&str) -> bool) -> Result<Self, &'static str> {
        let mut body = Body::parse(bytes).map_err(|_| "invalid_json")?;
        let tool_name = parse::tool_name(&mut body).map_err(|_| "invalid_tool_name")?;
        let params = body
            .digest("paramsHash")
            .ok()
            .flatten()
            .ok_or("invalid_params_hash")?;
        let sent = body
            .digest("outputHash")
            .map_err(|_| "invalid_output_hash")?;
        let preflight = body
            .digest("preflightReceiptHash")
            .map_err(|_| "invalid_preflight_receipt_hash")?;
        let session_id = body.name("sessionId").map_err(|_| "invalid_session_id")?;
        if is_high_risk(&tool_name) && is_blank(session_id.as_deref()) {
            return Err("session_required");
        }
        let agent_id = body.text("agentId").map_err(|_| "invalid_json")?;
        let output = body.take("output").map(|output| output.to_string());
        let own = output.as_ref().map(|text| Digest::of(text.as_bytes()));
        let has_status = matches!(
            body.text("status").ok().flatten().as_deref(),
            Some("ok" | "error")
        );
        Ok(Self {
            tool_name,
            params_hash: params.digest,
            params_hash_text: params.text,
            output_hash: sent.as_ref().map(|sent| sent.digest).or(own),
            output_hash_text: sent.map(|sent| sent.text).or(own.map(|own| own.to_hex())),
            preflight_receipt: preflight.map(|hash| hash.digest),
            session_id,
            agent_id,
            output,
            has_status,
        })
    }

    /// The receipt as published: SHA-256 of request and answer as canonical JSON.
    fn receipt(&self, answer: &OutputVerdict) -> Digest {
        let receipt = json!({
            "request": {
                "agentId": self.agent_id,
                "outputHash": self.output_hash_text,
                "paramsHash": self.params_hash_text,
                "sessionId": self.session_id,
                "toolName": self.tool_name,
            },
            "response": answer,
        });
        Digest::of(receipt.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's vector, made by the published daemon.
    #[test]
    fn a_receipt_is_the_published_one() {
        let body = format!(
            r#"{{"toolName":"search.web","sessionId":"s1","paramsHash":"{}","status":"ok","output":{{"ok":true}}}}"#,
            "a".repeat(64)
        );
        let called = Called::parse(body.as_bytes(), |_| false).expect("a call");
        let answer = OutputVerdict {
            decision: OutputDecision::Allow,
            reason: None,
            output_rewrite: None,
            budget_delta: Some(1.0),
            budget_remaining_bits: Some(79.0),
            receipt_hash: String::new(),
            decision_id: None,
        };
        assert_eq!(
            called.receipt(&answer).to_hex(),
            "dd70a4ddd417340a12d83cf752f1b7f5fbba72e064e0556ed1a3d7deb51ed340"
        );
        let output = called.output_hash.expect("computed").to_hex();
        assert!(output.starts_with("4062edaf") && output.ends_with("50f93"));
    }

    #[test]
    fn what_is_wrong_with_a_postflight_has_its_published_word() {
        let hash = "a".repeat(64);
        let with = |fields: &str| format!(r#"{{"toolName":"t","paramsHash":"{hash}",{fields}}}"#);
        for (body, reason) in [
            ("[".to_owned(), "invalid_json"),
            ("{}".to_owned(), "invalid_tool_name"),
            (r#"{"toolName":"t"}"#.to_owned(), "invalid_params_hash"),
            (with(r#""outputHash":"x""#), "invalid_output_hash"),
            (
                with(r#""preflightReceiptHash":"""#),
                "invalid_preflight_receipt_hash",
            ),
            (with(r#""sessionId":"é""#), "invalid_session_id"),
            (with(r#""status":"ok""#), "session_required"),
        ] {
            let refused = Called::parse(body.as_bytes(), |_| true).err();
            assert_eq!(refused, Some(reason), "{body}");
        }
        for (status, has) in [
            (r#""ok""#, true),
            (r#""error""#, true),
            (r#""done""#, false),
            ("1", false),
        ] {
            let body = with(&format!(r#""status":{status}"#));
            let called = Called::parse(body.as_bytes(), |_| false).expect("a call");
            assert_eq!(called.has_status, has, "{status}");
        }
    }
}
