//! Whole logs: the ledger that comes out, and that each change is found where it was made.

use evidenceos_kernel::{
    bits::MicroBits,
    cj,
    command::HoldoutCommand,
    entry::Kind,
    holdout::{NarrowerBudgets, Policy},
    record::Capsule,
};
use evidenceos_verify::{Fault, Finding, LogReport, OwnerLedger, verify_log};

use crate::world::{
    Items, ORIGIN, Script, World, checkpoint_of, checkpoint_under, eventful, owner, vector,
};

pub(crate) fn report(entries: &[Vec<u8>]) -> LogReport {
    // The forger holds the key: only the arithmetic can catch him.
    verify_log(entries, &checkpoint_of(entries))
}

#[test]
fn the_ledger_of_an_honest_log_is_computed_again() {
    let (world, first, second) = eventful();
    let report = verify_log(&world.entries, &world.checkpoint());
    assert_eq!(report.findings, []);
    assert!(report.is_sound());
    assert_eq!(report.capsules.len(), 9);
    let [revoked] = report.revoked.as_slice() else {
        panic!("one: {:?}", report.revoked)
    };
    assert_eq!(report.revocation(&revoked.claim), Some(revoked));
    let (_, standing) = &report.capsules[0];
    assert_eq!(report.revocation(&standing.claim_id), None);
    let ledger = report.holdout(&first.id).expect("registered");
    assert_eq!((ledger.settled, ledger.certified), (4, 3));
    assert_eq!((ledger.not_judged, ledger.aborted), (2, 1));
    assert!(ledger.retired && ledger.opened);
    let last = Capsule::parse(&world.entries[9]).expect("a capsule");
    assert_eq!(
        ledger.sealed_charged,
        last.ledger.k.saturating_add(last.ledger.price)
    );
    // Two answers of four symbols, at two bits each.
    assert_eq!(
        ledger.owners[&owner(1)].answers_charged,
        MicroBits::from_bits(4)
    );
    let ledger = report.holdout(&second.id).expect("registered");
    assert_eq!((ledger.settled, ledger.certified), (2, 2));
    assert_eq!(ledger.answers_charged, MicroBits::ZERO);
    // What the owners did adds up to what was done.
    for ledger in [&first, &second].map(|of| report.holdout(&of.id).expect("registered")) {
        let of_all =
            |count: fn(&OwnerLedger) -> u64| -> u64 { ledger.owners.values().map(count).sum() };
        let capsules = ledger.settled + ledger.not_judged + ledger.aborted;
        assert_eq!(of_all(|owner| owner.claims), capsules);
        assert_eq!(of_all(|owner| owner.certified), ledger.certified);
        assert_eq!(
            of_all(|owner| owner.sealed_charged.0),
            ledger.sealed_charged.0
        );
        assert_eq!(
            of_all(|owner| owner.answers_charged.0),
            ledger.answers_charged.0
        );
    }
}

#[test]
fn a_changed_capsule_is_found_at_its_index_and_nowhere_else() {
    let (world, _, _) = eventful();
    let check = |index: usize, field: &str, change: &dyn Fn(&mut Capsule)| {
        let mut entries = world.entries.clone();
        let mut capsule = Capsule::parse(&entries[index]).expect("a capsule");
        change(&mut capsule);
        entries[index] = capsule.to_bytes();
        let report = report(&entries);
        let Some((
            Finding {
                index: found,
                fault,
            },
            echoes,
        )) = report.findings.split_first()
        else {
            panic!("{field} was not found")
        };
        // Which level a claim reached, or what its worst case was, cannot be told without its price.
        assert!(
            echoes.is_empty() || matches!(index, 6 | 8),
            "{field}: {echoes:?}"
        );
        assert_eq!(*found, Some(index as u64), "{field}: {fault}");
        assert!(fault.to_string().contains(field), "{field}: {fault}");
    };
    check(4, "k_microbits", &|c| c.ledger.k.0 += 1);
    check(4, "c_microbits", &|c| c.ledger.c.0 -= 1);
    check(3, "price_microbits", &|c| c.ledger.price.0 += 1);
    check(4, "price_microbits", &|c| c.ledger.price.0 += 1);
    check(6, "price_microbits", &|c| c.ledger.price.0 += 1_000_000);
    check(6, "price_microbits", &|c| c.e_value_log2 = Some(60));
    check(7, "price_microbits", &|c| c.ledger.price.0 = 1);
    check(4, "threshold_microbits", &|c| c.ledger.threshold.0 -= 1);
    check(4, "ordinal", &|c| c.ledger.ordinal += 1);
    check(4, "settled_before", &|c| c.ledger.settled_before += 1);
    check(4, "charged_microbits", &|c| c.answers.charged.0 -= 1);
    check(4, "by_symbol", &|c| c.answers.by_symbol[0].1 = 0);
    check(4, "answers.asked", &|c| c.answers.asked = 2);
    check(4, "items.sealed", &|c| c.items.1 += 1);
    check(4, "policy_hash_hex", &|c| c.policy_hash.0[0] ^= 1);
    check(4, "alpha", &|c| c.ledger.alpha_micros = 60_000);
    check(4, "reason_codes", &|c| c.reason_codes = vec![2, 101]);
    check(3, "e_value_log2", &|c| c.e_value_log2 = Some(4));
    check(5, "reason_codes", &|c| c.reason_codes = vec![2, 101]);
    check(5, "out of reach", &|c| c.reason_codes = vec![2, 102]);
    check(8, "price_microbits", &|c| c.ledger.price.0 = 0);
    check(10, "charged_microbits", &|c| c.answers.charged.0 = 1);
    check(10, "alpha_divisor", &|c| c.ledger.alpha_divisor = 1);
    check(4, "before", &|c| {
        c.dependencies = vec![evidenceos_kernel::id::Digest([1; 32])];
    });
}

