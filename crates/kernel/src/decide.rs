//! The rules: what becomes of a command.
//!
//! [`decide`] reads the stage and changes nothing; the events of its decision do. The same
//! commands in the same order give the same bytes on any machine: no clock, no randomness, no
//! floats. One module a subject: idempotency here, then holdouts, claims, runs.

mod claims;
mod comparison;
pub(crate) mod continuity;
mod credit;
mod decisions;
mod holdouts;
mod keys;
mod runs;
mod withdrawal;

pub use claims::{dependency_merkle_root, may_commit};

use crate::{
    account::LastCredit,
    claim::{Claim, LastRequest, Method},
    command::{
        Caller, Command, Decision, Event, Remembered, RememberedResult, Reply, Request, Stamp,
    },
    id::{ClaimId, OwnerTag},
    in_force::{InForce, PoliciesStated},
    record,
    refusal::Refusal,
    state::{Key, Stage},
};

/// Decides a request against a stage that holds all that [`Stage::missing`] named.
///
/// # Errors
/// A [`Refusal`]: nothing changes and nothing is remembered. A refusal that is to be remembered
/// under its request's key comes as a decision whose reply is [`Reply::Refused`].
pub fn decide(stage: &Stage<'_>, request: &Request) -> Result<Decision, Refusal> {
    debug_assert_eq!(
        stage.missing(request),
        Vec::<Key>::new(),
        "everything named is loaded"
    );
    if let Some(stamp) = request.stamp
        && let Some(recalled) = recall(stage, request, stamp)
    {
        return recalled.map(Decision::reply);
    }
    match dispatch(stage, request).and_then(within_entries) {
        Ok(decision) => Ok(remember_success(stage, request, decision)),
        Err(refusal) => remember_refusal(stage, request, refusal),
    }
}

/// Refuses what would write an entry that the log's files cannot hold: it would be signed, and no
/// start after that could publish the log. What the driver commands by itself never comes near:
/// see the test `the_largest_entry_of_every_command_fits`.
fn within_entries(decision: Decision) -> Result<Decision, Refusal> {
    match decision
        .entries
        .iter()
        .map(Vec::len)
        .find(|&len| len > record::MAX_ENTRY_LEN)
    {
        None => Ok(decision),
        Some(len) => Err(Refusal::EntryTooLong {
            what: "this request".to_owned(),
            bytes: len as u64,
            remedy: "shorten its texts and lists".to_owned(),
        }),
    }
}

