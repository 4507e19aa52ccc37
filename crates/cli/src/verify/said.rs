//! The results of `verify`, in words and as JSON.

use std::path::Path;

use evidenceos_kernel::{
    claim::Outcome,
    in_force::{InForce, NO_POLICIES},
    record::Capsule,
};
use evidenceos_tlog::Checkpoint;
use evidenceos_verify::{
    AuditReport, Audited, Event, HoldoutLedger, LogReport, Verified, VerifiedDecision,
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    null_spec,
    output::{Output, bits, facts, grouped, table, value},
    render::decimal,
};

/// Paragraphs and JSON, collected check by check.
#[derive(Default)]
pub(super) struct Said {
    text: Vec<String>,
    json: serde_json::Map<String, Value>,
    receipts: Vec<Value>,
    decisions: Vec<Value>,
    /// Whether there is a result that a script must not take for a success.
    is_wanting: bool,
}

impl Said {
    pub(super) fn receipt(&mut self, path: &Path, verified: &Verified, log: Option<&LogReport>) {
        let revoked = log.and_then(|log| log.revocation(&verified.capsule.claim_id));
        let title = match revoked {
            Some(_) => "REVOKED",
            None => "verified",
        };
        let mut text = format!(
            "{}: {title}\n{}",
            path.display(),
            receipt_text(verified, log)
        );
        if let Some(revoked) = revoked {
            // The reason is the owner's free text, which must not reach a terminal unescaped.
            text.push_str(&format!(
                "\n  This claim was certified or settled as shown, and revoked on {} (entry {}): {}",
                date(revoked.unix_ms),
                revoked.index,
                value(&revoked.reason)
            ));
            // A script must not take a revoked claim for a success.
            self.is_wanting = true;
        }
        if log.is_none() {
            text.push_str(
                "\n  Not checked without --log: that k is right, and whether the claim was revoked since.",
            );
        }
        self.text.push(text);
        let mut json = receipt_json(path, verified);
        if let Some(log) = log {
            json["revoked"] = json!(revoked.is_some());
            if let Some(ledger) = log.holdout(&verified.capsule.holdout_id) {
                json["holdout"] = holdout_json(ledger);
            }
        }
        self.receipts.push(json);
    }

    pub(super) fn decision(&mut self, path: &Path, verified: &VerifiedDecision) {
        self.text.push(format!(
            "{}: verified\n{}",
            path.display(),
            decision_text(verified)
        ));
        self.decisions.push(decision_json(path, verified));
    }

    pub(super) fn log(&mut self, report: &LogReport, checkpoint: &Checkpoint, known: usize) {
        self.text.push(log_text(report, checkpoint, known));
        self.json
            .insert("log".to_owned(), log_json(report, checkpoint, known));
    }

    pub(super) fn audit(&mut self, report: &LogReport, audited: &AuditReport, allowed: bool) {
        let mut listed = Vec::new();
        for holdout in &audited.holdouts {
            let name = name_of(report, holdout);
            self.text.push(audited_text(&name, holdout));
            listed.push(audited_json(&name, holdout));
            // A verdict that was not checked must not pass for a valid one.
            self.is_wanting |= !allowed && holdout.checked < holdout.verdicts;
        }
        // Before several openings were possible, the JSON had a single one.
        if let [only] = listed.as_slice() {
            self.json.insert("opened".to_owned(), only.clone());
        }
        self.json.insert("audited".to_owned(), listed.into());
    }

    pub(super) fn output(mut self) -> Output {
        self.json
            .insert("receipts".to_owned(), self.receipts.into());
        if !self.decisions.is_empty() {
            self.json
                .insert("decisions".to_owned(), self.decisions.into());
        }
        Output {
            exit_code: u8::from(self.is_wanting),
            ..Output::new(Value::Object(self.json), self.text.join("\n\n"))
        }
    }
}

/// A time for users: `2026-11-28T16:00:00Z`.
fn date(unix_ms: u64) -> String {
    // A time that has no date is shown as a number.
    let seconds = i64::try_from(unix_ms / 1_000).ok();
    seconds
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms since 1970"))
}

