//! Calls that change something: they become commands.

use std::{sync::Arc, time::Duration};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    claim::{Artifact, Claim, ModuleFacts, Terms},
    command::{Command, Reply, Stamp},
    decide::may_commit,
    id::{ClaimId, Digest, Fingerprint, HoldoutId, OwnerTag},
    refusal::Refusal,
};
use evidenceos_proto as wire;
use evidenceos_sandbox::{AdmitError, Prepared};
use evidenceos_store::{MAX_ROW_BYTES, Module, ModuleBytes, StoreError};
use prost::bytes::Bytes;
use tonic::{Status, Streaming, metadata::MetadataMap};

use super::{
    Edge, parse,
    probing::Counted,
    registration::Submitted,
    render,
    status::{internal, invalid, not_stored, refused, unavailable},
    unexpected,
};
use crate::auth::Principal;

/// Above this many bytes even hashing a module is left to a thread that may block.
const SMALL_MODULE: usize = 64 * 1_024;
/// Broken rules named in one message.
const MAX_VIOLATIONS: usize = 20;
/// How often a registration is tried again after another came in between.
const REGISTRATION_TRIES: usize = 3;

/// What a claim is to be committed to.
struct Offer<'a> {
    claim: ClaimId,
    artifacts: &'a [Artifact],
    wasm: &'a Bytes,
}

impl Edge {
    pub(super) async fn create_v2(
        &self,
        principal: &Principal,
        metadata: &MetadataMap,
        request: &wire::CreateClaimV2Request,
    ) -> Result<(wire::CreateClaimV2Response, bool), Status> {
        let stamp = parse::stamp(metadata, principal, "CreateClaimV2", request)?;
        let (terms, lane_known) = self.terms(principal, request)?;
        Ok((self.create(principal, stamp, terms).await?, lane_known))
    }

    fn terms(
        &self,
        principal: &Principal,
        request: &wire::CreateClaimV2Request,
    ) -> Result<(Terms, bool), Status> {
        terms(principal.caller.tag, request, |name| {
            let holdout = self.catalog.find(name)?;
            Ok((holdout.id, holdout.description.null_spec.hash()))
        })
    }

