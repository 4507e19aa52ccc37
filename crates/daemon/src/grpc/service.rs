//! The service: which handler answers which method.

use std::sync::Arc;

use evidenceos_proto::{self as wire, evidence_os_server::EvidenceOs};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

use super::{
    accounts,
    call::{Call, Pieces},
    claims, holdouts, log, server,
    subject::Concerns,
};
use crate::services::Services;

/// The gRPC service over the daemon's services.
#[derive(Clone)]
pub struct Service {
    services: Arc<Services>,
}

type Reply<T> = Result<Response<T>, Status>;

impl Service {
    /// The gRPC service over these services.
    #[must_use]
    pub fn new(services: Arc<Services>) -> Self {
        Self { services }
    }

    /// A call whose caller is authenticated. If the claim was seen lately, its holdout is noted with it.
    fn call<M: Concerns>(&self, request: Request<M>) -> Result<Call<M>, Status> {
        let call = Call::of(request)?;
        if let Some(claim) = call.subject.claim()
            && let Some(holdout) = self.services.claims.holdout_of(&claim)
        {
            call.subject.is_holdout(&holdout);
        }
        Ok(call)
    }
}

/// Implements the generated trait. Methods in `asks` have a caller, and their handlers take the
/// call; methods in `open` need none, and their handlers take the message; those in `streams`
/// answer in several messages; the rest is copied as it is.
macro_rules! serve {
    (
        asks { $($asked:ident($ask:ty) -> $answer:ident by $handler:path;)* }
        open { $($open:ident($open_ask:ident) -> $open_answer:ident by $open_handler:path;)* }
        streams { $($stream:ident($stream_ask:ident) -> $pieces:ident of $piece:ident by $stream_handler:path;)* }
        rest { $($rest:tt)* }
    ) => {
        #[tonic::async_trait]
        impl EvidenceOs for Service {
            $(async fn $asked(&self, request: Request<$ask>) -> Reply<wire::$answer> {
                let call = self.call(request)?;
                $handler(&self.services, call).await.map(Response::new)
            })*
            $(async fn $open(&self, request: Request<wire::$open_ask>) -> Reply<wire::$open_answer> {
                $open_handler(&self.services, request.get_ref()).map(Response::new)
            })*
            $(
                type $pieces = Pieces<wire::$piece>;
                async fn $stream(&self, request: Request<wire::$stream_ask>) -> Reply<Self::$pieces> {
                    let call = self.call(request)?;
                    $stream_handler(&self.services, call).await.map(Response::new)
                }
            )*
            $($rest)*
        }
    };
}

