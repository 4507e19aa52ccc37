//! Dependencies, and what a revocation does to the claims behind it.

use evidenceos_kernel::{
    claim::{Artifact, MAX_DEPTH, Outcome, Reason, Terms},
    decide::dependency_merkle_root,
    id::{ClaimId, Digest},
    refusal::{Refusal, RefusalKind},
};

use crate::world::{Script, World, bits, commit_with, create, execute, revoke, seal, submitter};

fn dependency(parent: Option<ClaimId>, hash: Digest) -> Artifact {
    Artifact {
        kind: "dependency".to_owned(),
        hash,
        parent,
    }
}

/// A sealed claim of submitter 1 on settled parents.
fn child(world: &mut World, name: &str, parents: &[ClaimId]) -> Result<ClaimId, Refusal> {
    let artifacts: Vec<Artifact> = parents
        .iter()
        .map(|id| dependency(Some(*id), capsule_hash(world, id)))
        .collect();
    let mut hashes: Vec<Digest> = artifacts.iter().map(|artifact| artifact.hash).collect();
    hashes.sort();
    let terms = Terms {
        dependency_merkle_root: Some(dependency_merkle_root(&hashes)),
        ..world.terms(submitter(1), name)
    };
    let id = terms.claim_id();
    for command in [
        create(terms),
        commit_with(id, "module", false, artifacts),
        seal(id),
    ] {
        world.ask(submitter(1), command)?;
    }
    Ok(id)
}

fn capsule_hash(world: &World, id: &ClaimId) -> Digest {
    let settlement = world.rows.claims[id].settlement.as_ref();
    settlement.expect("a settled parent").capsule_hash
}

fn settled(world: &mut World, name: &str) -> ClaimId {
    world.run(submitter(1), name, &Script::trapped()).claim_id
}

fn run(world: &mut World, id: ClaimId, script: &Script) -> evidenceos_kernel::record::Capsule {
    world.ask(submitter(1), execute(id)).expect("admitted");
    let number = world.main().admitted - 1;
    world.settle(number, script)
}

#[test]
fn a_capsule_names_the_capsules_of_its_parents() {
    let mut world = World::new();
    let parents = ["a", "b"].map(|name| settled(&mut world, name));
    let id = child(&mut world, "child", &parents).expect("settled parents");
    let mut wanted = parents.map(|id| capsule_hash(&world, &id)).to_vec();
    wanted.sort();
    let mut found = run(&mut world, id, &Script::weak()).dependencies;
    found.sort();
    assert_eq!(found, wanted);
}

#[test]
fn a_capsules_dependencies_are_sorted() {
    for round in 0..4 {
        let mut world = World::new();
        let parents = [0, 1, 2].map(|n| settled(&mut world, &format!("{round} {n}")));
        let id = child(&mut world, "child", &parents).expect("settled parents");
        let found = run(&mut world, id, &Script::weak()).dependencies;
        assert!(found.is_sorted(), "round {round}");
    }
}

#[test]
fn a_claim_on_a_revoked_parent_does_not_run() {
    let mut world = World::new();
    let parent = settled(&mut world, "parent");
    let middle = child(&mut world, "middle", &[parent]).expect("a settled parent");
    run(&mut world, middle, &Script::trapped());
    let below = child(&mut world, "below", &[middle]).expect("a settled parent");
    world.ask(submitter(1), revoke(parent)).expect("settled");
    let before = world.snapshot();
    let refused = world.ask(submitter(1), execute(below));
    assert_eq!(refused, Err(Refusal::Tainted { ancestor: parent }));
    assert_eq!(world.snapshot(), before);
}

#[test]
fn a_run_whose_ancestor_is_revoked_meanwhile_is_not_judged_and_free() {
    let mut world = World::new();
    let parent = settled(&mut world, "parent");
    let id = child(&mut world, "child", &[parent]).expect("a settled parent");
    world.ask(submitter(1), execute(id)).expect("untainted");
    world.ask(submitter(1), revoke(parent)).expect("settled");
    let capsule = world.settle(1, &Script::good());
    assert_eq!(capsule.outcome, Outcome::NotJudged);
    assert_eq!(capsule.reason_codes, [2, Reason::AncestorRevoked.code()]);
    assert_eq!(world.main().settled, 0);
    assert_eq!(world.main().sealed.charged, bits(0));
}

