//! A signature serves one request.

use super::*;

const SEAL: &str = "/evidenceos.v2.EvidenceOS/SealClaim";

const COMMIT: &str = "/evidenceos.v2.EvidenceOS/CommitArtifacts";

const EXECUTE: &str = "/evidenceos.v2.EvidenceOS/ExecuteClaimV2";

const REVOKE: &str = "/evidenceos.v2.EvidenceOS/RevokeClaim";

const GET: &str = "/evidenceos.v2.EvidenceOS/GetClaim";

const LIMIT: &str = "/evidenceos.v2.EvidenceOS/SetCreditLimit";

fn reused<T: std::fmt::Debug>(result: Result<T, Status>) {
    refused(
        result,
        Code::AlreadyExists,
        "REQUEST_ID_REUSED",
        "used for another request",
    );
}

/// An eavesdropper sends the header of one call with another body.
#[test]
fn a_signature_that_was_heard_serves_no_other_body() {
    block_on(async {
        let world = World::new(|_| {}).await;
        world.put("h", "o-1").await;
        let mut claims: Vec<prost::bytes::Bytes> = Vec::new();
        for name in ["one", "two"] {
            let created = world.create(&Signature::of(name, CREATE), name).await;
            claims.push(created.expect("created").into());
        }
        let claim_id = |at: usize| claims[at].clone();
        let client = || world.client.clone();
        // A read.
        let get = |signature: &Signature, at: usize| {
            let request = signature.sign(wire::GetClaimRequest {
                claim_id: claim_id(at),
            });
            let mut client = client();
            async move { client.get_claim(request).await.map(drop) }
        };
        let heard = Signature::of("g", GET);
        get(&heard, 0).await.expect("its own");
        get(&heard, 0).await.expect("the same again");
        reused(get(&heard, 1).await);
        get(&Signature::of("g2", GET), 1)
            .await
            .expect("signed anew");
        // Artifacts, up to 8 MiB.
        let commit = |signature: &Signature, at: usize, module: Vec<u8>| {
            let request = signature.sign(wire::CommitArtifactsRequest {
                claim_id: claim_id(at),
                artifacts: vec![wire::Artifact {
                    artifact_hash: Sha256::digest(&module).to_vec().into(),
                    kind: "wasm".to_owned(),
                    ..Default::default()
                }],
                wasm_module: module.into(),
            });
            let mut client = client();
            async move { client.commit_artifacts(request).await.map(drop) }
        };
        let module = crate::harness::judged(&crate::harness::predictions("h", 20));
        let other = crate::harness::judged(&crate::harness::predictions("h", 2));
        let heard = Signature::of("c", COMMIT);
        commit(&heard, 0, module.clone()).await.expect("committed");
        commit(&heard, 0, module.clone())
            .await
            .expect("the same again");
        reused(commit(&heard, 1, module.clone()).await);
        reused(commit(&heard, 0, other).await);
        let second = Signature::of("c2", COMMIT);
        commit(&second, 1, module).await.expect("committed");
        // The rest of a claim's life.
        let seal = |signature: &Signature, at: usize| {
            let request = signature.sign(wire::SealClaimRequest {
                claim_id: claim_id(at),
            });
            let mut client = client();
            async move { client.seal_claim(request).await.map(drop) }
        };
        let heard = Signature::of("s", SEAL);
        seal(&heard, 0).await.expect("sealed");
        reused(seal(&heard, 1).await);
        seal(&Signature::of("s2", SEAL), 1).await.expect("sealed");
        let execute = |signature: &Signature, at: usize| {
            let request = signature.sign(wire::ExecuteClaimV2Request {
                claim_id: claim_id(at),
            });
            let mut client = client();
            async move { client.execute_claim_v2(request).await.map(drop) }
        };
        let heard = Signature::of("e", EXECUTE);
        execute(&heard, 0).await.expect("settled");
        reused(execute(&heard, 1).await);
        let revoke = |signature: &Signature, at: usize| {
            let request = signature.sign(wire::RevokeClaimRequest {
                claim_id: claim_id(at),
                reason: "a test".to_owned(),
            });
            let mut client = client();
            async move { client.revoke_claim(request).await.map(drop) }
        };
        let heard = Signature::of("r", REVOKE);
        revoke(&heard, 0).await.expect("revoked");
        reused(revoke(&heard, 1).await);
        // Labels, in several messages.
        let heard = Signature::ops("p", PUT);
        let mut labels = crate::harness::labels("next");
        let put = world.try_put("next", &heard, labels.clone());
        put.await.expect("registered");
        let put = world.try_put("next", &heard, labels.clone());
        put.await.expect("the same again");
        reused(world.try_put("other", &heard, labels.clone()).await);
        labels[0] ^= 1;
        reused(world.try_put("next", &heard, labels).await);
        // Credit, where the body names whose.
        let limit = |signature: &Signature, principal: &str, limit: u64| {
            let request = signature.sign(wire::SetCreditLimitRequest {
                principal_id: principal.to_owned(),
                limit,
            });
            let mut client = client();
            async move { client.set_credit_limit(request).await.map(drop) }
        };
        let heard = Signature::ops("l", LIMIT);
        let alice = evidenceos_access::principal::hmac("alice");
        limit(&heard, &alice, 100).await.expect("an operator");
        limit(&heard, &alice, 100).await.expect("the same again");
        reused(limit(&heard, "mallory", (1 << 53) - 1).await);
        reused(limit(&heard, &alice, 101).await);
    });
}

