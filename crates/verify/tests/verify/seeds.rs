//! What the fuzz targets of logs, openings, traces, receipts, proofs and notes start from.

use std::{fs, path::Path};

use evidenceos_kernel::{
    bits::MicroBits,
    command::{ClaimCommand, HoldoutCommand},
    decision::{BatchRecorded, DecisionBatch, DecisionId},
    holdout::Policy,
    id::Digest,
    record::Capsule,
};
use evidenceos_tlog::{Note, SignedCheckpoint, SignerKey, TlogProof, cosignature};

use crate::{
    decisions,
    world::{Script, World, checkpoint_of, key, owner, receipt_of, vector},
};

const ITEMS: usize = 60;

#[test]
#[ignore = "writes fuzz/seeds; run only if a format changes"]
fn write_the_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let write = |name: &str, content: &[u8]| {
        let path = seeds.join(name);
        fs::create_dir_all(path.parent().expect("a target")).expect("a directory");
        fs::write(path, content).expect("written");
    };

    let mut world = World::new();
    world.begin_as_now();
    let holdout = world.register(
        Policy::with_sealed_budget(MicroBits::from_bits(32)),
        ITEMS,
        1,
    );
    let asks = Script {
        questions: vec![vector(ITEMS, 4), vector(ITEMS, 6)],
        judged: Some(vector(ITEMS, 30)),
        ..Script::default()
    };
    let asked = world.run(&holdout, owner(1), "asks", &asks);
    let weak = Script {
        judged: Some(vector(ITEMS, 2)),
        ..Script::default()
    };
    world.run(&holdout, owner(2), "weak", &weak);
    let capsule = Capsule::parse(&world.entries[asked as usize]).expect("a capsule");
    world.ask(ClaimCommand::Revoke {
        claim: capsule.claim_id,
        reason: "trained on the wrong year".to_owned(),
    });
    world.ask(HoldoutCommand::Retire {
        holdout: holdout.id,
        reason: "its budget is used up".to_owned(),
    });
    world.ask(HoldoutCommand::Open {
        holdout: holdout.id,
    });
    write("log/opened.jsonl", &world.entries.join(&b'\n'));
    let last = DecisionBatch {
        first: DecisionId(u64::MAX),
        count: 2,
        root: Digest([9; 32]),
    };
    let last = BatchRecorded {
        batch: last,
        recorded_unix_ms: world.now_unix_ms,
    };
    let entries = [world.entries[0].clone(), last.to_bytes()];
    write("log/last_decision.jsonl", &entries.join(&b'\n'));
    write("opening/opened.json", holdout.opening.to_json().as_bytes());
    write("trace/asked.trace", &world.traces[&capsule.claim_id]);
    write("record/capsule.json", &world.entries[asked as usize]);
    write("record/registered.json", &world.entries[1]);

    let receipt = receipt_of(&world.entries, asked);
    write("receipt/claim.json", receipt.to_json().as_bytes());
    let [decision, _] = decisions::receipts(7);
    let decision = serde_json::to_vec(&decision).expect("texts");
    write("receipt/decision.json", &decision);

    let head = checkpoint_of(&world.entries);
    write("note/checkpoint.txt", head.to_string().as_bytes());
    let mut signed = SignedCheckpoint::sign(head.clone(), &key()).expect("its own");
    let witness = SignerKey::from_seed("witness.example.org", [8; 32]).expect("a name");
    let witness_key = cosignature::cosigner(&witness).expect("a name");
    let line = cosignature::cosign(&witness, 1_700_000_000, &head.to_string()).expect("a name");
    signed.add_cosignature(line, &witness_key).expect("its own");
    write("note/cosigned.txt", signed.to_string().as_bytes());
    write("note/witness.vkey", witness_key.to_string().as_bytes());
    let proof = TlogProof {
        extra: Some(b"extra".to_vec()),
        index: receipt.index,
        path: receipt.inclusion,
        checkpoint: Note::parse(signed.to_string().as_bytes()).expect("ours"),
    };
    write("proof/cosigned.tlog-proof", proof.to_string().as_bytes());
}
