//! `evidenceos verify`: offline, from files alone.
//!
//! Owns the reading of files and the wording of results; the checks are the verify crate's. Nothing is fetched, and
//! no endpoint is called.

use std::path::{Path, PathBuf};

use clap::Args;
use evidenceos_kernel::{
    claim::Outcome,
    decision::{DecisionReceipt, RECEIPT_FORMAT},
    record::Capsule,
};
use evidenceos_tlog::{Checkpoint, Note, Tree, VerifierKey, leaf_hash};
use evidenceos_verify::{
    LogReport, Opening, Receipt, Trust, Verified, VerifiedDecision, decision_from_json,
    verify_decision, verify_log, verify_receipt,
};
use serde_json::{Value, json};

use crate::{
    entries::{StoredLog, trace_path},
    error::CliError,
    output::{Output, bits, facts, grouped, table},
};

/// What to verify.
#[derive(Debug, Args)]
#[command(
    after_help = "Get the key from somebody you trust, not from the server that you check.\n\n\
    Examples:\n  \
    evidenceos verify receipt.json --key log.vkey\n  \
    evidenceos verify receipt.json --key log.vkey --log mirror/\n  \
    evidenceos verify --key log.vkey --log mirror/ --opened opening.json --traces traces/"
)]
pub struct VerifyArgs {
    /// Receipts of claims, and of decisions about tool calls.
    #[arg(value_name = "RECEIPT", required_unless_present = "log")]
    receipts: Vec<PathBuf>,
    /// The log's verifier key, or a file that contains it.
    #[arg(long, value_name = "VKEY|FILE")]
    key: String,
    /// The log's entries: a mirror directory, or a file with one entry a line. Recomputes every k, price and threshold.
    #[arg(long, value_name = "DIR|FILE")]
    log: Option<PathBuf>,
    /// A holdout's opening. Recomputes, with the traces, every answer and verdict.
    #[arg(long, value_name = "FILE", requires = "log")]
    opened: Option<PathBuf>,
    /// The directory with the runs' traces, CLAIM_ID.trace each.
    #[arg(long, value_name = "DIR", requires = "opened")]
    traces: Option<PathBuf>,
}

impl VerifyArgs {
    /// Checks everything that is given.
    ///
    /// # Errors
    /// The first check that fails, named.
    pub fn run(self) -> Result<Output, CliError> {
        let key = read_key(&self.key)?;
        let (mut read, mut read_decisions) = (Vec::new(), Vec::new());
        for path in &self.receipts {
            match read_either(path)? {
                Either::Claim(receipt) => read.push((path, receipt)),
                Either::Decision(receipt) => read_decisions.push((path, receipt)),
            }
        }
        let log = self.log.as_deref().map(StoredLog::read).transpose()?;
        let checked = match &log {
            Some(log) => Some(check_log(log, key.clone(), newest(&read, &read_decisions))?),
            None => None,
        };
        let trust = match &checked {
            Some(checked) => checked.trust.clone(),
            None => Trust::from(key),
        };
        let mut json = serde_json::Map::new();
        let mut text = Vec::new();
        let mut receipts = Vec::new();
        for (path, receipt) in &read {
            let verified = verified(path, receipt, &trust)?;
            text.push(format!(
                "{}: verified\n{}",
                path.display(),
                receipt_text(&verified)
            ));
            receipts.push((path, verified));
        }
        let listed: Vec<Value> = receipts
            .iter()
            .map(|(path, verified)| receipt_json(path, verified))
            .collect();
        json.insert("receipts".to_owned(), listed.into());
        let mut decisions = Vec::new();
        for (path, receipt) in &read_decisions {
            let verified = verify_decision(receipt, &trust).map_err(|failure| {
                CliError::Failed(format!(
                    "{}: the {} check failed: {failure}",
                    path.display(),
                    failure.check()
                ))
            })?;
            text.push(format!(
                "{}: verified\n{}",
                path.display(),
                decision_text(&verified)
            ));
            decisions.push((path, verified));
        }
        if !decisions.is_empty() {
            let listed: Vec<Value> = decisions
                .iter()
                .map(|(path, verified)| decision_json(path, verified))
                .collect();
            json.insert("decisions".to_owned(), listed.into());
        }
        if let Some(checked) = checked {
            for (path, verified) in &receipts {
                must_be_in(path, &verified.checkpoint, checked.entries)?;
            }
            for (path, verified) in &decisions {
                must_be_in(path, &verified.checkpoint, checked.entries)?;
            }
            let (report, checkpoint) = (&checked.report, &checked.checkpoint);
            text.push(log_text(report, checkpoint));
            json.insert("log".to_owned(), log_json(report, checkpoint));
            if let Some(opening) = &self.opened {
                let opened = check_opened(opening, self.traces.as_deref(), report)?;
                text.push(opened.text);
                json.insert("opened".to_owned(), opened.json);
            }
        }
        Ok(Output::new(Value::Object(json), text.join("\n\n")))
    }
}

