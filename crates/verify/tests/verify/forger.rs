//! The forger: one change of an honest log, everything else made to follow, signed with the log's own key.
//!
//! Who owns the key can sign anything; what remains is that the log contradicts itself, its openings, or its traces.
//! Every small change of every field of every kind of entry is tried, and every entry left out, doubled and moved.
//! `docs/formats.md` is the table: it names for each field the checks that may refuse a change, and the fields that
//! are operators' own statements. Those are refused once somebody kept an earlier head.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
};

use evidenceos_kernel::{
    decision::{DecisionId, DecisionReceipt, DecisionRecord, Gate, RECEIPT_FORMAT},
    id::{ClaimId, Digest},
};
use evidenceos_tlog::SignedCheckpoint;
use evidenceos_verify::{Check, Known, Trust, audit, verify_log};
use serde_json::Value;

use crate::{
    history::{History, NEW_ORIGIN, honest, last_key},
    world::{checkpoint_under, owner},
};

pub(crate) mod edit;
mod follow;
mod named;
mod table;

use edit::Edit;
use follow::{Draft, Forge, follow, kind, states};
use table::{Row, Statement, Table};

/// The check that refuses a log with its openings and traces, and its sentence; none if all is well. What is found at
/// the entry that was changed explains what is found elsewhere.
fn refusal(history: &History, entries: &[Vec<u8>], at: usize) -> Option<(Check, String)> {
    let checkpoint = checkpoint_under(NEW_ORIGIN, entries);
    let signed = SignedCheckpoint::sign(checkpoint.clone(), &last_key()).expect("own name");
    let report = verify_log(entries, &checkpoint);
    let at = at as u64;
    let mut findings = report.findings.iter();
    let own = findings.find(|finding| matches!(finding.index, Some(i) if i == at || i == at + 1));
    if let Some(finding) = own.or(report.findings.first()) {
        return Some((finding.fault.check(), finding.to_string()));
    }
    let trust = match Trust::along(last_key().verifier(), &report.keys) {
        Ok(trust) => trust,
        Err(error) => return Some((Check::Keys, error.to_string())),
    };
    if let Err(error) = trust.open(signed.to_string().as_bytes()) {
        return Some((Check::Keys, error.to_string()));
    }
    let traced: Vec<ClaimId> = history.world.traces.keys().copied().collect();
    let audited = audit(&report, &history.openings, &traced, |claim| {
        Ok::<_, Infallible>(history.world.traces[claim].clone())
    })
    .unwrap_or_else(|never| match never {});
    if let Some(finding) = audited.findings().next() {
        return Some((finding.failure.check(), finding.to_string()));
    }
    (!audited.is_complete()).then(|| {
        let sentence = "a trace is missing or does not decide its verdict";
        (Check::Traces, sentence.to_owned())
    })
}

/// The honest log as drafts.
fn drafts(history: &History) -> Vec<Draft> {
    history
        .world
        .entries
        .iter()
        .map(|entry| Draft {
            tree: edit::read(entry),
            edits: Vec::new(),
        })
        .collect()
}

/// One forged log and what the documentation says of it.
struct Forgery {
    at: usize,
    field: String,
    what: String,
    drafts: Vec<Draft>,
}

impl Forgery {
    fn edit(honest: &[Draft], at: usize, edit: Edit) -> Self {
        let mut drafts = honest.to_vec();
        let (field, what) = (edit.field.clone(), edit.what.to_owned());
        drafts[at].edits.push(edit);
        Self {
            at,
            field,
            what,
            drafts,
        }
    }

    fn reordered(honest: &[Draft], at: usize, what: &str) -> Option<Self> {
        let mut drafts = honest.to_vec();
        match what {
            "left out" => {
                drafts.remove(at);
            }
            "doubled" => drafts.insert(at, drafts[at].clone()),
            _ if at + 1 < drafts.len() => drafts.swap(at, at + 1),
            _ => return None,
        }
        Some(Self {
            at,
            field: format!("({what})"),
            what: String::new(),
            drafts,
        })
    }
}

