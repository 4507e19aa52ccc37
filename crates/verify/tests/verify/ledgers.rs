//! What a ledger's sums must be when something is admitted or compared while runs are under way.

use evidenceos_kernel::{
    bits::MicroBits,
    command::HoldoutCommand,
    holdout::{NarrowerBudgets, Policy},
    record::{Capsule, Compared},
};
use evidenceos_verify::{Check, Fault, verify_log};

use crate::{
    log::report,
    world::{Items, Private, Script, World, checkpoint_under, owner, vector},
};

/// A judged claim that asks nothing but may be charged so much for answers.
fn script(allowance: u64) -> Script {
    Script {
        judged: Some(vector(400, 2)),
        allowance: Some(allowance),
        ..Script::default()
    }
}

/// Registers labels that differ from all before, or agree with those of a holdout.
fn register_another(world: &mut World, items: usize, agrees_with: Option<&Private>) {
    let other = Items {
        fresh: false,
        agrees_with: agrees_with.map(|holdout| holdout.id),
        ..Items::new(Policy::with_sealed_budget(MicroBits::from_bits(64)), items)
    };
    assert_eq!(world.put(&other).is_none(), agrees_with.is_some());
}

/// ⌈10⁶·log2(1/(1 − 2⁻ᴿ))⌉ for R = 1 to 16: what "the labels differ" costs if R whole bits are left.
const DIFFER_MICROBITS: [u64; 16] = [
    1_000_000, 415_038, 192_646, 93_110, 45_804, 22_721, 11_316, 5_647, 2_821, 1_410, 705, 353,
    177, 89, 45, 23,
];

/// The comparisons of a log: where each stands, and at how many bits it is priced.
fn comparisons(entries: &[Vec<u8>]) -> Vec<(u64, usize)> {
    let compared = entries.iter().enumerate().filter_map(|(at, entry)| {
        let sealed = Compared::parse(entry).ok()?.sealed.get();
        let bits = DIFFER_MICROBITS.iter().position(|&price| price == sealed);
        Some((at as u64, 1 + bits.expect("a price of the table")))
    });
    compared.collect()
}

/// The log with one comparison priced at so many bits.
fn priced_at(entries: &[Vec<u8>], at: u64, bits: usize) -> Vec<Vec<u8>> {
    let mut entries = entries.to_vec();
    let mut compared = Compared::parse(&entries[at as usize]).expect("parses");
    let price = MicroBits(DIFFER_MICROBITS[bits - 1]);
    compared.sealed = price;
    if compared.answers > MicroBits::ZERO {
        compared.answers = price;
    }
    entries[at as usize] = compared.to_bytes();
    entries
}

/// A holdout with two runs under way, which is compared, after which they end and another begins and ends. The log
/// shows that they were under way if a run that was admitted before them ends before the comparison.
fn compared_under_way(policy: Policy, allowance: u64, shown: bool) -> World {
    let mut world = World::new();
    world.begin_as_now();
    let holdout = world.register(policy, 400, 1);
    let script = script(allowance);
    let before = world.admit(&holdout, owner(1), "before", &script);
    if !shown {
        world.settle(&holdout, before, &script);
    }
    let first = world.admit(&holdout, owner(2), "first under way", &script);
    let second = world.admit(&holdout, owner(3), "second under way", &script);
    if shown {
        world.settle(&holdout, before, &script);
    }
    register_another(&mut world, 300, None);
    world.settle(&holdout, first, &script);
    world.settle(&holdout, second, &script);
    world.run(&holdout, owner(4), "after", &script);
    world
}

