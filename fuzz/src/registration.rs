//! The body of `PutHoldout`: the only call whose messages are a stream.

use evidenceos_daemon::grpc::fuzz::{is_let_through, registration};
use evidenceos_kernel::cj::Value;
use evidenceos_proto::PutHoldoutRequest;
use prost::{Message as _, bytes::Bytes};

/// The counter says the same however the body is cut. A holdout that is taken has a policy that keeps its rules, and
/// labels and units for each item.
pub fn check(body: &[u8]) {
    let passes = is_let_through([body]);
    for len in [1, 7, 64] {
        assert_eq!(
            is_let_through(body.chunks(len)),
            passes,
            "{len} bytes at once"
        );
    }
    let mut messages = Vec::new();
    let mut rest = body;
    // A message is a byte that says "not compressed", a length and so many bytes.
    while let Some(([0, length @ ..], after)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((message, after)) = after.split_at_checked(length) else {
            break;
        };
        let Ok(message) = PutHoldoutRequest::decode(Bytes::copy_from_slice(message)) else {
            return;
        };
        messages.push(message);
        rest = after;
    }
    let Ok(holdout) = registration(messages) else {
        return;
    };
    assert!(!holdout.labels.is_empty() && holdout.labels.iter().all(|label| *label <= 1));
    if let Some(units) = holdout.units {
        assert_eq!(units.len(), holdout.labels.len());
    }
    assert_eq!(holdout.policy.validate(), Ok(()));
    let null_spec = holdout.null_spec.to_object();
    let p0_micros = null_spec.get("p0_micros").and_then(Value::as_int);
    assert!(p0_micros.is_none_or(|p0_micros| (1..1_000_000).contains(&p0_micros)));
}
