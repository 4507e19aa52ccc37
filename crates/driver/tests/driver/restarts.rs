//! Runs found under way at a start: begun again one at a time, or aborted at their worst case.

use evidenceos_driver::Work;
use evidenceos_kernel::{
    claim::{ClaimState, Outcome},
    command::Reply,
    id::ClaimId,
};
use evidenceos_store::memory::Fault;

use crate::bench::{Bench, ENGINE, Happened, execute, submitter};

/// A bench with runs of one owner each under way.
fn with_runs(runs: u8) -> (Bench, Vec<ClaimId>) {
    let mut bench = Bench::new();
    let claims = (0..runs)
        .map(|owner| bench.running(owner + 1, "c").1.claim.id)
        .collect();
    (bench, claims)
}

fn attempts(bench: &Bench) -> Vec<u8> {
    let runs = bench.main().in_flight.iter();
    runs.map(|run| run.attempt).collect()
}

fn only(works: Vec<Work>) -> Work {
    assert_eq!(works.len(), 1);
    works.into_iter().next().expect("one of them")
}

#[test]
fn runs_under_way_are_begun_again_one_at_a_time_and_settle_as_they_would_have() {
    let settle = |bench: &mut Bench, work: &Work| {
        bench.finish(work, 400);
        bench.step();
        let claim = bench.stored(&work.claim.id).expect("stored");
        let settlement = claim.settlement.expect("settled");
        (settlement.outcome, settlement.price, settlement.threshold)
    };
    let mut undisturbed = Bench::new();
    let works = [1, 2, 3].map(|owner| undisturbed.running(owner, "c").1);
    let wanted = works.each_ref().map(|work| settle(&mut undisturbed, work));

    let (mut bench, claims) = with_runs(3);
    let mut bench = bench.restarted();
    let settlements = [0, 1, 2].map(|n| {
        let work = only(bench.take_works());
        assert_eq!(work.claim.id, claims[n]);
        settle(&mut bench, &work)
    });
    assert!(bench.take_works().is_empty());
    assert_eq!(settlements, wanted);
}

#[test]
fn beginning_again_is_durable_before_the_work_starts_and_is_no_failure() {
    let (mut bench, _) = with_runs(2);
    let mut bench = bench.restarted();
    assert_eq!(attempts(&bench), [0, 0]);
    bench.assert_memory_equals_disk();
    let timeline = bench.take_timeline();
    let started = Happened::Started(bench.holdout, 0);
    assert_eq!(timeline, [Happened::Committed, started]);
    assert!(only(bench.take_works()).apart, "it might be why");
}

#[test]
fn without_its_commit_nothing_begins_again() {
    let (mut bench, _) = with_runs(1);
    let mut shelf_full = bench.restarted_without_step();
    shelf_full.inject([Fault::Full]);
    shelf_full.step();
    assert!(shelf_full.take_works().is_empty());
    assert!(shelf_full.driver.owes_a_step());
    shelf_full.step();
    assert_eq!(shelf_full.take_works().len(), 1);
}

#[test]
fn no_number_of_stops_and_deaths_aborts_a_run() {
    let (mut bench, claims) = with_runs(2);
    for death in 0..20 {
        bench = bench.restarted();
        if death % 3 == 0 {
            bench.driver.stop();
            bench.step();
        }
    }
    let mut bench = bench.restarted();
    for id in &claims {
        let work = only(bench.take_works());
        assert_eq!(work.claim.id, *id);
        bench.finish(&work, 400);
        bench.step();
        let settled = bench.stored(id).expect("stored").settlement;
        assert_eq!(settled.expect("settled").outcome, Outcome::NotCertified);
    }
}

#[test]
fn a_run_that_fails_three_times_is_aborted_and_the_others_go_on() {
    let (mut bench, claims) = with_runs(2);
    let reserved = bench.main().in_flight[0].sealed_reserved;
    // Deaths of the daemon between the failures neither add to them nor forget them.
    let mut bench = bench.restarted();
    for failures in 1..3 {
        let work = only(bench.take_works());
        assert_eq!(work.claim.id, claims[0]);
        bench.finish_as(&work, Err("its process was killed".to_owned()));
        bench.step();
        // The other one's turn to begin again came first.
        let other = only(bench.take_works());
        assert_eq!(other.claim.id, claims[1]);
        bench.finish(&other, 400);
        bench.step();
        assert_eq!(attempts(&bench), [failures, 0]);
        bench = bench.restarted();
    }
    let work = only(bench.take_works());
    bench.finish_as(&work, Err("its process was killed".to_owned()));
    bench.step();
    let settlement = |bench: &mut Bench, id: &ClaimId| {
        let claim = bench.stored(id).expect("stored");
        claim.settlement.expect("settled")
    };
    let aborted = settlement(&mut bench, &claims[0]);
    assert_eq!(aborted.outcome, Outcome::Aborted);
    assert_eq!(aborted.price, reserved);
    assert_eq!(bench.main().settled, 0);
    let work = only(bench.take_works());
    assert_eq!(work.claim.id, claims[1]);
    bench.finish(&work, 400);
    bench.step();
    let settled = settlement(&mut bench, &claims[1]);
    assert_eq!(settled.outcome, Outcome::NotCertified);
    let retry = bench.ask(submitter(1), "retry", execute(claims[0]));
    assert!(matches!(retry, Ok(Reply::Settled(_))));
}

