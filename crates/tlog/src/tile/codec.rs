//! The bytes of hash tiles and entry bundles.
//!
//! Invariant: decoded bytes encode back to the same bytes.
//!
//! Spec: C2SP tlog-tiles.

use super::{TileError, check_width};
use crate::hash::Hash;

/// The bytes of a tile: its hashes one after the other.
pub fn encode_hashes(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// Reads the bytes of a tile.
///
/// # Errors
/// [`TileError::Ragged`] or [`TileError::Width`] unless there are 1..=256 whole hashes.
pub fn decode_hashes(bytes: &[u8]) -> Result<Vec<Hash>, TileError> {
    let (hashes, rest) = bytes.as_chunks::<{ Hash::LEN }>();
    if !rest.is_empty() {
        return Err(TileError::Ragged { bytes: bytes.len() });
    }
    check_width(hashes.len())?;
    Ok(hashes.iter().copied().map(Hash).collect())
}

/// The bytes of a bundle: for each entry its length as 16 bits, big-endian, then its bytes.
///
/// # Errors
/// [`TileError::EntryTooLong`] if an entry has too many bytes, [`TileError::Width`] if the number
/// of entries is out of range.
pub fn encode_entries<E: AsRef<[u8]>>(entries: &[E]) -> Result<Vec<u8>, TileError> {
    check_width(entries.len())?;
    let mut bytes = Vec::with_capacity(entries.iter().map(|entry| 2 + entry.as_ref().len()).sum());
    for entry in entries.iter().map(AsRef::as_ref) {
        let length = u16::try_from(entry.len())
            .map_err(|_| TileError::EntryTooLong { bytes: entry.len() })?;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(entry);
    }
    Ok(bytes)
}

/// Reads the bytes of a bundle; the entries borrow from it.
///
/// # Errors
/// [`TileError::Truncated`] if it ends inside an entry, [`TileError::Width`] if the number of
/// entries is out of range.
pub fn decode_entries(mut bytes: &[u8]) -> Result<Vec<&[u8]>, TileError> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        // Check before keeping the entry: a hostile bundle of empty entries must not grow the list.
        check_width(entries.len() + 1)?;
        let truncated = TileError::Truncated {
            entry: entries.len(),
        };
        let Some((length, rest)) = bytes.split_first_chunk::<2>() else {
            return Err(truncated);
        };
        let Some((entry, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        else {
            return Err(truncated);
        };
        entries.push(entry);
        bytes = rest;
    }
    check_width(entries.len())?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bundle_that_ends_inside_an_entry_is_refused() {
        for (bytes, error) in [
            (&[][..], TileError::Width { width: 0 }),
            (&[0], TileError::Truncated { entry: 0 }),
            (&[0, 2, 7], TileError::Truncated { entry: 0 }),
            (&[0, 0, 0], TileError::Truncated { entry: 1 }),
            (&[0; 2 * 257], TileError::Width { width: 257 }),
        ] {
            assert_eq!(decode_entries(bytes), Err(error));
        }
        assert_eq!(
            encode_entries(&[vec![0; 65_536]]),
            Err(TileError::EntryTooLong { bytes: 65_536 })
        );
        assert_eq!(
            encode_entries(&[vec![0; 65_535]]).map(|bytes| bytes.len()),
            Ok(65_537)
        );
    }

    #[test]
    fn ragged_or_overfull_tile_is_refused() {
        assert_eq!(
            decode_hashes(&[0; 33]),
            Err(TileError::Ragged { bytes: 33 })
        );
        assert_eq!(decode_hashes(&[]), Err(TileError::Width { width: 0 }));
        assert_eq!(
            decode_hashes(&[0; 32 * 257]),
            Err(TileError::Width { width: 257 })
        );
    }

    proptest! {
        #[test]
        fn bundle_round_trips(entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..20)) {
            let bytes = encode_entries(&entries).expect("short entries");
            prop_assert_eq!(decode_entries(&bytes).expect("own encoding"), entries);
        }
    }
}
