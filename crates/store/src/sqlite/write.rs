//! The statements of a commit: each writes one part of a batch in its transaction.

use evidenceos_kernel::{claim::ClaimState, id::Digest};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::transaction::{Transaction, WriteError};
use crate::{
    Batch, ModuleBytes, StoreError, row,
    state::{StateRow, journal_bytes},
};

pub(super) fn write_rows(connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
    let changes = &batch.changes;
    let mut insert = connection
        .prepare_cached("INSERT INTO claims (seq, claim_id, owner, row) VALUES (?1, ?2, ?3, ?4)")?;
    for claim in &changes.new_claims {
        insert.execute(params![
            claim.seq as i64,
            claim.id.as_bytes(),
            claim.terms.owner.as_bytes(),
            row::encode_growing(claim)
        ])?;
    }
    let mut update = connection.prepare_cached("UPDATE claims SET row = ?2 WHERE seq = ?1")?;
    for claim in &changes.claims {
        // A claim that was read is gone: the database lost a row, and no commit may follow.
        match update.execute(params![claim.seq as i64, row::encode_growing(claim)])? {
            1 => {}
            rows => return Err(rusqlite::Error::StatementChangedRows(rows).into()),
        }
    }
    let mut holdouts =
        connection.prepare_cached("INSERT OR REPLACE INTO holdouts (seq, row) VALUES (?1, ?2)")?;
    for holdout in &changes.holdouts {
        holdouts.execute(params![holdout.seq as i64, row::encode_holdout(holdout)])?;
    }
    for blob in &changes.named_blobs {
        name_blob(connection, blob.as_bytes())?;
    }
    for blob in &changes.dropped_blobs {
        connection
            .prepare_cached("DELETE FROM blobs WHERE hash = ?1")?
            .execute([blob.as_bytes()])?;
    }
    for key in &changes.log_keys {
        connection
            .prepare_cached("INSERT INTO log_keys (since_size, row) VALUES (?1, ?2)")?
            .execute(params![key.since_size as i64, row::encode(key)])?;
    }
    let mut questions = connection
        .prepare_cached("INSERT OR REPLACE INTO questions (question, claim_id) VALUES (?1, ?2)")?;
    for (question, claim) in &changes.questions {
        questions.execute(params![question.as_bytes(), claim.as_bytes()])?;
    }
    let mut pools = connection
        .prepare_cached("INSERT OR REPLACE INTO pools (holdout, owner, row) VALUES (?1, ?2, ?3)")?;
    for (holdout, owner, pool) in &changes.pools {
        pools.execute(params![
            holdout.as_bytes(),
            owner.as_bytes(),
            row::encode(pool)
        ])?;
    }
    Ok(())
}

pub(super) fn write_accounts(connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
    let changes = &batch.changes;
    let mut insert =
        connection.prepare_cached("INSERT INTO accounts (seq, owner, row) VALUES (?1, ?2, ?3)")?;
    for account in &changes.new_accounts {
        insert.execute(params![
            account.seq as i64,
            account.owner.as_bytes(),
            row::encode(account)
        ])?;
    }
    let mut update = connection.prepare_cached("UPDATE accounts SET row = ?2 WHERE seq = ?1")?;
    for account in &changes.accounts {
        // As with claims: if a row that was read is gone, everything must stop.
        match update.execute(params![account.seq as i64, row::encode(account)])? {
            1 => {}
            rows => return Err(rusqlite::Error::StatementChangedRows(rows).into()),
        }
    }
    Ok(())
}

pub(super) fn write_log(connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
    let first = batch.changes.counters.next_index - batch.entries.len() as u64;
    let mut entries =
        connection.prepare_cached("INSERT INTO entries (idx, leaf, bytes) VALUES (?1, ?2, ?3)")?;
    for (index, entry) in (first..).zip(&batch.entries) {
        entries.execute(params![index as i64, entry.leaf.as_bytes(), entry.bytes])?;
    }
    let mut traces = connection
        .prepare_cached("INSERT INTO traces (claim_seq, hash, bytes) VALUES (?1, ?2, ?3)")?;
    for trace in &batch.traces {
        traces.execute(params![
            trace.claim_seq as i64,
            trace.hash.as_bytes(),
            row_bytes(&trace.bytes)
        ])?;
        if trace.bytes.is_empty() {
            name_blob(connection, trace.hash.as_bytes())?;
        }
    }
    let revoked = batch
        .changes
        .claims
        .iter()
        .filter(|claim| claim.state == ClaimState::Revoked);
    // A claim that changes after its revocation passes here again, and its row stays the same.
    for claim in revoked {
        if let Some(revocation) = &claim.revocation {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO revocations (idx, claim_seq) VALUES (?1, ?2)",
                )?
                .execute(params![revocation.index as i64, claim.seq as i64])?;
        }
    }
    Ok(())
}

