//! Registering, retiring and opening holdouts, and changing their budgets.

use super::{comparison, withdrawal};
use crate::{
    command::{Caller, Decision, Event, PutHoldout, Reply},
    holdout::{Description, Holdout, HoldoutStatus, MAX_ITEMS, Meter, NarrowerBudgets},
    id::HoldoutId,
    record::{BudgetsChanged, HoldoutOpened, HoldoutRetired, MAX_ENTRY_LEN, Registered},
    refusal::Refusal,
    state::Stage,
};

pub(crate) fn put(
    stage: &Stage<'_>,
    caller: &Caller,
    put: &PutHoldout,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    // The labels were compared outside the writer, and not with holdouts registered since.
    if put.generation != stage.counters().holdouts_generation {
        return Err(Refusal::HoldoutsChanged);
    }
    check(put)?;
    must_be_a_new_name(stage, &put.reference)?;
    let replaced = withdrawal::replaced(stage, put.labels_key)?;
    let description = Description {
        replaces: replaced.map(|(withdrawn, _)| withdrawn),
        ..put.description.clone()
    };
    let registered = Registered::new(put.reference.clone(), description, stage.now_unix_ms());
    let entry = registered.to_bytes();
    // Check the size first: a registration that the log cannot hold must not charge other holdouts
    // for a comparison.
    fits(&entry)?;
    let comparison = comparison::of(stage, put)?;
    if let Some(refused) = comparison.refusal {
        return Ok(Decision {
            events: comparison.events,
            entries: comparison.entries,
            reply: Reply::Refused(refused),
        });
    }
    let holdout = Holdout {
        // The entries of the comparisons come first in this decision.
        index: stage.next_index() + comparison.entries.len() as u64,
        replaced: replaced.map_or(0, |(_, times)| times),
        ..untouched(stage, put, registered)
    };
    let mut events = comparison.events;
    events.push(Event::HoldoutRegistered(Box::new(holdout.clone())));
    // The journal keeps the form of the first release: serde skips later fields in the event above,
    // so this event carries them.
    events.push(Event::HoldoutTold {
        holdout: holdout.id,
        later: Box::new(holdout.later()),
    });
    let mut entries = comparison.entries;
    entries.push(entry);
    Ok(Decision {
        events,
        entries,
        reply: Reply::Holdout(Box::new(holdout)),
    })
}

/// Refuses a name in use. The name of a withdrawn holdout is free again.
fn must_be_a_new_name(stage: &Stage<'_>, reference: &str) -> Result<(), Refusal> {
    let other = stage.holdout_by_reference(reference);
    if other.is_some_and(|other| other.status != HoldoutStatus::Withdrawn) {
        return Err(Refusal::HoldoutExists(format!(
            "a holdout named {reference:?} is registered already; a changed or fresh batch of items is a new holdout, under a new name"
        )));
    }
    Ok(())
}

/// A new holdout that replaces none and has no charges, as if its entry came next.
fn untouched(stage: &Stage<'_>, put: &PutHoldout, registered: Registered) -> Holdout {
    Holdout {
        seq: stage.counters().next_holdout_seq,
        id: registered.id,
        reference: registered.reference,
        description: registered.description,
        blob: put.blob,
        labels_key: put.labels_key,
        has_item_ids: put.has_item_ids,
        status: HoldoutStatus::Registered,
        registered_unix_ms: registered.registered_unix_ms,
        index: stage.next_index(),
        answers: Meter::default(),
        sealed: Meter::default(),
        settled: 0,
        certified: 0,
        admitted: 0,
        in_flight: Default::default(),
        narrower: NarrowerBudgets::default(),
        credit_burned: 0,
        credit_reserved: 0,
        replaced: 0,
        carried_on: false,
    }
}

/// Refuses a registration that does not fit a log entry; long lists of answer prices are the usual
/// cause.
fn fits(entry: &[u8]) -> Result<(), Refusal> {
    if entry.len() <= MAX_ENTRY_LEN {
        return Ok(());
    }
    Err(Refusal::EntryTooLong {
        what: "this holdout's public description".to_owned(),
        bytes: entry.len() as u64,
        remedy:
            "list fewer answer prices: an alphabet without a list costs the same for each symbol"
                .to_owned(),
    })
}

fn check(put: &PutHoldout) -> Result<(), Refusal> {
    let description = &put.description;
    super::public_text("holdout_ref", &put.reference)?;
    // A name that reads as an id could be another holdout's id, which would then mean this holdout.
    if HoldoutId::from_typed_hex(&put.reference).is_some() {
        return Err(Refusal::field(
            "holdout_ref",
            "must not be 64 hex digits: that is how a holdout's id is written",
        ));
    }
    if !(1..=MAX_ITEMS).contains(&description.items) {
        return Err(Refusal::field(
            "items",
            format!(
                "a holdout has 1 to {MAX_ITEMS} items, this one {}",
                description.items
            ),
        ));
    }
    if description.sealed_items == 0 {
        return Err(Refusal::field(
            "answer_share_micros",
            "leaves no sealed items; lower the share or add items",
        ));
    }
    description
        .policy
        .validate()
        .map_err(|error| Refusal::field(&format!("policy.{}", error.field), error.rule))
}

