//! Every seed of the fuzz targets passes its target, without a fuzzer.

use std::{collections::BTreeSet, fs, path::PathBuf};

use evidenceos_proto::{self as wire, put_holdout_request::Part};
use evidenceos_sandbox::{Mode, PackOptions, pack};
use prost::Message;
use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject as _};

use crate::{
    fuzz_targets::TARGETS,
    harness::terms,
    pki::{Ask, Ca, client},
};

fn fuzz(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../fuzz", path]
        .iter()
        .collect()
}

/// The names of what is in a directory, without what follows a dot.
fn names(path: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(fuzz(path)).expect("a directory");
    let names = entries.map(|entry| {
        let path = entry.expect("readable").path();
        let name = path.file_stem().expect("a name");
        name.to_str().expect("ASCII").to_owned()
    });
    names.collect()
}

#[test]
fn each_target_is_a_program_with_seeds() {
    let targets: BTreeSet<String> = TARGETS.map(|(name, _)| name.to_owned()).into();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("seeds"), targets);
    let manifest = fs::read_to_string(fuzz("Cargo.toml")).expect("readable");
    for target in targets {
        let program = format!("[[bin]]\nname = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"");
        assert!(manifest.contains(&program), "{target}");
    }
}

#[test]
fn every_seed_passes_its_target() {
    for (target, check) in TARGETS {
        let seeds = fs::read_dir(fuzz("seeds").join(target)).expect("seeds");
        let mut count = 0;
        for seed in seeds {
            let path = seed.expect("readable").path();
            check(&fs::read(&path).expect("readable"));
            count += 1;
        }
        assert!(count > 0, "{target} has no seed");
    }
}

#[test]
#[ignore = "writes fuzz/seeds; run only if a format changes"]
fn write_the_seeds() {
    write_modules();
    write_requests();
    write_registration();
    write_certificates();
}

fn write(name: &str, content: &[u8]) {
    let path = fuzz("seeds").join(name);
    fs::create_dir_all(path.parent().expect("a target")).expect("a directory");
    fs::write(path, content).expect("written");
}

fn write_modules() {
    for name in ["hill_climb", "memory_bomb", "nan", "published_abi"] {
        let path = format!("../testdata/guests/{name}.wat");
        let text = fs::read_to_string(fuzz(&path)).expect("readable");
        write(
            &format!("module/{name}.wasm"),
            &wat::parse_str(text).expect("WAT"),
        );
    }
    let packed = pack(&PackOptions::new(&[1, 0, 1, 1], Mode::Judge)).expect("packs");
    write("module/packed.wasm", &packed);
    let policy = r#"(module (memory (export "memory") 1 2)
        (global $next (mut i32) (i32.const 0))
        (func (export "alloc") (param i32) (result i32) (global.get $next))
        (func (export "policy_oracle_decide") (param i32 i32) (result i32) (i32.const 0)))"#;
    write("module/policy.wasm", &wat::parse_str(policy).expect("WAT"));
}

fn write_requests() {
    let mut claim = terms("a claim", "holdout/default");
    claim.signals = Some(wire::TopicSignalsV2 {
        semantic_hash: vec![1; 32].into(),
        ..Default::default()
    });
    claim.max_answer_microbits = Some(1_000_000);
    write("request/create_claim_v2", &claim.encode_to_vec());
    let older = wire::CreateClaimRequest {
        topic_id: vec![1; 32].into(),
        holdout_handle_id: vec![2; 32].into(),
        phys_hir_hash: vec![3; 32].into(),
        alpha: 0.05,
        oracle_num_symbols: 2,
        ..Default::default()
    };
    write("request/create_claim", &older.encode_to_vec());
    let commit = wire::CommitArtifactsRequest {
        claim_id: vec![4; 32].into(),
        artifacts: vec![wire::Artifact {
            kind: "dependency_capsule".to_owned(),
            artifact_hash: vec![5; 32].into(),
            ..Default::default()
        }],
        wasm_module: b"\0asm\x01\0\0\0".to_vec().into(),
    };
    write("request/commit_artifacts", &commit.encode_to_vec());
    let budgets = wire::SetHoldoutPoolBudgetsRequest {
        holdout_id: "11".repeat(32),
        scope: "both".to_owned(),
        new_k_bits_budget: Some(12.5),
        ..Default::default()
    };
    write("request/set_budgets", &budgets.encode_to_vec());
    // A field that no message has, as a group with a number in it.
    let group = [&[0x7b, 0x08, 1, 0x7c][..], &commit.encode_to_vec()].concat();
    write("request/group", &group);
    let many = wire::CommitArtifactsRequest {
        artifacts: vec![wire::Artifact::default(); 1_100],
        ..Default::default()
    };
    let hidden = [&[0x7b, 0x7c][..], &many.encode_to_vec()].concat();
    write("request/fields_after_a_group", &hidden);
}

fn write_registration() {
    let header = wire::PutHoldoutHeader {
        holdout_ref: "holdout/default".to_owned(),
        items: 24,
        policy: Some(wire::HoldoutPolicy {
            alpha_micros: Some(50_000),
            levels: 2,
            ..Default::default()
        }),
        null_spec: Some(wire::NullSpec {
            p0_micros: 500_000,
            ..Default::default()
        }),
        has_units: true,
        fresh_items: true,
        ..Default::default()
    };
    let chunk = wire::PutHoldoutChunk {
        labels: (0..24).map(|item| item % 2).collect::<Vec<u8>>().into(),
        units: (0..24).map(|item| item / 2).collect(),
        ..Default::default()
    };
    let mut body = Vec::new();
    for part in [Part::Header(header), Part::Chunk(chunk)] {
        let message = wire::PutHoldoutRequest { part: Some(part) }.encode_to_vec();
        body.push(0);
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
    }
    write("registration/body", &body);
}

fn write_certificates() {
    let authority = Ca::new("authority of the seeds");
    write("certificate/authority.der", &authority.der);
    let submitter = authority.issue(&client("spiffe://lab/submitter"));
    write("certificate/submitter.der", &submitter.der());
    let dns = authority.issue(&Ask {
        uris: vec![],
        dns: vec!["runner.example", "other.example"],
        ..client("")
    });
    write("certificate/dns.der", &dns.der());
    let nameless = authority.issue(&Ask {
        uris: vec![],
        usages: vec![],
        ..client("")
    });
    write("certificate/nameless.der", &nameless.der());

    let list = authority.crl(&[&submitter, &dns], 2_999);
    write("crl/revoked.pem", list.as_bytes());
    let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).expect("PEM");
    write("crl/revoked.der", &der);
    let two = [
        authority.crl(&[], 2_999),
        Ca::new("another").crl(&[], 2_030),
    ]
    .concat();
    write("crl/two.pem", two.as_bytes());
}
