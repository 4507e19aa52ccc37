//! Bad input: one clear error that says what to do; nothing lost, nothing charged.

use std::time::Duration;

use evidenceos_proto as wire;
use prost::bytes::Bytes;
use tokio::{task::JoinSet, time::timeout};
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::harness::{
    Daemon, ITEMS, block_on, header, judged, labels, predictions, refused, terms,
};

#[test]
fn another_principals_claim_looks_like_none() {
    block_on(async {
        let daemon = Daemon::start().await;
        daemon.operator().await.put_default("h").await;
        let mut owner = daemon.submitter("owner").await;
        let mut stranger = daemon.submitter("stranger").await;
        let module = judged(&predictions("h", 2));
        let (claim, _) = owner.run("c", "h", &module).await;
        let nowhere = Bytes::from_static(&[7; 32]);
        for id in [claim.clone(), nowhere] {
            let unknown = |result: Result<(), tonic::Status>| {
                refused(
                    result,
                    Code::NotFound,
                    "CLAIM_NOT_FOUND",
                    "not found among your claims",
                );
            };
            unknown(stranger.commit(&id, &module).await.map(drop));
            unknown(stranger.seal(&id).await.map(drop));
            unknown(stranger.execute(&id).await.map(drop));
            unknown(stranger.fetch(&id).await.map(drop));
            unknown(stranger.get(&id).await.map(drop));
            let revoke = stranger.request(wire::RevokeClaimRequest {
                claim_id: id.clone(),
                reason: "r".into(),
            });
            unknown(stranger.inner.revoke_claim(revoke).await.map(drop));
            let trace = stranger.request(wire::FetchTraceRequest {
                claim_id: id.clone(),
            });
            unknown(stranger.inner.fetch_trace(trace).await.map(drop));
        }
        // The same words by another principal make another claim.
        let other = stranger.create(terms("c", "h")).await.expect("created");
        assert_ne!(other, claim);
        let own = stranger.request(wire::ListClaimsRequest::default());
        let listed = stranger
            .inner
            .list_claims(own)
            .await
            .expect("own")
            .into_inner()
            .claims;
        assert_eq!(
            listed
                .iter()
                .map(|c| c.claim_id.clone())
                .collect::<Vec<_>>(),
            [other]
        );
        let all = stranger.request(wire::ListClaimsRequest {
            all: true,
            ..Default::default()
        });
        refused(
            stranger.inner.list_claims(all).await,
            Code::PermissionDenied,
            "ROLE_REQUIRED",
            "auditor",
        );
    });
}

#[test]
fn steps_in_a_wrong_state_are_refused_and_change_nothing() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let module = judged(&predictions("h", 2));
        let claim = client.create(terms("c", "h")).await.expect("created");
        let wrong = |result: Result<(), tonic::Status>, words: &str| {
            refused(result, Code::FailedPrecondition, "WRONG_STATE", words);
        };
        wrong(
            client.seal(&claim).await.map(drop),
            "commit its artifacts first",
        );
        wrong(
            client.execute(&claim).await.map(drop),
            "commit its artifacts first",
        );
        client.commit(&claim, &module).await.expect("committed");
        client
            .commit(&claim, &judged(&predictions("h", 4)))
            .await
            .expect("committed again");
        wrong(client.execute(&claim).await.map(drop), "seal it first");
        client.seal(&claim).await.expect("sealed");
        client.seal(&claim).await.expect("sealed already");
        wrong(
            client.commit(&claim, &module).await.map(drop),
            "it is bound",
        );
        let revoke = client.request(wire::RevokeClaimRequest {
            claim_id: claim.clone(),
            reason: "r".into(),
        });
        wrong(
            client.inner.revoke_claim(revoke).await.map(drop),
            "execute it",
        );
        refused(
            client.fetch(&claim).await,
            Code::FailedPrecondition,
            "NOT_SETTLED",
            "sealed",
        );
        client.execute(&claim).await.expect("settled");
    });
}

