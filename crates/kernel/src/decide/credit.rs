//! The principal that pays for a run, and the ways it gets credit.
//!
//! Admission reserves a run's worst case: the cost of its leakage reservations, its lane's memory
//! and its fuel. If the account, or the claim's own `access_credit`, does not carry all of the
//! lane's fuel, the run gets the fuel that it carries. The commit of its settlement burns what the
//! run used.

use super::public_text;
use crate::{
    account::{Account, MAX_CREDIT, Usage, unnamed},
    bits::MicroBits,
    claim::{Claim, Outcome},
    command::{Caller, Decision, Event, ImportedAccount, Reply, RunReport},
    holdout::Holdout,
    id::{ClaimId, Digest, OwnerTag},
    record::{AccountsImported, CreditGranted},
    refusal::{Pool, Refusal},
    state::Stage,
};

/// The event that opens a principal's account, if it has none.
pub(super) fn opened(stage: &Stage<'_>, owner: OwnerTag, principal: &str) -> Option<Event> {
    if stage.account(&owner).is_some() {
        return None;
    }
    let (seq, now) = (stage.totals().accounts, stage.now_unix_ms());
    let account = stage.accounting().open(seq, owner, principal, now);
    Some(Event::AccountOpened(Box::new(account)))
}

/// A principal's account after today's touch, and the events of that touch.
fn touched(stage: &Stage<'_>, owner: OwnerTag, principal: &str) -> (Account, Vec<Event>) {
    // A new account starts at its limit, so nothing is minted on its first day.
    if let Some(Event::AccountOpened(account)) = opened(stage, owner, principal) {
        return ((*account).clone(), vec![Event::AccountOpened(account)]);
    }
    let mut account = stage
        .account(&owner)
        .cloned()
        .expect("an account that is not opened now is there");
    let day = stage.today();
    let mint = account.due_mint(day).map(|amount| {
        account.mint(day, amount);
        Event::CreditMinted { owner, day, amount }
    });
    (account, mint.into_iter().collect())
}

/// The account that pays for a claim. Claims of releases without accounts name their owner by its
/// tag only.
fn payer(stage: &Stage<'_>, claim: &Claim) -> (Account, Vec<Event>) {
    let owner = claim.terms.owner;
    touched(stage, owner, &unnamed(owner))
}

/// Reserves the worst case of a run.
pub(super) fn reserve(
    stage: &Stage<'_>,
    claim: &Claim,
    holdout: &Holdout,
    bits: MicroBits,
) -> Result<Vec<Event>, Refusal> {
    let (account, mut events) = payer(stage, claim);
    let (amount, max_fuel) = carried(stage, &account, claim, bits)?;
    must_fit_budget(holdout, amount)?;
    if amount > account.balance {
        return Err(Refusal::Reserved { pool: Pool::Credit });
    }
    events.push(Event::CreditReserved {
        owner: account.owner,
        claim: claim.id,
        amount,
        max_fuel,
    });
    Ok(events)
}

/// The credit that a run reserves, and the fuel that it pays for: the lane's worst case, or less if
/// the account does not carry it.
fn carried(
    stage: &Stage<'_>,
    account: &Account,
    claim: &Claim,
    bits: MicroBits,
) -> Result<(u64, u64), Refusal> {
    let tariff = &stage.accounting().tariff;
    let (lane, cap) = (claim.terms.lane, claim.terms.access_credit);
    let pages = lane.max_memory_pages();
    // The claim waits for credit that other runs have reserved, so the fuel of a run does not
    // depend on other runs under way.
    let carries = match cap {
        0 => account.unburned(),
        cap => cap.min(account.unburned()),
    };
    let usage = |fuel| Usage {
        bits,
        fuel,
        pages,
        module_bytes: module_bytes(claim),
    };
    let worst = tariff.charge(usage(lane.max_fuel()));
    if worst <= carries {
        return Ok((worst, lane.max_fuel()));
    }
    match tariff.affordable_fuel(carries, usage(0)) {
        // A run without fuel could only trap, and would still be charged.
        Some(fuel) if fuel > 0 && carries > 0 => Ok((carries, fuel.min(lane.max_fuel()))),
        _ => Err(Refusal::InsufficientCredit {
            needed: tariff.charge(usage(1)),
            left: carries,
        }),
    }
}