/// Every small change of one entry of each sort, and every entry left out, doubled and moved. That a key is missing or
/// a number too large does not depend on the sort, so that one entry of each kind is enough.
fn forgeries(honest: &[Draft]) -> Vec<Forgery> {
    let mut found = Vec::new();
    let (mut sorts, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for (at, draft) in honest.iter().enumerate() {
        for what in ["left out", "doubled", "moved"] {
            found.extend(Forgery::reordered(honest, at, what));
        }
        if !sorts.insert(sort_of(&draft.tree)) {
            continue;
        }
        let is_first = kinds.insert(kind(&draft.tree).to_owned());
        let edits = edit::edits(&draft.tree).into_iter();
        let wanted = edits.filter(|edit| is_first || !edit.is_about_form());
        found.extend(wanted.map(|edit| Forgery::edit(honest, at, edit)));
    }
    found
}

/// Entries of one sort have the same fields for the same reasons.
fn sort_of(tree: &Value) -> String {
    let keys = tree.as_object().expect("an object").keys();
    // That a list of item ids was given changes nothing else.
    let keys: Vec<&String> = keys.filter(|key| *key != "item_order_hash_hex").collect();
    let asked = tree["answers"]["by_symbol"]
        .as_array()
        .is_some_and(|counts| !counts.is_empty());
    let has_parents = tree["dependencies"]
        .as_array()
        .is_some_and(|parents| !parents.is_empty());
    format!(
        "{} {keys:?} {} {} {} {} {asked} {has_parents}",
        tree["schema"], tree["outcome"], tree["reason_codes"], tree["basis"], tree["agrees"]
    )
}

/// What is wrong with the outcome of a forgery, if anything is.
fn judge(
    history: &History,
    table: &Table,
    honest: &[Draft],
    states: &[Forge],
    forgery: &Forgery,
    known: &[u8],
) -> Option<String> {
    let before = states[forgery.at].clone();
    let entries = before.through(&forgery.drafts).into_entries();
    let tree = &honest[forgery.at].tree;
    let name = format!(
        "{} {} {} {}",
        forgery.at,
        kind(tree),
        forgery.field,
        forgery.what
    );
    let row = row_of(table, kind(tree), &forgery.field);
    if entries == history.world.entries {
        return None;
    }
    match refusal(history, &entries, forgery.at) {
        Some((check, _)) if check == Check::Form || row.checks.contains(&check) => None,
        Some((check, sentence)) => Some(format!(
            "{name}: refused by `{check}`, which its row does not name: {sentence}"
        )),
        None if !is_statement(honest, forgery.at, &row) => Some(format!(
            "{name}: accepted, and its row does not say that it is a statement"
        )),
        None => must_be_known(&entries, known).map(|why| format!("{name}: {why}")),
    }
}

fn row_of(table: &Table, kind: &str, field: &str) -> Row {
    let row = table.row(kind, field).cloned();
    // A key that no record has: canonical form refuses it.
    row.unwrap_or(Row {
        checks: BTreeSet::new(),
        statement: Statement::Never,
    })
}

/// Whether a change of this entry may be accepted, as its row says.
fn is_statement(honest: &[Draft], at: usize, row: &Row) -> bool {
    let tree = &honest[at].tree;
    match row.statement {
        Statement::Never => false,
        Statement::Always => true,
        Statement::WithoutTrace => {
            tree["outcome"] == "aborted" || tree.get("duplicate_of_hex").is_some()
        }
        Statement::IfWithdrawn => {
            let bytes = edit::write(tree);
            let own = evidenceos_kernel::record::holdout_id(&bytes).to_hex();
            let id = tree["holdout_id_hex"].as_str().unwrap_or(&own);
            honest.iter().any(|draft| {
                kind(&draft.tree) == "holdout_withdrawn" && draft.tree["holdout_id_hex"] == id
            })
        }
    }
}

/// An accepted forgery is refused by somebody who kept the honest head.
fn must_be_known(entries: &[Vec<u8>], known: &[u8]) -> Option<String> {
    let report = verify_log(entries, &checkpoint_under(NEW_ORIGIN, entries));
    let trust = Trust::along(last_key().verifier(), &report.keys).expect("accepted");
    let known = Known::open(known, &trust).expect("the log's own head");
    known
        .must_be_a_prefix_of(entries)
        .is_ok()
        .then(|| "accepted although the honest head is known".to_owned())
}

fn head(entries: &[Vec<u8>]) -> Vec<u8> {
    let checkpoint = checkpoint_under(NEW_ORIGIN, entries);
    let signed = SignedCheckpoint::sign(checkpoint, &last_key()).expect("own name");
    signed.to_string().into_bytes()
}

#[test]
fn the_honest_history_holds_and_follows_from_itself() {
    let history = honest();
    assert_eq!(refusal(&history, &history.world.entries, 0), None);
    let again = follow(&drafts(&history));
    for (index, (one, other)) in again.iter().zip(&history.world.entries).enumerate() {
        let texts = [one, other].map(|entry| String::from_utf8_lossy(entry).into_owned());
        assert_eq!(texts[0], texts[1], "entry {index}");
    }
}

#[test]
fn no_small_change_is_accepted_that_is_not_a_statement() {
    let (history, table) = (honest(), Table::read());
    let honest = drafts(&history);
    let known = head(&history.world.entries);
    let states = states(&honest);
    let all = forgeries(&honest);
    assert!(all.len() > 1_500, "{}", all.len());
    let (even, odd): (Vec<_>, Vec<_>) = all.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads = [even, odd].map(|half| {
            let (history, table, honest) = (&history, &table, &honest);
            let (states, known) = (&states, &known);
            scope.spawn(move || {
                half.into_iter()
                    .filter_map(|(_, forgery)| {
                        judge(history, table, honest, states, forgery, known)
                    })
                    .collect::<Vec<_>>()
            })
        });
        let done = threads.into_iter();
        done.flat_map(|thread| thread.join().expect("judges"))
            .collect()
    });
    assert!(
        wrong.is_empty(),
        "{} of {} forgeries:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
}

