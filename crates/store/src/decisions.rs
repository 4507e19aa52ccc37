//! Records of decisions about tool calls: one row per batch, keyed by its first decision.
//!
//! The numbers in a batch are consecutive, and batches follow one another, so the last row that begins at or before a
//! decision has it. A row needs no checksum of its own: the log's entry has the root over its records, and every
//! reader compares.
//!
//! Layout of `records`, for each: its length as u16 big-endian, then its fields, which take a third of the canonical
//! bytes; the canonical bytes are made again from them.

use evidenceos_kernel::{
    decision::{BatchRecorded, DecisionId, DecisionRecord},
    id::OwnerTag,
};
use evidenceos_tlog::{Hash, leaf_hash, small::root_of};

use crate::StoreError;

/// The bytes in which a row keeps records.
#[must_use]
pub fn pack<'r>(records: impl IntoIterator<Item = &'r DecisionRecord>) -> Vec<u8> {
    let mut packed = Vec::new();
    for record in records {
        let at = packed.len();
        packed.extend_from_slice(&[0; 2]);
        packed = postcard::to_extend(record, packed)
            .unwrap_or_else(|error| unreachable!("a record is plain data: {error}"));
        let len = u16::try_from(packed.len() - at - 2)
            .unwrap_or_else(|_| unreachable!("a record is bounded by its fields"));
        packed[at..at + 2].copy_from_slice(&len.to_be_bytes());
    }
    packed
}

/// The records of a row; `None` if it ends in the middle of one.
fn unpack(mut packed: &[u8]) -> Option<Vec<&[u8]>> {
    let mut records = Vec::new();
    while let Some((len, rest)) = packed.split_first_chunk::<2>() {
        let (record, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        records.push(record);
        packed = rest;
    }
    packed.is_empty().then_some(records)
}

/// The canonical bytes of a record, made from its stored form.
fn canonical(kept: &[u8]) -> Option<Vec<u8>> {
    if is_canonical(kept) {
        return Some(kept.to_vec());
    }
    let record: DecisionRecord = postcard::from_bytes(kept).ok()?;
    Some(record.to_bytes())
}

/// Earlier builds kept the canonical bytes. A record's first field is a number above 127.
fn is_canonical(kept: &[u8]) -> bool {
    kept.first() == Some(&b'{')
}

/// The owner of a record in its stored form.
fn owner_of(kept: &[u8]) -> Option<OwnerTag> {
    let record = if is_canonical(kept) {
        DecisionRecord::parse(kept).ok()?
    } else {
        postcard::from_bytes(kept).ok()?
    };
    Some(record.owner)
}

/// A decision, and its batch in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDecision {
    /// The record's canonical JSON, the bytes that its leaf hashes.
    pub record: Vec<u8>,
    /// Its place in the batch, from 0.
    pub position: u32,
    /// The leaves of the batch.
    pub leaves: Vec<Hash>,
    /// The index of the batch's entry.
    pub index: u64,
    /// The canonical bytes of the batch's log entry.
    pub entry: Vec<u8>,
}

/// A row of records, as stored.
pub(crate) struct KeptDecisions<'r> {
    /// The number of its first decision.
    pub(crate) first: u64,
    /// Its entry in the log, from 0.
    pub(crate) index: u64,
    pub(crate) records: &'r [u8],
}

/// Finds a decision by number, of one owner or of any, in the last row that begins at or before it; `None` if it was
/// never recorded, or its record was deleted. The owner is compared before anything is verified, so a decision of
/// another owner takes no longer than a number that was never given. `entry` reads the row's entry in the log.
pub(crate) fn find(
    row: &KeptDecisions<'_>,
    id: DecisionId,
    owner: Option<OwnerTag>,
    entry: impl FnOnce() -> Result<Option<Vec<u8>>, StoreError>,
) -> Result<Option<FoundDecision>, StoreError> {
    let damaged = |what| StoreError::Damaged {
        table: "decisions",
        key: DecisionId(row.first).to_string(),
        what,
    };
    let unpacked = unpack(row.records).ok_or_else(|| damaged(BROKEN_OFF))?;
    let position = usize::try_from(id.0.saturating_sub(row.first)).unwrap_or(usize::MAX);
    let Some(kept) = unpacked.get(position) else {
        return Ok(None);
    };
    let of = owner_of(kept).ok_or_else(|| damaged(NO_RECORD))?;
    if owner.is_some_and(|owner| owner != of) {
        return Ok(None);
    }
    let entry = entry()?.ok_or_else(|| damaged("its entry in the log is missing"))?;
    let leaves = check(row.first, row.records, &entry).map_err(damaged)?;
    Ok(canonical(kept).map(|record| FoundDecision {
        record,
        position: position as u32,
        leaves,
        index: row.index,
        entry,
    }))
}

const BROKEN_OFF: &str = "it ends in the middle of a record";
const NO_RECORD: &str = "it has something that is no record";

/// The leaves of a row that matches its entry.
pub(crate) fn check(first: u64, records: &[u8], entry: &[u8]) -> Result<Vec<Hash>, &'static str> {
    let batch = BatchRecorded::parse(entry)
        .map_err(|_| "its entry in the log is another one")?
        .batch;
    let records = unpack(records).ok_or(BROKEN_OFF)?;
    let leaves: Vec<Hash> = records
        .iter()
        .map(|record| canonical(record).map(|bytes| leaf_hash(&bytes)))
        .collect::<Option<_>>()
        .ok_or(NO_RECORD)?;
    if batch.first.0 == first
        && batch.count as usize == leaves.len()
        && batch.root.0 == root_of(&leaves).0
    {
        Ok(leaves)
    } else {
        Err("it is not what the log has of it")
    }
}

#[cfg(test)]
mod tests {
    use evidenceos_kernel::{decision::Gate, id::Digest};

    use super::*;

    #[test]
    fn records_are_unpacked_as_they_were_packed() {
        let record = |id: u64, tool_name: &str| DecisionRecord {
            id: DecisionId((1 << 40) | id),
            gate: Gate::Preflight,
            decided_unix_ms: 1_795_000_000_000,
            owner: OwnerTag([1; 16]),
            tool_name: tool_name.to_owned(),
            params_hash: Digest([2; 32]),
            session_hash: Some(Digest([3; 32])),
            agent_hash: None,
            decision: "ALLOW".to_owned(),
            reason: "PROBE_CLEAN".to_owned(),
            policies: Digest([0; 32]),
            policy: Some(("no-pipes".to_owned(), 9_001)),
            output_hash: None,
            reply_receipt: None,
            preflight_receipt: None,
            salt: [7; 16],
        };
        let records = [record(1, "fs.write"), record(2, "a")];
        let packed = pack(&records);
        let written: usize = records.iter().map(|record| record.to_bytes().len()).sum();
        assert!(packed.len() * 2 < written, "{} of {written}", packed.len());
        let unpacked = unpack(&packed).expect("whole");
        let bytes: Vec<_> = unpacked.iter().map(|kept| canonical(kept)).collect();
        assert_eq!(
            bytes,
            records.each_ref().map(|record| Some(record.to_bytes()))
        );
        let of_an_earlier_build = records[0].to_bytes();
        assert_eq!(
            canonical(&of_an_earlier_build),
            Some(of_an_earlier_build.clone())
        );
        let first = unpacked[0].len() + 2;
        for len in (1..packed.len()).filter(|len| *len != first) {
            assert_eq!(unpack(&packed[..len]), None, "{len}");
        }
    }
}