#[test]
fn fields_of_a_create_are_checked() {
    type Change = fn(&mut wire::CreateClaimV2Request);
    let long = |request: &mut wire::CreateClaimV2Request| request.claim_name = "n".repeat(129);
    let cases: [(&str, &str, Change); 14] = [
        ("claim_name", "INVALID_FIELD", |r| r.claim_name.clear()),
        ("claim_name", "INVALID_FIELD", long),
        ("claim_name", "INVALID_FIELD", |r| {
            r.claim_name = "a\nb".into()
        }),
        ("holdout_ref", "INVALID_FIELD", |r| {
            r.holdout_ref = "../h".into()
        }),
        // As published, and not NOT_FOUND: a field of the request is wrong.
        ("unknown holdout_ref", "HOLDOUT_NOT_FOUND", |r| {
            r.holdout_ref = "nowhere".into()
        }),
        ("metadata", "INVALID_FIELD", |r| r.metadata = None),
        ("alpha_micros", "INVALID_FIELD", |r| {
            r.metadata.as_mut().expect("there").alpha_micros = 0
        }),
        ("alpha_micros", "INVALID_FIELD", |r| {
            r.metadata.as_mut().expect("there").alpha_micros = 1_000_000;
        }),
        ("epoch_config_ref", "INVALID_FIELD", |r| {
            r.metadata.as_mut().expect("there").epoch_config_ref = "../epoch_configs/e1".into();
        }),
        ("output_schema_id", "INVALID_FIELD", |r| {
            r.metadata.as_mut().expect("there").output_schema_id = "cbrn/v1".into();
        }),
        ("oracle_num_symbols", "INVALID_FIELD", |r| {
            r.oracle_num_symbols = 1
        }),
        ("oracle_id", "INVALID_FIELD", |r| {
            r.oracle_id = "other".into()
        }),
        ("dp_epsilon_budget", "INVALID_FIELD", |r| {
            r.dp_epsilon_budget = Some(f64::NAN)
        }),
        ("nullspec_id", "INVALID_FIELD", |r| {
            r.nullspec_id = "00".repeat(32)
        }),
    ];
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        for (words, own, change) in cases {
            let mut request = terms("c", "h");
            change(&mut request);
            refused(
                client.create(request).await,
                Code::InvalidArgument,
                own,
                words,
            );
        }
        for alpha in [0.0, 1.0, f64::NAN, -1.0] {
            let id = client.holdout("h").await.holdout_id;
            let request = client.request(wire::CreateClaimRequest {
                topic_id: vec![1; 32].into(),
                holdout_handle_id: id,
                phys_hir_hash: vec![1; 32].into(),
                epoch_size: 1,
                oracle_num_symbols: 2,
                alpha,
                access_credit: 1,
            });
            refused(
                client.inner.create_claim(request).await,
                Code::InvalidArgument,
                "INVALID_FIELD",
                "(0,1)",
            );
        }
        for len in [0, 31, 33] {
            let id = Bytes::from(vec![1; len]);
            refused(
                client.get(&id).await,
                Code::InvalidArgument,
                "INVALID_FIELD",
                "32 bytes",
            );
        }
        let listed = client
            .inner
            .list_claims(wire::ListClaimsRequest::default())
            .await;
        assert!(listed.expect("own").into_inner().claims.is_empty());
    });
}

#[test]
fn modules_that_break_rules_are_named_with_their_offsets() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client.put_default("h").await;
        let claim = client.create(terms("c", "h")).await.expect("created");
        let good = judged(&predictions("h", 2));
        let wasi = wat::parse_str(
            r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
                (memory (export "memory") 1) (func (export "run")))"#,
        )
        .expect("valid text");
        let trailing = [good.as_slice(), b"more"].concat();
        let cases: [(&str, &[u8], &str); 5] = [
            ("empty", b"", "required"),
            ("five MiB", &vec![0; 5 << 20], "4"),
            ("WASI", &wasi, "wasi_snapshot_preview1"),
            ("data after the module", &trailing, "at byte 0x"),
            ("no module", b"not wasm", "at byte 0x"),
        ];
        for (name, module, words) in cases {
            let result = client.commit(&claim, module).await;
            println!("{name}: {result:?}");
            refused(result, Code::InvalidArgument, "INVALID_FIELD", words);
        }
        let mut mismatched = vec![wire::Artifact {
            artifact_hash: vec![0; 32].into(),
            kind: "wasm".into(),
            ..Default::default()
        }];
        let result = client.commit_with(&claim, mismatched.clone(), &good).await;
        refused(result, Code::InvalidArgument, "INVALID_FIELD", "SHA-256");
        mismatched[0].artifact_hash = vec![0; 31].into();
        let result = client.commit_with(&claim, mismatched, &good).await;
        refused(result, Code::InvalidArgument, "INVALID_FIELD", "32 bytes");
        let result = client.commit_with(&claim, Vec::new(), &good).await;
        refused(result, Code::InvalidArgument, "INVALID_FIELD", "1 to 128");
        client
            .commit(&claim, &good)
            .await
            .expect("still uncommitted, and fine");
    });
}

