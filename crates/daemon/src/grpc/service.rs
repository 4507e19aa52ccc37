//! The service: one function a method, aliases included.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use evidenceos_proto::{self as wire, evidence_os_server::EvidenceOs};
use evidenceos_sandbox::Walls;
use evidenceos_store::Done;
use prost::bytes::Bytes;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

use super::{
    Edge,
    accounts::Watched,
    reads::Revocations,
    status::{precondition, unauthenticated},
};
use crate::auth::Principal;

/// SHA-256 of the published schema: it names the wire that is spoken.
const PROTO_HASH: &str = "9d53726935aa537ab68849be060bc20cef2fe675b57a1ec8fc974aab928a4099";
/// The version of the protocol.
const PROTOCOL: &str = "2.1.0";
/// A piece of a streamed file.
const CHUNK_BYTES: usize = 256 * 1_024;

/// The gRPC service over an edge.
#[derive(Clone)]
pub struct Service {
    edge: Arc<Edge>,
}

type Reply<T> = Result<Response<T>, Status>;
type Chunks<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// A service.
    #[must_use]
    pub fn new(edge: Arc<Edge>) -> Self {
        Self { edge }
    }

    fn principal<T>(&self, request: &Request<T>) -> Result<Principal, Status> {
        let principal = request.extensions().get::<Principal>();
        // Without the gate there is no caller: a bug of ours, and nobody's call.
        principal
            .cloned()
            .ok_or_else(|| unauthenticated("the caller was not identified"))
    }

    /// A read of rows, beside the threads that serve; it leaves once an anchor covers it.
    async fn read<Q, A>(
        &self,
        request: Request<Q>,
        read: impl FnOnce(&Edge, &Principal, &Q) -> Result<A, Status> + Send + 'static,
    ) -> Reply<A>
    where
        Q: Send + 'static,
        A: Send + 'static,
    {
        let principal = self.principal(&request)?;
        let request = request.into_inner();
        self.edge
            .read(move |edge| read(edge, &principal, &request))
            .await
            .map(Response::new)
    }

    /// A read of the log as far as it is shown, or of a claim whose entry is: nothing to wait for.
    async fn read_shown<Q, A>(
        &self,
        request: Request<Q>,
        read: impl FnOnce(&Edge, &Q) -> Result<A, Status> + Send + 'static,
    ) -> Reply<A>
    where
        Q: Send + 'static,
        A: Send + 'static,
    {
        self.principal(&request)?;
        let request = request.into_inner();
        self.edge
            .blocking(move |edge| read(edge, &request))
            .await
            .map(Response::new)
    }

    async fn seal_as<Q>(
        &self,
        request: &Request<Q>,
        method: &'static str,
        claim: &Bytes,
    ) -> Result<i32, Status> {
        let principal = self.principal(request)?;
        self.edge
            .seal(&principal, request.metadata(), method, claim)
            .await
    }
}

fn chunks<T: Send + 'static>(bytes: Vec<u8>, wrap: fn(Bytes) -> T) -> Chunks<T> {
    let bytes = Bytes::from(bytes);
    let starts = (0..bytes.len()).step_by(CHUNK_BYTES);
    let pieces: Vec<Result<T, Status>> = starts
        .map(|start| {
            Ok(wrap(
                bytes.slice(start..bytes.len().min(start + CHUNK_BYTES)),
            ))
        })
        .collect();
    Box::pin(tokio_stream::iter(pieces))
}

#[tonic::async_trait]
impl EvidenceOs for Service {
    async fn health(&self, _: Request<wire::HealthRequest>) -> Reply<wire::HealthResponse> {
        Ok(Response::new(wire::HealthResponse {
            status: "SERVING".to_owned(),
        }))
    }

