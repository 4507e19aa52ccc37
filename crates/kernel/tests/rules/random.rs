//! Random sequences of commands: what holds after every one of them.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Outcome, Terms},
    command::Reply,
    id::ClaimId,
    record::Capsule,
};
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};

use crate::world::{Script, World, bits, execute, submitter};

#[derive(Debug, Clone)]
enum Act {
    /// A claim is created, sealed and executed.
    Execute {
        owner: u8,
        levels: u8,
        asks: bool,
        declared_bits: Option<u64>,
    },
    /// The oldest run ends after using a share of its allowance.
    Settle { right: Option<u64>, share: u64 },
    /// The oldest run is aborted.
    Abort,
}

fn act() -> impl Strategy<Value = Act> {
    let execute = (1..4u8, 0..5u8, any::<bool>(), any::<Option<u64>>()).prop_map(
        |(owner, levels, asks, declared)| Act::Execute {
            owner,
            levels,
            asks,
            declared_bits: declared.map(|bits| bits % 20),
        },
    );
    let settle = (any::<Option<u64>>(), 0..=4u64).prop_map(|(right, share)| Act::Settle {
        right: right.map(|right| right % 801),
        share,
    });
    prop_oneof![4 => execute, 3 => settle, 1 => proptest::strategy::Just(Act::Abort)]
}

/// What must hold at any time.
fn assert_sound(world: &World, capsules: &[Capsule]) {
    let main = world.main();
    let policy = &main.description.policy;
    let sum = |amount: fn(&Capsule) -> MicroBits| capsules.iter().map(amount).sum::<MicroBits>();
    assert_eq!(main.sealed.charged, sum(|capsule| capsule.ledger.price));
    assert_eq!(main.answers.charged, sum(|capsule| capsule.answers.charged));
    let reserved = |amount: fn(&evidenceos_kernel::holdout::InFlight) -> MicroBits| {
        main.in_flight.iter().map(amount).sum::<MicroBits>()
    };
    assert_eq!(main.sealed.reserved, reserved(|run| run.sealed_reserved));
    assert_eq!(main.answers.reserved, reserved(|run| run.answers_reserved));
    for (meter, budget) in [
        (main.sealed, policy.sealed_budget),
        (main.answers, policy.answer_budget),
    ] {
        assert!(meter.charged.saturating_add(meter.reserved) <= budget);
    }
    let (mut charged, mut held) = (MicroBits::ZERO, MicroBits::ZERO);
    for pool in world.rows.pools.values() {
        let total = pool.answers.charged.saturating_add(pool.answers.reserved);
        assert!(total <= policy.principal_answer_budget);
        charged = charged.saturating_add(pool.answers.charged);
        held = held.saturating_add(pool.answers.reserved);
    }
    assert_eq!(
        (charged, held),
        (main.answers.charged, main.answers.reserved)
    );
    let judged =
        |capsule: &&Capsule| matches!(capsule.outcome, Outcome::Certified | Outcome::NotCertified);
    assert_eq!(main.settled, capsules.iter().filter(judged).count() as u64);
}

fn play(acts: &[Act]) {
    let mut world = World::with(|policy| policy.levels = 4);
    let mut capsules: Vec<Capsule> = Vec::new();
    let mut admitted: Vec<ClaimId> = Vec::new();
    for (n, act) in acts.iter().enumerate() {
        let front = world.main().in_flight.front().cloned();
        match (act, front) {
            (
                &Act::Execute {
                    owner,
                    levels,
                    asks,
                    declared_bits,
                },
                _,
            ) => {
                let terms = Terms {
                    levels,
                    max_answer_microbits: declared_bits.map(|most| bits(most).get()),
                    ..world.terms(submitter(owner), &n.to_string())
                };
                let id = world.sealed(terms, asks);
                let before = world.snapshot();
                match world.ask(submitter(owner), execute(id)) {
                    Ok(reply) => {
                        assert_eq!(reply, Reply::Running(id));
                        admitted.push(id);
                    }
                    Err(_) => assert_eq!(world.snapshot(), before),
                }
            }
            (&Act::Settle { right, share }, Some(run)) => {
                let used = MicroBits(run.answers_reserved.get() / 4 * share);
                let script = Script {
                    right,
                    ..Script::weak().charged(used)
                };
                let capsule = world.settle(run.number, &script);
                assert!(capsule.ledger.price <= run.sealed_reserved);
                capsules.push(capsule);
            }
            (Act::Abort, Some(run)) => capsules.push(world.abort(run.number)),
            (_, None) => {}
        }
        assert_sound(&world, &capsules);
    }
    let ended: Vec<ClaimId> = capsules.iter().map(|capsule| capsule.claim_id).collect();
    assert_eq!(ended, admitted[..ended.len()]);
    for pair in capsules.windows(2) {
        let k = pair[0].ledger.k.saturating_add(pair[0].ledger.price);
        assert_eq!(pair[1].ledger.k, k);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn leakage_is_conserved_and_never_beyond_a_reservation(
        acts in proptest::collection::vec(act(), 1..60)
    ) {
        play(&acts);
    }
}
