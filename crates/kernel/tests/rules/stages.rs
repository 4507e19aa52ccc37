//! The stage of a batch: dropped without a trace, merged whole, made again from the journal.

use evidenceos_kernel::{
    account::{Accounting, Totals},
    command::{Event, HoldoutCommand, Request, RunCommand, RunEnd, RunReport},
    decide::decide,
    holdout::{Holdout, HoldoutStatus},
    id::{ClaimId, Digest},
    record::AnswerTally,
    score::{Score, SizeClass},
    state::{Counters, Key, Resident, Stage},
};

use crate::world::{
    ENGINE, OPERATOR, SEALED_ITEMS, Script, World, commit, create, execute, policy, request,
    revoke, seal, stamp, submitter,
};

/// Something of everything, on a world where run 0 is under way.
fn mixed_batch(world: &World, revocable: ClaimId) -> Vec<Request> {
    let me = submitter(1);
    let terms = world.terms(me, "in the batch");
    let id = terms.claim_id();
    let report = RunReport {
        end: RunEnd::Emitted(vec![1]),
        answers: AnswerTally::default(),
        score: Some(Score {
            classes: vec![SizeClass {
                size: 1,
                units: SEALED_ITEMS,
                right: 700,
            }],
        }),
        fuel: 1,
        pages: 17,
        trace_hash: Digest::of(b""),
        trace_len: 0,
    };
    let holdout = world.holdout;
    let commands = vec![
        (me, create(terms)),
        (me, commit(id, "a", true)),
        (me, commit(id, "b", true)),
        (me, seal(id)),
        (me, execute(id)),
        (me, seal(ClaimId([8; 32]))),
        (
            OPERATOR,
            RunCommand::Settle {
                holdout,
                number: world.main().in_flight[0].number,
                report: Box::new(report),
            }
            .into(),
        ),
        (me, revoke(revocable)),
        (
            OPERATOR,
            HoldoutCommand::Retire {
                holdout,
                reason: "spent".to_owned(),
            }
            .into(),
        ),
    ];
    let with_id = |(n, (caller, command)): (usize, _)| {
        request(caller, stamp(caller, &n.to_string(), "x"), command)
    };
    commands.into_iter().enumerate().map(with_id).collect()
}

fn prepared() -> (World, Vec<Request>) {
    let mut world = World::new();
    let revocable = world.run(submitter(1), "settled", &Script::good()).claim_id;
    world.admitted(world.terms(submitter(2), "runs"), true);
    let batch = mixed_batch(&world, revocable);
    (world, batch)
}

fn committed(resident: &Resident) -> String {
    let mut holdouts: Vec<_> = resident.holdouts().collect();
    holdouts.sort_by_key(|holdout| holdout.seq);
    format!("{:?} {holdouts:?}", resident.counters())
}

#[test]
fn a_dropped_stage_leaves_everything_as_it_was() {
    let (world, batch) = prepared();
    let (before, rows) = (committed(&world.resident), world.snapshot());
    for prefix in 0..=batch.len() {
        let mut stage = Stage::new(&world.resident);
        stage.advance_to(world.now_unix_ms + 1_000);
        for request in &batch[..prefix] {
            world.rows.load(&mut stage, request);
            if let Ok(decision) = decide(&stage, request) {
                stage.enact(&decision);
            }
        }
        drop(stage);
        assert_eq!(committed(&world.resident), before, "prefix {prefix}");
        assert_eq!(world.snapshot(), rows, "prefix {prefix}");
    }
}

#[test]
fn a_batch_does_what_its_commands_do_one_by_one() {
    let (world, batch) = prepared();
    let (mut whole, mut single) = (world.clone(), world);
    let replies = whole.batch(&batch);
    let one_by_one: Vec<_> = batch
        .into_iter()
        .map(|request| single.send(request))
        .collect();
    assert_eq!(replies, one_by_one);
    assert_eq!(whole.snapshot(), single.snapshot());
    assert_eq!(whole.entries, single.entries);
    assert_eq!(whole.resident.counters(), single.resident.counters());
}

