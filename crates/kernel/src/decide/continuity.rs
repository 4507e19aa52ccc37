//! Beginning a log, recovering its entries, and going on under another name.

use std::collections::BTreeMap;

use crate::{
    bits::MicroBits,
    claim::{Claim, ClaimState, Reason, Revocation, Settlement},
    command::{BeginLog, Caller, ContinueLog, Decision, Event, Reply, RestartLog},
    continuity::{HoldoutCharged, LogContinued, LogRestarted, LogStarted},
    decide::runs,
    entry::Entry,
    holdout::{Holdout, HoldoutStatus},
    id::{ClaimId, Digest, HoldoutId},
    log_key::LogKey,
    record::{Capsule, ClaimRevoked, RecordError},
    refusal::Refusal,
    state::Stage,
};

/// Writes entry 0 and notes the key that signs it. A log begins once: a second beginning would be
/// our bug.
pub(crate) fn begin(stage: &Stage<'_>, begin: &BeginLog) -> Decision {
    assert_eq!(stage.next_index(), 0, "a log begins with its first entry");
    let key = LogKey::new(begin.public_key, 0);
    let entry = LogStarted {
        origin: begin.origin.clone(),
        key_id: key.id,
        software: begin.software.clone(),
        begun_by: Some(begin.begun_by),
        started_unix_ms: stage.now_unix_ms(),
    };
    Decision {
        events: vec![Event::KeyRotated(key)],
        entries: vec![entry.to_bytes()],
        reply: Reply::Done,
    }
}

/// Lets the log go on under another name. The reservations of runs under way are charged, since
/// those runs may have ended in the lost entries. All of it is one decision, so a crash cannot
/// leave half of it.
pub(crate) fn restart(
    stage: &Stage<'_>,
    caller: &Caller,
    restart: &RestartLog,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    super::public_text("because", &restart.because)?;
    let now = stage.now_unix_ms();
    let stated = stated(stage, &restart.charged)?;
    let first = LogRestarted {
        origin: restart.origin.clone(),
        old_origin: restart.old_origin.clone(),
        old: restart.old,
        known: restart.known,
        because: restart.because.clone(),
        restarted_unix_ms: now,
    };
    let mut holdouts: Vec<&Holdout> = stage.holdouts().collect();
    // The order of a hash map differs between machines, and the entries must be the same bytes.
    holdouts.sort_unstable_by_key(|holdout| holdout.seq);
    let charges: Vec<HoldoutCharged> = holdouts
        .iter()
        .map(|holdout| charge(holdout, stated.get(&holdout.id).copied(), now))
        // A charge that the operator states is an entry of its own, even if it is zero.
        .filter(|charged| {
            charged.stated || charged.answers > MicroBits::ZERO || charged.sealed > MicroBits::ZERO
        })
        .collect();
    let mut entries = vec![first.to_bytes()];
    entries.extend(charges.iter().map(HoldoutCharged::to_bytes));
    let mut whole = Decision {
        events: charges.into_iter().map(charged_event).collect(),
        entries,
        reply: Reply::Done,
    };
    abort_all(stage, &holdouts, &mut whole);
    whole.events.push(Event::LogCarriedOn);
    Ok(whole)
}

/// Each abort is decided after the ones before it, as if they had been committed one by one.
fn abort_all(stage: &Stage<'_>, holdouts: &[&Holdout], whole: &mut Decision) {
    let mut ahead = stage.clone();
    // The charges come first, so that the capsule of each aborted run states a k that includes
    // them.
    ahead.enact(whole);
    for holdout in holdouts {
        for run in &holdout.in_flight {
            let aborted = runs::abort(&ahead, &holdout.id, run.number);
            ahead.enact(&aborted);
            whole.events.extend(aborted.events);
            whole.entries.extend(aborted.entries);
        }
    }
}

