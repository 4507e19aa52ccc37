//! From creation to revocation, and what is refused on the way.

use evidenceos_kernel::{
    claim::{ClaimState, Outcome, Terms},
    command::{Caller, ClaimCommand, Command, Reply},
    id::{ClaimId, Digest, HoldoutId},
    record::ClaimRevoked,
    refusal::{Refusal, RefusalKind, Step},
};

use crate::world::{
    OPERATOR, Script, World, commit, create, execute, revoke, seal, submitter, wasm,
};

/// A command about a claim.
type Call = fn(ClaimId) -> Command;

/// A claim of submitter 1 in a state.
fn in_state(world: &mut World, state: ClaimState) -> ClaimId {
    let terms = world.terms(submitter(1), &state.to_string());
    let id = terms.claim_id();
    let owner = submitter(1);
    let ask = |world: &mut World, command| {
        world.ask(owner, command).expect("a step of its life");
    };
    ask(world, create(terms));
    if state == ClaimState::Uncommitted {
        return id;
    }
    ask(world, commit(id, "module", false));
    if state == ClaimState::Committed {
        return id;
    }
    ask(world, seal(id));
    if state == ClaimState::Sealed {
        return id;
    }
    ask(world, execute(id));
    if state == ClaimState::Executing {
        return id;
    }
    let number = world.main().admitted - 1;
    let script = if state == ClaimState::Settled {
        Script::weak()
    } else {
        Script::good()
    };
    world.settle(number, &script);
    if state == ClaimState::Revoked {
        ask(world, revoke(id));
    }
    id
}

#[test]
fn a_claim_goes_through_its_life() {
    for state in ClaimState::ALL {
        let mut world = World::new();
        let id = in_state(&mut world, state);
        assert_eq!(world.rows.claims[&id].state, state);
    }
}

#[test]
fn calls_in_a_wrong_state_are_refused_and_change_nothing() {
    let calls: [(Step, Call); 4] = [
        (Step::Commit, |id| commit(id, "another", false)),
        (Step::Seal, seal),
        (Step::Execute, execute),
        (Step::Revoke, revoke),
    ];
    for state in ClaimState::ALL {
        for (step, call) in calls {
            let mut world = World::new();
            let id = in_state(&mut world, state);
            let (before, entries) = (world.snapshot(), world.entries.len());
            let allowed = state.after(step).is_ok();
            let reply = world.ask(submitter(1), call(id));
            assert_eq!(reply.is_ok(), allowed, "{step} in {state}: {reply:?}");
            if !allowed {
                assert_eq!(reply, Err(Refusal::WrongState { step, state }));
                assert_eq!(world.snapshot(), before, "{step} in {state}");
                assert_eq!(world.entries.len(), entries, "{step} in {state}");
            }
        }
    }
}

#[test]
fn a_claim_is_committed_again_until_it_is_sealed() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Committed);
    world
        .ask(submitter(1), commit(id, "better", true))
        .expect("not sealed yet");
    let sealed = |world: &World| {
        world.rows.claims[&id]
            .commitment
            .clone()
            .expect("committed")
    };
    assert_eq!(sealed(&world).module.hash, Digest::of(b"better"));
    world.ask(submitter(1), seal(id)).expect("committed");
    assert!(world.ask(submitter(1), commit(id, "late", true)).is_err());
    assert_eq!(sealed(&world).module.hash, Digest::of(b"better"));
}

#[test]
fn sealing_twice_keeps_the_first_seal() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Sealed);
    let before = world.snapshot();
    let again = world.ask(submitter(1), seal(id));
    assert_eq!(again, Ok(Reply::State(ClaimState::Sealed)));
    assert_eq!(world.snapshot(), before);
}

#[test]
fn seal_binds_module_and_policy() {
    let hash = |module: &str, levels: u8| {
        let mut world = World::with(|policy| policy.levels = levels);
        let terms = world.terms(submitter(1), "c");
        let id = terms.claim_id();
        for command in [create(terms), commit(id, module, false), seal(id)] {
            world.ask(submitter(1), command).expect("allowed");
        }
        world.rows.claims[&id].seal_hash.expect("sealed")
    };
    assert_ne!(hash("one", 0), hash("two", 0));
    assert_ne!(hash("one", 0), hash("one", 1));
}

