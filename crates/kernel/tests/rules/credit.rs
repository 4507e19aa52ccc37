//! Credit: who pays, what comes back, and that none comes from nowhere.

mod conserved;

use evidenceos_kernel::{
    account::{Account, Accounting, MAX_CREDIT, Tariff, Totals, unix_day},
    claim::{Lane, Outcome, Terms},
    command::{Caller, Command, CreditCommand, HoldoutCommand, ImportedAccount, Reply},
    holdout::NarrowerBudgets,
    id::{Digest, OwnerTag},
    refusal::{Pool, Refusal},
};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use crate::world::{
    DAY_MS, OPERATOR, Script, World, bits, create, execute, request, stamp, submitter,
};

/// What a run of the fast lane may cost on the default holdout, asking nothing: eight bits and
/// more for its settlement, 100 for fuel, 1.024 for memory.
fn worst(world: &mut World) -> u64 {
    let mut probe = world.clone();
    let me = submitter(9);
    probe.admitted(probe.terms(me, "probe"), false);
    probe.rows.accounts[&me.tag].reserved
}

/// A world where new accounts have this limit, and a day mints that much.
fn world_of(credit_limit: u64, daily_mint_limit: u64) -> World {
    let mut world = World::new();
    let accounting = Accounting {
        credit_limit,
        daily_mint_limit: Some(daily_mint_limit),
        ..Accounting::default()
    };
    world.resident = world.resident.with_accounts(accounting, Totals::default());
    world
}

fn grant(owner: Caller, amount: u64) -> Command {
    CreditCommand::Grant {
        owner: owner.tag,
        principal: format!("principal-{}", owner.tag.0[0]),
        amount,
        reason: "the quarter's allowance".to_owned(),
    }
    .into()
}

fn limit(owner: Caller, limit: u64) -> Command {
    CreditCommand::SetLimit {
        owner: owner.tag,
        principal: format!("principal-{}", owner.tag.0[0]),
        limit,
    }
    .into()
}

fn account(world: &World, owner: Caller) -> &Account {
    &world.rows.accounts[&owner.tag]
}

#[test]
fn the_most_credits_are_what_a_reader_of_json_still_has_exactly() {
    assert_eq!(MAX_CREDIT, 9_007_199_254_740_991);
}

#[test]
fn whoever_creates_a_claim_has_an_account_at_its_limits() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = world.terms(me, "first");
    world.ask(me, create(terms)).expect("nothing is against it");
    let found = account(&world, me);
    assert_eq!(found.principal, "principal-1");
    assert_eq!((found.balance, found.credit_limit), (10_000, 10_000));
    assert_eq!(
        (found.daily_mint_remaining, found.daily_mint_limit),
        (10_000, 10_000)
    );
    assert_eq!(found.last_mint_day, unix_day(world.now_unix_ms));
}

#[test]
fn a_run_reserves_its_worst_case_and_burns_what_it_used() {
    let mut world = World::new();
    let me = submitter(1);
    let (claim, number) = world.admitted(world.terms(me, "one"), false);
    let reserved = account(&world, me).reserved;
    assert!((105..125).contains(&reserved), "{reserved}");
    assert_eq!(account(&world, me).balance, 10_000 - reserved);
    assert_eq!(world.main().credit_reserved, reserved);
    let capsule = world.settle(number, &Script::weak());
    let found = account(&world, me);
    // Less than a bit for "not certified", 7 fuel, 17 pages: one credit.
    assert!(capsule.ledger.price < bits(1));
    assert_eq!(
        (found.balance, found.reserved, found.burned_total),
        (9_999, 0, 1)
    );
    assert_eq!(world.rows.claims[&claim].credit.burned, 1);
    assert_eq!(
        (world.main().credit_reserved, world.main().credit_burned),
        (0, 1)
    );
}

