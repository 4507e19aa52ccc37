//! Reading beside the writer: a few connections that see committed rows.
//!
//! Every read is by key or one page of a scan, so no read transaction lives long enough to keep the
//! WAL from being reused.

use std::{ops::RangeInclusive, path::Path};

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::Claim,
    decision::DecisionId,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
};
use evidenceos_tlog::Hash;
use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{read, schema};
use crate::{
    Entry, RowBytes, Rows, StoreError, TakeRow, blobs::Blobs, decisions::FoundDecision, row,
};

/// Reading connections that the pool keeps open.
const CONNECTIONS: usize = 4;

/// A pool of reading connections, and the blobs.
#[derive(Debug)]
pub struct SqliteRows {
    idle: Mutex<Vec<Connection>>,
    returned: Condvar,
    blobs: Blobs,
}

impl SqliteRows {
    /// Opens the connections. The writer must have opened the database before.
    ///
    /// # Errors
    /// [`StoreError`] if a connection cannot be opened.
    pub fn open(data_directory: &Path) -> Result<Self, StoreError> {
        let path = schema::path_in(data_directory);
        let idle = (0..CONNECTIONS)
            .map(|_| schema::open_reader(&path))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            idle: Mutex::new(idle),
            returned: Condvar::new(),
            blobs: Blobs::open(data_directory)?,
        })
    }

    fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let lent = self.lend();
        match &lent.connection {
            Some(connection) => read(connection),
            None => unreachable!("a connection is taken back only when its loan ends"),
        }
    }

    fn lend(&self) -> Lent<'_> {
        let mut idle = self.idle.lock();
        loop {
            match idle.pop() {
                Some(connection) => {
                    return Lent {
                        connection: Some(connection),
                        readers: self,
                    };
                }
                None => self.returned.wait(&mut idle),
            }
        }
    }
}

impl Rows for SqliteRows {
    fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    fn claim_of(&self, id: &ClaimId, owner: Option<OwnerTag>) -> Result<Option<Claim>, StoreError> {
        self.with(|connection| read::read_claim(connection, id, owner))
    }

    fn has_claim(&self, id: &ClaimId, owner: Option<OwnerTag>) -> Result<bool, StoreError> {
        self.with(|connection| {
            let found = connection
                .prepare_cached(
                    "SELECT 1 FROM claims WHERE claim_id = ?1 AND (?2 IS NULL OR owner = ?2)",
                )?
                .exists(params![
                    id.as_bytes(),
                    owner.as_ref().map(OwnerTag::as_bytes)
                ])?;
            Ok(found)
        })
    }

    fn claim_and_entry(
        &self,
        id: &ClaimId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<(Claim, Option<Entry>)>, StoreError> {
        self.with(|connection| {
            // Two statements in one transaction take the database's locks once. The transaction
            // ends with its guard, however the read ends: an open one would keep the WAL from being
            // reused.
            let transaction = connection.unchecked_transaction()?;
            read::read_claim_and_entry(&transaction, id, owner)
        })
    }

    fn claim_by_seq(&self, seq: u64) -> Result<Option<Claim>, StoreError> {
        self.with(|connection| {
            let bytes: Option<Vec<u8>> = connection
                .prepare_cached("SELECT row FROM claims WHERE seq = ?1")?
                .query_row([seq as i64], |row| row.get(0))
                .optional()?;
            bytes
                .map(|bytes| row::decode("claims", seq, &bytes))
                .transpose()
        })
    }

    fn decision(
        &self,
        id: DecisionId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<FoundDecision>, StoreError> {
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            read::read_decision(&transaction, id, owner)
        })
    }

    fn decisions_before(
        &self,
        unix_ms: u64,
        at_most: usize,
    ) -> Result<Option<DecisionId>, StoreError> {
        self.with(|connection| read::decisions_before(connection, unix_ms, at_most))
    }

