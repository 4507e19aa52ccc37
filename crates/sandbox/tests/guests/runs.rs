//! What runs report: every ending, what is judged, and that a repetition is identical.

use evidenceos_sandbox::{Broken, End, Limits, Ran, TrapCause};

use crate::{LABELS, Labels, limits, run, run_with, sandbox, wat};

/// A guest with every import, 16 predictions at 0 (the first of them 1), as many at 32 (all 0), and this body.
fn guest(body: &str) -> Vec<u8> {
    wat(&format!(
        r#"(module
            (import "env" "oracle_query" (func $ask (param i32 i32) (result i32)))
            (import "env" "submit_predictions" (func $submit (param i32 i32) (result i32)))
            (import "env" "emit_structured_claim" (func $emit (param i32 i32) (result i32)))
            (import "env" "get_logical_epoch" (func $epoch (result i64)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\01")
            (func (export "run") {body}))"#
    ))
}

/// The same without `submit_predictions`.
fn asking_guest(body: &str) -> Vec<u8> {
    wat(&format!(
        r#"(module
            (import "env" "oracle_query" (func $ask (param i32 i32) (result i32)))
            (import "env" "emit_structured_claim" (func $emit (param i32 i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\01")
            (func (export "run") {body}))"#
    ))
}

const ASK: &str = "(drop (call $ask (i32.const 0) (i32.const 16)))";
const ASK_ZEROS: &str = "(drop (call $ask (i32.const 32) (i32.const 16)))";
const SUBMIT: &str = "(drop (call $submit (i32.const 0) (i32.const 16)))";
const EMIT: &str = "(drop (call $emit (i32.const 0) (i32.const 1)))";

#[track_caller]
fn trapped(wasm: &[u8], cause: TrapCause) -> Ran {
    let report = run(wasm);
    assert_eq!((&report.end, &report.judged), (&End::Trapped(cause), &None));
    report
}

#[test]
fn every_trap_has_its_cause() {
    let cases = [
        ("unreachable", TrapCause::Trap(Broken::Unreachable)),
        (
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            TrapCause::Trap(Broken::DivisionByZero),
        ),
        (
            "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
            TrapCause::Trap(Broken::IntegerOverflow),
        ),
        (
            "(drop (i32.trunc_f32_s (f32.const nan)))",
            TrapCause::Trap(Broken::BadConversion),
        ),
        ("(loop $l (br $l))", TrapCause::OutOfFuel),
        (
            "(loop $l (drop (call $epoch)) (br $l))",
            TrapCause::OutOfFuel,
        ),
        (
            "(loop $l (drop (call $submit (i32.const 0) (i32.const 16))) (br $l))",
            TrapCause::OutOfFuel,
        ),
        (
            "(loop $l (memory.fill (i32.const 0) (i32.const 0) (i32.const 65536)) (br $l))",
            TrapCause::OutOfFuel,
        ),
        (
            "(drop (i32.load (i32.const 65533)))",
            TrapCause::OutOfBounds,
        ),
        (
            "(drop (call $ask (i32.const 65530) (i32.const 16)))",
            TrapCause::OutOfBounds,
        ),
        (
            "(drop (call $ask (i32.const -1) (i32.const 16)))",
            TrapCause::OutOfBounds,
        ),
        (
            "(drop (call $submit (i32.const 65530) (i32.const 16)))",
            TrapCause::OutOfBounds,
        ),
        (
            "(drop (call $emit (i32.const 65530) (i32.const 16)))",
            TrapCause::OutOfBounds,
        ),
        (
            "(drop (call $ask (i32.const 0) (i32.const 15)))",
            TrapCause::InvalidVector,
        ),
        (
            "(drop (call $ask (i32.const 0) (i32.const 17)))",
            TrapCause::InvalidVector,
        ),
        (
            "(drop (call $submit (i32.const 0) (i32.const -1)))",
            TrapCause::InvalidVector,
        ),
        (
            "(i32.store8 (i32.const 15) (i32.const 2)) (drop (call $ask (i32.const 0) (i32.const 16)))",
            TrapCause::InvalidVector,
        ),
        (
            "(i32.store8 (i32.const 0) (i32.const 255)) (drop (call $submit (i32.const 0) (i32.const 16)))",
            TrapCause::InvalidVector,
        ),
        (
            "(loop $l (drop (call $ask (i32.const 0) (i32.const 16))) (br $l))",
            TrapCause::TooManyCalls,
        ),
        (
            "(drop (call $emit (i32.const 0) (i32.const 2049)))",
            TrapCause::OutputTooLarge,
        ),
        (
            "(drop (call $emit (i32.const 0) (i32.const 1))) (drop (call $emit (i32.const 0) (i32.const 1)))",
            TrapCause::EmittedTwice,
        ),
    ];
    for (body, cause) in cases {
        assert_eq!(run(&guest(body)).end, End::Trapped(cause), "{body}");
    }
}

#[test]
fn an_exhausted_allowance_traps_the_question_that_it_refuses() {
    let labels = Labels {
        allowance: 2,
        ..Labels::new(&LABELS)
    };
    let (report, labels) = run_with(&guest(&ASK.repeat(3)), &limits(16), labels);
    assert_eq!(report.end, End::Trapped(TrapCause::AllowanceExhausted));
    assert_eq!((report.oracle_calls, labels.asked.len()), (3, 2));
}

#[test]
fn a_call_beyond_the_limit_never_reaches_the_oracle() {
    let limits = Limits {
        oracle_calls: 2,
        ..limits(16)
    };
    let (report, labels) = run_with(&guest(&ASK.repeat(3)), &limits, Labels::new(&LABELS));
    assert_eq!(report.end, End::Trapped(TrapCause::TooManyCalls));
    assert_eq!((report.oracle_calls, labels.asked.len()), (2, 2));
}

#[test]
fn an_instruction_that_traps_forfeits_the_fuel() {
    let all = limits(16).fuel;
    let burn = "(local $i i32)
        (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 9999))))";
    let used = |then: &str| run(&guest(&format!("{burn} {then}"))).fuel_used;
    assert_eq!(used("(drop (i32.div_u (i32.const 1) (i32.const 0)))"), all);
    assert_eq!(used("(drop (i32.load (i32.const -1)))"), all);
    for counted in [
        "unreachable",
        "(drop (call $ask (i32.const 0) (i32.const 1)))",
        "",
    ] {
        assert!(
            (50_000..100_000).contains(&used(counted)),
            "{counted} {}",
            used(counted)
        );
    }
}

