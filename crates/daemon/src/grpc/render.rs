//! From the services' results to the wire.

use evidenceos_kernel::{
    bits::MicroBits,
    claim::{self, Claim, ClaimState, Outcome, Reason, Settlement},
    holdout::Policy,
    id::{ClaimId, Digest},
    null::NullSpec,
    price::SettlementPrices,
    record,
};
use evidenceos_proto as wire;
use evidenceos_store::Head;
use evidenceos_tlog::Hash;
use prost::bytes::Bytes;
use tonic::Status;

use super::{call::Pieces, status::internal};
use crate::services::{ProvenCapsule, Revoked, ShownCapsule, ShownClaim, ShownHoldout};

/// A piece of a streamed file.
const PIECE_BYTES: usize = 256 * 1_024;

/// Bytes for the wire.
pub fn bytes(of: &[u8]) -> Bytes {
    Bytes::copy_from_slice(of)
}

/// The state's number on the wire.
pub fn state(state: ClaimState) -> i32 {
    let state = match state {
        ClaimState::Uncommitted => wire::ClaimState::Uncommitted,
        ClaimState::Committed => wire::ClaimState::Committed,
        ClaimState::Sealed => wire::ClaimState::Sealed,
        ClaimState::Executing => wire::ClaimState::Executing,
        ClaimState::Settled => wire::ClaimState::Settled,
        ClaimState::Certified => wire::ClaimState::Certified,
        ClaimState::Revoked => wire::ClaimState::Revoked,
    };
    state as i32
}

/// The result of a claim at its settlement. `duplicate_of` is the claim whose verdict it has, if it
/// is a duplicate.
pub fn result(
    settlement: &Settlement,
    credit_burned: u64,
    duplicate_of: Option<ClaimId>,
) -> wire::ExecuteClaimV2Response {
    let certified = is_certified(settlement);
    let state = if certified {
        wire::ClaimState::Certified
    } else {
        wire::ClaimState::Settled
    };
    let reason_codes = record::reason_codes(&settlement.reasons);
    wire::ExecuteClaimV2Response {
        state: state as i32,
        decision: decision(settlement) as i32,
        reason_codes: reason_codes.into_iter().map(u32::from).collect(),
        canonical_output: bytes(&settlement.output),
        e_value: e_value(settlement),
        certified,
        capsule_hash: bytes(settlement.capsule_hash.as_bytes()),
        etl_index: settlement.index,
        explanation: explanation(&settlement.reasons),
        outcome: settlement.outcome.as_str().to_owned(),
        charged_answer_microbits: settlement.answers_charged.0,
        threshold_microbits: settlement.threshold.0,
        price_microbits: settlement.price.0,
        fuel: settlement.fuel,
        credit_burned,
        duplicate_of: duplicate_of.map_or_else(Bytes::new, |id| bytes(id.as_bytes())),
    }
}

fn is_certified(settlement: &Settlement) -> bool {
    settlement.outcome == Outcome::Certified
}

fn decision(settlement: &Settlement) -> wire::Decision {
    if is_certified(settlement) {
        wire::Decision::Approve
    } else if settlement.reasons.contains(&Reason::Deferred) {
        wire::Decision::Defer
    } else {
        wire::Decision::Reject
    }
}

/// The e-value after deflation, rounded down to a power of two; 0 without evidence.
fn e_value(settlement: &Settlement) -> f64 {
    settlement
        .e_value_log2
        .map_or(0.0, |log2| (log2 as f64).exp2())
}

/// The most specific reasons, in words.
fn explanation(reasons: &[Reason]) -> String {
    let particular: Vec<&str> = reasons
        .iter()
        .filter(|reason| **reason != Reason::Rejected || reasons.len() == 1)
        .map(|reason| reason.sentence())
        .collect();
    particular.join(" ")
}

/// The head in the published wire's form, with its checkpoint.
pub fn head(head: &Head) -> wire::SignedTreeHead {
    wire::SignedTreeHead {
        tree_size: head.size,
        root_hash: bytes(&head.root),
        signature: bytes(&head.signature),
        key_id: bytes(head.key_id.as_bytes()),
        checkpoint: head.checkpoint.clone(),
    }
}

/// A revocation; an absent capsule hash is empty, and its time is in seconds.
pub fn revocation(revoked: &Revoked) -> wire::RevocationEntry {
    wire::RevocationEntry {
        claim_id: bytes(revoked.claim.as_bytes()),
        timestamp_unix: revoked.revoked_unix_ms / 1_000,
        reason: revoked.reason.clone(),
        capsule_hash: revoked
            .capsule
            .map_or_else(Bytes::new, |hash| bytes(hash.as_bytes())),
        etl_index: revoked.index,
    }
}