#[test]
fn a_policys_veto_verifies_and_nothing_that_only_looks_like_one() {
    let (world, _, _) = eventful();
    let faults = |index: usize, codes: &[u16]| {
        let mut entries = world.entries.clone();
        let mut capsule = Capsule::parse(&entries[index]).expect("a capsule");
        capsule.reason_codes = codes.to_vec();
        entries[index] = capsule.to_bytes();
        report(&entries).findings.len()
    };
    // Entry 5 was not judged.
    for codes in [[2, 9_000], [2, 9_999], [3, 9_104]] {
        assert_eq!(faults(5, &codes), 0, "{codes:?}");
    }
    for codes in [
        &[3, 110][..],
        &[3],
        &[1, 9_104],
        &[9_104],
        &[3, 8_999],
        &[3, 10_000],
    ] {
        assert_eq!(faults(5, codes), 1, "{codes:?}");
    }
    // Entries 3 and 4 were.
    for index in [3, 4] {
        assert_eq!(faults(index, &[3, 9_104]), 1);
        assert_eq!(faults(index, &[2, 9_104]), 1);
    }
}

#[test]
fn two_capsules_in_the_other_order_are_found_at_the_first() {
    let (world, _, _) = eventful();
    let mut entries = world.entries.clone();
    entries.swap(3, 4);
    assert_eq!(report(&entries).findings[0].index, Some(3));
}

#[test]
fn a_capsule_twice_a_lost_one_and_an_early_one_are_found() {
    let (world, _, _) = eventful();
    let first = |entries: &[Vec<u8>]| report(entries).findings[0].clone();

    let mut twice = world.entries.clone();
    twice.insert(5, twice[5].clone());
    assert!(matches!(first(&twice).fault, Fault::SettledTwice(_)));

    let mut lost = world.entries.clone();
    lost.remove(3);
    assert_eq!(first(&lost).index, Some(3));

    let mut early = world.entries.clone();
    early.swap(1, 3);
    assert!(matches!(first(&early).fault, Fault::UnknownHoldout(_)));
    assert_eq!(first(&early).index, Some(1));
}

#[test]
fn a_log_is_bound_to_its_signed_head() {
    let (world, _, _) = eventful();
    let head = world.checkpoint();
    let whole = |entries: &[Vec<u8>]| {
        let findings = verify_log(entries, &head).findings;
        let last = findings.last().expect("a finding").clone();
        assert_eq!(last.index, None);
        last.fault
    };
    let cut = &world.entries[..world.entries.len() - 1];
    assert!(matches!(whole(cut), Fault::Size { .. }));
    assert!(matches!(whole(&[]), Fault::Size { .. }));
    // `fuel` is no part of the ledger: only the root can show the change.
    let mut changed = world.entries.clone();
    let mut capsule = Capsule::parse(&changed[4]).expect("a capsule");
    capsule.fuel += 1;
    changed[4] = capsule.to_bytes();
    assert!(matches!(whole(&changed), Fault::Root { .. }));
}

