//! Receipts: what holds, and that nothing can be changed.

use evidenceos_tlog::{SignerKey, VerifierKey};
use evidenceos_verify::{Failure, Receipt, verify_receipt};

use crate::world::{ORIGIN, Script, World, eventful, key, owner, receipt_of, vector};

/// What every receipt of the test is about: a certified claim with answers.
fn certified() -> (World, Receipt) {
    let (world, _, _) = eventful();
    let receipt = world.receipt(4);
    (world, receipt)
}

#[test]
fn every_capsule_of_a_log_has_a_receipt_that_verifies() {
    let (world, _, _) = eventful();
    let mut capsules = 0;
    for index in 0..world.entries.len() as u64 {
        let receipt = world.receipt(index);
        match verify_receipt(&receipt, &key().verifier().into()) {
            Ok(verified) => {
                capsules += 1;
                assert_eq!(verified.index, index);
                assert_eq!(
                    Receipt::from_json(receipt.to_json().as_bytes()),
                    Ok(receipt)
                );
            }
            Err(failure) => assert_eq!(failure.check(), "capsule", "{index}: {failure}"),
        }
    }
    assert_eq!(capsules, 9);
}

#[test]
fn no_byte_of_a_receipt_can_be_changed() {
    let (_, receipt) = certified();
    let json = receipt.to_json().into_bytes();
    for at in 0..json.len() {
        for mask in [0x01, 0x02, 0x10, 0x20, 0x80] {
            let mut changed = json.clone();
            changed[at] ^= mask;
            let outcome = Receipt::from_json(&changed)
                .and_then(|receipt| verify_receipt(&receipt, &key().verifier().into()));
            assert!(
                outcome.is_err(),
                "byte {at}, mask {mask:#x}: {:?}",
                String::from_utf8_lossy(&changed)
            );
        }
    }
}

#[test]
fn the_failing_check_is_named() {
    let (world, receipt) = certified();
    let check = |wanted: &str, receipt: &Receipt, key: &SignerKey| {
        let failure = verify_receipt(receipt, &key.verifier().into()).expect_err(wanted);
        assert_eq!(failure.check(), wanted, "{failure}");
    };
    let other_key = SignerKey::from_seed(ORIGIN, [6; 32]).expect("a valid name");
    check("signature", &receipt, &other_key);

    let elsewhere = SignerKey::from_seed("example.org/other", [5; 32]).expect("a valid name");
    check("signature", &receipt, &elsewhere);
    // The same key under another name, which did sign this text, is still another log.
    let text = world.checkpoint().to_string();
    let renamed = Receipt {
        checkpoint: format!("{text}\n{}\n", elsewhere.sign(&text)),
        ..receipt.clone()
    };
    check("origin", &renamed, &elsewhere);

    let moved = Receipt {
        index: receipt.index + 1,
        ..receipt.clone()
    };
    check("inclusion", &moved, &key());

    let mut shortened = receipt.clone();
    shortened.inclusion.pop();
    check("inclusion", &shortened, &key());

    // A log that signed nonsense: included, but no capsule, or one that contradicts itself.
    let mut entries = world.entries.clone();
    entries[4] = b"{}".to_vec();
    check("capsule", &receipt_of(&entries, 4), &key());
    let mut capsule = evidenceos_kernel::record::Capsule::parse(&receipt.capsule).expect("ours");
    capsule.ledger.threshold.0 -= 1;
    entries[4] = capsule.to_bytes();
    check("arithmetic", &receipt_of(&entries, 4), &key());

    // Without levels, nothing but ⌊log2(1/α)⌋ is released; of a capsule that does not say how many levels there were,
    // a price of exactly c tells the same.
    for says_levels in [true, false] {
        let mut capsule =
            evidenceos_kernel::record::Capsule::parse(&receipt.capsule).expect("ours");
        capsule.e_value_log2 = Some(64);
        capsule.run = capsule.run.filter(|_| says_levels);
        entries[4] = capsule.to_bytes();
        check("arithmetic", &receipt_of(&entries, 4), &key());
    }

    for json in ["", "{}", "[]", "{\"format\":\"evidenceos.receipt.v2\"}"] {
        assert!(
            matches!(Receipt::from_json(json.as_bytes()), Err(Failure::Format(_))),
            "{json}"
        );
    }
    let unknown = receipt
        .to_json()
        .replace("\"index\"", "\"extra\":1,\"index\"");
    assert!(matches!(
        Receipt::from_json(unknown.as_bytes()),
        Err(Failure::Format(_))
    ));
}

#[test]
fn published_receipts_verify_for_ever() {
    let vkey = include_str!("../../../../testdata/verify/log.vkey");
    let key: VerifierKey = vkey.trim().parse().expect("a verifier key");
    let verify = |json: &[u8]| {
        let receipt = Receipt::from_json(json.trim_ascii_end()).expect("a receipt");
        verify_receipt(&receipt, &key.clone().into()).expect("verifies")
    };
    let of_2_1 = verify(include_bytes!("../../../../testdata/verify/receipt.json"));
    assert_eq!((of_2_1.index, of_2_1.capsule.run), (2, None));
    let json = include_bytes!("../../../../testdata/verify/receipt-2.2.json");
    let first = include_bytes!("../../../../testdata/verify/receipt-2.2-first.json");
    for of_2_2 in [verify(json), verify(first)] {
        assert!(of_2_2.index == 2 && of_2_2.capsule.run.is_some());
    }
    assert!(
        golden().to_json().as_bytes() == json.trim_ascii_end(),
        "the receipt that is made now differs from the published one"
    );
}

/// The receipt of this release in `testdata/verify`, made again.
fn golden() -> Receipt {
    let mut world = World::new();
    let budget = evidenceos_kernel::bits::MicroBits::from_bits(32);
    let policy = evidenceos_kernel::holdout::Policy::with_sealed_budget(budget);
    let holdout = world.register(policy, 200, 1);
    let script = Script {
        questions: vec![vector(200, 4)],
        judged: Some(vector(200, 8)),
        ..Script::default()
    };
    let index = world.run(&holdout, owner(1), "golden", &script);
    world.receipt(index)
}

#[test]
#[ignore = "writes testdata/verify; run only to change the format"]
fn write_the_published_receipt() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/verify");
    std::fs::write(dir.join("receipt-2.2.json"), golden().to_json() + "\n").expect("written");
}
