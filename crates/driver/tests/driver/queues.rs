//! Calls that wait: for reservations, for slots; in order, without a trace until admitted.

use std::sync::atomic::Ordering;

use evidenceos_driver::{Failure, Limits};
use evidenceos_kernel::{
    bits::MicroBits, claim::Terms, command::Reply, id::ClaimId, refusal::Refusal,
};
use evidenceos_store::memory::Fault;

use crate::bench::{Bench, Ticket, execute, submitter};

/// A bench whose holdout takes one run at a time.
fn one_at_a_time() -> Bench {
    Bench::with(Limits::default(), |policy| {
        policy.sealed_budget = MicroBits::from_bits(8);
    })
}

fn limits(run_slots: usize, waiting: usize) -> Limits {
    Limits { run_slots, waiting }
}

fn execute_all<const N: usize>(bench: &mut Bench, owner: u8, claims: [ClaimId; N]) -> [Ticket; N] {
    claims.map(|id| bench.call(submitter(owner), &id.to_hex(), execute(id)))
}

/// Runs everything to its end, free of charge; the claims in the order in which they started.
fn drain(bench: &mut Bench) -> Vec<ClaimId> {
    let mut started = Vec::new();
    loop {
        let works = bench.take_works();
        if works.is_empty() {
            return started;
        }
        for work in works {
            started.push(work.claim.id);
            let trapped = evidenceos_driver::RunDone {
                report: Box::new(trapped()),
                trace: b"trace".to_vec(),
            };
            bench.finish_as(&work, Ok(trapped));
            bench.step();
        }
    }
}

fn trapped() -> evidenceos_kernel::command::RunReport {
    evidenceos_kernel::command::RunReport {
        end: evidenceos_kernel::command::RunEnd::Trapped(evidenceos_kernel::claim::Reason::Trap),
        answers: Default::default(),
        score: None,
        fuel: 1,
        pages: 1,
        trace_hash: evidenceos_kernel::id::Digest::of(b"trace"),
        trace_len: 5,
    }
}

#[test]
fn calls_that_only_reservations_block_wait_and_are_served_in_order() {
    let mut bench = one_at_a_time();
    let claims: [_; 6] = bench.sealed_many(1);
    let mut tickets = Vec::new();
    for pair in claims.chunks(2) {
        for id in pair {
            tickets.push(bench.call(submitter(1), &id.to_hex(), execute(*id)));
        }
        bench.step();
    }
    assert!(tickets.iter().all(|ticket| bench.answer(*ticket).is_none()));
    assert_eq!(drain(&mut bench), claims);
    for ticket in tickets {
        assert!(matches!(bench.answer(ticket), Some(Ok(Reply::Settled(_)))));
    }
}

#[test]
fn a_later_call_that_would_fit_does_not_overtake() {
    let mut bench = Bench::with(Limits::default(), |policy| {
        policy.answer_budget = MicroBits::from_bits(10);
    });
    let mut asking = |owner: u8, most: u64| {
        let terms = Terms {
            max_answer_microbits: Some(most * 1_000_000),
            ..bench.terms(submitter(owner), "asks")
        };
        let id = bench.sealed(terms);
        bench.call(submitter(owner), "run", execute(id));
        bench.step();
        id
    };
    let claims = [asking(1, 6), asking(2, 6), asking(3, 2)];
    assert_eq!(drain(&mut bench), claims);
}

#[test]
fn callers_who_go_away_while_they_wait_leave_no_trace() {
    let mut bench = one_at_a_time();
    let (_, work) = bench.running(1, "first");
    let [gone, stays] = bench.sealed_many(2);
    let (_, flag) = bench.call_that_may_go(submitter(2), "gone", execute(gone));
    bench.call(submitter(2), "stays", execute(stays));
    bench.step();
    let before = bench.stored(&gone);
    flag.store(true, Ordering::Relaxed);
    bench.finish_as(
        &work,
        Ok(evidenceos_driver::RunDone {
            report: Box::new(trapped()),
            trace: b"trace".to_vec(),
        }),
    );
    bench.step();
    assert_eq!(drain(&mut bench), [stays]);
    assert_eq!(bench.stored(&gone), before);
    assert_eq!(bench.main().admitted, 2);
}

#[test]
fn a_run_goes_on_when_its_caller_goes_away() {
    let mut bench = Bench::new();
    let [id] = bench.sealed_many(1);
    let (_, flag) = bench.call_that_may_go(submitter(1), "run", execute(id));
    bench.step();
    flag.store(true, Ordering::Relaxed);
    assert_eq!(drain(&mut bench), [id]);
    assert!(bench.stored(&id).expect("stored").settlement.is_some());
}

#[test]
fn nobody_is_forgotten_when_those_before_him_go_away() {
    // One slot: as many callers are looked at as it takes to fill it, not one.
    let mut bench = Bench::with(limits(1, 100), |_| ());
    let (_, work) = bench.running(1, "first");
    let [a, b, stays] = bench.sealed_many(2);
    let flags = [a, b].map(|id| {
        bench
            .call_that_may_go(submitter(2), &id.to_hex(), execute(id))
            .1
    });
    bench.call(submitter(2), "stays", execute(stays));
    bench.step();
    for flag in flags {
        flag.store(true, Ordering::Relaxed);
    }
    bench.finish(&work, 400);
    bench.step();
    let started: Vec<ClaimId> = bench.take_works().iter().map(|w| w.claim.id).collect();
    assert_eq!(started, [stays]);
}