#[test]
fn a_trap_costs_what_it_used_and_a_fault_of_ours_nothing() {
    let mut world = World::new();
    let me = submitter(1);
    let loops = Script {
        fuel: 100_000_000,
        ..Script::trapped()
    };
    world.run(me, "an endless loop", &loops);
    assert_eq!(account(&world, me).burned_total, 101);
    let (_, number) = world.admitted(world.terms(me, "crashed twice"), false);
    assert_eq!(world.abort(number).outcome, Outcome::Aborted);
    let found = account(&world, me);
    assert_eq!((found.burned_total, found.reserved), (101, 0));
    assert_eq!(found.balance, 10_000 - 101);
}

#[test]
fn little_credit_buys_little_fuel() {
    let mut world = world_of(60, 0);
    let me = submitter(1);
    let (claim, number) = world.admitted(world.terms(me, "poor"), false);
    let fuel = world.rows.claims[&claim].max_fuel();
    assert!((40_000_000..60_000_000).contains(&fuel), "{fuel}");
    assert_eq!(account(&world, me).balance, 0);
    let all = Script {
        fuel,
        ..Script::trapped()
    };
    world.settle(number, &all);
    assert!(account(&world, me).burned_total <= 60);
}

#[test]
fn a_claim_burns_no_more_than_its_access_credit() {
    let mut world = World::new();
    let me = submitter(1);
    let terms = Terms {
        access_credit: 30,
        lane: Lane::Heavy,
        ..world.terms(me, "capped")
    };
    let (claim, _) = world.admitted(terms, false);
    assert_eq!(account(&world, me).reserved, 30);
    assert!(world.rows.claims[&claim].max_fuel() < 30_000_000);
    let terms = Terms {
        access_credit: 2,
        ..world.terms(me, "capped too low")
    };
    let id = world.sealed(terms, false);
    let refused = world
        .ask(me, execute(id))
        .expect_err("two credits pay for no bits");
    assert!(matches!(refused, Refusal::InsufficientCredit { left: 2, needed } if needed > 8));
}

#[test]
fn without_credit_runs_are_refused_and_counted_once_a_request() {
    let mut world = world_of(5, 0);
    let me = submitter(1);
    let id = world.sealed(world.terms(me, "too dear"), false);
    let again = || request(me, stamp(me, "run", "x"), execute(id));
    let refused = world.send(again()).expect_err("five credits are too few");
    assert_eq!(refused.code(), "INSUFFICIENT_CREDIT");
    assert_eq!(account(&world, me).denied_total, 1);
    assert_eq!(world.send(again()), Err(refused.clone()));
    assert_eq!(
        account(&world, me).denied_total,
        1,
        "asked again under the same id"
    );
    assert_eq!(world.ask(me, execute(id)), Err(refused));
    assert_eq!(account(&world, me).denied_total, 2);
}

#[test]
fn what_ones_own_runs_reserve_is_waited_for() {
    let mut world = World::new();
    let reserve = worst(&mut world);
    let mut world = world_of(reserve + reserve / 2, 0);
    let me = submitter(1);
    let (_, number) = world.admitted(world.terms(me, "first"), false);
    let id = world.sealed(world.terms(me, "second"), false);
    let waits = Refusal::Reserved { pool: Pool::Credit };
    assert_eq!(world.ask(me, execute(id)), Err(waits.clone()));
    assert_eq!(
        (waits.code(), waits.asks_to_retry()),
        ("CREDIT_RESERVED", true)
    );
    assert_eq!(account(&world, me).denied_total, 0);
    world.settle(number, &Script::weak());
    assert_eq!(world.ask(me, execute(id)), Ok(Reply::Running(id)));
}