#[test]
fn the_same_claim_of_another_principal_is_another_claim() {
    let mut world = World::new();
    let [mine, theirs] = [1, 2].map(|n| world.terms(submitter(n), "the same name"));
    assert_ne!(mine.claim_id(), theirs.claim_id());
    for (n, terms) in [(1, mine), (2, theirs)] {
        world.ask(submitter(n), create(terms)).expect("new");
    }
    assert_eq!(world.rows.claims.len(), 2);
}

#[test]
fn creating_a_claim_again_returns_it_as_it_is() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Sealed);
    let terms = world.rows.claims[&id].terms.clone();
    let before = world.snapshot();
    let again = world.ask(submitter(1), create(terms.clone()));
    let topic = terms.topic_id();
    let state = ClaimState::Sealed;
    let created = Reply::Created {
        claim: id,
        topic,
        state,
    };
    assert_eq!(again, Ok(created));
    assert_eq!(world.snapshot(), before);
}

#[test]
fn somebody_elses_claim_looks_like_none_for_every_command() {
    let calls: [Call; 4] = [|id| commit(id, "module", false), seal, execute, revoke];
    for state in ClaimState::ALL {
        for call in calls {
            let mut world = World::new();
            let id = in_state(&mut world, state);
            let before = world.snapshot();
            let nobodys = ClaimId([7; 32]);
            for named in [id, nobodys] {
                let reply = world.ask(submitter(2), call(named));
                assert_eq!(reply, Err(Refusal::UnknownClaim(named)), "{state}");
            }
            assert_eq!(world.snapshot(), before, "{state}");
        }
    }
}

#[test]
fn an_operator_may_act_on_any_claim() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Certified);
    world.ask(OPERATOR, revoke(id)).expect("an operator");
    assert_eq!(world.rows.claims[&id].state, ClaimState::Revoked);
}

#[test]
fn terms_that_break_a_rule_name_the_field() {
    let mut world = World::with(|policy| {
        policy.levels = 4;
        policy.max_symbols = 16;
    });
    let terms = world.terms(submitter(1), "c");
    let mut check = |field: &str, change: &dyn Fn(&mut Terms)| {
        let mut terms = terms.clone();
        change(&mut terms);
        match world.ask(submitter(1), create(terms)) {
            Err(Refusal::Field { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    };
    check("alpha_micros", &|t| t.alpha_micros = 0);
    check("alpha_micros", &|t| t.alpha_micros = 1_000_000);
    check("levels", &|t| t.levels = 5);
    check("oracle_num_symbols", &|t| t.oracle_num_symbols = 1);
    check("oracle_num_symbols", &|t| t.oracle_num_symbols = 17);
    check("nullspec_id", &|t| t.null_spec_hash = Digest([0; 32]));
    assert!(world.rows.claims.is_empty());
}

#[test]
fn a_claim_on_no_holdout_is_refused() {
    let mut world = World::new();
    let holdout = HoldoutId([7; 32]);
    let terms = Terms {
        holdout,
        ..world.terms(submitter(1), "c")
    };
    let refused = world.ask(submitter(1), create(terms));
    assert_eq!(refused, Err(Refusal::UnknownHoldout(holdout.to_hex())));
}

#[test]
fn artifacts_that_break_a_rule_are_refused() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Uncommitted);
    let Command::Claim(ClaimCommand::Commit { module, .. }) = commit(id, "module", false) else {
        unreachable!("a commit")
    };
    let named = |kind: &str| evidenceos_kernel::claim::Artifact {
        kind: kind.to_owned(),
        ..wasm("module")
    };
    let before = world.snapshot();
    for artifacts in [
        vec![],
        vec![wasm("another")],
        vec![named("data")],
        vec![wasm("module"), named("")],
        vec![wasm("module"), named(&"x".repeat(65))],
        vec![wasm("module"); 129],
    ] {
        let refused = world.ask(
            submitter(1),
            ClaimCommand::Commit {
                claim: id,
                artifacts,
                module,
            },
        );
        assert_eq!(
            refused.expect_err("a broken rule").kind(),
            RefusalKind::Invalid
        );
    }
    assert_eq!(world.snapshot(), before);
}

#[test]
fn executing_joins_while_it_runs_and_returns_the_result_afterwards() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Executing);
    let before = world.snapshot();
    assert_eq!(world.ask(submitter(1), execute(id)), Ok(Reply::Running(id)));
    assert_eq!(world.snapshot(), before);
    world.settle(0, &Script::good());
    let Ok(Reply::Settled(claim)) = world.ask(submitter(1), execute(id)) else {
        panic!("settled")
    };
    let settlement = claim.settlement.expect("a result");
    assert_eq!(settlement.outcome, Outcome::Certified);
    assert_eq!(settlement.capsule_hash, world.last_capsule().hash());
    assert_eq!(settlement.index, world.entries.len() as u64 - 1);
}