#[test]
fn nobody_is_forgotten_when_those_before_him_are_refused() {
    let mut bench = Bench::with(limits(1, 100), |policy| {
        policy.principal_answer_budget = MicroBits::from_bits(4);
    });
    let declaring = |bench: &mut Bench, name: &str| {
        let terms = Terms {
            max_answer_microbits: Some(4_000_000),
            ..bench.terms(submitter(1), name)
        };
        bench.sealed(terms)
    };
    let first = declaring(&mut bench, "first");
    bench.call(submitter(1), "first", execute(first));
    bench.step();
    let work = bench.take_works().remove(0);
    let second = declaring(&mut bench, "second");
    let [third] = bench.sealed_many(2);
    let refused = bench.call(submitter(1), "second", execute(second));
    bench.call(submitter(2), "third", execute(third));
    bench.step();
    bench.finish_charged(&work, 400, MicroBits::from_bits(4));
    bench.step();
    let exhausted = bench.answer(refused).expect("his budget is used up");
    assert!(matches!(
        exhausted,
        Err(Failure::Refused(Refusal::BudgetExhausted { .. }))
    ));
    assert_eq!(drain(&mut bench), [third]);
}

#[test]
fn the_holdout_that_comes_first_does_not_starve_the_others() {
    let mut bench = Bench::with(limits(1, 100), |_| ());
    let policy = bench.main().description.policy.clone();
    let mut holdouts = [bench.holdout, bench.register("second", policy)];
    holdouts.sort();
    let mut order = Vec::new();
    // The last in the order of ids asks first.
    for (owner, holdout) in [(1, holdouts[0]), (2, holdouts[1]), (3, holdouts[0])] {
        let id = bench.sealed(bench.terms_on(holdout, submitter(owner), "c"));
        bench.call(submitter(owner), "run", execute(id));
        bench.step();
        order.push(id);
    }
    assert_eq!(drain(&mut bench), order);
}

#[test]
fn one_principal_has_at_most_a_quarter_of_the_slots() {
    let mut bench = Bench::with(limits(8, 100), |policy| {
        policy.sealed_budget = MicroBits::from_bits(1_000);
    });
    let mine: [_; 4] = bench.sealed_many(1);
    execute_all(&mut bench, 1, mine);
    bench.step();
    let works = bench.take_works();
    assert_eq!(works.len(), 2);
    // On another holdout he does not get more; another principal does.
    let policy = bench.main().description.policy.clone();
    let second = bench.register("second", policy);
    let elsewhere = bench.sealed(bench.terms_on(second, submitter(1), "c"));
    bench.call(submitter(1), "elsewhere", execute(elsewhere));
    bench.step();
    assert!(bench.take_works().is_empty());
    let third = bench.register("third", bench.main().description.policy.clone());
    let theirs = bench.sealed(bench.terms_on(third, submitter(2), "c"));
    bench.call(submitter(2), "theirs", execute(theirs));
    bench.step();
    assert_eq!(bench.take_works().len(), 1);
    bench.finish(&works[0], 400);
    bench.step();
    assert_eq!(bench.take_works().len(), 1, "a slot that he gave back");
}

#[test]
fn a_finished_run_that_waits_for_its_turn_holds_no_slot() {
    let mut bench = Bench::with(limits(2, 100), |_| ());
    let (_, _first) = bench.running(1, "first");
    let (_, second) = bench.running(2, "second");
    let [id] = bench.sealed_many(3);
    bench.call(submitter(3), "run", execute(id));
    bench.step();
    assert!(bench.take_works().is_empty());
    bench.finish(&second, 400);
    bench.step();
    assert_eq!(bench.take_works().len(), 1);
    assert_eq!(bench.main().in_flight.len(), 3);
}

#[test]
fn the_queue_is_bounded_in_all_and_for_each_principal() {
    let mut bench = Bench::with(limits(256, 8), |policy| {
        policy.sealed_budget = MicroBits::from_bits(8);
    });
    bench.running(9, "first");
    let full = Some(Err(Refusal::QueueFull.into()));
    let mine: [_; 3] = bench.sealed_many(1);
    let tickets = execute_all(&mut bench, 1, mine);
    bench.step();
    let answers = tickets.map(|ticket| bench.answer(ticket));
    assert_eq!(answers, [None, None, full.clone()], "two of eight are his");
    for owner in 2..5 {
        let theirs: [_; 2] = bench.sealed_many(owner);
        let tickets = execute_all(&mut bench, owner, theirs);
        bench.step();
        assert_eq!(tickets.map(|ticket| bench.answer(ticket)), [None, None]);
    }
    let [last] = bench.sealed_many(5);
    let ticket = bench.call(submitter(5), "run", execute(last));
    bench.step();
    assert_eq!(bench.answer(ticket), full);
}

#[test]
fn going_one_by_one_keeps_the_order_of_the_queue() {
    let mut bench = one_at_a_time();
    let (_, work) = bench.running(1, "first");
    let claims: [_; 4] = bench.sealed_many(2);
    execute_all(&mut bench, 2, claims);
    bench.step();
    bench.inject([Fault::Constraint]);
    bench.finish_as(
        &work,
        Ok(evidenceos_driver::RunDone {
            report: Box::new(trapped()),
            trace: b"trace".to_vec(),
        }),
    );
    bench.step();
    assert_eq!(drain(&mut bench), claims);
}

#[test]
fn a_stop_sends_away_those_who_wait() {
    let mut bench = one_at_a_time();
    bench.running(1, "first");
    let [id] = bench.sealed_many(2);
    let ticket = bench.call(submitter(2), "run", execute(id));
    bench.step();
    bench.driver.stop();
    assert_eq!(bench.answer(ticket), Some(Err(Failure::Stopping)));
}
