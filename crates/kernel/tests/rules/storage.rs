//! What is stored for a principal, and where it ends.

use evidenceos_kernel::{
    account::{Accounting, CLAIM_BYTES, Totals},
    claim::{Artifact, ClaimState, stored_bytes},
    command::{Caller, ClaimCommand, Command, Reply},
    decide::{decide, may_commit},
    id::{ClaimId, Digest},
    refusal::{Refusal, Role},
    state::Stage,
};

use crate::world::{Script, World, commit, create, request, seal, submitter, wasm};

/// What `commit` of a module of the world takes: 100 bytes, and one artifact of kind `wasm`.
const COMMITTED: u64 = 100 + 4 + 32;

/// A world where so much is stored for a principal at most.
fn world_of(storage_limit: u64) -> World {
    let mut world = World::new();
    let accounting = Accounting {
        storage_limit,
        ..Accounting::default()
    };
    world.resident = world.resident.with_accounts(accounting, Totals::default());
    world
}

fn stored(world: &World, owner: Caller) -> u64 {
    world.rows.accounts[&owner.tag].stored_bytes
}

#[test]
fn a_claim_counts_with_its_module_its_artifacts_and_its_trace() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = world.terms(me, "mine");
    let id = terms.claim_id();
    world.ask(me, create(terms.clone())).expect("room");
    assert_eq!(stored(&world, me), CLAIM_BYTES);
    // What is there already is not counted again.
    world.ask(me, create(terms)).expect("the same");
    assert_eq!(stored(&world, me), CLAIM_BYTES);
    world.ask(me, commit(id, "module", true)).expect("room");
    assert_eq!(stored(&world, me), CLAIM_BYTES + COMMITTED);
    // Another one takes its place.
    world.ask(me, commit(id, "another", true)).expect("room");
    assert_eq!(stored(&world, me), CLAIM_BYTES + COMMITTED);
    world.run(me, "judged", &Script::good());
    let trace = Script::good().report().trace_len;
    assert_eq!(stored(&world, me), 2 * (CLAIM_BYTES + COMMITTED) + trace);
}

#[test]
fn nothing_is_stored_beyond_the_limit_and_others_have_their_own() {
    let limit = CLAIM_BYTES + COMMITTED;
    let mut world = world_of(limit);
    let me = submitter(1);
    let terms = world.terms(me, "mine");
    let id = terms.claim_id();
    world.ask(me, create(terms)).expect("room");
    world
        .ask(me, commit(id, "module", true))
        .expect("just room");
    let beyond = |stored, more| {
        Err(Refusal::StorageLimit {
            stored,
            more,
            limit,
        })
    };
    // A module in the place of one that is as long takes nothing; a longer name of an artifact does.
    world.ask(me, commit(id, "another", true)).expect("no more");
    let Command::Claim(ClaimCommand::Commit {
        claim,
        mut artifacts,
        module,
    }) = commit(id, "module", true)
    else {
        unreachable!("made by `commit`")
    };
    artifacts.push(wasm("module"));
    artifacts[0].kind = "w".to_owned();
    let more = ClaimCommand::Commit {
        claim,
        artifacts: artifacts.clone(),
        module,
    };
    assert_eq!(world.ask(me, more), beyond(limit, 33));
    // The same is known before there is a module.
    let claim = &world.rows.claims[&id];
    let early = may_commit(
        claim,
        world.rows.accounts.get(&me.tag),
        world.resident.accounting(),
        &artifacts,
        module.hash,
        module.len,
    );
    assert_eq!(early.map(|()| Reply::Done), beyond(limit, 33));
    assert_eq!(
        world.ask(me, create(world.terms(me, "second"))),
        beyond(limit, CLAIM_BYTES)
    );
    let other = submitter(2);
    let terms = world.terms(other, "theirs");
    world.ask(other, create(terms)).expect("room of their own");
    assert_eq!(stored(&world, me), limit);
}

#[test]
fn an_artifact_counts_with_its_kind_and_each_of_its_ids() {
    let dependency = Artifact {
        kind: "dependency".to_owned(),
        hash: Digest::of(b"a capsule"),
        parent: Some(ClaimId([1; 32])),
    };
    assert_eq!(stored_bytes(&[], 100), 100);
    assert_eq!(stored_bytes(&[wasm("module")], 100), COMMITTED);
    assert_eq!(
        stored_bytes(&[wasm("module"), dependency], 100),
        COMMITTED + 10 + 2 * 32
    );
}

