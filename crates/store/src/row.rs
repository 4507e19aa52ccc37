//! The bytes of a row: an 8-byte checksum and the postcard encoding of the value.
//!
//! SQLite has no page checksums: a bit flipped in a payload passes its own check. So each row carries the first 8
//! bytes of the SHA-256 of its bytes, checked at every read; a row that does not match is never served and never
//! repaired.
//!
//! A type grows only at its end. A row older than the last fields of its type ends early; the missing fields are read
//! as zero, `None` or empty, which is how postcard reads zero bytes. For the same reason a row may end in zeros that
//! its value does not need.

use evidenceos_kernel::holdout::{Holdout, Later};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::StoreError;

/// Length of a row's checksum.
pub const CHECK_LEN: usize = 8;
/// Room for fields that were added after a row was written.
const LATER_FIELDS: usize = 256;
/// A growing row's length is a multiple of this, in bytes: a claim with usual terms fits one multiple through all its
/// steps.
const GROWING: usize = 576;

/// The bytes of a value.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    seal(unsealed(value))
}

/// The same with zeros after it, so that a value that grows keeps one row length. SQLite overwrites such a row in
/// place; a longer one moves its page's other rows, and often neighbouring pages.
pub fn encode_growing<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = unsealed(value);
    bytes.resize(bytes.len().next_multiple_of(GROWING), 0);
    seal(bytes)
}

/// The value, preceded by room for its checksum.
fn unsealed<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![0; CHECK_LEN])
        .unwrap_or_else(|error| unreachable!("a value of ours encodes into memory: {error}"))
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let check = Sha256::digest(&bytes[CHECK_LEN..]);
    bytes[..CHECK_LEN].copy_from_slice(&check[..CHECK_LEN]);
    bytes
}

/// The checksum that a row carries, not compared with its bytes; `None` if the row is too short.
#[must_use]
pub fn check_of(bytes: &[u8]) -> Option<[u8; CHECK_LEN]> {
    bytes.first_chunk().copied()
}

/// The value in bytes that [`encode`] made.
///
/// # Errors
/// [`StoreError::Damaged`] with the given table and key.
pub fn decode<T: DeserializeOwned>(
    table: &'static str,
    key: impl ToString,
    bytes: &[u8],
) -> Result<T, StoreError> {
    let damaged = |what| StoreError::Damaged {
        table,
        key: key.to_string(),
        what,
    };
    let (check, value) = bytes
        .split_at_checked(CHECK_LEN)
        .ok_or_else(|| damaged("too short"))?;
    if Sha256::digest(value)[..CHECK_LEN] != *check {
        return Err(damaged("its checksum does not match"));
    }
    postcard::from_bytes(value)
        .or_else(|error| match error {
            postcard::Error::DeserializeUnexpectedEnd => {
                postcard::from_bytes(&[value, &[0; LATER_FIELDS]].concat())
            }
            other => Err(other),
        })
        .map_err(|_| damaged("it does not decode"))
}

/// The bytes of a holdout's row: the holdout as the first release stored it, and after it the later
/// fields of its policy, its description and its runs.
pub fn encode_holdout(holdout: &Holdout) -> Vec<u8> {
    encode(&(holdout, holdout.later()))
}

/// The holdout in bytes that [`encode_holdout`] made, or an earlier release.
///
/// # Errors
/// As [`decode`].
pub fn decode_holdout(key: impl ToString, bytes: &[u8]) -> Result<Holdout, StoreError> {
    let (holdout, later): (Holdout, Later) = decode("holdouts", key, bytes)?;
    Ok(holdout.with_later(later))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_from_before_a_field_was_added_reads_it_as_nothing() {
        let before = encode(&(7u64, vec![1u8, 2]));
        type Now = (u64, Vec<u8>, Option<String>, u128, [Option<u8>; 2], Vec<u8>);
        let now: Now = decode("t", 1, &before).expect("a row of before");
        assert_eq!(now, (7, vec![1, 2], None, 0, [None, None], vec![]));
    }

    #[test]
    fn a_row_that_grows_keeps_its_length_and_its_value() {
        let mut lengths = Vec::new();
        for length in 0..2 * GROWING {
            let value = (u64::MAX, vec![7u8; length]);
            let row = encode_growing(&value);
            let read: (u64, Vec<u8>) = decode("t", 1, &row).expect("it is whole");
            assert_eq!(read, value);
            // Later fields are read from the zeros as empty.
            type Later = (u64, Vec<u8>, Option<u8>, String);
            let later: Later = decode("t", 1, &row).expect("a row of before");
            assert_eq!((later.2, later.3), (None, String::new()));
            lengths.push(row.len());
        }
        lengths.dedup();
        assert_eq!(lengths, [GROWING, 2 * GROWING, 3 * GROWING]);
        let mut flipped = encode_growing(&7u64);
        *flipped.last_mut().expect("not empty") = 1;
        assert!(
            decode::<u64>("t", 1, &flipped).is_err(),
            "zeros are checked"
        );
    }

    #[test]
    fn reasons_from_before_there_were_policies_read_as_they_were() {
        use evidenceos_kernel::claim::{PolicyCode, Reason};
        let table = [
            (vec![0], Some(Reason::Approved)),
            (vec![1], Some(Reason::Rejected)),
            (vec![16], Some(Reason::Aborted)),
            (
                vec![18, 0xa9, 0x46],
                PolicyCode::new(9_001).map(Reason::Policy),
            ),
            // 8999 is not a policy module's code.
            (vec![18, 0xa7, 0x46], None),
        ];
        for (bytes, reason) in table {
            let row = seal([vec![0; CHECK_LEN], bytes].concat());
            assert_eq!(decode::<Reason>("t", 1, &row).ok(), reason);
            if let Some(reason) = reason {
                assert_eq!(encode(&reason), row);
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let bytes = encode(&(7u64, "text".to_owned()));
        let (number, text): (u64, String) = decode("t", 1, &bytes).expect("intact");
        assert_eq!((number, text.as_str()), (7, "text"));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                decode::<(u64, String)>("t", 1, &flipped).is_err(),
                "bit {bit}"
            );
        }
    }
}
