//! Every rule of admission is broken once, alone, and named with its place.

use evidenceos_sandbox::{AdmitError, Rule, Violation, Warning, check};

use crate::{sandbox, wat};

const RUN: &str = r#"(memory (export "memory") 1) (func (export "run"))"#;

fn violations(wasm: &[u8]) -> Vec<Violation> {
    check(wasm).expect_err("the module breaks a rule")
}

fn rules(wasm: &[u8]) -> Vec<Rule> {
    violations(wasm).iter().map(|it| it.rule).collect()
}

/// The module breaks `rule` alone, at `offset`.
#[track_caller]
fn refused(wasm: &[u8], rule: Rule, offset: Option<usize>) {
    let found: Vec<_> = violations(wasm)
        .into_iter()
        .map(|violation| (violation.rule, violation.offset))
        .collect();
    assert_eq!(found, [(rule, offset)], "{:?}", violations(wasm));
}

/// As [`refused`], with the place somewhere in the module.
#[track_caller]
fn refused_somewhere(text: &str, rule: Rule) {
    let wasm = wat(text);
    let found = violations(&wasm);
    assert!(found.len() == 1 && found[0].rule == rule, "{found:?}");
    assert!(
        found[0]
            .offset
            .is_some_and(|offset| (8..wasm.len()).contains(&offset)),
        "{found:?}"
    );
}

fn with(text: &str) -> String {
    format!("(module {text} {RUN})")
}

/// A module of these sections, byte for byte.
fn module_of(sections: &[&[u8]]) -> Vec<u8> {
    [&b"\0asm\x01\0\0\0"[..], &sections.concat()].concat()
}

/// The module, made this long by a custom section.
fn padded(module: &[u8], len: usize) -> Vec<u8> {
    // An id, a length in four bytes, and the length of no name.
    let section = len - module.len() - 5;
    let length = [
        (section & 0x7f) as u8 | 0x80,
        (section >> 7 & 0x7f) as u8 | 0x80,
        (section >> 14 & 0x7f) as u8 | 0x80,
        (section >> 21) as u8,
    ];
    let mut padded = [module, &[0], &length].concat();
    padded.resize(len, 0);
    padded
}

#[test]
fn what_is_no_module_is_named() {
    let whole = wat(&with(""));
    refused(b"", Rule::Empty, None);
    refused(b"not wasm", Rule::NotAModule, Some(0));
    refused(b"\0asm\x02\0\0\0", Rule::NotAModule, Some(4));
    refused(b"\0as", Rule::Truncated, Some(3));
    refused(b"\0asm\x01\0\0", Rule::Truncated, Some(7));
    assert_eq!(
        rules(&module_of(&[])),
        [Rule::RunExport, Rule::MemoryExport]
    );
    refused(&wat("(component)"), Rule::Component, Some(4));
    refused(&vec![0; (4 << 20) + 1], Rule::ModuleSize, Some(4 << 20));
    refused(
        &[&whole[..], b"and more"].concat(),
        Rule::TrailingData,
        Some(whole.len()),
    );
    refused(
        &[&whole[..], &[0, 0]].concat(),
        Rule::TrailingData,
        Some(whole.len()),
    );
}

#[test]
fn a_module_may_be_four_mebibytes_long_and_no_byte_longer() {
    const MOST: usize = 4 << 20;
    let module = wat(&with(""));
    assert_eq!(check(&padded(&module, MOST)).map(|info| info.len), Ok(MOST));
    refused(&padded(&module, MOST + 1), Rule::ModuleSize, Some(MOST));
}

#[test]
fn what_follows_a_module_is_trailing_data_only_if_the_module_is_whole() {
    // Its one function has a type and no code.
    let unfinished = module_of(&[&[1, 4, 1, 0x60, 0, 0], &[3, 2, 1, 0]]);
    let wasm = [&unfinished[..], b"and more"].concat();
    refused(&wasm, Rule::Invalid, Some(unfinished.len()));
}

