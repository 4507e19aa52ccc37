//! Claims over gRPC, with the aliases of the published wire.

use evidenceos_kernel::{
    claim::Terms,
    id::{Digest, Fingerprint, HoldoutId, OwnerTag},
};
use evidenceos_proto as wire;
use prost::{Message as _, bytes::Bytes};
use tonic::Status;

use super::{
    call::{Call, Pieces},
    parse, render,
    status::{self, invalid, precondition},
};
use crate::services::{Asked, Created, FEWEST_DIGITS, Offer, Services, ids_that_begin};

/// `CreateClaimV2`: creates a claim; the reply also says whether its lane is known.
pub async fn create(
    services: &Services,
    call: Call<wire::CreateClaimV2Request>,
) -> Result<(wire::CreateClaimV2Response, bool), Status> {
    let stamp = call.stamp("CreateClaimV2")?;
    let (terms, lane_is_known) = terms_of(services, &call, &call.message)?;
    let created = services.claims.create(&call.principal, stamp, terms);
    let Created {
        claim,
        topic,
        state,
    } = created.await?;
    call.subject.is_claim(claim);
    let created = wire::CreateClaimV2Response {
        claim_id: render::bytes(claim.as_bytes()),
        topic_id: render::bytes(topic.as_bytes()),
        state: render::state(state),
    };
    Ok((created, lane_is_known))
}

/// `CreateClaim`, the older form: it names the holdout by handle and α as a float, and the daemon
/// names the claim.
pub async fn create_v1(
    services: &Services,
    call: Call<wire::CreateClaimRequest>,
) -> Result<wire::CreateClaimResponse, Status> {
    let newer = as_v2(&call.message)?;
    let stamp = call.stamp("CreateClaim")?;
    let (terms, _) = terms_of(services, &call, &newer)?;
    let created = services
        .claims
        .create(&call.principal, stamp, terms)
        .await?;
    Ok(wire::CreateClaimResponse {
        claim_id: render::bytes(created.claim.as_bytes()),
        state: render::state(created.state),
    })
}

/// `CommitArtifacts`: checks and compiles the module before the claim is committed to it.
pub async fn commit(
    services: &Services,
    call: Call<wire::CommitArtifactsRequest>,
) -> Result<wire::CommitArtifactsResponse, Status> {
    let key = call.key("CommitArtifacts")?;
    let request = call.message;
    let offer = Offer {
        claim: parse::claim_id(&request.claim_id)?,
        artifacts: parse::artifacts(&request.artifacts)?,
        wasm: request.wasm_module.clone(),
    };
    let fingerprint = move |module: &Digest| {
        // The digest stands for the module in the fingerprint: a module may have four megabytes.
        let wasm_module = render::bytes(module.as_bytes());
        let content = wire::CommitArtifactsRequest {
            wasm_module,
            ..request
        };
        Fingerprint::of(&content.encode_to_vec())
    };
    let committed = services
        .claims
        .commit(&call.principal, key, offer, fingerprint);
    Ok(wire::CommitArtifactsResponse {
        state: render::state(committed.await?),
    })
}

/// `Freeze`, an alias of the published wire for `SealClaim`.
pub async fn freeze(
    services: &Services,
    call: Call<wire::FreezeRequest>,
) -> Result<wire::FreezeResponse, Status> {
    let state = seal_as(services, "Freeze", &call, &call.message.claim_id).await?;
    Ok(wire::FreezeResponse { state })
}

/// `FreezeGates`, an alias of the published wire for `SealClaim`.
pub async fn freeze_gates(
    services: &Services,
    call: Call<wire::FreezeGatesRequest>,
) -> Result<wire::FreezeGatesResponse, Status> {
    let state = seal_as(services, "FreezeGates", &call, &call.message.claim_id).await?;
    Ok(wire::FreezeGatesResponse { state })
}

/// `Seal`, an alias of the published wire for `SealClaim`.
pub async fn seal(
    services: &Services,
    call: Call<wire::SealRequest>,
) -> Result<wire::SealResponse, Status> {
    let state = seal_as(services, "Seal", &call, &call.message.claim_id).await?;
    Ok(wire::SealResponse { state })
}

/// `SealClaim`: binds the claim, so that nothing of it can be replaced.
pub async fn seal_claim(
    services: &Services,
    call: Call<wire::SealClaimRequest>,
) -> Result<wire::SealClaimResponse, Status> {
    let state = seal_as(services, "SealClaim", &call, &call.message.claim_id).await?;
    Ok(wire::SealClaimResponse { state })
}

async fn seal_as<M>(
    services: &Services,
    method: &'static str,
    call: &Call<M>,
    claim: &Bytes,
) -> Result<i32, Status> {
    let claim = parse::claim_id(claim)?;
    let stamp = call.stamp_of(method, || Fingerprint::of(claim.as_bytes()))?;
    let sealed = services.claims.seal(&call.principal, stamp, claim).await?;
    Ok(render::state(sealed))
}

