//! What the gate could not decide reads as a stop: too many calls, late policies, a recorder that
//! is lost, requests that are broken off. Published clients carry a call out after `ALLOW`, and
//! after `DOWNGRADE` without other parameters, whatever the status.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use evidenceos_daemon::{
    Running,
    config::{DurableDecisions, Settings},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    gate::{ID, POSTFLIGHT, PREFLIGHT, ask, call, http, parsed, unlimited},
    harness::block_on,
    policies,
    secure::{Home, get, post},
};

/// Whether a client carries the call out after this answer.
fn permits(answer: &Value) -> bool {
    matches!(answer["decision"].as_str(), Some("ALLOW" | "DOWNGRADE"))
}

/// Policies installed for a daemon that is about to start.
fn with_policies(home: &Home, install: impl FnOnce(&Path)) -> Settings {
    let directory = home.path().join("data/policy-oracles");
    fs::create_dir_all(&directory).expect("made");
    for directory in [home.path().join("data"), directory.clone()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("closed");
    }
    policies::trust(&directory);
    install(&directory);
    unlimited(home)
}

#[test]
fn a_call_beyond_its_rate_is_denied_whatever_the_tool() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            preflight_rate_limit_rps: Some("1".to_owned()),
            ..unlimited(&home)
        };
        let running = home.start(&settings).await;
        let who = |n: u64| format!("authorization: Bearer t-{n}\r\n");
        for (n, tool) in [(1, "search.web"), (2, "payment.charge"), (3, "EXEC ")] {
            let (status, _) = ask(&running, &who(n), &call(tool, "s", 1)).await;
            assert_eq!(status, 200, "the first is in its rate");
            for body in [call(tool, "s", 2).to_string(), "not JSON".to_owned()] {
                let headers = format!("{ID}{}", who(n));
                let answer = post(http(&running), PREFLIGHT, &headers, body.as_bytes()).await;
                assert_eq!(answer.status, 429);
                assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
                assert_eq!(
                    parsed(&answer),
                    json!({ "decision": "DENY", "reasonCode": "RATE_LIMITED" })
                );
            }
        }
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_limit_of_nothing_refuses_on_every_route() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            preflight_global_rate_limit_rps: Some("0".to_owned()),
            ..unlimited(&home)
        };
        let running = home.start(&settings).await;
        for (path, field, word) in [
            (PREFLIGHT, "decision", json!("DENY")),
            (POSTFLIGHT, "decision", json!("BLOCK")),
            ("/v1/aspec_admit", "admissible", json!(false)),
        ] {
            let answer = post(http(&running), path, ID, b"{}").await;
            assert_eq!((answer.status, &parsed(&answer)[field]), (429, &word));
        }
        running.stop().await.expect("stops");
    });
}

/// Default limits, one caller, a policy that rejects everything: no answer lets one call through.
#[test]
fn a_policy_is_not_passed_by_calling_faster() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            preflight_rate_limit_rps: None,
            preflight_timeout_ms: None,
            ..with_policies(&home, |directory| policies::install_voting(directory, 2))
        };
        let running = home.start(&settings).await;
        let address = http(&running);
        let mut callers = JoinSet::new();
        for caller in 0..8_u64 {
            callers.spawn(async move {
                let mut statuses = Vec::new();
                for n in 0..50 {
                    let tool = ["search.web", "EXEC ", "exec"][(n % 3) as usize];
                    let session = format!("s-{caller}-{n}");
                    let body = call(tool, &session, n).to_string();
                    let answer = post(address, PREFLIGHT, ID, body.as_bytes()).await;
                    assert!(!permits(&parsed(&answer)), "{}", answer.body);
                    statuses.push(answer.status);
                }
                statuses
            });
        }
        let statuses: Vec<u16> = callers.join_all().await.concat();
        assert_eq!(statuses.len(), 400);
        assert!(statuses.contains(&429), "faster than the rate");
        running.stop().await.expect("stops");
    });
}

/// Late for some, and too many at once for the others.
#[test]
fn policies_that_cannot_be_asked_in_time_stop_every_tool() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            // The policy takes a hundred times as long, on any machine.
            preflight_timeout_ms: Some(1),
            decisions_durable: Some(DurableDecisions::Guarded),
            ..with_policies(&home, policies::install_slow)
        };
        let running = home.start(&settings).await;
        let address = http(&running);
        let mut callers = JoinSet::new();
        for n in 0..70_u64 {
            callers.spawn(async move {
                let tool = ["search.web", "fs.write", "exec "][(n % 3) as usize];
                let body = call(tool, &format!("s-{n}"), n).to_string();
                let answer = post(address, PREFLIGHT, ID, body.as_bytes()).await;
                (answer.status, parsed(&answer))
            });
        }
        for (status, answer) in callers.join_all().await {
            assert!(!permits(&answer), "{status} {answer}");
        }
        running.stop().await.expect("stops");
    });
}

/// A daemon that serves reads only records nothing.
async fn without_recorder(home: &Home, settings: Settings) -> Running {
    let settings = Settings {
        preflight_timeout_ms: Some(50),
        ..settings
    };
    home.start(&settings).await.stop().await.expect("stops");
    let anchor = home.path().join("data.anchor");
    fs::rename(&anchor, home.path().join("away")).expect("the start made it");
    home.start(&settings).await
}

