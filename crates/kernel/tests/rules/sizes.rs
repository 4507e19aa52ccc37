//! No accepted command writes an entry that the log's files cannot hold.

use std::collections::BTreeMap;

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Artifact, ClaimState, Outcome, Reason, Terms},
    command::{Caller, CreditCommand, HoldoutCommand, PutHoldout, RunCommand, RunEnd, RunReport},
    continuity::{BegunBy, LogStarted},
    decide::dependency_merkle_root,
    entry::Kind,
    holdout::{MAX_ITEMS, NarrowerBudgets},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    in_force::{InForce, PoliciesStated},
    price::{AnswerPrices, Multiplicity, SettlementPrices},
    record::{
        AccountsImported, AnswerTally, BudgetsChanged, Capsule, ClaimRevoked, Compared,
        CreditGranted, HoldoutOpened, HoldoutRetired, HoldoutWithdrawn, Ledger, MAX_ENTRY_LEN,
        Registered, RunPlace,
    },
    refusal::{Refusal, RefusalKind},
};
use proptest::prelude::*;

use crate::world::{OPERATOR, World, holdout, policy};

/// Ints of canonical JSON end here.
const MOST: u64 = (1 << 53) - 1;
/// Doubles its length in JSON.
const QUOTES: &str = "\"";

fn with_prices(lists: &[(u32, u64)]) -> PutHoldout {
    let mut put = holdout("large", policy(), None);
    put.description.policy.answer_prices = AnswerPrices(
        lists
            .iter()
            .map(|&(n, price)| (n, vec![MicroBits(price); n as usize]))
            .collect::<BTreeMap<_, _>>(),
    );
    put
}

fn entry_len(put: &PutHoldout) -> usize {
    Registered::new(
        put.reference.clone(),
        put.description.clone(),
        crate::world::START_UNIX_MS,
    )
    .to_bytes()
    .len()
}

fn ask(put: PutHoldout) -> Result<World, Refusal> {
    let mut world = World::empty();
    world.ask(OPERATOR, HoldoutCommand::Put(Box::new(put)))?;
    Ok(world)
}

