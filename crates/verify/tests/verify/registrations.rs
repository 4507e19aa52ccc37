//! What a registration must say of itself and of the holdouts before it, at the limit and one beyond.

use evidenceos_kernel::{
    bits::MicroBits,
    holdout::Policy,
    price::{AnswerPrices, SettlementPrices},
};
use evidenceos_verify::{Check, Fault};
use serde_json::{Value, json};

use crate::{
    forger::edit::{read, write},
    log::report,
    world::{Items, World},
};

/// A log with one holdout: as many units as items, or four items a unit.
fn registered(unit_size: usize) -> World {
    let policy = Policy {
        answer_prices: AnswerPrices([(2, vec![MicroBits::from_bits(1); 2])].into()),
        settlement_prices: SettlementPrices::Learned { c0_bits: 4 },
        ..Policy::with_sealed_budget(MicroBits::from_bits(64))
    };
    let mut world = World::new();
    world
        .put(&Items {
            unit_size,
            expires_unix: Some(1_000),
            ..Items::new(policy, 400)
        })
        .expect("registered");
    world
}

/// Whether a registration with these fields is sound. If it is not, the reader of records may say so before the
/// check of registrations does.
fn is_sound(world: &World, fields: &[(&str, Value)]) -> bool {
    let mut entries = world.entries.clone();
    let mut tree = read(&entries[1]);
    for (pointer, value) in fields {
        let place = tree.pointer_mut(pointer);
        *place.unwrap_or_else(|| panic!("no {pointer}")) = value.clone();
    }
    entries[1] = write(&tree);
    let findings = report(&entries).findings;
    let of_registration = |fault: &Fault| {
        matches!(
            fault,
            Fault::Record(_)
                | Fault::Rule {
                    check: Check::Registration,
                    ..
                }
                | Fault::Mismatch {
                    check: Check::Registration,
                    ..
                }
        )
    };
    for finding in &findings {
        assert_eq!(finding.index, Some(1), "{fields:?}: {finding}");
        assert!(
            of_registration(&finding.fault),
            "{fields:?}: {:?}",
            finding.fault
        );
    }
    findings.is_empty()
}

/// One case: the fields that are changed, and whether the registration is sound then.
type Case<'c> = (&'c [(&'c str, u64)], bool);

fn check(world: &World, cases: &[Case<'_>]) {
    for (fields, sound) in cases {
        let changed: Vec<(&str, Value)> = fields
            .iter()
            .map(|(pointer, value)| (*pointer, json!(value)))
            .collect();
        assert_eq!(is_sound(world, &changed), *sound, "{fields:?}");
    }
}

#[test]
fn the_parts_of_a_holdout_add_up_to_its_items() {
    let each = registered(1);
    check(
        &each,
        &[
            (&[], true),
            (&[("/items", 401)], false),
            (&[("/sealed_items", 321)], false),
            (&[("/sealed_units", 319)], false),
            (
                &[
                    ("/items", 1_000_000),
                    ("/sealed_items", 999_920),
                    ("/units", 400),
                ],
                true,
            ),
            (
                &[
                    ("/items", 1_000_001),
                    ("/sealed_items", 999_921),
                    ("/units", 400),
                ],
                false,
            ),
        ],
    );
    let by_four = registered(4);
    check(
        &by_four,
        &[
            (&[], true),
            (&[("/answer_items", 20), ("/sealed_items", 380)], true),
            (&[("/answer_items", 19), ("/sealed_items", 381)], false),
            (&[("/answer_items", 320), ("/sealed_items", 80)], true),
            (&[("/answer_items", 321), ("/sealed_items", 79)], false),
            // Without a unit that answers, no item does.
            (
                &[
                    ("/policy/answer_share_micros", 0),
                    ("/sealed_units", 100),
                    ("/answer_items", 0),
                    ("/sealed_items", 400),
                ],
                true,
            ),
            (
                &[
                    ("/policy/answer_share_micros", 0),
                    ("/sealed_units", 100),
                    ("/answer_items", 1),
                    ("/sealed_items", 399),
                ],
                false,
            ),
            (
                &[
                    ("/units", 0),
                    ("/sealed_units", 0),
                    ("/answer_items", 0),
                    ("/sealed_items", 400),
                ],
                false,
            ),
            // All units answer, and an item is left that is in none.
            (
                &[
                    ("/policy/answer_share_micros", 1_000_000),
                    ("/sealed_units", 0),
                    ("/answer_items", 399),
                    ("/sealed_items", 1),
                ],
                false,
            ),
        ],
    );
}

#[test]
fn every_number_of_a_policy_has_its_range() {
    const LARGEST: u64 = 1_000_000_000_000;
    let world = registered(1);
    for (field, least, most) in [
        ("/policy/answer_budget_microbits", 0, LARGEST),
        ("/policy/principal_answer_budget_microbits", 0, LARGEST),
        ("/policy/sealed_budget_microbits", 0, LARGEST),
        ("/policy/levels", 0, 32),
        ("/policy/level_width_microbits", 1, 64_000_000),
        ("/policy/alpha_micros", 1, 999_999),
        ("/policy/max_symbols", 2, 65_536),
        ("/policy/settlement_prices/bits", 1, 40),
    ] {
        check(
            &world,
            &[(&[(field, least)], true), (&[(field, most)], true)],
        );
        check(&world, &[(&[(field, most + 1)], false)]);
        if least > 0 {
            check(&world, &[(&[(field, least - 1)], false)]);
        }
    }
}

#[test]
fn listed_prices_are_one_a_symbol_and_sum_to_at_most_one() {
    let world = registered(1);
    for (n_symbols, prices, sound) in [
        (2, json!([1_000_000, 1_000_000]), true),
        (2, json!([1_000_000, 1_000_000, 64_000_000]), false),
        (2, json!([1_000_000]), false),
        (3, json!([1_000_000, 2_000_000, 2_000_000]), true),
        (2, json!([64_000_000, 1_000_000]), true),
        (2, json!([64_000_001, 1_000_000]), false),
        (2, json!([999_999, 1_000_000]), false),
        (1, json!([0]), false),
    ] {
        let table = json!([{ "n_symbols": n_symbols, "prices_microbits": prices }]);
        let fields = [("/policy/answer_prices", table)];
        assert_eq!(is_sound(&world, &fields), sound, "{fields:?}");
    }
}

#[test]
fn a_null_spec_expires_after_its_registration_and_has_the_constants_of_its_bets() {
    let world = registered(1);
    // Registered at 3 s.
    check(
        &world,
        &[
            (&[("/null_spec/expires_unix", 4)], true),
            (&[("/null_spec/expires_unix", 3)], false),
            (&[("/null_spec/expires_unix", 0)], false),
        ],
    );
    let another = json!("00".repeat(32));
    assert!(!is_sound(&world, &[("/null_spec/constants_hash", another)]));
}
