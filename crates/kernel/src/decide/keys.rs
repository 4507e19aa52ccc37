//! Rotations of the log's key and of the key that encrypts holdouts.

use std::collections::HashSet;

use crate::{
    command::{Caller, Decision, Event, Reply},
    holdout::HoldoutStatus,
    id::{Digest, HoldoutId},
    log_key::{KeyRotated, LogKey, SignedKeyLink},
    refusal::Refusal,
    state::Stage,
};

/// Notes the key that signed the log from its first entry on. Only the first entry names it, by its id.
pub(crate) fn know_first(public_key: &[u8; 32]) -> Decision {
    let key = LogKey::new(*public_key, 0);
    Decision::event(Event::KeyRotated(key), Reply::Done)
}

/// Appends a key link. The next entry is the first that the old key's last tree does not contain,
/// so a link about any other tree is our bug: it would leave entries that neither key vouches for.
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

/// Notes the new blobs of all holdouts, or refuses: if only some were encrypted anew, the server
/// would need two keys forever.
pub(crate) fn rekey(
    stage: &Stage<'_>,
    caller: &Caller,
    generation: u64,
    blobs: &[(HoldoutId, Digest)],
) -> Result<Decision, Refusal> {
    caller.must_operate()?;
    let named: HashSet<HoldoutId> = blobs.iter().map(|(id, _)| *id).collect();
    // A withdrawn holdout has no items any more.
    let all = stage
        .holdouts()
        .all(|holdout| (holdout.status != HoldoutStatus::Withdrawn) == named.contains(&holdout.id));
    // A holdout that was registered during the rotation would keep the old key.
    if generation != stage.counters().holdouts_generation || !all {
        return Err(Refusal::HoldoutsChanged);
    }
    Ok(Decision::event(
        Event::HoldoutsRekeyed(blobs.to_vec()),
        Reply::Done,
    ))
}