    async fn get_server_info(
        &self,
        request: Request<wire::GetServerInfoRequest>,
    ) -> Reply<wire::GetServerInfoResponse> {
        let principal = self.principal(&request)?;
        let signer = self.edge.keys.signer();
        let serves = &self.edge.serves;
        Ok(Response::new(wire::GetServerInfoResponse {
            protocol_semver: PROTOCOL.to_owned(),
            proto_hash: PROTO_HASH.to_owned(),
            build_git_commit: option_env!("EVIDENCEOS_BUILD_COMMIT")
                .unwrap_or("unknown")
                .to_owned(),
            build_time_utc: option_env!("EVIDENCEOS_BUILD_TIME")
                .unwrap_or("unknown")
                .to_owned(),
            daemon_version: format!("evidenceosd/{}", env!("CARGO_PKG_VERSION")),
            feature_flags: Some(wire::FeatureFlags {
                tls_enabled: serves.tls,
                mtls_enabled: serves.client_certificates,
                ..Default::default()
            }),
            development: serves.development,
            log_origin: signer.origin().to_owned(),
            log_vkey: signer.verifier().to_string(),
            engine: self.edge.guests.sandbox.engine_id().to_owned(),
            warnings: self.edge.warnings(),
            owner_tag_hex: principal.caller.tag.to_hex(),
            principal: principal.name,
            counters: Some(counters(&self.edge.done)),
            guest_walls: Some(guest_walls(self.edge.guests.sandbox.walls())),
        }))
    }

    async fn create_claim(
        &self,
        request: Request<wire::CreateClaimRequest>,
    ) -> Reply<wire::CreateClaimResponse> {
        let principal = self.principal(&request)?;
        let created = self
            .edge
            .create_v1(&principal, request.metadata(), request.get_ref())
            .await?;
        let reply = wire::CreateClaimResponse {
            claim_id: created.claim_id,
            state: created.state,
        };
        Ok(Response::new(reply))
    }

    async fn create_claim_v2(
        &self,
        request: Request<wire::CreateClaimV2Request>,
    ) -> Reply<wire::CreateClaimV2Response> {
        let principal = self.principal(&request)?;
        let (created, lane_known) = self
            .edge
            .create_v2(&principal, request.metadata(), request.get_ref())
            .await?;
        let mut response = Response::new(created);
        if !lane_known {
            let note = MetadataValue::from_static("unknown lane; fast is used");
            response.metadata_mut().insert("x-evidenceos-note", note);
        }
        Ok(response)
    }

    async fn commit_artifacts(
        &self,
        request: Request<wire::CommitArtifactsRequest>,
    ) -> Reply<wire::CommitArtifactsResponse> {
        let principal = self.principal(&request)?;
        let (metadata, _, request) = request.into_parts();
        let state = self.edge.commit(&principal, &metadata, request).await?;
        Ok(Response::new(wire::CommitArtifactsResponse { state }))
    }

    async fn freeze(&self, request: Request<wire::FreezeRequest>) -> Reply<wire::FreezeResponse> {
        let state = self
            .seal_as(&request, "Freeze", &request.get_ref().claim_id)
            .await?;
        Ok(Response::new(wire::FreezeResponse { state }))
    }

    async fn freeze_gates(
        &self,
        request: Request<wire::FreezeGatesRequest>,
    ) -> Reply<wire::FreezeGatesResponse> {
        let state = self
            .seal_as(&request, "FreezeGates", &request.get_ref().claim_id)
            .await?;
        Ok(Response::new(wire::FreezeGatesResponse { state }))
    }

    async fn seal(&self, request: Request<wire::SealRequest>) -> Reply<wire::SealResponse> {
        let state = self
            .seal_as(&request, "Seal", &request.get_ref().claim_id)
            .await?;
        Ok(Response::new(wire::SealResponse { state }))
    }

    async fn seal_claim(
        &self,
        request: Request<wire::SealClaimRequest>,
    ) -> Reply<wire::SealClaimResponse> {
        let state = self
            .seal_as(&request, "SealClaim", &request.get_ref().claim_id)
            .await?;
        Ok(Response::new(wire::SealClaimResponse { state }))
    }

    async fn execute_claim(
        &self,
        request: Request<wire::ExecuteClaimRequest>,
    ) -> Reply<wire::ExecuteClaimResponse> {
        self.principal(&request)?;
        Err(precondition(
            "EXECUTE_V1",
            "ExecuteClaim lets the caller decide, which proves nothing; use ExecuteClaimV2",
        ))
    }

