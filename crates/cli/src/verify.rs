//! `evidenceos verify`: offline, from files alone.
//!
//! Owns the reading of files and the wording of results; the verify crate has the checks. It fetches nothing and
//! calls no endpoint.

use std::path::{Path, PathBuf};

use clap::Args;
use evidenceos_kernel::decision::{DecisionReceipt, RECEIPT_FORMAT};
use evidenceos_tlog::{Checkpoint, Note, Tree, VerifierKey, leaf_hash};
use evidenceos_verify::{
    AuditReport, Known, LogReport, NotKnown, Opening, Receipt, Trust, Verified, audit,
    decision_from_json, verify_decision, verify_log, verify_receipt,
};
use serde_json::Value;

use crate::{
    entries::{StoredLog, trace_path, traced_claims},
    error::CliError,
    files,
    output::{Output, listed, value},
};

mod said;

use said::Said;

/// The files to verify.
#[derive(Debug, Args)]
#[command(
    after_help = "Get the key once, from a source you trust, never from the server you audit.\n\n\
    Examples:\n  \
    evidenceos verify receipt.json --key log.vkey\n  \
    evidenceos verify receipt.json --key log.vkey --log mirror/\n  \
    evidenceos verify --key log.vkey --log mirror/ --known last-year.checkpoint\n  \
    evidenceos verify --key log.vkey --log mirror/ --opened opening.json --traces traces/"
)]
pub struct VerifyArgs {
    /// Receipts of claims, and of decisions about tool calls.
    #[arg(value_name = "RECEIPT", required_unless_present = "log")]
    receipts: Vec<PathBuf>,
    /// The log's verifier key, or a file that contains it.
    #[arg(long, value_name = "VKEY|FILE")]
    key: String,
    /// The log's entries: a mirror directory, or a file with one entry a line. Recompute everything that the entries
    /// state, and whether a receipt's claim was revoked.
    #[arg(long, value_name = "DIR|FILE")]
    log: Option<PathBuf>,
    /// A head of this log that was signed earlier (a checkpoint, or an anchor's file): refuse a log that does not begin
    /// with it. May be given several times.
    #[arg(long, value_name = "CHECKPOINT", requires = "log")]
    known: Vec<PathBuf>,
    /// A holdout's opening. Recompute, with the traces, every answer and verdict. May be given several times.
    #[arg(long, value_name = "FILE", requires = "log")]
    opened: Vec<PathBuf>,
    /// The directory with the runs' traces, CLAIM_ID.trace each.
    #[arg(long, value_name = "DIR", requires = "opened")]
    traces: Option<PathBuf>,
    /// Exit with 0 although verdicts of an opened holdout could not be checked.
    #[arg(long, requires = "opened")]
    allow_missing_traces: bool,
}

impl VerifyArgs {
    /// Runs every check that the arguments ask for.
    ///
    /// # Errors
    /// The first check that fails, named. A revoked claim and verdicts that were not checked are no errors: they are
    /// shown, and the exit code is 1.
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
        // The log comes first: it says which keys may have signed the receipts' heads.
        let checked = match &log {
            Some(log) => Some(check_log(log, key.clone(), newest(&read, &read_decisions))?),
            None => None,
        };
        let trust = match &checked {
            Some(checked) => checked.trust.clone(),
            // Without a log, nothing shows that another key has followed.
            None => Trust::from(key),
        };
        let report = checked.as_ref().map(|checked| &checked.report);
        let mut said = Said::default();
        let mut heads = Vec::new();
        for (path, receipt) in &read {
            let verified = verified(path, receipt, &trust)?;
            said.receipt(path, &verified, report);
            heads.push((path, verified.checkpoint));
        }
        for (path, receipt) in &read_decisions {
            let verified = verify_decision(receipt, &trust).map_err(|failure| {
                CliError::Failed(format!(
                    "{}: the {} check failed: {}",
                    path.display(),
                    failure.check(),
                    value(&failure.to_string())
                ))
            })?;
            said.decision(path, &verified);
            heads.push((path, verified.checkpoint));
        }
        if let Some(checked) = &checked {
            for (path, head) in &heads {
                // A valid receipt may still be from another log under the same key.
                must_be_in(path, head, checked.entries)?;
            }
            let known = self.check_known(checked)?;
            said.log(&checked.report, &checked.checkpoint, known);
            if !self.opened.is_empty() {
                let audited = self.audit(&checked.report)?;
                said.audit(&checked.report, &audited, self.allow_missing_traces);
            }
        }
        Ok(said.output())
    }

    /// Compares the log with each head that the user kept.
    fn check_known(&self, checked: &CheckedLog<'_>) -> Result<usize, CliError> {
        for path in &self.known {
            let note = files::unmarked(path)?;
            let failed = |why: NotKnown| CliError::Failed(format!("{}: {why}", path.display()));
            Known::open(&note, &checked.trust)
                .and_then(|known| known.must_be_a_prefix_of(checked.entries))
                .map_err(failed)?;
        }
        Ok(self.known.len())
    }

    /// Checks openings and traces against the log.
    fn audit(&self, report: &LogReport) -> Result<AuditReport, CliError> {
        let mut openings = Vec::new();
        for path in &self.opened {
            let json = files::unmarked(path)?;
            let opening = Opening::from_json(&json)
                .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
            openings.push(opening);
        }
        let dir = self.traces.as_deref();
        // Without a directory, every verdict counts as one without a trace.
        let traced = dir.map(traced_claims).transpose()?.unwrap_or_default();
        let audited = audit(report, &openings, &traced, |claim| {
            let file = trace_path(dir.unwrap_or(Path::new("")), &claim.to_hex());
            std::fs::read(&file).map_err(CliError::file(&file))
        })?;
        let findings = listed(audited.findings());
        if findings.is_empty() {
            Ok(audited)
        } else {
            Err(CliError::Failed(format!(
                "the opening does not verify:\n{findings}"
            )))
        }
    }
}

