//! Policy oracles: what is admitted, and what each way to answer or to fail is called.

use evidenceos_sandbox::{
    AdmitError, Broken, PolicyFailure, PolicyLimits, PolicyModule, Rule, TrapCause, Vote,
    check_policy,
};

use crate::{sandbox, wat};

const LIMITS: PolicyLimits = PolicyLimits {
    fuel: 100_000,
    memory_bytes: 256 << 10,
    input_bytes: 1 << 10,
};

/// A module whose `alloc` and `policy_oracle_decide` have these bodies.
fn module(alloc: &str, decide: &str) -> Vec<u8> {
    wat(&format!(
        r#"(module
            (memory (export "memory") 1)
            (func (export "alloc") (param $len i32) (result i32) {alloc})
            (func (export "policy_oracle_decide") (param $at i32) (param $len i32) (result i32) {decide}))"#
    ))
}

fn policy(alloc: &str, decide: &str) -> PolicyModule {
    sandbox()
        .prepare_policy(&module(alloc, decide), LIMITS)
        .expect("the test's module is admitted")
}

#[test]
fn every_rule_of_a_policy_oracle_is_named() {
    const ALLOC: &str = r#"(func (export "alloc") (param i32) (result i32) i32.const 8)"#;
    const DECIDE: &str =
        r#"(func (export "policy_oracle_decide") (param i32 i32) (result i32) i32.const 0)"#;
    const MEMORY: &str = r#"(memory (export "memory") 1)"#;
    let whole = [MEMORY, ALLOC, DECIDE];
    let with = |extra: &str| format!("(module {extra} {})", whole.concat());
    check_policy(&wat(&with(""))).expect("the whole is admitted");
    let table: [(&str, Rule, &str); 13] = [
        (
            &with(r#"(import "env" "now" (func (result i64)))"#),
            Rule::Import,
            "may import nothing",
        ),
        (
            &with(r#"(import "env" "oracle_query" (func (param i32 i32) (result i32)))"#),
            Rule::Import,
            "may import nothing",
        ),
        (
            &with(&"(table 1 funcref)".repeat(11)),
            Rule::Tables,
            "at most 10",
        ),
        (
            &with("(func $s) (start $s)"),
            Rule::StartFunction,
            "before `alloc`",
        ),
        (
            &format!("(module {ALLOC} {DECIDE})"),
            Rule::MemoryExport,
            "memory",
        ),
        (
            &format!("(module {MEMORY} {DECIDE})"),
            Rule::AllocExport,
            "`alloc`",
        ),
        (
            &format!("(module {MEMORY} {ALLOC})"),
            Rule::DecideExport,
            "`policy_oracle_decide`",
        ),
        (
            &format!(
                r#"(module {MEMORY} (func (export "alloc") (result i32) i32.const 8) {DECIDE})"#
            ),
            Rule::AllocExport,
            "(i32) -> i32",
        ),
        (
            &format!(
                r#"(module {MEMORY} {ALLOC} (global (export "policy_oracle_decide") i32 i32.const 0))"#
            ),
            Rule::DecideExport,
            "not a function",
        ),
        (
            &with("(func (result v128) v128.const i64x2 0 0)"),
            Rule::Feature,
            "SIMD",
        ),
        (&with("(memory 1)"), Rule::Feature, "multi"),
        (
            &with("(func (param i32) (local.get 0) (i32.atomic.load) (drop))"),
            Rule::Feature,
            "threads",
        ),
        (
            &format!(r#"(module (memory (export "memory") i64 1) {ALLOC} {DECIDE})"#),
            Rule::Feature,
            "memory64",
        ),
    ];
    for (text, rule, words) in table {
        let found = check_policy(&wat(text)).expect_err(text);
        assert!(
            found.len() == 1 && found[0].rule == rule && found[0].message.contains(words),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn a_memory_that_exceeds_the_limit_at_the_start_is_not_admitted() {
    let limits = PolicyLimits {
        memory_bytes: 65_535,
        ..LIMITS
    };
    let error = sandbox()
        .prepare_policy(&module("i32.const 8", "i32.const 0"), limits)
        .expect_err("65536 bytes do not fit");
    assert!(matches!(error, AdmitError::Refused(_)), "{error}");
    assert!(error.to_string().contains("max_memory_bytes"), "{error}");
}

#[test]
fn a_decision_is_a_vote_or_a_failure_that_says_what_happened() {
    const GROW: &str =
        "i32.const 100 memory.grow i32.const -1 i32.eq if unreachable end i32.const 0";
    let table = [
        ("i32.const 8", "i32.const 0", Ok(Vote::Pass)),
        ("i32.const 8", "i32.const 1", Ok(Vote::Defer)),
        ("i32.const 8", "i32.const 2", Ok(Vote::Reject)),
        (
            "i32.const 8",
            "i32.const 3",
            Err(PolicyFailure::NotAVote(3)),
        ),
        (
            "i32.const 8",
            "i32.const -1",
            Err(PolicyFailure::NotAVote(-1)),
        ),
        // The input is there, whole.
        (
            "i32.const 65533",
            "local.get $at i32.load8_u offset=2 i32.const 99 i32.eq local.get $len i32.const 3 i32.eq i32.and",
            Ok(Vote::Defer),
        ),
        // Growth that is refused is answered, and no failure by itself.
        (
            "i32.const 8",
            "i32.const 100 memory.grow i32.const -1 i32.eq",
            Ok(Vote::Defer),
        ),
        ("i32.const 8", GROW, Err(PolicyFailure::OutOfMemory)),
        (GROW, "i32.const 0", Err(PolicyFailure::OutOfMemory)),
        (
            "i32.const 8",
            "loop br 0 end unreachable",
            Err(PolicyFailure::OutOfFuel),
        ),
        (
            "loop br 0 end unreachable",
            "i32.const 0",
            Err(PolicyFailure::OutOfFuel),
        ),
        (
            "local.get $len call 0",
            "i32.const 0",
            Err(PolicyFailure::OutOfMemory),
        ),
        (
            "i32.const 8",
            "unreachable",
            Err(PolicyFailure::Trapped(TrapCause::Trap(Broken::Unreachable))),
        ),
        (
            "i32.const 8",
            "i32.const 1 i32.const 0 i32.div_s",
            Err(PolicyFailure::Trapped(TrapCause::Trap(
                Broken::DivisionByZero,
            ))),
        ),
        (
            "i32.const 8",
            "i32.const 65536 i32.load",
            Err(PolicyFailure::Trapped(TrapCause::OutOfBounds)),
        ),
        ("i32.const 0", "i32.const 0", Err(PolicyFailure::NoRoom(3))),
        (
            "i32.const 65534",
            "i32.const 0",
            Err(PolicyFailure::RoomOutOfBounds {
                address: 65_534,
                len: 3,
                memory: 65_536,
            }),
        ),
        (
            "i32.const -8",
            "i32.const 0",
            Err(PolicyFailure::RoomOutOfBounds {
                address: 0xffff_fff8,
                len: 3,
                memory: 65_536,
            }),
        ),
    ];
    for (alloc, decide, wanted) in table {
        let policy = policy(alloc, decide);
        for _ in 0..2 {
            assert_eq!(policy.decide(b"abc"), wanted, "{alloc} / {decide}");
        }
    }
}

#[test]
fn an_input_is_bounded_and_may_be_empty() {
    let policy = policy("i32.const 8", "local.get $len i32.eqz");
    assert_eq!(policy.decide(b""), Ok(Vote::Defer));
    assert_eq!(policy.decide(&[7; 1 << 10]), Ok(Vote::Pass));
    let failure = PolicyFailure::InputTooLarge {
        len: (1 << 10) + 1,
        most: 1 << 10,
    };
    assert_eq!(policy.decide(&[7; (1 << 10) + 1]), Err(failure));
}

#[test]
fn nothing_is_remembered_between_calls() {
    let policy = policy(
        "i32.const 8",
        "i32.const 0 i32.const 0 i32.load i32.const 1 i32.add i32.store i32.const 0 i32.load",
    );
    for _ in 0..3 {
        assert_eq!(policy.decide(b"x"), Ok(Vote::Defer));
    }
}

#[test]
fn a_policy_may_call_through_a_table() {
    let vote = |decide: &str| {
        let wasm = wat(&format!(
            r#"(module
                 (type $decide (func (param i32 i32) (result i32)))
                 (table $t 1 funcref)
                 (elem (i32.const 0) $reject)
                 (memory (export "memory") 1)
                 (func $reject (type $decide) i32.const 2)
                 (func (export "alloc") (param i32) (result i32) i32.const 8)
                 (func (export "policy_oracle_decide") (type $decide) {decide}))"#
        ));
        let policy = sandbox().prepare_policy(&wasm, LIMITS).expect("admitted");
        policy.decide(b"{}")
    };
    let call = |entry: u32| {
        format!("(call_indirect (type $decide) (local.get 0) (local.get 1) (i32.const {entry}))")
    };
    assert_eq!(vote(&call(0)), Ok(Vote::Reject));
    assert_eq!(
        vote(&call(1)),
        Err(PolicyFailure::Trapped(TrapCause::OutOfBounds))
    );
    // Within the bound of a table it grows, and beyond it is refused.
    let grow = |by: u32| {
        format!("(i32.lt_s (table.grow $t (ref.null func) (i32.const {by})) (i32.const 0))")
    };
    assert_eq!(vote(&grow(9_999)), Ok(Vote::Pass));
    assert_eq!(vote(&grow(10_000)), Ok(Vote::Defer));
}

#[test]
fn no_changed_byte_upsets_a_policy_oracle() {
    let whole = module("i32.const 8", "local.get $at i32.load8_u");
    let sandbox = sandbox();
    for at in 0..whole.len() {
        for bits in [0x01, 0x40, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= bits;
            match sandbox.prepare_policy(&changed, LIMITS) {
                // Whatever it does now, it does within its limits.
                Ok(policy) => drop(policy.decide(b"abc")),
                Err(AdmitError::Refused(_)) => {}
                Err(error) => panic!("byte {at:#x} ^ {bits:#x}: {error}"),
            }
        }
    }
}
