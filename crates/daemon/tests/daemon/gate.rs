//! The gate for agents from outside: what is answered, what is refused, and that it is evidence.

mod refusals;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use evidenceos_daemon::{
    Running,
    config::{DurableDecisions, ProbeProfile, Settings},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    harness::{block_on, configured},
    http2::{self, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, frame, next_frame},
    secure::{Answer, Home, get, post},
};

pub const PREFLIGHT: &str = "/v1/preflight_tool_call";
pub const POSTFLIGHT: &str = "/v1/postflight_tool_call";
pub const ID: &str = "x-request-id: r-1\r\n";

pub fn http(running: &Running) -> SocketAddr {
    running.http_address().expect("on")
}

pub fn parsed(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body))
}

pub async fn ask(running: &Running, headers: &str, body: &Value) -> (u16, Value) {
    let headers = format!("{ID}{headers}");
    let answer = post(
        http(running),
        PREFLIGHT,
        &headers,
        body.to_string().as_bytes(),
    )
    .await;
    (answer.status, parsed(&answer))
}

pub fn call(tool: &str, session: &str, n: u64) -> Value {
    json!({ "toolName": tool, "params": { "n": n }, "sessionId": session })
}

/// The published numbers, but no limit of calls a second: tests are as fast as they can be.
pub fn unlimited(home: &Home) -> Settings {
    Settings {
        probe_profile: Some(ProbeProfile::Published),
        preflight_rate_limit_rps: Some("off".to_owned()),
        ..home.plain()
    }
}

#[test]
fn a_clean_call_is_allowed_and_says_what_is_left() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&unlimited(&home)).await;
        let (status, body) = ask(&running, "", &call("search.web", "s", 1)).await;
        assert_eq!(status, 200);
        assert_eq!(body["decision"], "ALLOW");
        assert_eq!(body["reasonCode"], "PROBE_CLEAN");
        assert_eq!(body["budgetDelta"], json!({ "spent": 1, "remaining": 79 }));
        let hash = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(br#"{"n":1}"#));
        assert_eq!(body["paramsHash"], hash);
        assert_eq!(body.get("rewrittenParams"), None);
        running.stop().await.expect("stops");
    });
}

#[test]
fn many_calls_are_throttled_escalated_and_frozen_as_published() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&unlimited(&home)).await;
        let mut seen = BTreeMap::<(String, String), u64>::new();
        for _ in 0..85 {
            let (status, body) = ask(&running, "", &call("search.web", "s", 1)).await;
            assert_eq!(status, 200);
            let word = |field: &str| body[field].as_str().expect("a word").to_owned();
            *seen
                .entry((word("decision"), word("reasonCode")))
                .or_default() += 1;
            assert_eq!(body.get("rewrittenParams"), None, "unchanged: not echoed");
        }
        let expected = [
            (("ALLOW", "PROBE_CLEAN"), 19),
            (("DENY", "PROBE_FREEZE"), 6),
            (("DOWNGRADE", "PROBE_THROTTLE"), 20),
            (("REQUIRE_HUMAN", "PROBE_ESCALATE"), 40),
        ];
        let expected: BTreeMap<_, _> = expected
            .into_iter()
            .map(|((decision, reason), n)| ((decision.to_owned(), reason.to_owned()), n))
            .collect();
        assert_eq!(seen, expected);
        // Another caller is not concerned.
        let other = "authorization: Bearer other\r\n";
        let (_, body) = ask(&running, other, &call("search.web", "s", 1)).await;
        assert_eq!(body["decision"], "ALLOW");
        running.stop().await.expect("stops");
    });
}

/// A gate by its defaults, but as fast as the test.
fn for_agents(home: &Home) -> Settings {
    Settings {
        preflight_rate_limit_rps: Some("off".to_owned()),
        ..home.plain()
    }
}