#[test]
fn the_first_touch_of_a_day_mints_and_a_clock_that_goes_back_does_not() {
    let mut world = world_of(1_000, 100);
    let me = submitter(1);
    let dear = Script {
        fuel: 100_000_000,
        ..Script::trapped()
    };
    for n in 0..3 {
        world.run(me, &n.to_string(), &dear);
    }
    assert_eq!(account(&world, me).balance, 1_000 - 303);
    let today = world.now_unix_ms;
    world.now_unix_ms = today + DAY_MS;
    world.run(me, "tomorrow", &dear);
    let found = account(&world, me);
    assert_eq!(
        (found.balance, found.daily_mint_remaining),
        (1_000 - 303 + 100 - 101, 0)
    );
    assert_eq!(found.last_mint_day, unix_day(today) + 1);
    for back in [today, today - 5 * DAY_MS, today + DAY_MS + 1] {
        world.now_unix_ms = back;
        let before = account(&world, me).balance;
        world.run(me, &format!("at {back}"), &dear);
        assert_eq!(account(&world, me).balance, before - 101);
    }
}

#[test]
fn grants_are_in_the_log_and_never_beyond_the_limit() {
    let mut world = World::new();
    let me = submitter(1);
    world.run(me, "one", &Script::weak());
    let beyond = world
        .ask(OPERATOR, grant(me, 2))
        .expect_err("one credit is missing");
    assert_eq!(
        beyond,
        Refusal::BeyondCreditLimit {
            amount: 2,
            unburned: 9_999,
            limit: 10_000
        }
    );
    assert_eq!(
        world.ask(OPERATOR, limit(me, 20_000)),
        Ok(Reply::Credit(20_000))
    );
    assert_eq!(
        world.ask(OPERATOR, grant(me, 5_000)),
        Ok(Reply::Credit(14_999))
    );
    let entry = String::from_utf8(world.entries.last().expect("an entry").clone()).expect("JSON");
    for part in [
        "credit_granted",
        "\"amount\":5000",
        "the quarter's allowance",
        &me.tag.to_hex(),
    ] {
        assert!(entry.contains(part), "{entry}");
    }
    assert!(
        !entry.contains("principal-1"),
        "the log names nobody: {entry}"
    );
    assert_eq!(world.ask(OPERATOR, limit(me, 100)), Ok(Reply::Credit(100)));
    assert_eq!(account(&world, me).balance, 100);
    for amount in [0, MAX_CREDIT + 1] {
        let refused = world
            .ask(OPERATOR, grant(me, amount))
            .expect_err("no amount");
        assert_eq!(refused.code(), "INVALID_FIELD");
    }
    for command in [grant(me, 1), limit(me, 1)] {
        let refused = world.ask(me, command).expect_err("no operator");
        assert_eq!(refused.code(), "ROLE_REQUIRED");
    }
}

#[test]
fn a_grant_asked_twice_under_one_id_is_given_once() {
    let mut world = World::new();
    let me = submitter(1);
    world.ask(OPERATOR, limit(me, 50_000)).expect("an operator");
    let first = request(OPERATOR, stamp(OPERATOR, "a", "100"), grant(me, 100));
    let second = request(OPERATOR, stamp(OPERATOR, "b", "100"), grant(me, 100));
    assert_eq!(world.send(first.clone()), Ok(Reply::Credit(10_100)));
    assert_eq!(world.send(first.clone()), Ok(Reply::Credit(10_100)));
    assert_eq!(world.send(second.clone()), Ok(Reply::Credit(10_200)));
    // The first one's memory gave way to the second's, and is still there.
    assert_eq!(world.send(first), Ok(Reply::Credit(10_100)));
    assert_eq!(world.send(second), Ok(Reply::Credit(10_200)));
    let other = request(OPERATOR, stamp(OPERATOR, "a", "200"), grant(me, 200));
    assert_eq!(world.send(other), Err(Refusal::RequestIdReused));
    let beyond = request(OPERATOR, stamp(OPERATOR, "c", "much"), grant(me, 1_000_000));
    let refused = world.send(beyond.clone()).expect_err("beyond");
    world
        .ask(OPERATOR, limit(me, 5_000_000))
        .expect("an operator");
    assert_eq!(world.send(beyond), Err(refused), "one id, one outcome");
    assert_eq!(account(&world, me).balance, 10_200);
}

