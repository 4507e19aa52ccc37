//! What capsules say of other claims: the verdict that stands for a duplicate, and the claims behind one.

use evidenceos_kernel::{bits::MicroBits, holdout::Policy, id::ClaimId, record::Capsule};
use evidenceos_verify::{Check, Fault};

use crate::{
    log::report,
    world::{Ends, Items, Private, Script, World, owner, vector},
};

const ITEMS: usize = 400;

fn judged(module: &'static str) -> Script {
    Script {
        judged: Some(vector(ITEMS, 2)),
        module: Some(module),
        ..Script::default()
    }
}

fn capsule_at(world: &World, index: u64) -> Capsule {
    Capsule::parse(&world.entries[index as usize]).expect("a capsule")
}

/// Two holdouts that take levels.
fn world() -> (World, Private, Private) {
    let mut world = World::new();
    world.begin_as_now();
    let policy = Policy {
        levels: 1,
        ..Policy::with_sealed_budget(MicroBits::from_bits(1_000))
    };
    let first = world
        .put(&Items::new(policy.clone(), ITEMS))
        .expect("registered");
    let second = world.put(&Items::new(policy, ITEMS)).expect("registered");
    (world, first, second)
}

#[test]
fn a_duplicate_has_all_of_its_terms_in_common_with_the_claim_that_it_names() {
    let (mut world, holdout, another_holdout) = world();
    let mut run = |holdout: &Private, n: u8, name: &str, script: &Script| {
        let index = world.run(holdout, owner(n), name, script);
        capsule_at(&world, index).claim_id
    };
    let same = run(&holdout, 1, "same", &judged("module"));
    let others: Vec<(&str, ClaimId)> = vec![
        ("owner", run(&holdout, 2, "owner", &judged("module"))),
        (
            "holdout",
            run(&another_holdout, 1, "holdout", &judged("module")),
        ),
        ("module", run(&holdout, 1, "module", &judged("another"))),
        (
            "alpha",
            run(
                &holdout,
                1,
                "alpha",
                &Script {
                    alpha_micros: Some(40_000),
                    ..judged("module")
                },
            ),
        ),
        (
            "levels",
            run(
                &holdout,
                1,
                "levels",
                &Script {
                    levels: 1,
                    ..judged("module")
                },
            ),
        ),
        (
            "verdict",
            run(
                &holdout,
                1,
                "verdict",
                &Script {
                    ends: Ends::NoOutput,
                    ..judged("mute")
                },
            ),
        ),
    ];
    let duplicate = world.run(&holdout, owner(1), "again", &judged("module"));
    let later = world.run(&holdout, owner(1), "later", &judged("yet another"));
    let honest = report(&world.entries);
    assert_eq!(honest.findings, []);
    let ledger = honest.holdout(&holdout.id).expect("registered");
    assert_eq!((ledger.duplicates, ledger.not_judged), (1, 2));
    assert_eq!(capsule_at(&world, duplicate).duplicate_of, Some(same));
    let later = capsule_at(&world, later).claim_id;
    let unknown = ClaimId([7; 32]);
    for (what, named) in others
        .into_iter()
        .chain([("later", later), ("unknown", unknown)])
    {
        let mut entries = world.entries.clone();
        let mut capsule = capsule_at(&world, duplicate);
        capsule.duplicate_of = Some(named);
        entries[duplicate as usize] = capsule.to_bytes();
        let findings = report(&entries).findings;
        let named = findings.iter().any(|finding| {
            let of_duplicates = matches!(
                finding.fault,
                Fault::Rule {
                    check: Check::Duplicate,
                    ..
                }
            );
            of_duplicates && finding.index == Some(duplicate)
        });
        assert!(named, "{what}: {findings:?}");
    }
}