#[test]
fn an_agent_that_works_is_let_through_all_day() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&for_agents(&home)).await;
        // An hour of one call each three seconds, in less than the window of half a minute: none of a dozen tools and a
        // thousand different calls is too many.
        let tools = [
            "Bash", "Read", "Write", "Edit", "Grep", "Glob", "WebFetch", "exec", "fs.read", "a",
            "b", "c",
        ];
        for n in 0..590 {
            let tool = tools[n as usize % tools.len()];
            let (status, body) = ask(&running, "", &call(tool, "s", n)).await;
            assert_eq!(
                (status, &body["decision"]),
                (200, &json!("ALLOW")),
                "{n} {body}"
            );
        }
        // A file of 20 KB is no attack.
        let file = json!({ "toolName": "Write", "params": { "content": "x".repeat(20_000) }, "sessionId": "s" });
        let (status, body) = ask(&running, "", &file).await;
        assert_eq!(
            (status, &body["decision"]),
            (200, &json!("ALLOW")),
            "{body}"
        );
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_command_that_destroys_is_stopped_by_default() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&for_agents(&home)).await;
        let shell = |tool: &str, command: &str| json!({ "toolName": tool, "params": { "command": command }, "sessionId": "s" });
        for (tool, command) in [
            ("Bash", "rm -rf /"),
            ("exec", "rm -rf ~"),
            ("shell.exec", "mkfs.ext4 /dev/sda"),
        ] {
            let (status, body) = ask(&running, "", &shell(tool, command)).await;
            assert_eq!(status, 200);
            assert_eq!(body["decision"], "DENY", "{body}");
            assert_eq!(body["reasonCode"], "POLICY_VETO");
            assert_eq!(
                body["reasonDetail"],
                "evidenceos.destructive-commands (9000)"
            );
            assert!(body["decisionId"].is_string(), "it is recorded");
        }
        let (_, body) = ask(&running, "", &shell("Bash", "rm -rf target")).await;
        assert_eq!(body["decision"], "ALLOW");
        // One that goes on trying is looked at by a person.
        for _ in 3..20 {
            ask(&running, "", &shell("Bash", "rm -rf /")).await;
        }
        let (_, body) = ask(&running, "", &shell("Bash", "ls")).await;
        assert_eq!(body["decision"], "REQUIRE_HUMAN", "{body}");
        running.stop().await.expect("stops");
    });
}

#[test]
fn what_is_wrong_with_a_request_stands_in_a_header() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&for_agents(&home)).await;
        let answer = post(http(&running), PREFLIGHT, ID, b"{").await;
        assert_eq!(answer.status, 400);
        let detail = answer.head.to_ascii_lowercase();
        assert!(
            detail.contains("x-evidenceos-detail: the body is not json"),
            "{detail}"
        );
        assert_eq!(
            answer.body,
            r#"{"decision":"DENY","reasonCode":"INVALID_INPUT"}"#
        );
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_throttled_tool_that_can_do_harm_is_made_harmless_or_denied() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            probe_throttle_total: Some(1),
            ..unlimited(&home)
        };
        let running = home.start(&settings).await;
        let auditor = "x-evidenceos-role: auditor\r\nauthorization: Bearer nobody\r\n";
        let (_, shell) = ask(&running, "", &call("shell.exec", "s", 1)).await;
        assert_eq!(shell["decision"], "DOWNGRADE");
        assert_eq!(
            shell["rewrittenParams"],
            json!({ "command": "", "dry_run": true })
        );
        let (_, write) = ask(&running, auditor, &call("fs.write", "s", 1)).await;
        assert_eq!(write["decision"], "DENY");
        assert_eq!(write["reasonCode"], "UNSAFE_REWRITE");
        assert_eq!(write.get("reasonDetail"), None, "a header is no role");
        let (_, write) = ask(&running, "", &call("fs.write", "s", 1)).await;
        assert!(write["reasonDetail"].is_string(), "the role is verified");
        running.stop().await.expect("stops");
    });
}

#[test]
fn callers_are_known_by_the_gates_own_token_too() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            preflight_require_bearer_token_file: Some(home.file("token", "let-me-in-the-gate\n")),
            ..unlimited(&home)
        };
        let running = home.start(&settings).await;
        let body = call("search.web", "s", 1);
        for (headers, status) in [
            ("", 401),
            ("authorization: Bearer let-me\r\n", 401),
            ("authorization: Basic let-me-in-the-gate\r\n", 401),
            ("authorization: Bearer let-me-in-the-gate\r\n", 200),
            ("x-client-cert-san: operator\r\n", 401),
        ] {
            let (answered, decision) = ask(&running, headers, &body).await;
            assert_eq!(answered, status, "{headers}");
            if status == 401 {
                assert_eq!(
                    decision,
                    json!({ "decision": "DENY", "reasonCode": "UNAUTHORIZED" })
                );
                let headers = format!("{ID}{headers}");
                let after = post(http(&running), POSTFLIGHT, &headers, b"{}").await;
                assert_eq!(after.status, 400, "as published");
                assert_eq!(
                    parsed(&after),
                    json!({ "decision": "BLOCK", "reason": "unauthorized", "receiptHash": "" })
                );
            }
        }
        assert_eq!(get(http(&running), "/livez", "").await.status, 200);
        running.stop().await.expect("stops");
    });
}