#[test]
fn an_import_makes_accounts_what_a_file_says() {
    let mut world = World::new();
    let (me, other) = (submitter(1), submitter(2));
    world.admitted(world.terms(me, "under way"), false);
    let reserved = account(&world, me).reserved;
    let imported = |owner: Caller, unburned| ImportedAccount {
        owner: owner.tag,
        principal: format!("principal-{}", owner.tag.0[0]),
        unburned,
        daily_mint_remaining: 3,
        last_mint_day: 20_000,
        credit_limit: 700,
        daily_mint_limit: 30,
        burned_total: 11,
        denied_total: 2,
    };
    let import = |accounts| CreditCommand::Import {
        accounts,
        file: Digest::of(b"file"),
        reason: "restored by hand".to_owned(),
    };
    let refused = world
        .ask(OPERATOR, import(vec![imported(me, reserved - 1)]))
        .expect_err("less than what is reserved");
    assert_eq!(refused.code(), "INVALID_FIELD");
    let both = vec![imported(me, 500), imported(other, 600)];
    assert_eq!(world.ask(OPERATOR, import(both.clone())), Ok(Reply::Done));
    assert_eq!(account(&world, me).balance, 500 - reserved);
    assert_eq!(account(&world, other).balance, 600);
    assert_eq!(
        (
            account(&world, other).seq,
            account(&world, other).burned_total
        ),
        (1, 11)
    );
    assert!(world.resident.totals().balance_out());
    let before = world.snapshot();
    world.ask(OPERATOR, import(both)).expect("the same again");
    assert_eq!(world.snapshot(), before);
}

#[test]
fn budgets_are_narrowed_and_never_widened() {
    let mut world = World::new();
    let me = submitter(1);
    let holdout = world.holdout;
    let narrow = |narrower| HoldoutCommand::SetBudgets { holdout, narrower };
    let sealed = |sealed| NarrowerBudgets {
        sealed: Some(sealed),
        ..NarrowerBudgets::default()
    };
    let wider = world.ask(OPERATOR, narrow(sealed(bits(65))));
    assert_eq!(
        wider.expect_err("64 bits are registered").code(),
        "INVALID_FIELD"
    );
    world
        .ask(OPERATOR, narrow(sealed(bits(1))))
        .expect("narrower");
    let id = world.sealed(world.terms(me, "one"), false);
    let refused = world
        .ask(me, execute(id))
        .expect_err("one bit is too little");
    assert_eq!(refused.code(), "LEAKAGE_BUDGET_EXHAUSTED");
    world
        .ask(OPERATOR, narrow(sealed(bits(64))))
        .expect("as registered");
    let credit = NarrowerBudgets {
        credit: Some(5),
        ..NarrowerBudgets::default()
    };
    world.ask(OPERATOR, narrow(credit)).expect("narrower");
    let refused = world
        .ask(me, execute(id))
        .expect_err("five credits are too few");
    assert_eq!(refused.code(), "HOLDOUT_CREDIT_EXHAUSTED");
    let credit = NarrowerBudgets {
        credit: Some(150),
        ..NarrowerBudgets::default()
    };
    world.ask(OPERATOR, narrow(credit)).expect("wider again");
    world.ask(me, execute(id)).expect("150 carry one run");
    let second = world.sealed(world.terms(submitter(2), "two"), false);
    let waits = Refusal::Reserved {
        pool: Pool::HoldoutCredit,
    };
    assert_eq!(world.ask(submitter(2), execute(second)), Err(waits));
}

