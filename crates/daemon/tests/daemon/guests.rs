//! Guests that misbehave: an ordinary result with a reason, and the daemon stays well.

use evidenceos_proto as wire;

use crate::harness::{Daemon, ITEMS, block_on, judged, predictions, terms};

/// A guest of the published interface around a body; `emit` takes a pointer and a length.
fn guest(body: &str) -> Vec<u8> {
    wat::parse_str(format!(
        r#"(module
            (import "env" "oracle_query" (func $ask (param i32 i32) (result i32)))
            (import "kernel" "submit_predictions" (func $submit (param i32 i32) (result i32)))
            (import "env" "emit_structured_claim" (func $emit (param i32 i32)))
            (memory (export "memory") 1)
            (func $recurse (call $recurse))
            (func (export "run") {body}))"#
    ))
    .expect("valid text")
}

#[test]
fn a_failed_run_is_settled_with_its_reason_and_not_judged() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let submit = format!("(drop (call $submit (i32.const 0) (i32.const {ITEMS})))");
        let emit = "(call $emit (i32.const 0) (i32.const 1))";
        let cases: [(&str, String, u32); 12] = [
            ("unreachable", "unreachable".to_owned(), 110),
            (
                "a trap after the emit",
                format!("{submit} {emit} unreachable"),
                110,
            ),
            ("an endless loop", "(loop $l (br $l))".to_owned(), 111),
            ("a deep recursion", "(call $recurse)".to_owned(), 112),
            (
                "a short vector",
                "(drop (call $ask (i32.const 0) (i32.const 3)))".to_owned(),
                113,
            ),
            (
                "a vector with a two",
                format!("(i32.store8 (i32.const 5) (i32.const 2)) {submit}"),
                113,
            ),
            (
                "a pointer outside",
                format!("(drop (call $ask (i32.const 65530) (i32.const {ITEMS})))"),
                116,
            ),
            ("two emits", format!("{submit} {emit} {emit}"), 117),
            ("no emit", submit.clone(), 118),
            (
                "an output of two bytes",
                format!("{submit} (call $emit (i32.const 0) (i32.const 2))"),
                119,
            ),
            ("nothing to judge", emit.to_owned(), 120),
            (
                "an output that is no symbol",
                format!("{submit} (i32.store8 (i32.const 0) (i32.const 2)) {emit}"),
                119,
            ),
        ];
        for (name, body, reason) in cases {
            let (claim, result) = client.run(name, "h", &guest(&body)).await;
            assert_eq!(result.outcome, "not_judged", "{name}");
            assert_eq!(result.reason_codes, [2, reason], "{name}");
            assert_eq!(result.state, wire::ClaimState::Settled as i32, "{name}");
            assert!(
                !result.explanation.is_empty() && result.price_microbits == 0,
                "{name}"
            );
            client.fetch(&claim).await.expect("has a capsule");
        }
        let holdout = client.holdout("h").await;
        assert_eq!((holdout.settled, holdout.sealed_charged_microbits), (0, 0));
        let (_, good) = client
            .run("good", "h", &judged(&predictions("h", 20)))
            .await;
        assert!(good.certified);
    });
}

#[test]
fn memory_that_is_not_there_is_refused_to_the_guest_only() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let bomb =
            guest("(loop $l (br_if $l (i32.ge_s (memory.grow (i32.const 64)) (i32.const 0))))");
        let (_, result) = client.run("bomb", "h", &bomb).await;
        // Growth beyond the lane answers −1 and the guest ends without a word.
        assert_eq!(result.reason_codes, [2, 118]);
        client
            .inner
            .health(wire::HealthRequest {})
            .await
            .expect("well");
    });
}

#[test]
fn the_published_interface_is_judged_on_its_last_question() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let bytes: String = predictions("h", 100)
            .iter()
            .map(|p| format!("\\{p:02x}"))
            .collect();
        let module = wat::parse_str(format!(
            r#"(module
                (import "env" "oracle_bucket" (func $ask (param i32 i32) (result i32)))
                (import "env" "emit_structured_claim" (func $emit (param i32 i32) (result i32)))
                (import "env" "get_logical_epoch" (func $epoch (result i64)))
                (memory (export "memory") 1)
                (data (i32.const 16) "{bytes}")
                (func (export "run")
                    (i32.store8 (i32.const 0) (call $ask (i32.const 16) (i32.const {ITEMS})))
                    (drop (call $epoch))
                    (drop (call $emit (i32.const 0) (i32.const 1)))))"#
        ))
        .expect("valid text");
        let mut asked = terms("published", "h");
        asked.oracle_num_symbols = 16;
        let claim = client.create(asked).await.expect("created");
        client.commit(&claim, &module).await.expect("committed");
        client.seal(&claim).await.expect("sealed");
        let result = client.execute(&claim).await.expect("settled");
        assert!(result.certified, "{result:?}");
        assert_eq!(result.charged_answer_microbits, 4_000_000);
        assert!((13..16).contains(&result.canonical_output[0]));
    });
}