    async fn create(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        terms: Terms,
    ) -> Result<wire::CreateClaimV2Response, Status> {
        let call = Counted {
            method: "CreateClaimV2",
            topic: terms.topic_id(),
            claim: Digest(terms.claim_id().0),
        };
        self.must_not_probe(principal, call).await?;
        let command = Command::CreateClaim {
            id: terms.claim_id(),
            terms: Box::new(terms),
            principal: principal.name.clone(),
        };
        match self.call(principal, stamp, command, None).await? {
            Reply::Created {
                claim,
                topic,
                state,
            } => {
                // Another's claim of the same terms has another id.
                self.known_claims.add(claim, principal.caller.tag);
                Ok(wire::CreateClaimV2Response {
                    claim_id: render::bytes(claim.as_bytes()),
                    topic_id: render::bytes(topic.as_bytes()),
                    state: render::state(state),
                })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The older create: the holdout by handle, α as a float, a name of ours.
    pub(super) async fn create_v1(
        &self,
        principal: &Principal,
        metadata: &MetadataMap,
        request: &wire::CreateClaimRequest,
    ) -> Result<wire::CreateClaimV2Response, Status> {
        let as_v2 = as_v2(request)?;
        let stamp = parse::stamp(metadata, principal, "CreateClaim", request)?;
        let (terms, _) = self.terms(principal, &as_v2)?;
        self.create(principal, stamp, terms).await
    }

    pub(super) async fn commit(
        self: &Arc<Self>,
        principal: &Principal,
        metadata: &MetadataMap,
        request: wire::CommitArtifactsRequest,
    ) -> Result<i32, Status> {
        let claim = parse::claim_id(&request.claim_id)?;
        let artifacts = parse::artifacts(&request.artifacts)?;
        // Nobody has modules compiled for another's claim.
        self.must_own(principal, claim).await?;
        let offer = Offer {
            claim,
            artifacts: &artifacts,
            wasm: &request.wasm_module,
        };
        let (prepared, row) = self.admit_module(principal, offer).await?;
        let kept = row.kept.clone();
        let info = prepared.info();
        let module = ModuleFacts {
            hash: Digest(info.sha256),
            len: info.len as u32,
            asks: info.asks,
            submits: info.submits,
        };
        let stamp = parse::stamp_of(metadata, principal, "CommitArtifacts", || {
            // The module stands for itself by its digest: it may have four megabytes.
            let mut content = request.clone();
            content.wasm_module = Bytes::copy_from_slice(&info.sha256);
            Fingerprint::of(&prost::Message::encode_to_vec(&content))
        })?;
        let command = Command::CommitArtifacts {
            claim,
            artifacts,
            module,
        };
        match self.call(principal, stamp, command, Some(row)).await? {
            Reply::State(state) => {
                // While it was kept it was not released.
                self.stored_modules
                    .add(info.sha256, self.readers.blobs().releases());
                drop(kept);
                Ok(render::state(state))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Validates and compiles a module, once for each digest, and makes a large one durable. What is kept
    /// with the module stays until the command has committed or was refused.
    async fn admit_module(
        self: &Arc<Self>,
        principal: &Principal,
        offer: Offer<'_>,
    ) -> Result<(Arc<Prepared>, Module), Status> {
        let wasm = offer.wasm;
        if wasm.is_empty() {
            return Err(invalid("wasm_module", "is required"));
        }
        if wasm.len() <= SMALL_MODULE
            && let Some(prepared) = self.guests.sandbox.prepared(&Digest::of(wasm).0)
        {
            let hash = Digest(prepared.info().sha256);
            let kept = self.readers.blobs().keep(hash);
            let known = self.stored_modules.get(&hash.0) == Some(self.readers.blobs().releases());
            // A large one that is not stored must be made durable first.
            if known || wasm.len() <= MAX_ROW_BYTES {
                let bytes = if known {
                    ModuleBytes::Stored
                } else {
                    ModuleBytes::Row(wasm.to_vec())
                };
                let kept = Some(kept);
                return Ok((prepared, Module { hash, bytes, kept }));
            }
        }
        let caller = principal.caller.tag;
        let turn = self.compiling.turn(caller).await.map_err(|busy| *busy)?;
        let (claim, wasm, artifacts) = (offer.claim, wasm.clone(), offer.artifacts.to_vec());
        self.blocking(move |edge| {
            let _turn = turn;
            edge.must_be_committable(claim, &artifacts, &wasm)?;
            let mut spent = Duration::ZERO;
            let prepared = edge.guests.sandbox.prepare_timed(&wasm, &mut spent);
            edge.compiling.spent_by(caller, spent);
            let prepared = prepared.map_err(|error| not_admitted(&error))?;
            let module = edge.keep_module(Digest(prepared.info().sha256), &wasm)?;
            Ok((prepared, module))
        })
        .await
    }

    /// Refuses a module that would be refused whatever it is, before anything is compiled or stored for it.
    fn must_be_committable(
        &self,
        claim: ClaimId,
        artifacts: &[Artifact],
        wasm: &[u8],
    ) -> Result<(), Status> {
        let read = |error: StoreError| internal(&error);
        let Some(claim) = self.readers.claim(&claim).map_err(read)? else {
            return Err(refused(&Refusal::UnknownClaim(claim)));
        };
        let hash = Digest::of(wasm);
        let named = claim.commitment.as_ref().map(|named| named.module.hash);
        if named == Some(hash) {
            // It may be the same request once more, which has its reply.
            return Ok(());
        }
        let account = self.readers.account(&claim.terms.owner).map_err(read)?;
        // Longer than any module, it is refused by its length.
        let len = u32::try_from(wasm.len()).unwrap_or(u32::MAX);
        may_commit(
            &claim,
            account.as_ref(),
            &self.accounting,
            artifacts,
            hash,
            len,
        )
        .map_err(|refusal| refused(&refusal))
    }

    /// Keeps an admitted module, which is made durable first if it is large and not stored yet.
    fn keep_module(&self, hash: Digest, wasm: &[u8]) -> Result<Module, Status> {
        let blobs = self.readers.blobs();
        let kept = blobs.keep(hash);
        let known = self.readers.has_module(&hash);
        let (bytes, kept) = if known.map_err(|error| internal(&error))? {
            (ModuleBytes::Stored, kept)
        } else if wasm.len() <= MAX_ROW_BYTES {
            (ModuleBytes::Row(wasm.to_vec()), kept)
        } else {
            let put = blobs.put_kept(wasm).map_err(|error| not_stored(&error))?;
            (ModuleBytes::Blob, put)
        };
        let kept = Some(kept);
        Ok(Module { hash, bytes, kept })
    }

    /// Refuses a claim that is not the caller's, before the writer would read its row: another's
    /// takes no longer than one that does not exist, however large it is.
    async fn must_own(
        self: &Arc<Self>,
        principal: &Principal,
        claim: ClaimId,
    ) -> Result<(), Status> {
        let caller = principal.caller;
        if self.known_claims.get(&claim) == Some(caller.tag) {
            return Ok(());
        }
        let owner = (!caller.operator).then_some(caller.tag);
        self.blocking(move |edge| match edge.readers.has_claim(&claim, owner) {
            Ok(true) => Ok(()),
            Ok(false) => Err(refused(&Refusal::UnknownClaim(claim))),
            Err(error) => Err(internal(&error)),
        })
        .await
    }

    pub(super) async fn seal(
        self: &Arc<Self>,
        principal: &Principal,
        metadata: &MetadataMap,
        method: &'static str,
        claim: &Bytes,
    ) -> Result<i32, Status> {
        let claim = parse::claim_id(claim)?;
        let stamp = self.stamp_claim(principal, metadata, method, claim)?;
        self.must_own(principal, claim).await?;
        match self
            .call(principal, stamp, Command::SealClaim { claim }, None)
            .await?
        {
            Reply::State(state) => Ok(render::state(state)),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn execute(
        self: &Arc<Self>,
        principal: &Principal,
        metadata: &MetadataMap,
        request: &wire::ExecuteClaimV2Request,
    ) -> Result<wire::ExecuteClaimV2Response, Status> {
        let claim = parse::claim_id(&request.claim_id)?;
        let stamp = self.stamp_claim(principal, metadata, "ExecuteClaimV2", claim)?;
        // What it is about is counted when it is created.
        let call = Counted {
            method: "ExecuteClaimV2",
            topic: Digest([0; 32]),
            claim: Digest(claim.0),
        };
        self.must_not_probe(principal, call).await?;
        self.must_own(principal, claim).await?;
        match self
            .call(principal, stamp, Command::ExecuteClaim { claim }, None)
            .await?
        {
            Reply::Settled(claim) => settled(&claim, self.duplicate_of(&claim)?),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn revoke(
        self: &Arc<Self>,
        principal: &Principal,
        metadata: &MetadataMap,
        request: wire::RevokeClaimRequest,
    ) -> Result<wire::RevokeClaimResponse, Status> {
        let claim = parse::claim_id(&request.claim_id)?;
        let stamp = parse::stamp(metadata, principal, "RevokeClaim", &request)?;
        self.must_own(principal, claim).await?;
        let command = Command::RevokeClaim {
            claim,
            reason: request.reason,
        };
        match self.call(principal, stamp, command, None).await? {
            Reply::Revoked { at_unix_ms } => {
                let newest = self.log.released().head.size;
                self.revoked.send_modify(|index| *index = newest);
                Ok(wire::RevokeClaimResponse {
                    state: wire::ClaimState::Revoked as i32,
                    timestamp_unix: at_unix_ms / 1_000,
                })
            }
            other => Err(unexpected(&other)),
        }
    }

    fn stamp_claim(
        &self,
        principal: &Principal,
        metadata: &MetadataMap,
        method: &'static str,
        claim: ClaimId,
    ) -> Result<Option<Stamp>, Status> {
        let content = || Fingerprint::of(claim.as_bytes());
        parse::stamp_of(metadata, principal, method, content)
    }

    pub(super) async fn put_holdout(
        self: &Arc<Self>,
        principal: &Principal,
        metadata: &MetadataMap,
        stream: &mut Streaming<wire::PutHoldoutRequest>,
    ) -> Result<wire::Holdout, Status> {
        principal
            .caller
            .must_operate()
            .map_err(|refusal| refused(&refusal))?;
        let submitted = Arc::new(Submitted::receive(stream).await?);
        let stamp = parse::stamp_of(metadata, principal, "PutHoldout", || {
            submitted.fingerprint(&self.keys)
        })?;
        for last in (0..REGISTRATION_TRIES).map(|attempt| attempt + 1 == REGISTRATION_TRIES) {
            let prepared = Arc::clone(&submitted);
            let (command, warnings) = self
                .blocking(move |edge| {
                    let others = edge.catalog.all();
                    prepared.prepare(&edge.keys, &edge.guests.vault, &others)
                })
                .await?;
            failpoint::pass(Point::HoldoutPutBlobBeforeRow);
            match self.call(principal, stamp, command, None).await {
                Ok(Reply::Holdout(holdout)) => {
                    self.catalog.add(&holdout);
                    return Ok(render::holdout(&holdout, Default::default(), warnings));
                }
                Ok(other) => return Err(unexpected(&other)),
                Err(status) if !last && came_between(&status) => {}
                Err(status) => return Err(status),
            }
        }
        Err(refused(&Refusal::HoldoutsChanged))
    }

    pub(super) async fn retire(
        &self,
        principal: &Principal,
        metadata: &MetadataMap,
        request: wire::RetireHoldoutRequest,
    ) -> Result<wire::Holdout, Status> {
        let holdout = self.catalog.find(&request.holdout)?.id;
        let stamp = parse::stamp(metadata, principal, "RetireHoldout", &request)?;
        let reason = if request.reason.is_empty() {
            "retired".to_owned()
        } else {
            request.reason
        };
        let command = Command::RetireHoldout { holdout, reason };
        match self.call(principal, stamp, command, None).await? {
            Reply::Holdout(holdout) => {
                Ok(render::holdout(&holdout, Default::default(), Vec::new()))
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn withdraw(
        self: &Arc<Self>,
        principal: &Principal,
        metadata: &MetadataMap,
        request: wire::WithdrawHoldoutRequest,
    ) -> Result<wire::Holdout, Status> {
        let holdout = self.catalog.find(&request.holdout)?.id;
        let stamp = parse::stamp(metadata, principal, "WithdrawHoldout", &request)?;
        let reason = if request.reason.is_empty() {
            "withdrawn".to_owned()
        } else {
            request.reason
        };
        let command = Command::WithdrawHoldout { holdout, reason };
        match self.call(principal, stamp, command, None).await? {
            Reply::Holdout(holdout) => {
                self.catalog.add(&holdout);
                let (id, blob) = (holdout.id, holdout.blob);
                self.blocking(move |edge| {
                    edge.guests
                        .vault
                        .forget(id, &blob)
                        .map_err(|error| internal(&error))
                })
                .await?;
                Ok(render::holdout(&holdout, Default::default(), Vec::new()))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// The terms of a claim, each field checked, and whether its lane is known. `find` gives a named
/// holdout's id and the hash of its null spec.
pub(super) fn terms(
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

/// The older create as the newer one.
pub(super) fn as_v2(
    request: &wire::CreateClaimRequest,
) -> Result<wire::CreateClaimV2Request, Status> {
    let topic = parse::digest("topic_id", &request.topic_id)?;
    let handle = parse::digest("holdout_handle_id", &request.holdout_handle_id)?;
    let phys = parse::digest("phys_hir_hash", &request.phys_hir_hash)?;
    if !(request.alpha > 0.0 && request.alpha < 1.0) {
        return Err(invalid("alpha", "must be in (0,1)"));
    }
    let name = Digest::domain("evidenceos:legacy_name:v1", &[topic.0, phys.0].concat());
    Ok(wire::CreateClaimV2Request {
        claim_name: format!("legacy-v1/{name}"),
        metadata: Some(wire::ClaimMetadataV2 {
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

fn came_between(status: &Status) -> bool {
    let code = status.metadata().get("x-evidenceos-code");
    code.is_some_and(|code| code == Refusal::HoldoutsChanged.code())
}

fn settled(
    claim: &Claim,
    duplicate_of: Option<ClaimId>,
) -> Result<wire::ExecuteClaimV2Response, Status> {
    let settlement = claim.settlement.as_ref();
    settlement
        .map(|settlement| render::result(settlement, claim.credit.burned, duplicate_of))
        .ok_or_else(|| internal(&"a settled claim has no result"))
}

fn not_admitted(error: &AdmitError) -> Status {
    let rules = match error {
        AdmitError::Refused(violations) => violations
            .iter()
            .take(MAX_VIOLATIONS)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; "),
        AdmitError::Engine(_) | AdmitError::TooExpensive(_) => error.to_string(),
        AdmitError::Host(_) => return unavailable(&error.to_string()),
    };
    invalid("wasm_module", &rules)
}
