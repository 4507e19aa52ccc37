//! The policies in force, and the clock.

use crate::{
    command::{Caller, Decision, Event, Reply},
    in_force::{InForce, PoliciesStated},
    refusal::Refusal,
    state::Stage,
};

/// States the policies in force. Policies that are already in force are not stated again.
pub(crate) fn state_policies(
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

pub(crate) fn confirm_clock(
    caller: &Caller,
    from_unix_ms: u64,
    to_unix_ms: u64,
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    Ok(Decision::event(
        Event::ClockConfirmed {
            from_unix_ms,
            to_unix_ms,
        },
        Reply::Done,
    ))
}
