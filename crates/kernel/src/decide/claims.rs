//! Creating, committing, sealing and revoking claims.

use sha2::{Digest as _, Sha256};

use super::credit;
use crate::{
    account::{Account, Accounting, CLAIM_BYTES},
    claim::{
        Artifact, Claim, ClaimState, Commitment, MAX_ANCESTORS, MAX_DEPTH, MAX_PARENTS,
        ModuleFacts, Revocation, RunCredit, Terms, stored_bytes,
    },
    command::{Caller, Decision, Event, Reply},
    holdout::MICROS,
    id::{ClaimId, Digest},
    record::ClaimRevoked,
    refusal::{Refusal, Step},
    state::Stage,
};

pub(crate) fn create(
    stage: &Stage<'_>,
    id: ClaimId,
    terms: &Terms,
    principal: &str,
) -> Result<Decision, Refusal> {
    debug_assert_eq!(id, terms.claim_id());
    let reply = |state| Reply::Created {
        claim: id,
        topic: terms.topic_id(),
        state,
    };
    // The id covers the owner, so this claim is the caller's own: no caller learns of another
    // principal's claim by creating it again.
    if let Some(claim) = stage.claim(&id) {
        return Ok(Decision::reply(reply(claim.state)));
    }
    check_terms(stage, terms)?;
    stage
        .accounting()
        .must_hold(stage.account(&terms.owner), CLAIM_BYTES)?;
    let claim = Claim {
        seq: stage.counters().next_claim_seq,
        id,
        terms: terms.clone(),
        state: ClaimState::Uncommitted,
        created_unix_ms: stage.now_unix_ms(),
        commitment: None,
        seal_hash: None,
        settlement: None,
        revocation: None,
        requests: Vec::new(),
        displaced_requests: false,
        credit: RunCredit::default(),
    };
    // Every claim's owner has an account: only this call knows the principal's name.
    let mut events: Vec<Event> = credit::opened(stage, terms.owner, principal)
        .into_iter()
        .collect();
    events.push(Event::ClaimCreated(Box::new(claim)));
    Ok(Decision {
        events,
        entries: Vec::new(),
        reply: reply(ClaimState::Uncommitted),
    })
}

fn check_terms(stage: &Stage<'_>, terms: &Terms) -> Result<(), Refusal> {
    let holdout = stage
        .holdout(&terms.holdout)
        .ok_or_else(|| Refusal::UnknownHoldout(terms.holdout.to_hex()))?;
    holdout.must_take_claims()?;
    let description = &holdout.description;
    if terms.null_spec_hash != description.null_spec.hash() {
        return Err(Refusal::field(
            "nullspec_id",
            format!(
                "this holdout's null spec is {}; leave the field empty to use it",
                description.null_spec.hash()
            ),
        ));
    }
    if description.null_spec.expired_at(stage.now_unix_ms()) {
        return Err(Refusal::Stale);
    }
    if !(1..MICROS).contains(&terms.alpha_micros) {
        return Err(Refusal::field(
            "alpha_micros",
            "must be between 1 and 999999, in millionths: 50000 is 0.05",
        ));
    }
    let policy = &description.policy;
    if !(2..=policy.max_symbols).contains(&terms.oracle_num_symbols) {
        return Err(Refusal::field(
            "oracle_num_symbols",
            format!(
                "must be between 2 and {} on this holdout",
                policy.max_symbols
            ),
        ));
    }
    if terms.levels > policy.levels {
        return Err(Refusal::field(
            "levels",
            format!(
                "this holdout releases at most {} levels of the e-value",
                policy.levels
            ),
        ));
    }
    Ok(())
}