#[test]
fn what_is_not_understood_is_a_finding() {
    let (world, first, _) = eventful();
    let check = |entry: Vec<u8>, is_sound: bool| {
        let mut entries = world.entries.clone();
        entries.push(entry);
        assert_eq!(report(&entries).is_sound(), is_sound);
    };
    let unknown = |kind: &str| cj::Object::new().put("schema", kind);
    check(unknown("evidenceos.v2.weather").to_bytes(), false);
    check(unknown("evidenceos.v2.claims_tainted").to_bytes(), false);
    check(
        unknown("evidenceos.v2.weather")
            .put("holdout_id_hex", first.id.to_hex())
            .to_bytes(),
        false,
    );
    let inside = cj::Object::new().put("holdout_id_hex", first.id.to_hex());
    check(
        unknown("evidenceos.v2.weather")
            .put("changes", vec![cj::Value::from(inside)])
            .to_bytes(),
        false,
    );
    check(unknown("evidenceos.v2.decision_batch").to_bytes(), false);
    check(b"{ }".to_vec(), false);
    check(world.entries[0].clone(), false);
    // A second retirement, and one with a field that the kind does not have.
    check(world.entries[world.entries.len() - 2].clone(), false);
    let retired = world.entries.len() - 2;
    let text = String::from_utf8(world.entries[retired].clone()).expect("text");
    let reason = "\"reason\":\"its budget is used up\"";
    let said = |reason: &str| format!("\"reason\":\"{reason}\"");
    for (from, to, rule) in [
        ("\"schema\":", "\"s\":1,\"schema\":", Some("unknown field")),
        (reason, &said(""), Some("1 to 256 bytes")),
        (reason, &said(&"x".repeat(257)), Some("1 to 256 bytes")),
        (reason, &said("two\\nlines"), Some("1 to 256 bytes")),
        (reason, &said(&"x".repeat(256)), None),
    ] {
        let mut entries = world.entries.clone();
        entries[retired] = text.replace(from, to).into_bytes();
        assert_ne!(entries[retired], world.entries[retired]);
        let findings = report(&entries).findings;
        let found = findings.first().map(ToString::to_string);
        assert_eq!(found.is_some(), rule.is_some(), "{to}: {found:?}");
        let said = rule.is_none_or(|rule| found.is_some_and(|found| found.contains(rule)));
        assert!(said, "{to}: {findings:?}");
    }
}

#[test]
fn budgets_are_kept_or_named() {
    let (world, _, _) = eventful();
    // The same log under a description that allows less has other ids; so the capsule is made dearer instead.
    let mut entries = world.entries.clone();
    let mut capsule = Capsule::parse(&entries[8]).expect("the aborted one");
    capsule.answers.charged = MicroBits::from_bits(17);
    if let Some(run) = &mut capsule.run {
        run.answers_reserved = capsule.answers.charged;
    }
    entries[8] = capsule.to_bytes();
    let report = report(&entries);
    assert_eq!(report.findings.len(), 1);
    assert!(matches!(
        report.findings[0].fault,
        Fault::Budget {
            budget: "principal_answer_budget_microbits",
            charged: 17_000_000,
            allowed: 16_000_000,
        }
    ));
}

#[test]
fn a_log_of_another_origin_is_found_at_its_first_entry() {
    let (world, _, _) = eventful();
    let (size, root) = (world.checkpoint().size(), world.checkpoint().root());
    let other = evidenceos_tlog::Checkpoint::new("example.org/other", size, root).expect("valid");
    assert_eq!(
        verify_log(&world.entries, &other).findings[0].index,
        Some(0)
    );
    assert_eq!(Kind::of(&world.entries[1]), Some(Kind::HoldoutRegistered));
}

#[test]
fn a_log_that_went_on_under_another_name_is_followed_and_its_charges_are_counted() {
    let mut world = World::new();
    let policy = || Policy::with_sealed_budget(MicroBits::from_bits(64));
    let stated = world.register(policy(), 400, 1);
    let exhausted = world.register(policy(), 300, 3);
    let begun = world.entries.len();
    world.restart("example.org/2", vec![(stated.id, MicroBits::from_bits(2))]);
    let honest =
        |entries: &[Vec<u8>], origin: &str| verify_log(entries, &checkpoint_under(origin, entries));
    let report = honest(&world.entries, "example.org/2");
    assert_eq!(report.findings, []);
    let ledger = |id| report.holdout(&id).expect("registered");
    assert_eq!(ledger(stated.id).sealed_charged, MicroBits::from_bits(2));
    let budget = MicroBits::from_bits(64);
    assert_eq!(ledger(exhausted.id).sealed_charged, budget);
    assert_eq!(ledger(exhausted.id).answers_charged, budget);
    // Under the old name it is not this log any more.
    let old = honest(&world.entries, ORIGIN);
    assert_eq!(old.findings[0].index, Some(begun as u64));
    // An entry that binds another head, and one that charges more than there is.
    for (index, from, to) in [
        (begun, "\"old_size\":3", "\"old_size\":2"),
        (
            begun,
            "\"old_origin\":\"example.org/log",
            "\"old_origin\":\"example.org/gol",
        ),
        (
            begun + 2,
            "\"sealed_microbits\":64",
            "\"sealed_microbits\":65",
        ),
    ] {
        let mut entries = world.entries.clone();
        let text = String::from_utf8(entries[index].clone()).expect("text");
        assert!(text.contains(from), "{text}");
        entries[index] = text.replace(from, to).into_bytes();
        let report = honest(&entries, "example.org/2");
        assert_eq!(report.findings[0].index, Some(index as u64), "{to}");
    }
}

