//! What is public: server info, the log, revocations, opened holdouts; reflection and health.

use evidenceos_kernel::{entry::Kind, record, trace};
use evidenceos_proto as wire;
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::harness::{Daemon, block_on, judged, labels, predictions, refused};

#[test]
fn published_clients_find_what_they_look_for() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.submitter("s").await;
        let request = client.request(wire::GetServerInfoRequest {});
        let info = client
            .inner
            .get_server_info(request)
            .await
            .expect("public")
            .into_inner();
        assert_eq!(info.protocol_semver, "2.1.0");
        assert!(info.proto_hash.starts_with("9d537269"));
        assert_eq!(info.daemon_version, "evidenceosd/2.1.0");
        assert!(info.development && info.principal.starts_with("bearer:"));
        assert_eq!(info.log_vkey, daemon.running.log_vkey());
        let health = client
            .inner
            .health(wire::HealthRequest {})
            .await
            .expect("public");
        assert_eq!(health.into_inner().status, "SERVING");
        let address = format!("http://{}", daemon.running.grpc_address());
        let channel = tonic::transport::Endpoint::from_shared(address).expect("an address");
        let channel = channel.connect().await.expect("listens");
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let check = tonic_health::pb::HealthCheckRequest {
            service: String::new(),
        };
        let status = health
            .check(check)
            .await
            .expect("served")
            .into_inner()
            .status;
        assert_eq!(
            status,
            tonic_health::pb::health_check_response::ServingStatus::Serving as i32
        );
    });
}

#[test]
fn the_schema_is_reflected() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    block_on(async {
        let daemon = Daemon::start().await;
        let address = format!("http://{}", daemon.running.grpc_address());
        let channel = tonic::transport::Endpoint::from_shared(address).expect("an address");
        let mut client = ServerReflectionClient::new(channel.connect().await.expect("listens"));
        let list = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut replies = client
            .server_reflection_info(tokio_stream::once(list))
            .await
            .expect("served")
            .into_inner();
        let reply = replies
            .next()
            .await
            .expect("a reply")
            .expect("fine")
            .message_response;
        let Some(MessageResponse::ListServicesResponse(services)) = reply else {
            panic!("another reply: {reply:?}");
        };
        let names: Vec<&str> = services.service.iter().map(|s| s.name.as_str()).collect();
        assert!(
            names.contains(&"evidenceos.v2.EvidenceOS") && names.contains(&"grpc.health.v1.Health"),
            "{names:?}"
        );
    });
}

#[test]
fn the_log_begins_with_its_origin_and_holds_every_capsule() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let (_, result) = client.run("c", "h", &judged(&predictions("h", 2))).await;
        let listed = client
            .inner
            .list_entries(wire::ListEntriesRequest::default())
            .await;
        let listed = listed.expect("public").into_inner();
        let kinds: Vec<_> = listed.entries.iter().filter_map(|e| Kind::of(e)).collect();
        assert_eq!(
            kinds,
            [
                Kind::LogStarted,
                Kind::HoldoutRegistered,
                Kind::ClaimCapsule
            ]
        );
        let capsule = record::Capsule::parse(&listed.entries[2]).expect("canonical");
        assert_eq!(capsule.hash().0.as_slice(), result.capsule_hash);
        assert_eq!(capsule.ledger.threshold.0, result.threshold_microbits);
        let beyond = wire::GetInclusionProofRequest {
            leaf_index: 3,
            tree_size: 0,
        };
        refused(
            client.inner.get_inclusion_proof(beyond).await,
            Code::NotFound,
            "BEYOND_THE_LOG",
            "3 entries",
        );
        let reversed = wire::GetConsistencyProofRequest {
            first_tree_size: 2,
            second_tree_size: 1,
        };
        let result = client.inner.get_consistency_proof(reversed).await;
        refused(
            result,
            Code::InvalidArgument,
            "SIZES_OUT_OF_ORDER",
            "larger",
        );
    });
}