/// A verifier key, or the file that it stands in.
fn read_key(text: &str) -> Result<VerifierKey, CliError> {
    let from_file = std::fs::read_to_string(text).ok();
    let vkey = from_file.as_deref().unwrap_or(text).trim();
    vkey.parse().map_err(|error| {
        CliError::Usage(format!(
            "--key is neither a verifier key (name+hash+base64) nor a file with one: {error}"
        ))
    })
}

/// Reads a receipt file.
fn read_receipt(path: &Path) -> Result<Receipt, CliError> {
    let json = std::fs::read(path).map_err(CliError::file(path))?;
    Receipt::from_json(&json).map_err(|failure| failed(path, &failure))
}

fn verified(path: &Path, receipt: &Receipt, trust: &Trust) -> Result<Verified, CliError> {
    verify_receipt(receipt, trust).map_err(|failure| failed(path, &failure))
}

/// Reads and verifies a receipt file under one key.
pub fn verify_file(path: &Path, key: &VerifierKey) -> Result<Verified, CliError> {
    verified(path, &read_receipt(path)?, &Trust::from(key.clone()))
}

fn failed(path: &Path, failure: &evidenceos_verify::Failure) -> CliError {
    CliError::Failed(format!(
        "{}: the {} check failed: {failure}",
        path.display(),
        failure.check()
    ))
}

/// A receipt file of either kind.
enum Either {
    Claim(Receipt),
    Decision(DecisionReceipt),
}

fn read_either(path: &Path) -> Result<Either, CliError> {
    let json = std::fs::read(path).map_err(CliError::file(path))?;
    let format = serde_json::from_slice::<Value>(&json).ok();
    let is_decision = format.is_some_and(|file| file["format"] == RECEIPT_FORMAT);
    if !is_decision {
        return read_receipt(path).map(Either::Claim);
    }
    decision_from_json(&json)
        .map(Either::Decision)
        .map_err(|failure| {
            CliError::Failed(format!(
                "{}: the {} check failed: {failure}",
                path.display(),
                failure.check()
            ))
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
        (
            "decided",
            format!("{} ms since 1970", record.decided_unix_ms),
        ),
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

/// The note of the receipt that says to cover the most.
fn newest<'r>(
    receipts: &'r [(&PathBuf, Receipt)],
    decisions: &'r [(&PathBuf, DecisionReceipt)],
) -> Option<&'r str> {
    let of_claims = receipts
        .iter()
        .map(|(_, receipt)| receipt.checkpoint.as_str());
    let of_decisions = decisions
        .iter()
        .map(|(_, receipt)| receipt.checkpoint.as_str());
    of_claims
        .chain(of_decisions)
        .max_by_key(|note| stated(note).map_or(0, |checkpoint| checkpoint.size()))
}

/// What a note says, whoever has signed it.
fn stated(note: &str) -> Option<Checkpoint> {
    Note::parse(note.as_bytes()).ok()?.text().parse().ok()
}

/// A replayed log, and whom to believe by it.
struct CheckedLog<'l> {
    report: LogReport,
    checkpoint: Checkpoint,
    entries: &'l [Vec<u8>],
    trust: Trust,
}

/// Replays the log under the checkpoint beside it, else under a receipt's. The entries say which
/// keys followed the trusted one; the checkpoint is believed only after that.
fn check_log<'l>(
    log: &'l StoredLog,
    key: VerifierKey,
    of_receipt: Option<&str>,
) -> Result<CheckedLog<'l>, CliError> {
    let note = log.checkpoint.as_deref().or(of_receipt).ok_or_else(|| {
        CliError::Usage(
            "a file of entries has no checkpoint; give a receipt with it, or a mirror directory"
                .to_owned(),
        )
    })?;
    let checkpoint = stated(note)
        .ok_or_else(|| CliError::Failed("the log's checkpoint is not a signed note".to_owned()))?;
    let covered = log
        .entries
        .len()
        .min(usize::try_from(checkpoint.size()).unwrap_or(usize::MAX));
    let entries = &log.entries[..covered];
    let report = verify_log(entries, &checkpoint);
    let trust = Trust::along(key, &report.key_links);
    trust
        .open(note.as_bytes())
        .map_err(|error| CliError::Failed(format!("the log's checkpoint: {error}")))?;
    if report.is_sound() {
        return Ok(CheckedLog {
            report,
            checkpoint,
            entries,
            trust,
        });
    }
    let findings: Vec<String> = report
        .findings
        .iter()
        .map(|finding| format!("  {finding}"))
        .collect();
    Err(CliError::Failed(format!(
        "the log does not hold:\n{}",
        findings.join("\n")
    )))
}

/// A receipt's entry, and the head that it was signed under, are of this log.
fn must_be_in(path: &Path, checkpoint: &Checkpoint, entries: &[Vec<u8>]) -> Result<(), CliError> {
    let size = usize::try_from(checkpoint.size()).unwrap_or(usize::MAX);
    let Some(prefix) = entries.get(..size) else {
        return Err(CliError::Failed(format!(
            "{}: its checkpoint covers {size} entries, the log given has only {}; fetch it again",
            path.display(),
            entries.len()
        )));
    };
    let mut tree = Tree::new();
    for entry in prefix {
        tree.append(leaf_hash(entry));
    }
    if tree.root() == checkpoint.root() {
        Ok(())
    } else {
        Err(CliError::Failed(format!(
            "{}: this log's first {size} entries have another root than was signed: the log shows different histories",
            path.display()
        )))
    }
}

