//! Request ids: the same request has one outcome.

use evidenceos_kernel::{
    claim::{ClaimState, Terms},
    command::{Caller, Command, HoldoutCommand, Reply, Request},
    id::ClaimId,
    refusal::Refusal,
};

use crate::world::{
    DAY_MS, OPERATOR, Script, World, bits, commit, create, execute, holdout, policy, request,
    revoke, seal, stamp, submitter,
};

fn stamped(caller: Caller, id: &str, command: Command) -> Request {
    let content = format!("{command:?}");
    request(caller, stamp(caller, id, &content), command)
}

/// Sends a request twice; the second time it must say the same and change nothing.
fn twice(world: &mut World, request: Request) -> Result<Reply, Refusal> {
    let first = world.send(request.clone());
    let (before, entries, journal) = (world.snapshot(), world.entries.len(), world.journal.len());
    world.now_unix_ms += 1;
    let second = world.send(request);
    assert_eq!(second, first);
    assert_eq!(world.snapshot(), before);
    assert_eq!(
        (world.entries.len(), world.journal.len()),
        (entries, journal)
    );
    first
}

#[test]
fn the_same_id_gets_the_same_reply_for_every_method() {
    let mut world = World::empty();
    let me = submitter(1);
    let put = HoldoutCommand::Put(Box::new(holdout("main", policy(), None))).into();
    let Ok(Reply::Holdout(registered)) = twice(&mut world, stamped(OPERATOR, "put", put)) else {
        panic!("registered")
    };
    world.holdout = registered.id;
    let terms = world.terms(me, "c");
    let id = terms.claim_id();
    for (name, command) in [
        ("create", create(terms)),
        ("commit", commit(id, "module", false)),
        ("seal", seal(id)),
        ("execute", execute(id)),
    ] {
        let reply = twice(&mut world, stamped(me, name, command));
        assert!(reply.is_ok(), "{name}: {reply:?}");
    }
    world.settle(0, &Script::good());
    let settled = twice(&mut world, stamped(me, "execute", execute(id)));
    assert!(matches!(settled, Ok(Reply::Settled(_))));
    assert!(twice(&mut world, stamped(me, "revoke", revoke(id))).is_ok());
    let holdout = world.holdout;
    for command in [
        HoldoutCommand::Retire {
            holdout,
            reason: "spent".to_owned(),
        }
        .into(),
        HoldoutCommand::Open { holdout }.into(),
    ] {
        let name = format!("{command:?}");
        assert!(twice(&mut world, stamped(OPERATOR, &name, command)).is_ok());
    }
}

#[test]
fn earlier_replies_stay_the_same_when_the_claim_has_gone_on() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = world.terms(me, "c");
    let id = terms.claim_id();
    let calls = [
        stamped(me, "create", create(terms)),
        stamped(me, "commit", commit(id, "module", false)),
        stamped(me, "seal", seal(id)),
    ];
    let first: Vec<_> = calls.iter().map(|call| world.send(call.clone())).collect();
    world
        .send(stamped(me, "execute", execute(id)))
        .expect("sealed");
    world.settle(0, &Script::good());
    let before = world.snapshot();
    let again: Vec<_> = calls.iter().map(|call| world.send(call.clone())).collect();
    assert_eq!(again, first);
    assert_eq!(world.snapshot(), before);
}

#[test]
fn refusals_are_remembered_too() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = world.terms(me, "c");
    let id = terms.claim_id();
    world.ask(me, create(terms)).expect("new");
    let too_soon = stamped(me, "seal", seal(id));
    let refused = twice(&mut world, too_soon.clone());
    let wrong = Refusal::WrongState {
        step: evidenceos_kernel::refusal::Step::Seal,
        state: ClaimState::Uncommitted,
    };
    assert_eq!(refused, Err(wrong.clone()));
    // Even when it would succeed by now: this request was answered.
    world.ask(me, commit(id, "module", false)).expect("allowed");
    assert_eq!(world.send(too_soon), Err(wrong));
    assert!(world.send(stamped(me, "seal again", seal(id))).is_ok());

    let bad = Terms {
        alpha_micros: 0,
        ..world.terms(me, "bad")
    };
    assert!(twice(&mut world, stamped(me, "bad", create(bad))).is_err());
}

#[test]
fn a_call_on_an_unknown_claim_leaves_no_row_and_is_decided_again() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = world.terms(me, "c");
    let id = terms.claim_id();
    let call = stamped(me, "commit", commit(id, "module", false));
    let before = world.snapshot();
    assert_eq!(
        twice(&mut world, call.clone()),
        Err(Refusal::UnknownClaim(id))
    );
    assert_eq!(world.snapshot(), before);
    world.ask(me, create(terms)).expect("new");
    assert!(world.send(call).is_ok());
}

#[test]
fn another_content_under_the_same_id_is_refused() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = world.terms(me, "c");
    let id = terms.claim_id();
    let other = world.terms(me, "other");
    let reused = Err(Refusal::RequestIdReused);
    world.send(stamped(me, "x", create(terms))).expect("new");
    assert_eq!(world.send(stamped(me, "x", create(other))), reused);
    world
        .send(stamped(me, "y", commit(id, "module", false)))
        .expect("allowed");
    let before = world.snapshot();
    let other = commit(id, "another", false);
    assert_eq!(world.send(stamped(me, "y", other)), reused);
    assert_eq!(world.snapshot(), before);
}