/// A world where a run of the fast lane costs its 1,024 pages, and its fuel this much a unit.
fn world_of_pages(credit_limit: u64, per_fuel: &str) -> World {
    let mut world = World::new();
    let rate = |text: &str| text.parse().expect("a rate");
    let accounting = Accounting {
        tariff: Tariff {
            per_bit: rate("0"),
            per_fuel: rate(per_fuel),
            per_page: rate("1"),
            per_module_byte: rate("0"),
        },
        credit_limit,
        daily_mint_limit: Some(0),
        ..Accounting::default()
    };
    world.resident = world.resident.with_accounts(accounting, Totals::default());
    world
}

#[test]
fn a_run_pays_for_the_bytes_of_its_module() {
    let mut world = World::new();
    let rate = |text: &str| text.parse().expect("a rate");
    let accounting = Accounting {
        tariff: Tariff {
            per_bit: rate("0"),
            per_fuel: rate("0"),
            per_page: rate("0"),
            per_module_byte: rate("2"),
        },
        ..Accounting::default()
    };
    world.resident = world.resident.with_accounts(accounting, Totals::default());
    let me = submitter(1);
    let (_, number) = world.admitted(world.terms(me, "100 bytes"), false);
    assert_eq!(account(&world, me).reserved, 200);
    world.settle(number, &Script::weak());
    assert_eq!(account(&world, me).burned_total, 200);
}

fn credit_budget(world: &World, credit: u64) -> Command {
    HoldoutCommand::SetBudgets {
        holdout: world.holdout,
        narrower: NarrowerBudgets {
            credit: Some(credit),
            ..NarrowerBudgets::default()
        },
    }
    .into()
}

#[test]
fn credit_that_buys_no_fuel_admits_no_run() {
    for (credits, per_fuel, refused) in [
        (1_023, "1", Some((1_025, 1_023))),
        (1_024, "1", Some((1_025, 1_024))),
        (1_025, "1", None),
        (1_023, "0", Some((1_024, 1_023))),
        (1_024, "0", None),
    ] {
        let mut world = world_of_pages(credits, per_fuel);
        let id = world.sealed(world.terms(submitter(1), "claim"), false);
        let reply = match refused {
            Some((needed, left)) => Err(Refusal::InsufficientCredit { needed, left }),
            None => Ok(Reply::Running(id)),
        };
        let found = world.ask(submitter(1), execute(id));
        assert_eq!(found, reply, "{credits}, {per_fuel} for a unit of fuel");
    }
    // The last credit buys one unit of fuel.
    let mut world = world_of_pages(1_025, "1");
    let (id, _) = world.admitted(world.terms(submitter(1), "claim"), false);
    assert_eq!(world.rows.claims[&id].max_fuel(), 1);
    // Also what costs nothing costs a credit.
    let mut world = world_of(0, 0);
    let accounting = Accounting {
        tariff: Tariff {
            per_bit: Default::default(),
            per_fuel: Default::default(),
            per_page: Default::default(),
            per_module_byte: Default::default(),
        },
        credit_limit: 0,
        ..Accounting::default()
    };
    world.resident = world.resident.with_accounts(accounting, Totals::default());
    let id = world.sealed(world.terms(submitter(1), "claim"), false);
    let refused = Refusal::InsufficientCredit { needed: 1, left: 0 };
    assert_eq!(world.ask(submitter(1), execute(id)), Err(refused));
}

#[test]
fn a_holdouts_credit_is_used_to_the_last() {
    for (budget, refused) in [
        (
            1_023,
            Some(Refusal::HoldoutCreditExhausted {
                needed: 1_024,
                left: 1_023,
            }),
        ),
        (1_024, None),
    ] {
        let mut world = world_of_pages(10_000, "0");
        let narrow = credit_budget(&world, budget);
        world.ask(OPERATOR, narrow).expect("narrower");
        let id = world.sealed(world.terms(submitter(1), "claim"), false);
        let reply = refused.map_or(Ok(Reply::Running(id)), Err);
        assert_eq!(world.ask(submitter(1), execute(id)), reply);
    }
    for (budget, carries_both) in [(2_047, false), (2_048, true)] {
        let mut world = world_of_pages(10_000, "0");
        let narrow = credit_budget(&world, budget);
        world.ask(OPERATOR, narrow).expect("narrower");
        world.admitted(world.terms(submitter(1), "first"), false);
        let id = world.sealed(world.terms(submitter(2), "second"), false);
        let waits = Refusal::Reserved {
            pool: Pool::HoldoutCredit,
        };
        let reply = if carries_both {
            Ok(Reply::Running(id))
        } else {
            Err(waits)
        };
        assert_eq!(world.ask(submitter(2), execute(id)), reply);
    }
}