#[test]
fn a_module_that_ends_inside_a_section_is_truncated_there() {
    let whole = wat(&with(""));
    let mut at = 8;
    while at < whole.len() {
        let end = at + 2 + usize::from(whole[at + 1]);
        for len in at + 1..end {
            refused(&whole[..len], Rule::Truncated, Some(len));
        }
        at = end;
    }
    assert_eq!(at, whole.len(), "each section's length is one byte");
    // The last of the sections that there are, by its id.
    refused(&module_of(&[&[13, 4, 1]]), Rule::Truncated, Some(11));
}

#[test]
fn a_module_cut_anywhere_is_refused() {
    let whole = wat(include_str!("../../../../testdata/guests/hill_climb.wat"));
    // wat appends a custom section with names, without which the module is whole.
    let names = check(&whole).map(|info| info.len).expect("admitted") - name_section_len(&whole);
    for len in 0..names {
        assert!(
            check(&whole[..len]).is_err(),
            "{len} of {} bytes",
            whole.len()
        );
    }
}

fn name_section_len(wasm: &[u8]) -> usize {
    let at = wasm
        .windows(5)
        .position(|bytes| bytes == b"\x04name")
        .expect("names are kept");
    wasm.len() - at + 2 // its id and its length, a byte each
}

#[test]
fn no_changed_byte_upsets_admission() {
    let whole = wat(include_str!(
        "../../../../testdata/guests/published_abi.wat"
    ));
    let sandbox = sandbox();
    for at in 0..whole.len() {
        for bits in [0x01, 0x40, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= bits;
            // Whatever is admitted, the engine takes too.
            match sandbox.prepare(&changed) {
                Ok(_) | Err(AdmitError::Refused(_)) => {}
                Err(error) => panic!("byte {at:#x} ^ {bits:#x}: {error}"),
            }
        }
    }
}