    fn claims(
        &self,
        owner: Option<OwnerTag>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Claim>, StoreError> {
        let before = i64::try_from(before).unwrap_or(i64::MAX);
        self.with(|connection| {
            let sql = match owner {
                Some(_) => {
                    "SELECT seq, row FROM claims WHERE owner = ?3 AND seq < ?1 ORDER BY seq DESC LIMIT ?2"
                }
                None => "SELECT seq, row FROM claims WHERE seq < ?1 AND ?3 IS NULL ORDER BY seq DESC LIMIT ?2",
            };
            let owner = owner.as_ref().map(OwnerTag::as_bytes);
            let mut statement = connection.prepare_cached(sql)?;
            decoded_claims(statement.query(params![before, limit as i64, owner])?)
        })
    }

    fn claims_by_id(
        &self,
        owner: Option<OwnerTag>,
        ids: &RangeInclusive<ClaimId>,
        limit: usize,
    ) -> Result<Vec<Claim>, StoreError> {
        let (first, last) = (ids.start().as_bytes(), ids.end().as_bytes());
        self.with(|connection| {
            // `+` keeps SQLite from using the owner's index: a principal may own most of a store.
            let mut statement = connection.prepare_cached(
                "SELECT seq, row FROM claims WHERE claim_id BETWEEN ?1 AND ?2 AND (?4 IS NULL OR +owner = ?4) ORDER BY claim_id LIMIT ?3",
            )?;
            let owner = owner.as_ref().map(OwnerTag::as_bytes);
            decoded_claims(statement.query(params![first, last, limit as i64, owner])?)
        })
    }

    fn holdout(&self, seq: u64) -> Result<Option<Holdout>, StoreError> {
        self.with(|connection| {
            let bytes: Option<Vec<u8>> = connection
                .prepare_cached("SELECT row FROM holdouts WHERE seq = ?1")?
                .query_row([seq as i64], |row| row.get(0))
                .optional()?;
            bytes
                .map(|bytes| row::decode_holdout(seq, &bytes))
                .transpose()
        })
    }

    fn pool(
        &self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        self.with(|connection| read::read_pool(connection, holdout, owner))
    }

    fn account(&self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        self.with(|connection| read::read_account(connection, owner))
    }

    fn accounts(&self, from: u64, limit: usize) -> Result<Vec<Account>, StoreError> {
        let mut accounts = Vec::new();
        self.with(|connection| {
            let from = i64::try_from(from).unwrap_or(i64::MAX);
            read::each_account(connection, from, limit as i64, |account| {
                accounts.push(account);
                Ok(())
            })
        })?;
        Ok(accounts)
    }

    fn accounts_and_totals(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<(Vec<Account>, Totals), StoreError> {
        let mut accounts = Vec::new();
        let totals = self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let from = i64::try_from(from).unwrap_or(i64::MAX);
            read::each_account(&transaction, from, limit as i64, |account| {
                accounts.push(account);
                Ok(())
            })?;
            read::read_totals(&transaction).map(|(totals, _)| totals)
        })?;
        Ok((accounts, totals))
    }

    fn all_account_rows(&self, take: &mut TakeRow<'_>) -> Result<u64, StoreError> {
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let (_, seq) = read::read_totals(&transaction)?;
            read::each_account_row(&transaction, 0, i64::MAX, |seq, bytes| {
                take(seq as u64, bytes)
            })?;
            Ok(seq)
        })
    }

    fn entries(&self, start: u64, count: usize) -> Result<Vec<Entry>, StoreError> {
        self.with(|connection| read::read_entries(connection, start, count))
    }

    fn leaves(&self, start: u64, count: usize) -> Result<Vec<Hash>, StoreError> {
        self.with(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT leaf FROM entries WHERE idx >= ?1 ORDER BY idx LIMIT ?2")?;
            let leaves = statement
                .query_map(params![start as i64, count as i64], |row| {
                    row.get::<_, [u8; 32]>(0).map(Hash)
                })?
                .collect::<Result<_, _>>()?;
            Ok(leaves)
        })
    }

    fn revoked(&self, after: u64, limit: usize) -> Result<Vec<Claim>, StoreError> {
        let sequence: Vec<i64> = self.with(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT claim_seq FROM revocations WHERE idx > ?1 ORDER BY idx LIMIT ?2",
            )?;
            let found = statement
                .query_map(params![after as i64, limit as i64], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            Ok(found)
        })?;
        sequence
            .into_iter()
            .map(|seq| {
                self.claim_by_seq(seq as u64)?.ok_or(StoreError::Damaged {
                    table: "revocations",
                    key: seq.to_string(),
                    what: "its claim is missing",
                })
            })
            .collect()
    }

    fn has_module(&self, hash: &Digest) -> Result<bool, StoreError> {
        self.with(|connection| {
            Ok(connection
                .prepare_cached("SELECT 1 FROM modules WHERE hash = ?1")?
                .exists([hash.as_bytes()])?)
        })
    }

    fn names_blob(&self, hash: &Digest) -> Result<bool, StoreError> {
        self.with(|connection| read::is_blob_named(connection, hash))
    }

    fn module_row(&self, hash: &Digest) -> Result<Option<RowBytes>, StoreError> {
        self.with(|connection| {
            let found: Option<Option<Vec<u8>>> = connection
                .prepare_cached("SELECT bytes FROM modules WHERE hash = ?1")?
                .query_row([hash.as_bytes()], |row| row.get(0))
                .optional()?;
            Ok(found.map(here_or_blob))
        })
    }

    fn trace_row(&self, claim_seq: u64) -> Result<Option<RowBytes>, StoreError> {
        self.with(|connection| {
            let found: Option<Option<Vec<u8>>> = connection
                .prepare_cached("SELECT bytes FROM traces WHERE claim_seq = ?1")?
                .query_row([claim_seq as i64], |row| row.get(0))
                .optional()?;
            Ok(found.map(here_or_blob))
        })
    }
}

/// A row without bytes has them in a blob.
fn here_or_blob(bytes: Option<Vec<u8>>) -> RowBytes {
    bytes.map_or(RowBytes::Blob, RowBytes::Here)
}

/// A connection on loan; it returns to the pool however the read ends.
struct Lent<'r> {
    connection: Option<Connection>,
    readers: &'r SqliteRows,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut idle = self.readers.idle.lock();
        idle.extend(self.connection.take());
        self.readers.returned.notify_one();
    }
}

/// The claims of a query that selects number and row.
fn decoded_claims(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Claim>, StoreError> {
    let mut claims = Vec::new();
    while let Some(found) = rows.next()? {
        let (seq, bytes): (i64, Vec<u8>) = (found.get(0)?, found.get(1)?);
        claims.push(row::decode("claims", seq, &bytes)?);
    }
    Ok(claims)
}