/// Over every route: the token alone is enough, and nothing beside it is passed over.
#[test]
fn what_comes_with_the_gates_own_token_must_hold() {
    const SECRET: &str = "a secret that is shared";
    block_on(async {
        let home = Home::new();
        let own = home.file("token", "let-me-in-the-gate\n");
        let alone = Settings {
            preflight_require_bearer_token_file: Some(own.clone()),
            ..unlimited(&home)
        };
        let with_keys = Settings {
            auth_hmac_key_file: Some(home.file("key", SECRET)),
            data_dir: Some(home.path().join("data-2")),
            ..alone.clone()
        };
        let (alone, with_keys) = (home.start(&alone).await, home.start(&with_keys).await);
        let own = "authorization: Bearer let-me-in-the-gate\r\n";
        let wrong = "authorization: Bearer let-me-in-the-gates\r\n";
        let mut number = 0;
        for path in [PREFLIGHT, POSTFLIGHT, "/v1/aspec_admit", "/openapi.json"] {
            for (token, signed_with, known) in [
                (own, None, [true, true]),
                (wrong, None, [false, false]),
                ("", None, [false, false]),
                ("", Some(SECRET), [false, true]),
                ("", Some("another secret"), [false, false]),
                (own, Some(SECRET), [false, false]),
                (own, Some("another secret"), [false, false]),
                (wrong, Some(SECRET), [false, false]),
            ] {
                for (running, known) in [&alone, &with_keys].into_iter().zip(known) {
                    number += 1;
                    let id = format!("r-{number}");
                    let signature = match signed_with {
                        Some(secret) => crate::signed::http_headers(secret, &id, path),
                        None => format!("x-request-id: {id}\r\n"),
                    };
                    let headers = format!("{token}{signature}");
                    let answer = if path == "/openapi.json" {
                        get(http(running), path, &headers).await
                    } else {
                        post(http(running), path, &headers, b"{}").await
                    };
                    let refused = answer.status == 401 || answer.body.contains("unauthorized");
                    assert_eq!(refused, !known, "{path} {headers}: {answer:?}");
                }
            }
        }
        // A part of a signature, and the token twice.
        for more in [
            "x-evidenceos-key-id: default\r\n",
            "x-evidenceos-timestamp: 1\r\n",
            "x-evidenceos-signature: sha256=00\r\n",
            own,
            wrong,
        ] {
            let headers = format!("x-request-id: 1\r\n{own}{more}");
            for running in [&alone, &with_keys] {
                let answer = get(http(running), "/openapi.json", &headers).await;
                assert_eq!(answer.status, 401, "{more}");
            }
        }
    });
}

fn called(session: &str, output: &Value) -> String {
    json!({
        "toolName": "search.web",
        "paramsHash": "a".repeat(64),
        "status": "ok",
        "sessionId": session,
        "output": output,
    })
    .to_string()
}

#[test]
fn an_output_is_let_through_shortened_or_stopped() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            probe_throttle_total: Some(3),
            probe_escalate_total: Some(4),
            probe_freeze_total: Some(5),
            ..unlimited(&home)
        };
        let running = home.start(&settings).await;
        let long = json!("x".repeat(5_000));
        let after = async |output: &Value| {
            let body = called("s", output);
            let answer = post(http(&running), POSTFLIGHT, ID, body.as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            parsed(&answer)
        };
        let short = after(&json!({ "ok": true })).await;
        assert_eq!(short["decision"], "ALLOW");
        assert_eq!(short["budgetDelta"].to_string(), "1.0");
        assert_eq!(short["budgetRemainingBits"].to_string(), "4.0");
        assert_eq!(short["receiptHash"].as_str().map(str::len), Some(64));
        let shortened = after(&long).await;
        assert_eq!(
            (&shortened["decision"], &shortened["reason"]),
            (&json!("REDACT"), &json!("output_too_large"))
        );
        let preview = shortened["outputRewrite"]["preview"]
            .as_str()
            .expect("a preview");
        assert_eq!(
            (preview.len(), &shortened["outputRewrite"]["len"]),
            (256, &json!(5_002))
        );
        let throttled = after(&json!(1)).await;
        assert_eq!(throttled["decision"], "REDACT");
        for decision in ["REQUIRE_HUMAN", "BLOCK"] {
            let stopped = after(&long).await;
            assert_eq!(stopped["decision"], decision, "length never weakens it");
            assert_eq!(stopped.get("outputRewrite"), None, "nothing of it is shown");
        }
        running.stop().await.expect("stops");
    });
}