fn dispatch(stage: &Stage<'_>, request: &Request) -> Result<Decision, Refusal> {
    let caller = &request.caller;
    match &request.command {
        Command::PutHoldout(put) => holdouts::put(stage, caller, put),
        Command::RetireHoldout { holdout, reason } => {
            holdouts::retire(stage, caller, holdout, reason)
        }
        Command::OpenHoldout { holdout } => holdouts::open(stage, caller, holdout),
        Command::WithdrawHoldout { holdout, reason } => {
            withdrawal::withdraw(stage, caller, holdout, reason)
        }
        Command::CreateClaim {
            id,
            terms,
            principal,
        } => claims::create(stage, *id, terms, principal),
        Command::CommitArtifacts {
            claim,
            artifacts,
            module,
        } => claims::commit(
            stage,
            own(stage, request, claim)?,
            caller,
            artifacts,
            *module,
        ),
        Command::SealClaim { claim } => claims::seal(stage, own(stage, request, claim)?),
        Command::ExecuteClaim { claim } => runs::admit(stage, own(stage, request, claim)?),
        Command::RevokeClaim { claim, reason } => {
            claims::revoke(stage, own(stage, request, claim)?, reason)
        }
        Command::BeginAgain {
            holdout,
            number,
            failed,
        } => Ok(runs::begin_again(holdout, *number, *failed)),
        Command::Settle {
            holdout,
            number,
            report,
        } => Ok(runs::settle(stage, holdout, *number, report)),
        Command::Abort { holdout, number } => Ok(runs::abort(stage, holdout, *number)),
        Command::SettleDuplicate { holdout, number } => {
            Ok(runs::settle_duplicate(stage, holdout, *number))
        }
        Command::BeginLog(begin) => Ok(continuity::begin(stage, begin)),
        Command::KnowFirstKey(public_key) => Ok(keys::know_first(public_key)),
        Command::RotateKey(signed) => Ok(keys::rotate(stage, signed)),
        Command::RestartLog(restart) => continuity::restart(stage, caller, restart),
        Command::ContinueLog(stated) => continuity::carry_on(stage, caller, stated),
        Command::RecoverEntry(entry) => continuity::recover(stage, caller, entry),
        Command::RekeyHoldouts { generation, blobs } => {
            keys::rekey(stage, caller, *generation, blobs)
        }
        Command::GrantCredit {
            owner,
            principal,
            amount,
            reason,
        } => credit::grant(stage, caller, *owner, principal, *amount, reason),
        Command::SetCreditLimit {
            owner,
            principal,
            limit,
        } => credit::set_limit(stage, caller, *owner, principal, *limit),
        Command::ImportAccounts {
            accounts,
            file,
            reason,
        } => credit::import(stage, caller, accounts, *file, reason),
        Command::SetBudgets { holdout, narrower } => {
            holdouts::narrow(stage, caller, holdout, *narrower)
        }
        Command::StatePolicies(in_force) => state_policies(stage, caller, *in_force),
        Command::RecordDecisions(new) => decisions::record(stage, caller, new),
        Command::ForgetDecisions { through } => decisions::forget(caller, *through),
        Command::ConfirmClock {
            from_unix_ms,
            to_unix_ms,
        } => {
            caller.must_operate()?;
            Ok(Decision::event(
                Event::ClockConfirmed {
                    from_unix_ms: *from_unix_ms,
                    to_unix_ms: *to_unix_ms,
                },
                Reply::Done,
            ))
        }
    }
}

/// Policies that are in force already are not stated again.
fn state_policies(
    stage: &Stage<'_>,
    caller: &Caller,
    in_force: InForce,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    if stage.in_force() == in_force {
        return Ok(Decision::reply(Reply::Done));
    }
    let entry = PoliciesStated {
        in_force,
        in_force_unix_ms: stage.now_unix_ms(),
    };
    Ok(Decision {
        events: vec![Event::PoliciesStated(in_force)],
        entries: vec![entry.to_bytes()],
        reply: Reply::Done,
    })
}

/// The caller's claim. Another principal's looks exactly like one that does not exist.
fn own<'s>(stage: &'s Stage<'_>, request: &Request, id: &ClaimId) -> Result<&'s Claim, Refusal> {
    stage
        .claim(id)
        .filter(|claim| request.caller.may_act_on(claim))
        .ok_or(Refusal::UnknownClaim(*id))
}

fn method_of(command: &Command) -> Option<(Method, ClaimId)> {
    match command {
        Command::CommitArtifacts { claim, .. } => Some((Method::Commit, *claim)),
        Command::SealClaim { claim } => Some((Method::Seal, *claim)),
        Command::ExecuteClaim { claim } => Some((Method::Execute, *claim)),
        Command::RevokeClaim { claim, .. } => Some((Method::Revoke, *claim)),
        Command::PutHoldout(_)
        | Command::RetireHoldout { .. }
        | Command::OpenHoldout { .. }
        | Command::WithdrawHoldout { .. }
        | Command::SettleDuplicate { .. }
        | Command::CreateClaim { .. }
        | Command::BeginAgain { .. }
        | Command::Settle { .. }
        | Command::Abort { .. }
        | Command::BeginLog(_)
        | Command::KnowFirstKey(_)
        | Command::RotateKey(_)
        | Command::RestartLog(_)
        | Command::ContinueLog(_)
        | Command::RecoverEntry(_)
        | Command::RekeyHoldouts { .. }
        | Command::GrantCredit { .. }
        | Command::SetCreditLimit { .. }
        | Command::ImportAccounts { .. }
        | Command::SetBudgets { .. }
        | Command::StatePolicies(_)
        | Command::RecordDecisions(_)
        | Command::ForgetDecisions { .. }
        | Command::ConfirmClock { .. } => None,
    }
}

