//! Forgeries by name: those that were found by hand, and those that take more than one field.

use evidenceos_kernel::id::Digest;
use evidenceos_verify::Check;
use serde_json::{Value, json};

use super::{
    edit::Edit,
    follow::{Draft, kind},
};
use crate::history::History;

/// A forgery, the entry that is forged, and the check that must refuse it.
pub(super) struct Named {
    pub(super) name: &'static str,
    pub(super) drafts: Vec<Draft>,
    pub(super) at: usize,
    pub(super) refused_by: Check,
}

struct Rows<'h> {
    honest: &'h [Draft],
    rows: Vec<Named>,
}

impl Rows<'_> {
    /// Several fields of one entry.
    fn edit(&mut self, name: &'static str, at: usize, fields: &[(&str, Value)], refused_by: Check) {
        let mut drafts = self.honest.to_vec();
        drafts[at].edits = fields
            .iter()
            .map(|(pointer, value)| Edit::new(pointer, "set", Some(value.clone())))
            .collect();
        self.drafts(name, drafts, at, refused_by);
    }

    fn drafts(&mut self, name: &'static str, drafts: Vec<Draft>, at: usize, refused_by: Check) {
        self.rows.push(Named {
            name,
            drafts,
            at,
            refused_by,
        });
    }

    /// An entry put in another place, at the time of that place.
    fn backdate(&mut self, name: &'static str, from: usize, to: usize, at: usize, by: Check) {
        let mut drafts = self.honest.to_vec();
        let mut moved = drafts.remove(from);
        let (_, time) = time_of(&drafts[to].tree);
        let (key, _) = time_of(&moved.tree);
        moved.tree[key.as_str()] = json!(time);
        drafts.insert(to, moved);
        self.drafts(name, drafts, at, by);
    }
}

fn time_of(tree: &Value) -> (String, u64) {
    let fields = tree.as_object().expect("an object");
    let time = fields.iter().find(|(key, _)| key.ends_with("_unix_ms"));
    let (key, value) = time.expect("every entry has a time");
    (key.clone(), value.as_u64().expect("an integer"))
}

