//! Logs and traces of releases before 2.2: capsules without `run`, traces without a run and an end.

use std::{collections::HashMap, convert::Infallible};

use evidenceos_kernel::{
    bits::MicroBits,
    claim::Reason,
    command::HoldoutCommand,
    holdout::Policy,
    id::{ClaimId, Digest},
    record::{Capsule, HoldoutRetired},
    trace::{Record, parse},
};
use evidenceos_verify::{Audited, Check, Opening, audit, verify_log};

use crate::world::{Ends, Items, Script, World, checkpoint_of, eventful, owner, vector};

/// A log with its traces as an earlier release would have written them.
struct Before {
    entries: Vec<Vec<u8>>,
    traces: HashMap<ClaimId, Vec<u8>>,
}

impl Before {
    fn of(world: &World) -> Self {
        let traces: HashMap<ClaimId, Vec<u8>> = world
            .traces
            .iter()
            .map(|(claim, trace)| (*claim, trace_before(trace)))
            .collect();
        let mut before = Self {
            entries: world.entries.clone(),
            traces,
        };
        before.change(|_| ());
        before
    }

    /// Changes capsules and lets their traces' and their own hashes follow.
    fn change(&mut self, mut change: impl FnMut(&mut Capsule)) {
        for at in 0..self.entries.len() {
            let Ok(mut capsule) = Capsule::parse(&self.entries[at]) else {
                continue;
            };
            let old = capsule.hash().to_hex();
            capsule.run = None;
            if let Some(trace) = self.traces.get(&capsule.claim_id) {
                capsule.trace_hash = Digest::of(trace);
            }
            change(&mut capsule);
            self.entries[at] = capsule.to_bytes();
            for later in &mut self.entries[at + 1..] {
                let text = String::from_utf8(later.clone()).expect("text");
                *later = text.replace(&old, &capsule.hash().to_hex()).into_bytes();
            }
        }
    }

    fn findings(&self) -> Vec<String> {
        let report = verify_log(&self.entries, &checkpoint_of(&self.entries));
        report.findings.iter().map(ToString::to_string).collect()
    }

    fn audited(&self, opening: &Opening) -> Audited {
        let report = verify_log(&self.entries, &checkpoint_of(&self.entries));
        let traced: Vec<ClaimId> = self.traces.keys().copied().collect();
        let audited = audit(&report, std::slice::from_ref(opening), &traced, |claim| {
            Ok::<_, Infallible>(self.traces[claim].clone())
        });
        let mut audited = audited.unwrap_or_else(|never| match never {});
        audited.holdouts.remove(0)
    }
}

/// The bytes of `evidenceos/trace/v1`: the same records without the first and the last.
fn trace_before(trace: &[u8]) -> Vec<u8> {
    let (items, records) = parse(trace).expect("own trace");
    let (Some(Record::Run(run)), Some(Record::End(end))) = (records.first(), records.last()) else {
        panic!("a trace has a run and an end")
    };
    let head = b"evidenceos/trace/v3\0".len() + 8;
    let admission = run.admission.as_ref().expect("admitted by this release");
    let admission_len = 8 + 8 + 1 + 32 * admission.dependencies.len();
    let run_len = 1 + 32 + 16 + 32 + 32 + 8 + 1 + 4 + 4 + 2 + run.engine.len() + admission_len;
    let end_len = 1 + 2 + 1 + 8 + 4 + 4 + end.output.len();
    let mut before = b"evidenceos/trace/v1\0".to_vec();
    before.extend_from_slice(&items.to_be_bytes());
    before.extend_from_slice(&trace[head + run_len..trace.len() - end_len]);
    before
}

#[test]
fn a_log_of_before_holds_and_its_unknown_endings_are_counted() {
    let (world, first, _) = eventful();
    let before = Before::of(&world);
    assert_eq!(before.findings(), Vec::<String>::new());
    let audited = before.audited(&first.opening);
    assert_eq!(audited.findings, []);
    // Seven claims on it, of which one aborted; how the one that trapped ended, its trace does not say.
    assert_eq!((audited.verdicts, audited.checked), (6, 5));
    assert_eq!(audited.not_checkable.len(), 1);
}