/// What a verified receipt says, for people.
pub fn receipt_text(verified: &Verified) -> String {
    let capsule = &verified.capsule;
    let ledger = &capsule.ledger;
    let outcome = match (capsule.outcome, capsule.e_value_log2) {
        (Outcome::Certified, Some(log2)) => format!("certified, e-value 2^{log2}"),
        (outcome, _) => outcome.as_str().replace('_', " "),
    };
    facts(&[
        ("  claim", capsule.claim_id.to_hex()),
        ("  outcome", outcome),
        (
            "  threshold",
            format!(
                "{} = k {} + c {} + log2({}/alpha), alpha {}",
                bits(ledger.threshold.get()),
                bits(ledger.k.get()),
                bits(ledger.c.get()),
                ledger.alpha_divisor,
                crate::render::decimal(ledger.alpha_micros)
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
    ])
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
    })
}

fn log_text(report: &LogReport, checkpoint: &Checkpoint) -> String {
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
    let keys = match report.key_links.len() {
        0 => String::new(),
        n => format!("; its key changed {n} times, each time vouched for by the one before"),
    };
    format!(
        "log {}: {} entries hash to the signed root; every k, price, threshold and debit follows{keys}\n{}",
        checkpoint.origin(),
        grouped(report.entries),
        table(
            &[
                "holdout",
                "judged>",
                "certified>",
                "k bits>",
                "answer bits>",
                "owners>"
            ],
            &rows
        )
    )
}

fn log_json(report: &LogReport, checkpoint: &Checkpoint) -> Value {
    let holdouts: Vec<Value> = report
        .holdouts
        .iter()
        .map(|ledger| {
            json!({
                "holdout_id": ledger.registered.id.to_hex(),
                "holdout_ref": ledger.registered.reference,
                "log_index": ledger.index,
                "settled": ledger.settled,
                "certified": ledger.certified,
                "not_judged": ledger.not_judged,
                "aborted": ledger.aborted,
                "sealed_charged_microbits": ledger.sealed_charged.get(),
                "answer_charged_microbits": ledger.answers_charged.get(),
                "retired": ledger.retired,
                "opened": ledger.opened,
            })
        })
        .collect();
    json!({
        "verified": true,
        "origin": checkpoint.origin(),
        "entries": report.entries,
        "capsules": report.capsules.len(),
        "revoked": report.revoked,
        "passed_over": report.passed_over,
        "key_changes": report.key_links.len(),
        "holdouts": holdouts,
    })
}

/// Checks an opening against the log, and every trace that is there.
fn check_opened(
    path: &Path,
    traces: Option<&Path>,
    report: &LogReport,
) -> Result<Output, CliError> {
    let json = std::fs::read(path).map_err(CliError::file(path))?;
    let failed = |what: String| CliError::Failed(format!("{}: {what}", path.display()));
    let opening = Opening::from_json(&json).map_err(|error| failed(error.to_string()))?;
    let ledger = report.holdout(&opening.holdout_id);
    let ledger = ledger
        .ok_or_else(|| failed(format!("holdout {} is not in this log", opening.holdout_id)))?;
    let opened = opening
        .check(&ledger.registered)
        .map_err(|error| failed(error.to_string()))?;
    let (mut checked, mut answers, mut missing) = (0u64, 0u64, Vec::new());
    for (index, capsule) in &report.capsules {
        if capsule.holdout_id != opening.holdout_id || capsule.outcome == Outcome::Aborted {
            continue;
        }
        let id = capsule.claim_id.to_hex();
        let file = traces
            .map(|dir| trace_path(dir, &id))
            .filter(|file| file.exists());
        let Some(file) = file else {
            missing.push(id);
            continue;
        };
        let trace = std::fs::read(&file).map_err(CliError::file(&file))?;
        let replayed = opened.check_trace(capsule, &trace).map_err(|error| {
            CliError::Failed(format!("entry {index}, {}: {error}", file.display()))
        })?;
        checked += 1;
        answers += u64::from(replayed.answers);
    }
    let mut text = format!(
        "{}: the labels are those that were committed to; {} traces checked, {} answers and every verdict follow",
        ledger.registered.reference,
        grouped(checked),
        grouped(answers)
    );
    if !missing.is_empty() {
        text.push_str(&format!(
            "\nwarning: no trace for {} claims, which were not checked",
            missing.len()
        ));
    }
    Ok(Output::new(
        json!({
            "holdout_id": opening.holdout_id.to_hex(),
            "labels_verified": true,
            "traces_checked": checked,
            "answers_checked": answers,
            "traces_missing": missing,
        }),
        text,
    ))
}
