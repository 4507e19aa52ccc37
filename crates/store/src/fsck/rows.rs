//! Checks the tables: every row's checksum, redundant columns, and the next numbers.

use std::collections::{HashMap, HashSet};

use super::{Examination, NO_KEY, RESTORE, TELL, each};
use crate::{
    StoreError, row,
    tables::{Half, Table},
};
use evidenceos_kernel::{
    bits::MicroBits,
    claim::{Claim, ClaimState},
    command::Remembered,
    holdout::{Holdout, HoldoutStatus, Later, PrincipalPool},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, Question},
};

/// The engine's own check of its pages and indices.
pub(super) fn database(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let (pages, wrong) = on.tables.look_over()?;
    for line in wrong {
        on.note("database", "pages", line, RESTORE);
    }
    Ok(pages)
}

/// Each next number follows the last one used.
pub(super) fn counters(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let counters = on.state.counters;
    let journal = on.state.journal_seq;
    for (table, name, next) in [
        (Table::Claims, "claims", counters.next_claim_seq),
        (Table::Holdouts, "holdouts", counters.next_holdout_seq),
        (Table::Entries, "entries", counters.next_index),
        (Table::Journal, "journal", journal + 1),
    ] {
        let last = on.tables.last(table)?;
        // The journal counts from 1.
        let first = u64::from(table == Table::Journal);
        let after = last.map_or(first, |last| last + 1);
        on.must(
            after == next,
            ("state", name),
            || format!("the next number is {next}, but the rows end before {after}"),
            RESTORE,
        );
        let rows = on.tables.count(table)?;
        // The name of a finding's subject must not change: scripts read it.
        let column = if table == Table::Entries {
            "idx"
        } else {
            "seq"
        };
        on.must(
            rows == after - first,
            (name, column),
            || format!("{rows} rows up to number {after}: some are missing"),
            RESTORE,
        );
    }
    Ok(4)
}

pub(super) fn holdouts(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    let total = on.tables.count(Table::Holdouts)?;
    each(on, Table::Holdouts, total, |on, row| {
        let seq = row.number();
        let Some((holdout, later)) = on.decoded::<(Holdout, Later)>("holdouts", seq, row.bytes(0))
        else {
            return Ok(());
        };
        let holdout = holdout.with_later(later);
        let at = ("holdouts", &holdout.reference);
        on.must(
            holdout.seq == seq,
            at,
            || "its number differs from its row's".to_owned(),
            RESTORE,
        );
        // The labels of a withdrawn holdout may be registered again under its name.
        let named =
            holdout.status == HoldoutStatus::Withdrawn || names.insert(holdout.reference.clone());
        on.must(
            ids.insert(holdout.id) && named,
            at,
            || "another row has its name or id".to_owned(),
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
                        "{} microbits of the {part} part are reserved, but runs under way reserve {}",
                        meter.reserved.0, of.0
                    )
                },
                TELL,
            );
        }
        Ok(())
    })
}

pub(super) fn claims(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let total = on.tables.count(Table::Claims)?;
    each(on, Table::Claims, total, |on, row| {
        let seq = row.number();
        let Some(claim) = on.decoded::<Claim>("claims", seq, row.bytes(2)) else {
            return Ok(());
        };
        let same = claim.seq == seq
            && claim.id.0[..] == *row.bytes(0)
            && claim.terms.owner.0[..] == *row.bytes(1);
        on.must(
            same,
            ("claims", claim.id),
            || "its number, id or owner differs from its row's".to_owned(),
            RESTORE,
        );
        settlement(on, &claim)
    })
}

/// A result states the index of its capsule, and that entry must be the capsule.
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
                "it is {:?}, but its result does not match that state",
                claim.state
            )
        },
        RESTORE,
    );
    let Some(settlement) = &claim.settlement else {
        return Ok(());
    };
    let entry = on.tables.row(Table::Entries, &[settlement.index.into()])?;
    let fits = entry.is_some_and(|entry| Digest::of(entry.bytes(1)) == settlement.capsule_hash);
    on.must(
        fits,
        ("claims", claim.id),
        || format!("entry {} is not its capsule", settlement.index),
        RESTORE,
    );
    Ok(())
}

/// Every readable holdout, by id.
pub(super) fn all_holdouts(
    on: &mut Examination<'_>,
) -> Result<HashMap<HoldoutId, Holdout>, StoreError> {
    let mut holdouts = HashMap::new();
    each(on, Table::Holdouts, 0, |_, row| {
        // The check of holdouts notes an unreadable row.
        if let Ok(holdout) = row::decode_holdout("", row.bytes(0)) {
            holdouts.insert(holdout.id, holdout);
        }
        Ok(())
    })?;
    Ok(holdouts)
}

/// Pools, as their rows state them.
pub(super) type Pools = HashMap<(HoldoutId, OwnerTag), PrincipalPool>;

/// Every readable pool; notes unreadable ones.
pub(super) fn all_pools(on: &mut Examination<'_>) -> Result<Pools, StoreError> {
    let mut pools = Pools::new();
    each(on, Table::Pools, 0, |on, row| {
        let ids = (
            row.key_bytes(0).try_into().map(HoldoutId),
            row.key_bytes(1).try_into().map(OwnerTag),
        );
        let (Ok(holdout), Ok(owner)) = ids else {
            on.note("pools", hex::encode(row.key_bytes(0)), NO_KEY, RESTORE);
            return Ok(());
        };
        if let Some(pool) = on.decoded("pools", format!("{holdout} {owner}"), row.bytes(0)) {
            pools.insert((holdout, owner), pool);
        }
        Ok(())
    })?;
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

/// The claim that answers a question exists and asks that question.
pub(super) fn questions(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    each(on, Table::Questions, 0, |on, row| {
        let ids = (
            row.key_bytes(0).try_into().map(Question),
            row.bytes(0).try_into().map(ClaimId),
        );
        let (Ok(question), Ok(claim)) = ids else {
            on.note("questions", hex::encode(row.key_bytes(0)), NO_KEY, RESTORE);
            return Ok(());
        };
        let asks = (on.tables.claim_row(&claim)?)
            .and_then(|row| row::decode::<Claim>("claims", "", &row).ok())
            .and_then(|claim| claim.question());
        on.must(
            asks == Some(question),
            ("questions", question),
            || format!("claim {claim} does not ask this"),
            RESTORE,
        );
        Ok(())
    })
}

pub(super) fn requests(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let mut looked_at = 0;
    for half in [Half::First, Half::Second] {
        looked_at += each(on, Table::Remembered(half), 0, |on, row| {
            let key = hex::encode(row.key_bytes(0));
            on.decoded::<Remembered>("remembered", key, row.bytes(0));
            Ok(())
        })?;
    }
    Ok(looked_at)
}

/// The facts of the database are readable, and there are no others.
pub(super) fn facts(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let read = [on.tables.facts().map(drop), on.tables.in_force().map(drop)];
    for damaged in read {
        if let Err(StoreError::Damaged { key, what, .. }) = damaged {
            on.note("facts", key, what, RESTORE);
        }
    }
    on.tables.count(Table::Facts)
}
