//! Checks credit: reservations and burned credit match the runs, and no credit was created outside
//! the books.

use std::collections::HashMap;

use evidenceos_kernel::{
    account::{Account, Totals},
    claim::{Claim, ClaimState},
    entry::Entry,
    id::{HoldoutId, OwnerTag},
};

use super::{Examination, RESTORE, TELL, each, history::each_entry, rows};
use crate::{
    StoreError,
    accounts::{AccountsJson, digest},
    row,
    tables::Table,
};

/// The repair of an edited file.
const EDITED: &str = "run `evidenceos-daemon accounts import` to import it, or `evidenceos-daemon accounts export` to write it again from the database";

#[derive(Default)]
struct Runs {
    reserved: HashMap<OwnerTag, u128>,
    by_holdout: HashMap<HoldoutId, (u64, u64)>,
    burned: u128,
}

/// Every account, the sums over them, and the amounts that their runs state.
pub(super) fn accounts(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let mut runs = runs(on)?;
    let mut found = Totals::default();
    let total = on.tables.count(Table::Accounts)?;
    let rows = each(on, Table::Accounts, total, |on, row| {
        let seq = row.number();
        let Some(account) = on.decoded::<Account>("accounts", seq, row.bytes(1)) else {
            return Ok(());
        };
        let at = ("accounts", &account.principal);
        on.must(
            account.seq == seq && account.owner.as_bytes() == row.bytes(0),
            at,
            || "its number or its owner differs from its row's".to_owned(),
            RESTORE,
        );
        // An entry that is left at the end belongs to no account.
        let by_runs = runs.reserved.remove(&account.owner).unwrap_or_default();
        on.must(
            u128::from(account.reserved) == by_runs,
            at,
            || {
                format!(
                    "{} credits are reserved, but runs under way reserve {by_runs}",
                    account.reserved
                )
            },
            TELL,
        );
        found.accounts += 1;
        found.balances += u128::from(account.balance);
        found.reserved += u128::from(account.reserved);
        Ok(())
    })?;
    for (owner, reserved) in runs.reserved {
        on.note(
            "claims",
            owner,
            format!("runs under way reserve {reserved} credits of an account that does not exist"),
            TELL,
        );
    }
    found.burned = runs.burned;
    sums(on, &found);
    holdouts(on, &mut runs.by_holdout)?;
    grants(on)?;
    Ok(rows)
}

fn runs(on: &mut Examination<'_>) -> Result<Runs, StoreError> {
    let mut runs = Runs::default();
    let total = on.tables.count(Table::Claims)?;
    each(on, Table::Claims, total, |_, row| {
        // A row that does not decode was noted by the check of claims.
        let Ok(claim) = row::decode::<Claim>("claims", 0, row.bytes(2)) else {
            return Ok(());
        };
        let holdout = runs.by_holdout.entry(claim.terms.holdout).or_default();
        if claim.state == ClaimState::Executing {
            *runs.reserved.entry(claim.terms.owner).or_default() +=
                u128::from(claim.credit.reserved);
            holdout.0 += claim.credit.reserved;
        }
        holdout.1 += claim.credit.burned;
        runs.burned += u128::from(claim.credit.burned);
        Ok(())
    })?;
    // An owner that reserves nothing needs no account: claims of releases without credit.
    runs.reserved.retain(|_, reserved| *reserved > 0);
    Ok(runs)
}

fn sums(on: &mut Examination<'_>, found: &Totals) {
    let said = on.state.totals;
    for (what, said, found) in [
        ("accounts", said.accounts.into(), found.accounts.into()),
        ("balances", said.balances, found.balances),
        ("reserved", said.reserved, found.reserved),
        ("burned", said.burned, found.burned),
    ] {
        on.must(
            said == found,
            ("state", what),
            || format!("the sum over all accounts is {said}, but their rows and runs give {found}"),
            TELL,
        );
    }
    on.must(
        said.balance_out(),
        ("state", "sums over all accounts"),
        || format!("initial + minted + granted - withdrawn - burned - reserved differs from the sum of the balances: {said:?}"),
        TELL,
    );
}

fn holdouts(
    on: &mut Examination<'_>,
    by_runs: &mut HashMap<HoldoutId, (u64, u64)>,
) -> Result<(), StoreError> {
    for (id, holdout) in rows::all_holdouts(on)? {
        let (reserved, burned) = by_runs.remove(&id).unwrap_or_default();
        on.must(
            (holdout.credit_reserved, holdout.credit_burned) == (reserved, burned),
            ("holdouts", &holdout.reference),
            || {
                format!(
                    "{} credits reserved and {} burned on it, by its runs {reserved} and {burned}",
                    holdout.credit_reserved, holdout.credit_burned
                )
            },
            TELL,
        );
    }
    Ok(())
}

/// Grants in the log must be in the sums; imports grant too.
fn grants(on: &mut Examination<'_>) -> Result<(), StoreError> {
    let mut granted = 0u128;
    each_entry(on, false, |_, _, _, bytes| {
        // The check of the ledger notes a grant that cannot be read.
        if let Ok(Entry::CreditGranted(grant)) = Entry::parse(bytes) {
            granted += u128::from(grant.amount);
        }
        Ok(())
    })?;
    let said = on.state.totals.granted;
    on.must(
        granted <= said,
        ("state", "granted"),
        || format!("{said} credits were granted, but the log says {granted}"),
        TELL,
    );
    Ok(())
}

/// Checks that `accounts.json` is a version of ours. If it is behind after a crash, that is not a
/// finding: the next start writes it.
pub(super) fn accounts_json(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let file = AccountsJson::of(&on.data_directory);
    let Some(bytes) = file.read()? else {
        return Ok(0);
    };
    let known = on.state.accounts_files.find(&digest(&bytes)).is_some();
    on.must(
        known,
        ("file", file.path().display()),
        || "it was edited, or is from a backup".to_owned(),
        EDITED,
    );
    Ok(1)
}
