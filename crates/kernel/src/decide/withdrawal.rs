//! Withdrawing a holdout that released nothing, and registering its labels again.

use super::{holdouts::find, public_text};
use crate::{
    command::{Caller, Decision, Event, Reply},
    holdout::{Holdout, HoldoutStatus},
    id::{Digest, HoldoutId},
    record::HoldoutWithdrawn,
    refusal::Refusal,
    state::Stage,
};

/// The most times in a row that the same labels may be registered again after a withdrawal: each
/// time draws another split, and an operator must not draw until they like one.
pub const MAX_REPLACED: u8 = 3;

/// Withdraws a holdout. The writer decides this, so no run can be admitted meanwhile. Queued claims
/// meet the new status and are refused.
pub(crate) fn withdraw(
    stage: &Stage<'_>,
    caller: &Caller,
    id: &HoldoutId,
    reason: &str,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    public_text("reason", reason)?;
    let holdout = find(stage, id)?;
    if holdout.status == HoldoutStatus::Withdrawn {
        return Ok(Decision::reply(Reply::Holdout(Box::new(holdout.clone()))));
    }
    if let Some(why) = holdout.may_have_released() {
        return Err(Refusal::NotWithdrawable {
            reference: holdout.reference.clone(),
            why,
        });
    }
    let withdrawn = Holdout {
        status: HoldoutStatus::Withdrawn,
        ..holdout.clone()
    };
    let entry = HoldoutWithdrawn {
        holdout: *id,
        reason: reason.to_owned(),
        withdrawn_unix_ms: stage.now_unix_ms(),
    };
    Ok(Decision {
        events: vec![Event::HoldoutWithdrawn(*id)],
        entries: vec![entry.to_bytes()],
        reply: Reply::Holdout(Box::new(withdrawn)),
    })
}

/// The withdrawn holdout that a registration of these labels replaces, and the number of
/// withdrawals in a row.
pub(super) fn replaced(
    stage: &Stage<'_>,
    labels_key: Digest,
) -> Result<Option<(HoldoutId, u8)>, Refusal> {
    // Each registration states how many came before it, so the newest one has the count.
    let newest = stage
        .holdouts()
        .filter(|holdout| holdout.status == HoldoutStatus::Withdrawn)
        .filter(|holdout| holdout.labels_key == labels_key)
        .max_by_key(|holdout| holdout.seq);
    match newest {
        Some(holdout) if holdout.replaced >= MAX_REPLACED => Err(Refusal::HoldoutExists(format!(
            "these labels were withdrawn {} times in a row, and each registration draws another split; register a fresh batch of items",
            u16::from(MAX_REPLACED) + 1
        ))),
        Some(holdout) => Ok(Some((holdout.id, holdout.replaced + 1))),
        None => Ok(None),
    }
}