/// `ExecuteClaim`, which this daemon refuses: in this call the caller decides the verdict.
pub async fn execute_v1(
    _: &Services,
    _: Call<wire::ExecuteClaimRequest>,
) -> Result<wire::ExecuteClaimResponse, Status> {
    Err(precondition(
        "EXECUTE_V1",
        "ExecuteClaim lets the caller decide, which proves nothing; use ExecuteClaimV2",
    ))
}

/// `ExecuteClaimV2`: runs the claim and answers with its settlement.
pub async fn execute(
    services: &Services,
    call: Call<wire::ExecuteClaimV2Request>,
) -> Result<wire::ExecuteClaimV2Response, Status> {
    let claim = parse::claim_id(&call.message.claim_id)?;
    let stamp = call.stamp_of("ExecuteClaimV2", || Fingerprint::of(claim.as_bytes()))?;
    let executed = services.claims.execute(&call.principal, stamp, claim);
    let (claim, duplicate_of) = executed.await?;
    render::settled(&claim, duplicate_of)
}

/// `RevokeClaim`: withdraws a settled claim's result; the reason becomes public.
pub async fn revoke(
    services: &Services,
    call: Call<wire::RevokeClaimRequest>,
) -> Result<wire::RevokeClaimResponse, Status> {
    let claim = parse::claim_id(&call.message.claim_id)?;
    let stamp = call.stamp("RevokeClaim")?;
    let reason = call.message.reason;
    let revoked = services
        .claims
        .revoke(&call.principal, stamp, claim, reason);
    Ok(wire::RevokeClaimResponse {
        timestamp_unix: revoked.await? / 1_000,
        state: wire::ClaimState::Revoked as i32,
    })
}

/// `GetCapsule`: a settled claim's capsule without proofs.
pub async fn get_capsule(
    services: &Services,
    call: Call<wire::GetCapsuleRequest>,
) -> Result<wire::GetCapsuleResponse, Status> {
    let claim = parse::claim_id(&call.message.claim_id)?;
    let capsule = services.claims.capsule(&call.principal, claim).await?;
    Ok(wire::GetCapsuleResponse {
        capsule_hash: render::bytes(capsule.settlement.capsule_hash.as_bytes()),
        etl_index: capsule.settlement.index,
        capsule_bytes: capsule.entry.bytes.into(),
    })
}

/// `FetchCapsule`: a settled claim's capsule with its proofs against the shown head.
pub async fn fetch_capsule(
    services: &Services,
    call: Call<wire::FetchCapsuleRequest>,
) -> Result<wire::FetchCapsuleResponse, Status> {
    let claim = parse::claim_id(&call.message.claim_id)?;
    let known = call.message.known_tree_size;
    let proven = services
        .claims
        .proven_capsule(&call.principal, claim, known)
        .await?;
    Ok(render::proven_capsule(proven))
}

/// `GetClaim`: a claim as its owner, an auditor or an operator may see it.
pub async fn get(
    services: &Services,
    call: Call<wire::GetClaimRequest>,
) -> Result<wire::GetClaimResponse, Status> {
    let claim = parse::claim_id(&call.message.claim_id)?;
    let shown = services.claims.get(&call.principal, claim).await?;
    Ok(wire::GetClaimResponse {
        claim: Some(render::claim(shown)),
    })
}

/// `ListClaims`: a page of claims, the newest first.
pub async fn list(
    services: &Services,
    call: Call<wire::ListClaimsRequest>,
) -> Result<wire::ListClaimsResponse, Status> {
    let request = call.message;
    let (from, size) = parse::page(request.page_size, &request.page_token)?;
    let asked = asked_for(services, request)?;
    let page = services
        .claims
        .list(&call.principal, asked, from, size)
        .await?;
    Ok(wire::ListClaimsResponse {
        next_page_token: page
            .next
            .map_or_else(String::new, |place| place.to_string()),
        claims: page.claims.into_iter().map(render::claim).collect(),
    })
}

fn asked_for(services: &Services, request: wire::ListClaimsRequest) -> Result<Asked, Status> {
    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
    let ids = filled(request.id_prefix).map(|digits| {
        ids_that_begin(&digits).ok_or_else(|| {
            invalid(
                "id_prefix",
                &format!("must be {FEWEST_DIGITS} to 64 hex digits"),
            )
        })
    });
    let holdout = filled(request.holdout).map(|name| services.holdouts.named(&name));
    let owner = filled(request.owner).map(|owner| services.accounts.tag_of(&owner));
    let bound = |unix_ms: u64| (unix_ms > 0).then_some(unix_ms);
    Ok(Asked {
        all: request.all,
        owner,
        ids: ids.transpose()?,
        name: filled(request.claim_name),
        holdout: holdout.transpose()?.map(|(id, _)| id),
        created_from: bound(request.created_from_unix_ms),
        created_before: bound(request.created_before_unix_ms),
    })
}