/// The charges that the operator states, by holdout. A charge beyond the budget that is left is
/// refused as a mistake: cut to what is left, it would be a statement that the operator never made.
fn stated(
    stage: &Stage<'_>,
    charged: &[(HoldoutId, MicroBits)],
) -> Result<BTreeMap<HoldoutId, MicroBits>, Refusal> {
    let mut stated = BTreeMap::new();
    for (id, bits) in charged {
        let holdout = stage
            .holdout(id)
            .ok_or_else(|| Refusal::UnknownHoldout(id.to_hex()))?;
        let name = &holdout.reference;
        let (answers, sealed) = free(holdout);
        for (part, free) in [("answer", answers), ("sealed", sealed)] {
            if *bits > free {
                return Err(Refusal::field(
                    "charged",
                    format!(
                        "{bits} are stated for holdout {name}, and the budget of its {part} part carries only {free} more beside what runs under way have reserved; state at most that, or leave the holdout out, which exhausts it"
                    ),
                ));
            }
        }
        if stated.insert(*id, *bits).is_some() {
            return Err(Refusal::field(
                "charged",
                format!("{name} is stated twice; state it once"),
            ));
        }
    }
    Ok(stated)
}

/// The bits that both budgets still carry beside the reservations of runs under way.
fn free(holdout: &Holdout) -> (MicroBits, MicroBits) {
    let policy = &holdout.description.policy;
    (
        holdout.answers.free(policy.answer_budget),
        holdout.sealed.free(policy.sealed_budget),
    )
}

/// The stated charge, or all that is free. With the reservations of runs under way, the budget is
/// never exceeded.
fn charge(holdout: &Holdout, stated: Option<MicroBits>, now: u64) -> HoldoutCharged {
    let (answers, sealed) = free(holdout);
    HoldoutCharged {
        holdout: holdout.id,
        answers: stated.unwrap_or(answers),
        sealed: stated.unwrap_or(sealed),
        stated: stated.is_some(),
        charged_unix_ms: now,
    }
}

/// Records the operator's statement that the log was signed nowhere else since its newest entry.
pub(crate) fn carry_on(
    stage: &Stage<'_>,
    caller: &Caller,
    stated: &ContinueLog,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    super::public_text("because", &stated.because)?;
    let entry = LogContinued {
        origin: stated.origin.clone(),
        tree: stated.tree,
        because: stated.because.clone(),
        stated_unix_ms: stage.now_unix_ms(),
    };
    Ok(Decision {
        events: vec![Event::LogCarriedOn],
        entries: vec![entry.to_bytes()],
        reply: Reply::Done,
    })
}

fn charged_event(charged: HoldoutCharged) -> Event {
    Event::HoldoutCharged {
        holdout: charged.holdout,
        answers: charged.answers,
        sealed: charged.sealed,
    }
}

/// Appends a lost entry of this log byte for byte and applies its effect. If the subject of the
/// entry is lost, it stays unknown.
pub(crate) fn recover(
    stage: &Stage<'_>,
    caller: &Caller,
    entry: &[u8],
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    // An entry of an unknown kind may charge a budget: without its effect the holdout would release
    // that much again.
    let read = Entry::parse(entry).map_err(|error| {
        let remedy = match error {
            RecordError::Kind(_) => "recover it with the release that wrote it",
            RecordError::Json(_)
            | RecordError::Field(_)
            | RecordError::Unknown(_)
            | RecordError::Value { .. } => "this is not an entry of this log",
        };
        Refusal::field("entry", format!("{error}; {remedy}"))
    })?;
    Ok(Decision {
        events: effect(stage, &read, entry)?
            .into_iter()
            .chain([Event::LogCarriedOn])
            .collect(),
        entries: vec![entry.to_vec()],
        reply: Reply::Done,
    })
}