#[test]
fn other_dependencies_than_those_promised_are_refused() {
    let mut world = World::new();
    let [a, b] = ["a", "b"].map(|name| settled(&mut world, name));
    let hash = |world: &World, id: &ClaimId| dependency(Some(*id), capsule_hash(world, id));
    let promised = dependency_merkle_root(&[capsule_hash(&world, &a)]);
    let terms = Terms {
        dependency_merkle_root: Some(promised),
        ..world.terms(submitter(1), "child")
    };
    let id = terms.claim_id();
    world.ask(submitter(1), create(terms)).expect("new");
    for artifacts in [vec![], vec![hash(&world, &b)]] {
        let command = commit_with(id, "module", false, artifacts);
        let refused = world.ask(submitter(1), command).expect_err("not promised");
        assert!(matches!(refused, Refusal::DependencyRoot { wanted, .. } if wanted == promised));
    }
    let promised = hash(&world, &a);
    let command = commit_with(id, "module", false, vec![promised.clone()]);
    assert!(world.ask(submitter(1), command).is_ok());
    // And none were promised.
    let plain = world.terms(submitter(1), "plain");
    let id = plain.claim_id();
    world.ask(submitter(1), create(plain)).expect("new");
    let command = commit_with(id, "module", false, vec![promised]);
    let refused = world.ask(submitter(1), command).expect_err("none promised");
    assert_eq!(refused.kind(), RefusalKind::Invalid);
}

#[test]
fn a_parent_must_be_settled_and_named_by_its_capsule() {
    let mut world = World::new();
    let parent = settled(&mut world, "parent");
    let theirs = world
        .run(submitter(2), "theirs", &Script::trapped())
        .claim_id;
    let unsettled = world.sealed(world.terms(submitter(1), "unsettled"), false);
    let right = capsule_hash(&world, &parent);
    let theirs_hash = capsule_hash(&world, &theirs);
    let wrong = Digest::of(b"wrong");
    let nobody = ClaimId([9; 32]);
    let mut check = |artifact: Artifact, allowed: bool| {
        let name = format!("{artifact:?}");
        let terms = Terms {
            dependency_merkle_root: Some(dependency_merkle_root(&[artifact.hash])),
            ..world.terms(submitter(1), &name)
        };
        let id = terms.claim_id();
        world.ask(submitter(1), create(terms)).expect("new");
        let hash = artifact.hash;
        let reply = world.ask(
            submitter(1),
            commit_with(id, "module", false, vec![artifact]),
        );
        if allowed {
            assert!(reply.is_ok(), "{name}: {reply:?}");
        } else {
            assert_eq!(reply, Err(Refusal::UnknownDependency(hash)), "{name}");
        }
    };
    check(dependency(Some(parent), right), true);
    check(dependency(Some(parent), wrong), false);
    check(dependency(Some(unsettled), right), false);
    check(dependency(Some(nobody), right), false);
    // A bare claim id must be one's own; whoever has seen a capsule may build on it.
    check(dependency(None, Digest(parent.0)), true);
    check(dependency(None, Digest(theirs.0)), false);
    check(dependency(Some(theirs), theirs_hash), true);
}

#[test]
fn the_line_of_ancestors_is_bounded() {
    let mut world = World::new();
    let mut parent = settled(&mut world, "0");
    for depth in 1..=MAX_DEPTH {
        parent = child(&mut world, &depth.to_string(), &[parent]).expect("within the bound");
        run(&mut world, parent, &Script::trapped());
    }
    let refused = child(&mut world, "too deep", &[parent]).expect_err("beyond");
    assert!(matches!(refused, Refusal::TooManyAncestors { .. }));
}

#[test]
fn the_number_of_parents_is_bounded() {
    let mut world = World::new();
    let parents: Vec<ClaimId> = (0..65)
        .map(|n| settled(&mut world, &n.to_string()))
        .collect();
    assert!(child(&mut world, "64", &parents[..64]).is_ok());
    let refused = child(&mut world, "65", &parents).expect_err("beyond");
    assert!(matches!(refused, Refusal::TooManyAncestors { .. }));
}

#[test]
fn the_number_of_ancestors_is_bounded() {
    let mut world = World::new();
    let leaves: Vec<ClaimId> = (0..63)
        .map(|n| settled(&mut world, &n.to_string()))
        .collect();
    let mut parents: Vec<ClaimId> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| {
            let id = child(&mut world, name, &leaves).expect("63 parents");
            run(&mut world, id, &Script::trapped()).claim_id
        })
        .collect();
    // Four times 63 and one.
    assert!(child(&mut world, "256", &parents).is_ok());
    parents.push(leaves[0]);
    let refused = child(&mut world, "257", &parents).expect_err("beyond");
    assert!(matches!(refused, Refusal::TooManyAncestors { .. }));
}

#[test]
fn dependency_roots_are_those_of_the_published_rule() {
    let [a, b, c] = [1, 2, 3].map(|n| Digest([n; 32]));
    let leaf = |digest: Digest| Digest::of(&digest.0);
    let pair = |left: Digest, right: Digest| Digest::of(&[left.0, right.0].concat());
    assert_eq!(dependency_merkle_root(&[]), Digest::of(b""));
    assert_eq!(dependency_merkle_root(&[a]), leaf(a));
    assert_eq!(dependency_merkle_root(&[a, b]), pair(leaf(a), leaf(b)));
    assert_eq!(
        dependency_merkle_root(&[a, b, c]),
        pair(pair(leaf(a), leaf(b)), pair(leaf(c), leaf(c)))
    );
}