pub(crate) fn commit(
    stage: &Stage<'_>,
    claim: &Claim,
    caller: &Caller,
    artifacts: &[Artifact],
    module: ModuleFacts,
) -> Result<Decision, Refusal> {
    let account = stage.account(&claim.terms.owner);
    // The edge asked the same before it compiled the module. Since then the claim may have been
    // sealed, or the account filled.
    may_commit(
        claim,
        account,
        stage.accounting(),
        artifacts,
        module.hash,
        module.len,
    )?;
    check_dependency_root(claim, artifacts)?;
    let (parents, ancestors, depth) = parents(stage, claim, caller, artifacts)?;
    let mut artifacts = artifacts.to_vec();
    // The seal hash must not depend on the order in which artifacts were named.
    artifacts.sort();
    let commitment = Commitment {
        artifacts,
        module,
        parents,
        ancestors,
        depth,
    };
    Ok(Decision::event(
        Event::ArtifactsCommitted {
            claim: claim.id,
            commitment: Box::new(commitment),
        },
        Reply::State(ClaimState::Committed),
    ))
}

/// Refuses a commitment that `CommitArtifacts` would refuse for any module, so that nothing is compiled or stored for
/// it.
///
/// # Errors
/// The same [`Refusal`] as `CommitArtifacts`.
pub fn may_commit(
    claim: &Claim,
    account: Option<&Account>,
    accounting: &Accounting,
    artifacts: &[Artifact],
    module: Digest,
    module_len: u32,
) -> Result<(), Refusal> {
    claim.state.after(Step::Commit)?;
    check_artifacts(artifacts, module)?;
    // A replaced commitment frees its bytes, so only the growth counts.
    let before = claim
        .commitment
        .as_ref()
        .map_or(0, Commitment::stored_bytes);
    let more = stored_bytes(artifacts, module_len).saturating_sub(before);
    accounting.must_hold(account, more)
}

fn check_artifacts(artifacts: &[Artifact], module: Digest) -> Result<(), Refusal> {
    if !(1..=128).contains(&artifacts.len()) {
        return Err(Refusal::field(
            "artifacts",
            "there must be 1 to 128 of them",
        ));
    }
    if let Some(bad) = artifacts
        .iter()
        .find(|artifact| !(1..=64).contains(&artifact.kind.len()))
    {
        return Err(Refusal::field(
            "artifacts.kind",
            format!("must be 1 to 64 bytes; one has {}", bad.kind.len()),
        ));
    }
    let named = artifacts.iter().rev().find(|artifact| artifact.is_module());
    if named.is_none_or(|artifact| artifact.hash != module) {
        return Err(Refusal::field(
            "artifacts",
            format!("one of kind \"wasm\" must carry the module's SHA-256, {module}",),
        ));
    }
    Ok(())
}

fn check_dependency_root(claim: &Claim, artifacts: &[Artifact]) -> Result<(), Refusal> {
    let mut hashes: Vec<Digest> = artifacts
        .iter()
        .filter(|artifact| artifact.is_dependency())
        .map(|artifact| artifact.hash)
        .collect();
    hashes.sort();
    let found = dependency_merkle_root(&hashes);
    match claim.terms.dependency_merkle_root {
        None if hashes.is_empty() => Ok(()),
        None => Err(Refusal::field(
            "artifacts",
            "the claim was created without dependencies; create it with their Merkle root in signals.dependency_merkle_root",
        )),
        Some(wanted) if wanted == found => Ok(()),
        Some(wanted) => Err(Refusal::DependencyRoot { found, wanted }),
    }
}

/// The published root over sorted dependency hashes: leaves SHA-256(item), pairs
/// SHA-256(left ‖ right), an odd node paired with itself, SHA-256("") for none.
#[must_use]
pub fn dependency_merkle_root(sorted: &[Digest]) -> Digest {
    let mut level: Vec<Digest> = sorted.iter().map(|hash| Digest::of(&hash.0)).collect();
    if level.is_empty() {
        return Digest::of(b"");
    }
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| {
                let right = pair.last().unwrap_or(&pair[0]);
                Digest(
                    Sha256::new()
                        .chain_update(pair[0].0)
                        .chain_update(right.0)
                        .finalize()
                        .into(),
                )
            })
            .collect();
    }
    level[0]
}

type Parents = (Vec<(ClaimId, Digest)>, u16, u8);

