//! Packed modules do what their mode says, and share one compilation.

use std::sync::{Arc, Barrier};

use evidenceos_sandbox::{
    End, Limits, MAX_PACKED_ITEMS, Mode, PackError, PackOptions, check, output_len, pack,
};

use crate::{LABELS, Labels, limits, run, run_with, sandbox};

fn options(predictions: &[u8], mode: Mode) -> PackOptions<'_> {
    PackOptions::new(predictions, mode)
}

#[test]
fn each_mode_asks_and_submits_as_it_says() {
    let predictions = [1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1];
    let cases = [
        (Mode::Judge, 1, true, 0),
        (Mode::AskAndJudge, 8, true, 1),
        (Mode::AskOnly, 8, false, 1),
    ];
    for (mode, symbol, is_judged, calls) in cases {
        let wasm = pack(&PackOptions {
            symbol: 1,
            ..options(&predictions, mode)
        })
        .expect("packs");
        let report = run(&wasm);
        assert_eq!(report.end, End::Emitted(vec![symbol]), "{mode:?}");
        assert_eq!(
            report.judged.as_deref(),
            is_judged.then_some(&predictions[..]),
            "{mode:?}"
        );
        assert_eq!(report.oracle_calls, calls, "{mode:?}");
        assert!(check(&wasm).expect("admitted").warnings.is_empty());
    }
}

#[test]
fn a_symbol_is_emitted_big_endian_in_the_length_of_its_alphabet() {
    for (num_symbols, len) in [
        (2, 1),
        (3, 1),
        (256, 1),
        (257, 2),
        (65_536, 2),
        (65_537, 3),
        (u32::MAX, 4),
    ] {
        assert_eq!(output_len(num_symbols), len, "{num_symbols}");
        let symbol = num_symbols - 1;
        let wasm = pack(&PackOptions {
            num_symbols,
            symbol,
            ..options(&LABELS, Mode::Judge)
        })
        .expect("packs");
        let wanted = symbol.to_be_bytes()[4 - len as usize..].to_vec();
        assert_eq!(run(&wasm).end, End::Emitted(wanted), "{num_symbols}");
    }
    // All right: the oracle answers 16.
    let wasm = pack(&PackOptions {
        num_symbols: 257,
        ..options(&LABELS, Mode::AskOnly)
    })
    .expect("packs");
    assert_eq!(run(&wasm).end, End::Emitted(vec![0, 16]));
}

#[test]
fn a_million_items_are_packed_asked_and_judged() {
    let predictions: Vec<u8> = (0..1_000_000).map(|item| (item % 3 == 0) as u8).collect();
    let wasm = pack(&options(&predictions, Mode::AskAndJudge)).expect("packs");
    let limits = Limits {
        memory_bytes: 64 << 20,
        ..limits(1_000_000)
    };
    let (report, labels) = run_with(&wasm, &limits, Labels::new(&predictions));
    assert_eq!(
        (report.end, report.memory_pages),
        (End::Emitted(vec![255]), 16)
    );
    assert_eq!(report.judged.as_ref(), Some(&predictions));
    assert_eq!(labels.asked, [predictions]);
    let largest = pack(&options(&vec![1; MAX_PACKED_ITEMS], Mode::Judge)).expect("packs");
    assert!(check(&largest).is_ok());
}

#[test]
fn what_makes_no_sense_is_not_packed() {
    let good = options(&[1, 0], Mode::Judge);
    let too_many = vec![0; MAX_PACKED_ITEMS + 1];
    let cases = [
        (
            PackOptions {
                predictions: &[],
                ..good
            },
            PackError::Empty,
        ),
        (
            PackOptions {
                predictions: &too_many,
                ..good
            },
            PackError::TooMany {
                items: MAX_PACKED_ITEMS + 1,
            },
        ),
        (
            PackOptions {
                predictions: &[0, 1, 2],
                ..good
            },
            PackError::NotBinary { index: 2, value: 2 },
        ),
        (
            PackOptions {
                num_symbols: 1,
                ..good
            },
            PackError::Alphabet { num_symbols: 1 },
        ),
        (
            PackOptions { symbol: 2, ..good },
            PackError::Symbol {
                symbol: 2,
                num_symbols: 2,
            },
        ),
    ];
    for (options, error) in cases {
        assert_eq!(pack(&options), Err(error));
    }
}

#[test]
fn modules_of_one_mode_and_size_differ_in_their_data_alone() {
    for mode in [Mode::Judge, Mode::AskAndJudge, Mode::AskOnly] {
        let one = pack(&options(&[0; 1_000], mode)).expect("packs");
        let other = pack(&PackOptions {
            num_symbols: 300,
            ..options(&[1; 1_000], mode)
        })
        .expect("packs");
        let data = one.len() - 1_064; // the image is the module's end
        assert_eq!(one[..data], other[..data], "{mode:?}");
        assert_ne!(one, other);
    }
}

#[test]
fn eight_threads_share_one_prepared_module() {
    let sandbox = sandbox();
    let wasm = pack(&options(&LABELS, Mode::AskAndJudge)).expect("packs");
    let start = Barrier::new(8);
    let prepared: Vec<_> = std::thread::scope(|scope| {
        let prepare = || {
            start.wait();
            sandbox.prepare(&wasm).expect("admitted")
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(prepare)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"))
            .collect()
    });
    assert!(
        prepared
            .iter()
            .all(|other| Arc::ptr_eq(other, &prepared[0]))
    );
    let sha256 = prepared[0].info().sha256;
    assert!(
        sandbox
            .prepared(&sha256)
            .is_some_and(|kept| Arc::ptr_eq(&kept, &prepared[0]))
    );
    assert!(sandbox.prepared(&[0; 32]).is_none());
}

#[test]
fn one_prepared_module_runs_on_many_threads_alike() {
    let sandbox = sandbox();
    let wasm = pack(&options(&LABELS, Mode::AskAndJudge)).expect("packs");
    let prepared = sandbox.prepare(&wasm).expect("admitted");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let report = sandbox
                    .run(&prepared, &limits(16), false, &mut Labels::new(&LABELS))
                    .expect("the host does not fail");
                assert_eq!(report, run(&wasm));
            });
        }
    });
}
