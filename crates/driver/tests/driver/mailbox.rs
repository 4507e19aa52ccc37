//! The loop around the driver: bounded queues before it, and an orderly end.

use std::time::Instant;

use evidenceos_driver::mailbox::{mailbox, run};
use evidenceos_kernel::{command::Reply, refusal::Refusal};

use crate::bench::{Bench, create, submitter};

/// Calls that one principal may have before the writer.
const QUEUE_OF_ONE: usize = 1_024;

#[test]
fn a_principal_fills_his_share_of_the_queue_and_no_more() {
    let mut bench = Bench::new();
    let (mailbox, inbox) = mailbox();
    let terms = bench.terms(submitter(1), "c");
    let put = |bench: &mut Bench, owner: u8| {
        let (call, ticket) = bench.loose_call(submitter(owner), "x", create(terms.clone()));
        mailbox.call(call);
        ticket
    };
    for _ in 0..QUEUE_OF_ONE {
        let ticket = put(&mut bench, 1);
        assert_eq!(bench.answer(ticket), None);
    }
    let one_more = put(&mut bench, 1);
    let full = Some(Err(Refusal::QueueFull.into()));
    assert_eq!(bench.answer(one_more), full);
    let another = put(&mut bench, 2);
    assert_eq!(bench.answer(another), None);
    drop(inbox);
}

#[test]
fn what_was_put_in_before_the_stop_is_answered_before_the_end() {
    let mut bench = Bench::new();
    let (mailbox, inbox) = mailbox();
    let calls = ["a", "b", "c"].map(|name| {
        let terms = bench.terms(submitter(1), name);
        bench.loose_call(submitter(1), name, create(terms))
    });
    let tickets = calls.map(|(call, ticket)| {
        mailbox.call(call);
        ticket
    });
    mailbox.stop(Instant::now());
    let answers = bench.answers();
    run(bench.driver, &inbox, || 1_700_000_000_000).expect("nothing fatal");
    for ticket in tickets {
        assert!(matches!(answers(ticket), Some(Ok(Reply::Created { .. }))));
    }
}