/// The account that a command acts on, and whether it sets its limit.
fn credit_of(command: &Command) -> Option<(OwnerTag, bool)> {
    if let Command::GrantCredit { owner, .. } = command {
        return Some((*owner, false));
    }
    if let Command::SetCreditLimit { owner, .. } = command {
        return Some((*owner, true));
    }
    None
}

/// The reply to a request that was decided before, if this is one.
fn recall(stage: &Stage<'_>, request: &Request, stamp: Stamp) -> Option<Result<Reply, Refusal>> {
    let same = |fingerprint| {
        if fingerprint == stamp.fingerprint {
            Ok(())
        } else {
            Err(Refusal::RequestIdReused)
        }
    };
    if let Some((method, id)) = method_of(&request.command)
        && let Ok(claim) = own(stage, request, &id)
        && let Some(last) = claim
            .requests
            .iter()
            .find(|last| last.key == stamp.key && stage.in_window(last.at_unix_ms))
    {
        return Some(same(last.fingerprint).map(|()| match &last.refusal {
            Some(refusal) => Reply::Refused(refusal.clone()),
            None => replay(method, claim),
        }));
    }
    if let Some((owner, _)) = credit_of(&request.command)
        && let Some(account) = stage.account(&owner).filter(|_| request.caller.operator)
        && let Some(last) = account
            .requests
            .iter()
            .find(|last| last.key == stamp.key && stage.in_window(last.at_unix_ms))
    {
        return Some(same(last.fingerprint).map(|()| match &last.result {
            Ok(answered) => Reply::Credit(*answered),
            Err(refusal) => Reply::Refused(refusal.clone()),
        }));
    }
    let remembered = stage.remembered(&stamp.key)?;
    Some(
        same(remembered.fingerprint).and_then(|()| match &remembered.result {
            RememberedResult::Refused(refusal) => Ok(Reply::Refused(refusal.clone())),
            RememberedResult::Created(id, state) => match stage.claim(id) {
                Some(claim) => Ok(Reply::Created {
                    claim: *id,
                    topic: claim.terms.topic_id(),
                    state: *state,
                }),
                None => Err(Refusal::UnknownClaim(*id)),
            },
            RememberedResult::Acted(method, id) => {
                own(stage, request, id).map(|claim| replay(*method, claim))
            }
            RememberedResult::Credit(answered) => Ok(Reply::Credit(*answered)),
            RememberedResult::Holdout(id) => match stage.holdout(id) {
                Some(holdout) => Ok(Reply::Holdout(Box::new(holdout.clone()))),
                None => Err(Refusal::UnknownHoldout(id.to_hex())),
            },
        }),
    )
}

/// The reply that a successful call once got, made again from what became of the claim.
fn replay(method: Method, claim: &Claim) -> Reply {
    use crate::claim::ClaimState;
    match method {
        Method::Commit => Reply::State(ClaimState::Committed),
        Method::Seal => Reply::State(ClaimState::Sealed),
        Method::Execute if claim.settlement.is_none() => Reply::Running(claim.id),
        Method::Execute => Reply::Settled(Box::new(claim.clone())),
        Method::Revoke => Reply::Revoked {
            at_unix_ms: claim.revocation.as_ref().map_or(0, |r| r.revoked_unix_ms),
        },
    }
}

