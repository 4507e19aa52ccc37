//! What one step does: decide in order, commit once, and only then answer.

use evidenceos_driver::Failure;
use evidenceos_kernel::{
    claim::{ClaimState, Terms},
    command::Reply,
    refusal::Refusal,
};

use crate::bench::{Bench, Happened, commit, create, execute, seal, submitter};

#[test]
fn one_step_is_one_commit_and_answers_follow_it() {
    let mut bench = Bench::new();
    let claims: [_; 3] = bench.sealed_many(1);
    bench.take_timeline();
    for id in claims {
        bench.call(submitter(1), &id.to_hex(), execute(id));
    }
    let refused = bench.call(submitter(2), "x", execute(claims[0]));
    bench.step();
    let timeline = bench.take_timeline();
    assert_eq!(timeline[0], Happened::Committed);
    let commits = timeline.iter().filter(|h| **h == Happened::Committed);
    assert_eq!(commits.count(), 1);
    // A refusal, too, is decided against what the batch did.
    assert!(timeline.contains(&Happened::Replied(refused)));
    let refusal = Refusal::UnknownClaim(claims[0]);
    assert_eq!(bench.answer(refused), Some(Err(refusal.into())));
}

#[test]
fn a_settlement_is_committed_released_and_then_answered() {
    let mut bench = Bench::new();
    let (ticket, work) = bench.running(1, "a");
    assert_eq!(bench.answer(ticket), None);
    bench.take_timeline();
    bench.finish(&work, 700);
    bench.step();
    assert_eq!(
        bench.take_timeline(),
        [
            Happened::Committed,
            Happened::Released(2),
            Happened::Replied(ticket)
        ]
    );
    let Some(Ok(Reply::Settled(claim))) = bench.answer(ticket) else {
        panic!("settled")
    };
    assert_eq!(claim.state, ClaimState::Certified);
    assert_eq!(bench.stored(&claim.id), Some(*claim));
}

#[test]
fn two_charges_on_one_pool_in_one_batch_do_not_both_pass() {
    let mut bench = Bench::with(Default::default(), |policy| {
        policy.answer_budget = evidenceos_kernel::bits::MicroBits::from_bits(10);
    });
    for owner in [1, 2] {
        let terms = Terms {
            max_answer_microbits: Some(6_000_000),
            ..bench.terms(submitter(owner), "asks")
        };
        let id = bench.sealed(terms);
        bench.call(submitter(owner), "run", execute(id));
    }
    bench.step();
    assert_eq!(bench.take_works().len(), 1);
    assert_eq!(bench.main().answers.reserved.get(), 6_000_000);
}

#[test]
fn one_request_id_twice_in_one_batch_runs_once_and_both_are_answered() {
    let mut bench = Bench::new();
    let [id] = bench.sealed_many(1);
    let tickets = [0, 1].map(|_| bench.call(submitter(1), "run", execute(id)));
    bench.step();
    let works = bench.take_works();
    assert_eq!(works.len(), 1);
    bench.finish(&works[0], 400);
    bench.step();
    let [first, second] = tickets.map(|ticket| bench.answer(ticket).expect("settled"));
    assert!(first.is_ok());
    assert_eq!(first, second);
}

#[test]
fn a_whole_life_in_one_batch_sees_each_step() {
    let mut bench = Bench::new();
    let me = submitter(1);
    let terms = bench.terms(me, "c");
    let id = terms.claim_id();
    bench.call(me, "1", create(terms));
    bench.call(me, "2", commit(id, "module", false));
    bench.call(me, "3", seal(id));
    bench.call(me, "4", execute(id));
    bench.step();
    assert_eq!(bench.take_works().len(), 1);
    let stored = bench.stored(&id).map(|claim| claim.state);
    assert_eq!(stored, Some(ClaimState::Executing));
}

#[test]
fn who_executes_a_running_claim_joins_it() {
    let mut bench = Bench::new();
    let (first, work) = bench.running(1, "a");
    let second = bench.call(submitter(1), "join", execute(work.claim.id));
    bench.step();
    assert!(bench.take_works().is_empty());
    assert_eq!(bench.answer(second), None);
    bench.finish(&work, 400);
    bench.step();
    assert!(bench.answer(first).is_some());
    assert_eq!(bench.answer(first), bench.answer(second));
    let third = bench.ask(submitter(1), "late", execute(work.claim.id));
    assert_eq!(Some(third), bench.answer(first));
}

#[test]
fn runs_settle_in_the_order_of_their_admission() {
    let mut bench = Bench::new();
    let (first, a) = bench.running(1, "a");
    let (second, b) = bench.running(2, "b");
    bench.finish(&b, 700);
    bench.step();
    assert_eq!((bench.answer(first), bench.answer(second)), (None, None));
    bench.finish(&a, 400);
    bench.take_timeline();
    bench.step();
    let entries = bench.driver.store_mut().memory.entries().len();
    assert_eq!(entries, 3);
    let index = |bench: &Bench, ticket| match bench.answer(ticket) {
        Some(Ok(Reply::Settled(claim))) => claim.settlement.expect("a result").index,
        other => panic!("settled: {other:?}"),
    };
    assert_eq!((index(&bench, first), index(&bench, second)), (1, 2));
}

#[test]
fn a_step_that_changes_nothing_commits_nothing() {
    let mut bench = Bench::new();
    bench.take_timeline();
    bench.step();
    assert!(bench.take_timeline().is_empty());
}

#[test]
fn a_caller_has_so_many_refusals_remembered_and_no_more_and_others_have_their_own() {
    let mut bench = Bench::new();
    let claim = bench.sealed_many::<1>(1)[0];
    let mut commits = |caller, id: &str| {
        bench.take_timeline();
        let refused = bench.ask(caller, id, commit(claim, "another", true));
        assert!(matches!(refused, Err(Failure::Refused(_))), "{refused:?}");
        let timeline = bench.take_timeline();
        timeline.contains(&Happened::Committed)
    };
    let me = submitter(1);
    let remembered = (0..1_100).filter(|n| commits(me, &n.to_string())).count();
    assert_eq!(remembered, 1_024);
    let operator = evidenceos_kernel::command::Caller {
        operator: true,
        ..submitter(9)
    };
    assert!(commits(operator, "theirs"));
    // What changes something is done as ever.
    assert!(
        bench
            .ask(me, "next", create(bench.terms(me, "next")))
            .is_ok()
    );
}

#[test]
fn after_a_stop_nothing_new_runs_and_what_runs_settles() {
    let mut bench = Bench::new();
    let (ticket, work) = bench.running(1, "a");
    let [id] = bench.sealed_many(2);
    bench.driver.stop();
    let refused = bench.ask(submitter(2), "late", execute(id));
    assert_eq!(refused, Err(Failure::Stopping));
    assert!(bench.driver.has_work());
    bench.finish(&work, 400);
    bench.step();
    assert!(matches!(bench.answer(ticket), Some(Ok(Reply::Settled(_)))));
    assert!(!bench.driver.has_work());
}

#[test]
fn who_waits_for_a_run_when_the_driver_is_abandoned_is_sent_away() {
    let mut bench = Bench::new();
    let (ticket, _) = bench.running(1, "a");
    bench.driver.stop();
    bench.driver.abandon();
    assert_eq!(bench.answer(ticket), Some(Err(Failure::Unknown)));
}