/// The text of a verified receipt.
fn receipt_text(verified: &Verified, log: Option<&LogReport>) -> String {
    let capsule = &verified.capsule;
    let ledger = &capsule.ledger;
    let outcome = match (capsule.outcome, capsule.e_value_log2) {
        (Outcome::Certified, Some(log2)) => format!("certified, e-value 2^{log2}"),
        (outcome, _) => outcome.as_str().replace('_', " "),
    };
    let mut rows = vec![
        ("  claim", capsule.claim_id.to_hex()),
        ("  outcome", outcome),
        ("  settled", date(capsule.settled_unix_ms)),
    ];
    // The holdout's registration tells what was measured, and only the log has it.
    if let Some(ledger) = log.and_then(|log| log.holdout(&capsule.holdout_id)) {
        let null_spec = &ledger.registered.description.null_spec;
        rows.push(("  measured", null_spec::refuted(null_spec)));
        rows.push(("  holdout", described(ledger)));
    }
    rows.extend([
        (
            "  threshold",
            format!(
                "{} = k {} + c {} + log2({}/alpha), alpha {}",
                bits(ledger.threshold.get()),
                bits(ledger.k.get()),
                bits(ledger.c.get()),
                ledger.alpha_divisor,
                decimal(ledger.alpha_micros)
            ),
        ),
        (
            "  log",
            format!(
                "entry {} of {}",
                verified.index,
                verified.checkpoint.origin()
            ),
        ),
    ]);
    facts(&rows)
}

fn described(ledger: &HoldoutLedger) -> String {
    let registered = &ledger.registered;
    format!(
        "{:?}, {} items of which {} sealed, registered {}",
        registered.reference,
        grouped(registered.description.items),
        grouped(registered.description.sealed_items),
        date(registered.registered_unix_ms)
    )
}

fn receipt_json(path: &Path, verified: &Verified) -> Value {
    let mut json = capsule_json(verified.index, &verified.capsule);
    json["receipt"] = json!(path);
    json["capsule_hash"] = json!(verified.capsule_hash.to_hex());
    json["origin"] = json!(verified.checkpoint.origin());
    json["tree_size"] = json!(verified.checkpoint.size());
    json
}

fn capsule_json(index: u64, capsule: &Capsule) -> Value {
    let ledger = &capsule.ledger;
    json!({
        "verified": true,
        "log_index": index,
        "claim_id": capsule.claim_id.to_hex(),
        "holdout_id": capsule.holdout_id.to_hex(),
        "outcome": capsule.outcome.as_str(),
        "e_value_log2": capsule.e_value_log2,
        "k_microbits": ledger.k.get(),
        "c_microbits": ledger.c.get(),
        "price_microbits": ledger.price.get(),
        "threshold_microbits": ledger.threshold.get(),
        "ordinal": ledger.ordinal,
        "alpha_micros": ledger.alpha_micros,
        "alpha_divisor": ledger.alpha_divisor,
        "charged_answer_microbits": capsule.answers.charged.get(),
        "settled_unix_ms": capsule.settled_unix_ms,
    })
}

fn holdout_json(ledger: &HoldoutLedger) -> Value {
    let registered = &ledger.registered;
    json!({
        "holdout_ref": registered.reference,
        "items": registered.description.items,
        "sealed_items": registered.description.sealed_items,
        "p0_micros": null_spec::p0_micros(&registered.description.null_spec),
        "registered_unix_ms": registered.registered_unix_ms,
    })
}

fn decision_text(verified: &VerifiedDecision) -> String {
    let record = &verified.record;
    let mut rows = vec![
        (
            "decision",
            format!("{} ({})", record.decision, record.reason),
        ),
        ("gate", record.gate.word().to_owned()),
        ("tool", record.tool_name.clone()),
        ("decided", date(record.decided_unix_ms)),
        ("caller", record.owner.to_hex()),
        ("parameters", format!("SHA-256 {}", record.params_hash)),
        ("number", record.id.to_string()),
        (
            "log",
            format!(
                "entry {} of {}, {} entries",
                verified.index,
                verified.checkpoint.origin(),
                grouped(verified.checkpoint.size())
            ),
        ),
    ];
    if let Some((oracle, code)) = &record.policy {
        rows.push(("policy", format!("{oracle} ({code})")));
    }
    facts(&rows)
}

