//! Policies that are to be in force: the log states them first.

use std::{
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use evidenceos_driver::{Input, Stated, mailbox};
use evidenceos_kernel::{entry::Entry, id::Digest, in_force::InForce};
use evidenceos_store::memory::Fault;

use crate::bench::{Bench, create, submitter};

fn policies(byte: u8) -> InForce {
    InForce {
        policies: Digest([byte; 32]),
        roles: None,
    }
}

fn state(bench: &mut Bench, in_force: InForce) -> Receiver<()> {
    let (committed, stated) = channel();
    bench.input(Input::Stated(Stated {
        in_force,
        committed,
    }));
    stated
}

/// What the log states, with the index of each statement.
fn stated(bench: &mut Bench) -> Vec<(usize, InForce)> {
    let entries = bench.driver.store_mut().memory.entries();
    let in_force = |entry: &[u8]| match Entry::parse(entry) {
        Ok(Entry::PoliciesInForce(stated)) => Some(stated.in_force),
        _ => None,
    };
    let entries = entries.iter().enumerate();
    entries
        .filter_map(|(at, entry)| Some((at, in_force(&entry.bytes)?)))
        .collect()
}

#[test]
fn policies_are_stated_before_a_call_of_the_same_batch_and_once() {
    let mut bench = Bench::new();
    let before = bench.driver.store_mut().memory.entries().len();
    let waiting = state(&mut bench, policies(1));
    let terms = bench.terms(submitter(1), "a");
    bench.call(submitter(1), "create", create(terms));
    bench.step();
    assert_eq!(waiting.try_recv(), Ok(()));
    assert_eq!(stated(&mut bench), [(before, policies(1))]);

    let again = state(&mut bench, policies(1));
    bench.step();
    assert_eq!(again.try_recv(), Ok(()), "they are in force already");
    assert_eq!(stated(&mut bench).len(), 1);
    assert!(!bench.driver.owes_a_step());
}

#[test]
fn a_start_under_other_policies_states_them_in_its_first_step() {
    let mut bench = Bench::new();
    drop(state(&mut bench, policies(1)));
    bench.step();
    let mut same = bench.restarted();
    assert_eq!(
        stated(&mut same).len(),
        1,
        "the store knows what was stated"
    );

    let mut other = bench.restarted_under(policies(2));
    assert!(other.driver.owes_a_step());
    other.step();
    let all: Vec<InForce> = stated(&mut other).into_iter().map(|(_, s)| s).collect();
    assert_eq!(all, [policies(1), policies(2)]);
}

#[test]
fn a_full_disk_refuses_a_reload_and_leaves_a_start_owing() {
    let mut bench = Bench::new();
    bench.inject([Fault::Full]);
    let refused = state(&mut bench, policies(1));
    bench.step();
    assert!(refused.recv().is_err());
    assert!(!bench.driver.owes_a_step());
    bench.step();
    assert_eq!(stated(&mut bench), []);

    let mut start = bench.restarted_under(policies(1));
    start.inject([Fault::Full]);
    start.step();
    assert!(start.driver.owes_a_step());
    start.step();
    assert_eq!(stated(&mut start).len(), 1);
}

#[test]
fn a_reload_does_not_wait_for_a_writer_that_is_held() {
    let (mailbox, inbox) = mailbox::mailbox();
    let (committed, stated) = channel();
    mailbox.state(Stated {
        in_force: policies(1),
        committed,
    });
    mailbox.stop(Instant::now());
    let flow = mailbox::hold(&inbox, Duration::from_secs(60), || Ok(false));
    assert!(flow.expect("nothing fatal").is_break());
    assert_eq!(stated.try_recv(), Ok(()));
}