/// The log with other parents of a claim.
fn with_parents(world: &World, index: u64, parents: &[u64]) -> Vec<Vec<u8>> {
    let mut entries = world.entries.clone();
    let mut capsule = capsule_at(world, index);
    let hash = |parent: &u64| evidenceos_kernel::id::Digest::of(&entries[*parent as usize]);
    capsule.dependencies = parents.iter().map(hash).collect();
    capsule.dependencies.sort();
    entries[index as usize] = capsule.to_bytes();
    entries
}

fn is_too_large_a_family(entries: &[Vec<u8>], index: u64) -> bool {
    let findings = report(entries).findings;
    findings.iter().any(|finding| {
        let said = finding.fault.to_string();
        said.contains("256 ancestors in 32 generations") && finding.index == Some(index)
    })
}

#[test]
fn a_claim_has_at_most_thirty_two_generations_behind_it() {
    let (mut world, holdout, _) = world();
    let mute = Script {
        ends: Ends::NoOutput,
        ..Script::default()
    };
    let mut generations: Vec<u64> = Vec::new();
    for n in 0..33 {
        let parents = generations
            .last()
            .map(|index| capsule_at(&world, *index).claim_id);
        let script = Script {
            parents: parents.into_iter().collect(),
            ..mute.clone()
        };
        generations.push(world.run(&holdout, owner(1), &format!("generation {n}"), &script));
    }
    let orphan = world.run(&holdout, owner(1), "orphan", &mute);
    assert_eq!(report(&world.entries).findings, []);
    let under = |generation: usize| with_parents(&world, orphan, &[generations[generation]]);
    assert!(!is_too_large_a_family(&under(31), orphan));
    assert!(is_too_large_a_family(&under(32), orphan));
}

#[test]
fn a_claim_has_at_most_256_ancestors() {
    let (mut world, holdout, _) = world();
    let mute = Script {
        ends: Ends::NoOutput,
        ..Script::default()
    };
    let mut run = |name: &str, parents: Vec<ClaimId>| {
        let script = Script {
            parents,
            ..mute.clone()
        };
        let index = world.run(&holdout, owner(1), name, &script);
        (index, capsule_at(&world, index).claim_id)
    };
    let leaves: Vec<_> = (0..64)
        .map(|n| run(&format!("leaf {n}"), Vec::new()))
        .collect();
    let all: Vec<ClaimId> = leaves.iter().map(|(_, id)| *id).collect();
    // Each has 64 ancestors and is one itself.
    let branches = ["one", "two", "three"].map(|name| run(name, all.clone()).0);
    let smaller = [60, 61].map(|of| (of, run(&format!("of {of}"), all[..of].to_vec()).0));
    let (orphan, _) = run("orphan", Vec::new());
    assert_eq!(report(&world.entries).findings, []);
    for (of, branch) in smaller {
        let parents = [&branches[..], &[branch]].concat();
        let entries = with_parents(&world, orphan, &parents);
        assert_eq!(is_too_large_a_family(&entries, orphan), of > 60, "{of}");
    }
}

#[test]
fn duplicates_ahead_of_a_run_reserve_nothing_however_many_they_are() {
    let mut world = World::new();
    world.begin_as_now();
    // Of runs that reserve anything it carries fewer than a dozen.
    let holdout = world.register(
        Policy::with_sealed_budget(MicroBits::from_bits(12)),
        ITEMS,
        1,
    );
    world.run(&holdout, owner(1), "first", &judged("module"));
    let tickets: Vec<_> = (0..20)
        .map(|n| world.admit(&holdout, owner(1), &format!("again {n}"), &judged("module")))
        .collect();
    let behind = world.admit(&holdout, owner(2), "behind", &judged("another"));
    for ticket in tickets {
        world.settle(&holdout, ticket, &judged("module"));
    }
    world.settle(&holdout, behind, &judged("another"));
    let honest = report(&world.entries);
    assert_eq!(honest.findings, []);
    let ledger = honest.holdout(&holdout.id).expect("registered");
    assert_eq!((ledger.duplicates, ledger.settled), (20, 2));
}