/// A verifier key, or a file that contains it.
fn read_key(text: &str) -> Result<VerifierKey, CliError> {
    // If the text cannot be read as a file, it is taken for the key itself; the error below names
    // both.
    let from_file = files::text(Path::new(text)).ok();
    let vkey = from_file.as_deref().unwrap_or(text).trim();
    vkey.parse().map_err(|error| {
        CliError::Usage(format!(
            "--key is neither a verifier key (name+hash+base64) nor a file with one: {error}. The daemon prints its key when it starts, and `evidenceos log key` prints it; get the key from a source you trust"
        ))
    })
}

/// Reads a receipt file.
fn read_receipt(path: &Path) -> Result<Receipt, CliError> {
    let json = files::unmarked(path)?;
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
        "{}: the {} check failed: {}",
        path.display(),
        failure.check(),
        value(&failure.to_string())
    ))
}

/// A receipt file of either kind.
enum Either {
    Claim(Receipt),
    Decision(DecisionReceipt),
}

fn read_either(path: &Path) -> Result<Either, CliError> {
    let json = files::unmarked(path)?;
    // A file that is not JSON is left to the parser of receipts, which says why.
    let format = serde_json::from_slice::<Value>(&json).ok();
    let is_decision = format.is_some_and(|file| file["format"] == RECEIPT_FORMAT);
    if !is_decision {
        return read_receipt(path).map(Either::Claim);
    }
    decision_from_json(&json)
        .map(Either::Decision)
        .map_err(|failure| {
            CliError::Failed(format!(
                "{}: the {} check failed: {}",
                path.display(),
                failure.check(),
                value(&failure.to_string())
            ))
        })
}

/// The note of the receipt that claims to cover the most.
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
    // A note that cannot be parsed counts as the smallest: no receipt with it verifies.
    of_claims
        .chain(of_decisions)
        .max_by_key(|note| stated(note).map_or(0, |checkpoint| checkpoint.size()))
}

/// The checkpoint of a note, without a check of its signatures.
fn stated(note: &str) -> Option<Checkpoint> {
    Note::parse(note.as_bytes()).ok()?.text().parse().ok()
}

/// A replayed log, and the keys that it makes trusted.
struct CheckedLog<'l> {
    report: LogReport,
    checkpoint: Checkpoint,
    entries: &'l [Vec<u8>],
    trust: Trust,
}

/// Replays the log under the checkpoint beside it, otherwise under a receipt's. The entries show
/// which keys followed the trusted one; the checkpoint is trusted only after that.
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
    // No signature covers what is beyond the checkpoint.
    let covered = log
        .entries
        .len()
        .min(usize::try_from(checkpoint.size()).unwrap_or(usize::MAX));
    let entries = &log.entries[..covered];
    let report = verify_log(entries, &checkpoint);
    let trust = Trust::along(key, &report.keys).and_then(|trust| {
        trust.open(note.as_bytes())?;
        Ok(trust)
    });
    // The findings may explain why a key is not known.
    let findings = listed(&report.findings);
    let trust = trust.map_err(|error| {
        CliError::Failed(format!(
            "the log's checkpoint: {}\n{findings}",
            value(&error.to_string())
        ))
    })?;
    if !report.is_sound() {
        return Err(CliError::Failed(format!(
            "the log does not verify:\n{findings}"
        )));
    }
    Ok(CheckedLog {
        report,
        checkpoint,
        entries,
        trust,
    })
}

/// Checks that a receipt's entry, and its signed head, are of this log.
fn must_be_in(path: &Path, checkpoint: &Checkpoint, entries: &[Vec<u8>]) -> Result<(), CliError> {
    // A size that cannot be addressed is beyond the log too.
    let size = usize::try_from(checkpoint.size()).unwrap_or(usize::MAX);
    let Some(prefix) = entries.get(..size) else {
        return Err(CliError::Failed(format!(
            "{}: its checkpoint covers {size} entries, but the log given has only {}; fetch it again",
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
