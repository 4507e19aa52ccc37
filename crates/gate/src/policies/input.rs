//! The input of oracles: canonical JSON, keys sorted, no white space.
//!
//! Owns the fields. Invariant: no field depends on a label of the sealed part. A settlement is
//! described before its evidence is computed, by what is public or already paid for, so that a veto
//! reveals nothing new.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use evidenceos_kernel::claim::Claim;
use serde::Serialize;

/// A tool call that is about to be made. Fields are in the order of their names.
#[derive(Serialize)]
struct Preflight<'a> {
    agent_id: Option<&'a str>,
    params_canonical_json_b64: String,
    session_id: Option<&'a str>,
    tool_name: &'a str,
}

/// The input for a tool call: `params` is the canonical JSON of its parameters.
#[must_use]
pub fn preflight_input(
    tool_name: &str,
    agent_id: Option<&str>,
    session_id: Option<&str>,
    params: &[u8],
) -> Vec<u8> {
    json(&Preflight {
        agent_id,
        params_canonical_json_b64: BASE64_STANDARD.encode(params),
        session_id,
        tool_name,
    })
}

/// A run that has ended and is about to be judged.
#[derive(Debug)]
pub struct Settling<'a> {
    /// The claim, which was committed and sealed.
    pub claim: &'a Claim,
    /// The holdout's name.
    pub holdout_ref: &'a str,
    /// The holdout's significance level, in millionths; the stricter of it and the claim's applies.
    pub holdout_alpha_micros: u32,
    /// The guest's emitted output.
    pub output: &'a [u8],
    /// Questions that the guest asked.
    pub oracle_calls: u32,
    /// The charge of its answers, in millionths of a bit.
    pub answers_charged_microbits: u64,
    /// Fuel used, in units of fuel.
    pub fuel: u64,
    /// Memory at its end, in Wasm pages.
    pub memory_pages: u64,
}

/// Fields are in the order of their names.
#[derive(Serialize)]
struct Settlement<'a> {
    alpha_micros: u32,
    answers_charged_microbits: u64,
    claim_id: String,
    fuel: u64,
    holdout_id: String,
    holdout_ref: &'a str,
    kind: &'static str,
    lane: &'static str,
    memory_pages: u64,
    oracle_calls: u32,
    output_b64: String,
    owner_tag: String,
    topic_id: String,
    wasm_hash: Option<String>,
}

/// The input for a settlement.
#[must_use]
pub fn settlement_input(settling: &Settling<'_>) -> Vec<u8> {
    let claim = settling.claim;
    let terms = &claim.terms;
    json(&Settlement {
        alpha_micros: terms.alpha_micros.min(settling.holdout_alpha_micros),
        answers_charged_microbits: settling.answers_charged_microbits,
        claim_id: claim.id.to_hex(),
        fuel: settling.fuel,
        holdout_id: terms.holdout.to_hex(),
        holdout_ref: settling.holdout_ref,
        kind: "settlement",
        lane: terms.lane.as_str(),
        memory_pages: settling.memory_pages,
        oracle_calls: settling.oracle_calls,
        output_b64: BASE64_STANDARD.encode(settling.output),
        owner_tag: terms.owner.to_hex(),
        topic_id: terms.topic_id().to_hex(),
        wasm_hash: claim
            .commitment
            .as_ref()
            .map(|commitment| commitment.module.hash.to_hex()),
    })
}

fn json(input: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(input).expect("text and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preflight_input_is_the_published_one() {
        assert_eq!(
            String::from_utf8(preflight_input(
                "shell.exec",
                None,
                Some("s-1"),
                br#"{"command":"ls"}"#
            )),
            Ok(r#"{"agent_id":null,"params_canonical_json_b64":"eyJjb21tYW5kIjoibHMifQ==","session_id":"s-1","tool_name":"shell.exec"}"#.to_owned())
        );
    }
}