/// The hashes of a path, in their order.
pub fn hashes(path: &[Hash]) -> Vec<Bytes> {
    path.iter().map(|hash| bytes(hash.as_bytes())).collect()
}

/// A file in pieces.
pub fn pieces<T: Send + 'static>(file: Vec<u8>, wrap: fn(Bytes) -> T) -> Pieces<T> {
    let file = Bytes::from(file);
    let starts = (0..file.len()).step_by(PIECE_BYTES);
    let pieces: Vec<Result<T, Status>> = starts
        .map(|start| {
            let end = file.len().min(start + PIECE_BYTES);
            Ok(wrap(file.slice(start..end)))
        })
        .collect();
    Box::pin(tokio_stream::iter(pieces))
}

/// The result of a claim that was executed.
pub fn settled(
    claim: &Claim,
    duplicate_of: Option<ClaimId>,
) -> Result<wire::ExecuteClaimV2Response, Status> {
    let settlement = claim.settlement.as_ref();
    settlement
        .map(|settlement| result(settlement, claim.credit.burned, duplicate_of))
        .ok_or_else(|| internal(&"a settled claim has no result"))
}

/// A capsule with its proofs.
pub fn proven_capsule(proven: ProvenCapsule) -> wire::FetchCapsuleResponse {
    let ProvenCapsule {
        capsule: ShownCapsule { entry, settlement },
        head: shown,
        inclusion,
        known_size,
        consistency,
    } = proven;
    wire::FetchCapsuleResponse {
        decision: decision(&settlement) as i32,
        certified: is_certified(&settlement),
        e_value: e_value(&settlement),
        capsule_bytes: entry.bytes.into(),
        capsule_hash: bytes(settlement.capsule_hash.as_bytes()),
        etl_index: settlement.index,
        signed_tree_head: Some(head(&shown)),
        inclusion_proof: Some(wire::MerkleInclusionProof {
            leaf_hash: bytes(entry.leaf.as_bytes()),
            leaf_index: settlement.index,
            tree_size: shown.size,
            audit_path: hashes(&inclusion),
        }),
        consistency_proof: Some(wire::MerkleConsistencyProof {
            old_tree_size: known_size,
            new_tree_size: shown.size,
            path: hashes(&consistency),
        }),
        root_hash: bytes(&shown.root),
        tree_size: shown.size,
        checkpoint: shown.checkpoint.clone(),
    }
}

/// An artifact; an absent parent is an empty claim id.
pub fn artifact(artifact: &claim::Artifact) -> wire::Artifact {
    wire::Artifact {
        artifact_hash: bytes(artifact.hash.as_bytes()),
        kind: artifact.kind.clone(),
        claim_id: artifact
            .parent
            .map_or_else(Bytes::new, |id| bytes(id.as_bytes())),
    }
}

/// A claim. If it is tainted or stale, that is shown in place of its state.
pub fn claim(shown: ShownClaim) -> wire::Claim {
    let ShownClaim {
        claim,
        holdout: holdout_ref,
        owner_name,
        tainted_by,
        stale,
        applied_alpha_micros,
        duplicate_of,
    } = shown;
    let shown_state = match claim.state {
        // The claim's own revocation says more than an inherited one.
        ClaimState::Revoked => state(claim.state),
        _ if tainted_by.is_some() => wire::ClaimState::Tainted as i32,
        ClaimState::Sealed if stale => wire::ClaimState::Stale as i32,
        _ => state(claim.state),
    };
    let commitment = claim.commitment.as_ref();
    let digest = |digest: Option<Digest>| digest.map_or_else(Bytes::new, |d| bytes(d.as_bytes()));
    wire::Claim {
        claim_id: bytes(claim.id.as_bytes()),
        topic_id: bytes(claim.terms.topic_id().as_bytes()),
        claim_name: claim.terms.claim_name.clone(),
        state: shown_state,
        owner_tag_hex: claim.terms.owner.to_hex(),
        holdout_id: bytes(claim.terms.holdout.as_bytes()),
        holdout_ref,
        lane: claim.terms.lane.as_str().to_owned(),
        alpha_micros: claim.terms.alpha_micros,
        oracle_id: claim.terms.oracle_id.clone(),
        oracle_num_symbols: claim.terms.oracle_num_symbols,
        created_unix_ms: claim.created_unix_ms,
        wasm_hash: digest(commitment.map(|commitment| commitment.module.hash)),
        seal_hash: digest(claim.seal_hash),
        artifacts: commitment
            .map(|commitment| commitment.artifacts.iter().map(artifact).collect())
            .unwrap_or_default(),
        result: claim
            .settlement
            .as_ref()
            .map(|settlement| result(settlement, claim.credit.burned, duplicate_of)),
        revocation: Revoked::of(&claim).as_ref().map(revocation),
        tainted_by: tainted_by.map_or_else(Bytes::new, |id| bytes(id.as_bytes())),
        applied_alpha_micros,
        owner_name,
    }
}