/// Refuses a run beyond the holdout's credit budget, if its operator has set one.
fn must_fit_budget(holdout: &Holdout, amount: u64) -> Result<(), Refusal> {
    let Some(budget) = holdout.narrower.credit else {
        return Ok(());
    };
    // An operator may set the budget below what is already burned: then nothing is left.
    let left = budget.saturating_sub(holdout.credit_burned);
    // This refusal comes before the next one: if waiting cannot help, the claim must not wait.
    if amount > left {
        return Err(Refusal::HoldoutCreditExhausted {
            needed: amount,
            left,
        });
    }
    if amount > left.saturating_sub(holdout.credit_reserved) {
        return Err(Refusal::Reserved {
            pool: Pool::HoldoutCredit,
        });
    }
    Ok(())
}

/// The length of the module that a claim was committed to.
fn module_bytes(claim: &Claim) -> u64 {
    let commitment = claim.commitment.as_ref();
    commitment.map_or(0, |commitment| u64::from(commitment.module.len))
}

/// Reserves the one credit that a duplicate claim costs.
pub(super) fn reserve_one(
    stage: &Stage<'_>,
    claim: &Claim,
    holdout: &Holdout,
) -> Result<Vec<Event>, Refusal> {
    let (account, mut events) = payer(stage, claim);
    if account.unburned() == 0 {
        return Err(Refusal::InsufficientCredit { needed: 1, left: 0 });
    }
    if account.balance == 0 {
        return Err(Refusal::Reserved { pool: Pool::Credit });
    }
    if let Some(budget) = holdout.narrower.credit {
        let left = budget.saturating_sub(holdout.credit_burned);
        if left == 0 {
            return Err(Refusal::HoldoutCreditExhausted { needed: 1, left });
        }
        if left <= holdout.credit_reserved {
            return Err(Refusal::Reserved {
                pool: Pool::HoldoutCredit,
            });
        }
    }
    events.push(Event::CreditReserved {
        owner: account.owner,
        claim: claim.id,
        amount: 1,
        // Nothing runs; fuel above 0 makes `burn` charge the credit.
        max_fuel: 1,
    });
    Ok(events)
}

/// The event of a refusal for want of credit: each request counts once.
pub(super) fn denied(stage: &Stage<'_>, claim: &ClaimId, refusal: &Refusal) -> Vec<Event> {
    let counts = matches!(refusal, Refusal::InsufficientCredit { .. });
    let Some(claim) = stage.claim(claim).filter(|_| counts) else {
        return Vec::new();
    };
    let (account, mut events) = payer(stage, claim);
    events.push(Event::CreditDenied(account.owner));
    events
}

/// Burns what a run used. An aborted run is the server's fault and costs nothing. If the tariff was
/// raised meanwhile, at most the reservation is burned.
pub(super) fn burn(
    stage: &Stage<'_>,
    claim: &Claim,
    outcome: Outcome,
    bits: MicroBits,
    report: &RunReport,
) -> Option<Event> {
    // A run of a release without credit reserved nothing.
    if claim.credit.max_fuel == 0 {
        return None;
    }
    let charge = match outcome {
        Outcome::Aborted => 0,
        Outcome::Certified | Outcome::NotCertified | Outcome::NotJudged => {
            stage.accounting().tariff.charge(Usage {
                bits,
                fuel: report.fuel,
                pages: report.pages,
                module_bytes: module_bytes(claim),
            })
        }
    };
    Some(Event::CreditBurned {
        owner: claim.terms.owner,
        claim: claim.id,
        amount: charge.min(claim.credit.reserved),
    })
}