    async fn execute_claim_v2(
        &self,
        request: Request<wire::ExecuteClaimV2Request>,
    ) -> Reply<wire::ExecuteClaimV2Response> {
        let principal = self.principal(&request)?;
        let (metadata, _, request) = request.into_parts();
        self.edge
            .execute(&principal, &metadata, &request)
            .await
            .map(Response::new)
    }

    async fn get_capsule(
        &self,
        request: Request<wire::GetCapsuleRequest>,
    ) -> Reply<wire::GetCapsuleResponse> {
        let principal = self.principal(&request)?;
        let request = request.into_inner();
        self.edge
            .once_shown(move |edge| edge.get_capsule(&principal, &request))
            .await
            .map(Response::new)
    }

    async fn fetch_capsule(
        &self,
        request: Request<wire::FetchCapsuleRequest>,
    ) -> Reply<wire::FetchCapsuleResponse> {
        let principal = self.principal(&request)?;
        let request = request.into_inner();
        self.edge
            .once_shown(move |edge| edge.fetch_capsule(&principal, &request))
            .await
            .map(Response::new)
    }

    async fn revoke_claim(
        &self,
        request: Request<wire::RevokeClaimRequest>,
    ) -> Reply<wire::RevokeClaimResponse> {
        let principal = self.principal(&request)?;
        let (metadata, _, request) = request.into_parts();
        self.edge
            .revoke(&principal, &metadata, request)
            .await
            .map(Response::new)
    }

    async fn get_public_key(
        &self,
        request: Request<wire::GetPublicKeyRequest>,
    ) -> Reply<wire::GetPublicKeyResponse> {
        self.edge.public_key(request.get_ref()).map(Response::new)
    }

    async fn get_signed_tree_head(
        &self,
        _: Request<wire::GetSignedTreeHeadRequest>,
    ) -> Reply<wire::GetSignedTreeHeadResponse> {
        Ok(Response::new(self.edge.tree_head()))
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<wire::GetInclusionProofRequest>,
    ) -> Reply<wire::GetInclusionProofResponse> {
        self.read_shown(request, |edge, request| edge.inclusion(request))
            .await
    }

    async fn get_consistency_proof(
        &self,
        request: Request<wire::GetConsistencyProofRequest>,
    ) -> Reply<wire::GetConsistencyProofResponse> {
        self.read_shown(request, |edge, request| edge.consistency(request))
            .await
    }

    async fn get_revocation_feed(
        &self,
        request: Request<wire::GetRevocationFeedRequest>,
    ) -> Reply<wire::GetRevocationFeedResponse> {
        self.read_shown(request, |edge, request| {
            edge.revocations(request.after_index).map(|page| page.feed)
        })
        .await
    }

    type WatchRevocationsStream = Chunks<wire::WatchRevocationsResponse>;