#[test]
fn revocations_are_fed_to_whoever_watches() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let module = judged(&predictions("h", 2));
        let mut claims = Vec::new();
        for name in ["a", "b"] {
            claims.push(client.run(name, "h", &module).await);
        }
        let watch = client
            .inner
            .watch_revocations(wire::WatchRevocationsRequest {})
            .await;
        let mut watch = watch.expect("public").into_inner();
        assert!(
            watch
                .next()
                .await
                .expect("a first message")
                .expect("fine")
                .entries
                .is_empty()
        );
        for (claim, result) in &claims {
            let request = wire::RevokeClaimRequest {
                claim_id: claim.clone(),
                reason: "wrong labels".into(),
            };
            client
                .inner
                .revoke_claim(request.clone())
                .await
                .expect("revoked");
            refused(
                client.inner.revoke_claim(request).await,
                Code::FailedPrecondition,
                "WRONG_STATE",
                "revoke",
            );
            let fed = watch
                .next()
                .await
                .expect("a message")
                .expect("fine")
                .entries;
            assert_eq!(fed.len(), 1);
            assert_eq!(
                (&fed[0].claim_id, &fed[0].capsule_hash),
                (claim, &result.capsule_hash)
            );
        }
        let feed = client
            .inner
            .get_revocation_feed(wire::GetRevocationFeedRequest::default())
            .await;
        let feed = feed.expect("public").into_inner();
        assert_eq!((feed.entries.len(), feed.more), (2, false));
        assert_eq!(feed.signature.len(), 64);
        let shown = client.get(&claims[0].0).await.expect("there");
        assert_eq!(shown.state, wire::ClaimState::Revoked as i32);
    });
}

#[test]
fn an_opened_holdout_shows_its_labels_and_traces_to_all() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut operator = daemon.operator().await;
        operator.put_default("h").await;
        let mut owner = daemon.submitter("owner").await;
        let mut stranger = daemon.submitter("stranger").await;
        let vector = predictions("h", 2);
        let (claim, _) = owner.run("c", "h", &judged(&vector)).await;
        let open = || wire::OpenHoldoutRequest {
            holdout: "h".into(),
        };
        refused(
            operator.inner.open_holdout(open()).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "retire it first",
        );
        let retire = || wire::RetireHoldoutRequest {
            holdout: "h".into(),
            reason: "season over".into(),
        };
        let request = owner.request(retire());
        refused(
            owner.inner.retire_holdout(request).await,
            Code::PermissionDenied,
            "ROLE_REQUIRED",
            "operator",
        );
        operator
            .inner
            .retire_holdout(retire())
            .await
            .expect("retired");
        refused(
            owner.create(crate::harness::terms("d", "h")).await,
            Code::FailedPrecondition,
            "HOLDOUT_RETIRED",
            "retired",
        );
        let opening = operator
            .inner
            .open_holdout(open())
            .await
            .expect("opened")
            .into_inner();
        let chunks: Vec<_> = opening
            .map(|chunk| chunk.expect("fine").chunk)
            .collect()
            .await;
        let opening: serde_json::Value = serde_json::from_slice(&chunks.concat()).expect("JSON");
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        let shown = BASE64_STANDARD
            .decode(opening["labels"].as_str().expect("text"))
            .expect("base64");
        assert_eq!(shown, labels("h"));
        let request = stranger.request(wire::FetchTraceRequest { claim_id: claim });
        let pieces = stranger
            .inner
            .fetch_trace(request)
            .await
            .expect("public now")
            .into_inner();
        let pieces: Vec<_> = pieces
            .map(|piece| piece.expect("fine").chunk)
            .collect()
            .await;
        let (items, records) = trace::parse(&pieces.concat()).expect("a trace");
        assert_eq!(items as usize, vector.len());
        assert_eq!(records[1], trace::Record::Judged(vector));
        assert!(matches!(
            records.as_slice(),
            [trace::Record::Run(_), _, trace::Record::End(end)] if end.code == trace::EMITTED
        ));
    });
}
