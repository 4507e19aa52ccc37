//! Commits that fail: who hears what, and what is left.

use evidenceos_driver::Failure;
use evidenceos_kernel::{claim::ClaimState, command::Reply, refusal::Step};
use evidenceos_store::memory::Fault;

use crate::bench::{Bench, commit, create, execute, seal, submitter};

#[test]
fn on_a_full_disk_everybody_is_told_and_nothing_was_done() {
    let mut bench = Bench::new();
    let claims: [_; 2] = bench.sealed_many(1);
    let entries = bench.driver.store_mut().memory.entries().len();
    bench.inject([Fault::Full]);
    let mut tickets: Vec<_> = claims
        .iter()
        .map(|id| bench.call(submitter(1), &id.to_hex(), execute(*id)))
        .collect();
    // Refusals that were decided against what is gone now are gone as well.
    tickets.push(bench.call(submitter(1), "wrong", commit(claims[0], "late", false)));
    bench.step();
    for ticket in tickets {
        assert_eq!(bench.answer(ticket), Some(Err(Failure::DiskFull)));
    }
    assert!(bench.take_works().is_empty());
    bench.assert_memory_equals_disk();
    assert_eq!(bench.driver.store_mut().memory.entries().len(), entries);
    // There is space again.
    bench.call(submitter(1), &claims[0].to_hex(), execute(claims[0]));
    bench.step();
    assert_eq!(bench.take_works().len(), 1);
}

#[test]
fn a_run_that_finished_into_a_full_disk_is_not_lost() {
    let mut bench = Bench::new();
    let (ticket, work) = bench.running(1, "a");
    bench.inject([Fault::Full, Fault::Full]);
    bench.finish(&work, 700);
    bench.step();
    assert_eq!(bench.answer(ticket), None);
    assert!(bench.driver.owes_a_step());
    bench.step();
    assert!(bench.driver.owes_a_step());
    bench.step();
    assert!(matches!(bench.answer(ticket), Some(Ok(Reply::Settled(_)))));
    assert!(!bench.driver.owes_a_step());
    bench.assert_memory_equals_disk();
}

#[test]
fn a_command_that_alone_cannot_be_stored_leaves_its_neighbours_alone() {
    for culprit in 0..3 {
        let mut bench = Bench::new();
        let claims: [_; 3] = bench.sealed_many(1);
        bench.driver.store_mut().rejected = Some(claims[culprit]);
        let tickets = claims.map(|id| bench.call(submitter(1), &id.to_hex(), execute(id)));
        bench.step();
        for (n, ticket) in tickets.into_iter().enumerate() {
            let wanted = (n == culprit).then_some(Err(Failure::NotStored));
            assert_eq!(bench.answer(ticket), wanted, "call {n}, culprit {culprit}");
        }
        assert_eq!(bench.take_works().len(), 2);
        bench.assert_memory_equals_disk();
    }
}

#[test]
fn a_call_does_not_suffer_from_work_of_the_drivers_own() {
    let mut bench = Bench::new();
    let (_, work) = bench.running(1, "a");
    let terms = bench.terms(submitter(2), "innocent");
    bench.driver.store_mut().rejected = Some(work.claim.id);
    bench.finish(&work, 700);
    let innocent = bench.call(submitter(2), "create", create(terms));
    // A settlement cannot be refused: if it cannot be stored, only a restart can tell why.
    assert!(bench.try_step().is_err());
    assert_eq!(bench.answer(innocent), Some(Err(Failure::Unknown)));
}

#[test]
fn own_work_is_stored_when_a_call_beside_it_cannot_be() {
    let mut bench = Bench::new();
    let (ticket, work) = bench.running(1, "a");
    let [id] = bench.sealed_many(2);
    bench.driver.store_mut().rejected = Some(id);
    bench.finish(&work, 700);
    let culprit = bench.call(submitter(2), "run", execute(id));
    bench.step();
    assert_eq!(bench.answer(culprit), Some(Err(Failure::NotStored)));
    assert!(matches!(bench.answer(ticket), Some(Ok(Reply::Settled(_)))));
}

