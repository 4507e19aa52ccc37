//! Bodies of the gate for agents.

use evidenceos_gate::preflight::parse::ToolCall;
use evidenceos_kernel::id::Digest;
use serde_json::{Value, json};

/// Whatever comes is a call or a refusal, and a call that was read is read the same from its own canonical form.
pub fn check(body: &[u8]) {
    let Ok(call) = ToolCall::parse(body, false) else {
        assert!(ToolCall::parse(body, true).is_err(), "strict takes less");
        return;
    };
    assert!((1..=128).contains(&call.tool_name.len()));
    assert_eq!(call.params_hash, Digest::of(&call.canonical_params));
    let params: Value = serde_json::from_slice(&call.canonical_params).expect("canonical JSON");
    let again = json!({
        "toolName": call.tool_name,
        "params": params,
        "paramsHash": call.params_hash.to_hex(),
        "sessionId": call.session_id,
        "agentId": call.agent_id,
    });
    let again = ToolCall::parse(again.to_string().as_bytes(), true).expect("what was read");
    assert_eq!(again.canonical_params, call.canonical_params);
    assert_eq!(again.session_id, call.session_id);
}