#[test]
fn imports_are_from_the_list_with_their_types() {
    refused(
        &wat(&with(
            r#"(import "wasi_snapshot_preview1" "fd_write" (func))"#,
        )),
        Rule::Import,
        Some(0x11),
    );
    refused_somewhere(&with(r#"(import "env" "clock" (func))"#), Rule::Import);
    refused_somewhere(
        &with(r#"(import "env" "table" (table 1 funcref))"#),
        Rule::Import,
    );
    refused_somewhere(
        &with(r#"(import "env" "global" (global i32))"#),
        Rule::Import,
    );
    refused_somewhere(
        &with(r#"(import "env" "oracle_query" (func (param i32)))"#),
        Rule::ImportType,
    );
    refused_somewhere(
        &with(r#"(import "env" "get_logical_epoch" (func (result i32)))"#),
        Rule::ImportType,
    );
    refused_somewhere(
        &with(
            r#"(import "env" "emit_structured_claim" (func (param i32 i32)))
               (import "env" "emit_structured_claim" (func (param i32 i32) (result i32)))"#,
        ),
        Rule::ImportType,
    );
    let memory = wat(
        r#"(module (import "env" "memory" (memory 1)) (export "memory" (memory 0)) (func (export "run")))"#,
    );
    refused(&memory, Rule::Import, Some(0x11));
}

#[test]
fn run_and_memory_are_exported_and_nothing_runs_before() {
    refused(
        &wat(r#"(module (memory (export "memory") 1))"#),
        Rule::RunExport,
        None,
    );
    refused(
        &wat(r#"(module (func (export "run")))"#),
        Rule::MemoryExport,
        None,
    );
    refused_somewhere(
        r#"(module (memory (export "memory") 1) (func (export "run") (param i32)))"#,
        Rule::RunExport,
    );
    refused_somewhere(
        r#"(module (memory (export "memory") (export "run") 1))"#,
        Rule::RunExport,
    );
    refused_somewhere(
        r#"(module (memory 1) (func (export "run") (export "memory")))"#,
        Rule::MemoryExport,
    );
    refused_somewhere(&with("(func $early) (start $early)"), Rule::StartFunction);
    assert!(
        check(&wat(&with(r#"(func (export "other"))"#))).is_ok(),
        "other exports are ignored"
    );
}

#[test]
fn features_beyond_the_list_are_told_from_errors() {
    for text in [
        "(func (drop (v128.const i64x2 0 0)))",
        "(func (local v128))",
        "(func $f (return_call $f))",
        "(memory 1)",
        "(tag)",
        "(type (struct))",
        "(func (param externref))",
        "(global i32 (i32.add (i32.const 1) (i32.const 2)))",
        "(func (drop (i32.atomic.load (i32.const 0))))",
    ] {
        let found = violations(&wat(&with(text)));
        assert!(
            found
                .iter()
                .all(|violation| violation.rule == Rule::Feature),
            "{text}: {found:?}"
        );
    }
    refused_somewhere(
        r#"(module (memory (export "memory") i64 1) (func (export "run")))"#,
        Rule::Feature,
    );
    refused_somewhere(
        r#"(module (memory (export "memory") 1 1 shared) (func (export "run")))"#,
        Rule::Feature,
    );
    refused_somewhere(&with("(func (result i32))"), Rule::Invalid);
    for text in [
        "(func (param f64) (result i64) (i64.trunc_sat_f64_s (local.get 0)))",
        "(func (param i32) (result i32) (i32.extend8_s (local.get 0)))",
        "(func (result i32 i32) (i32.const 1) (i32.const 2))",
        "(func (memory.fill (i32.const 0) (i32.const 0) (i32.const 9)))",
        "(table 1 funcref) (func (result i32) (table.grow (ref.null func) (i32.const 1)))",
    ] {
        assert_eq!(check(&wat(&with(text))).map(|_| ()), Ok(()), "{text}");
    }
}

#[test]
fn bounds_are_inclusive() {
    let many = |count: usize, text: &str| with(&text.repeat(count));
    // A body is so many bytes, its end and that it has no locals.
    let body = |len: usize| format!("(func {})", "nop ".repeat(len - 2));
    // The code section is a count, four of these, each with its length in three bytes, and the three bytes of `run`.
    let bodies = |last: usize| with(&(body(65_532).repeat(3) + &body(last)));
    let types = |values: usize| {
        let one = |values: usize| format!("(type (func (param {})))", "i64 ".repeat(values));
        with(&(one(1_000).repeat(values / 1_000) + &one(values % 1_000)))
    };
    let elements = |last: usize| {
        let one = |entries: usize| format!("(elem func {})", "$f ".repeat(entries));
        with(&("(func $f)".to_owned() + &one(10_000) + &one(last)))
    };
    let cases: [(Rule, String, String); 12] = [
        (Rule::Segments, elements(10_000), elements(10_001)),
        (Rule::Entries, types(65_536), types(65_537)),
        (Rule::Code, with(&body(65_536)), with(&body(65_537))),
        (Rule::Code, bodies(65_532), bodies(65_533)),
        (
            Rule::Functions,
            many(9_999, "(func)"),
            many(10_000, "(func)"),
        ),
        (
            Rule::Globals,
            many(1_000, "(global i32 (i32.const 0))"),
            many(1_001, "(global i32 (i32.const 0))"),
        ),
        (
            Rule::Segments,
            many(10_000, "(data \"\")"),
            many(10_001, "(data \"\")"),
        ),
        (
            Rule::Tables,
            with("(table 10000 funcref)"),
            with("(table 10001 funcref)"),
        ),
        (
            Rule::Tables,
            many(10, "(table 0 funcref)"),
            many(11, "(table 0 funcref)"),
        ),
        (
            Rule::Locals,
            with(&format!("(func (local {}))", "i32 ".repeat(10_000))),
            with(&format!("(func (local {}))", "i32 ".repeat(10_001))),
        ),
        (
            Rule::Memory,
            r#"(module (memory (export "memory") 8192) (func (export "run")))"#.into(),
            r#"(module (memory (export "memory") 8193) (func (export "run")))"#.into(),
        ),
        (
            Rule::DataBounds,
            with("(data (i32.const 65535) \"a\")"),
            with("(data (i32.const 65535) \"ab\")"),
        ),
    ];
    for (rule, within, beyond) in cases {
        assert_eq!(check(&wat(&within)).map(|_| ()), Ok(()), "{rule}");
        refused_somewhere(&beyond, rule);
    }
    refused_somewhere(&with("(data (i32.const -1) \"\")"), Rule::DataBounds);
    refused_somewhere(
        &many(
            101,
            r#"(import "env" "get_logical_epoch" (func (result i64)))"#,
        ),
        Rule::Entries,
    );
}

#[test]
fn a_flood_of_imports_is_refused_without_reading_it_all() {
    let imports = r#"(import "env" "get_logical_epoch" (func (result i64)))"#.repeat(50_000);
    let found = violations(&wat(&with(&imports)));
    assert_eq!(found[0].rule, Rule::Entries, "{found:?}");
}

#[test]
fn a_section_that_claims_more_than_it_has_reaches_no_validator() {
    // Found by fuzzing: a validator makes room for a million entries before it reads the first one.
    const MILLION: [u8; 3] = [0xc0, 0x84, 0x3d];
    for section in [1, 2, 3, 4, 5, 6, 7, 9, 11, 13] {
        let wasm = [b"\0asm\x01\0\0\0", &[section, 4][..], &MILLION, &[0]].concat();
        let found = violations(&wasm);
        let claim = "a section claims 1000000 entries, more than it has bytes";
        assert!(
            found.iter().any(|violation| violation.message == claim),
            "{section}: {found:?}"
        );
    }
}

#[test]
fn a_section_claims_too_much_only_if_it_claims_more_entries_than_it_has_bytes() {
    let found = |count: u8| violations(&module_of(&[&[6, 5, count, 0, 0, 0, 0]]));
    let claims = |found: &[Violation]| {
        let claims = |violation: &&Violation| violation.message.contains("a section claims");
        found.iter().filter(claims).count()
    };
    assert_eq!(claims(&found(5)), 0, "{:?}", found(5));
    assert_eq!(claims(&found(6)), 1, "{:?}", found(6));
}

#[test]
fn what_is_kept_from_validators_breaks_no_rule_that_they_apply() {
    // A count of tags is all of its section, and the only thing of it that is read.
    let tags = module_of(&[&[13, 1, 2]]);
    assert_eq!(
        rules(&tags),
        [Rule::Invalid, Rule::RunExport, Rule::MemoryExport]
    );
    // The function's code is not valid, and after the types nobody asks.
    let types = format!("(type (func (param {})))", "i64 ".repeat(1_000)).repeat(66);
    refused_somewhere(
        &with(&format!("{types} (func (result i32))")),
        Rule::Entries,
    );
    // Imports in a form that is a feature: to tell it from an error takes a validator.
    let compact = [2, 5, 1, 0, 0, 0x7f, 0];
    assert_eq!(rules(&module_of(&[&compact])), [Rule::Feature]);
    let types = wat(&format!("(module {types})"));
    assert_eq!(
        rules(&[&types[..], &compact].concat()),
        [Rule::Entries, Rule::Invalid]
    );
    // So does whether what comes before other bytes is a whole module.
    assert_eq!(
        rules(&[&types[..], b"and more"].concat()),
        [Rule::Entries, Rule::Invalid]
    );
}

#[test]
fn no_more_than_a_hundred_violations_are_named() {
    let wrong =
        |functions: usize| violations(&wat(&with(&"(func (result i32))".repeat(functions))));
    assert_eq!(wrong(99).len(), 99);
    assert_eq!(wrong(100).len(), 100);
    assert_eq!(wrong(101).len(), 100);
}

#[test]
fn admission_tells_what_it_learnt_of_a_module() {
    let wasm = wat(
        r#"(module (import "kernel" "get_logical_epoch" (func (result i64)))
             (memory (export "memory") 2 3) (func (export "run")) (func)
             (data (i32.const 8) "four") (data "of a passive one"))"#,
    );
    let info = check(&wasm).expect("admitted");
    assert_eq!(
        (info.len, info.functions, info.data_bytes),
        (wasm.len(), 2, 20)
    );
    assert_eq!((info.asks, info.submits, info.emits), (false, false, false));
    assert_eq!(
        (info.initial_memory_pages, info.maximum_memory_pages),
        (2, Some(3))
    );
}

#[test]
fn all_broken_rules_are_named_at_once() {
    let found = violations(&wat(
        r#"(module (import "a" "b" (func)) (import "env" "oracle_query" (func)) (func $s) (start $s)
             (func (result i32)) (func (result i64)))"#,
    ));
    let rules: Vec<_> = found.iter().map(|violation| violation.rule).collect();
    let wanted = [
        Rule::Import,
        Rule::ImportType,
        Rule::StartFunction,
        Rule::Invalid,
        Rule::Invalid,
        Rule::RunExport,
        Rule::MemoryExport,
    ];
    assert_eq!(rules, wanted, "{found:?}");
}

#[test]
fn what_a_module_will_not_do_is_warned_of() {
    let info = check(&wat(&with(""))).expect("admitted");
    assert_eq!(info.warnings, [Warning::NeverEmits, Warning::NeverJudged]);
    let info = check(&wat(include_str!(
        "../../../../testdata/guests/hill_climb.wat"
    )))
    .expect("admitted");
    assert_eq!(
        (
            info.asks,
            info.submits,
            info.emits,
            info.initial_memory_pages
        ),
        (true, true, true, 1)
    );
    assert!(info.warnings.is_empty());
    // Either of the two is enough to be judged.
    for name in ["oracle_query", "oracle_bucket", "submit_predictions"] {
        let import = format!(r#"(import "env" "{name}" (func (param i32 i32) (result i32)))"#);
        let info = check(&wat(&with(&import))).expect("admitted");
        assert_eq!(info.warnings, [Warning::NeverEmits], "{name}");
    }
}

/// `run` opens `depth` of these blocks, each of which takes and leaves so many values.
fn nested(kind: &str, depth: usize, values: usize) -> Vec<u8> {
    let types = "i32 ".repeat(values);
    let zeros = "i32.const 0 ".repeat(values);
    let open = format!("{kind} (param {types}) (result {types}) ").repeat(depth);
    let (close, drop) = ("end ".repeat(depth), "drop ".repeat(values));
    wat(&format!(
        r#"(module (memory (export "memory") 1) (func (export "run") {zeros}{open}{close}{drop}))"#
    ))
}

/// `run`, and so many functions with so many locals.
fn with_locals(functions: usize, locals: usize) -> Vec<u8> {
    let function = format!("(func (local {}))", "i64 ".repeat(locals));
    wat(&format!(
        r#"(module (memory (export "memory") 1) (func (export "run")) {})"#,
        function.repeat(functions)
    ))
}

#[test]
fn what_compiles_into_much_more_than_its_bytes_is_refused() {
    let bombs = [
        ("blocks", nested("block", 4_000, 100), Rule::Carried),
        ("loops", nested("loop", 400, 1_000), Rule::Carried),
        ("one value", nested("loop", 4_060, 1), Rule::Flow),
        ("locals", with_locals(990, 10_000), Rule::Locals),
    ];
    for (name, wasm, rule) in bombs {
        let found = check(&wasm).expect_err(name);
        assert!(
            found.iter().any(|violation| violation.rule == rule),
            "{name}: {found:?}"
        );
    }
}

#[test]
fn what_the_compiler_must_keep_account_of_is_bounded_over_all_functions() {
    let rules = |wasm: &[u8]| {
        check(wasm).map_or_else(
            |found| found.iter().map(|violation| violation.rule).collect(),
            |_| Vec::new(),
        )
    };
    // 50 blocks with 101 parameters and as many results carry 2 × 100 values beyond the first each.
    assert_eq!(rules(&nested("block", 50, 101)), []);
    assert_eq!(rules(&nested("block", 51, 101)), [Rule::Carried]);

    // Blocks that take one value and leave one, times blocks: 2 × 2,000 × 2,000, within each other or in a row.
    let in_a_row = |blocks: usize| {
        wat(&format!(
            r#"(module (memory (export "memory") 1) (func (export "run") i32.const 0 {} drop))"#,
            "loop (param i32) (result i32) end ".repeat(blocks)
        ))
    };
    for blocks in [
        |blocks| nested("block", blocks, 1),
        |blocks| nested("loop", blocks, 1),
        in_a_row,
    ] as [fn(usize) -> Vec<u8>; 3]
    {
        assert_eq!(rules(&blocks(2_000)), []);
        assert_eq!(rules(&blocks(2_001)), [Rule::Flow]);
    }
    assert_eq!(
        rules(&wat(&format!(
            r#"(module (memory (export "memory") 1) (func (export "run") {} {}))"#,
            "block ".repeat(20_000),
            "end ".repeat(20_000)
        ))),
        []
    );
    // 1,000 blocks leave one value each, and a table of branches carries one for each of its targets. What is one
    // place is the table's instruction for each target.
    let table = |targets: usize| {
        wat(&format!(
            r#"(module (memory (export "memory") 1)
                 (func (export "run") {} i32.const 0 i32.const 0 br_table {} 999 {} drop))"#,
            "block (result i32) ".repeat(1_000),
            "999 ".repeat(targets - 1),
            "end ".repeat(1_000),
        ))
    };
    assert_eq!(rules(&table(1_828)), []);
    assert_eq!(rules(&table(1_829)), [Rule::Flow]);

    assert_eq!(rules(&with_locals(50, 10_000)), []);
    assert_eq!(rules(&with_locals(51, 10_000)), [Rule::Locals]);

    // A branch carries what its block leaves, or what its loop takes; a table for each of its targets.
    let branches = |times: usize, branch: &str| {
        let values = "i32.const 0 ".repeat(101);
        let types = "i32 ".repeat(101);
        let body = format!("{values} {branch} ").repeat(times);
        wat(&format!(
            r#"(module (memory (export "memory") 1)
                 (func (export "run") (block (result {types}) {body} {values}) {}))"#,
            "drop ".repeat(101)
        ))
    };
    // The block itself carries 100.
    assert_eq!(rules(&branches(99, "br 0")), []);
    assert_eq!(rules(&branches(100, "br 0")), [Rule::Carried]);
    assert_eq!(rules(&branches(49, "i32.const 0 br_table 0 0")), []);
    assert_eq!(
        rules(&branches(50, "i32.const 0 br_table 0 0")),
        [Rule::Carried]
    );

    // 2,000 locals at the starts of 500 blocks.
    let blocks = |blocks: usize| {
        wat(&format!(
            r#"(module (memory (export "memory") 1)
                 (func (export "run") (local {}) {}))"#,
            "i64 ".repeat(2_000),
            "block end ".repeat(blocks)
        ))
    };
    assert_eq!(rules(&blocks(500)), []);
    assert_eq!(rules(&blocks(501)), [Rule::Tracked]);
    // And at branches out of one, for each target of a table.
    let leaving = |times: usize, branch: &str| {
        wat(&format!(
            r#"(module (memory (export "memory") 1)
                 (func (export "run") (local {}) block {} end))"#,
            "i64 ".repeat(2_000),
            format!("{branch} ").repeat(times)
        ))
    };
    assert_eq!(rules(&leaving(499, "br 0")), []);
    assert_eq!(rules(&leaving(500, "br 0")), [Rule::Tracked]);
    // The condition of `br_if`, or the index of a table, waits too.
    assert_eq!(rules(&leaving(498, "i32.const 0 br_if 0")), []);
    assert_eq!(rules(&leaving(499, "i32.const 0 br_if 0")), [Rule::Tracked]);
    assert_eq!(rules(&leaving(249, "i32.const 0 br_table 0 0")), []);
    assert_eq!(
        rules(&leaving(250, "i32.const 0 br_table 0 0")),
        [Rule::Tracked]
    );
    let ifs = "i32.const 0 if else end ".repeat(250);
    let waiting = |values: usize| {
        let (values, drops) = ("i64.const 0 ".repeat(values), "drop ".repeat(values));
        wat(&format!(
            r#"(module (memory (export "memory") 1) (func (export "run") {values} {ifs} {drops}))"#
        ))
    };
    // At an `if` its condition waits too, and both its arms are blocks.
    assert_eq!(rules(&waiting(1_999)), []);
    assert_eq!(rules(&waiting(2_000)), [Rule::Tracked]);
}

#[test]
fn the_names_that_a_module_exports_are_given_in_its_order() {
    let module =
        wat(r#"(module (memory (export "memory") 1) (func (export "run")) (func (export "a")))"#);
    assert_eq!(
        evidenceos_sandbox::export_names(&module),
        ["memory", "run", "a"]
    );
    assert_eq!(evidenceos_sandbox::export_names(&wat("(module)")), [""; 0]);
    assert_eq!(evidenceos_sandbox::export_names(b"no module"), [""; 0]);
    // As far as it can be read.
    let cut = &module[..module.len() - 3];
    assert_eq!(
        evidenceos_sandbox::export_names(cut),
        ["memory", "run", "a"]
    );
}