#[test]
fn a_comparison_beside_runs_under_way_costs_what_they_left_and_no_bit_more_or_less() {
    let bits = MicroBits::from_bits;
    let wide = Policy {
        answer_budget: bits(64),
        ..Policy::with_sealed_budget(bits(64))
    };
    for (shown, sealed_free, answers, share, allowance, priced) in [
        // Nothing is short: 16 bits, whatever is reserved.
        (true, 40_000_000, bits(64), 200_000, 0, 16),
        (false, 40_000_000, bits(64), 200_000, 0, 16),
        // The sealed pool is short, to the microbit.
        (true, 14_000_000, bits(64), 200_000, 0, 14),
        (true, 13_999_999, bits(64), 200_000, 0, 13),
        (true, 13_999_999, MicroBits::ZERO, 0, 0, 13),
        (false, 14_000_000, bits(64), 200_000, 0, 14),
        (false, 13_999_999, bits(64), 200_000, 0, 13),
        (false, 14_000_000, MicroBits::ZERO, 0, 0, 14),
        // The answers' pool is short, by two runs that reserved five bits each.
        (true, 40_000_000, bits(18), 200_000, 5_000_000, 8),
        (
            true,
            40_000_000,
            MicroBits(17_999_999),
            200_000,
            5_000_000,
            7,
        ),
        (false, 40_000_000, bits(18), 200_000, 5_000_000, 8),
        (false, 40_000_000, bits(11), 200_000, 5_000_000, 1),
        // Both are.
        (true, 13_999_999, bits(24), 200_000, 5_000_000, 13),
        (false, 13_999_999, bits(23), 200_000, 5_000_000, 13),
        (
            false,
            13_999_999,
            MicroBits(22_999_999),
            200_000,
            5_000_000,
            12,
        ),
    ] {
        // What the run before was charged, and what those under way have reserved, whatever the budget is.
        let capsules = compared_under_way(wide.clone(), 0, shown).capsules();
        let reserved = |at: usize| capsules[at].run.expect("a place").sealed_reserved.0;
        let used = capsules[0].ledger.price.0 + reserved(1) + reserved(2);
        let policy = Policy {
            answer_share_micros: share,
            answer_budget: answers,
            sealed_budget: MicroBits(used + sealed_free),
            ..wide.clone()
        };
        let entries = compared_under_way(policy, allowance, shown).entries;
        let case = format!("{sealed_free} free, {answers} answers, {shown}");
        let found = comparisons(&entries);
        let &[(at, found)] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(found, priced, "{case}");
        for stated in 1..=16 {
            let findings = report(&priced_at(&entries, at, stated)).findings;
            let case = format!("{case}, {stated} bits: {findings:?}");
            assert_eq!(findings.is_empty(), stated == priced, "{case}");
            let named = findings.iter().any(|finding| finding.index == Some(at));
            // Runs that may have been admitted after the comparison leave room for more.
            let must_be_named = stated < priced || (shown && stated > priced);
            assert!(named || !must_be_named, "{case}");
        }
    }
}

#[test]
fn no_comparison_is_priced_at_more_bits_than_are_left() {
    for (left, priced) in [
        (64_000_000, 16),
        (16_000_000, 16),
        (15_999_999, 15),
        (5_000_000, 5),
    ] {
        let mut world = World::new();
        world.begin_as_now();
        world.register(Policy::with_sealed_budget(MicroBits(left)), 400, 1);
        register_another(&mut world, 300, None);
        let found = comparisons(&world.entries);
        let &[(at, found)] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(found, priced, "{left}");
        for stated in priced..=16 {
            let findings = report(&priced_at(&world.entries, at, stated)).findings;
            let named = findings.iter().any(|finding| finding.index == Some(at));
            assert_eq!(named, stated > priced, "{left}, {stated}: {findings:?}");
        }
    }
}

#[test]
fn nothing_is_compared_with_less_than_a_bit() {
    let mut world = World::new();
    world.begin_as_now();
    let holdout = world.register(Policy::with_sealed_budget(MicroBits::from_bits(64)), 400, 1);
    let budget = |microbits| NarrowerBudgets {
        sealed: Some(MicroBits(microbits)),
        ..NarrowerBudgets::default()
    };
    world.ask(HoldoutCommand::SetBudgets {
        holdout: holdout.id,
        narrower: budget(1_000_000),
    });
    let narrowed = world.entries.len() - 1;
    register_another(&mut world, 300, None);
    assert_eq!(report(&world.entries).findings, []);
    let text = String::from_utf8(world.entries[narrowed].clone()).expect("text");
    world.entries[narrowed] = text.replace(":1000000", ":999999").into_bytes();
    let findings = report(&world.entries).findings;
    let found = findings.first().expect("less than a bit left");
    assert_eq!(found.index, Some(narrowed as u64 + 1));
    let said = found.to_string();
    assert!(said.contains("less than a bit left"), "{said}");
}

#[test]
fn of_several_comparisons_the_one_with_too_much_room_is_named() {
    let mut world = World::new();
    world.begin_as_now();
    let holdout = world.register(Policy::with_sealed_budget(MicroBits::from_bits(22)), 400, 1);
    let script = script(0);
    let runs: Vec<_> = (1..=4)
        .map(|n| world.admit(&holdout, owner(n), &format!("run {n}"), &script))
        .collect();
    // Two comparisons before any run ends, and two after the first has.
    register_another(&mut world, 300, None);
    register_another(&mut world, 310, None);
    world.settle(&holdout, runs[0], &script);
    register_another(&mut world, 320, None);
    register_another(&mut world, 330, None);
    // And one after the second has, beside which less is reserved.
    world.settle(&holdout, runs[1], &script);
    register_another(&mut world, 340, None);
    for run in &runs[2..] {
        world.settle(&holdout, *run, &script);
    }
    assert_eq!(report(&world.entries).findings, []);
    let with_holdout = |(at, _): &(u64, usize)| {
        let compared = Compared::parse(&world.entries[*at as usize]).expect("parses");
        compared.holdout == holdout.id
    };
    let found: Vec<_> = comparisons(&world.entries)
        .into_iter()
        .filter(with_holdout)
        .collect();
    let &[_, _, (third, bits), (fourth, same_bits), (_, more_bits)] = &found[..] else {
        panic!("{found:?}");
    };
    assert!(
        bits == same_bits && bits < more_bits && more_bits < 16,
        "{found:?}"
    );
    for at in [third, fourth] {
        let findings = report(&priced_at(&world.entries, at, bits + 1)).findings;
        let compared = |fault: &Fault| {
            matches!(
                fault,
                Fault::Rule {
                    check: Check::Comparison,
                    ..
                }
            )
        };
        let named: Vec<_> = findings
            .iter()
            .filter(|finding| compared(&finding.fault))
            .map(|finding| finding.index)
            .collect();
        assert_eq!(named, [Some(at)], "{findings:?}");
    }
}