#[test]
fn a_guest_that_gives_up_for_want_of_memory_is_out_of_memory() {
    // As a language does whose allocation fails.
    let refused = "(if (i32.eq (memory.grow (i32.const 65000)) (i32.const -1)) (then unreachable))";
    trapped(&guest(refused), TrapCause::OutOfMemory);
    // Another trap is told as what it is.
    let divides =
        "(drop (memory.grow (i32.const 65000))) (drop (i32.div_u (i32.const 1) (i32.const 0)))";
    trapped(&guest(divides), TrapCause::Trap(Broken::DivisionByZero));
}

#[test]
fn a_trap_after_the_output_undoes_it() {
    trapped(
        &guest(&format!("{SUBMIT} {EMIT} unreachable")),
        TrapCause::Trap(Broken::Unreachable),
    );
    trapped(
        &guest(&format!("{SUBMIT} {EMIT} (loop $l (br $l))")),
        TrapCause::OutOfFuel,
    );
}

#[test]
fn the_last_vector_before_the_output_is_judged() {
    let one = || Some([&[1][..], &[0; 15]].concat());
    let zeros = || Some(vec![0; 16]);
    let submit_zeros = "(drop (call $submit (i32.const 32) (i32.const 16)))";
    let cases = [
        (guest(&format!("{SUBMIT} {EMIT}")), one()),
        (guest(&format!("{SUBMIT} {submit_zeros} {EMIT}")), zeros()),
        (guest(&format!("{SUBMIT} {EMIT} {submit_zeros}")), one()),
        (guest(&format!("{SUBMIT} {ASK_ZEROS} {EMIT}")), one()),
        (guest(&format!("{ASK} {EMIT}")), None),
        (guest(&format!("{EMIT} {SUBMIT}")), None),
    ];
    for (wasm, judged) in cases {
        let report = run(&wasm);
        assert_eq!((report.end, report.judged), (End::Emitted(vec![1]), judged));
    }
    let emit = "(call $emit (i32.const 0) (i32.const 1))";
    let cases = [
        (asking_guest(&format!("{ASK_ZEROS} {ASK} {emit}")), one(), 2),
        (asking_guest(&format!("{ASK} {emit} {ASK_ZEROS}")), one(), 2),
        (asking_guest(emit), None, 0),
    ];
    for (wasm, judged, calls) in cases {
        let report = run(&wasm);
        assert_eq!((report.judged, report.oracle_calls), (judged, calls));
    }
}

#[test]
fn a_run_without_output_says_so() {
    assert_eq!(run(&guest("")).end, End::NoOutput);
    assert_eq!(
        run(&guest("(drop (call $emit (i32.const 0) (i32.const 0)))")).end,
        End::Emitted(vec![])
    );
}

