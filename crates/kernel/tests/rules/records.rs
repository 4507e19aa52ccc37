//! What the log says is read as it was written, and nothing beside it is read over.

use evidenceos_kernel::{
    bits::MicroBits,
    command::{HoldoutCommand, RunReport},
    continuity::{HoldoutCharged, KnownTree, LogContinued, LogRestarted},
    evidence::Strategy,
    holdout::NarrowerBudgets,
    id::{ClaimId, Digest, HoldoutId},
    in_force::{InForce, PoliciesStated},
    log_key::{KeyLink, KeyRotated, SignedKeyLink},
    null::NullSpec,
    price::{AnswerPrices, Multiplicity, SettlementPrices},
    record::{AnswerTally, BudgetsChanged, Capsule, ClaimRevoked, Compared, Registered},
};

use crate::world::{OPERATOR, Script, World, bits, holdout, policy, submitter};

/// A world of one holdout that has nothing of the defaults.
fn of_its_own() -> World {
    let mut put = holdout("main", policy(), None);
    put.description.policy.settlement_prices = SettlementPrices::Fixed { certified_bits: 7 };
    put.description.policy.multiplicity = Multiplicity::Fdr;
    put.description.policy.answer_prices =
        AnswerPrices([(2, vec![bits(1); 2]), (4, vec![bits(3); 4])].into());
    put.description.policy.principal_sealed_budget = Some(bits(20));
    let strategy = Strategy::FixedAlternative { p1_micros: 600_000 };
    put.description.null_spec =
        NullSpec::accuracy(500_000, strategy, Some(9_000_000_000)).expect("in range");
    World::on(put)
}

/// A capsule of a run that asked.
fn capsule() -> Capsule {
    let mut world = World::new();
    let (_, number) = world.admitted(world.terms(submitter(1), "asks"), true);
    let report = RunReport {
        answers: AnswerTally {
            n_symbols: 4,
            asked: 8,
            replayed: 1,
            by_symbol: vec![(0, 2), (3, 5)],
            charged: bits(14),
        },
        ..Script::weak().report()
    };
    world.settle_as(number, report)
}

#[test]
fn a_registration_is_read_as_it_was_written() {
    let world = of_its_own();
    let read = Registered::parse(&world.entries[0]).expect("the kernel's own");
    assert_eq!(read.description, world.main().description);
    let prices = read.description.policy.settlement_prices;
    assert_eq!(prices, SettlementPrices::Fixed { certified_bits: 7 });
    let strategy = Strategy::FixedAlternative { p1_micros: 600_000 };
    let null_spec = NullSpec::accuracy(500_000, strategy, Some(9_000_000_000));
    assert_eq!(Ok(read.description.null_spec), null_spec);
}

#[test]
fn a_capsules_answers_are_read_as_they_were_written() {
    let capsule = capsule();
    assert_eq!(capsule.answers.by_symbol, [(0, 2), (3, 5)]);
    assert_eq!((capsule.answers.asked, capsule.answers.replayed), (8, 1));
    let text = String::from_utf8(capsule.to_bytes()).expect("JSON");
    let list = "\"by_symbol\":[[0,2],[3,5]]";
    for other in [
        "[[0,2],[3]]",
        "[[0,2],[3,5,1]]",
        "[[0,\"2\"]]",
        "[[0,4294967296]]",
        "[7]",
    ] {
        let changed = text.replace(list, &format!("\"by_symbol\":{other}"));
        assert_ne!(changed, text);
        assert!(Capsule::parse(changed.as_bytes()).is_err(), "{other}");
    }
}

#[test]
fn a_field_too_many_is_refused_in_every_entry() {
    type Read = fn(&[u8]) -> bool;
    let (holdout, digest) = (HoldoutId([1; 32]), Digest([2; 32]));
    let tree = KnownTree {
        size: 9,
        root: [7; 32],
    };
    let link = SignedKeyLink {
        link: KeyLink {
            origin: "example.org/1".to_owned(),
            old_public_key: [1; 32],
            new_public_key: [2; 32],
            tree_size: 3,
            root: [4; 32],
        },
        old_signature: [5; 64],
        new_signature: [6; 64],
    };
    let entries: Vec<(Vec<u8>, Read)> = vec![
        (of_its_own().entries.remove(0), |b| {
            Registered::parse(b).is_ok()
        }),
        (capsule().to_bytes(), |b| Capsule::parse(b).is_ok()),
        (
            BudgetsChanged {
                holdout,
                budgets: NarrowerBudgets::default(),
                changed_unix_ms: 1,
            }
            .to_bytes(),
            |b| BudgetsChanged::parse(b).is_ok(),
        ),
        (
            Compared {
                holdout,
                agrees: true,
                answers: bits(1),
                sealed: bits(2),
                compared_unix_ms: 1,
            }
            .to_bytes(),
            |b| Compared::parse(b).is_ok(),
        ),
        (
            ClaimRevoked {
                claim: ClaimId([1; 32]),
                capsule: digest,
                reason: "why".to_owned(),
                revoked_unix_ms: 1,
            }
            .to_bytes(),
            |b| ClaimRevoked::parse(b).is_ok(),
        ),
        (
            KeyRotated {
                signed: link,
                rotated_unix_ms: 1,
            }
            .to_bytes(),
            |b| KeyRotated::parse(b).is_ok(),
        ),
        (
            PoliciesStated {
                in_force: InForce::default(),
                in_force_unix_ms: 1,
            }
            .to_bytes(),
            |b| PoliciesStated::parse(b).is_ok(),
        ),
        (
            HoldoutCharged {
                holdout,
                answers: MicroBits(1),
                sealed: MicroBits(2),
                stated: true,
                charged_unix_ms: 1,
            }
            .to_bytes(),
            |b| HoldoutCharged::parse(b).is_ok(),
        ),
        (
            LogRestarted {
                origin: "example.org/2".to_owned(),
                old_origin: "example.org/1".to_owned(),
                old: tree,
                known: None,
                because: "lost".to_owned(),
                restarted_unix_ms: 1,
            }
            .to_bytes(),
            |b| LogRestarted::parse(b).is_ok(),
        ),
        (
            LogContinued {
                origin: "example.org/1".to_owned(),
                tree,
                because: "moved".to_owned(),
                stated_unix_ms: 1,
            }
            .to_bytes(),
            |b| LogContinued::parse(b).is_ok(),
        ),
    ];
    for (entry, reads) in entries {
        let text = String::from_utf8(entry).expect("JSON");
        assert!(reads(text.as_bytes()), "{text}");
        // In every object, at its end.
        let ends = text.match_indices('}').map(|(at, _)| at);
        for end in ends {
            let longer = format!("{},\"zz\":1{}", &text[..end], &text[end..]);
            assert!(!reads(longer.as_bytes()), "{longer}");
        }
    }
}

#[test]
fn what_is_read_is_written_the_same_again() {
    let mut world = of_its_own();
    let narrow = HoldoutCommand::SetBudgets {
        holdout: world.holdout,
        narrower: NarrowerBudgets {
            sealed: Some(bits(9)),
            principal_answers: Some(bits(3)),
            credit: Some(77),
        },
    };
    world.ask(OPERATOR, narrow).expect("narrower");
    let entry = world.entries.last().expect("an entry");
    let read = BudgetsChanged::parse(entry).expect("the kernel's own");
    assert_eq!(&read.to_bytes(), entry);
    assert_eq!(read.budgets, world.main().narrower);
    let capsule = capsule();
    assert_eq!(Capsule::parse(&capsule.to_bytes()), Ok(capsule));
}
