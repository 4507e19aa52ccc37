//! No credit comes from nowhere, whatever is done in which order.

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Execute { owner: u8, cap: u64, heavy: bool },
    Settle { fuel: u64, right: Option<u64> },
    Abort,
    Grant { owner: u8, amount: u64 },
    Limit { owner: u8, limit: u64 },
    Import { owner: u8, unburned: u64 },
    Pass { days: u64 },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..4u8, prop_oneof![Just(0), 1..400u64], any::<bool>())
            .prop_map(|(owner, cap, heavy)| Act::Execute { owner, cap, heavy }),
        3 => (0..1_000_000_000u64, any::<Option<u64>>())
            .prop_map(|(fuel, right)| Act::Settle { fuel, right: right.map(|r| r % 801) }),
        1 => Just(Act::Abort),
        2 => (1..4u8, 0..800u64).prop_map(|(owner, amount)| Act::Grant { owner, amount }),
        1 => (1..4u8, 0..2_000u64).prop_map(|(owner, limit)| Act::Limit { owner, limit }),
        1 => (1..4u8, 0..2_000u64).prop_map(|(owner, unburned)| Act::Import { owner, unburned }),
        1 => (0..3u64).prop_map(|days| Act::Pass { days }),
    ]
}

fn assert_conserved(world: &World) {
    let totals = world.resident.totals();
    assert!(totals.balance_out(), "{totals:?}");
    let sum = |of: fn(&Account) -> u64| {
        world
            .rows
            .accounts
            .values()
            .map(|a| u128::from(of(a)))
            .sum()
    };
    assert_eq!(totals.balances, sum(|account| account.balance));
    assert_eq!(totals.reserved, sum(|account| account.reserved));
    assert_eq!(totals.accounts, world.rows.accounts.len() as u64);
    let claims = |of: fn(&evidenceos_kernel::claim::RunCredit) -> u64| -> u128 {
        let runs = world.rows.claims.values().map(|claim| &claim.credit);
        runs.map(|credit| u128::from(of(credit))).sum()
    };
    assert_eq!(totals.burned, claims(|credit| credit.burned));
    assert_eq!(u128::from(world.main().credit_burned), totals.burned);
    assert_eq!(u128::from(world.main().credit_reserved), totals.reserved);
    for account in world.rows.accounts.values() {
        assert!(account.daily_mint_remaining <= account.daily_mint_limit.max(50));
    }
}

fn play(acts: &[Act]) {
    let mut world = world_of(500, 50);
    for (n, act) in acts.iter().enumerate() {
        let front = world.main().in_flight.front().cloned();
        match (act, front) {
            (&Act::Execute { owner, cap, heavy }, _) => {
                let lane = if heavy { Lane::Heavy } else { Lane::Fast };
                let terms = Terms {
                    access_credit: cap,
                    lane,
                    ..world.terms(submitter(owner), &n.to_string())
                };
                let id = world.sealed(terms, false);
                let before = account(&world, submitter(owner)).unburned();
                // Whether it is admitted or not: only a mint changes what is there.
                let _ = world.ask(submitter(owner), execute(id));
                let after = account(&world, submitter(owner));
                assert!(after.unburned() >= before && after.unburned() <= before + 50);
                if cap > 0 {
                    assert!(world.rows.claims[&id].credit.reserved <= cap);
                }
            }
            (&Act::Settle { fuel, right }, Some(run)) => {
                let fuel = fuel.min(world.rows.claims[&run.claim].max_fuel());
                let script = Script {
                    right,
                    fuel,
                    ..Script::weak()
                };
                world.settle(run.number, &script);
                let credit = world.rows.claims[&run.claim].credit;
                assert!((1..=credit.reserved).contains(&credit.burned));
            }
            (Act::Abort, Some(run)) => {
                world.abort(run.number);
                assert_eq!(world.rows.claims[&run.claim].credit.burned, 0);
            }
            (_, None)
            | (Act::Grant { .. } | Act::Limit { .. } | Act::Import { .. } | Act::Pass { .. }, _) => {
            }
        }
        match *act {
            Act::Grant { owner, amount } => {
                let _ = world.ask(OPERATOR, grant(submitter(owner), amount));
            }
            Act::Limit { owner, limit: to } => {
                world
                    .ask(OPERATOR, limit(submitter(owner), to))
                    .expect("any limit");
            }
            Act::Import { owner, unburned } => {
                let accounts = vec![ImportedAccount {
                    owner: OwnerTag([owner; 16]),
                    principal: format!("principal-{owner}"),
                    unburned,
                    daily_mint_remaining: 10,
                    last_mint_day: unix_day(world.now_unix_ms),
                    credit_limit: 500,
                    daily_mint_limit: 50,
                    burned_total: 0,
                    denied_total: 0,
                }];
                let _ = world.ask(
                    OPERATOR,
                    CreditCommand::Import {
                        accounts,
                        file: Digest::of(b"file"),
                        reason: "play".to_owned(),
                    },
                );
            }
            Act::Pass { days } => world.now_unix_ms += days * DAY_MS,
            Act::Execute { .. } | Act::Settle { .. } | Act::Abort => {}
        }
        assert_conserved(&world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn credit_is_conserved(acts in proptest::collection::vec(act(), 1..60)) {
        play(&acts);
    }
}