#[test]
fn charges_stand_right_behind_their_restart_and_none_is_left_out() {
    let mut world = World::new();
    world.begin_as_now();
    let policy = || Policy::with_sealed_budget(MicroBits::from_bits(64));
    let stated = world.register(policy(), 400, 1);
    world.register(policy(), 300, 3);
    let begun = world.entries.len();
    world.restart("example.org/2", vec![(stated.id, MicroBits::from_bits(2))]);
    world.ask(HoldoutCommand::Retire {
        holdout: stated.id,
        reason: "its items are known".to_owned(),
    });
    let findings = |entries: &[Vec<u8>]| {
        let report = verify_log(entries, &checkpoint_under("example.org/2", entries));
        let found = report.findings.iter();
        found
            .map(|finding| (finding.index, finding.fault.to_string()))
            .collect::<Vec<_>>()
    };
    assert_eq!(findings(&world.entries), []);
    // The restart itself, the stated charge, the exhausting one, the retirement.
    let [_, _, exhausted, retired] = [0, 1, 2, 3].map(|after| begun + after);
    let mut late = world.entries.clone();
    late.swap(exhausted, retired);
    let found = findings(&late);
    let (index, fault) = found.first().expect("a charge too late");
    assert_eq!(*index, Some(retired as u64), "{found:?}");
    assert!(fault.contains("charges follow a restart"), "{found:?}");
    // Whether another entry follows or none.
    for end in [retired, exhausted] {
        let mut left_out = world.entries[..=end].to_vec();
        left_out.remove(exhausted);
        let found = findings(&left_out);
        let (index, _) = found.first().expect("a charge is left out");
        assert_eq!(*index, Some(begun as u64), "{found:?}");
    }
}

#[test]
fn a_claim_that_a_narrower_budget_does_not_carry_is_found() {
    let mut world = World::new();
    let holdout = world.register(Policy::with_sealed_budget(MicroBits::from_bits(64)), 400, 1);
    let narrower = NarrowerBudgets {
        sealed: Some(MicroBits::from_bits(20)),
        ..NarrowerBudgets::default()
    };
    world.ask(HoldoutCommand::SetBudgets {
        holdout: holdout.id,
        narrower,
    });
    let narrowed = world.entries.len() - 1;
    let script = Script {
        judged: Some(vector(400, 2)),
        ..Script::default()
    };
    // The first may have been admitted before; the second was after the first had ended.
    world.run(&holdout, owner(1), "first", &script);
    let run = world.run(&holdout, owner(1), "second", &script);
    let honest = report(&world.entries);
    assert_eq!(honest.findings, []);
    let ledger = honest.holdout(&holdout.id).expect("registered");
    assert_eq!(ledger.budgets, narrower);
    // A claim that may be certified costs four bits.
    let mut entries = world.entries.clone();
    let text = String::from_utf8(entries[narrowed].clone()).expect("text");
    entries[narrowed] = text.replace(":20000000", ":1000000").into_bytes();
    let [finding] = report(&entries).findings.try_into().expect("one finding");
    assert_eq!(finding.index, Some(run), "{finding}");
}

#[test]
fn a_comparison_costs_what_the_smaller_pool_carries_and_is_not_left_out() {
    let bits = MicroBits::from_bits;
    for (sealed, answers, share) in [
        (bits(64), bits(64), 200_000),
        (MicroBits(15_999_999), bits(64), 200_000),
        (bits(64), bits(4), 200_000),
        (bits(64), MicroBits::ZERO, 0),
    ] {
        let mut world = World::new();
        world.begin_as_now();
        let policy = Policy {
            answer_share_micros: share,
            answer_budget: answers,
            ..Policy::with_sealed_budget(sealed)
        };
        world.register(policy, 400, 1);
        let second = Items {
            fresh: false,
            ..Items::new(Policy::with_sealed_budget(bits(64)), 300)
        };
        world.put(&second).expect("the labels differ");
        assert_eq!(world.entries.len(), 4);
        assert_eq!(report(&world.entries).findings, [], "{sealed} {answers}");
        let mut entries = world.entries.clone();
        entries.remove(2);
        let findings = report(&entries).findings;
        let found = findings.first().expect("no comparison").index;
        assert_eq!(found, Some(2), "{findings:?}");
    }
}