pub(crate) fn retire(
    stage: &Stage<'_>,
    caller: &Caller,
    id: &HoldoutId,
    reason: &str,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    super::public_text("reason", reason)?;
    let holdout = find(stage, id)?;
    if holdout.status == HoldoutStatus::Withdrawn {
        return Err(Refusal::HoldoutWithdrawn(holdout.reference.clone()));
    }
    if holdout.status != HoldoutStatus::Registered {
        return Ok(Decision::reply(Reply::Holdout(Box::new(holdout.clone()))));
    }
    let retired = Holdout {
        status: HoldoutStatus::Retired,
        ..holdout.clone()
    };
    let entry = HoldoutRetired {
        holdout: *id,
        reason: reason.to_owned(),
        retired_unix_ms: stage.now_unix_ms(),
    };
    Ok(Decision {
        events: vec![Event::HoldoutRetired(*id)],
        entries: vec![entry.to_bytes()],
        reply: Reply::Holdout(Box::new(retired)),
    })
}

pub(crate) fn open(
    stage: &Stage<'_>,
    caller: &Caller,
    id: &HoldoutId,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    let holdout = find(stage, id)?;
    match holdout.status {
        HoldoutStatus::Opened => Ok(Decision::reply(Reply::Holdout(Box::new(holdout.clone())))),
        HoldoutStatus::Withdrawn => Err(Refusal::HoldoutWithdrawn(holdout.reference.clone())),
        HoldoutStatus::Registered => Err(Refusal::field(
            "holdout",
            format!(
                "{:?} still takes claims; opening makes its labels public, so retire it first",
                holdout.reference
            ),
        )),
        HoldoutStatus::Retired if !holdout.in_flight.is_empty() => {
            Err(Refusal::RunsInFlight(holdout.in_flight.len()))
        }
        HoldoutStatus::Retired => {
            let opened = Holdout {
                status: HoldoutStatus::Opened,
                ..holdout.clone()
            };
            let entry = HoldoutOpened {
                holdout: *id,
                opened_unix_ms: stage.now_unix_ms(),
            };
            Ok(Decision {
                events: vec![Event::HoldoutOpened(*id)],
                entries: vec![entry.to_bytes()],
                reply: Reply::Holdout(Box::new(opened)),
            })
        }
    }
}

/// Narrows budgets. Charges stay: a budget below them releases nothing more, and a budget widened
/// again, up to the registered one, releases the rest.
pub(crate) fn narrow(
    stage: &Stage<'_>,
    caller: &Caller,
    id: &HoldoutId,
    narrower: NarrowerBudgets,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    let holdout = find(stage, id)?;
    let policy = &holdout.description.policy;
    for (asked, registered) in [
        (narrower.sealed, policy.sealed_budget),
        (narrower.principal_answers, policy.principal_answer_budget),
    ] {
        if asked.is_some_and(|asked| asked > registered) {
            return Err(Refusal::field(
                "new_k_bits_budget",
                format!(
                    "at most {registered}: a budget cannot exceed that of the registered holdout policy, which is public; register a fresh holdout for more"
                ),
            ));
        }
    }
    let before = holdout.narrower;
    // A budget that the operator leaves out stays as an earlier call set it.
    let narrower = NarrowerBudgets {
        sealed: narrower.sealed.or(before.sealed),
        principal_answers: narrower.principal_answers.or(before.principal_answers),
        credit: narrower.credit.or(before.credit),
    };
    if narrower == before {
        return Ok(Decision::reply(Reply::Holdout(Box::new(holdout.clone()))));
    }
    let after = Holdout {
        narrower,
        ..holdout.clone()
    };
    let changed = BudgetsChanged {
        holdout: *id,
        budgets: narrower,
        changed_unix_ms: stage.now_unix_ms(),
    };
    Ok(Decision {
        events: vec![Event::BudgetsNarrowed {
            holdout: *id,
            narrower,
        }],
        entries: vec![changed.to_bytes()],
        reply: Reply::Holdout(Box::new(after)),
    })
}

pub(super) fn find<'s>(stage: &'s Stage<'_>, id: &HoldoutId) -> Result<&'s Holdout, Refusal> {
    stage
        .holdout(id)
        .ok_or_else(|| Refusal::UnknownHoldout(id.to_hex()))
}