fn decision_json(path: &Path, verified: &VerifiedDecision) -> Value {
    let record = &verified.record;
    json!({
        "file": path.display().to_string(),
        "verified": true,
        "decision_id": record.id.to_string(),
        "gate": record.gate.word(),
        "decision": record.decision,
        "reason": record.reason,
        "tool_name": record.tool_name,
        "decided_unix_ms": record.decided_unix_ms,
        "recorded_unix_ms": verified.recorded_unix_ms,
        "owner_tag": record.owner.to_hex(),
        "params_sha256": record.params_hash.to_hex(),
        "receipt_hash": verified.leaf.to_hex(),
        "policy": record.policy.as_ref().map(|(oracle, code)| json!({ "oracle": oracle, "code": code })),
        "log_index": verified.index,
        "log_origin": verified.checkpoint.origin(),
    })
}

fn log_text(report: &LogReport, checkpoint: &Checkpoint, known: usize) -> String {
    let rows: Vec<Vec<String>> = report
        .holdouts
        .iter()
        .map(|ledger| {
            vec![
                ledger.registered.reference.clone(),
                grouped(ledger.settled),
                grouped(ledger.certified),
                bits(ledger.sealed_charged.get()),
                bits(ledger.answers_charged.get()),
                ledger.owners.len().to_string(),
            ]
        })
        .collect();
    let mut lines = vec![format!(
        "log {}: {} entries hash to the signed root. All charges and thresholds recompute from the log.",
        checkpoint.origin(),
        grouped(report.entries),
    )];
    let counts = [
        (
            report.keys.links.len(),
            "changes of key, each signed by the old key and the new",
        ),
        (report.revoked.len(), "revoked claims"),
        (known, "heads given with --known are prefixes of this log"),
    ];
    let counted = counts.iter().filter(|(count, _)| *count > 0);
    lines.extend(counted.map(|(count, what)| format!("  {}: {what}", grouped(*count as u64))));
    lines.extend(
        report
            .events
            .iter()
            .map(|(index, event)| format!("  entry {index}: {}", event_text(report, event))),
    );
    let ledgers = table(
        &[
            "holdout",
            "judged>",
            "certified>",
            "k bits>",
            "answer bits>",
            "owners>",
        ],
        &rows,
    );
    format!("{}\n{ledgers}", lines.join("\n"))
}

/// What a reader should know beside the claims.
fn event_text(report: &LogReport, event: &Event) -> String {
    let name = |id| {
        report.holdout(id).map_or_else(
            || id.to_hex(),
            |ledger| format!("{:?}", ledger.registered.reference),
        )
    };
    match event {
        Event::Restarted {
            old_origin,
            origin,
            because,
        } => format!(
            "RESTARTED: the end of the log {old_origin} was lost, and it went on as {origin}; the operator's reason: {}",
            value(because)
        ),
        Event::Charged {
            holdout,
            sealed,
            stated: true,
        } => format!(
            "the operator states that the lost entries released {} bits about holdout {}",
            bits(sealed.get()),
            name(holdout)
        ),
        Event::Charged { holdout, .. } => {
            format!(
                "the whole remaining budget of holdout {} was charged",
                name(holdout)
            )
        }
        Event::Continued { because } => format!(
            "CONTINUED: the operator states that nothing was signed elsewhere since the entry before; their reason: {}",
            value(because)
        ),
        Event::Compared { holdout, agrees } => {
            let result = if *agrees { "agree" } else { "do not agree" };
            format!(
                "the labels of a registration were compared with those of holdout {}: they {result}",
                name(holdout)
            )
        }
        Event::Withdrawn { holdout, reason } => {
            format!("holdout {} was WITHDRAWN: {}", name(holdout), value(reason))
        }
        Event::BudgetsChanged { holdout } => {
            format!("the budgets of holdout {} changed", name(holdout))
        }
        Event::Policies(in_force) => in_force_text(in_force),
    }
}

