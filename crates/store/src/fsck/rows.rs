//! The tables: every row's checksum, what is said twice, and the numbers that come next.

use std::collections::{HashMap, HashSet};

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Claim, ClaimState},
    command::Remembered,
    holdout::{Holdout, HoldoutStatus, Later, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question},
};
use rusqlite::OptionalExtension as _;

use super::{Examination, RESTORE, TELL, each};
use crate::{StoreError, facts, sqlite};

/// SQLite's own view of its pages and indices.
pub(super) fn database(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let said: Vec<String> = on
        .connection
        .prepare("PRAGMA integrity_check(100)")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for line in said.iter().filter(|line| *line != "ok") {
        on.note("database", "pages", line.clone(), RESTORE);
    }
    let pages: i64 = on
        .connection
        .query_row("PRAGMA page_count", [], |row| row.get(0))?;
    Ok(pages as u64)
}

/// The numbers that come next are those after the last.
pub(super) fn counters(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let counters = on.state.counters;
    let journal = on.state.journal_seq;
    for (table, column, next) in [
        ("claims", "seq", counters.next_claim_seq),
        ("holdouts", "seq", counters.next_holdout_seq),
        ("entries", "idx", counters.next_index),
        ("journal", "seq", journal + 1),
    ] {
        let last: Option<i64> =
            on.connection
                .query_row(&format!("SELECT max({column}) FROM {table}"), [], |row| {
                    row.get(0)
                })?;
        // The journal counts from 1.
        let first = u64::from(table == "journal");
        let after = last.map_or(first, |last| last as u64 + 1);
        on.must(
            after == next,
            ("state", table),
            || format!("the next number is {next}, but the rows end before {after}"),
            RESTORE,
        );
        let rows = sqlite::count(&on.connection, table)?;
        on.must(
            rows == after - first,
            (table, column),
            || format!("{rows} rows up to number {after}: some are missing"),
            RESTORE,
        );
    }
    Ok(4)
}

pub(super) fn holdouts(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    let total = sqlite::count(&on.connection, "holdouts")?;
    each(
        on,
        "SELECT seq, row FROM holdouts WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        total,
        |row| row.get::<_, Vec<u8>>(1),
        |on, seq, bytes| {
            let Some((holdout, later)) = on.decoded::<(Holdout, Later)>("holdouts", seq, &bytes)
            else {
                return Ok(());
            };
            let holdout = holdout.with_later(later);
            let at = ("holdouts", &holdout.reference);
            on.must(
                holdout.seq == seq as u64,
                at,
                || "its number is another than its row's".to_owned(),
                RESTORE,
            );
            // The labels of a withdrawn holdout may be registered again under its name.
            let named = holdout.status == HoldoutStatus::Withdrawn
                || names.insert(holdout.reference.clone());
            on.must(
                ids.insert(holdout.id) && named,
                at,
                || "there is another of its name or id".to_owned(),
                RESTORE,
            );
            let reserved = |of: fn(&evidenceos_kernel::holdout::InFlight) -> MicroBits| {
                holdout
                    .in_flight
                    .iter()
                    .fold(MicroBits::ZERO, |sum, run| sum.saturating_add(of(run)))
            };
            for (part, meter, of) in [
                (
                    "answer",
                    holdout.answers,
                    reserved(|run| run.answers_reserved),
                ),
                (
                    "sealed",
                    holdout.sealed,
                    reserved(|run| run.sealed_reserved),
                ),
            ] {
                on.must(
                    meter.reserved == of,
                    at,
                    || {
                        format!(
                            "{} microbits of the {part} part are reserved, by runs under way {}",
                            meter.reserved.0, of.0
                        )
                    },
                    TELL,
                );
            }
            Ok(())
        },
    )
}

pub(super) fn claims(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let total = sqlite::count(&on.connection, "claims")?;
    each(
        on,
        "SELECT seq, claim_id, owner, row FROM claims WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        total,
        |row| {
            Ok((
                row.get::<_, Vec<u8>>(1)?,
                row.get::<_, Vec<u8>>(2)?,
                row.get::<_, Vec<u8>>(3)?,
            ))
        },
        |on, seq, (id, owner, bytes)| {
            let Some(claim) = on.decoded::<Claim>("claims", seq, &bytes) else {
                return Ok(());
            };
            let same = claim.seq == seq as u64
                && claim.id.0[..] == id[..]
                && claim.terms.owner.0[..] == owner[..];
            on.must(
                same,
                ("claims", claim.id),
                || "its number, id or owner is another than its row's".to_owned(),
                RESTORE,
            );
            settlement(on, &claim)
        },
    )
}

