//! The split of a holdout into its answer part and its sealed part, and the commitment to both.
//!
//! Owns the split by the holdout's secret, the per-item salts, the preimages of the commitment's leaves and the
//! commitment to the secret. Does not own the Merkle tree over those leaves, or the creation and storage of secrets.
//!
//! Invariant: the split is a function of (secret, units, share) alone, moves whole units, and looks at no label.
//! Everything keyed is HMAC-SHA-256 (RFC 2104) under the holdout's 32-byte secret, each use with its own prefix.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};

/// Millionths in a whole share.
pub const SHARE_WHOLE_MICROS: u32 = 1_000_000;

/// Length in bytes of a commitment leaf's preimage.
pub const LEAF_LEN: usize = LABEL_DOMAIN.len() + 8 + 8 + 1 + 32 + 1;

const SPLIT_DOMAIN: &[u8] = b"evidenceos/split/v1";
const SALT_DOMAIN: &[u8] = b"evidenceos/salt/v1";
const LABEL_DOMAIN: &[u8] = b"evidenceos/label/v1\0";
const SECRET_DOMAIN: &[u8] = b"evidenceos:holdout_secret:v1";

/// The two parts of a holdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// One byte an item: 1 in the answer part, 0 in the sealed part.
    pub part_mask: Vec<u8>,
    /// Items in the answer part.
    pub answer_items: u64,
    /// Items in the sealed part.
    pub sealed_items: u64,
    /// Units in the answer part.
    pub answer_units: u64,
    /// Units in the sealed part.
    pub sealed_units: u64,
}

/// The number of units that answer questions: ⌊share · units⌋, so that a fraction of a unit stays sealed.
///
/// A share of more than [`SHARE_WHOLE_MICROS`] counts as the whole.
#[must_use]
pub fn answer_units(units: u64, answer_share_micros: u32) -> u64 {
    let share = u128::from(answer_share_micros.min(SHARE_WHOLE_MICROS));
    // The result is at most `units`, so it fits in 64 bits.
    (u128::from(units) * share / u128::from(SHARE_WHOLE_MICROS)) as u64
}

/// Splits a holdout: sorts its distinct units by their tags and takes the first ⌊share · units⌋ as
/// the answer part ([`answer_units`]). `units` names the unit of every item.
#[must_use]
pub fn split(secret: &[u8; 32], units: &[u64], answer_share_micros: u32) -> Split {
    let mut distinct = units.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let total = distinct.len();
    let chosen = answer_units(total as u64, answer_share_micros) as usize;

    // Submitters may know the units, but without the secret they cannot tell which are sealed.
    let mac = keyed(secret);
    let mut tagged: Vec<([u8; 32], u64)> = distinct
        .into_iter()
        .map(|unit| (tag(&mac, SPLIT_DOMAIN, unit), unit))
        .collect();
    // Only membership matters, not the order within a part.
    if chosen > 0 && chosen < total {
        tagged.select_nth_unstable(chosen);
    }
    let mut answering: Vec<u64> = tagged[..chosen].iter().map(|&(_, unit)| unit).collect();
    answering.sort_unstable();

    let part_mask: Vec<u8> = units
        .iter()
        .map(|unit| u8::from(answering.binary_search(unit).is_ok()))
        .collect();
    let answer_items = part_mask.iter().map(|&part| u64::from(part)).sum();
    Split {
        answer_items,
        sealed_items: units.len() as u64 - answer_items,
        answer_units: chosen as u64,
        sealed_units: (total - chosen) as u64,
        part_mask,
    }
}

/// The salts of a holdout's items: HMAC-SHA-256(secret, "evidenceos/salt/v1" ‖ i u64BE).
///
/// Holds the keyed state, so that a million salts cost a million short hashes.
pub struct Salts(Hmac<Sha256>);

impl Salts {
    /// The salts under this secret.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(keyed(secret))
    }

    /// The salt of item `index`, counted from 0 in the order of registration.
    #[must_use]
    pub fn salt(&self, index: u64) -> [u8; 32] {
        tag(&self.0, SALT_DOMAIN, index)
    }
}

/// One salt; for many, keep a [`Salts`].
#[must_use]
pub fn salt(secret: &[u8; 32], index: u64) -> [u8; 32] {
    Salts::new(secret).salt(index)
}