#[test]
fn memory_is_bounded_by_the_lane() {
    let bomb = wat(include_str!("../../../../testdata/guests/memory_bomb.wat"));
    let report = trapped(&bomb, TrapCause::OutOfBounds);
    assert_eq!(
        report.memory_pages, 1,
        "growth by 16 pages would pass the 16 that the lane has"
    );
    let (report, _) = run_with(
        &bomb,
        &Limits {
            memory_bytes: 64 << 20,
            ..limits(16)
        },
        Labels::new(&LABELS),
    );
    assert_eq!(report.memory_pages, 1 + 16 * 63);
    let large = wat(r#"(module (memory (export "memory") 17) (func (export "run")))"#);
    assert_eq!(trapped(&large, TrapCause::OutOfMemory).fuel_used, 0);
}

#[test]
fn deep_recursion_is_out_of_memory() {
    let wasm = wat(
        r#"(module (memory (export "memory") 1) (func $f (export "run") (call $f) (call $f)))"#,
    );
    let first = trapped(&wasm, TrapCause::OutOfMemory);
    // The depth is the same on a thread with another stack.
    let other = std::thread::spawn(move || run(&wasm))
        .join()
        .expect("the run does not panic");
    assert_eq!(first, other);
}

#[test]
fn a_table_is_bounded_and_its_misuse_is_a_trap() {
    let table = |body: &str| {
        wat(&format!(
            r#"(module (table $t 1 funcref) (memory (export "memory") 1)
                 (func (export "run") {body}))"#
        ))
    };
    let call = "(call_indirect (i32.const 0))";
    assert_eq!(
        run(&table(call)).end,
        End::Trapped(TrapCause::Trap(Broken::NullEntry))
    );
    assert_eq!(
        run(&table("(call_indirect (i32.const 1))")).end,
        End::Trapped(TrapCause::OutOfBounds)
    );
    let grows = |by: u32| {
        format!(
            "(if (i32.eq (table.grow $t (ref.null func) (i32.const {by})) (i32.const -1)) (then unreachable))"
        )
    };
    assert_eq!(run(&table(&grows(9_999))).end, End::NoOutput);
    assert_eq!(
        run(&table(&grows(10_000))).end,
        End::Trapped(TrapCause::Trap(Broken::Unreachable))
    );
    let segment = wat(
        r#"(module (table 1 funcref) (elem (i32.const 1) $run) (memory (export "memory") 1)
             (func $run (export "run")))"#,
    );
    assert_eq!(run(&segment).end, End::Trapped(TrapCause::OutOfBounds));
}

#[test]
fn the_epoch_is_fuel_over_its_size() {
    let wasm = guest(
        "(i64.store (i32.const 0) (call $epoch))
         (drop (call $submit (i32.const 32) (i32.const 16)))
         (i64.store (i32.const 8) (call $epoch))
         (drop (call $emit (i32.const 0) (i32.const 16)))",
    );
    let epochs = |epoch_size| {
        let (report, _) = run_with(
            &wasm,
            &Limits {
                epoch_size,
                ..limits(16)
            },
            Labels::new(&LABELS),
        );
        let End::Emitted(bytes) = report.end else {
            panic!("{:?}", report.end)
        };
        (bytes[0], bytes[8], report.fuel_used)
    };
    let (first, second, used) = epochs(1);
    assert!(
        32 < first && first + 64 < second && u64::from(second) < used,
        "{first} {second} {used}"
    );
    assert_eq!(epochs(u64::from(first)), (1, second / first, used));
    assert_eq!(epochs(0), (0, 0, used));
}

#[test]
fn a_host_call_costs_fuel_for_its_bytes() {
    let fuel = |items: u64| {
        let wasm = wat(&format!(
            r#"(module (import "env" "submit_predictions" (func $s (param i32 i32) (result i32)))
                 (memory (export "memory") 1)
                 (func (export "run") (drop (call $s (i32.const 0) (i32.const {items})))))"#
        ));
        run_with(&wasm, &limits(items), Labels::new(&[]))
            .0
            .fuel_used
    };
    assert_eq!(fuel(8_000) - fuel(8), 999);
    assert_eq!(fuel(9), fuel(16));
}

