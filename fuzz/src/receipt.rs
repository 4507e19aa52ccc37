//! Receipts of claims and of decisions, as JSON.

use std::sync::LazyLock;

use evidenceos_kernel::{
    decision::{BatchRecorded, DecisionBatch, DecisionReceipt, DecisionRecord},
    id::Digest,
};
use evidenceos_tlog::{
    Checkpoint, Hash, SignedCheckpoint, SignerKey, VerifierKey, leaf_hash,
    small::{path_in, root_of},
};
use evidenceos_verify::{Receipt, Trust, decision_from_json, verify_decision, verify_receipt};

const ORIGIN: &str = "example.org/log";
/// Everything that was ever signed with the published key, as far as the fuzzer can know.
const SIGNED: [&[u8]; 4] = [
    include_bytes!("../../testdata/verify/receipt.json"),
    include_bytes!("../../testdata/verify/receipt-2.2.json"),
    include_bytes!("../../testdata/verify/receipt-2.2-first.json"),
    include_bytes!("../seeds/receipt/claim.json"),
];
const SIGNED_DECISION: &[u8] = include_bytes!("../seeds/receipt/decision.json");
/// The published key.
static PUBLIC: LazyLock<Trust> = LazyLock::new(|| {
    let key = include_str!("../../testdata/verify/log.vkey");
    let key: VerifierKey = key.trim().parse().expect("a key");
    key.into()
});
/// The key of an operator who signs whatever comes.
static OWN: LazyLock<SignerKey> =
    LazyLock::new(|| SignerKey::from_seed(ORIGIN, [77; 32]).expect("a name"));

/// A receipt that is read is the same when it is written and read again. Nothing but what was
/// signed verifies under the published key; under a key that signs whatever comes, only a capsule whose arithmetic holds.
pub fn check(json: &[u8]) {
    if let Ok(receipt) = Receipt::from_json(json) {
        of_claim(&receipt);
    }
    if let Ok(receipt) = decision_from_json(json) {
        of_decision(&receipt);
    }
}

fn of_claim(receipt: &Receipt) {
    let again = Receipt::from_json(receipt.to_json().as_bytes());
    assert_eq!(again.as_ref(), Ok(receipt));
    if let Ok(verified) = verify_receipt(receipt, &PUBLIC) {
        let mut signed = SIGNED.iter().map(|json| Receipt::from_json(json));
        assert!(signed.any(|signed| signed.is_ok_and(|s| s.capsule == receipt.capsule)));
        assert_eq!(verified.capsule.to_bytes(), receipt.capsule);
    }
    let signed = Receipt {
        index: 0,
        inclusion: Vec::new(),
        checkpoint: signed(leaf_hash(&receipt.capsule)),
        ..receipt.clone()
    };
    let own = Trust::from(OWN.verifier());
    if let Ok(verified) = verify_receipt(&signed, &own) {
        assert_eq!(verified.capsule.to_bytes(), receipt.capsule);
    }
    let elsewhere = Receipt { index: 1, ..signed };
    assert!(verify_receipt(&elsewhere, &own).is_err(), "one entry alone");
}

fn of_decision(receipt: &DecisionReceipt) {
    if verify_decision(receipt, &PUBLIC).is_ok() {
        let signed = decision_from_json(SIGNED_DECISION);
        assert_eq!(
            signed.map(|signed| signed.record).as_ref(),
            Ok(&receipt.record)
        );
    }
    let Ok(recorded) = BatchRecorded::parse(receipt.entry.as_bytes()) else {
        return;
    };
    // The record at its place in a small batch of the same numbers.
    let count = recorded.batch.count.min(9);
    let position = receipt.position % count;
    let leaf = leaf_hash(receipt.record.as_bytes());
    let leaves = vec![leaf; count as usize];
    let batch = DecisionBatch {
        count,
        root: Digest(root_of(&leaves).0),
        ..recorded.batch
    };
    let path = path_in(&leaves, position as usize).expect("it is in");
    let entry = BatchRecorded { batch, ..recorded }.to_bytes();
    let signed = DecisionReceipt {
        position,
        batch_path: path.iter().map(Hash::to_hex).collect(),
        checkpoint: signed(leaf_hash(&entry)),
        entry: String::from_utf8(entry).expect("JSON"),
        index: 0,
        inclusion: Vec::new(),
        ..receipt.clone()
    };
    let record = DecisionRecord::parse(receipt.record.as_bytes());
    let number = batch.first.0.checked_add(u64::from(position));
    let fits = record.is_ok_and(|record| Some(record.id.0) == number);
    let verified = verify_decision(&signed, &Trust::from(OWN.verifier()));
    assert_eq!(verified.is_ok(), fits, "{verified:?}");
}

/// A head of a log with one entry.
fn signed(root: Hash) -> String {
    let head = Checkpoint::new(ORIGIN, 1, root).expect("a name");
    let signed = SignedCheckpoint::sign(head, &OWN).expect("its own name");
    signed.to_string()
}