fn in_force_text(in_force: &InForce) -> String {
    let policies = match in_force.policies {
        NO_POLICIES => "no policy modules".to_owned(),
        digest => format!("the policy modules {digest}"),
    };
    let roles = match in_force.roles {
        None => "no role policy".to_owned(),
        Some(digest) => format!("the role policy {digest}"),
    };
    format!("in force from here on: {policies}, {roles}")
}

fn log_json(report: &LogReport, checkpoint: &Checkpoint, known: usize) -> Value {
    let holdouts: Vec<Value> = report
        .holdouts
        .iter()
        .map(|ledger| {
            let mut json = holdout_json(ledger);
            for (key, value) in [
                ("holdout_id", json!(ledger.registered.id.to_hex())),
                ("log_index", json!(ledger.index)),
                ("settled", json!(ledger.settled)),
                ("certified", json!(ledger.certified)),
                ("not_judged", json!(ledger.not_judged)),
                ("duplicates", json!(ledger.duplicates)),
                ("aborted", json!(ledger.aborted)),
                (
                    "sealed_charged_microbits",
                    json!(ledger.sealed_charged.get()),
                ),
                (
                    "answer_charged_microbits",
                    json!(ledger.answers_charged.get()),
                ),
                ("retired", json!(ledger.retired)),
                ("opened", json!(ledger.opened)),
                ("withdrawn", json!(ledger.withdrawn)),
            ] {
                json[key] = value;
            }
            json
        })
        .collect();
    let events: Vec<Value> = report
        .events
        .iter()
        .map(|(index, event)| json!({"index": index, "event": event_text(report, event)}))
        .collect();
    let count =
        |is: fn(&Event) -> bool| report.events.iter().filter(|(_, event)| is(event)).count();
    json!({
        "verified": true,
        "origin": checkpoint.origin(),
        "entries": report.entries,
        "capsules": report.capsules.len(),
        "revoked": report.revoked.len(),
        "restarts": count(|event| matches!(event, Event::Restarted { .. })),
        "continuations": count(|event| matches!(event, Event::Continued { .. })),
        "comparisons": count(|event| matches!(event, Event::Compared { .. })),
        "withdrawals": count(|event| matches!(event, Event::Withdrawn { .. })),
        "events": events,
        "key_changes": report.keys.links.len(),
        "known_heads": known,
        "holdouts": holdouts,
    })
}

fn name_of(report: &LogReport, audited: &Audited) -> String {
    report.holdout(&audited.holdout).map_or_else(
        || audited.holdout.to_hex(),
        |ledger| ledger.registered.reference.clone(),
    )
}

fn audited_text(name: &str, audited: &Audited) -> String {
    let mut text = format!(
        "{name}: the labels match the commitment; {} of {} verdicts checked, with {} answers",
        grouped(audited.checked),
        grouped(audited.verdicts),
        grouped(audited.answers)
    );
    let missing = audited.missing.len() as u64;
    if missing > 0 {
        text.push_str(&format!(
            "\n  NOT CHECKED: {} claims have no trace in the directory; fetch them with `evidenceos claim trace CLAIM_ID -o DIR`",
            grouped(missing)
        ));
    }
    for (claim, why) in &audited.not_checkable {
        text.push_str(&format!("\n  NOT CHECKED: claim {claim}: {why}"));
    }
    text
}

fn audited_json(name: &str, audited: &Audited) -> Value {
    let not_checkable: Vec<Value> = audited
        .not_checkable
        .iter()
        .map(|(claim, why)| json!({"claim_id": claim.to_hex(), "reason": why}))
        .collect();
    let missing: Vec<String> = audited.missing.iter().map(|claim| claim.to_hex()).collect();
    json!({
        "holdout_id": audited.holdout.to_hex(),
        "holdout_ref": name,
        "labels_verified": true,
        "verdicts": audited.verdicts,
        "verdicts_checked": audited.checked,
        "traces_checked": audited.checked,
        "answers_checked": audited.answers,
        "traces_missing": missing,
        "not_checkable": not_checkable,
    })
}