#[test]
fn exactly_enough_fuel_is_enough() {
    let wasm = guest(&format!("{ASK} {SUBMIT} {EMIT}"));
    let used = run(&wasm).fuel_used;
    let with_fuel = |fuel| run_with(&wasm, &Limits { fuel, ..limits(16) }, Labels::new(&LABELS)).0;
    assert_eq!(with_fuel(used + 1).end, End::Emitted(vec![1]));
    let short = with_fuel(used - 10);
    assert_eq!(
        (short.end, short.fuel_used),
        (End::Trapped(TrapCause::OutOfFuel), used - 10)
    );
    assert_eq!(with_fuel(0).end, End::Trapped(TrapCause::OutOfFuel));
}

#[test]
fn a_hundred_runs_are_identical() {
    let sandbox = sandbox();
    for text in [
        include_str!("../../../../testdata/guests/hill_climb.wat"),
        include_str!("../../../../testdata/guests/nan.wat"),
        include_str!("../../../../testdata/guests/memory_bomb.wat"),
    ] {
        let prepared = sandbox.prepare(&wat(text)).expect("admitted");
        let once = || {
            sandbox
                .run(&prepared, &limits(16), false, &mut Labels::new(&LABELS))
                .expect("the host does not fail")
        };
        let first = once();
        assert!((1..100).all(|_| once() == first));
    }
}

#[test]
fn answers_steer_the_guest() {
    let wasm = wat(include_str!("../../../../testdata/guests/hill_climb.wat"));
    let (report, labels) = run_with(&wasm, &limits(16), Labels::new(&LABELS));
    assert_eq!(report.end, End::Emitted(vec![16]));
    assert_eq!(report.judged.as_deref(), Some(&LABELS[..]));
    assert_eq!((report.oracle_calls, labels.asked.len()), (9, 9));
}

#[test]
fn the_published_interface_works_in_its_other_spelling() {
    let report = run(&wat(include_str!(
        "../../../../testdata/guests/published_abi.wat"
    )));
    let matches = LABELS
        .iter()
        .enumerate()
        .filter(|(item, label)| item % 2 == usize::from(**label))
        .count();
    assert_eq!(report.end, End::Emitted(vec![matches as u8]));
    assert_eq!(report.judged, Some([0, 1].repeat(8)));
}

#[test]
fn every_nan_has_the_canonical_bits() {
    let report = run(&wat(include_str!("../../../../testdata/guests/nan.wat")));
    let canonical = 0x7ff8_0000_0000_0000_u64.to_le_bytes();
    assert_eq!(report.end, End::Emitted(canonical.repeat(4)));
}

#[test]
fn an_endless_loop_uses_exactly_its_fuel() {
    let report = trapped(
        &wat(include_str!("../../../../testdata/guests/endless_loop.wat")),
        TrapCause::OutOfFuel,
    );
    assert_eq!(report.fuel_used, limits(16).fuel);
}

#[test]
fn data_that_code_can_name_stays_with_the_code() {
    let wasm = wat(
        r#"(module (import "env" "emit_structured_claim" (func $emit (param i32 i32)))
             (memory (export "memory") 1)
             (data $active (i32.const 4) "abcd") (data $passive "wxyz")
             (func (export "run")
               (memory.init $passive (i32.const 0) (i32.const 0) (i32.const 4))
               (data.drop $passive)
               (call $emit (i32.const 0) (i32.const 8))))"#,
    );
    assert_eq!(run(&wasm).end, End::Emitted(b"wxyzabcd".to_vec()));
}

#[test]
fn code_may_drop_a_segment_that_is_in_memory_from_the_start() {
    // Without a passive segment only the count of segments says that code may name them.
    let wasm = wat(
        r#"(module (import "env" "emit_structured_claim" (func $emit (param i32 i32)))
             (memory (export "memory") 1)
             (data $active (i32.const 0) "abcd")
             (func (export "run")
               (data.drop $active)
               (call $emit (i32.const 0) (i32.const 4))))"#,
    );
    assert_eq!(run(&wasm).end, End::Emitted(b"abcd".to_vec()));
}

#[test]
fn later_segments_overwrite_earlier_ones_and_runs_start_afresh() {
    let wasm = wat(
        r#"(module (import "env" "emit_structured_claim" (func $emit (param i32 i32)))
             (memory (export "memory") 1)
             (data (i32.const 0) "abcd") (data (i32.const 2) "xy")
             (func (export "run")
               (call $emit (i32.const 0) (i32.const 4))
               (i32.store (i32.const 0) (i32.const -1))))"#,
    );
    let sandbox = sandbox();
    let prepared = sandbox.prepare(&wasm).expect("admitted");
    for _ in 0..2 {
        let report = sandbox
            .run(&prepared, &limits(16), false, &mut Labels::new(&LABELS))
            .expect("the host does not fail");
        assert_eq!(report.end, End::Emitted(b"abxy".to_vec()));
    }
}