/// A result says where its capsule stands, and the capsule must stand there.
fn settlement(on: &mut Examination<'_>, claim: &Claim) -> Result<(), StoreError> {
    let ended = matches!(
        claim.state,
        ClaimState::Settled | ClaimState::Certified | ClaimState::Revoked
    );
    on.must(
        ended == claim.settlement.is_some(),
        ("claims", claim.id),
        || {
            format!(
                "it is {:?} and its result is not as that demands",
                claim.state
            )
        },
        RESTORE,
    );
    let Some(settlement) = &claim.settlement else {
        return Ok(());
    };
    let entry: Option<Vec<u8>> = on
        .connection
        .prepare_cached("SELECT bytes FROM entries WHERE idx = ?1")?
        .query_row([settlement.index as i64], |row| row.get(0))
        .optional()?;
    let fits = entry.is_some_and(|entry| Digest::of(&entry) == settlement.capsule_hash);
    on.must(
        fits,
        ("claims", claim.id),
        || format!("entry {} is not its capsule", settlement.index),
        RESTORE,
    );
    Ok(())
}

/// Every holdout that can be read, by id.
pub(super) fn all_holdouts(
    on: &Examination<'_>,
) -> Result<HashMap<HoldoutId, Holdout>, StoreError> {
    let rows: Vec<Vec<u8>> = on
        .connection
        .prepare("SELECT row FROM holdouts ORDER BY seq")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    // What cannot be read is a finding of the check of holdouts.
    Ok(rows
        .iter()
        .filter_map(|bytes| crate::row::decode_holdout("", bytes).ok())
        .map(|holdout| (holdout.id, holdout))
        .collect())
}

/// A pool as its row says.
pub(super) type Pools = HashMap<(HoldoutId, OwnerTag), PrincipalPool>;

/// Every pool that can be read; what cannot is noted.
pub(super) fn all_pools(on: &mut Examination<'_>) -> Result<Pools, StoreError> {
    let rows: Vec<([u8; 32], [u8; 16], Vec<u8>)> = on
        .connection
        .prepare("SELECT holdout, owner, row FROM pools")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let mut pools = Pools::new();
    for (holdout, owner, bytes) in rows {
        let (holdout, owner) = (HoldoutId(holdout), OwnerTag(owner));
        if let Some(pool) = on.decoded("pools", format!("{holdout} {owner}"), &bytes) {
            pools.insert((holdout, owner), pool);
        }
    }
    Ok(pools)
}

pub(super) fn pools(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let holdouts = all_holdouts(on)?;
    let pools = all_pools(on)?;
    let count = pools.len() as u64;
    for ((holdout, owner), _) in pools {
        on.must(
            holdouts.contains_key(&holdout),
            ("pools", format!("{holdout} {owner}")),
            || "its holdout is not registered".to_owned(),
            RESTORE,
        );
    }
    Ok(count)
}

/// A question, the claim that it is referred to, and that claim's row.
type Asked = ([u8; 16], [u8; 32], Option<Vec<u8>>);

/// A question is referred to a claim that is there and asks just that.
pub(super) fn questions(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let (mut looked_at, mut after) = (0, Vec::new());
    loop {
        let page: Vec<Asked> = on
            .connection
            .prepare_cached(
                "SELECT question, questions.claim_id, row FROM questions LEFT JOIN claims ON claims.claim_id = questions.claim_id WHERE question > ?1 ORDER BY question LIMIT 1000",
            )?
            .query_map([&after], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<Result<_, _>>()?;
        let Some((last, ..)) = page.last() else {
            return Ok(looked_at);
        };
        after = last.to_vec();
        looked_at += page.len() as u64;
        for (question, claim, row) in page {
            let asks = row
                .and_then(|row| crate::row::decode::<Claim>("claims", "", &row).ok())
                .and_then(|claim| claim.question());
            on.must(
                asks == Some(Question(question)),
                ("questions", Question(question)),
                || format!("claim {} does not ask this", ClaimId(claim)),
                RESTORE,
            );
        }
    }
}

pub(super) fn requests(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let mut looked_at = 0;
    for table in ["remembered_0", "remembered_1"] {
        let mut after = Vec::new();
        loop {
            let page: Vec<(Vec<u8>, Vec<u8>)> = on
                .connection
                .prepare_cached(&format!(
                    "SELECT key, row FROM {table} WHERE key > ?1 ORDER BY key LIMIT 512"
                ))?
                .query_map([&after], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            for (key, bytes) in page {
                on.decoded::<Remembered>("remembered", hex::encode(key), &bytes);
                looked_at += 1;
                on.progress(looked_at, 0);
            }
        }
    }
    Ok(looked_at)
}

/// What the database remembers about itself can be read, and is nothing else.
pub(super) fn facts(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let read = [
        facts::read(&on.connection).map(drop),
        facts::read_in_force(&on.connection).map(drop),
    ];
    for damaged in read {
        if let Err(StoreError::Damaged { key, what, .. }) = damaged {
            on.note("facts", key, what, RESTORE);
        }
    }
    sqlite::count(&on.connection, "facts")
}