#[test]
fn a_signature_that_was_heard_serves_no_other_method_where_it_covers_none() {
    block_on(async {
        let world = World::new(|settings| settings.hmac_accept_root_path = Some(true)).await;
        let root = Signature::of("discos-1", "/");
        let principal = world.principal(&root).await.expect("as the switch says");
        let head = root.sign(wire::GetSignedTreeHeadRequest {});
        reused(world.client.clone().get_signed_tree_head(head).await);
        assert_eq!(world.principal(&root).await.expect("the same"), principal);
        // Nor does it serve the other port.
        let http = world.running.http_address().expect("on");
        let time = root.time.expect("there");
        let headers = http_headers_at(SECRET, "discos-1", "/", time);
        let answer = crate::secure::get(http, "/openapi.json", &headers).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(
            answer.body.contains("used for another request"),
            "{answer:?}"
        );
        let headers = http_headers_at(SECRET, "discos-2", "/", time);
        let answer = crate::secure::get(http, "/openapi.json", &headers).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let second = Signature {
            id: "discos-2".to_owned(),
            ..root
        };
        reused(world.principal(&second).await);
    });
}

#[test]
fn a_signature_on_the_gate_serves_one_request() {
    block_on(async {
        let world = World::new(|_| {}).await;
        let http = world.running.http_address().expect("on");
        let good: &[u8] = br#"{"toolName":"search","params":{"q":"a"}}"#;
        let other: &[u8] = br#"{"toolName":"exec","sessionId":"s","params":{"q":"b"}}"#;
        let path = "/v1/preflight_tool_call";
        let headers = http_headers(SECRET, "p-1", path);
        for (path_sent, body, status) in [
            (path, good, 200),
            (path, good, 200),
            (path, other, 401),
            ("/v1/preflight_tool_call?x=1", good, 401),
            (path, good, 200),
        ] {
            let answer = crate::secure::post(http, path_sent, &headers, body).await;
            assert_eq!(answer.status, status, "{answer:?}");
            if status == 401 {
                assert!(answer.body.contains(r#""decision":"DENY""#), "{answer:?}");
                assert!(
                    answer.body.contains("used for another request"),
                    "{answer:?}"
                );
            }
        }
        let path = "/v1/postflight_tool_call";
        let headers = http_headers(SECRET, "p-2", path);
        let called = |word: &str| {
            format!(
                r#"{{"toolName":"t","paramsHash":"{}","status":"ok","output":"{word}"}}"#,
                "a".repeat(64)
            )
        };
        let first = crate::secure::post(http, path, &headers, called("a").as_bytes()).await;
        assert_eq!(first.status, 200, "{first:?}");
        let second = crate::secure::post(http, path, &headers, called("b").as_bytes()).await;
        assert_eq!(second.status, 400, "{second:?}");
        assert!(second.body.contains("BLOCK"), "{second:?}");
        assert!(second.body.contains("signature_used"), "{second:?}");
        let path = "/v1/aspec_admit";
        let headers = http_headers(SECRET, "p-3", path);
        let first = crate::secure::post(http, path, &headers, br#"{"moduleBase64":"AA=="}"#).await;
        assert_eq!(first.status, 200, "{first:?}");
        let second = crate::secure::post(http, path, &headers, br#"{"moduleBase64":"AQ=="}"#).await;
        assert_eq!(second.status, 401, "{second:?}");
        // A read, by its query too.
        let path = "/openapi.json";
        let headers = http_headers(SECRET, "p-4", path);
        for (sent, status) in [(path, 200), (path, 200), ("/openapi.json?a", 401)] {
            let answer = crate::secure::get(http, sent, &headers).await;
            assert_eq!(answer.status, status, "{answer:?}");
        }
    });
}

/// Of two at once, one is let through, whichever it is; both would be two requests.
#[test]
fn of_two_bodies_at_once_a_signature_serves_one() {
    block_on(async {
        let world = World::new(|_| {}).await;
        let path = "/evidenceos.v2.EvidenceOS/GetAccount";
        for round in 0..20 {
            let signature = Signature::of(&format!("race-{round}"), path);
            let call = |principal_id: &str| {
                let request = signature.sign(wire::GetAccountRequest {
                    principal_id: principal_id.to_owned(),
                });
                let mut client = world.client.clone();
                async move { client.get_account(request).await.map(drop) }
            };
            let (one, two) = tokio::join!(call(""), call("anonymous"));
            let was_reused = |result: &Result<(), Status>| {
                result
                    .as_ref()
                    .is_err_and(|status| status.code() == Code::AlreadyExists)
            };
            assert_ne!(was_reused(&one), was_reused(&two), "{one:?} {two:?}");
        }
    });
}

/// Reflection answers while it is asked: nobody could say what the whole request is.
#[test]
fn a_conversation_begins_with_a_signature_of_its_own() {
    block_on(async {
        let world = World::new(|_| {}).await;
        let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let signature = Signature::of("reflect", path);
        let talk = || async {
            use tonic_reflection::pb::v1::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
            };
            let address = world.running.grpc_address();
            let endpoint = Channel::from_shared(format!("http://{address}")).expect("a URI");
            let channel = endpoint.connect().await.expect("listens");
            let asked = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let request = signature.sign(tokio_stream::iter([asked]));
            let mut client = ServerReflectionClient::new(channel);
            let answers = client.server_reflection_info(request).await?;
            answers.into_inner().message().await.map(drop)
        };
        talk().await.expect("signed");
        let again = talk()
            .await
            .expect_err("a conversation can only be had once");
        assert_eq!(again.code(), Code::AlreadyExists, "{again:?}");
    });
}

/// A restart forgets no signature: with another body it is refused, with its own it is answered.
#[test]
fn a_signature_serves_one_request_over_restarts() {
    block_on(async {
        let world = World::new(|_| {}).await;
        world.put("h", "o-1").await;
        let created = world.create(&Signature::of("c", CREATE), "one").await;
        let one: prost::bytes::Bytes = created.expect("created").into();
        let created = world.create(&Signature::of("d", CREATE), "two").await;
        let two: prost::bytes::Bytes = created.expect("created").into();
        let module = crate::harness::judged(&crate::harness::predictions("h", 20));
        let heard = Signature::of("m", COMMIT);
        let commit = |world: &World, claim_id: &prost::bytes::Bytes| {
            let request = heard.sign(wire::CommitArtifactsRequest {
                claim_id: claim_id.clone(),
                artifacts: vec![wire::Artifact {
                    artifact_hash: Sha256::digest(&module).to_vec().into(),
                    kind: "wasm".to_owned(),
                    ..Default::default()
                }],
                wasm_module: module.clone().into(),
            });
            let mut client = world.client.clone();
            async move { client.commit_artifacts(request).await.map(drop) }
        };
        let read = Signature::of("g", GET);
        let get = |world: &World, claim_id: &prost::bytes::Bytes| {
            let request = read.sign(wire::GetClaimRequest {
                claim_id: claim_id.clone(),
            });
            let mut client = world.client.clone();
            async move { client.get_claim(request).await.map(drop) }
        };
        commit(&world, &one).await.expect("committed");
        get(&world, &one).await.expect("its own");
        let world = world.restart().await;
        reused(commit(&world, &two).await);
        commit(&world, &one).await.expect("what was said before");
        reused(get(&world, &two).await);
        get(&world, &one).await.expect("its own");
        // Again: what the first start read the second writes.
        let world = world.restart().await;
        reused(commit(&world, &two).await);
        reused(get(&world, &two).await);
        // What was not heard before the restart is new: a client's clock may be behind.
        let late = Signature {
            time: heard.time.map(|time| time - 200),
            ..Signature::of("late", GET)
        };
        let request = late.sign(wire::GetClaimRequest { claim_id: two });
        let got = world.client.clone().get_claim(request).await;
        got.expect("its own");
    });
}