#[test]
fn deciding_changes_nothing() {
    let (world, batch) = prepared();
    let mut stage = Stage::new(&world.resident);
    stage.advance_to(world.now_unix_ms);
    for request in &batch {
        world.rows.load(&mut stage, request);
        let before = format!("{:?}", stage.counters());
        let [first, second] = [decide(&stage, request), decide(&stage, request)];
        assert_eq!(first, second, "the same stage, the same decision");
        assert_eq!(format!("{:?}", stage.counters()), before);
        if let Ok(decision) = first {
            stage.enact(&decision);
        }
    }
}

/// What an event changes must be loaded before.
fn named_by(event: &Event, world: &World) -> Vec<Key> {
    let with_pool = |claim: &ClaimId| {
        let owner = world.rows.claims[claim].terms.owner;
        vec![
            Key::Claim(*claim),
            Key::Pool(world.holdout, owner),
            Key::Account(owner),
        ]
    };
    match event {
        Event::ClaimCreated(claim) => vec![Key::Account(claim.terms.owner)],
        Event::ArtifactsCommitted { claim, .. } => {
            let owner = world.rows.claims[claim].terms.owner;
            vec![Key::Claim(*claim), Key::Account(owner)]
        }
        Event::ClaimUncommitted(claim) => {
            let owner = world.rows.claims[claim].terms.owner;
            vec![Key::Claim(*claim), Key::Account(owner)]
        }
        Event::ClaimSealed { claim, .. }
        | Event::ClaimRevoked { claim, .. }
        | Event::ClaimRequestRemembered { claim, .. } => vec![Key::Claim(*claim)],
        Event::RunAdmitted { run, .. } => with_pool(&run.claim),
        Event::RunSettled { claim, .. } => with_pool(claim),
        Event::RunRecovered {
            holdout,
            owner,
            claim,
            ..
        } => vec![
            Key::Claim(*claim),
            Key::Pool(*holdout, *owner),
            Key::Account(*owner),
        ],
        Event::HoldoutRegistered(_)
        | Event::HoldoutRetired(_)
        | Event::HoldoutOpened(_)
        | Event::RunBegunAgain { .. }
        | Event::RequestRemembered { .. }
        | Event::KeyRotated(_)
        | Event::HoldoutsRekeyed(_)
        | Event::AccountOpened(_)
        | Event::BudgetsNarrowed { .. }
        | Event::HoldoutCharged { .. }
        | Event::DecisionsRecorded { .. }
        | Event::DecisionsForgotten { .. }
        | Event::HoldoutTold { .. }
        | Event::HoldoutCompared { .. }
        | Event::HoldoutWithdrawn(_)
        | Event::RunPlaced { .. }
        | Event::RunFailed { .. }
        | Event::LogCarriedOn
        | Event::PoliciesStated(_)
        | Event::ClockConfirmed { .. } => Vec::new(),
        Event::QuestionAsked { question, .. } => vec![Key::Question(*question)],
        Event::CreditReserved { owner, claim, .. } | Event::CreditBurned { owner, claim, .. } => {
            vec![Key::Claim(*claim), Key::Account(*owner)]
        }
        Event::CreditMinted { owner, .. }
        | Event::CreditDenied(owner)
        | Event::CreditGranted { owner, .. }
        | Event::CreditLimitSet { owner, .. }
        | Event::AccountRequestRemembered { owner, .. } => vec![Key::Account(*owner)],
        Event::AccountImported(account) => vec![Key::Account(account.owner)],
    }
}

#[test]
fn the_journal_alone_rebuilds_every_row() {
    let (mut world, batch) = prepared();
    world.batch(&batch);
    world.now_unix_ms += 5_000;
    let number = world.main().in_flight[0].number;
    let holdout = world.holdout;
    let again = RunCommand::BeginAgain {
        holdout,
        number,
        failed: true,
    };
    world.ask(OPERATOR, again).expect("the driver's own");
    world.abort(number);

    let mut rebuilt = World {
        resident: Resident::new(Vec::new(), Counters::default(), ENGINE.to_owned()),
        holdout: world.holdout,
        ..World::empty()
    };
    for (at_unix_ms, events) in &world.journal {
        let resident = rebuilt.resident.clone();
        let mut stage = Stage::new(&resident);
        stage.advance_to(*at_unix_ms);
        for event in events {
            for key in named_by(event, &world) {
                rebuilt.rows.supply(&mut stage, key);
            }
            stage.apply(event);
        }
        let changes = stage.into_changes();
        rebuilt.merge(changes);
    }
    assert_eq!(rebuilt.snapshot(), world.snapshot());
    let counters = Counters {
        next_index: world.entries.len() as u64,
        ..rebuilt.resident.counters()
    };
    assert_eq!(counters, world.resident.counters());
}