serve! {
    asks {
        get_server_info(wire::GetServerInfoRequest) -> GetServerInfoResponse by server::info;
        confirm_clock(wire::ConfirmClockRequest) -> ConfirmClockResponse by server::confirm_clock;

        create_claim(wire::CreateClaimRequest) -> CreateClaimResponse by claims::create_v1;
        commit_artifacts(wire::CommitArtifactsRequest) -> CommitArtifactsResponse by claims::commit;
        freeze(wire::FreezeRequest) -> FreezeResponse by claims::freeze;
        freeze_gates(wire::FreezeGatesRequest) -> FreezeGatesResponse by claims::freeze_gates;
        seal(wire::SealRequest) -> SealResponse by claims::seal;
        seal_claim(wire::SealClaimRequest) -> SealClaimResponse by claims::seal_claim;
        execute_claim(wire::ExecuteClaimRequest) -> ExecuteClaimResponse by claims::execute_v1;
        execute_claim_v2(wire::ExecuteClaimV2Request) -> ExecuteClaimV2Response by claims::execute;
        revoke_claim(wire::RevokeClaimRequest) -> RevokeClaimResponse by claims::revoke;
        get_capsule(wire::GetCapsuleRequest) -> GetCapsuleResponse by claims::get_capsule;
        fetch_capsule(wire::FetchCapsuleRequest) -> FetchCapsuleResponse by claims::fetch_capsule;
        get_claim(wire::GetClaimRequest) -> GetClaimResponse by claims::get;
        list_claims(wire::ListClaimsRequest) -> ListClaimsResponse by claims::list;

        get_inclusion_proof(wire::GetInclusionProofRequest) -> GetInclusionProofResponse by log::inclusion;
        get_consistency_proof(wire::GetConsistencyProofRequest) -> GetConsistencyProofResponse by log::consistency;
        get_revocation_feed(wire::GetRevocationFeedRequest) -> GetRevocationFeedResponse by log::revocations;
        list_entries(wire::ListEntriesRequest) -> ListEntriesResponse by log::entries;

        grant_credit(wire::GrantCreditRequest) -> GrantCreditResponse by accounts::grant;
        set_credit_limit(wire::SetCreditLimitRequest) -> SetCreditLimitResponse by accounts::set_limit;
        get_account(wire::GetAccountRequest) -> GetAccountResponse by accounts::get;
        list_accounts(wire::ListAccountsRequest) -> ListAccountsResponse by accounts::list;
        export_accounts(wire::ExportAccountsRequest) -> ExportAccountsResponse by accounts::export;

        put_holdout(Streaming<wire::PutHoldoutRequest>) -> PutHoldoutResponse by holdouts::put;
        get_holdout(wire::GetHoldoutRequest) -> GetHoldoutResponse by holdouts::get;
        list_holdouts(wire::ListHoldoutsRequest) -> ListHoldoutsResponse by holdouts::list;
        retire_holdout(wire::RetireHoldoutRequest) -> RetireHoldoutResponse by holdouts::retire;
        withdraw_holdout(wire::WithdrawHoldoutRequest) -> WithdrawHoldoutResponse by holdouts::withdraw;
        rotate_holdout_key(wire::RotateHoldoutKeyRequest) -> RotateHoldoutKeyResponse by holdouts::rotate_key;
        get_holdout_pool_budgets(wire::GetHoldoutPoolBudgetsRequest) -> GetHoldoutPoolBudgetsResponse by holdouts::budgets;
        set_holdout_pool_budgets(wire::SetHoldoutPoolBudgetsRequest) -> SetHoldoutPoolBudgetsResponse by holdouts::set_budgets;
    }
    open {
        health(HealthRequest) -> HealthResponse by server::health;
        get_public_key(GetPublicKeyRequest) -> GetPublicKeyResponse by log::public_key;
        list_log_keys(ListLogKeysRequest) -> ListLogKeysResponse by log::keys;
        get_signed_tree_head(GetSignedTreeHeadRequest) -> GetSignedTreeHeadResponse by log::tree_head;
        get_checkpoint(GetCheckpointRequest) -> GetCheckpointResponse by log::checkpoint;
    }
    streams {
        watch_revocations(WatchRevocationsRequest) -> WatchRevocationsStream of WatchRevocationsResponse by log::watch_revocations;
        watch_accounts(WatchAccountsRequest) -> WatchAccountsStream of WatchAccountsResponse by accounts::watch;
        open_holdout(OpenHoldoutRequest) -> OpenHoldoutStream of OpenHoldoutResponse by holdouts::open;
        fetch_trace(FetchTraceRequest) -> FetchTraceStream of FetchTraceResponse by claims::trace;
    }
    rest {
        async fn create_claim_v2(
            &self,
            request: Request<wire::CreateClaimV2Request>,
        ) -> Reply<wire::CreateClaimV2Response> {
            let call = self.call(request)?;
            let (created, lane_is_known) = claims::create(&self.services, call).await?;
            let mut response = Response::new(created);
            if !lane_is_known {
                let note = MetadataValue::from_static("unknown lane; fast is used");
                response.metadata_mut().insert("x-evidenceos-note", note);
            }
            Ok(response)
        }
    }
}
