//! Records: whatever parses has exactly the bytes that it was parsed from.
#![no_main]

use evidenceos_kernel::{
    cj,
    decision::{DecisionBatch, DecisionRecord},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = cj::parse(bytes, 64 << 10) {
        assert_eq!(value.to_bytes(), bytes);
    }
    if let Ok(record) = DecisionRecord::parse(bytes) {
        assert_eq!(record.to_bytes(), bytes);
    }
    if let Ok((batch, unix_ms)) = DecisionBatch::parse_entry(bytes) {
        assert_eq!(batch.to_entry(unix_ms), bytes);
    }
});