/// A log whose last run is admitted beside two that are under way, after a comparison that agreed.
fn admitted_beside_others() -> (World, u64) {
    let mut world = World::new();
    world.begin_as_now();
    let policy = Policy {
        answer_budget: MicroBits::from_bits(64),
        principal_answer_budget: MicroBits::from_bits(64),
        ..Policy::with_sealed_budget(MicroBits::from_bits(64))
    };
    let holdout = world.register(policy, 400, 1);
    world.ask(HoldoutCommand::SetBudgets {
        holdout: holdout.id,
        narrower: NarrowerBudgets {
            sealed: Some(MicroBits::from_bits(60)),
            ..NarrowerBudgets::default()
        },
    });
    let script = script(3_000_000);
    register_another(&mut world, 400, Some(&holdout));
    world.run(&holdout, owner(1), "before", &script);
    let runs = [2, 3, 4].map(|n| world.admit(&holdout, owner(n), &format!("run {n}"), &script));
    let ends = runs.map(|run| world.settle(&holdout, run, &script));
    (world, ends[2])
}

#[test]
fn a_run_is_admitted_only_beside_what_was_charged_and_what_others_have_reserved() {
    let (world, last) = admitted_beside_others();
    assert_eq!(report(&world.entries).findings, []);
    let capsules = world.capsules();
    let compared = comparisons_that_agree(&world.entries);
    let [before, .., own] = &capsules[..] else {
        panic!("four");
    };
    let places: Vec<_> = capsules[1..]
        .iter()
        .filter_map(|capsule| capsule.run)
        .collect();
    let sealed: u64 = places.iter().map(|place| place.sealed_reserved.0).sum();
    let needed = compared.sealed.0 + before.ledger.price.0 + sealed;
    // The budget in force is just enough, and one microbit less is not.
    for (budget, fits) in [(needed, true), (needed - 1, false)] {
        let mut entries = world.entries.clone();
        let narrowed = entries
            .iter()
            .position(|entry| String::from_utf8_lossy(entry).contains(":60000000"))
            .expect("narrowed");
        let text = String::from_utf8(entries[narrowed].clone()).expect("text");
        entries[narrowed] = text
            .replace(":60000000", &format!(":{budget}"))
            .into_bytes();
        let findings = report(&entries).findings;
        let found: Vec<_> = findings.iter().map(|finding| finding.index).collect();
        let expected: &[Option<u64>] = if fits { &[] } else { &[Some(last)] };
        assert_eq!(found, expected, "{findings:?}");
    }
    // So is what it reserves for answers of what the others left of the budget.
    let others: u64 = places[..2]
        .iter()
        .map(|place| place.answers_reserved.0)
        .sum();
    let free = 64_000_000 - compared.answers.0 - before.answers.charged.0 - others;
    for (reserved, fits) in [(free, true), (free + 1, false)] {
        let mut entries = world.entries.clone();
        let mut capsule: Capsule = own.clone();
        capsule.run.as_mut().expect("a place").answers_reserved = MicroBits(reserved);
        entries[last as usize] = capsule.to_bytes();
        let findings = report(&entries).findings;
        assert_eq!(findings.is_empty(), fits, "{reserved}: {findings:?}");
    }
}

fn comparisons_that_agree(entries: &[Vec<u8>]) -> Compared {
    let compared = entries
        .iter()
        .filter_map(|entry| Compared::parse(entry).ok());
    let mut agree = compared.filter(|compared| compared.agrees);
    agree.next().expect("one")
}

#[test]
fn runs_that_may_have_been_admitted_after_a_comparison_leave_it_all_room() {
    let mut world = World::new();
    world.begin_as_now();
    let policy = Policy {
        answer_budget: MicroBits::from_bits(16),
        ..Policy::with_sealed_budget(MicroBits::from_bits(16))
    };
    let holdout = world.register(policy, 400, 1);
    register_another(&mut world, 300, None);
    assert_eq!(comparisons(&world.entries), [(2, 16)]);
    // Before the next end they look as if they had been under way.
    let script = script(2_000_000);
    let runs = [1, 2].map(|n| world.admit(&holdout, owner(n), &format!("run {n}"), &script));
    for run in runs {
        world.settle(&holdout, run, &script);
    }
    assert_eq!(report(&world.entries).findings, []);
}