#[test]
fn a_description_of_65535_bytes_is_taken_and_one_of_65536_is_not() {
    // One price of eight digits takes nine bytes; the name's length fits the rest.
    let base = with_prices(&[(7_170, 20_000_000)]);
    let room = MAX_ENTRY_LEN - entry_len(&base);
    assert!(room < 256, "{room}");
    let named = |more: usize| PutHoldout {
        reference: "x".repeat("large".len() + more),
        ..base.clone()
    };
    assert_eq!(entry_len(&named(room)), 65_535);
    let world = ask(named(room)).expect("it fits");
    assert_eq!(world.entries[0].len(), 65_535);
    let refused = ask(named(room + 1)).expect_err("one byte too many");
    assert!(
        matches!(&refused, Refusal::EntryTooLong { bytes: 65_536, .. }),
        "{refused:?}"
    );
    assert_eq!(refused.kind(), RefusalKind::Invalid);
    assert!(refused.to_string().contains("answer prices"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Random large policies: what is accepted is an entry that the log can hold and that reads back.
    #[test]
    fn what_is_accepted_fits_an_entry_and_reads_back(
        lists in proptest::collection::vec((2u32..9_000, 16_000_000u64..64_000_000), 1..4),
    ) {
        let put = with_prices(&lists);
        let len = entry_len(&put);
        match ask(put) {
            Ok(world) => {
                prop_assert!(len <= MAX_ENTRY_LEN);
                prop_assert!(Registered::parse(&world.entries[0]).is_ok());
            }
            Err(refused) => prop_assert!(len > MAX_ENTRY_LEN, "{len}: {refused}"),
        }
    }
}

/// The longest capsule that any run can end with: all symbols that the widest lane can ask, all
/// parents that a claim may have, every number as long as canonical JSON has them.
fn largest_capsule() -> Capsule {
    let calls = evidenceos_kernel::claim::Lane::Heavy.max_oracle_calls();
    Capsule {
        claim_id: ClaimId([0xff; 32]),
        topic_id: Digest([0xff; 32]),
        structured_output_hash: Digest([0xff; 32]),
        owner_tag: OwnerTag([0xff; 16]),
        holdout_id: HoldoutId([0xff; 32]),
        policy_hash: Digest([0xff; 32]),
        null_spec_hash: Digest([0xff; 32]),
        wasm_hash: Digest([0xff; 32]),
        seal_hash: Digest([0xff; 32]),
        dependencies: vec![Digest([0xff; 32]); evidenceos_kernel::claim::MAX_PARENTS],
        trace_hash: Digest([0xff; 32]),
        outcome: Outcome::NotCertified,
        reason_codes: vec![9_999; 4],
        answers: AnswerTally {
            n_symbols: 65_536,
            asked: calls,
            replayed: calls,
            by_symbol: (0..calls).map(|n| (65_535 - n, calls)).collect(),
            charged: MicroBits(MOST),
        },
        ledger: Ledger {
            k: MicroBits(MOST),
            c: MicroBits(MOST),
            price: MicroBits(MOST),
            settled_before: MOST,
            certified_before: MOST,
            ordinal: MOST,
            alpha_micros: 999_999,
            alpha_divisor: MOST,
            multiplicity: Multiplicity::Each,
            threshold: MicroBits(MOST),
        },
        items: (MAX_ITEMS, MAX_ITEMS, MAX_ITEMS),
        e_value_log2: Some(MOST),
        fuel: MOST,
        settled_unix_ms: MOST,
        engine: "e".repeat(1_024),
        run: Some(RunPlace {
            number: MOST,
            ended_before: MOST,
            levels: u8::MAX,
            answers_reserved: MicroBits(MOST),
            sealed_reserved: MicroBits(MOST),
        }),
        duplicate_of: Some(ClaimId([0xff; 32])),
    }
}

/// What the driver and the operator write besides registrations, each at its longest.
#[test]
fn the_largest_entry_of_every_command_fits() {
    let text = QUOTES.repeat(256);
    let id = HoldoutId([0xff; 32]);
    let budgets = NarrowerBudgets {
        sealed: Some(MicroBits(MOST)),
        principal_answers: Some(MicroBits(MOST)),
        credit: Some(MOST),
    };
    let entries = [
        largest_capsule().to_bytes(),
        LogStarted {
            origin: text.clone(),
            key_id: Digest([0xff; 32]),
            software: text.clone(),
            begun_by: Some(BegunBy::Operator),
            started_unix_ms: MOST,
        }
        .to_bytes(),
        CreditGranted {
            owner: OwnerTag([0xff; 16]),
            amount: MOST,
            reason: text.clone(),
            granted_unix_ms: MOST,
        }
        .to_bytes(),
        AccountsImported {
            accounts: MOST,
            file: Digest([0xff; 32]),
            reason: text.clone(),
            imported_unix_ms: MOST,
        }
        .to_bytes(),
        HoldoutRetired {
            holdout: id,
            reason: text.clone(),
            retired_unix_ms: MOST,
        }
        .to_bytes(),
        HoldoutOpened {
            holdout: id,
            opened_unix_ms: MOST,
        }
        .to_bytes(),
        HoldoutWithdrawn {
            holdout: id,
            reason: text.clone(),
            withdrawn_unix_ms: MOST,
        }
        .to_bytes(),
        ClaimRevoked {
            claim: ClaimId([0xff; 32]),
            capsule: Digest([0xff; 32]),
            reason: text,
            revoked_unix_ms: MOST,
        }
        .to_bytes(),
        PoliciesStated {
            in_force: InForce {
                policies: Digest([0xff; 32]),
                roles: Some(Digest([0xff; 32])),
            },
            in_force_unix_ms: MOST,
        }
        .to_bytes(),
        BudgetsChanged {
            holdout: id,
            budgets,
            changed_unix_ms: MOST,
        }
        .to_bytes(),
        Compared {
            holdout: id,
            agrees: true,
            answers: MicroBits(MOST),
            sealed: MicroBits(MOST),
            compared_unix_ms: MOST,
        }
        .to_bytes(),
    ];
    for entry in entries {
        let kind = Kind::of(&entry).expect("a kind");
        assert!(
            entry.len() <= MAX_ENTRY_LEN,
            "{kind:?}: {} bytes",
            entry.len()
        );
    }
}

/// The longest capsule, through `decide`: with as many parents and symbols as the rules allow.
#[test]
fn a_run_that_did_all_it_could_settles() {
    let mut world = World::with(|policy| {
        policy.max_symbols = 65_536;
        policy.answer_budget = MicroBits(100_000_000_000);
        policy.principal_answer_budget = MicroBits(100_000_000_000);
        policy.settlement_prices = SettlementPrices::Fixed { certified_bits: 1 };
        policy.sealed_budget = MicroBits(1_000_000_000_000);
    });
    let parents: Vec<(ClaimId, Digest)> = (0..64)
        .map(|n| {
            let capsule = world.run(
                crate::world::submitter(1),
                &format!("parent {n}"),
                &crate::world::Script::weak(),
            );
            (capsule.claim_id, capsule.hash())
        })
        .collect();
    let mut hashes: Vec<Digest> = parents.iter().map(|(_, hash)| *hash).collect();
    hashes.sort();
    let terms = Terms {
        oracle_num_symbols: 65_536,
        lane: evidenceos_kernel::claim::Lane::Heavy,
        dependency_merkle_root: Some(dependency_merkle_root(&hashes)),
        ..world.terms(crate::world::submitter(1), "child")
    };
    let id = terms.claim_id();
    let owner = crate::world::submitter(1);
    world
        .ask(owner, crate::world::create(terms))
        .expect("created");
    let artifacts = parents
        .iter()
        .map(|(parent, hash)| Artifact {
            kind: "dependency".to_owned(),
            hash: *hash,
            parent: Some(*parent),
        })
        .collect();
    let commit = crate::world::commit_with(id, "child", true, artifacts);
    for command in [commit, crate::world::seal(id)] {
        world.ask(owner, command).expect("within the limits");
    }
    let (tag, principal) = (owner.tag, "principal-1".to_owned());
    let limit = CreditCommand::SetLimit {
        owner: tag,
        principal: principal.clone(),
        limit: 1 << 40,
    };
    let grant = CreditCommand::Grant {
        owner: tag,
        principal,
        amount: 1 << 39,
        reason: "a dear run".to_owned(),
    };
    for command in [limit, grant] {
        world.ask(OPERATOR, command).expect("within the limits");
    }
    world
        .ask(owner, crate::world::execute(id))
        .expect("admitted");
    let run = world.main().in_flight[0].clone();
    let report = RunReport {
        end: RunEnd::Trapped(Reason::OutOfFuel),
        answers: AnswerTally {
            n_symbols: 65_536,
            asked: 1_024,
            replayed: 0,
            by_symbol: (0..1_024).map(|n| (64_512 + n, 1)).collect(),
            charged: run.answers_reserved,
        },
        score: None,
        fuel: 1_000_000_000,
        pages: 8_192,
        trace_hash: Digest::of(b"trace"),
        trace_len: 5,
    };
    let settle = RunCommand::Settle {
        holdout: world.holdout,
        number: run.number,
        report: Box::new(report),
    };
    world.ask(Caller::DRIVER, settle).expect("never refused");
    let entry = world.entries.last().expect("a capsule");
    assert_eq!(world.rows.claims[&id].state, ClaimState::Settled);
    assert!(entry.len() < MAX_ENTRY_LEN / 2, "{}", entry.len());
}