async fn receipt(running: &Running, id: &str, headers: &str) -> Answer {
    loop {
        let answer = get(http(running), &format!("/v1/decisions/{id}"), headers).await;
        if answer.status != 202 {
            return answer;
        }
        tokio::task::yield_now().await;
    }
}

/// Checks a receipt as anybody would, from bytes alone.
fn must_prove(running: &Running, receipt: &str, decision: &Value) {
    use evidenceos_kernel::decision::{BatchRecorded, DecisionReceipt, DecisionRecord};
    use evidenceos_tlog::{Hash, SignedCheckpoint, VerifierKey, leaf_hash, verify_inclusion};
    let receipt: DecisionReceipt = serde_json::from_str(receipt).expect("a receipt");
    let key: VerifierKey = running.log_vkey().parse().expect("a key");
    let signed = SignedCheckpoint::open(receipt.checkpoint.as_bytes(), &key, &[]).expect("signed");
    let hashes = |texts: &[String]| -> Vec<Hash> {
        texts
            .iter()
            .map(|text| Hash::from_hex(text).expect("hex"))
            .collect()
    };
    let checkpoint = signed.checkpoint();
    verify_inclusion(
        leaf_hash(receipt.entry.as_bytes()),
        receipt.index,
        checkpoint.size(),
        &hashes(&receipt.inclusion),
        checkpoint.root(),
    )
    .expect("in the log");
    let recorded = BatchRecorded::parse(receipt.entry.as_bytes()).expect("a batch");
    let batch = recorded.batch;
    let leaf = leaf_hash(receipt.record.as_bytes());
    verify_inclusion(
        leaf,
        u64::from(receipt.position),
        u64::from(batch.count),
        &hashes(&receipt.batch_path),
        Hash(batch.root.0),
    )
    .expect("in the batch");
    let record = DecisionRecord::parse(receipt.record.as_bytes()).expect("a record");
    assert_eq!(json!(record.decision), decision["decision"]);
    assert_eq!(json!(record.id.to_string()), decision["decisionId"]);
    if let Some(hash) = decision.get("paramsHash") {
        assert_eq!(json!(leaf.to_hex()), decision["receiptHash"]);
        assert_eq!(json!(record.params_hash.to_hex()), *hash);
    }
    let text = receipt.record;
    assert!(
        !text.contains("a secret parameter"),
        "only a digest of it: {text}"
    );
}

#[test]
fn each_decision_has_a_receipt_that_survives_a_restart_and_is_nobody_elses() {
    block_on(async {
        let home = Home::new();
        let settings = unlimited(&home);
        let running = home.start(&settings).await;
        let me = "authorization: Bearer me\r\n";
        let mut decisions = Vec::new();
        for tool in ["search.web", "exec"] {
            let body = json!({ "toolName": tool, "sessionId": "s", "params": { "q": "a secret parameter" } });
            decisions.push(ask(&running, me, &body).await.1);
        }
        let body = called("s", &json!(1));
        let after = post(
            http(&running),
            POSTFLIGHT,
            &format!("{ID}{me}"),
            body.as_bytes(),
        )
        .await;
        decisions.push(parsed(&after));
        running.stop().await.expect("stops");
        let running = home.start(&settings).await;
        for decision in &decisions {
            let id = decision["decisionId"].as_str().expect("an id");
            let own = receipt(&running, id, me).await;
            assert_eq!(own.status, 200, "{}", own.body);
            must_prove(&running, &own.body, decision);
            // Without a token a development server's caller is an auditor too.
            assert_eq!(receipt(&running, id, "").await.status, 200);
            let other = receipt(&running, id, "authorization: Bearer other\r\n").await;
            assert_eq!(other.status, 404);
        }
        for id in [
            "0000000000000000",
            "ffffffffffffffff",
            "0000020000000000",
            "x",
        ] {
            assert_eq!(receipt(&running, id, me).await.status, 404, "{id}");
        }
        running.stop().await.expect("stops");
    });
}

