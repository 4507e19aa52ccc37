//! Vectors of independent origin, see `testdata/tlog/README.md`: what Go's checksum-database code and Tessera have
//! computed must come out here, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use evidenceos_tlog::note::{self, Note};
use evidenceos_tlog::tile::{
    decode_entries, decode_hashes, encode_hashes, tiles_between, tiles_for_size,
};
use evidenceos_tlog::{
    BundleId, Hash, SignedCheckpoint, SignerKey, TileId, TileSource, Tree, VerifierKey,
    consistency_proof, cosignature, inclusion_proof, leaf_hash, root_at, verify_consistency,
    verify_inclusion,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn testdata(file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/tlog")
        .join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn go() -> Value {
    serde_json::from_slice(&testdata("go_xmod.json")).expect("JSON")
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn hashes(value: &Value) -> Vec<Hash> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .map(|hex| text(hex).parse().expect("a hash"))
        .collect()
}

fn seed(value: &Value) -> [u8; 32] {
    text(value).parse::<Hash>().expect("32 bytes").0
}

fn go_leaf(index: u64) -> Hash {
    leaf_hash(format!("leaf {index}").as_bytes())
}

struct Tiles(BTreeMap<(u8, u64), Vec<Hash>>);

impl Tiles {
    fn of_leaves(count: u64) -> Self {
        let mut tree = Tree::new();
        (0..count).for_each(|index| _ = tree.append(go_leaf(index)));
        let all = tree
            .take_full_tiles()
            .into_iter()
            .chain(tree.partial_tiles());
        Self(
            all.map(|tile| {
                (
                    (tile.id().level(), tile.id().index()),
                    tile.hashes().to_vec(),
                )
            })
            .collect(),
        )
    }
}

impl TileSource for Tiles {
    type Error = String;

    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, String> {
        self.0
            .get(&(level, index))
            .cloned()
            .ok_or_else(|| format!("no tile {level}/{index} of {width}"))
    }
}

#[test]
fn roots_of_sizes_0_to_300_are_those_of_go() {
    let roots = hashes(&go()["roots_0_to_300"]);
    assert_eq!(roots.len(), 301);
    let mut tree = Tree::new();
    for (size, root) in roots.iter().enumerate() {
        assert_eq!(tree.root(), *root, "{size}");
        tree.append(go_leaf(size as u64));
    }
}

#[test]
fn proofs_are_those_of_go_and_verify() {
    let go = go();
    let tiles = Tiles::of_leaves(number(&go["large_size"]));
    assert_eq!(
        root_at(&tiles, 70_000).expect("at hand"),
        text(&go["large_root"]).parse().expect("a hash")
    );
    for vector in go["inclusion"].as_array().expect("a list") {
        let (index, size, proof) = (
            number(&vector["index"]),
            number(&vector["size"]),
            hashes(&vector["proof"]),
        );
        assert_eq!(
            inclusion_proof(&tiles, index, size).as_ref(),
            Ok(&proof),
            "{index} {size}"
        );
        let root = root_at(&tiles, size).expect("at hand");
        assert_eq!(
            verify_inclusion(go_leaf(index), index, size, &proof, root),
            Ok(()),
            "{index} {size}"
        );
    }
    for vector in go["consistency"].as_array().expect("a list") {
        let (first, second, proof) = (
            number(&vector["first"]),
            number(&vector["second"]),
            hashes(&vector["proof"]),
        );
        assert_eq!(
            consistency_proof(&tiles, first, second).as_ref(),
            Ok(&proof),
            "{first} {second}"
        );
        let [old, new] = [first, second].map(|size| root_at(&tiles, size).expect("at hand"));
        assert_eq!(
            verify_consistency(first, second, &proof, old, new),
            Ok(()),
            "{first} {second}"
        );
    }
}

#[test]
fn tiles_have_the_paths_and_bytes_of_go() {
    let go = go();
    let tiles = Tiles::of_leaves(70_000);
    let all: Vec<TileId> = tiles_between(0, 70_000).collect();
    for vector in go["tiles_of_large"].as_array().expect("a list") {
        let id: TileId = text(&vector["path"]).parse().expect("a path");
        assert!(all.contains(&id), "{id}");
        let bytes = encode_hashes(
            &tiles
                .tile(id.level(), id.index(), id.width())
                .expect("at hand"),
        );
        assert_eq!(bytes.len() as u64, number(&vector["bytes"]), "{id}");
        let digest = Hash(Sha256::digest(&bytes).into());
        assert_eq!(digest.to_hex(), text(&vector["sha256"]), "{id}");
    }
}

#[test]
fn checkpoint_signed_by_go_is_the_one_signed_here() {
    let go = go();
    let signed = text(&go["signed_checkpoint"]);
    let log: VerifierKey = text(&go["log_vkey"]).parse().expect("a key");
    let opened = SignedCheckpoint::open(signed.as_bytes(), &log, &[]).expect("signed by the log");
    assert_eq!(
        (opened.checkpoint().origin(), opened.checkpoint().size()),
        (log.name(), 70_000)
    );
    assert_eq!(opened.checkpoint().root().to_hex(), text(&go["large_root"]));

    let signer = SignerKey::from_seed(log.name(), seed(&go["log_seed"])).expect("a valid name");
    assert_eq!(signer.verifier(), log);
    let ours = SignedCheckpoint::sign(opened.checkpoint().clone(), &signer).expect("its own key");
    assert_eq!(ours.to_string(), signed);
}

#[test]
fn cosignature_that_the_reference_accepts_is_the_one_made_here() {
    let go = go();
    let cosigned = text(&go["cosigned_checkpoint"]);
    let log: VerifierKey = text(&go["log_vkey"]).parse().expect("a key");
    let witness: VerifierKey = text(&go["witness_vkey"]).parse().expect("a key");
    let time_unix_s = number(&go["cosigned_at_unix_s"]);
    let opened = SignedCheckpoint::open(cosigned.as_bytes(), &log, std::slice::from_ref(&witness))
        .expect("both");
    let times: Vec<_> = opened
        .cosignatures()
        .iter()
        .map(|cosignature| cosignature.time_unix_s)
        .collect();
    assert_eq!(times, [Some(time_unix_s)]);

    let signer =
        SignerKey::from_seed(witness.name(), seed(&go["witness_seed"])).expect("a valid name");
    let line =
        cosignature::cosign(&signer, time_unix_s, opened.note().text()).expect("a valid key");
    let mut ours = SignedCheckpoint::open(text(&go["signed_checkpoint"]).as_bytes(), &log, &[])
        .expect("signed by the log");
    ours.add_cosignature(line, &witness).expect("verifies");
    assert_eq!(ours.to_string(), cosigned);
}

#[test]
fn published_note_opens() {
    let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
        .parse()
        .expect("a key");
    let note = "If you think cryptography is the answer to your problem,\n\
                then you don't know what your problem is.\n\n\
                — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    assert_eq!(
        note::open(note.as_bytes(), &[key]).map(|opened| opened.verified.len()),
        Ok(1)
    );
}

#[test]
fn tessera_log_is_read_from_bundle_to_checkpoint() {
    let log: VerifierKey =
        "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"
            .parse()
            .expect("a key");
    let (id, bundle): (TileId, BundleId) = (
        "tile/0/000.p/15".parse().expect("a path"),
        "tile/entries/000.p/15".parse().expect("a path"),
    );
    assert_eq!((tiles_for_size(15), id.bundle()), (vec![id], Some(bundle)));

    let tile = decode_hashes(&testdata("tessera/tile-0-000.p-15")).expect("a tile");
    let entries = testdata("tessera/tile-entries-000.p-15");
    let leaves: Vec<Hash> = decode_entries(&entries)
        .expect("a bundle")
        .into_iter()
        .map(leaf_hash)
        .collect();
    assert_eq!(leaves, tile);

    let tiles = Tiles(BTreeMap::from([((0, 0), tile)]));
    let mut old: Option<(u64, Hash)> = None;
    for size in 0..=15u64 {
        let bytes = testdata(&format!("tessera/checkpoint.{size}"));
        let signed = SignedCheckpoint::open(&bytes, &log, &[]).expect("signed by the log");
        assert_eq!(signed.to_string().as_bytes(), bytes);
        assert_eq!(Note::parse(&bytes).as_ref(), Ok(signed.note()));
        let root = signed.checkpoint().root();
        assert_eq!(
            (signed.checkpoint().size(), root),
            (size, root_at(&tiles, size).expect("at hand"))
        );
        for index in 0..size {
            let proof = inclusion_proof(&tiles, index, size).expect("at hand");
            assert_eq!(
                verify_inclusion(leaves[index as usize], index, size, &proof, root),
                Ok(()),
                "{index} {size}"
            );
        }
        if let Some((first, old_root)) = old {
            let proof = consistency_proof(&tiles, first, size).expect("at hand");
            assert_eq!(
                verify_consistency(first, size, &proof, old_root, root),
                Ok(()),
                "{first} {size}"
            );
        }
        old = Some((size, root));
    }
}