#[test]
fn a_command_reads_as_many_rows_after_ten_claims_as_after_a_thousand() {
    let rows_read = |claims: u32| {
        let mut world = World::new();
        for n in 0..claims {
            world.run(submitter(1), &n.to_string(), &Script::trapped());
        }
        let me = submitter(1);
        let terms = world.terms(me, "measured");
        let id = terms.claim_id();
        let commands = [
            create(terms),
            commit(id, "module", true),
            seal(id),
            execute(id),
        ];
        commands.map(|command| {
            let request = request(me, stamp(me, "measured", "x"), command);
            let mut read = 0;
            let mut stage = Stage::new(&world.resident);
            loop {
                let missing = stage.missing(&request);
                if missing.is_empty() {
                    break;
                }
                read += missing.len();
                for key in missing {
                    world.rows.supply(&mut stage, key);
                }
            }
            drop(stage);
            let unstamped = Request {
                stamp: None,
                ..request
            };
            world.send(unstamped).expect("a step of its life");
            read
        })
    };
    assert_eq!(rows_read(10), rows_read(1_000));
    assert_eq!(rows_read(10), [3, 2, 1, 3]);
}

#[test]
fn a_failure_is_counted_to_the_run_that_failed() {
    let mut world = World::new();
    for name in ["first", "second"] {
        world.admitted(world.terms(submitter(1), name), false);
    }
    let again = RunCommand::BeginAgain {
        holdout: world.holdout,
        number: 1,
        failed: true,
    };
    world.ask(OPERATOR, again).expect("the driver's own");
    let attempts = |world: &World| [0, 1].map(|at| world.main().in_flight[at].attempt);
    assert_eq!(attempts(&world), [0, 1]);
}

#[test]
fn events_and_registrations_are_counted() {
    let (mut world, batch) = prepared();
    world.batch(&batch);
    let events: usize = world.journal.iter().map(|(_, events)| events.len()).sum();
    let counters = world.resident.counters();
    assert_eq!(counters.events, events as u64);
    assert_eq!(counters.holdouts_generation, 1);
    world.register("second", policy(), None);
    assert_eq!(world.resident.counters().holdouts_generation, 2);
}

#[test]
fn a_name_is_that_of_the_holdout_that_was_not_withdrawn() {
    let mut world = World::new();
    let mut withdrawn = world.main().clone();
    withdrawn.status = HoldoutStatus::Withdrawn;
    let second = world.register("second", policy(), None);
    let mut named = world.of(second).clone();
    named.reference = withdrawn.reference.clone();
    let find = |holdouts: Vec<Holdout>| {
        let resident = Resident::new(holdouts, Counters::default(), ENGINE.to_owned());
        assert_eq!(resident.engine(), ENGINE);
        let stage = Stage::new(&resident);
        stage.holdout_by_reference("main").map(|found| found.id)
    };
    let orders = [
        vec![withdrawn.clone(), named.clone()],
        vec![named.clone(), withdrawn.clone()],
        vec![named],
    ];
    for order in orders {
        assert_eq!(find(order), Some(second));
    }
    let alone = Some(withdrawn.id);
    assert_eq!(find(vec![withdrawn]), alone);
}

#[test]
fn accounting_and_sums_are_those_that_were_given() {
    let accounting = Accounting {
        credit_limit: 77,
        ..Accounting::default()
    };
    let totals = Totals {
        initial: 5,
        balances: 5,
        ..Totals::default()
    };
    let resident = World::empty().resident;
    let resident = resident.with_accounts(accounting.clone(), totals);
    assert_eq!(resident.accounting(), &accounting);
    assert_eq!(resident.totals(), totals);
    assert_eq!(Stage::new(&resident).accounting(), &accounting);
    assert_eq!(Stage::new(&resident).totals(), totals);
}