#[test]
fn what_stops_a_call_is_durable_before_it_is_answered() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            probe_throttle_total: Some(1),
            probe_escalate_total: Some(1),
            decisions_durable: Some(DurableDecisions::Guarded),
            ..unlimited(&home)
        };
        let running = home.start(&settings).await;
        let (_, decision) = ask(&running, "", &call("search.web", "s", 1)).await;
        assert_eq!(decision["decision"], "REQUIRE_HUMAN");
        // Not 202: it is there.
        let id = decision["decisionId"].as_str().expect("an id");
        let answer = get(http(&running), &format!("/v1/decisions/{id}"), "").await;
        assert_eq!(answer.status, 200);
        must_prove(&running, &answer.body, &decision);
        running.stop().await.expect("stops");
    });
}

#[test]
fn the_ports_open_and_close_in_their_order() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            drain_delay: Some("300ms".to_owned()),
            preflight_rate_limit_rps: Some("off".to_owned()),
            ..home.plain_and_alone()
        };
        let running = home.start(&settings).await;
        let (web, grpc) = (http(&running), running.grpc_address());
        assert_eq!(get(web, "/readyz?verbose", "").await.status, 200);
        let verbose = parsed(&get(web, "/readyz?verbose", "").await);
        assert_eq!(verbose["details"]["accounts_json"]["current"], true);
        let held = held_open(grpc).await;
        let stopping = tokio::spawn(running.stop());
        while get(web, "/readyz", "").await.status == 200 {
            tokio::task::yield_now().await;
        }
        // Not ready, and everything is still served.
        assert!(TcpStream::connect(grpc).await.is_ok());
        assert_eq!(get(web, "/livez", "").await.status, 200);
        // gRPC closes first, and while its connections end HTTP goes on.
        while TcpStream::connect(grpc).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(get(web, "/livez", "").await.status, 200);
        drop(held);
        stopping.await.expect("no panic").expect("stops");
        assert!(TcpStream::connect(web).await.is_err());
    });
}

/// A connection of HTTP/2 that answers nothing from now on, a goodbye neither: the daemon waits a
/// while before it cuts it off.
async fn held_open(server: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(server).await.expect("served");
    let opening = [http2::opening(65_535), frame(PING, 0, 0, &[0; 8])].concat();
    stream.write_all(&opening).await.expect("open");
    // Its answer tells that the connection is more than accepted.
    while next_frame(&mut stream).await.expect("open").kind != PING {}
    stream
}

#[test]
fn the_description_names_every_route() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&unlimited(&home)).await;
        let described = parsed(&get(http(&running), "/openapi.json", "").await);
        assert_eq!(described["openapi"], "3.1.0");
        for path in [
            PREFLIGHT,
            POSTFLIGHT,
            "/v1/aspec_admit",
            "/v1/decisions/{decision_id}",
        ] {
            assert!(described["paths"][path].is_object(), "{path}");
        }
        running.stop().await.expect("stops");
    });
}

#[test]
fn http_says_that_the_daemon_starts_while_it_cannot_serve_yet() {
    block_on(async {
        let home = Home::new();
        // A start waits for an anchor's answer; this one gives none until it is let go.
        let anchor = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let url = format!("http://{}/", anchor.local_addr().expect("an address"));
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address")
        };
        let (grpc, http) = (free(), free());
        let settings = Settings {
            listen: Some(grpc.to_string()),
            preflight_listen: Some(http.to_string()),
            anchors: Some(vec![url]),
            anchor_optional: Some(true),
            ..unlimited(&home)
        };
        let config = configured(&settings);
        let starting = tokio::spawn(evidenceos_daemon::start(config));
        let (asked, _) = anchor.accept().await.expect("it asks");

        assert_eq!(get(http, "/livez", "").await.status, 200);
        let ready = get(http, "/readyz", "").await;
        assert_eq!(
            (ready.status, parsed(&ready)["status"].as_str()),
            (503, Some("starting"))
        );
        let body = call("search.web", "s", 1).to_string();
        let refused = post(http, PREFLIGHT, ID, body.as_bytes()).await;
        assert_eq!(refused.status, 503);
        assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
        assert_eq!(parsed(&refused)["decision"], "DENY");
        let closed = TcpStream::connect(grpc).await.expect_err("nobody listens");
        assert_eq!(closed.kind(), std::io::ErrorKind::ConnectionRefused);

        drop((asked, anchor));
        let running = starting.await.expect("no panic").expect("starts");
        assert_eq!(get(http, "/readyz", "").await.status, 200);
        TcpStream::connect(grpc).await.expect("listens");
        running.stop().await.expect("stops");
    });
}
