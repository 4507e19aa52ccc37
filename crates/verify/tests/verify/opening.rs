//! Opened holdouts: labels against the commitment, traces against the labels.

use std::convert::Infallible;

use evidenceos_kernel::{
    id::{ClaimId, Digest},
    record::Capsule,
    trace::{self, Record, TraceWriter},
};
use evidenceos_verify::{Opening, OpeningFailure, audit, verify_log};

use crate::world::eventful;

#[test]
fn every_answer_and_verdict_is_computed_again() {
    let (world, first, second) = eventful();
    for holdout in [&first, &second] {
        let registered = world.registered(holdout);
        let opening = Opening::from_json(holdout.opening.to_json().as_bytes()).expect("own file");
        assert_eq!(opening, holdout.opening);
        let opened = opening.check(&registered).expect("own labels");
        for capsule in world.capsules() {
            if capsule.holdout_id != holdout.id {
                continue;
            }
            let trace = world.traces.get(&capsule.claim_id);
            let trace = trace.map(Vec::as_slice).unwrap_or_default();
            let replayed = opened
                .check_trace(&capsule, false, trace)
                .expect("own trace");
            let is_judged = replayed.evidence_microbits.is_some();
            assert_eq!(
                is_judged,
                matches!(capsule.outcome.as_str(), "certified" | "not_certified")
            );
        }
    }
}

#[test]
fn no_label_unit_or_secret_can_be_changed_afterwards() {
    let (world, first, second) = eventful();
    let check = |holdout: &crate::world::Private, change: &dyn Fn(&mut Opening)| {
        let mut opening = holdout.opening.clone();
        change(&mut opening);
        let registered = world.registered(holdout);
        let refused = opening.check(&registered);
        assert!(matches!(refused, Err(OpeningFailure::Commitment(_))));
    };
    for at in 0..400 {
        check(&first, &|o| o.labels[at] ^= 1);
    }
    check(&first, &|o| o.labels.swap(0, 2));
    check(&first, &|o| o.labels[0] = 2);
    check(&first, &|o| o.labels.truncate(399));
    check(&first, &|o| o.secret[31] ^= 1);
    check(&first, &|o| o.units = Some(vec![0; 400]));
    check(&second, &|o| o.units = None);
    check(&second, &|o| {
        if let Some(units) = &mut o.units {
            units[0] = 7;
        }
    });
    check(&second, &|o| o.holdout_id = first.id);
}

#[test]
fn a_trace_is_the_one_that_the_capsule_names() {
    let (world, first, _) = eventful();
    let registered = world.registered(&first);
    let opened = first.opening.check(&registered).expect("own labels");
    let all = world.capsules();
    let (weak, good) = (&all[0], &all[1]);
    assert!(matches!(
        opened.check_trace(good, false, &world.traces[&weak.claim_id]),
        Err(OpeningFailure::TraceHash { .. })
    ));
}

#[test]
fn an_audit_with_a_missing_trace_is_not_complete() {
    let (world, first, _) = eventful();
    let report = verify_log(&world.entries, &world.checkpoint());
    let openings = [first.opening.clone()];
    let check = |traced: &[ClaimId]| {
        let trace_of = |claim: &ClaimId| Ok::<_, Infallible>(world.traces[claim].clone());
        match audit(&report, &openings, traced, trace_of) {
            Ok(audited) => audited,
            Err(never) => match never {},
        }
    };
    let claims = world.capsules().into_iter();
    let all: Vec<ClaimId> = claims
        .filter(|capsule| capsule.holdout_id == first.id)
        .map(|capsule| capsule.claim_id)
        .filter(|claim| world.traces.contains_key(claim))
        .collect();
    let audited = check(&all);
    assert!(audited.is_complete(), "{audited:?}");
    // Two, three and one question.
    assert_eq!(audited.holdouts[0].answers, 6);
    for left_out in 0..all.len() {
        let mut traced = all.clone();
        let claim = traced.remove(left_out);
        let audited = check(&traced);
        let missing = audited.holdouts.iter().flat_map(|h| &h.missing);
        assert_eq!(missing.collect::<Vec<_>>(), [&claim]);
        assert_eq!(audited.findings().count(), 0);
        assert!(!audited.is_complete());
    }
}

#[test]
fn a_kernel_that_lied_about_an_answer_or_a_verdict_is_found() {
    let (world, first, _) = eventful();
    let registered = world.registered(&first);
    let opened = first.opening.check(&registered).expect("own labels");
    let good = &world.capsules()[1];
    let (items, records) = trace::parse(&world.traces[&good.claim_id]).expect("own trace");
    // A forger writes another trace and puts its hash into the capsule.
    let forge = |answer_shift: u32, judged: Option<&[u8]>, change: &dyn Fn(&mut Capsule)| {
        let Record::Run(run) = &records[0] else {
            panic!("a trace begins with its run")
        };
        let mut writer = TraceWriter::new(items, run);
        for record in &records {
            match record {
                Record::Asked {
                    n_symbols,
                    symbol,
                    vector,
                } => writer.asked(vector, *n_symbols, (symbol + answer_shift) % n_symbols),
                Record::Replayed(first) => writer.replayed(*first),
                Record::Free(_) | Record::Judged(_) | Record::Run(_) | Record::End(_) => {}
            }
        }
        let Some(Record::End(end)) = records.last() else {
            panic!("a trace ends with its end")
        };
        let bytes = writer.finish(judged, end);
        let mut capsule = good.clone();
        capsule.trace_hash = Digest::of(&bytes);
        change(&mut capsule);
        opened.check_trace(&capsule, false, &bytes)
    };
    let judged = records.iter().find_map(|record| match record {
        Record::Judged(vector) => Some(vector),
        _ => None,
    });
    let judged = judged.expect("the good claim was judged");
    assert!(forge(0, Some(judged), &|_| {}).is_ok());
    assert!(matches!(
        forge(1, Some(judged), &|_| {}),
        Err(OpeningFailure::Answer { question: 0, .. })
    ));
    let field = |outcome: Result<_, OpeningFailure>, name: &str| match outcome {
        Err(OpeningFailure::Fault(fault)) => {
            assert!(fault.to_string().contains(name), "{name}: {fault}");
        }
        other => panic!("{name}: {other:?}"),
    };
    let bad: Vec<u8> = judged.iter().map(|bit| bit ^ 1).collect();
    field(forge(0, Some(&bad), &|_| {}), "outcome");
    field(forge(0, None, &|_| {}), "outcome");
    field(
        forge(0, Some(judged), &|c| c.answers.by_symbol[0].1 += 1),
        "by_symbol",
    );
    field(
        forge(0, Some(judged), &|c| c.answers.replayed = 0),
        "replayed",
    );
    field(
        forge(0, Some(judged), &|c| c.e_value_log2 = Some(9)),
        "level",
    );
}

#[test]
fn what_is_no_opening_is_refused_with_its_reason() {
    let (_, first, _) = eventful();
    let good = first.opening.to_json();
    for (from, to) in [
        ("opening.v1", "opening.v2"),
        ("\"secret\":\"09", "\"secret\":\"9"),
        ("\"labels\":\"A", "\"labels\":\"*"),
        ("\"holdout_id\":\"", "\"holdout_id\":\"00"),
        ("{\"format\"", "{\"extra\":1,\"format\""),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        assert!(
            matches!(
                Opening::from_json(bad.as_bytes()),
                Err(OpeningFailure::Format(_))
            ),
            "{from}"
        );
    }
}