#[test]
fn a_grant_fills_an_account_to_its_limit_and_a_limit_goes_to_the_most() {
    let mut world = World::new();
    let me = submitter(1);
    world.run(me, "one", &Script::weak());
    assert_eq!(world.ask(OPERATOR, grant(me, 1)), Ok(Reply::Credit(10_000)));
    for (beyond, code) in [
        (0, None),
        (1, Some("INVALID_FIELD")),
        (2, Some("INVALID_FIELD")),
    ] {
        let set = world.ask(OPERATOR, limit(me, MAX_CREDIT + beyond));
        assert_eq!(set.err().map(|refused| refused.code()), code);
    }
    assert_eq!(account(&world, me).credit_limit, MAX_CREDIT);
}

#[test]
fn an_import_takes_the_largest_numbers_and_opens_accounts_one_by_one() {
    let imported = |n: u8| ImportedAccount {
        owner: submitter(n).tag,
        principal: format!("principal-{n}"),
        unburned: MAX_CREDIT,
        daily_mint_remaining: MAX_CREDIT,
        last_mint_day: MAX_CREDIT,
        credit_limit: MAX_CREDIT,
        daily_mint_limit: MAX_CREDIT,
        burned_total: MAX_CREDIT,
        denied_total: MAX_CREDIT,
    };
    let import = |accounts| CreditCommand::Import {
        accounts,
        file: Digest::of(b"file"),
        reason: "restored by hand".to_owned(),
    };
    let raise: [fn(&mut ImportedAccount); 7] = [
        |account| account.unburned += 1,
        |account| account.daily_mint_remaining += 1,
        |account| account.last_mint_day += 1,
        |account| account.credit_limit += 1,
        |account| account.daily_mint_limit += 1,
        |account| account.burned_total += 1,
        |account| account.denied_total += 1,
    ];
    let mut world = World::new();
    for raise in raise {
        let mut account = imported(1);
        raise(&mut account);
        let refused = world.ask(OPERATOR, import(vec![account]));
        assert_eq!(refused.expect_err("too large").code(), "INVALID_FIELD");
    }
    let all = (1..=3).map(imported).collect();
    assert_eq!(world.ask(OPERATOR, import(all)), Ok(Reply::Done));
    let seqs = [1, 2, 3].map(|n| account(&world, submitter(n)).seq);
    assert_eq!(seqs, [0, 1, 2]);
}

#[test]
fn an_account_keeps_one_request_of_each_kind_and_remembers_the_one_before_for_a_day() {
    let me = submitter(1);
    for (later_ms, remembered) in [(DAY_MS - 1, 1), (DAY_MS, 0)] {
        let mut world = world_of(10_000, 0);
        let send = |world: &mut World, id: &str, command| {
            let request = request(OPERATOR, stamp(OPERATOR, id, id), command);
            world.send(request).expect("an operator");
        };
        send(&mut world, "limit", limit(me, 20_000));
        send(&mut world, "grant", grant(me, 1));
        assert_eq!(account(&world, me).requests.len(), 2);
        assert!(world.rows.remembered.is_empty());
        world.now_unix_ms += later_ms;
        send(&mut world, "another grant", grant(me, 1));
        assert_eq!(account(&world, me).requests.len(), 2);
        assert_eq!(
            world.rows.remembered.len(),
            remembered,
            "after {later_ms} ms"
        );
    }
}
