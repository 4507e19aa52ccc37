//! Receipts of decisions: what a tool call was told is in the log, at its place.

use evidenceos_kernel::{
    decision::{
        BatchRecorded, DecisionBatch, DecisionId, DecisionReceipt, DecisionRecord, Gate,
        RECEIPT_FORMAT,
    },
    id::{Digest, OwnerTag},
};
use evidenceos_tlog::leaf_hash;
use evidenceos_verify::{DecisionFailure, Trust, decision_from_json, verify_decision};

use crate::world::{eventful, key, receipt_of};

fn record(id: DecisionId) -> DecisionRecord {
    DecisionRecord {
        id,
        gate: Gate::Preflight,
        decided_unix_ms: 1_000,
        owner: OwnerTag([1; 16]),
        tool_name: "search.web".to_owned(),
        params_hash: Digest([2; 32]),
        session_hash: None,
        agent_hash: None,
        decision: "ALLOW".to_owned(),
        reason: "PROBE_CLEAN".to_owned(),
        policies: Digest([0; 32]),
        policy: None,
        output_hash: None,
        reply_receipt: None,
        preflight_receipt: None,
        salt: [7; 16],
    }
}

/// Receipts of two decisions in one batch, the first of number 6; the second says this number.
pub(crate) fn receipts(second: u64) -> [DecisionReceipt; 2] {
    let records = [6, second]
        .map(|id| String::from_utf8(record(DecisionId(id)).to_bytes()).expect("a record is text"));
    let leaves = records
        .each_ref()
        .map(|record| leaf_hash(record.as_bytes()));
    let both = [&[1][..], &leaves[0].0, &leaves[1].0].concat();
    let batch = DecisionBatch {
        first: DecisionId(6),
        count: 2,
        root: Digest::of(&both),
    };
    let (world, ..) = eventful();
    let mut entries = world.entries;
    let entry = BatchRecorded {
        batch,
        recorded_unix_ms: world.now_unix_ms + 1,
    }
    .to_bytes();
    entries.push(entry.clone());
    let index = entries.len() as u64 - 1;
    let proof = receipt_of(&entries, index);
    [0, 1].map(|position: u32| DecisionReceipt {
        format: RECEIPT_FORMAT.to_owned(),
        record: records[position as usize].clone(),
        position,
        batch_path: vec![leaves[1 - position as usize].to_string()],
        entry: String::from_utf8(entry.clone()).expect("an entry is text"),
        index,
        inclusion: proof.inclusion.iter().map(ToString::to_string).collect(),
        checkpoint: proof.checkpoint.clone(),
    })
}

fn trust() -> Trust {
    key().verifier().into()
}

#[test]
fn every_decision_of_a_batch_verifies_at_its_place() {
    for (receipt, id) in receipts(7).iter().zip([6, 7]) {
        let json = serde_json::to_vec(receipt).expect("it is written");
        assert_eq!(decision_from_json(&json), Ok(receipt.clone()));
        let verified = verify_decision(receipt, &trust()).expect("an honest receipt");
        assert_eq!(verified.record, record(DecisionId(id)));
        assert_eq!(verified.index, receipt.index);
    }
}

#[test]
fn what_does_not_hold_is_named() {
    let check = |receipt: &DecisionReceipt, name: &str| {
        let refused = verify_decision(receipt, &trust()).expect_err(name);
        assert_eq!(refused.check(), name, "{refused}");
    };
    let [first, second] = receipts(7);
    let with = |change: &dyn Fn(&mut DecisionReceipt)| {
        let mut changed = second.clone();
        change(&mut changed);
        changed
    };
    check(&with(&|r| r.batch_path[0].clear()), "format");
    check(&with(&|r| r.inclusion[0].clear()), "format");
    check(&with(&|r| r.checkpoint.clear()), "signature");
    check(&with(&|r| r.index -= 1), "inclusion");
    check(&with(&|r| r.inclusion.clear()), "inclusion");
    check(&with(&|r| r.position = 0), "position");
    check(&with(&|r| r.batch_path.clear()), "position");
    check(&with(&|r| r.record = first.record.clone()), "position");
    // In the log, but no batch.
    let (world, ..) = eventful();
    let capsule = receipt_of(&world.entries, 4);
    let no_batch = with(&|r| {
        r.entry = String::from_utf8(capsule.capsule.clone()).expect("text");
        r.index = capsule.index;
        r.inclusion = capsule.inclusion.iter().map(ToString::to_string).collect();
        r.checkpoint = capsule.checkpoint.clone();
    });
    check(&no_batch, "batch");
    // In the batch, under another number.
    for number in [5, 6, 8, 12] {
        let [first, second] = receipts(number);
        verify_decision(&first, &trust()).expect("the first is right");
        check(&second, "record");
    }
    let other = with(&|r| r.format.push('2'));
    let json = serde_json::to_vec(&other).expect("it is written");
    let refused = decision_from_json(&json);
    assert!(matches!(refused, Err(DecisionFailure::Format(_))));
}
