//! Decisions about tool calls: what the log is told of them, and for how long they are kept.

use crate::{
    command::{Caller, Decision, Event, NewDecisions, Reply},
    decision::{BatchRecorded, DecisionId},
    refusal::Refusal,
    state::Stage,
};

/// The decisions themselves were made at the edge, by [`crate::probe`] and by policies; here they
/// become part of what is certain.
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
