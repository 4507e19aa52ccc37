//! Proofs of the log: `tlog-proof` files, audit paths and consistency proofs.
//!
//! Nobody can guess a hash. After the file, the bytes are therefore also read as a small tree (its size, an index, an
//! older size) and as edits of its true proofs.

use std::convert::Infallible;

use evidenceos_tlog::{
    Hash, TileSource, TlogProof, consistency_proof, leaf_hash,
    small::{path_in, root_of},
    verify_consistency, verify_inclusion,
};

/// Leaves of the largest small tree.
const LEAVES: u8 = 70;

/// A file that parses formats back to the same bytes. Of a small tree, exactly the true proofs hold.
pub fn check(bytes: &[u8]) {
    if let Ok(proof) = TlogProof::parse(bytes) {
        assert_eq!(proof.to_string().as_bytes(), bytes);
        assert!(proof.path.len() <= 64);
    }
    any_sizes(bytes);
    if let Some(([size, index, older], edits)) = bytes.split_first_chunk() {
        let size = usize::from(size % LEAVES) + 1;
        let index = usize::from(*index) % size;
        let older = usize::from(*older) % (size + 1);
        small_tree(size, index, older, edits);
    }
}

/// Sizes up to 2^64 − 1, with hashes out of nowhere.
fn any_sizes(bytes: &[u8]) {
    let Some((head, hashes)) = bytes.split_first_chunk::<16>() else {
        return;
    };
    let (first, second) = head.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let (first, second) = (number(first), number(second));
    let (hashes, _) = hashes.as_chunks::<32>();
    let hashes: Vec<Hash> = hashes.iter().copied().map(Hash).collect();
    let [leaf, root] = [leaf_hash(b"leaf"), leaf_hash(b"root")];
    if verify_inclusion(leaf, first, second, &hashes, leaf).is_ok() {
        assert!((first, second) == (0, 1) && hashes.is_empty());
    }
    if verify_consistency(first, second, &hashes, leaf, root).is_ok() {
        panic!("{first} entries are not the beginning of {second}");
    }
}

fn small_tree(size: usize, index: usize, older: usize, edits: &[u8]) {
    let leaves: Vec<Hash> = (0..size).map(|i| leaf_hash(&[i as u8])).collect();
    let root = root_of(&leaves);
    let path = path_in(&leaves, index).expect("it is in");
    let claimed = edited(&path, edits);
    let holds = verify_inclusion(leaves[index], index as u64, size as u64, &claimed, root).is_ok();
    assert_eq!(holds, claimed == path, "{index} of {size}");

    let tiles = OneTile(&leaves);
    let proof = consistency_proof(tiles, older as u64, size as u64).expect("at hand");
    let claimed = edited(&proof, edits);
    let old_root = root_of(&leaves[..older]);
    let holds = verify_consistency(older as u64, size as u64, &claimed, old_root, root).is_ok();
    assert_eq!(holds, claimed == proof, "{older} of {size}");
}

/// The proof after each pair of bytes has changed it: what to do, and where.
fn edited(proof: &[Hash], edits: &[u8]) -> Vec<Hash> {
    let mut proof = proof.to_vec();
    for pair in edits.as_chunks::<2>().0.iter().take(8) {
        let [what, place] = pair.map(usize::from);
        let at = place % proof.len().max(1);
        match what % 5 {
            0 if !proof.is_empty() => proof[at].0[what / 5 % 32] ^= 1 << (place % 8),
            1 if !proof.is_empty() => drop(proof.remove(at)),
            2 if !proof.is_empty() => proof.insert(at, proof[at]),
            3 if !proof.is_empty() => proof.swap(0, at),
            _ => proof.push(leaf_hash(&[place as u8])),
        }
    }
    proof
}

/// The tiles of a tree that fills no tile.
#[derive(Clone, Copy)]
struct OneTile<'l>(&'l [Hash]);

impl TileSource for OneTile<'_> {
    type Error = Infallible;

    fn tile(&self, level: u8, index: u64, _: u16) -> Result<Vec<Hash>, Infallible> {
        assert_eq!((level, index), (0, 0), "no other tile has hashes");
        Ok(self.0.to_vec())
    }
}
