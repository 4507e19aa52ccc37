//! Reading beside the writer: a few connections that see what was committed.
//!
//! Every read is by key or one page of a scan, so that no read transaction lives long enough to
//! keep the WAL from being reused.

use std::{
    path::Path,
    sync::{Condvar, Mutex, PoisonError},
};

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::Claim,
    decision::DecisionId,
    holdout::{Holdout, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
};
use evidenceos_tlog::{Hash, leaf_hash};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    Entry, StoreError,
    blobs::Blobs,
    decisions::{self, FoundDecision},
    row, schema, sqlite,
};

/// Reading connections that the pool keeps open.
const CONNECTIONS: usize = 4;

/// A pool of reading connections, and the blobs.
#[derive(Debug)]
pub struct Readers {
    idle: Mutex<Vec<Connection>>,
    returned: Condvar,
    blobs: Blobs,
}

impl Readers {
    /// Opens the connections. The writer must have opened the database before.
    ///
    /// # Errors
    /// Where a connection cannot be opened.
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

    /// The blobs beside the database.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
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
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match idle.pop() {
                Some(connection) => {
                    return Lent {
                        connection: Some(connection),
                        readers: self,
                    };
                }
                None => {
                    idle = self
                        .returned
                        .wait(idle)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// A claim by id.
    ///
    /// # Errors
    /// As every method here: where the store cannot be read, or a row is damaged.
    pub fn claim(&self, id: &ClaimId) -> Result<Option<Claim>, StoreError> {
        self.with(|connection| sqlite::read_claim(connection, id, None))
    }

    /// A claim by id, of one owner or of any. The row of another owner's claim is not read, so
    /// that it takes no longer than one that does not exist, however large it is.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn claim_of(
        &self,
        id: &ClaimId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<Claim>, StoreError> {
        self.with(|connection| sqlite::read_claim(connection, id, owner))
    }

    /// Whether there is a claim with this id; of one owner, or of any. Its row is not read.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn has_claim(&self, id: &ClaimId, owner: Option<OwnerTag>) -> Result<bool, StoreError> {
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

    /// A claim as by [`Readers::claim_of`], with its log entry if it has settled: what a fetch
    /// needs, in one look at the database.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn claim_and_entry(
        &self,
        id: &ClaimId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<(Claim, Option<Entry>)>, StoreError> {
        self.with(|connection| {
            // Two statements in one transaction take the database's locks once. It ends with its
            // guard, however the read ends: one left open would keep the WAL from being reused.
            let transaction = connection.unchecked_transaction()?;
            read_claim_and_entry(&transaction, id, owner)
        })
    }

    /// A claim by number.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn claim_by_seq(&self, seq: u64) -> Result<Option<Claim>, StoreError> {
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

    /// A decision about a tool call, by number; of one owner, or of any.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn decision(
        &self,
        id: DecisionId,
        owner: Option<OwnerTag>,
    ) -> Result<Option<FoundDecision>, StoreError> {
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            decisions::find(&transaction, id, owner)
        })
    }

    /// The last of the oldest batches of decisions, at most `at_most`, that were recorded before
    /// a time.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn decisions_before(
        &self,
        unix_ms: u64,
        at_most: usize,
    ) -> Result<Option<DecisionId>, StoreError> {
        self.with(|connection| decisions::recorded_before(connection, unix_ms, at_most))
    }

    /// A page of claims, newest first, older than `before`; of one owner or of all.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn claims(
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
            let mut rows = statement.query(params![before, limit as i64, owner])?;
            let mut claims = Vec::new();
            while let Some(found) = rows.next()? {
                let (seq, bytes): (i64, Vec<u8>) = (found.get(0)?, found.get(1)?);
                claims.push(row::decode("claims", seq, &bytes)?);
            }
            Ok(claims)
        })
    }

    /// A holdout by number.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn holdout(&self, seq: u64) -> Result<Option<Holdout>, StoreError> {
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

    /// A principal's pool on a holdout.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn pool(
        &self,
        holdout: HoldoutId,
        owner: OwnerTag,
    ) -> Result<Option<PrincipalPool>, StoreError> {
        self.with(|connection| sqlite::read_pool(connection, holdout, owner))
    }

    /// A principal's account.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn account(&self, owner: &OwnerTag) -> Result<Option<Account>, StoreError> {
        self.with(|connection| sqlite::read_account(connection, owner))
    }

    /// A page of accounts in the order of their opening, from a number on.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn accounts(&self, from: u64, limit: usize) -> Result<Vec<Account>, StoreError> {
        let mut accounts = Vec::new();
        self.with(|connection| {
            let from = i64::try_from(from).unwrap_or(i64::MAX);
            each_account(connection, from, limit as i64, |account| {
                accounts.push(account);
                Ok(())
            })
        })?;
        Ok(accounts)
    }

    /// A page of accounts as [`Readers::accounts`], and the sums over all of them at that moment.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn accounts_and_totals(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<(Vec<Account>, Totals), StoreError> {
        let mut accounts = Vec::new();
        let totals = self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let from = i64::try_from(from).unwrap_or(i64::MAX);
            each_account(&transaction, from, limit as i64, |account| {
                accounts.push(account);
                Ok(())
            })?;
            sqlite::read_totals(&transaction).map(|(totals, _)| totals)
        })?;
        Ok((accounts, totals))
    }

    /// Every account as of one moment, in the order of their opening. Returns the number of the
    /// last journal row that changed one.
    ///
    /// # Errors
    /// See [`Readers::claim`]; also what `take` fails with.
    pub fn all_accounts(
        &self,
        mut take: impl FnMut(Account) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        self.all_account_rows(|seq, bytes| take(row::decode("accounts", seq, bytes)?))
    }

    /// As [`Readers::all_accounts`], with the rows as they are stored: number and bytes.
    pub(crate) fn all_account_rows(
        &self,
        take: impl FnMut(i64, &[u8]) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let (_, seq) = sqlite::read_totals(&transaction)?;
            each_account_row(&transaction, 0, i64::MAX, take)?;
            Ok(seq)
        })
    }

    /// Consecutive entries from an index on, each checked against its leaf hash.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn entries(&self, start: u64, count: usize) -> Result<Vec<Entry>, StoreError> {
        self.with(|connection| read_entries(connection, start, count))
    }

    /// Leaf hashes of consecutive entries, without their bytes.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn leaves(&self, start: u64, count: usize) -> Result<Vec<Hash>, StoreError> {
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

    /// Revoked claims in the order of their revocations, after a log index.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn revoked(&self, after: u64, limit: usize) -> Result<Vec<Claim>, StoreError> {
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

    /// A module by digest.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn module(&self, hash: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let found: Option<Option<Vec<u8>>> = self.with(|connection| {
            Ok(connection
                .prepare_cached("SELECT bytes FROM modules WHERE hash = ?1")?
                .query_row([hash.as_bytes()], |row| row.get(0))
                .optional()?)
        })?;
        self.row_or_blob(found, hash)
    }

    /// Whether a module is stored.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn has_module(&self, hash: &Digest) -> Result<bool, StoreError> {
        self.with(|connection| {
            Ok(connection
                .prepare_cached("SELECT 1 FROM modules WHERE hash = ?1")?
                .exists([hash.as_bytes()])?)
        })
    }

    /// The trace of a claim, by number and digest.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn trace(&self, claim_seq: u64, hash: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let found: Option<Option<Vec<u8>>> = self.with(|connection| {
            Ok(connection
                .prepare_cached("SELECT bytes FROM traces WHERE claim_seq = ?1")?
                .query_row([claim_seq as i64], |row| row.get(0))
                .optional()?)
        })?;
        self.row_or_blob(found, hash)
    }

    fn row_or_blob(
        &self,
        found: Option<Option<Vec<u8>>>,
        hash: &Digest,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        match found {
            None => Ok(None),
            Some(None) => self.blobs.get(hash).map(Some),
            Some(Some(bytes)) if Digest::of(&bytes) == *hash => Ok(Some(bytes)),
            Some(Some(_)) => Err(StoreError::Damaged {
                table: "modules or traces",
                key: hash.to_hex(),
                what: "its content has another digest",
            }),
        }
    }

    /// Whether a row names a blob.
    ///
    /// # Errors
    /// See [`Readers::claim`].
    pub fn names_blob(&self, hash: &Digest) -> Result<bool, StoreError> {
        self.with(|connection| sqlite::is_blob_named(connection, hash))
    }
}

/// A connection on loan; it comes back however the read ends.
struct Lent<'r> {
    connection: Option<Connection>,
    readers: &'r Readers,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut idle = self
            .readers
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.connection.take());
        self.readers.returned.notify_one();
    }
}

fn each_account(
    connection: &Connection,
    from: i64,
    limit: i64,
    mut take: impl FnMut(Account) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    each_account_row(connection, from, limit, |seq, bytes| {
        take(row::decode("accounts", seq, bytes)?)
    })
}

fn each_account_row(
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

fn read_claim_and_entry(
    connection: &Connection,
    id: &ClaimId,
    owner: Option<OwnerTag>,
) -> Result<Option<(Claim, Option<Entry>)>, StoreError> {
    let Some(claim) = sqlite::read_claim(connection, id, owner)? else {
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

fn read_entries(
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
        // The query alone would pass over a missing entry without a word.
        if index as u64 != expected {
            return Err(damaged("an entry before it is missing"));
        }
        if leaf_hash(&bytes) != Hash(leaf) {
            return Err(damaged("its bytes do not fit its leaf hash"));
        }
        expected += 1;
        entries.push(Entry {
            leaf: Hash(leaf),
            bytes,
        });
    }
    Ok(entries)
}