/// A holdout as every caller may see it, with the caller's own allowance.
pub fn holdout(shown: ShownHoldout) -> wire::Holdout {
    let ShownHoldout {
        holdout,
        own,
        warnings,
    } = shown;
    let description = &holdout.description;
    let policy = &description.policy;
    let quote = policy
        .settlement_prices
        .quote(holdout.settled, holdout.certified);
    let threshold = holdout.record().threshold(policy);
    let fewest = description
        .null_spec
        .fewest_right(description.sealed_units, threshold);
    let own_left = policy
        .principal_sealed_budget
        .map_or(MicroBits::MAX, |fence| own.sealed.left(fence));
    let left = holdout.certifications_left(own_left);
    let not_withdrawable = holdout.may_have_released().unwrap_or_default();
    wire::Holdout {
        holdout_id: bytes(holdout.id.as_bytes()),
        holdout_ref: holdout.reference.clone(),
        status: holdout.status.as_str().to_owned(),
        items: description.items,
        units: description.units,
        answer_items: description.answer_items,
        sealed_items: description.sealed_items,
        sealed_units: description.sealed_units,
        item_order_hash: description
            .item_order_hash
            .map_or_else(Bytes::new, |hash| bytes(hash.as_bytes())),
        policy: Some(policy_of(policy)),
        null_spec: Some(null_spec(&description.null_spec)),
        policy_hash: bytes(policy.hash().as_bytes()),
        null_spec_hash: bytes(description.null_spec.hash().as_bytes()),
        commitment_root: bytes(description.commitment_root.as_bytes()),
        secret_commitment: bytes(description.secret_commitment.as_bytes()),
        registered_unix_ms: holdout.registered_unix_ms,
        etl_index: holdout.index,
        answer_charged_microbits: holdout.answers.charged.0,
        answer_reserved_microbits: holdout.answers.reserved.0,
        sealed_charged_microbits: holdout.sealed.charged.0,
        sealed_reserved_microbits: holdout.sealed.reserved.0,
        settled: holdout.settled,
        certified: holdout.certified,
        in_flight: holdout.in_flight.len() as u64,
        own_answer_charged_microbits: own.answers.charged.0,
        own_answer_reserved_microbits: own.answers.reserved.0,
        next_threshold_microbits: threshold.0,
        next_certified_price_microbits: quote.certified.0,
        next_fewest_right: fewest.unwrap_or(0),
        warnings,
        certifications_left: left.all,
        own_certifications_left: left.own,
        own_sealed_charged_microbits: own.sealed.charged.0,
        own_sealed_reserved_microbits: own.sealed.reserved.0,
        fresh_items: description.fresh_items,
        replaces: description
            .replaces
            .map_or_else(Bytes::new, |withdrawn| bytes(withdrawn.as_bytes())),
        not_withdrawable,
    }
}

fn policy_of(policy: &Policy) -> wire::HoldoutPolicy {
    let (fixed, learned) = match policy.settlement_prices {
        SettlementPrices::Fixed { certified_bits } => (Some(u32::from(certified_bits)), None),
        SettlementPrices::Learned { c0_bits } => (None, Some(u32::from(c0_bits))),
    };
    wire::HoldoutPolicy {
        answer_share_micros: Some(policy.answer_share_micros),
        answer_budget_microbits: Some(policy.answer_budget.0),
        principal_answer_budget_microbits: Some(policy.principal_answer_budget.0),
        sealed_budget_microbits: Some(policy.sealed_budget.0),
        answer_prices: policy
            .answer_prices
            .0
            .iter()
            .map(|(&n_symbols, prices)| wire::AnswerPriceTable {
                n_symbols,
                prices_microbits: prices.iter().map(|price| price.0).collect(),
            })
            .collect(),
        fixed_settlement_bits: fixed,
        learned_settlement_bits: learned,
        levels: u32::from(policy.levels),
        level_width_microbits: Some(policy.level_width.0),
        alpha_micros: Some(policy.alpha_micros),
        multiplicity: policy.multiplicity.as_str().to_owned(),
        max_symbols: Some(policy.max_symbols),
        principal_sealed_budget_microbits: policy.principal_sealed_budget.map(|fence| fence.0),
    }
}

fn null_spec(spec: &NullSpec) -> wire::NullSpec {
    let NullSpec::Accuracy(accuracy) = spec;
    wire::NullSpec {
        kind: spec.kind().to_owned(),
        p0_micros: accuracy.p0_micros,
        strategy: accuracy.strategy.word().to_owned(),
        p1_micros: accuracy.strategy.p1_micros().unwrap_or(0),
        expires_unix: accuracy.expires_unix,
    }
}
