//! The split of a holdout and the commitment to it.
//!
//! - tag(unit) = HMAC-SHA-256(secret, "evidenceos/split/v1" ‖ unit u64BE). In ascending order of tag, the first
//!   ⌊share·units⌋ units are the answer part.
//! - salt(i) = HMAC-SHA-256(secret, "evidenceos/salt/v1" ‖ i u64BE).
//! - Leaf i = "evidenceos/label/v1" 0x00 ‖ i u64BE ‖ unit u64BE ‖ part u8 ‖ salt ‖ label u8.
//! - The commitment to the secret = SHA-256("evidenceos:holdout_secret:v1" 0x00 ‖ secret).

use std::collections::BTreeSet;

use evidenceos_kernel::id::Digest;

/// The parts: one byte an item, 1 in the answer part; and the number of units in each part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// One byte an item.
    pub part: Vec<u8>,
    /// Units of the answer part.
    pub answer_units: u64,
    /// Units of the sealed part.
    pub sealed_units: u64,
}

/// Splits the units: those with the smallest keyed hashes form the answer part, the others the
/// sealed part.
#[must_use]
pub fn split(secret: &[u8; 32], units: &[u64], share_micros: u32) -> Parts {
    let distinct: BTreeSet<u64> = units.iter().copied().collect();
    let answer_units = answer_units(distinct.len() as u64, share_micros);
    let tagged: BTreeSet<([u8; 32], u64)> = distinct
        .iter()
        .map(|&unit| (keyed(secret, b"evidenceos/split/v1", unit), unit))
        .collect();
    let answering: BTreeSet<u64> = tagged
        .iter()
        .take(usize::try_from(answer_units).unwrap_or(usize::MAX))
        .map(|&(_, unit)| unit)
        .collect();
    Parts {
        part: units
            .iter()
            .map(|unit| u8::from(answering.contains(unit)))
            .collect(),
        answer_units,
        sealed_units: distinct.len() as u64 - answer_units,
    }
}

/// Units of the answer part: ⌊share·units⌋.
#[must_use]
pub fn answer_units(units: u64, share_micros: u32) -> u64 {
    let chosen = u128::from(units) * u128::from(share_micros.min(1_000_000)) / 1_000_000;
    u64::try_from(chosen).unwrap_or(units)
}

/// The bytes of leaf `index`.
#[must_use]
pub fn leaf(secret: &[u8; 32], index: u64, unit: u64, part: u8, label: u8) -> Vec<u8> {
    let salt = keyed(secret, b"evidenceos/salt/v1", index);
    let mut leaf = b"evidenceos/label/v1\0".to_vec();
    leaf.extend_from_slice(&index.to_be_bytes());
    leaf.extend_from_slice(&unit.to_be_bytes());
    leaf.push(part);
    leaf.extend_from_slice(&salt);
    leaf.push(label);
    leaf
}

/// The public commitment to a secret.
#[must_use]
pub fn secret_commitment(secret: &[u8; 32]) -> Digest {
    Digest::of(&[b"evidenceos:holdout_secret:v1\0".as_slice(), secret].concat())
}

fn keyed(secret: &[u8; 32], domain: &[u8], number: u64) -> [u8; 32] {
    hmac_sha256(secret, &[domain, &number.to_be_bytes()].concat())
}

/// HMAC-SHA-256 as in RFC 2104, for keys of 32 bytes.
fn hmac_sha256(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        // RFC 2104 §2 pads the key with zeros to the block, so the rest of the block is the pad.
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let inner = Digest::of(&[&padded(0x36)[..], message].concat());
    Digest::of(&[&padded(0x5c)[..], &inner.0[..]].concat()).0
}
