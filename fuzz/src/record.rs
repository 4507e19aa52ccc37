//! Records of the log, alone.

use evidenceos_kernel::{
    cj,
    decision::DecisionRecord,
    entry::{Entry, Kind},
    record::MAX_ENTRY_LEN,
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
    let entry = Entry::parse(bytes);
    match &entry {
        // Lists of answer prices may come in any order, and are written in one.
        Ok(Entry::HoldoutRegistered(registered)) => {
            let policy = &registered.description.policy;
            assert_eq!(policy.validate(), Ok(()));
        }
        Ok(entry) => assert_eq!(entry.to_bytes(), bytes),
        Err(_) => {}
    }
    if let Ok(Entry::ClaimCapsule(capsule)) = &entry {
        // What it says of itself is checked without a panic, whatever the numbers.
        let _ = check_capsule(capsule);
    }
    let is_record = entry.is_ok() || Kind::of(bytes).is_some();
    assert!(value.is_ok() || !is_record, "no canonical JSON");
}