#[test]
fn a_revocation_is_an_entry_and_keeps_the_result() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Certified);
    let capsule = world.last_capsule().hash();
    let at_unix_ms = world.now_unix_ms;
    assert_eq!(
        world.ask(submitter(1), revoke(id)),
        Ok(Reply::Revoked { at_unix_ms })
    );
    let entry = ClaimRevoked {
        claim: id,
        capsule,
        reason: "a leak in the training rows".to_owned(),
        revoked_unix_ms: at_unix_ms,
    };
    assert_eq!(world.entries.last(), Some(&entry.to_bytes()));
    let claim = &world.rows.claims[&id];
    assert!(claim.settlement.is_some());
    let index = claim.revocation.as_ref().map(|r| r.index);
    assert_eq!(index, Some(world.entries.len() as u64 - 1));
}

#[test]
fn reasons_that_could_not_stand_in_the_log_are_refused() {
    let mut world = World::new();
    let claim = in_state(&mut world, ClaimState::Certified);
    for reason in [String::new(), "x".repeat(257), "two\nlines".to_owned()] {
        let refused = world.ask(submitter(1), ClaimCommand::Revoke { claim, reason });
        let refusal = refused.expect_err("no public text");
        assert_eq!(refusal.kind(), RefusalKind::Invalid);
    }
}

#[test]
fn time_never_goes_back() {
    let mut world = World::new();
    let first = world.run(submitter(1), "a", &Script::weak());
    world.now_unix_ms -= 1_000_000;
    let second = world.run(submitter(1), "b", &Script::weak());
    assert_eq!(second.settled_unix_ms, first.settled_unix_ms);
}

#[test]
fn an_output_is_one_symbol_of_the_alphabet() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Uncommitted);
    let of = |n_symbols: u32| {
        let mut claim = world.rows.claims[&id].clone();
        claim.terms.oracle_num_symbols = n_symbols;
        claim
    };
    for (n_symbols, len) in [
        (2, 1),
        (255, 1),
        (256, 1),
        (257, 2),
        (65_535, 2),
        (65_536, 2),
        (65_537, 3),
        (1 << 24, 3),
        ((1 << 24) + 1, 4),
    ] {
        assert_eq!(of(n_symbols).output_len(), len, "{n_symbols}");
    }
    for (n_symbols, output, accepted) in [
        (2, vec![1], true),
        (2, vec![2], false),
        (2, vec![], false),
        (2, vec![0, 1], false),
        (256, vec![255], true),
        (300, vec![0], false),
        (300, vec![1, 43], true),
        (300, vec![1, 44], false),
        (300, vec![43, 1], false),
        (65_536, vec![255, 255], true),
    ] {
        let found = of(n_symbols).accepts_output(&output);
        assert_eq!(found, accepted, "{n_symbols}: {output:?}");
    }
}

#[test]
fn a_claim_is_read_by_its_owner_auditors_and_operators() {
    let mut world = World::new();
    let id = in_state(&mut world, ClaimState::Uncommitted);
    let claim = &world.rows.claims[&id];
    let other = submitter(2);
    for (caller, reads, acts) in [
        (submitter(1), true, true),
        (other, false, false),
        (
            Caller {
                auditor: true,
                ..other
            },
            true,
            false,
        ),
        (
            Caller {
                operator: true,
                ..other
            },
            true,
            true,
        ),
    ] {
        let found = (caller.may_read(claim), caller.may_act_on(claim));
        assert_eq!(found, (reads, acts), "{caller:?}");
    }
}

#[test]
fn a_capsule_says_how_many_runs_had_ended_at_its_admission() {
    let mut world = World::new();
    let admit = |world: &mut World, name: &str| {
        world.admitted(world.terms(submitter(1), name), false);
    };
    for name in ["first", "second"] {
        admit(&mut world, name);
    }
    let mut ended = vec![world.settle(0, &Script::weak())];
    admit(&mut world, "third");
    ended.extend([1, 2].map(|number| world.settle(number, &Script::weak())));
    admit(&mut world, "fourth");
    ended.push(world.settle(3, &Script::weak()));
    let found: Vec<_> = ended
        .iter()
        .map(|capsule| capsule.run.map(|run| (run.number, run.ended_before)))
        .collect();
    assert_eq!(found, [(0, 0), (1, 0), (2, 1), (3, 3)].map(Some));
}
