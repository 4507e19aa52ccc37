//! The loop around the driver: bounded queues before it, and an orderly end.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use evidenceos_driver::{
    Fatal,
    mailbox::{CopyError, CopyNews, CopyOrder, Mailbox, hold, mailbox, run},
};
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

#[test]
fn who_halts_the_loop_says_why_and_nothing_else_is_blamed() {
    let bench = Bench::new();
    let (mailbox, inbox) = mailbox();
    let halt = |mailbox: &Mailbox| mailbox.halt(Fatal::Halted("another daemon signs it".into()));
    halt(&mailbox);
    let held = hold(&inbox, Duration::from_secs(60), || Ok(false)).expect_err("halted");
    halt(&mailbox);
    let ended = run(bench.driver, &inbox, || 1_700_000_000_000);
    for fatal in [held, ended.map(drop).expect_err("halted")] {
        let said = fatal.to_string();
        assert_eq!(said, "nothing more is signed: another daemon signs it");
    }
}

/// The only news of a copy that is ordered.
fn news_of_a_copy(mailbox: &Mailbox, turn: impl FnOnce()) -> CopyError {
    let (news, heard) = mpsc::channel();
    let to = "copy".into();
    mailbox.copy(CopyOrder { to, news });
    turn();
    match heard.try_recv() {
        Ok(CopyNews::Done(Err(error))) => error,
        other => panic!("it is not refused: {other:?}"),
    }
}

#[test]
fn a_copy_that_cannot_be_made_says_what_to_do_instead() {
    let (held, inbox) = mailbox();
    let refused = news_of_a_copy(&held, || {
        held.stop(Instant::now());
        let flow = hold(&inbox, Duration::from_secs(60), || Ok(false));
        assert!(flow.expect("nothing fatal").is_break());
    });
    assert!(matches!(refused, CopyError::Held), "{refused}");
    assert!(refused.to_string().ends_with("; stop it to back it up"));
    let bench = Bench::new();
    let (mailbox, inbox) = mailbox();
    let refused = news_of_a_copy(&mailbox, || {
        mailbox.stop(Instant::now());
        run(bench.driver, &inbox, || 1_700_000_000_000).expect("nothing fatal");
    });
    assert!(matches!(refused, CopyError::OnlyAtRest), "{refused}");
    assert!(
        refused
            .to_string()
            .ends_with("; stop the daemon to back it up")
    );
}
