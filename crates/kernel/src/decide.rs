//! The rules: what becomes of a command.
//!
//! [`decide`] reads the stage and changes nothing; the events of its decision do. The same
//! commands in the same order give the same bytes on any machine: no clock, no randomness, no
//! floats. One module a subject: idempotency here, then holdouts, claims, runs.

mod claims;
mod holdouts;
mod keys;
mod runs;

pub use claims::dependency_merkle_root;

use crate::{
    claim::{Claim, LastRequest, Method},
    command::{Command, Decision, Event, Remembered, RememberedResult, Reply, Request, Stamp},
    id::ClaimId,
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
    match dispatch(stage, request) {
        Ok(decision) => Ok(remember_success(stage, request, decision)),
        Err(refusal) => remember_refusal(stage, request, refusal),
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
        Command::CreateClaim { id, terms } => claims::create(stage, *id, terms),
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
        Command::BeginAgain { holdout, number } => Ok(runs::begin_again(holdout, *number)),
        Command::Settle {
            holdout,
            number,
            report,
        } => Ok(runs::settle(stage, holdout, *number, report)),
        Command::Abort { holdout, number } => Ok(runs::abort(stage, holdout, *number)),
        Command::RotateKey(signed) => Ok(keys::rotate(stage, signed)),
        Command::RekeyHoldouts { generation, blobs } => {
            keys::rekey(stage, caller, *generation, blobs)
        }
    }
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
        | Command::CreateClaim { .. }
        | Command::BeginAgain { .. }
        | Command::Settle { .. }
        | Command::Abort { .. }
        | Command::RotateKey(_)
        | Command::RekeyHoldouts { .. } => None,
    }
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
    let Some(stamp) = request.stamp.filter(|_| !refusal.asks_to_retry()) else {
        return Err(refusal);
    };
    let event = match method_of(&request.command) {
        Some((method, claim)) if own(stage, request, &claim).is_ok() => {
            on_claim(stage, claim, method, stamp, Some(refusal.clone()))
        }
        // There is no row for it to live in, and whoever guesses ids shall not make us write.
        Some(_) => return Err(refusal),
        None => by_key(stage, stamp, RememberedResult::Refused(refusal.clone())),
    };
    Ok(Decision::event(event, Reply::Refused(refusal)))
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
