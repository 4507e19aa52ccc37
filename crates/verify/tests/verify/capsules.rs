//! Capsules that contradict themselves, each in one place, and what just still holds.

use evidenceos_kernel::{bits::MicroBits, id::Digest, record::Capsule};
use evidenceos_verify::{check_capsule, verify_log};

use crate::world::{checkpoint_of, eventful};

/// Entries of `eventful`.
const GOOD: usize = 4;
const LEVELS: usize = 6;
const ABORTED: usize = 8;
const SECOND: usize = 10;

/// Sorted digests, none twice.
fn digests(count: u8) -> Vec<Digest> {
    (0..count).map(|n| Digest([n; 32])).collect()
}

#[test]
fn a_capsule_alone_shows_what_no_run_can_have_come_to() {
    let (world, ..) = eventful();
    let check = |at: usize, rule: Option<&str>, change: &dyn Fn(&mut Capsule)| {
        let mut capsule = Capsule::parse(&world.entries[at]).expect("a capsule");
        change(&mut capsule);
        let found = check_capsule(&capsule).map_err(|fault| fault.to_string());
        match (rule, &found) {
            (None, Ok(())) => {}
            (Some(rule), Err(fault)) => assert!(fault.contains(rule), "{rule}: {fault}"),
            _ => panic!("{rule:?}: {found:?}"),
        }
    };
    let names = Some("topic_id_hex");
    check(GOOD, names, &|c| c.topic_id.0[0] ^= 1);
    let dependencies = Some("dependencies are at most 64, sorted, none twice");
    check(GOOD, None, &|c| c.dependencies = digests(64));
    check(GOOD, dependencies, &|c| c.dependencies = digests(65));
    check(GOOD, dependencies, &|c| {
        c.dependencies.extend([Digest([7; 32]); 2])
    });
    check(GOOD, dependencies, &|c| {
        c.dependencies = digests(2).into_iter().rev().collect();
    });
    let engine = Some("engine is 1 to 256 bytes");
    check(GOOD, None, &|c| c.engine = "e".repeat(256));
    check(GOOD, engine, &|c| c.engine = "e".repeat(257));
    check(GOOD, engine, &|c| c.engine = String::new());
    check(GOOD, engine, &|c| c.engine = "two\nlines".to_owned());
    let fuel = Some("fuel is at most");
    check(GOOD, None, &|c| c.fuel = 1_000_000_000);
    check(GOOD, fuel, &|c| c.fuel = 1_000_000_001);
    // The eighth and last level but one of 64 bits each is the most that four levels add.
    let released = Some("e_value_log2 is between");
    check(LEVELS, None, &|c| c.e_value_log2 = Some(4 + 3 * 64));
    check(LEVELS, released, &|c| c.e_value_log2 = Some(4 + 3 * 64 + 1));
    check(LEVELS, released, &|c| c.e_value_log2 = Some(3));
    let tally = Some("answers.by_symbol is sorted");
    check(GOOD, tally, &|c| c.answers.by_symbol = vec![(0, 1), (0, 1)]);
    check(GOOD, tally, &|c| c.answers.by_symbol = vec![(1, 1), (0, 1)]);
    check(GOOD, tally, &|c| c.answers.by_symbol = vec![(1, 1), (2, 0)]);
    check(GOOD, tally, &|c| c.answers.by_symbol = vec![(1, 1), (4, 1)]);
    check(GOOD, None, &|c| c.answers.by_symbol = vec![(1, 1), (3, 1)]);
    let aborted = Some("was aborted, or a duplicate, has no trace");
    check(ABORTED, None, &|_| ());
    check(ABORTED, aborted, &|c| c.trace_hash.0[0] ^= 1);
    check(ABORTED, aborted, &|c| c.structured_output_hash.0[0] ^= 1);
    check(ABORTED, aborted, &|c| c.fuel = 1);
    check(ABORTED, aborted, &|c| c.answers.asked = 1);
    check(ABORTED, aborted, &|c| c.answers.replayed = 1);
    check(ABORTED, aborted, &|c| c.answers.by_symbol = vec![(0, 1)]);
}

#[test]
fn a_description_shows_what_its_claims_cannot_have_come_to() {
    let (world, ..) = eventful();
    let check = |at: usize, rule: &str, change: &dyn Fn(&mut Capsule)| {
        let mut entries = world.entries.clone();
        let mut capsule = Capsule::parse(&entries[at]).expect("a capsule");
        change(&mut capsule);
        entries[at] = capsule.to_bytes();
        let report = verify_log(&entries, &checkpoint_of(&entries));
        let finding = report.findings.first().expect(rule);
        assert_eq!(finding.index, Some(at as u64), "{rule}: {finding}");
        assert!(finding.to_string().contains(rule), "{rule}: {finding}");
    };
    // Of four levels each costs more than c.
    let level = "ledger.price_microbits and e_value_log2 are those of one released level";
    check(LEVELS, level, &|c| {
        c.ledger.price = c.ledger.c;
        c.e_value_log2 = Some(4);
    });
    let no_answers = "a holdout without an answer part charges and repeats no answers";
    check(SECOND, no_answers, &|c| {
        (c.answers.asked, c.answers.replayed) = (1, 1);
    });
    check(SECOND, no_answers, &|c| {
        c.answers.asked = 1;
        c.answers.by_symbol = vec![(0, 1)];
        c.answers.charged = MicroBits::from_bits(2);
        c.run.as_mut().expect("of this release").answers_reserved = c.answers.charged;
    });
    check(SECOND, no_answers, &|c| {
        c.answers.charged = MicroBits(1);
        c.run.as_mut().expect("of this release").answers_reserved = c.answers.charged;
    });
}