/// `FetchTrace`: streams the trace of a claim's run in pieces.
pub async fn trace(
    services: &Services,
    call: Call<wire::FetchTraceRequest>,
) -> Result<Pieces<wire::FetchTraceResponse>, Status> {
    let claim = parse::claim_id(&call.message.claim_id)?;
    let trace = services.claims.trace(&call.principal, claim).await?;
    Ok(render::pieces(trace, |chunk| wire::FetchTraceResponse {
        chunk,
    }))
}

fn terms_of<M>(
    services: &Services,
    call: &Call<M>,
    request: &wire::CreateClaimV2Request,
) -> Result<(Terms, bool), Status> {
    terms(call.principal.caller.tag, request, |name| {
        services
            .holdouts
            .named(name)
            .map_err(status::unknown_reference)
    })
}

/// Checks each field of a claim's terms; returns the terms, and whether the lane is known. `find`
/// gives a named holdout's id and the hash of its null spec.
pub fn terms(
    owner: OwnerTag,
    request: &wire::CreateClaimV2Request,
    find: impl FnOnce(&str) -> Result<(HoldoutId, Digest), Status>,
) -> Result<(Terms, bool), Status> {
    let claim_name = parse::claim_name(&request.claim_name)?;
    let oracle_id = parse::oracle(&request.oracle_id)?;
    parse::no_dp("dp_epsilon_budget", request.dp_epsilon_budget)?;
    parse::no_dp("dp_delta_budget", request.dp_delta_budget)?;
    let metadata = request
        .metadata
        .as_ref()
        .ok_or_else(|| invalid("metadata", "is required"))?;
    let epoch_config_ref = match metadata.epoch_config_ref.as_str() {
        "" => String::new(),
        text => parse::reference("metadata.epoch_config_ref", text)?,
    };
    let (lane, lane_known) = parse::lane(&metadata.lane)?;
    let signals = request.signals.clone().unwrap_or_default();
    parse::maybe_digest("signals.semantic_hash", &signals.semantic_hash)?;
    parse::maybe_digest(
        "signals.phys_hir_signature_hash",
        &signals.phys_hir_signature_hash,
    )?;
    parse::reference("holdout_ref", &request.holdout_ref)?;
    let (holdout, active) = find(&request.holdout_ref)?;
    let null_spec_hash = match request.nullspec_id.trim() {
        "" => active,
        hex => Digest::from_typed_hex(hex)
            .ok_or_else(|| invalid("nullspec_id", "must be empty or 64 hex digits"))?,
    };
    let max_answer_microbits = request
        .max_answer_microbits
        .map(|most| parse::public_int("max_answer_microbits", most))
        .transpose()?;
    let terms = Terms {
        owner,
        claim_name,
        holdout,
        null_spec_hash,
        alpha_micros: metadata.alpha_micros,
        levels: u8::try_from(request.levels).map_err(|_| invalid("levels", "must be below 256"))?,
        oracle_id,
        oracle_num_symbols: request.oracle_num_symbols,
        epoch_size: parse::public_int("epoch_size", request.epoch_size)?,
        epoch_config_ref,
        lane,
        access_credit: parse::public_int("access_credit", request.access_credit)?,
        max_answer_microbits,
        output_schema_id: parse::output_schema(&metadata.output_schema_id)?,
        dependency_merkle_root: parse::maybe_digest(
            "signals.dependency_merkle_root",
            &signals.dependency_merkle_root,
        )?,
    };
    Ok((terms, lane_known))
}

/// Converts the older create into the newer one.
pub fn as_v2(request: &wire::CreateClaimRequest) -> Result<wire::CreateClaimV2Request, Status> {
    let topic = parse::digest("topic_id", &request.topic_id)?;
    let handle = parse::digest("holdout_handle_id", &request.holdout_handle_id)?;
    let phys = parse::digest("phys_hir_hash", &request.phys_hir_hash)?;
    // Written this way, the test also refuses NaN.
    if !(request.alpha > 0.0 && request.alpha < 1.0) {
        return Err(invalid("alpha", "must be in (0,1)"));
    }
    let name = Digest::domain("evidenceos:legacy_name:v1", &[topic.0, phys.0].concat());
    Ok(wire::CreateClaimV2Request {
        claim_name: format!("legacy-v1/{name}"),
        metadata: Some(wire::ClaimMetadataV2 {
            // The cast cuts off a fraction, which makes the significance level stricter, never
            // weaker.
            alpha_micros: (request.alpha * 1e6) as u32,
            ..Default::default()
        }),
        holdout_ref: handle.to_hex(),
        epoch_size: request.epoch_size,
        oracle_num_symbols: request.oracle_num_symbols,
        access_credit: request.access_credit,
        ..Default::default()
    })
}