#[test]
fn a_decision_that_cannot_be_recorded_stops_what_policy_or_risk_covers() {
    block_on(async {
        let all = Some(DurableDecisions::All);
        for (has_policies, fails_open, durable, tool, status, decision) in [
            (false, true, all, "search.web", 200, "ALLOW"),
            (false, true, all, "exec", 503, "REQUIRE_HUMAN"),
            (false, true, None, "EXEC ", 503, "REQUIRE_HUMAN"),
            (false, true, None, "exec()", 503, "REQUIRE_HUMAN"),
            (false, false, all, "search.web", 503, "REQUIRE_HUMAN"),
            (true, true, all, "search.web", 503, "REQUIRE_HUMAN"),
            (true, true, None, "exec", 503, "REQUIRE_HUMAN"),
        ] {
            let home = Home::new();
            let settings = if has_policies {
                with_policies(&home, |directory| policies::install_voting(directory, 0))
            } else {
                unlimited(&home)
            };
            let settings = Settings {
                preflight_fail_open_for_low_risk: Some(fails_open),
                decisions_durable: durable,
                ..settings
            };
            let running = without_recorder(&home, settings).await;
            let (answered, answer) = ask(&running, "", &call(tool, "s", 1)).await;
            assert_eq!(
                (answered, &answer["decision"], &answer["reasonCode"]),
                (status, &json!(decision), &json!("UNAVAILABLE")),
                "{has_policies} {fails_open} {tool:?}"
            );
            running.stop().await.expect("stops");
        }
    });
}

/// What is said of a decision, but for the time.
async fn said(running: &Running, id: &str, headers: &str) -> (u16, Vec<String>, String) {
    let answer = get(http(running), &format!("/v1/decisions/{id}"), headers).await;
    let lines = answer
        .head
        .lines()
        .filter(|line| !line.starts_with("date:"));
    (
        answer.status,
        lines.map(str::to_owned).collect(),
        answer.body,
    )
}

/// While it waits to be recorded, and when it is recorded.
#[test]
fn anothers_decision_looks_like_a_number_that_was_never_given() {
    block_on(async {
        let (me, other) = (
            "authorization: Bearer me\r\n",
            "authorization: Bearer other\r\n",
        );
        let home = Home::new();
        let running = without_recorder(&home, unlimited(&home)).await;
        let mut waiting = Vec::new();
        for n in 0..3 {
            let (status, answer) = ask(&running, me, &call("search.web", "s", n)).await;
            assert_eq!(status, 200, "{answer}");
            waiting.push(answer["decisionId"].as_str().expect("an id").to_owned());
        }
        let never = said(&running, "7000000000000000", other).await;
        assert_eq!(never.0, 404);
        for id in &waiting {
            assert_eq!(said(&running, id, me).await.0, 202);
            // Without a token a development server's caller is an auditor too.
            assert_eq!(said(&running, id, "").await.0, 202);
            assert_eq!(said(&running, id, other).await, never);
        }
        let next = u64::from_str_radix(&waiting[2], 16).expect("hex") + 1;
        for id in [next, next + 70_000] {
            assert_eq!(said(&running, &format!("{id:016x}"), me).await, never);
        }
        running.stop().await.expect("stops");

        let home = Home::new();
        let settings = Settings {
            decisions_durable: Some(DurableDecisions::All),
            ..unlimited(&home)
        };
        let running = home.start(&settings).await;
        let (_, answer) = ask(&running, me, &call("search.web", "s", 1)).await;
        let id = answer["decisionId"].as_str().expect("an id");
        assert_eq!(said(&running, id, me).await.0, 200);
        assert_eq!(said(&running, id, other).await, never);
        running.stop().await.expect("stops");
    });
}

/// A request that breaks off, and a listener that ends, give no answer that permits.
#[test]
fn what_is_broken_off_is_never_permission() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&unlimited(&home)).await;
        let body = call("search.web", "s", 1).to_string();
        for (headers, sent) in [
            ("content-length: 1000\r\n", body.as_bytes()),
            ("transfer-encoding: chunked\r\n", b"5\r\n{\"too"),
            ("content-length: 5\r\ncontent-length: 6\r\n", b"{}   "),
            ("transfer-encoding: chunked\r\n", b"zz\r\n"),
        ] {
            let mut stream = TcpStream::connect(http(&running)).await.expect("listens");
            let head = format!("POST {PREFLIGHT} HTTP/1.1\r\nhost: h\r\n{ID}{headers}\r\n");
            stream.write_all(head.as_bytes()).await.expect("sent");
            stream.write_all(sent).await.expect("sent");
            stream.shutdown().await.expect("half closed");
            let mut answer = String::new();
            // How the connection ends is the server's affair.
            let _ = stream.read_to_string(&mut answer).await;
            assert!(
                !answer.contains("ALLOW") && !answer.contains("DOWNGRADE"),
                "{headers}: {answer}"
            );
        }
        running.stop().await.expect("stops");
    });
}