#[test]
fn a_failure_of_before_is_not_rewritten_as_a_trap_or_as_nothing_to_judge() {
    let (world, first, _) = eventful();
    for (code, refused) in [
        (110, true),
        (117, true),
        (120, true),
        (102, false),
        (9_001, false),
    ] {
        let mut before = Before::of(&world);
        before.change(|capsule| {
            if capsule.reason_codes == [2, 101] {
                capsule.reason_codes = vec![2, code];
                capsule.outcome = evidenceos_kernel::claim::Outcome::NotJudged;
                capsule.ledger.price = MicroBits::ZERO;
                if (110..=117).contains(&code) {
                    capsule.structured_output_hash = Digest::of(b"");
                }
            }
        });
        let audited = before.audited(&first.opening);
        let found = audited
            .findings
            .iter()
            .any(|finding| finding.failure.check() == Check::Verdict && finding.index == Some(3));
        assert_eq!(found, refused, "{code}: {:?}", audited.findings);
        // A policy's veto is not refused, but it does not count as checked either.
        assert_eq!(code == 9_001, audited.not_checkable.len() == 2, "{code}");
    }
}

#[test]
fn what_a_trace_of_before_leaves_open_is_not_refused() {
    let (world, first, _) = eventful();
    // Judged, so that its trace of before ends with the judged vector.
    let weak = &world.capsules()[0];
    let trace = trace_before(&world.traces[&weak.claim_id]);
    let registered = world.registered(&first);
    let opened = first.opening.check(&registered).expect("own labels");
    let emitted = Some("what the run emitted");
    for (code, left_open) in [
        (121, Some(None)),
        (118, Some(emitted)),
        (119, Some(emitted)),
        (102, Some(None)),
        (9_001, Some(Some("a policy vetoed"))),
        (110, None),
        (120, None),
    ] {
        let mut capsule = weak.clone();
        capsule.run = None;
        capsule.trace_hash = Digest::of(&trace);
        capsule.outcome = evidenceos_kernel::claim::Outcome::NotJudged;
        capsule.reason_codes = vec![2, code];
        let found = opened.check_trace(&capsule, true, &trace);
        let Some(left_open) = left_open else {
            assert!(found.is_err(), "{code}");
            continue;
        };
        let why = found.expect("nothing speaks against it").not_checkable;
        assert_eq!(why.is_some(), left_open.is_some(), "{code}: {why:?}");
        let said = left_open.is_none_or(|open| why.is_some_and(|why| why.contains(open)));
        assert!(said, "{code}: {why:?}");
    }
}

#[test]
fn a_run_of_before_that_was_lost_costs_at_least_the_dearest_symbol() {
    let (world, ..) = eventful();
    for (price, holds) in [(8_000_000, true), (0, false)] {
        let mut before = Before::of(&world);
        before.change(|capsule| {
            if capsule.outcome == evidenceos_kernel::claim::Outcome::Aborted {
                capsule.ledger.price = MicroBits(price);
            }
        });
        let found = before.findings();
        let costs = found
            .iter()
            .any(|finding| finding.contains("charged its worst case"));
        assert_eq!(!costs, holds, "{found:?}");
    }
}

