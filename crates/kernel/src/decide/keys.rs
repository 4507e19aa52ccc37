//! Keys that follow one another: the log's, and the one under which holdouts are encrypted.

use std::collections::HashSet;

use crate::{
    command::{Caller, Decision, Event, Reply},
    holdout::HoldoutStatus,
    id::{Digest, HoldoutId},
    log_key::{KeyRotated, LogKey, SignedKeyLink},
    refusal::Refusal,
    state::Stage,
};

/// The key that signed the log from its first entry on. No entry tells of it but the first, by its id.
pub(crate) fn know_first(public_key: &[u8; 32]) -> Decision {
    let key = LogKey::new(*public_key, 0);
    Decision::event(Event::KeyRotated(key), Reply::Done)
}

/// The next entry is the last that the old key's tree does not hold, so a link about any other
/// tree is a bug of ours: it would leave entries that neither key vouches for.
pub(crate) fn rotate(stage: &Stage<'_>, signed: &SignedKeyLink) -> Decision {
    let link = &signed.link;
    assert_eq!(
        link.tree_size,
        stage.next_index(),
        "a key link is about the tree just before it"
    );
    let key = LogKey::new(link.new_public_key, link.tree_size + 1);
    let entry = KeyRotated {
        signed: signed.clone(),
        rotated_unix_ms: stage.now_unix_ms(),
    };
    Decision {
        events: vec![Event::KeyRotated(key)],
        entries: vec![entry.to_bytes()],
        reply: Reply::Done,
    }
}

/// Every holdout's items are encrypted anew, or none's: half of them would need two keys for ever.
pub(crate) fn rekey(
    stage: &Stage<'_>,
    caller: &Caller,
    generation: u64,
    blobs: &[(HoldoutId, Digest)],
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    let named: HashSet<HoldoutId> = blobs.iter().map(|(id, _)| *id).collect();
    // The items of a withdrawn holdout are gone.
    let all = stage
        .holdouts()
        .all(|holdout| (holdout.status != HoldoutStatus::Withdrawn) == named.contains(&holdout.id));
    // A holdout that was registered while the others were encrypted anew would keep the old key.
    if generation != stage.counters().holdouts_generation || !all {
        return Err(Refusal::HoldoutsChanged);
    }
    Ok(Decision::event(
        Event::HoldoutsRekeyed(blobs.to_vec()),
        Reply::Done,
    ))
}
