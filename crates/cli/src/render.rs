//! Messages of the wire as JSON with stable names, and as text for users.
//!
//! Owns field names and words; the same message looks the same in every command.

use evidenceos_kernel::holdout::MOST_CERTIFICATIONS;
use evidenceos_proto as proto;
use serde_json::{Value, json};

use crate::{
    null_spec,
    output::{bits, facts, grouped, value},
    units,
};

/// A claim's state as one word.
pub fn state(state: i32) -> String {
    proto::ClaimState::try_from(state)
        .unwrap_or_default()
        .as_str_name()
        .trim_start_matches("CLAIM_STATE_")
        .to_ascii_lowercase()
}

/// A holdout for machines.
pub fn holdout_json(holdout: &proto::Holdout) -> Value {
    json!({
        "holdout_id": hex::encode(&holdout.holdout_id),
        "holdout_ref": holdout.holdout_ref,
        "status": holdout.status,
        "items": holdout.items,
        "units": holdout.units,
        "answer_items": holdout.answer_items,
        "sealed_items": holdout.sealed_items,
        "item_order_hash": hex::encode(&holdout.item_order_hash),
        "policy": holdout.policy.as_ref().map(policy_json),
        "null_spec": holdout.null_spec.as_ref().map(null_spec::to_json),
        "policy_hash": hex::encode(&holdout.policy_hash),
        "null_spec_hash": hex::encode(&holdout.null_spec_hash),
        "commitment_root": hex::encode(&holdout.commitment_root),
        "secret_commitment": hex::encode(&holdout.secret_commitment),
        "registered_unix_ms": holdout.registered_unix_ms,
        "log_index": holdout.etl_index,
        "answer_charged_microbits": holdout.answer_charged_microbits,
        "answer_reserved_microbits": holdout.answer_reserved_microbits,
        "sealed_charged_microbits": holdout.sealed_charged_microbits,
        "sealed_reserved_microbits": holdout.sealed_reserved_microbits,
        "settled": holdout.settled,
        "certified": holdout.certified,
        "in_flight": holdout.in_flight,
        "own_answer_charged_microbits": holdout.own_answer_charged_microbits,
        "own_answer_reserved_microbits": holdout.own_answer_reserved_microbits,
        "next_threshold_microbits": holdout.next_threshold_microbits,
        "next_certified_price_microbits": holdout.next_certified_price_microbits,
        "next_fewest_right": holdout.next_fewest_right,
        "certifications_left": holdout.certifications_left,
        "own_certifications_left": holdout.own_certifications_left,
        "own_sealed_charged_microbits": holdout.own_sealed_charged_microbits,
        "own_sealed_reserved_microbits": holdout.own_sealed_reserved_microbits,
        "fresh_items": holdout.fresh_items,
        "not_withdrawable": holdout.not_withdrawable,
        "replaces": hex::encode(&holdout.replaces),
        "warnings": holdout.warnings,
    })
}

fn policy_json(policy: &proto::HoldoutPolicy) -> Value {
    let prices: Vec<Value> = policy
        .answer_prices
        .iter()
        .map(|table| json!({"n_symbols": table.n_symbols, "prices_microbits": table.prices_microbits}))
        .collect();
    json!({
        "answer_share_micros": policy.answer_share_micros,
        "answer_budget_microbits": policy.answer_budget_microbits,
        "principal_answer_budget_microbits": policy.principal_answer_budget_microbits,
        "sealed_budget_microbits": policy.sealed_budget_microbits,
        "principal_sealed_budget_microbits": policy.principal_sealed_budget_microbits,
        "answer_prices": prices,
        "fixed_settlement_bits": policy.fixed_settlement_bits,
        "learned_settlement_bits": policy.learned_settlement_bits,
        "levels": policy.levels,
        "level_width_microbits": policy.level_width_microbits,
        "alpha_micros": policy.alpha_micros,
        "multiplicity": policy.multiplicity,
        "max_symbols": policy.max_symbols,
    })
}