/// The preimage of the commitment's leaf `index`: `"evidenceos/label/v1" 0x00 ‖ index u64BE ‖ unit
/// u64BE ‖ part u8 ‖ salt ‖ label u8`.
///
/// `part` is the item's mask byte: 1 answer, 0 sealed.
#[must_use]
pub fn commitment_leaf_bytes(
    index: u64,
    unit: u64,
    part: u8,
    salt: &[u8; 32],
    label: u8,
) -> [u8; LEAF_LEN] {
    let mut leaf = [0; LEAF_LEN];
    let mut rest = leaf.as_mut_slice();
    for field in [
        LABEL_DOMAIN,
        &index.to_be_bytes(),
        &unit.to_be_bytes(),
        &[part],
        salt,
        &[label],
    ] {
        let (place, after) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = after;
    }
    leaf
}

/// The public commitment to the secret: SHA-256("evidenceos:holdout_secret:v1" ‖ 0x00 ‖ secret).
#[must_use]
pub fn secret_commitment(secret: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(SECRET_DOMAIN);
    hash.update([0]);
    hash.update(secret);
    hash.finalize().into()
}

fn keyed(secret: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret).expect("HMAC takes keys of any length")
}

fn tag(mac: &Hmac<Sha256>, domain: &[u8], number: u64) -> [u8; 32] {
    let mut mac = mac.clone();
    mac.update(domain);
    mac.update(&number.to_be_bytes());
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    #[test]
    fn the_share_is_rounded_down_to_whole_units() {
        let check = |items: u64, share_micros, answer_items| {
            let units: Vec<u64> = (0..items).collect();
            let split = split(&SECRET, &units, share_micros);
            assert_eq!(split.answer_items, answer_items);
            assert_eq!(split.answer_units, answer_items);
            assert_eq!(split.sealed_items, items - answer_items);
            assert_eq!(split.part_mask.len() as u64, items);
        };
        check(0, 200_000, 0);
        check(4, 200_000, 0);
        check(5, 200_000, 1);
        check(999, 200_000, 199);
        check(10, 0, 0);
        check(10, 1_000_000, 10);
        check(10, u32::MAX, 10);
    }

    #[test]
    fn items_of_one_unit_stay_together() {
        let units: Vec<u64> = (0..1_000).map(|i| i % 40).collect();
        let split = split(&SECRET, &units, 250_000);
        assert_eq!((split.answer_units, split.sealed_units), (10, 30));
        assert_eq!((split.answer_items, split.sealed_items), (250, 750));
        for (i, &unit) in units.iter().enumerate() {
            assert_eq!(split.part_mask[i], split.part_mask[unit as usize]);
        }
    }

    #[test]
    fn the_answer_part_holds_the_least_tags() {
        let units: Vec<u64> = (0..100).rev().collect();
        let split = split(&SECRET, &units, 300_000);
        let mac = keyed(&SECRET);
        let part_tags = |part| {
            let members = units.iter().zip(&split.part_mask);
            members
                .filter(move |&(_, &p)| p == part)
                .map(|(&unit, _)| tag(&mac, SPLIT_DOMAIN, unit))
                .collect::<Vec<_>>()
        };
        assert!(part_tags(1).iter().max() < part_tags(0).iter().min());
    }

    #[test]
    fn another_secret_makes_another_split() {
        let units: Vec<u64> = (0..100).collect();
        let one = split(&SECRET, &units, 500_000);
        assert_eq!(one, split(&SECRET, &units, 500_000));
        assert_ne!(one.part_mask, split(&[8; 32], &units, 500_000).part_mask);
    }

    #[test]
    fn leaves_salts_and_commitment_have_the_published_bytes() {
        // Origin: Python's hmac and hashlib over the layouts above, with the secret 0x07 thirty-two times.
        let salt = salt(&SECRET, 3);
        assert_eq!(
            hex::encode(salt),
            "579e1249802b6c6be5bc4c87775bccecdbee18b56ff9c80c5281d62cc7f22fcd"
        );
        assert_eq!(
            hex::encode(secret_commitment(&SECRET)),
            "4300eb089babef512f7b482aaceab2e256c4bd4e72e5f9fce1b833f5bf2553e2"
        );
        let leaf = commitment_leaf_bytes(3, 9, 1, &salt, 1);
        assert_eq!(
            hex::encode(Sha256::digest(leaf)),
            "95da0af47f1c2b147b4ed8692694836c6733c17bea5905264060d922b3d0d516"
        );
    }
}