#[test]
fn no_run_is_admitted_in_the_second_in_which_its_null_spec_expires() {
    let with_expiry = |expires_unix| {
        let mut world = World::new();
        let policy = Policy::with_sealed_budget(MicroBits::from_bits(64));
        let items = Items {
            expires_unix: Some(expires_unix),
            ..Items::new(policy, 400)
        };
        let holdout = world.put(&items).expect("registered");
        let script = script(0);
        let first = world.run(&holdout, owner(1), "first", &script);
        let second = world.run(&holdout, owner(2), "second", &script);
        (world, first as usize, second)
    };
    // Each command takes a second; the last settles the second run, and the one before admits it.
    let (world, _, _) = with_expiry(1_000);
    let expires = world.now_unix_ms / 1_000;
    let (mut world, first, second) = with_expiry(expires);
    assert_eq!(report(&world.entries).findings, []);
    for (ended_unix_ms, sound) in [(expires * 1_000 - 1, true), (expires * 1_000, false)] {
        let mut capsule = Capsule::parse(&world.entries[first]).expect("a capsule");
        capsule.settled_unix_ms = ended_unix_ms;
        world.entries[first] = capsule.to_bytes();
        let findings = report(&world.entries).findings;
        let found: Vec<_> = findings.iter().map(|finding| finding.index).collect();
        let expected: &[Option<u64>] = if sound { &[] } else { &[Some(second)] };
        assert_eq!(found, expected, "{findings:?}");
    }
}

#[test]
fn a_run_is_admitted_only_beside_what_its_owners_other_runs_have_reserved() {
    let mut world = World::new();
    world.begin_as_now();
    let policy = Policy {
        answer_budget: MicroBits::from_bits(64),
        principal_answer_budget: MicroBits::from_bits(16),
        ..Policy::with_sealed_budget(MicroBits::from_bits(64))
    };
    let holdout = world.register(policy, 400, 1);
    let script = script(3_000_000);
    world.run(&holdout, owner(1), "before", &script);
    let runs = ["one", "two", "three"].map(|name| world.admit(&holdout, owner(1), name, &script));
    let ends = runs.map(|run| world.settle(&holdout, run, &script));
    assert_eq!(report(&world.entries).findings, []);
    let last = ends[2] as usize;
    let capsules = world.capsules();
    let charged = capsules[0].answers.charged.0;
    let others: u64 = capsules[1..3]
        .iter()
        .filter_map(|capsule| capsule.run)
        .map(|place| place.answers_reserved.0)
        .sum();
    let free = 16_000_000 - charged - others;
    for (reserved, fits) in [(free, true), (free + 1, false)] {
        let mut capsule = Capsule::parse(&world.entries[last]).expect("a capsule");
        capsule.run.as_mut().expect("a place").answers_reserved = MicroBits(reserved);
        world.entries[last] = capsule.to_bytes();
        let findings = report(&world.entries).findings;
        assert_eq!(findings.is_empty(), fits, "{reserved}: {findings:?}");
    }
}

#[test]
fn a_restart_passes_over_a_withdrawn_holdout() {
    let mut world = World::new();
    world.begin_as_now();
    let policy = Policy::with_sealed_budget(MicroBits::from_bits(64));
    let withdrawn = world.register(policy.clone(), 400, 1);
    world.register(policy, 300, 1);
    world.ask(HoldoutCommand::Withdraw {
        holdout: withdrawn.id,
        reason: "a mistake".to_owned(),
    });
    world.restart("example.org/2", Vec::new());
    let checkpoint = checkpoint_under("example.org/2", &world.entries);
    let honest = verify_log(&world.entries, &checkpoint);
    assert_eq!(honest.findings, []);
}

#[test]
fn a_capsule_of_this_release_asks_for_comparisons_from_then_on() {
    let mut world = World::new();
    let policy = Policy::with_sealed_budget(MicroBits::from_bits(64));
    let plain = |items| Items {
        fresh: false,
        ..Items::new(policy.clone(), items)
    };
    let holdout = world.put(&plain(400)).expect("registered");
    world.run(&holdout, owner(1), "one", &script(0));
    world.put(&plain(300)).expect("the labels differ");
    let &[(compared, _)] = &comparisons(&world.entries)[..] else {
        panic!("one");
    };
    world.entries.remove(compared as usize);
    let findings = report(&world.entries).findings;
    let found = findings.first().expect("it was not compared");
    assert_eq!(found.index, Some(compared), "{findings:?}");
}