/// A holdout for users.
pub fn holdout_text(holdout: &proto::Holdout) -> String {
    let policy = holdout.policy.clone().unwrap_or_default();
    let spec = holdout.null_spec.clone().unwrap_or_default();
    let of = |charged, budget: Option<u64>| {
        format!("{} of {} bits", bits(charged), bits(budget.unwrap_or(0)))
    };
    let left = |count: u32| match count {
        0 => "none: spent".to_owned(),
        // The daemon counts no further.
        MOST_CERTIFICATIONS => format!("{} or more", grouped(MOST_CERTIFICATIONS.into())),
        count => grouped(count.into()),
    };
    let mut text = facts(&[
        ("holdout", holdout.holdout_ref.clone()),
        ("id", hex::encode(&holdout.holdout_id)),
        ("status", holdout.status.clone()),
        (
            "items",
            format!(
                "{} in {} units: {} answer questions, {} are sealed",
                grouped(holdout.items),
                grouped(holdout.units),
                grouped(holdout.answer_items),
                grouped(holdout.sealed_items)
            ),
        ),
        ("null", null_spec::to_text(&spec)),
        (
            "alpha",
            format!(
                "{} ({})",
                decimal(policy.alpha_micros.unwrap_or(0)),
                policy.multiplicity
            ),
        ),
        (
            "sealed part",
            of(
                holdout.sealed_charged_microbits,
                policy.sealed_budget_microbits,
            ),
        ),
        (
            "answers",
            of(
                holdout.answer_charged_microbits,
                policy.answer_budget_microbits,
            ),
        ),
        (
            "your answers",
            of(
                holdout.own_answer_charged_microbits,
                policy.principal_answer_budget_microbits,
            ),
        ),
        (
            "your verdicts",
            match policy.principal_sealed_budget_microbits {
                None => "no share of your own".to_owned(),
                fence => of(holdout.own_sealed_charged_microbits, fence),
            },
        ),
        (
            "settled",
            format!(
                "{}, of which {} certified",
                grouped(holdout.settled),
                grouped(holdout.certified)
            ),
        ),
        ("next claim", next_claim(holdout)),
        (
            "certifications left",
            format!(
                "{}; for you {}",
                left(holdout.certifications_left),
                left(holdout.own_certifications_left)
            ),
        ),
        ("withdrawable", withdrawable(holdout)),
        ("log index", holdout.etl_index.to_string()),
    ]);
    if holdout.certifications_left == 0 && holdout.status == "registered" {
        text.push_str("\nThe holdout is spent: it can certify nothing any more. Retire it and register fresh items (`evidenceos holdout retire`, `evidenceos holdout add`).");
    }
    for warning in &holdout.warnings {
        text.push_str("\nwarning: ");
        text.push_str(&value(warning));
    }
    text
}

/// Millionths as a decimal: 50,000 is `0.05`.
pub fn decimal(micros: u32) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Whether the holdout can still be withdrawn.
fn withdrawable(holdout: &proto::Holdout) -> String {
    match (holdout.status.as_str(), holdout.not_withdrawable.as_str()) {
        ("withdrawn", _) => "it is withdrawn".to_owned(),
        (_, "") => "yes: it released nothing".to_owned(),
        (_, why) => format!("no: {why}"),
    }
}

/// What the next claim needs to be certified, if the holdout can still certify one.
fn next_claim(holdout: &proto::Holdout) -> String {
    if holdout.status != "registered" {
        return format!("none: the holdout is {}", holdout.status);
    }
    if holdout.certifications_left == 0 {
        return "cannot be certified: the holdout is spent".to_owned();
    }
    // 0 means none.
    let right = holdout.next_fewest_right;
    if right == 0 {
        return "cannot be certified: not even a perfect prediction would be".to_owned();
    }
    let units = holdout.sealed_units;
    let share = 100.0 * right as f64 / units.max(1) as f64;
    let evidence = bits(holdout.next_threshold_microbits);
    let (right, of) = (grouped(right), grouped(units));
    if holdout.sealed_units == holdout.sealed_items {
        format!(
            "to be certified, needs {right} of {of} sealed items right ({share:.1} %): {evidence} bits of evidence"
        )
    } else {
        format!(
            "to be certified, needs all items right in {right} of {of} sealed units ({share:.1} %), or as much in parts: {evidence} bits of evidence"
        )
    }
}