/// The change of state that a recovered entry makes, if any.
fn effect(stage: &Stage<'_>, entry: &Entry, bytes: &[u8]) -> Result<Option<Event>, Refusal> {
    let holdout = |id: &HoldoutId| stage.holdout(id);
    let known = |id: &HoldoutId| holdout(id).is_some();
    Ok(match entry {
        Entry::ClaimCapsule(capsule) => settled(stage, capsule, bytes)?,
        Entry::ClaimRevoked(entry) => revoked(stage, entry),
        Entry::HoldoutRetired(entry) => holdout(&entry.holdout)
            .filter(|holdout| holdout.status == HoldoutStatus::Registered)
            .map(|holdout| Event::HoldoutRetired(holdout.id)),
        Entry::HoldoutOpened(entry) => holdout(&entry.holdout)
            .filter(|holdout| holdout.status != HoldoutStatus::Opened)
            .map(|holdout| Event::HoldoutOpened(holdout.id)),
        Entry::HoldoutWithdrawn(entry) => holdout(&entry.holdout)
            .filter(|holdout| holdout.status != HoldoutStatus::Withdrawn)
            .map(|holdout| Event::HoldoutWithdrawn(holdout.id)),
        Entry::HoldoutPolicy(changed) => {
            known(&changed.holdout).then_some(Event::BudgetsNarrowed {
                holdout: changed.holdout,
                narrower: changed.budgets,
            })
        }
        Entry::HoldoutCompared(compared) => {
            known(&compared.holdout).then_some(Event::HoldoutCompared {
                holdout: compared.holdout,
                answers: compared.answers,
                sealed: compared.sealed,
            })
        }
        Entry::HoldoutCharged(charged) => known(&charged.holdout).then(|| charged_event(*charged)),
        Entry::KeyRotated(entry) => {
            // The new key signs trees from the one that includes this entry; its size is the
            // entry's index plus one.
            let since = stage.next_index() + 1;
            let key = LogKey::new(entry.signed.link.new_public_key, since);
            Some(Event::KeyRotated(key))
        }
        Entry::PoliciesInForce(stated) => Some(Event::PoliciesStated(stated.in_force)),
        Entry::LogRestarted(_) => {
            return Err(Refusal::field(
                "entry",
                "the log continued under another name there; recover it from a copy under its own name",
            ));
        }
        // The log does not contain holdouts' items, accounts' names or decision records, so they
        // stay lost.
        Entry::LogStarted(_)
        | Entry::LogContinued(_)
        | Entry::HoldoutRegistered(_)
        | Entry::CreditGranted(_)
        | Entry::AccountsImported(_)
        | Entry::DecisionBatch(_) => None,
    })
}

fn settled(stage: &Stage<'_>, capsule: &Capsule, entry: &[u8]) -> Result<Option<Event>, Refusal> {
    if stage.holdout(&capsule.holdout_id).is_none() {
        return Ok(None);
    }
    // A second capsule would charge the holdout twice for one claim.
    if stage
        .claim(&capsule.claim_id)
        .is_some_and(|claim| claim.settlement.is_some())
    {
        return Err(Refusal::field(
            "entry",
            format!("claim {} has a capsule already", capsule.claim_id),
        ));
    }
    let reasons = capsule.reason_codes.iter().copied();
    let settlement = Settlement {
        outcome: capsule.outcome,
        reasons: reasons.filter_map(Reason::of_code).collect(),
        // The log has only the output's digest.
        output: Vec::new(),
        e_value_log2: capsule.e_value_log2,
        answers_charged: capsule.answers.charged,
        price: capsule.ledger.price,
        threshold: capsule.ledger.threshold,
        fuel: capsule.fuel,
        trace_hash: capsule.trace_hash,
        trace_len: 0,
        capsule_hash: Digest::of(entry),
        index: stage.next_index(),
        settled_unix_ms: capsule.settled_unix_ms,
    };
    Ok(Some(Event::RunRecovered {
        holdout: capsule.holdout_id,
        owner: capsule.owner_tag,
        claim: capsule.claim_id,
        settlement: Box::new(settlement),
    }))
}

fn revoked(stage: &Stage<'_>, entry: &ClaimRevoked) -> Option<Event> {
    let found: &Claim = stage.claim(&entry.claim)?;
    (found.settlement.is_some() && found.state != ClaimState::Revoked).then(|| {
        Event::ClaimRevoked {
            claim: entry.claim,
            revocation: Revocation {
                reason: entry.reason.clone(),
                revoked_unix_ms: entry.revoked_unix_ms,
                index: stage.next_index(),
            },
        }
    })
}

/// The rows that a recovered entry concerns: its claim, holdout and owner.
pub(crate) fn subject(entry: &[u8]) -> (Option<ClaimId>, Option<Capsule>) {
    if let Ok(capsule) = Capsule::parse(entry) {
        return (Some(capsule.claim_id), Some(capsule));
    }
    let revoked = ClaimRevoked::parse(entry).ok();
    (revoked.map(|revoked| revoked.claim), None)
}
