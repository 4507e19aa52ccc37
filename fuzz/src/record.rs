//! Records of the log, alone.

use evidenceos_kernel::{
    cj,
    decision::{DecisionBatch, DecisionRecord},
    record::{
        BudgetsChanged, Capsule, Compared, MAX_ENTRY_LEN, Registered, key_rotated,
        parse_claim_revoked, parse_key_rotated, schema_of, time_of,
    },
};
use evidenceos_verify::check_capsule;

/// Whatever parses has exactly the bytes that it was parsed from.
pub fn check(bytes: &[u8]) {
    let value = cj::parse(bytes, MAX_ENTRY_LEN);
    if let Ok(value) = &value {
        assert_eq!(value.to_bytes(), bytes);
    }
    if let Ok(record) = DecisionRecord::parse(bytes) {
        assert_eq!(record.to_bytes(), bytes);
    }
    if let Ok((batch, unix_ms)) = DecisionBatch::parse_entry(bytes) {
        assert_eq!(batch.to_entry(unix_ms), bytes);
    }
    if let Ok(capsule) = Capsule::parse(bytes) {
        assert_eq!(capsule.to_bytes(), bytes);
        // What it says of itself is checked without a panic, whatever the numbers.
        let _ = check_capsule(&capsule);
    }
    if let Ok(changed) = BudgetsChanged::parse(bytes) {
        assert_eq!(changed.to_bytes(), bytes);
    }
    if let Ok(compared) = Compared::parse(bytes) {
        assert_eq!(compared.to_bytes(), bytes);
    }
    if let Ok(rotated) = parse_key_rotated(bytes) {
        let unix_ms = time_of(bytes).expect("it has a time");
        assert_eq!(key_rotated(&rotated, unix_ms), bytes);
    }
    if let Ok(registered) = Registered::parse(bytes) {
        let policy = &registered.description.policy;
        assert_eq!(policy.validate(), Ok(()));
    }
    let is_record = schema_of(bytes).is_some() || parse_claim_revoked(bytes).is_ok();
    assert!(value.is_ok() || !is_record, "no canonical JSON");
}