#[test]
fn holdouts_that_break_rules_are_refused() {
    type Change = fn(&mut wire::PutHoldoutHeader);
    fn policy(header: &mut wire::PutHoldoutHeader) -> &mut wire::HoldoutPolicy {
        header.policy.get_or_insert_default()
    }
    let cases: [(&str, Change); 10] = [
        ("items", |h| h.items = 0),
        ("items", |h| h.items = 199),
        ("items", |h| h.items = 1_000_001),
        ("holdout_ref", |h| h.holdout_ref = "../x".into()),
        ("null_spec", |h| h.null_spec = None),
        ("null_spec", |h| {
            h.null_spec.as_mut().expect("there").p0_micros = 0
        }),
        ("alpha_micros", |h| policy(h).alpha_micros = Some(1_000_000)),
        ("answer_share_micros", |h| {
            policy(h).answer_share_micros = Some(1_000_000)
        }),
        ("masses sum to more", |h| {
            let prices_microbits = vec![1_000_000, 999_999];
            policy(h).answer_prices = vec![wire::AnswerPriceTable {
                n_symbols: 2,
                prices_microbits,
            }];
        }),
        ("multiplicity", |h| policy(h).multiplicity = "some".into()),
    ];
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        for (words, change) in cases {
            let mut header = header("h");
            change(&mut header);
            let status = client.put(header, &labels("h")).await.expect_err(words);
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            assert!(
                status
                    .message()
                    .to_lowercase()
                    .contains(&words.to_lowercase()),
                "{status:?}"
            );
        }
        let mut two = labels("h");
        two[17] = 2;
        refused(
            client.put(header("h"), &two).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "item 17",
        );
        client.put_default("h").await;
        refused(
            client.put(header("h"), &labels("other")).await,
            Code::AlreadyExists,
            "HOLDOUT_EXISTS",
            "new name",
        );
        refused(
            client.put(header("g"), &labels("h")).await,
            Code::AlreadyExists,
            "HOLDOUT_EXISTS",
            "registered already",
        );
        let mut submitter = daemon.submitter("s").await;
        refused(
            submitter.put(header("s"), &labels("s")).await,
            Code::PermissionDenied,
            "ROLE_REQUIRED",
            "operator",
        );
        let holdouts = client
            .inner
            .list_holdouts(wire::ListHoldoutsRequest::default())
            .await;
        assert_eq!(holdouts.expect("public").into_inner().holdouts.len(), 1);
    });
}

#[test]
fn an_item_is_in_one_holdout_only() {
    use wire::put_holdout_request::Part;
    block_on(async {
        let daemon = Daemon::start().await;
        let client = daemon.operator().await;
        let put = async |name: &str, first: u8| {
            let mut header = header(name);
            header.has_item_ids = true;
            let ids: Vec<u8> = (0..ITEMS as u16)
                .flat_map(|item| {
                    let mut id = [first; 16];
                    id[..2].copy_from_slice(&item.to_be_bytes());
                    id
                })
                .collect();
            let chunk = wire::PutHoldoutChunk {
                labels: labels(name).into(),
                item_id_digests: ids.into(),
                ..Default::default()
            };
            let parts = [Part::Header(header), Part::Chunk(chunk)]
                .map(|part| wire::PutHoldoutRequest { part: Some(part) });
            client
                .inner
                .clone()
                .put_holdout(tokio_stream::iter(parts))
                .await
        };
        put("a", 1).await.expect("registered");
        refused(
            put("b", 1).await,
            Code::AlreadyExists,
            "HOLDOUT_EXISTS",
            "one holdout only",
        );
        put("c", 2).await.expect("other items");
    });
}