fn remember_success(stage: &Stage<'_>, request: &Request, mut decision: Decision) -> Decision {
    let Some(stamp) = request.stamp else {
        return decision;
    };
    if let (Reply::Credit(answered), Some((owner, limits))) =
        (&decision.reply, credit_of(&request.command))
    {
        let event = on_account(stage, owner, limits, stamp, Ok(*answered));
        decision.events.push(event);
        return decision;
    }
    let result = match (&decision.reply, method_of(&request.command)) {
        (_, Some((method, claim))) => {
            decision
                .events
                .push(on_claim(stage, claim, method, stamp, None));
            return decision;
        }
        (Reply::Created { claim, state, .. }, None) => RememberedResult::Created(*claim, *state),
        (Reply::Holdout(holdout), None) => RememberedResult::Holdout(holdout.id),
        (
            Reply::State(_)
            | Reply::Running(_)
            | Reply::Settled(_)
            | Reply::Revoked { .. }
            | Reply::Refused(_)
            | Reply::Credit(_)
            | Reply::Done,
            None,
        ) => return decision,
    };
    decision.events.push(by_key(stage, stamp, result));
    decision
}

fn remember_refusal(
    stage: &Stage<'_>,
    request: &Request,
    refusal: Refusal,
) -> Result<Decision, Refusal> {
    let mut events = if let Command::ExecuteClaim { claim } = &request.command {
        credit::denied(stage, claim, &refusal)
    } else {
        Vec::new()
    };
    let stamp = request.stamp.filter(|_| !refusal.asks_to_retry());
    events.extend(stamp.and_then(|stamp| remembered_refusal(stage, request, &refusal, stamp)));
    if events.is_empty() {
        return Err(refusal);
    }
    Ok(Decision {
        events,
        entries: Vec::new(),
        reply: Reply::Refused(refusal),
    })
}

fn remembered_refusal(
    stage: &Stage<'_>,
    request: &Request,
    refusal: &Refusal,
    stamp: Stamp,
) -> Option<Event> {
    if let Some((method, claim)) = method_of(&request.command) {
        // Otherwise there is no row for it to live in, and whoever guesses ids shall not make us
        // write.
        own(stage, request, &claim).ok()?;
        return Some(on_claim(stage, claim, method, stamp, Some(refusal.clone())));
    }
    if let Some((owner, limits)) = credit_of(&request.command) {
        stage.account(&owner).filter(|_| request.caller.operator)?;
        let result = Err(refusal.clone());
        return Some(on_account(stage, owner, limits, stamp, result));
    }
    Some(by_key(
        stage,
        stamp,
        RememberedResult::Refused(refusal.clone()),
    ))
}

fn on_account(
    stage: &Stage<'_>,
    owner: OwnerTag,
    limits: bool,
    stamp: Stamp,
    result: Result<u64, Refusal>,
) -> Event {
    Event::AccountRequestRemembered {
        owner,
        request: LastCredit {
            limits,
            key: stamp.key,
            fingerprint: stamp.fingerprint,
            at_unix_ms: stage.now_unix_ms(),
            result,
        },
    }
}

fn on_claim(
    stage: &Stage<'_>,
    claim: ClaimId,
    method: Method,
    stamp: Stamp,
    refusal: Option<Refusal>,
) -> Event {
    Event::ClaimRequestRemembered {
        claim,
        request: LastRequest {
            method,
            key: stamp.key,
            fingerprint: stamp.fingerprint,
            at_unix_ms: stage.now_unix_ms(),
            refusal,
        },
    }
}

fn by_key(stage: &Stage<'_>, stamp: Stamp, result: RememberedResult) -> Event {
    Event::RequestRemembered {
        key: stamp.key,
        remembered: Remembered {
            fingerprint: stamp.fingerprint,
            at_unix_ms: stage.now_unix_ms(),
            result,
        },
    }
}

/// Demands 1–256 bytes without control characters: such texts go into the public log.
fn public_text(field: &str, text: &str) -> Result<(), Refusal> {
    if (1..=256).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(Refusal::field(
            field,
            "must be 1 to 256 bytes of text without control characters",
        ))
    }
}