pub(crate) fn grant(
    stage: &Stage<'_>,
    caller: &Caller,
    owner: OwnerTag,
    principal: &str,
    amount: u64,
    reason: &str,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    public_text("reason", reason)?;
    public_text("principal_id", principal)?;
    if !(1..=MAX_CREDIT).contains(&amount) {
        return Err(Refusal::field(
            "amount",
            format!("must be between 1 and {MAX_CREDIT} credits"),
        ));
    }
    let (mut account, mut events) = touched(stage, owner, principal);
    if account.unburned().saturating_add(amount) > account.credit_limit {
        return Err(Refusal::BeyondCreditLimit {
            amount,
            unburned: account.unburned(),
            limit: account.credit_limit,
        });
    }
    account.add(amount);
    events.push(Event::CreditGranted {
        owner,
        amount,
        reason: reason.to_owned(),
    });
    let entry = CreditGranted {
        owner,
        amount,
        reason: reason.to_owned(),
        granted_unix_ms: stage.now_unix_ms(),
    };
    Ok(Decision {
        events,
        entries: vec![entry.to_bytes()],
        reply: Reply::Credit(account.unburned()),
    })
}

pub(crate) fn set_limit(
    stage: &Stage<'_>,
    caller: &Caller,
    owner: OwnerTag,
    principal: &str,
    limit: u64,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    public_text("principal_id", principal)?;
    if limit > MAX_CREDIT {
        return Err(Refusal::field(
            "limit",
            format!("must be at most {MAX_CREDIT} credits"),
        ));
    }
    let (_, mut events) = touched(stage, owner, principal);
    events.push(Event::CreditLimitSet { owner, limit });
    Ok(Decision {
        events,
        entries: Vec::new(),
        reply: Reply::Credit(limit),
    })
}

/// Sets accounts to the file's numbers. Accounts that the file does not name, and those that
/// already match, stay as they are.
pub(crate) fn import(
    stage: &Stage<'_>,
    caller: &Caller,
    accounts: &[ImportedAccount],
    file: Digest,
    reason: &str,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    public_text("reason", reason)?;
    // The events are applied after this decision, so the numbers of new accounts are counted here.
    let mut next_seq = stage.totals().accounts;
    let mut events = Vec::new();
    for imported in accounts {
        let before = stage.account(&imported.owner);
        let after = imported_over(before, imported, next_seq)?;
        if before.is_none() {
            next_seq += 1;
        }
        if before != Some(&after) {
            events.push(Event::AccountImported(Box::new(after)));
        }
    }
    let entry = AccountsImported {
        accounts: events.len() as u64,
        file,
        reason: reason.to_owned(),
        imported_unix_ms: stage.now_unix_ms(),
    };
    Ok(Decision {
        events,
        entries: vec![entry.to_bytes()],
        reply: Reply::Done,
    })
}

fn imported_over(
    before: Option<&Account>,
    imported: &ImportedAccount,
    next_seq: u64,
) -> Result<Account, Refusal> {
    let field = |rule: String| Refusal::field(&imported.principal, rule);
    public_text("principal_id", &imported.principal)?;
    for number in [
        imported.unburned,
        imported.credit_limit,
        imported.daily_mint_limit,
        imported.daily_mint_remaining,
        imported.burned_total,
        imported.denied_total,
        imported.last_mint_day,
    ] {
        if number > MAX_CREDIT {
            return Err(field(format!("no number may exceed {MAX_CREDIT}")));
        }
    }
    // The file's balance includes reservations. They stay, since runs under way settle against
    // them.
    let reserved = before.map_or(0, |account| account.reserved);
    let balance = imported.unburned.checked_sub(reserved).ok_or_else(|| {
        field(format!(
            "{reserved} credits are reserved by runs under way; a credit_balance below that cannot be imported"
        ))
    })?;
    Ok(Account {
        seq: before.map_or(next_seq, |account| account.seq),
        owner: imported.owner,
        principal: imported.principal.clone(),
        balance,
        reserved,
        daily_mint_remaining: imported.daily_mint_remaining,
        last_mint_day: imported.last_mint_day,
        credit_limit: imported.credit_limit,
        daily_mint_limit: imported.daily_mint_limit,
        burned_total: imported.burned_total,
        denied_total: imported.denied_total,
        requests: before.map_or_else(Vec::new, |account| account.requests.clone()),
        displaced_requests: before.is_some_and(|account| account.displaced_requests),
        stored_bytes: before.map_or(0, |account| account.stored_bytes),
    })
}