#[test]
fn forgeries_that_have_a_name_are_refused_by_the_check_that_is_meant() {
    let history = honest();
    let honest = drafts(&history);
    let mut wrong = Vec::new();
    for row in named::rows(&history, &honest) {
        let entries = follow(&row.drafts);
        match refusal(&history, &entries, row.at) {
            Some((check, _)) if check == row.refused_by => {}
            other => wrong.push(format!(
                "{}: wanted {}, {other:?}",
                row.name, row.refused_by
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_field_of_every_file_has_a_row() {
    let table = Table::read();
    let history = honest();
    let full = DecisionRecord {
        id: DecisionId(1),
        gate: Gate::Postflight,
        decided_unix_ms: 1,
        owner: owner(1),
        tool_name: "search.web".to_owned(),
        params_hash: Digest([2; 32]),
        session_hash: Some(Digest([3; 32])),
        agent_hash: Some(Digest([4; 32])),
        decision: "DENY".to_owned(),
        reason: "POLICY".to_owned(),
        policies: Digest([5; 32]),
        policy: Some(("no-pipes".to_owned(), 9_001)),
        output_hash: Some(Digest([6; 32])),
        reply_receipt: Some(Digest([7; 32])),
        preflight_receipt: Some(Digest([8; 32])),
        salt: [9; 16],
    };
    let receipt = DecisionReceipt {
        format: RECEIPT_FORMAT.to_owned(),
        record: String::new(),
        position: 0,
        batch_path: Vec::new(),
        entry: String::new(),
        index: 0,
        inclusion: Vec::new(),
        checkpoint: String::new(),
    };
    let receipt = serde_json::to_vec(&receipt).expect("serialises");
    let units = history
        .openings
        .iter()
        .find(|opening| opening.units.is_some());
    let opening = units.expect("one has units").to_json().into_bytes();
    for (kind, bytes) in [
        (
            "receipt",
            history
                .world
                .receipt(history.marks.weak as u64)
                .to_json()
                .into_bytes(),
        ),
        ("opening", opening),
        ("decision", full.to_bytes()),
        ("decision_receipt", receipt),
    ] {
        let tree = edit::read(&bytes);
        for key in tree.as_object().expect("an object").keys() {
            assert!(
                table.has(kind, key),
                "no row in docs/formats.md: {kind}.{key}"
            );
        }
    }
}

#[test]
fn every_field_that_is_written_has_a_row() {
    let table = Table::read();
    let mut missing = BTreeMap::new();
    for draft in drafts(&honest()) {
        let kind = kind(&draft.tree).to_owned();
        assert!(table.kinds().any(|known| *known == kind), "{kind}");
        for edit in edit::edits(&draft.tree) {
            if edit.what == "taken out" && !table.has(&kind, &edit.field) {
                missing.insert(format!("{kind}.{}", edit.field), ());
            }
        }
        for what in ["left out", "doubled", "moved"] {
            assert!(table.has(&kind, &format!("({what})")), "{kind} {what}");
        }
    }
    assert!(missing.is_empty(), "no row in docs/formats.md: {missing:?}");
}
