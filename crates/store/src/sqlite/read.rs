//! The queries of the writer and of the readers beside it.

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::Claim,
    decision::DecisionId,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    log_key::LogKey,
};
use evidenceos_tlog::{Hash, leaf_hash};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    Entry, StoreError,
    decisions::{self, FoundDecision, KeptDecisions},
    row,
    state::{StateRow, chain},
};

/// The epoch and the state row, if there is one yet.
pub(super) fn read_state(connection: &Connection) -> Result<Option<(i64, StateRow)>, StoreError> {
    let found: Option<(i64, Vec<u8>)> = connection
        .query_row("SELECT epoch, row FROM state WHERE id = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    found
        .map(|(epoch, bytes)| Ok((epoch, row::decode("state", 1, &bytes)?)))
        .transpose()
}

pub(super) fn read_holdouts(connection: &Connection) -> Result<Vec<Holdout>, StoreError> {
    let mut statement = connection.prepare("SELECT seq, row FROM holdouts ORDER BY seq")?;
    let mut rows = statement.query([])?;
    let mut holdouts = Vec::new();
    while let Some(found) = rows.next()? {
        let (seq, bytes): (i64, Vec<u8>) = (found.get(0)?, found.get(1)?);
        holdouts.push(row::decode_holdout(seq, &bytes)?);
    }
    Ok(holdouts)
}

pub(super) fn read_log_keys(connection: &Connection) -> Result<Vec<LogKey>, StoreError> {
    let mut statement =
        connection.prepare("SELECT since_size, row FROM log_keys ORDER BY since_size")?;
    let mut rows = statement.query([])?;
    let mut keys = Vec::new();
    while let Some(found) = rows.next()? {
        let (since, bytes): (i64, Vec<u8>) = (found.get(0)?, found.get(1)?);
        keys.push(row::decode("log_keys", since, &bytes)?);
    }
    Ok(keys)
}

/// Checks that the last journal row ends the chain that the state row names.
pub(super) fn check_journal_tail(
    connection: &Connection,
    state: &StateRow,
) -> Result<(), StoreError> {
    if state.journal_seq == 0 {
        return Ok(());
    }
    let seq = state.journal_seq as i64;
    let chain_at = |seq: i64| {
        connection
            .query_row(
                "SELECT bytes, chain FROM journal WHERE seq = ?1",
                [seq],
                |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)),
            )
            .optional()
    };
    let damaged = |what| StoreError::Damaged {
        table: "journal",
        key: seq.to_string(),
        what,
    };
    let (bytes, stored) = chain_at(seq)?.ok_or_else(|| damaged("it is missing"))?;
    let previous = match chain_at(seq - 1)? {
        Some((_, previous)) => previous,
        None => vec![0; 32],
    };
    if stored != state.journal_chain || chain(&previous, &bytes) != state.journal_chain {
        return Err(damaged("it does not end the chain of the journal"));
    }
    Ok(())
}

pub(super) fn read_displaced(connection: &Connection) -> Result<Vec<Digest>, StoreError> {
    let mut select = connection.prepare("SELECT hash FROM modules WHERE claims = 0")?;
    let hashes = select.query_map([], |row| row.get(0).map(Digest))?;
    Ok(hashes.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn is_blob_named(connection: &Connection, hash: &Digest) -> Result<bool, StoreError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM blobs WHERE hash = ?1")?
        .exists([hash.as_bytes()])?)
}

pub(super) fn read_claim(
    connection: &Connection,
    id: &ClaimId,
    owner: Option<OwnerTag>,
) -> Result<Option<Claim>, StoreError> {
    // The owner's column comes before the row: of another owner's claim nothing else is read.
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached(
            "SELECT row FROM claims WHERE claim_id = ?1 AND (?2 IS NULL OR owner = ?2)",
        )?
        .query_row(
            params![id.as_bytes(), owner.as_ref().map(OwnerTag::as_bytes)],
            |row| row.get(0),
        )
        .optional()?;
    bytes
        .map(|bytes| row::decode("claims", id, &bytes))
        .transpose()
}

pub(super) fn read_account(
    connection: &Connection,
    owner: &OwnerTag,
) -> Result<Option<Account>, StoreError> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached("SELECT row FROM accounts WHERE owner = ?1")?
        .query_row([owner.as_bytes()], |row| row.get(0))
        .optional()?;
    bytes
        .map(|bytes| row::decode("accounts", owner, &bytes))
        .transpose()
}

/// The sums over all accounts, and the number of the last journal row that changed one.
pub(super) fn read_totals(connection: &Connection) -> Result<(Totals, u64), StoreError> {
    let bytes: Vec<u8> = connection
        .prepare_cached("SELECT row FROM state WHERE id = 1")?
        .query_row([], |row| row.get(0))?;
    let state: StateRow = row::decode("state", 1, &bytes)?;
    Ok((state.totals, state.accounts_seq))
}