#[test]
fn a_module_is_named_once_and_displaced_by_another_alone() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = world.terms(me, "mine");
    let id = terms.claim_id();
    world.ask(me, create(terms)).expect("room");
    let [first, second] = ["first", "second"].map(|module| Digest::of(module.as_bytes()));
    for (module, named, displaced) in [
        ("first", vec![first], vec![]),
        ("first", vec![], vec![]),
        ("second", vec![second], vec![first]),
    ] {
        let request = request(me, None, commit(id, module, true));
        let resident = world.resident.clone();
        let mut stage = Stage::new(&resident);
        stage.advance_to(world.now_unix_ms);
        world.rows.load(&mut stage, &request);
        let decision = decide(&stage, &request).expect("room");
        stage.enact(&decision);
        let changes = stage.into_changes();
        assert_eq!(changes.named_modules, named, "{module}");
        assert_eq!(changes.displaced_modules, displaced, "{module}");
        world.merge(changes);
    }
}

#[test]
fn a_claim_that_is_bound_is_refused_before_there_is_a_module() {
    let mut world = World::new();
    let me = submitter(1);
    let id = world.sealed(world.terms(me, "mine"), true);
    let claim = &world.rows.claims[&id];
    let early = may_commit(
        claim,
        world.rows.accounts.get(&me.tag),
        world.resident.accounting(),
        &[wasm("other")],
        Digest::of(b"other"),
        100,
    );
    let refused = world.ask(me, commit(id, "other", true));
    assert!(
        matches!(refused, Err(Refusal::WrongState { .. })),
        "{refused:?}"
    );
    assert_eq!(early.map(|()| Reply::Done), refused);
    world.ask(me, seal(id)).expect("sealed already");
}

#[test]
fn a_claim_that_is_not_executed_gives_its_storage_back_in_time() {
    let mut world = World::new();
    let me = submitter(1);
    let id = world.sealed(world.terms(me, "mine"), true);
    let used = world.rows.claims[&id].last_used_unix_ms();
    assert_eq!(stored(&world, me), CLAIM_BYTES + COMMITTED);
    let uncommit = |claim, unused_since_unix_ms| -> Command {
        ClaimCommand::Uncommit {
            claim,
            unused_since_unix_ms,
        }
        .into()
    };
    // Only the daemon itself and operators may ask for it.
    assert_eq!(
        world.ask(me, uncommit(id, used + 1)),
        Err(Refusal::RoleRequired(Role::Operator))
    );
    let kept = world.ask(Caller::DRIVER, uncommit(id, used));
    assert_eq!(kept, Ok(Reply::State(ClaimState::Sealed)));

    let request = request(Caller::DRIVER, None, uncommit(id, used + 1));
    let resident = world.resident.clone();
    let mut stage = Stage::new(&resident);
    stage.advance_to(world.now_unix_ms);
    world.rows.load(&mut stage, &request);
    let decision = decide(&stage, &request).expect("allowed");
    assert!(decision.entries.is_empty(), "the log knows no such claim");
    stage.enact(&decision);
    let changes = stage.into_changes();
    assert_eq!(changes.displaced_modules.len(), 1);
    world.merge(changes);
    assert_eq!(stored(&world, me), CLAIM_BYTES);
    let claim = &world.rows.claims[&id];
    assert_eq!(
        (claim.state, &claim.commitment),
        (ClaimState::Uncommitted, &None)
    );

    // The claim can be given a module again, and is judged as any other.
    world
        .ask(me, commit(id, "another", true))
        .expect("as a new claim");
    assert_eq!(stored(&world, me), CLAIM_BYTES + COMMITTED);
    let settled = world.run(me, "judged", &Script::good()).claim_id;
    let kept = world.ask(Caller::DRIVER, uncommit(settled, u64::MAX));
    assert!(
        matches!(kept, Ok(Reply::State(state)) if state != ClaimState::Uncommitted),
        "{kept:?}"
    );
}