pub(super) fn rows(history: &History, honest: &[Draft]) -> Vec<Named> {
    let marks = &history.marks;
    let nothing = || json!(Digest::of(b"").to_hex());
    let not_judged = |code: u64| {
        vec![
            ("/outcome", json!("not_judged")),
            ("/reason_codes", json!([2, code])),
        ]
    };
    let with = |mut fields: Vec<(&'static str, Value)>, more: &[(&'static str, Value)]| {
        fields.extend_from_slice(more);
        fields
    };
    let mut rows = Rows {
        honest,
        rows: Vec::new(),
    };
    let failed = marks.failed;
    let no_output = [("/structured_output_hash_hex", nothing())];
    let cases = [
        (
            "a failure rewritten as a trap",
            with(not_judged(110), &no_output),
            Check::Verdict,
        ),
        (
            "a failure rewritten as out of fuel",
            with(not_judged(111), &no_output),
            Check::Verdict,
        ),
        (
            "a failure rewritten as without output",
            with(not_judged(118), &no_output),
            Check::Verdict,
        ),
        (
            "a failure rewritten as no symbol",
            with(not_judged(119), &no_output),
            Check::Verdict,
        ),
        (
            "a failure rewritten as nothing to judge",
            not_judged(120),
            Check::Verdict,
        ),
        (
            "a failure rewritten as tainted",
            not_judged(121),
            Check::Taint,
        ),
        (
            "a failure rewritten as vetoed",
            not_judged(9_001),
            Check::Verdict,
        ),
        (
            "a failure rewritten as out of reach",
            not_judged(102),
            Check::Reach,
        ),
    ];
    for (name, fields, check) in cases {
        rows.edit(name, failed, &fields, check);
    }
    let aborted = [
        ("/outcome", json!("aborted")),
        ("/reason_codes", json!([2, 130])),
        ("/trace_hash_hex", nothing()),
        ("/structured_output_hash_hex", nothing()),
        ("/fuel", json!(0)),
    ];
    rows.edit(
        "a failure rewritten as aborted",
        failed,
        &aborted,
        Check::Traces,
    );
    let child = marks.child_before;
    let referred = [
        ("/outcome", json!("not_judged")),
        ("/reason_codes", json!([2, 122])),
        (
            "/duplicate_of_hex",
            honest[marks.weak].tree["claim_id_hex"].clone(),
        ),
        ("/trace_hash_hex", nothing()),
        ("/structured_output_hash_hex", nothing()),
        ("/fuel", json!(0)),
        ("/run/answers_reserved_microbits", json!(0)),
    ];
    let late = marks.late;
    rows.edit(
        "a failure rewritten as a duplicate",
        failed,
        &referred,
        Check::Traces,
    );
    let certified = [
        ("/outcome", json!("certified")),
        ("/reason_codes", json!([1])),
        ("/e_value_log2", json!(4)),
    ];
    rows.edit(
        "a failure rewritten as certified",
        failed,
        &certified,
        Check::Verdict,
    );
    let not_certified = [
        ("/outcome", json!("not_certified")),
        ("/reason_codes", json!([2, 101])),
    ];
    let mut drafts = honest.to_vec();
    drafts[marks.certified].edits = not_certified
        .iter()
        .map(|(pointer, value)| Edit::new(pointer, "set", Some(value.clone())))
        .collect();
    drafts[marks.certified]
        .edits
        .push(Edit::new("/e_value_log2", "taken out", None));
    rows.drafts(
        "a certification rewritten as a failure",
        drafts,
        marks.certified,
        Check::Verdict,
    );
    rows.edit(
        "nothing to judge rewritten as certified",
        marks.nothing_to_judge,
        &certified,
        Check::Verdict,
    );
    rows.edit(
        "a trap rewritten as certified",
        marks.trapped,
        &certified,
        Check::Outcome,
    );
    rows.edit(
        "a veto rewritten as certified",
        marks.vetoed,
        &certified,
        Check::Verdict,
    );
    let rejected = [("/reason_codes", json!([2, 9_104]))];
    rows.edit(
        "a deferral rewritten as a rejection",
        marks.vetoed,
        &rejected,
        Check::Verdict,
    );
    rows.edit(
        "an aborted run charged the price of a failure",
        marks.aborted,
        &[("/ledger/price_microbits", json!(192_646))],
        Check::Price,
    );
    rows.edit(
        "an aborted run that reserved the price of a failure",
        marks.aborted,
        &[
            ("/ledger/price_microbits", json!(192_646)),
            ("/run/sealed_reserved_microbits", json!(192_646)),
        ],
        Check::Admission,
    );
    rows.edit(
        "a tainted claim rewritten as certified",
        marks.tainted,
        &certified,
        Check::Taint,
    );
    let revocation = honest
        .iter()
        .position(|draft| kind(&draft.tree) == "claim_revoked")
        .expect("a claim was revoked");
    rows.backdate(
        "a revocation from before a claim that depends on the revoked one was judged",
        revocation,
        child,
        child + 1,
        Check::Taint,
    );
    let first_of_units = honest
        .iter()
        .position(|draft| {
            draft.tree["holdout_id_hex"] == honest[marks.retired].tree["holdout_id_hex"]
                && kind(&draft.tree) == "claim_capsule"
        })
        .expect("claims ran on it");
    rows.backdate(
        "a retirement from before a run was admitted",
        marks.retired,
        first_of_units,
        marks.after_retirement,
        Check::Admission,
    );
    // Everything from the first claim on listed prices on comes after its null spec expired.
    let listed = honest
        .iter()
        .position(|draft| {
            kind(&draft.tree) == "claim_capsule"
                && draft.tree["answers"]["charged_microbits"] == json!(4_000_000)
                && draft.tree["outcome"] == "aborted"
        })
        .expect("an aborted claim on listed prices");
    let mut drafts = honest.to_vec();
    for draft in &mut drafts[listed..] {
        let (key, time) = time_of(&draft.tree);
        draft.tree[key.as_str()] = json!(time + 2_000_000_000);
    }
    rows.drafts(
        "a run admitted after its null spec expired",
        drafts,
        listed + 1,
        Check::Admission,
    );
    let (key, time) = time_of(&honest[late].tree);
    let pointer = format!("/{key}");
    rows.edit(
        "time that runs backwards",
        late,
        &[(pointer.as_str(), json!(time - 100_000))],
        Check::Time,
    );
    for (name, at) in [
        ("an e-value of 2^64 without levels", marks.certified),
        ("an e-value of 2^64 with levels", marks.levelled),
    ] {
        let check = if at == marks.certified {
            Check::Outcome
        } else {
            Check::Price
        };
        rows.edit(name, at, &[("/e_value_log2", json!(64))], check);
    }
    let mut drafts = honest.to_vec();
    drafts.remove(marks.rotated);
    rows.drafts(
        "entry 0 of one key, all heads by another, no change of keys",
        drafts,
        0,
        Check::Keys,
    );
    let mut drafts = honest.to_vec();
    drafts.remove(failed);
    rows.drafts("a failure left out", drafts, failed, Check::Run);
    let mut drafts = honest.to_vec();
    drafts.remove(marks.after_retirement);
    rows.drafts(
        "the last verdict of a holdout left out",
        drafts,
        marks.after_retirement,
        Check::Traces,
    );
    let registered = honest
        .iter()
        .enumerate()
        .filter(|(_, draft)| kind(&draft.tree) == "holdout_registered");
    let second = registered.map(|(at, _)| at).nth(1).expect("two holdouts");
    let name = honest[marks.duplicate].tree["holdout_id_hex"].clone();
    rows.edit(
        "a holdout named like another's id",
        second,
        &[("/ref", name)],
        Check::Registration,
    );
    rows.rows
}