/// Stores modules, and counts the claims that name each. Modules of releases without the count have none.
pub(super) fn write_modules(connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO modules (hash, bytes, claims) VALUES (?1, ?2, 1)
         ON CONFLICT (hash) DO UPDATE SET claims = claims + 1",
    )?;
    let mut count =
        connection.prepare_cached("UPDATE modules SET claims = claims + ?2 WHERE hash = ?1")?;
    let mut add = |hash: &Digest, by: i64| match count.execute(params![hash.as_bytes(), by])? {
        1 => Ok(()),
        // A claim would name a missing module.
        rows => Err(WriteError::from(rusqlite::Error::StatementChangedRows(
            rows,
        ))),
    };
    for hash in &batch.changes.named_modules {
        let brought = batch.modules.iter().find(|module| module.hash == *hash);
        match brought.map(|module| &module.bytes) {
            Some(ModuleBytes::Row(bytes)) => {
                insert.execute(params![hash.as_bytes(), bytes])?;
            }
            Some(ModuleBytes::Blob) => {
                insert.execute(params![hash.as_bytes(), None::<&[u8]>])?;
                name_blob(connection, hash.as_bytes())?;
            }
            Some(ModuleBytes::Stored) | None => add(hash, 1)?,
        }
    }
    for hash in &batch.changes.displaced_modules {
        add(hash, -1)?;
    }
    Ok(())
}

/// Removes those of the modules that no claim names. Returns those whose bytes are blobs.
pub(super) fn forget_modules(
    connection: &Connection,
    epoch: i64,
    modules: &[Digest],
) -> Result<Vec<Digest>, StoreError> {
    let transaction = Transaction::begin(connection)?;
    let mut blobs = Vec::new();
    {
        let mut delete = transaction.prepare_cached(
            "DELETE FROM modules WHERE hash = ?1 AND claims = 0 RETURNING bytes IS NULL",
        )?;
        let mut unname = transaction.prepare_cached("DELETE FROM blobs WHERE hash = ?1")?;
        for module in modules {
            let is_blob = delete
                .query_row([module.as_bytes()], |row| row.get(0))
                .optional()?;
            if is_blob == Some(true) {
                unname.execute([module.as_bytes()])?;
                blobs.push(*module);
            }
        }
        // This commit is fenced too: a process that was replaced must not remove modules that its
        // successor names.
        let fenced = transaction
            .prepare_cached("UPDATE state SET epoch = epoch WHERE id = 1 AND epoch = ?1")?
            .execute([epoch])?;
        if fenced != 1 {
            return Err(StoreError::locked(
                "another process has opened the database; only one may",
                "stop one of the two",
            ));
        }
    }
    transaction.commit()?;
    Ok(blobs)
}

pub(super) fn row_bytes(bytes: &[u8]) -> Option<&[u8]> {
    (!bytes.is_empty()).then_some(bytes)
}

pub(super) fn name_blob(connection: &Connection, hash: &[u8]) -> Result<(), WriteError> {
    connection
        .prepare_cached("INSERT INTO blobs (hash) VALUES (?1) ON CONFLICT DO NOTHING")?
        .execute([hash])?;
    Ok(())
}

pub(super) fn write_journal(
    connection: &Connection,
    batch: &Batch,
    next: &StateRow,
) -> Result<(), WriteError> {
    if batch.recorded.is_empty() {
        return Ok(());
    }
    connection
        .prepare_cached("INSERT INTO journal (seq, bytes, chain) VALUES (?1, ?2, ?3)")?
        .execute(params![
            next.journal_seq as i64,
            journal_bytes(batch),
            next.journal_chain
        ])?;
    Ok(())
}

/// Inserts records of decisions, and deletes those that were forgotten.
pub(super) fn write_decisions(connection: &Connection, batch: &Batch) -> rusqlite::Result<()> {
    for decisions in &batch.decisions {
        connection
            .prepare_cached(
                "INSERT INTO decisions (first, idx, recorded_unix_ms, records) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                decisions.batch.first.0 as i64,
                decisions.index as i64,
                decisions.recorded_unix_ms as i64,
                &decisions.records[..],
            ])?;
    }
    if let Some(through) = batch.changes.forgotten_decisions {
        connection
            .prepare_cached("DELETE FROM decisions WHERE first <= ?1")?
            .execute([through.0 as i64])?;
    }
    Ok(())
}