    async fn watch_revocations(
        &self,
        request: Request<wire::WatchRevocationsRequest>,
    ) -> Reply<Self::WatchRevocationsStream> {
        self.principal(&request)?;
        let edge = Arc::clone(&self.edge);
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        // The watcher reads what is new from the store each time that something was revoked, so
        // a slow reader misses nothing and costs no memory. It ends with its stream.
        tokio::spawn(async move {
            let mut changed = edge.revoked.subscribe();
            let mut shown = edge.released.subscribe();
            let mut after = 0;
            let mut first = true;
            loop {
                // Before the look: a head that comes meanwhile must not be missed.
                shown.mark_unchanged();
                let page = edge.blocking(move |edge| edge.revocations(after)).await;
                let Revocations { feed, last, hidden } = match page {
                    Ok(page) => page,
                    Err(status) => {
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                };
                after = last;
                let more = feed.more;
                if (first || !feed.entries.is_empty())
                    && sender.send(Ok(watched(feed))).await.is_err()
                {
                    return;
                }
                first = false;
                if more {
                    continue;
                }
                tokio::select! {
                    () = sender.closed() => return,
                    changed = changed.changed() => if changed.is_err() { return },
                    changed = shown.changed(), if hidden => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(Box::pin(
            tokio_stream::wrappers::ReceiverStream::new(receiver),
        )))
    }

    async fn grant_credit(
        &self,
        request: Request<wire::GrantCreditRequest>,
    ) -> Reply<wire::GrantCreditResponse> {
        let principal = self.principal(&request)?;
        let (metadata, _, request) = request.into_parts();
        let granted = self.edge.grant(&principal, &metadata, request).await?;
        Ok(Response::new(granted))
    }

    async fn set_credit_limit(
        &self,
        request: Request<wire::SetCreditLimitRequest>,
    ) -> Reply<wire::SetCreditLimitResponse> {
        let principal = self.principal(&request)?;
        let (metadata, _, request) = request.into_parts();
        self.edge
            .set_credit_limit(&principal, &metadata, request)
            .await
            .map(Response::new)
    }

    async fn set_holdout_pool_budgets(
        &self,
        request: Request<wire::SetHoldoutPoolBudgetsRequest>,
    ) -> Reply<wire::SetHoldoutPoolBudgetsResponse> {
        let principal = self.principal(&request)?;
        let (metadata, _, request) = request.into_parts();
        self.edge
            .set_pool_budgets(&principal, &metadata, request)
            .await
            .map(Response::new)
    }

    async fn get_holdout_pool_budgets(
        &self,
        request: Request<wire::GetHoldoutPoolBudgetsRequest>,
    ) -> Reply<wire::GetHoldoutPoolBudgetsResponse> {
        self.read(request, Edge::pool_budgets).await
    }

    async fn get_account(
        &self,
        request: Request<wire::GetAccountRequest>,
    ) -> Reply<wire::GetAccountResponse> {
        self.read(request, Edge::get_account).await
    }

    async fn list_accounts(
        &self,
        request: Request<wire::ListAccountsRequest>,
    ) -> Reply<wire::ListAccountsResponse> {
        self.read(request, Edge::list_accounts).await
    }

    type WatchAccountsStream = Watched;

    async fn watch_accounts(
        &self,
        request: Request<wire::WatchAccountsRequest>,
    ) -> Reply<Self::WatchAccountsStream> {
        let principal = self.principal(&request)?;
        self.edge
            .watch_accounts(&principal, request.get_ref())
            .map(Response::new)
    }

    async fn export_accounts(
        &self,
        _: Request<wire::ExportAccountsRequest>,
    ) -> Reply<wire::ExportAccountsResponse> {
        self.edge.export_accounts().await.map(Response::new)
    }

    async fn confirm_clock(
        &self,
        request: Request<wire::ConfirmClockRequest>,
    ) -> Reply<wire::ConfirmClockResponse> {
        let principal = self.principal(&request)?;
        self.edge.confirm_clock(&principal).await.map(Response::new)
    }

    async fn put_holdout(
        &self,
        request: Request<Streaming<wire::PutHoldoutRequest>>,
    ) -> Reply<wire::PutHoldoutResponse> {
        let principal = self.principal(&request)?;
        let (metadata, _, mut stream) = request.into_parts();
        let holdout = self
            .edge
            .put_holdout(&principal, &metadata, &mut stream)
            .await?;
        Ok(Response::new(wire::PutHoldoutResponse {
            holdout: Some(holdout),
        }))
    }

    async fn retire_holdout(
        &self,
        request: Request<wire::RetireHoldoutRequest>,
    ) -> Reply<wire::RetireHoldoutResponse> {
        let principal = self.principal(&request)?;
        let (metadata, _, request) = request.into_parts();
        let holdout = self.edge.retire(&principal, &metadata, request).await?;
        Ok(Response::new(wire::RetireHoldoutResponse {
            holdout: Some(holdout),
        }))
    }

    async fn withdraw_holdout(
        &self,
        request: Request<wire::WithdrawHoldoutRequest>,
    ) -> Reply<wire::WithdrawHoldoutResponse> {
        let principal = self.principal(&request)?;
        let (metadata, _, request) = request.into_parts();
        let holdout = self.edge.withdraw(&principal, &metadata, request).await?;
        Ok(Response::new(wire::WithdrawHoldoutResponse {
            holdout: Some(holdout),
        }))
    }

    type OpenHoldoutStream = Chunks<wire::OpenHoldoutResponse>;

    async fn open_holdout(
        &self,
        request: Request<wire::OpenHoldoutRequest>,
    ) -> Reply<Self::OpenHoldoutStream> {
        let principal = self.principal(&request)?;
        let opening = self
            .edge
            .open_holdout(&principal, request.metadata(), request.get_ref())
            .await?;
        Ok(Response::new(chunks(opening, |chunk| {
            wire::OpenHoldoutResponse { chunk }
        })))
    }

    async fn list_holdouts(
        &self,
        request: Request<wire::ListHoldoutsRequest>,
    ) -> Reply<wire::ListHoldoutsResponse> {
        self.read(request, Edge::list_holdouts).await
    }

    async fn get_holdout(
        &self,
        request: Request<wire::GetHoldoutRequest>,
    ) -> Reply<wire::GetHoldoutResponse> {
        self.read(request, |edge, principal, request| {
            let fixed = edge.find_holdout(&request.holdout)?;
            let holdout = edge.holdout(principal, &fixed)?;
            Ok(wire::GetHoldoutResponse {
                holdout: Some(holdout),
            })
        })
        .await
    }

    async fn get_claim(
        &self,
        request: Request<wire::GetClaimRequest>,
    ) -> Reply<wire::GetClaimResponse> {
        self.read(request, Edge::get_claim).await
    }

    async fn list_claims(
        &self,
        request: Request<wire::ListClaimsRequest>,
    ) -> Reply<wire::ListClaimsResponse> {
        self.read(request, Edge::list_claims).await
    }

    type FetchTraceStream = Chunks<wire::FetchTraceResponse>;

    async fn fetch_trace(
        &self,
        request: Request<wire::FetchTraceRequest>,
    ) -> Reply<Self::FetchTraceStream> {
        let trace = self.read(request, Edge::trace).await?.into_inner();
        Ok(Response::new(chunks(trace, |chunk| {
            wire::FetchTraceResponse { chunk }
        })))
    }

    async fn get_checkpoint(
        &self,
        _: Request<wire::GetCheckpointRequest>,
    ) -> Reply<wire::GetCheckpointResponse> {
        let checkpoint = self.edge.log.released().head.checkpoint.clone();
        Ok(Response::new(wire::GetCheckpointResponse { checkpoint }))
    }

    async fn list_log_keys(
        &self,
        _: Request<wire::ListLogKeysRequest>,
    ) -> Reply<wire::ListLogKeysResponse> {
        Ok(Response::new(self.edge.log_keys()))
    }

    async fn rotate_holdout_key(
        &self,
        request: Request<wire::RotateHoldoutKeyRequest>,
    ) -> Reply<wire::RotateHoldoutKeyResponse> {
        let principal = self.principal(&request)?;
        self.edge
            .rotate_holdout_key(&principal, request.metadata())
            .await
            .map(Response::new)
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Reply<wire::ListEntriesResponse> {
        self.read_shown(request, |edge, request| edge.entries(request))
            .await
    }
}

fn guest_walls(walls: Walls) -> wire::GuestWalls {
    wire::GuestWalls {
        seccomp: walls.seccomp,
        landlock: walls.landlock,
    }
}

fn counters(done: &Done) -> wire::ServerCounters {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    wire::ServerCounters {
        commits: read(&done.commits),
        store_checkpoints: read(&done.checkpoints),
        rows_read: read(&done.rows_read),
        log_files_synced: read(&done.log_files_synced),
    }
}

fn watched(feed: wire::GetRevocationFeedResponse) -> wire::WatchRevocationsResponse {
    wire::WatchRevocationsResponse {
        entries: feed.entries,
        signature: feed.signature,
        signed_tree_head: feed.signed_tree_head,
        key_id: feed.key_id,
    }
}