#[test]
fn what_is_left_out_for_good_says_so() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        refused(
            client
                .inner
                .execute_claim(wire::ExecuteClaimRequest::default())
                .await,
            Code::FailedPrecondition,
            "EXECUTE_V1",
            "ExecuteClaimV2",
        );
    });
}

/// The create request with its name as bytes: the same wire, without the promise of UTF-8.
#[derive(Clone, PartialEq, prost::Message)]
struct RawCreate {
    #[prost(bytes = "vec", tag = "1")]
    claim_name: Vec<u8>,
}

#[test]
fn a_name_that_is_not_utf8_is_refused_by_the_field() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        let address = format!("http://{}", daemon.running.grpc_address());
        let channel = tonic::transport::Endpoint::from_shared(address).expect("an address");
        let mut raw = tonic::client::Grpc::new(channel.connect().await.expect("listens"));
        raw.ready().await.expect("ready");
        let codec = tonic_prost::ProstCodec::<RawCreate, wire::CreateClaimV2Response>::default();
        let path = "/evidenceos.v2.EvidenceOS/CreateClaimV2"
            .parse()
            .expect("a path");
        let request = tonic::Request::new(RawCreate {
            claim_name: vec![0xff, 0xfe],
        });
        let status = raw
            .unary(request, path, codec)
            .await
            .expect_err("not UTF-8");
        assert!(
            status.message().contains("claim_name") && status.message().contains("UTF-8"),
            "{status:?}"
        );
        let listed = client
            .inner
            .list_claims(wire::ListClaimsRequest::default())
            .await;
        assert!(listed.expect("own").into_inner().claims.is_empty());
    });
}

#[test]
fn a_message_larger_than_any_of_its_call_is_refused_before_it_is_read() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        for size in [300 << 10, 6 << 20] {
            let request = wire::RevokeClaimRequest {
                claim_id: vec![1; 32].into(),
                reason: "x".repeat(size),
            };
            let reply = client.inner.revoke_claim(client.request(request)).await;
            refused(
                reply,
                Code::InvalidArgument,
                "INVALID_FIELD",
                "larger than any",
            );
        }
    });
}

#[test]
fn what_one_caller_leaves_open_keeps_nobody_else_out() {
    block_on(async {
        let daemon = Daemon::start().await;
        // The greedy one is an operator, who may bring labels.
        let mut late = daemon.operator().await;
        late.put_default("h").await;
        let mut honest = daemon.submitter("honest").await;
        // More uploads than all callers together may have, none of which comes to its end.
        let mut open = JoinSet::new();
        for _ in 0..4 {
            let greedy = daemon.operator().await;
            for _ in 0..40 {
                let mut greedy = greedy.clone();
                let part = wire::put_holdout_request::Part::Header(header("never"));
                let first = wire::PutHoldoutRequest { part: Some(part) };
                let parts = tokio_stream::iter([first]).chain(tokio_stream::pending());
                open.spawn(async move {
                    let request = greedy.request(parts);
                    greedy.inner.put_holdout(request).await.map(drop)
                });
            }
        }
        // Until they are there: then the greedy one's share is full, and its own next upload waits.
        let claim = late.create(terms("late", "h")).await.expect("created");
        let module = judged(&predictions("h", 20));
        let hasty = Duration::from_millis(200);
        while let Ok(committed) = timeout(hasty, late.commit(&claim, &module)).await {
            committed.expect("committed");
        }
        let (_, result) = honest
            .run("good", "h", &judged(&predictions("h", 20)))
            .await;
        assert!(result.certified);
        // What its uploads held is free once they are gone.
        open.shutdown().await;
        late.commit(&claim, &module).await.expect("committed");
    });
}