/// A claim for machines.
pub fn claim_json(claim: &proto::Claim) -> Value {
    json!({
        "claim_id": hex::encode(&claim.claim_id),
        "claim_name": claim.claim_name,
        "state": state(claim.state),
        "owner_tag": claim.owner_tag_hex,
        "holdout_id": hex::encode(&claim.holdout_id),
        "holdout_ref": claim.holdout_ref,
        "lane": claim.lane,
        "alpha_micros": claim.alpha_micros,
        "oracle_num_symbols": claim.oracle_num_symbols,
        "created_unix_ms": claim.created_unix_ms,
        "wasm_hash": hex::encode(&claim.wasm_hash),
        "seal_hash": hex::encode(&claim.seal_hash),
        "result": claim.result.as_ref().map(result_json),
        "revocation": claim.revocation.as_ref().map(|revocation| json!({
            "reason": revocation.reason,
            "timestamp_unix": revocation.timestamp_unix,
            "log_index": revocation.etl_index,
        })),
        "applied_alpha_micros": claim.applied_alpha_micros,
        "owner_name": claim.owner_name,
        "tainted_by": (!claim.tainted_by.is_empty()).then(|| hex::encode(&claim.tainted_by)),
    })
}

/// A claim for users.
pub fn claim_text(claim: &proto::Claim) -> String {
    let mut lines = vec![
        ("claim", claim.claim_name.clone()),
        ("id", hex::encode(&claim.claim_id)),
        ("state", state(claim.state)),
        ("owner", owner_text(claim)),
        (
            "created",
            format!("{} UTC", units::utc(claim.created_unix_ms)),
        ),
        ("holdout", claim.holdout_ref.clone()),
        ("alpha", alpha_text(claim)),
    ];
    if !claim.tainted_by.is_empty() {
        lines.push(("tainted by", hex::encode(&claim.tainted_by)));
    }
    if let Some(revocation) = &claim.revocation {
        lines.push(("revoked", revocation.reason.clone()));
    }
    let head = facts(&lines);
    match &claim.result {
        Some(result) => format!("{head}\n{}", result_text(result)),
        None => head,
    }
}

/// The owner's tag, and its name in the role policy.
fn owner_text(claim: &proto::Claim) -> String {
    match claim.owner_name.as_str() {
        "" => claim.owner_tag_hex.clone(),
        name => format!("{} ({name})", claim.owner_tag_hex),
    }
}

/// The level that the claim asks for, and the one that applies if the holdout's is stricter.
fn alpha_text(claim: &proto::Claim) -> String {
    let asked = decimal(claim.alpha_micros);
    match claim.applied_alpha_micros {
        0 => asked,
        applied if applied == claim.alpha_micros => asked,
        applied => format!(
            "{} (the holdout's; the claim asks for {asked})",
            decimal(applied)
        ),
    }
}

/// A result for machines.
pub fn result_json(result: &proto::ExecuteClaimV2Response) -> Value {
    json!({
        "state": state(result.state),
        "outcome": result.outcome,
        "certified": result.certified,
        "reason_codes": result.reason_codes,
        "explanation": result.explanation,
        "duplicate_of": hex::encode(&result.duplicate_of),
        "canonical_output": hex::encode(&result.canonical_output),
        "e_value": result.e_value,
        "threshold_microbits": result.threshold_microbits,
        "price_microbits": result.price_microbits,
        "charged_answer_microbits": result.charged_answer_microbits,
        "fuel": result.fuel,
        "credit_burned": result.credit_burned,
        "capsule_hash": hex::encode(&result.capsule_hash),
        "log_index": result.etl_index,
    })
}

/// A result for users.
pub fn result_text(result: &proto::ExecuteClaimV2Response) -> String {
    let mut lines = vec![
        ("outcome", result.outcome.replace('_', " ")),
        ("because", result.explanation.clone()),
        (
            "threshold",
            format!("{} bits", bits(result.threshold_microbits)),
        ),
        (
            "charged",
            format!(
                "{} bits to the sealed part, {} bits of answers",
                bits(result.price_microbits),
                bits(result.charged_answer_microbits)
            ),
        ),
        ("cost", format!("{} credits", result.credit_burned)),
        ("capsule", hex::encode(&result.capsule_hash)),
        ("log index", result.etl_index.to_string()),
    ];
    if !result.duplicate_of.is_empty() {
        lines.insert(2, ("duplicate of", hex::encode(&result.duplicate_of)));
    }
    if !result.canonical_output.is_empty() {
        lines.insert(
            2,
            (
                "emitted",
                format!(
                    "{} (the module's own output, in hex)",
                    hex::encode(&result.canonical_output)
                ),
            ),
        );
    }
    if result.certified {
        lines.insert(
            2,
            (
                "e-value",
                format!("deflated: at least {} (rounded down)", result.e_value),
            ),
        );
    }
    facts(&lines)
}