#[test]
fn a_displaced_request_is_still_answered() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = world.terms(me, "c");
    let id = terms.claim_id();
    world.ask(me, create(terms)).expect("new");
    let commits = ["a", "b", "c"].map(|module| stamped(me, module, commit(id, module, false)));
    for call in &commits {
        twice(&mut world, call.clone()).expect("not sealed yet");
    }
    let before = world.snapshot();
    for call in &commits {
        assert_eq!(
            world.send(call.clone()),
            Ok(Reply::State(ClaimState::Committed))
        );
    }
    assert_eq!(world.snapshot(), before, "the last module stays");
    let reused = stamped(me, "a", commit(id, "d", false));
    assert_eq!(world.send(reused), Err(Refusal::RequestIdReused));
}

#[test]
fn a_displaced_refusal_is_still_answered() {
    let mut world = World::new();
    let me = submitter(1);
    let id = world.sealed(world.terms(me, "c"), false);
    let early = stamped(me, "early", revoke(id));
    let refused = world.send(early.clone());
    assert!(refused.is_err());
    world
        .send(stamped(me, "also early", revoke(id)))
        .expect_err("still");
    world.ask(me, execute(id)).expect("sealed");
    world.settle(0, &Script::good());
    assert_eq!(world.send(early), refused);
    assert_eq!(world.rows.claims[&id].state, ClaimState::Certified);
}

#[test]
fn refusals_that_ask_to_retry_are_never_remembered() {
    let mut world = World::with(|policy| policy.sealed_budget = bits(8));
    let me = submitter(1);
    let (_, number) = world.admitted(world.terms(me, "a"), false);
    let id = world.sealed(world.terms(me, "b"), false);
    let call = stamped(me, "execute", execute(id));
    let before = world.snapshot();
    assert!(matches!(
        world.send(call.clone()),
        Err(Refusal::Reserved { .. })
    ));
    assert_eq!(world.snapshot(), before);
    world.settle(number, &Script::trapped());
    assert_eq!(world.send(call), Ok(Reply::Running(id)));
}

#[test]
fn requests_are_remembered_for_24_hours() {
    for (later_ms, remembered) in [(DAY_MS - 1, true), (DAY_MS, false)] {
        let mut world = World::new();
        let me = submitter(1);
        let bad = Terms {
            alpha_micros: 0,
            ..world.terms(me, "bad")
        };
        let good = world.terms(me, "good");
        let id = good.claim_id();
        world.send(stamped(me, "x", create(bad))).expect_err("no α");
        world.ask(me, create(good.clone())).expect("new");
        world
            .send(stamped(me, "y", commit(id, "a", false)))
            .expect("allowed");
        world.now_unix_ms += later_ms;
        let reused = world.send(stamped(me, "x", create(good)));
        assert_eq!(reused == Err(Refusal::RequestIdReused), remembered);
        let reused = world.send(stamped(me, "y", commit(id, "b", false)));
        assert_eq!(reused == Err(Refusal::RequestIdReused), remembered);
    }
}

#[test]
fn ids_of_two_principals_are_apart() {
    let mut world = World::new();
    let ids: Vec<ClaimId> = [1, 2]
        .map(|n| {
            let terms = world.terms(submitter(n), "c");
            let id = terms.claim_id();
            world
                .send(stamped(submitter(n), "1", create(terms)))
                .expect("his own id");
            id
        })
        .into();
    for (n, id) in [(1, ids[0]), (2, ids[1])] {
        let reply = world.send(stamped(submitter(n), "2", commit(id, "module", false)));
        assert!(reply.is_ok());
    }
}

#[test]
fn one_id_twice_in_one_batch_acts_once() {
    let mut world = World::new();
    let me = submitter(1);
    let id = world.sealed(world.terms(me, "c"), false);
    let call = stamped(me, "execute", execute(id));
    let replies = world.batch(&[call.clone(), call]);
    assert_eq!(replies, [Ok(Reply::Running(id)), Ok(Reply::Running(id))]);
    assert_eq!(world.main().admitted, 1);
}

#[test]
fn a_claim_keeps_one_request_a_method_and_remembers_the_one_before_for_a_day() {
    for (later_ms, remembered) in [(DAY_MS - 1, 1), (DAY_MS, 0)] {
        let mut world = World::new();
        let me = submitter(1);
        let terms = world.terms(me, "c");
        let id = terms.claim_id();
        world.ask(me, create(terms)).expect("new");
        let calls = ["a", "b"].map(|module| stamped(me, module, commit(id, module, false)));
        let [first, second] = calls;
        world.send(first).expect("not sealed yet");
        world.now_unix_ms += later_ms;
        world.send(second).expect("not sealed yet");
        assert_eq!(
            world.rows.remembered.len(),
            remembered,
            "after {later_ms} ms"
        );
        world
            .send(stamped(me, "seal", seal(id)))
            .expect("committed");
        assert_eq!(world.rows.claims[&id].requests.len(), 2);
        assert_eq!(world.rows.remembered.len(), remembered);
    }
}