#[test]
fn after_a_retirement_no_more_end_than_were_under_way() {
    let mut world = World::new();
    let budget = MicroBits::from_bits(20);
    let holdout = world.register(Policy::with_sealed_budget(budget), 400, 1);
    let script = Script {
        judged: Some(vector(400, 2)),
        ends: Ends::Emits,
        ..Script::default()
    };
    let tickets: Vec<_> = (1..=3)
        .map(|n| world.admit(&holdout, owner(n), &format!("{n}"), &script))
        .collect();
    world.ask(HoldoutCommand::Retire {
        holdout: holdout.id,
        reason: "its items are known".to_owned(),
    });
    for ticket in &tickets {
        world.settle(&holdout, *ticket, &script);
    }
    let mut before = Before::of(&world);
    assert_eq!(before.findings(), Vec::<String>::new());
    // Two more, which could not have been under way beside these: 4 to 5 bits each.
    let mut more = World::new();
    let same = more.register(Policy::with_sealed_budget(budget), 400, 1);
    assert_eq!(same.id, holdout.id);
    for n in 1..=5 {
        more.run(&same, owner(n), &format!("{n}"), &script);
    }
    before = Before::of(&more);
    let time = String::from_utf8(before.entries[1].clone()).expect("text");
    let time = time.split("registered_unix_ms\":").nth(1).expect("a time");
    let time: u64 = time
        .split(',')
        .next()
        .and_then(|time| time.parse().ok())
        .expect("a number");
    let retired = HoldoutRetired {
        holdout: same.id,
        reason: "its items are known".to_owned(),
        retired_unix_ms: time,
    };
    before.entries.insert(2, retired.to_bytes());
    let findings = before.findings();
    assert!(
        findings
            .first()
            .is_some_and(|finding| finding.contains("than could be under way")),
        "{findings:?}"
    );
}

#[test]
fn after_a_null_spec_expired_no_more_end_than_were_under_way() {
    let mut world = World::new();
    let items = Items {
        expires_unix: Some(1_000),
        ..Items::new(Policy::with_sealed_budget(MicroBits::from_bits(20)), 400)
    };
    let holdout = world.put(&items).expect("registered");
    let script = Script {
        judged: Some(vector(400, 2)),
        ends: Ends::Emits,
        ..Script::default()
    };
    for n in 1..=6 {
        world.run(&holdout, owner(n), &format!("{n}"), &script);
    }
    // 20 bits carry four together. If the first ends before the null spec expires, the second may have been admitted
    // after that end; if it ends in the last second, five must have been under way.
    for (first_unix_ms, sound) in [(999_999, true), (1_000_000, false)] {
        let mut before = Before::of(&world);
        let mut ended = 0;
        before.change(|capsule| {
            capsule.settled_unix_ms = first_unix_ms + 10_000 * ended;
            ended += 1;
        });
        let findings = before.findings();
        let found = findings
            .iter()
            .any(|finding| finding.contains("than could be under way"));
        assert_eq!(findings.is_empty(), sound, "{findings:?}");
        assert_eq!(found, !sound, "{findings:?}");
    }
}

#[test]
fn no_owner_of_before_is_charged_beyond_what_the_policy_gives_one() {
    let certified = Script {
        judged: Some(vector(400, 20)),
        ..Script::default()
    };
    let asking = Script {
        questions: vec![vector(400, 3), vector(400, 5)],
        ..Script::default()
    };
    let trapped = Script {
        ends: Ends::Traps(Reason::Trap),
        ..Script::default()
    };
    let policy = Policy {
        answer_budget: MicroBits::from_bits(64),
        principal_answer_budget: MicroBits::from_bits(6),
        principal_sealed_budget: Some(MicroBits::from_bits(8)),
        ..Policy::with_sealed_budget(MicroBits::from_bits(64))
    };
    for (script, times, budget) in [
        (&asking, 2, "principal_answer_budget_microbits"),
        (&certified, 3, "principal_sealed_budget_microbits"),
    ] {
        let mut world = World::new();
        let holdout = world.register(policy.clone(), 400, 1);
        for n in 1..=times {
            world.run(&holdout, owner(n), &format!("{n}"), script);
        }
        let last_charged = world.entries.len() as u64 - 1;
        // It is charged nothing, so that it is not at fault for what came before it.
        world.run(&holdout, owner(1), "trapped", &trapped);
        let mut before = Before::of(&world);
        let broken = |before: &Before| -> Vec<Option<u64>> {
            let report = verify_log(&before.entries, &checkpoint_of(&before.entries));
            let named = |fault: &dyn ToString| fault.to_string().contains(budget);
            let findings = report.findings.iter();
            let found = findings.filter(|finding| named(&finding.fault));
            found.map(|finding| finding.index).collect()
        };
        assert_eq!(broken(&before), [], "{:?}", before.findings());
        before.change(|capsule| capsule.owner_tag = owner(1));
        assert_eq!(
            broken(&before),
            [Some(last_charged)],
            "{:?}",
            before.findings()
        );
    }
}
