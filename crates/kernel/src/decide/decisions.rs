//! Decisions about tool calls: their batches in the log, and the deletion of their records.

use crate::{
    command::{Caller, Decision, Event, NewDecisions, Reply},
    decision::{BatchRecorded, DecisionId},
    refusal::Refusal,
    state::Stage,
};

/// Appends a batch of decisions to the log. The edge made the decisions, by [`crate::probe`] and by
/// policy modules.
pub(crate) fn record(
    stage: &Stage<'_>,
    caller: &Caller,
    new: &NewDecisions,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    let entry = BatchRecorded {
        batch: new.batch,
        recorded_unix_ms: stage.now_unix_ms(),
    };
    Ok(Decision {
        events: vec![Event::DecisionsRecorded {
            batch: new.batch,
            index: stage.next_index(),
        }],
        entries: vec![entry.to_bytes()],
        reply: Reply::Done,
    })
}

pub(crate) fn forget(caller: &Caller, through: DecisionId) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    Ok(Decision::event(
        Event::DecisionsForgotten { through },
        Reply::Done,
    ))
}