#[test]
fn runs_of_another_engine_are_aborted_at_their_worst_case() {
    let (mut bench, claims) = with_runs(2);
    let reserved: Vec<_> = bench
        .main()
        .in_flight
        .iter()
        .map(|run| run.sealed_reserved)
        .collect();
    let mut bench = bench.restarted_with("another-engine");
    assert!(bench.take_works().is_empty());
    for (id, reserved) in claims.iter().zip(reserved) {
        let claim = bench.stored(id).expect("stored");
        assert_eq!(claim.state, ClaimState::Settled);
        let settlement = claim.settlement.expect("settled");
        assert_eq!(
            (settlement.outcome, settlement.price),
            (Outcome::Aborted, reserved)
        );
    }
    assert_eq!((bench.main().settled, bench.main().certified), (0, 0));
    let entry = bench.driver.store_mut().memory.entries().last().cloned();
    let capsule = evidenceos_kernel::record::Capsule::parse(&entry.expect("a capsule").bytes);
    assert_eq!(capsule.expect("a capsule").engine, ENGINE);
}

#[test]
fn new_claims_run_while_old_ones_are_begun_again_but_settle_after_them() {
    let (mut bench, claims) = with_runs(1);
    let mut bench = bench.restarted();
    let again = only(bench.take_works());
    let [id] = bench.sealed_many(5);
    let ticket = bench.call(submitter(5), "run", execute(id));
    bench.step();
    let new = only(bench.take_works());
    bench.finish(&new, 400);
    bench.step();
    assert_eq!(bench.answer(ticket), None);
    bench.finish(&again, 400);
    bench.step();
    assert!(matches!(bench.answer(ticket), Some(Ok(Reply::Settled(_)))));
    let first = bench.stored(&claims[0]).expect("stored").settlement;
    assert!(first.expect("settled").index < 3);
}

#[test]
fn a_run_that_fails_by_a_fault_of_ours_is_begun_again_twice() {
    let mut bench = Bench::new();
    let (ticket, work) = bench.running(1, "a");
    assert!(!work.apart);
    bench.finish_as(&work, Err("out of file descriptors".to_owned()));
    bench.step();
    let again = only(bench.take_works());
    assert!(again.apart);
    assert_eq!(attempts(&bench), [1]);
    bench.finish(&again, 700);
    bench.step();
    let Some(Ok(Reply::Settled(claim))) = bench.answer(ticket) else {
        panic!("settled")
    };
    assert_eq!(claim.state, ClaimState::Certified);

    let (ticket, mut work) = bench.running(1, "b");
    for fault in ["first", "second"] {
        bench.finish_as(&work, Err(fault.to_owned()));
        bench.step();
        work = only(bench.take_works());
    }
    bench.finish_as(&work, Err("third".to_owned()));
    bench.step();
    let Some(Ok(Reply::Settled(claim))) = bench.answer(ticket) else {
        panic!("settled")
    };
    let outcome = claim.settlement.expect("a result").outcome;
    assert_eq!(outcome, Outcome::Aborted);
}

#[test]
fn a_stopping_driver_leaves_a_failed_run_to_the_next_start() {
    let mut bench = Bench::new();
    let (_, work) = bench.running(1, "a");
    bench.driver.stop();
    bench.finish_as(&work, Err("a fault".to_owned()));
    bench.step();
    assert!(!bench.driver.has_work());
    assert!(!bench.driver.owes_a_step());
    let mut bench = bench.restarted();
    assert_eq!(bench.take_works().len(), 1);
}

#[test]
fn who_asks_again_after_a_crash_joins_the_run() {
    let (mut bench, claims) = with_runs(1);
    let mut bench = bench.restarted();
    let id = claims[0];
    let ticket = bench.call(submitter(1), &format!("run {id}"), execute(id));
    bench.step();
    assert_eq!(bench.answer(ticket), None);
    let work = only(bench.take_works());
    bench.finish(&work, 700);
    bench.step();
    assert!(matches!(bench.answer(ticket), Some(Ok(Reply::Settled(_)))));
}
