//! Decisions before they become records: on a call, on its output, on a module.

use evidenceos_access::Principal;
use evidenceos_kernel::{
    decision::{DecisionId, DecisionRecord, Gate},
    id::Digest,
};

use super::{calls::Called, hash_of, judge::Judgement, parse::ToolCall, wire::OutputVerdict};

/// A decision to record.
pub(super) struct Draft<'d> {
    gate: Gate,
    principal: &'d Principal,
    tool_name: &'d str,
    params_hash: Digest,
    session_id: Option<&'d str>,
    agent_id: Option<&'d str>,
    decision: &'static str,
    reason: &'d str,
    policy: Option<(String, u16)>,
    output_hash: Option<Digest>,
    reply_receipt: Option<Digest>,
    preflight_receipt: Option<Digest>,
    policies: Digest,
}

impl<'d> Draft<'d> {
    fn new(
        gate: Gate,
        principal: &'d Principal,
        tool_name: &'d str,
        params_hash: Digest,
        decision: &'static str,
        reason: &'d str,
    ) -> Self {
        Self {
            gate,
            principal,
            tool_name,
            params_hash,
            session_id: None,
            agent_id: None,
            decision,
            reason,
            policy: None,
            output_hash: None,
            reply_receipt: None,
            preflight_receipt: None,
            policies: Digest([0; 32]),
        }
    }

    /// The decision on a call that was judged under the policies with this digest.
    pub(super) fn preflight(
        principal: &'d Principal,
        call: &'d ToolCall,
        judged: &Judgement,
        policies: Digest,
    ) -> Self {
        let (decision, reason) = (judged.decision.word(), judged.reason.word());
        Self {
            session_id: call.session_id.as_deref(),
            agent_id: call.agent_id.as_deref(),
            policy: judged.policy.clone(),
            policies,
            ..Self::new(
                Gate::Preflight,
                principal,
                &call.tool_name,
                call.params_hash,
                decision,
                reason,
            )
        }
    }

    pub(super) fn postflight(
        principal: &'d Principal,
        called: &'d Called,
        answer: &OutputVerdict,
        receipt: Digest,
    ) -> Self {
        Self {
            session_id: called.session_id.as_deref(),
            agent_id: called.agent_id.as_deref(),
            output_hash: called.output_hash,
            reply_receipt: Some(receipt),
            preflight_receipt: called.preflight_receipt,
            ..Self::new(
                Gate::Postflight,
                principal,
                &called.tool_name,
                called.params_hash,
                answer.decision.word(),
                answer.reason.unwrap_or("clean"),
            )
        }
    }

    pub(super) fn admission(principal: &'d Principal, module: Digest, admissible: bool) -> Self {
        let (decision, reason) = if admissible {
            ("ALLOW", "ADMISSIBLE")
        } else {
            ("DENY", "INADMISSIBLE")
        };
        Self::new(
            Gate::Admission,
            principal,
            "aspec_admit",
            module,
            decision,
            reason,
        )
    }

    /// The record without its number and salt, which the recorder assigns.
    pub(super) fn record(self, decided_unix_ms: u64) -> DecisionRecord {
        DecisionRecord {
            id: DecisionId::default(),
            gate: self.gate,
            decided_unix_ms,
            owner: self.principal.caller.tag,
            tool_name: self.tool_name.to_owned(),
            params_hash: self.params_hash,
            session_hash: hash_of(self.session_id),
            agent_hash: hash_of(self.agent_id),
            decision: self.decision.to_owned(),
            reason: self.reason.to_owned(),
            policies: self.policies,
            policy: self.policy,
            output_hash: self.output_hash,
            reply_receipt: self.reply_receipt,
            preflight_receipt: self.preflight_receipt,
            salt: Default::default(),
        }
    }
}