fn parents(
    stage: &Stage<'_>,
    claim: &Claim,
    caller: &Caller,
    artifacts: &[Artifact],
) -> Result<Parents, Refusal> {
    let too_many = Refusal::TooManyAncestors {
        max_ancestors: MAX_ANCESTORS,
        max_depth: MAX_DEPTH,
    };
    let mut parents: Vec<(ClaimId, Digest)> = Vec::new();
    let (mut ancestors, mut depth) = (0u16, 0u8);
    for artifact in artifacts.iter().filter(|artifact| artifact.is_dependency()) {
        let id = artifact.parent_claim();
        let unknown = Refusal::UnknownDependency(artifact.hash);
        let parent = stage
            .claim(&id)
            .filter(|_| id != claim.id)
            .ok_or(unknown.clone())?;
        // A parent must have settled. After that it cannot be committed again, so claims cannot
        // depend on each other in a circle.
        let capsule = parent
            .settlement
            .as_ref()
            .map(|s| s.capsule_hash)
            .ok_or(unknown.clone())?;
        // A caller that names the capsule's hash has seen the capsule, so the claim may be another principal's. A
        // bare claim id must be the caller's own claim, or callers could probe for ids.
        let known = match artifact.parent {
            Some(_) => capsule == artifact.hash,
            None => caller.may_act_on(parent),
        };
        if !known {
            return Err(unknown);
        }
        if parents.iter().any(|(known, _)| *known == id) {
            continue;
        }
        parents.push((id, capsule));
        let behind = parent
            .commitment
            .as_ref()
            .map_or((0, 0), |c| (c.ancestors, c.depth));
        // Each path to an ancestor counts, since the walk of `revoked_ancestor` takes each path.
        ancestors = ancestors.saturating_add(1).saturating_add(behind.0);
        depth = depth.max(behind.1.saturating_add(1));
        if parents.len() > MAX_PARENTS || ancestors > MAX_ANCESTORS || depth > MAX_DEPTH {
            return Err(too_many);
        }
    }
    parents.sort();
    Ok((parents, ancestors, depth))
}

pub(crate) fn seal(stage: &Stage<'_>, claim: &Claim) -> Result<Decision, Refusal> {
    let state = claim.state.after(Step::Seal)?;
    let reply = Reply::State(state);
    let (Some(commitment), Some(holdout)) =
        (&claim.commitment, stage.holdout(&claim.terms.holdout))
    else {
        return Err(Refusal::WrongState {
            step: Step::Seal,
            state: claim.state,
        });
    };
    if claim.state == ClaimState::Sealed {
        return Ok(Decision::reply(reply));
    }
    let seal_hash = claim.seal_hash_of(commitment, holdout.description.policy.hash());
    Ok(Decision::event(
        Event::ClaimSealed {
            claim: claim.id,
            seal_hash,
        },
        reply,
    ))
}

/// Only the daemon asks for it, so a claim that has changed meanwhile is no refusal.
pub(crate) fn uncommit(claim: &Claim, unused_since_unix_ms: u64) -> Decision {
    let is_unexecuted = matches!(claim.state, ClaimState::Committed | ClaimState::Sealed);
    if !is_unexecuted || claim.last_used_unix_ms() >= unused_since_unix_ms {
        return Decision::reply(Reply::State(claim.state));
    }
    Decision::event(
        Event::ClaimUncommitted(claim.id),
        Reply::State(ClaimState::Uncommitted),
    )
}

pub(crate) fn revoke(stage: &Stage<'_>, claim: &Claim, reason: &str) -> Result<Decision, Refusal> {
    super::public_text("reason", reason)?;
    claim.state.after(Step::Revoke)?;
    let Some(settlement) = &claim.settlement else {
        return Err(Refusal::WrongState {
            step: Step::Revoke,
            state: claim.state,
        });
    };
    let now = stage.now_unix_ms();
    let entry = ClaimRevoked {
        claim: claim.id,
        capsule: settlement.capsule_hash,
        reason: reason.to_owned(),
        revoked_unix_ms: now,
    };
    let revocation = Revocation {
        reason: reason.to_owned(),
        revoked_unix_ms: now,
        index: stage.next_index(),
    };
    Ok(Decision {
        events: vec![Event::ClaimRevoked {
            claim: claim.id,
            revocation,
        }],
        entries: vec![entry.to_bytes()],
        reply: Reply::Revoked { at_unix_ms: now },
    })
}