#[test]
fn a_row_that_cannot_be_read_spoils_only_the_call_that_names_it() {
    let mut bench = Bench::new();
    let [damaged, intact] = bench.sealed_many(1);
    bench.driver.store_mut().unreadable = Some(damaged);
    let [first, second] =
        [damaged, intact].map(|id| bench.call(submitter(1), &id.to_hex(), execute(id)));
    bench.step();
    assert_eq!(bench.answer(first), Some(Err(Failure::NotStored)));
    assert_eq!(bench.answer(second), None, "it runs");
    assert_eq!(bench.take_works().len(), 1);
}

#[test]
fn in_doubt_everybody_hears_that_it_is_not_known_and_the_process_ends() {
    for fault in [Fault::UnknownLost, Fault::UnknownKept] {
        let mut bench = Bench::new();
        let (joined, _) = bench.running(1, "under way");
        let claims: [_; 2] = bench.sealed_many(2);
        bench.inject([fault]);
        let tickets = claims.map(|id| bench.call(submitter(2), &id.to_hex(), execute(id)));
        assert!(bench.try_step().is_err());
        for ticket in tickets.into_iter().chain([joined]) {
            assert_eq!(bench.answer(ticket), Some(Err(Failure::Unknown)));
        }
        assert!(bench.take_works().is_empty());
    }
}

#[test]
fn in_doubt_while_going_one_by_one_nobody_is_left_without_an_answer() {
    let mut bench = Bench::new();
    let claims: [_; 4] = bench.sealed_many(1);
    bench.inject([Fault::Constraint, Fault::None, Fault::UnknownLost]);
    let tickets = claims.map(|id| bench.call(submitter(1), &id.to_hex(), execute(id)));
    assert!(bench.try_step().is_err());
    for ticket in tickets {
        assert_eq!(bench.answer(ticket), Some(Err(Failure::Unknown)));
    }
}

#[test]
fn in_doubt_those_in_the_queues_are_sent_away() {
    let mut bench = Bench::with(Default::default(), |policy| {
        policy.sealed_budget = evidenceos_kernel::bits::MicroBits::from_bits(8);
    });
    bench.running(1, "under way");
    let [id] = bench.sealed_many(2);
    let waiting = bench.call(submitter(2), "run", execute(id));
    bench.step();
    assert_eq!(bench.answer(waiting), None);
    let terms = bench.terms(submitter(3), "c");
    bench.inject([Fault::UnknownLost]);
    bench.call(submitter(3), "create", create(terms));
    assert!(bench.try_step().is_err());
    assert_eq!(bench.answer(waiting), Some(Err(Failure::Stopping)));
}

#[test]
fn after_a_restart_a_retry_with_the_same_id_gives_the_one_outcome() {
    for fault in [Fault::UnknownLost, Fault::UnknownKept] {
        let mut bench = Bench::new();
        let me = submitter(1);
        let terms = bench.terms(me, "c");
        let id = terms.claim_id();
        let calls = [
            ("create", create(terms)),
            ("commit", commit(id, "module", false)),
            ("seal", seal(id)),
            ("too late", commit(id, "another", false)),
            ("run", execute(id)),
        ];
        bench.inject([fault]);
        for (name, command) in &calls {
            bench.call(me, name, command.clone());
        }
        assert!(bench.try_step().is_err());
        let mut bench = bench.restarted();
        let kept = bench.stored(&id).map(|claim| claim.state);
        let wanted = (fault == Fault::UnknownKept).then_some(ClaimState::Executing);
        assert_eq!(kept, wanted);
        let tickets = calls.map(|(name, command)| bench.call(me, name, command));
        bench.step();
        assert_eq!(bench.main().admitted, 1);
        let works = bench.take_works();
        assert_eq!(works.len(), 1, "{fault:?}");
        bench.finish(&works[0], 700);
        bench.step();
        let answers = tickets.map(|ticket| bench.answer(ticket).expect("answered"));
        assert!(matches!(answers[0], Ok(Reply::Created { .. })));
        assert_eq!(answers[1], Ok(Reply::State(ClaimState::Committed)));
        assert_eq!(answers[2], Ok(Reply::State(ClaimState::Sealed)));
        let refusal = evidenceos_kernel::refusal::Refusal::WrongState {
            step: Step::Commit,
            state: ClaimState::Sealed,
        };
        assert_eq!(answers[3], Err(refusal.into()));
        assert!(matches!(answers[4], Ok(Reply::Settled(_))));
    }
}