pub(super) fn read_pool(
    connection: &Connection,
    holdout: HoldoutId,
    owner: OwnerTag,
) -> Result<Option<PrincipalPool>, StoreError> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached("SELECT row FROM pools WHERE holdout = ?1 AND owner = ?2")?
        .query_row(params![holdout.as_bytes(), owner.as_bytes()], |row| {
            row.get(0)
        })
        .optional()?;
    bytes
        .map(|bytes| row::decode("pools", owner, &bytes))
        .transpose()
}
pub(super) fn each_account(
    connection: &Connection,
    from: i64,
    limit: i64,
    mut take: impl FnMut(Account) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    each_account_row(connection, from, limit, |seq, bytes| {
        take(row::decode("accounts", seq, bytes)?)
    })
}

pub(super) fn each_account_row(
    connection: &Connection,
    from: i64,
    limit: i64,
    mut take: impl FnMut(i64, &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT seq, row FROM accounts WHERE seq >= ?1 ORDER BY seq LIMIT ?2")?;
    let mut rows = statement.query(params![from, limit])?;
    while let Some(found) = rows.next()? {
        let bytes = found.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        let seq = found.get_ref(0)?.as_i64().map_err(rusqlite::Error::from)?;
        take(seq, bytes)?;
    }
    Ok(())
}

pub(super) fn read_claim_and_entry(
    connection: &Connection,
    id: &ClaimId,
    owner: Option<OwnerTag>,
) -> Result<Option<(Claim, Option<Entry>)>, StoreError> {
    let Some(claim) = read_claim(connection, id, owner)? else {
        return Ok(None);
    };
    let entry = match &claim.settlement {
        Some(settlement) => read_entries(connection, settlement.index, 1)?
            .into_iter()
            .next(),
        None => None,
    };
    Ok(Some((claim, entry)))
}

pub(super) fn read_entries(
    connection: &Connection,
    start: u64,
    count: usize,
) -> Result<Vec<Entry>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT idx, leaf, bytes FROM entries WHERE idx >= ?1 ORDER BY idx LIMIT ?2",
    )?;
    let mut rows = statement.query(params![start as i64, count as i64])?;
    let mut entries = Vec::new();
    let mut expected = start;
    while let Some(found) = rows.next()? {
        let (index, leaf, bytes): (i64, [u8; 32], Vec<u8>) =
            (found.get(0)?, found.get(1)?, found.get(2)?);
        let damaged = |what| StoreError::Damaged {
            table: "entries",
            key: index.to_string(),
            what,
        };
        // The query alone would silently skip a missing entry.
        if index as u64 != expected {
            return Err(damaged("an entry before it is missing"));
        }
        if leaf_hash(&bytes) != Hash(leaf) {
            return Err(damaged("its bytes do not match its leaf hash"));
        }
        expected += 1;
        entries.push(Entry {
            leaf: Hash(leaf),
            bytes,
        });
    }
    Ok(entries)
}

pub(super) fn read_decision(
    connection: &Connection,
    id: DecisionId,
    owner: Option<OwnerTag>,
) -> Result<Option<FoundDecision>, StoreError> {
    // A number that no row can have is looked up like any other.
    let number = i64::try_from(id.0).unwrap_or(i64::MAX);
    let row: Option<(i64, i64, Vec<u8>)> = connection
        .prepare_cached(
            "SELECT first, idx, records FROM decisions WHERE first <= ?1 ORDER BY first DESC LIMIT 1",
        )?
        .query_row([number], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((first, index, records)) = row else {
        return Ok(None);
    };
    let kept = KeptDecisions {
        first: first as u64,
        index: index as u64,
        records: &records,
    };
    decisions::find(&kept, id, owner, || {
        Ok(connection
            .prepare_cached("SELECT bytes FROM entries WHERE idx = ?1")?
            .query_row([index], |row| row.get(0))
            .optional()?)
    })
}

/// The last of the oldest rows, at most this many, that were recorded before a time.
pub(super) fn decisions_before(
    connection: &Connection,
    unix_ms: u64,
    at_most: usize,
) -> Result<Option<DecisionId>, StoreError> {
    let last: Option<i64> = connection
        .prepare_cached(
            "SELECT max(first) FROM (SELECT first, recorded_unix_ms FROM decisions ORDER BY first LIMIT ?2)
             WHERE recorded_unix_ms < ?1",
        )?
        .query_row(params![unix_ms as i64, at_most as i64], |row| row.get(0))?;
    Ok(last.map(|first| DecisionId(first as u64)))
}
