//! The rules that decide commands.
//!
//! [`decide`] reads the stage and changes nothing; the events of its decision do. The same commands
//! in the same order give the same bytes on any machine: no clock, no randomness, no floats.
//! Idempotency is here; the rules have a module for each subject. [`crate::command`] states which
//! rule decides which command.

pub(crate) mod claims;
mod comparison;
pub(crate) mod continuity;
pub(crate) mod credit;
pub(crate) mod decisions;
pub(crate) mod holdouts;
pub(crate) mod keys;
pub(crate) mod runs;
pub(crate) mod server;
pub(crate) mod withdrawal;

pub use claims::{dependency_merkle_root, may_commit};

use crate::{
    account::LastCredit,
    claim::{Claim, LastRequest, Method},
    command::{
        Caller, ClaimCommand, Command, Decision, Event, Remembered, RememberedOn, RememberedResult,
        Reply, Request, Stamp,
    },
    id::{ClaimId, Fingerprint, OwnerTag},
    record,
    refusal::Refusal,
    state::{Key, Stage},
};

/// Decides a request against a stage that holds all that [`Stage::missing`] named.
///
/// # Errors
/// [`Refusal`]: nothing changes and nothing is remembered. A refusal to be remembered under its
/// request's key is a decision whose reply is [`Reply::Refused`].
pub fn decide(stage: &Stage<'_>, request: &Request) -> Result<Decision, Refusal> {
    debug_assert_eq!(
        stage.missing(request),
        Vec::<Key>::new(),
        "everything named is loaded"
    );
    // A repeated request gets its reply before any rule sees it. If a rule decided it again, it
    // could be charged twice, or refused because of its own first effect.
    if let Some(stamp) = request.stamp
        && let Some(recalled) = recall(stage, request, stamp)
    {
        return recalled.map(Decision::reply);
    }
    let decided = request.command.decide(stage, &request.caller);
    match decided.and_then(within_entries) {
        Ok(decision) => Ok(remember_success(stage, request, decision)),
        Err(refusal) => remember_refusal(stage, request, refusal),
    }
}

/// Refuses a decision with an entry too large for the log's files: it would be signed, and no later
/// start could publish the log. The driver's own commands stay far below: see the test
/// `the_largest_entry_of_every_command_fits`.
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

/// The caller's claim. Another principal's claim is refused exactly like one that does not exist.
pub(crate) fn own<'s>(
    stage: &'s Stage<'_>,
    caller: &Caller,
    id: &ClaimId,
) -> Result<&'s Claim, Refusal> {
    stage
        .claim(id)
        .filter(|claim| caller.may_act_on(claim))
        .ok_or(Refusal::UnknownClaim(*id))
}

/// The reply to a request that was decided before, if there is one.
fn recall(stage: &Stage<'_>, request: &Request, stamp: Stamp) -> Option<Result<Reply, Refusal>> {
    // The row has the last request of each method; the requests that they displaced are stored
    // under their keys.
    if let Some((fingerprint, reply)) = recall_from_row(stage, request, stamp) {
        return Some(same_request(stamp, fingerprint).map(|()| reply));
    }
    let remembered = stage.remembered(&stamp.key)?;
    Some(
        same_request(stamp, remembered.fingerprint).and_then(|()| match &remembered.result {
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
                own(stage, &request.caller, id).map(|claim| replay(*method, claim))
            }
            RememberedResult::Credit(answered) => Ok(Reply::Credit(*answered)),
            RememberedResult::Holdout(id) => match stage.holdout(id) {
                Some(holdout) => Ok(Reply::Holdout(Box::new(holdout.clone()))),
                None => Err(Refusal::UnknownHoldout(id.to_hex())),
            },
        }),
    )
}

fn same_request(stamp: Stamp, fingerprint: Fingerprint) -> Result<(), Refusal> {
    // Another request under a used key must not get the reply to the first one.
    if fingerprint == stamp.fingerprint {
        Ok(())
    } else {
        Err(Refusal::RequestIdReused)
    }
}

/// The fingerprint and the reply that the command's row remembers under the request's key.
fn recall_from_row(
    stage: &Stage<'_>,
    request: &Request,
    stamp: Stamp,
) -> Option<(Fingerprint, Reply)> {
    let refused = |refusal: &Refusal| Reply::Refused(refusal.clone());
    match request.command.remembered_on() {
        RememberedOn::Claim(method, id) => {
            let claim = own(stage, &request.caller, &id).ok()?;
            let mut requests = claim.requests.iter();
            let last =
                requests.find(|last| last.key == stamp.key && stage.in_window(last.at_unix_ms))?;
            let reply = last.refusal.as_ref().map(refused);
            Some((
                last.fingerprint,
                reply.unwrap_or_else(|| replay(method, claim)),
            ))
        }
        RememberedOn::Account { owner, .. } => {
            // A caller without the operator role must not learn a balance by repeating a request.
            let account = stage.account(&owner).filter(|_| request.caller.operator)?;
            let mut requests = account.requests.iter();
            let last =
                requests.find(|last| last.key == stamp.key && stage.in_window(last.at_unix_ms))?;
            let reply = match &last.result {
                Ok(answered) => Reply::Credit(*answered),
                Err(refusal) => refused(refusal),
            };
            Some((last.fingerprint, reply))
        }
        RememberedOn::Key => None,
    }
}

/// The reply that a successful call got, made again from the claim's present state.
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
    let event = match (request.command.remembered_on(), &decision.reply) {
        (RememberedOn::Claim(method, claim), _) => on_claim(stage, claim, method, stamp, None),
        (RememberedOn::Account { owner, limits }, Reply::Credit(answered)) => {
            on_account(stage, owner, limits, stamp, Ok(*answered))
        }
        (_, Reply::Created { claim, state, .. }) => {
            by_key(stage, stamp, RememberedResult::Created(*claim, *state))
        }
        (_, Reply::Holdout(holdout)) => by_key(stage, stamp, RememberedResult::Holdout(holdout.id)),
        (
            _,
            Reply::State(_)
            | Reply::Running(_)
            | Reply::Settled(_)
            | Reply::Revoked { .. }
            | Reply::Refused(_)
            | Reply::Credit(_)
            | Reply::Done,
        ) => return decision,
    };
    decision.events.push(event);
    decision
}

fn remember_refusal(
    stage: &Stage<'_>,
    request: &Request,
    refusal: Refusal,
) -> Result<Decision, Refusal> {
    let mut events = if let Command::Claim(ClaimCommand::Execute { claim }) = &request.command {
        credit::denied(stage, claim, &refusal)
    } else {
        Vec::new()
    };
    // The same request may succeed later: a remembered refusal would block it for a day.
    let stamp = request.stamp.filter(|_| !refusal.asks_to_retry());
    events.extend(stamp.and_then(|stamp| remembered_refusal(stage, request, &refusal, stamp)));
    // Without an event there is nothing to commit, and the refusal costs no write.
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
    let result = refusal.clone();
    Some(match request.command.remembered_on() {
        RememberedOn::Claim(method, claim) => {
            // Otherwise no row can remember it, and a caller that guesses ids must not make us
            // write.
            own(stage, &request.caller, &claim).ok()?;
            on_claim(stage, claim, method, stamp, Some(result))
        }
        RememberedOn::Account { owner, limits } => {
            stage.account(&owner).filter(|_| request.caller.operator)?;
            on_account(stage, owner, limits, stamp, Err(result))
        }
        RememberedOn::Key => by_key(stage, stamp, RememberedResult::Refused(result)),
    })
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

/// Demands 1–256 bytes without control characters: these texts go into the public log.
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
