//! HTTP, metrics and bearer tokens from outside; and that no secret is ever shown.

mod secrets;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Command, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use evidenceos_daemon::{Running, config::Settings};
use evidenceos_proto as wire;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use crate::{
    harness::{Client, block_on, judged, predictions, refused},
    secure::{Answer, Home, get, post},
};

async fn client(running: &Running, token: &str) -> Client {
    Client::connect(&running.grpc_address().to_string(), Some(token.to_owned())).await
}

/// The roles that a token has, found out by asking.
async fn roles(running: &Running, token: &str) -> Result<(bool, bool, bool), tonic::Status> {
    let client = client(running, token).await;
    let mut inner = client.inner.clone();
    inner
        .get_server_info(client.request(wire::GetServerInfoRequest {}))
        .await?;
    let may = |code: Option<tonic::Status>| {
        code.is_none_or(|status| status.code() != Code::PermissionDenied)
    };
    let created = client.request(wire::CreateClaimV2Request::default());
    let submitter = may(inner.create_claim_v2(created).await.err());
    let budgets = client.request(wire::GetHoldoutPoolBudgetsRequest::default());
    let auditor = may(inner.get_holdout_pool_budgets(budgets).await.err());
    let credit = client.request(wire::GrantCreditRequest::default());
    let operator = may(inner.grant_credit(credit).await.err());
    Ok((submitter, auditor, operator))
}

#[test]
fn tokens_have_the_roles_of_their_list() {
    block_on(async {
        let home = Home::new();
        let digest = hex::encode(Sha256::digest("root-token"));
        let policy = format!("[[rule]]\ntoken_sha256 = \"{digest}\"\nroles = [\"operator\"]\n");
        let lists = Settings {
            agent_tokens: Some("agent-number-one-1,agent-number-two-2".to_owned()),
            auditor_tokens_file: Some(home.file("auditors", "auditor-number-1\n")),
            auth_policy: Some(home.file("policy.toml", &policy)),
            ..home.plain()
        };
        let single = Settings {
            auth_token_file: Some(home.file("token", "one-token-for-all\n")),
            data_dir: Some(home.path().join("data-2")),
            ..home.plain()
        };
        let (lists, single) = (home.start(&lists).await, home.start(&single).await);
        for (running, token, expected) in [
            (&lists, "agent-number-one-1", (true, false, false)),
            (&lists, "agent-number-two-2", (true, false, false)),
            (&lists, "auditor-number-1", (true, true, false)),
            (&lists, "root-token", (true, true, true)),
            (&single, "one-token-for-all", (true, true, false)),
        ] {
            let held = roles(running, token).await.expect("known");
            assert_eq!(held, expected, "{token}");
        }
        for (running, token) in [
            (&lists, "one-token-for-all"),
            (&lists, "agent-number-one-1,agent-number-two-2"),
            (&lists, "agent"),
            (&lists, "agent-number-one-1 "),
            (&single, "one-token-for-al"),
            (&single, "ONE-TOKEN-FOR-ALL"),
        ] {
            let unknown = roles(running, token).await;
            refused(
                unknown,
                Code::Unauthenticated,
                "UNAUTHENTICATED",
                "invalid bearer token",
            );
        }
        let nobody = home.connect_plain(&lists).await;
        let info = wire::GetServerInfoRequest {};
        let missing = nobody.inner.clone().get_server_info(info).await;
        refused(
            missing,
            Code::Unauthenticated,
            "UNAUTHENTICATED",
            "missing credentials",
        );
        for scheme in [
            "Beareragent-number-one-1",
            "Basic agent-number-one-1",
            "Bearer ",
            "Bearer",
        ] {
            let mut request = tonic::Request::new(info);
            let value = scheme.parse().expect("ASCII");
            request.metadata_mut().insert("authorization", value);
            let wrong = nobody.inner.clone().get_server_info(request).await;
            refused(
                wrong,
                Code::Unauthenticated,
                "UNAUTHENTICATED",
                "must be \"Bearer \"",
            );
        }
    });
}

#[test]
fn tokens_in_a_file_are_exchanged_by_a_reload() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            auth_token_file: Some(home.file("token", "old-token-of-all\n")),
            ..home.plain()
        };
        let running = home.start(&settings).await;
        roles(&running, "old-token-of-all").await.expect("known");
        home.file("token", "new-token-of-all\n");
        roles(&running, "old-token-of-all")
            .await
            .expect("until a reload");
        running.reload().await.expect("a token");
        roles(&running, "new-token-of-all").await.expect("known");
        roles(&running, "old-token-of-all").await.expect_err("gone");
        home.file("token", "\n");
        let problems = running.reload().await.expect_err("no token");
        assert!(problems.concat().contains("empty"), "{problems:?}");
        roles(&running, "new-token-of-all")
            .await
            .expect("as before");
    });
}

#[test]
fn health_is_told_to_everybody_and_nothing_else_to_who_is_nobody() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            auth_token: Some("one-token-for-all".to_owned()),
            ..home.plain()
        };
        let running = home.start(&settings).await;
        let http = running.http_address().expect("on");
        for (path, body) in [
            ("/livez", r#"{"status":"ok"}"#),
            ("/health", r#"{"status":"ok"}"#),
            ("/readyz", r#"{"status":"serving"}"#),
        ] {
            for headers in ["", "authorization: Bearer wrong\r\n"] {
                let answer = get(http, path, headers).await;
                assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
            }
        }
        let version = get(http, "/version", "").await.body;
        assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        for path in [
            "/",
            "/metrics",
            "/livez/",
            "/v1/preflight_tool_call",
            "/%2e%2e",
        ] {
            for headers in [
                "",
                "authorization: Bearer wrong\r\n",
                "authorization: Bearer one-token-for-all\r\nauthorization: Bearer one-token-for-all\r\n",
                "x-client-cert-san: operator\r\n",
            ] {
                let Answer { status, head, .. } = get(http, path, headers).await;
                assert_eq!(status, 401, "{path} {headers}");
                assert!(head.contains("www-authenticate: bearer"), "{head}");
            }
            let known = get(http, path, "authorization: Bearer one-token-for-all\r\n").await;
            let status = if path.starts_with("/v1/") { 405 } else { 404 };
            assert_eq!(known.status, status, "{path}");
            assert_eq!(
                known.head.contains("allow: post"),
                status == 405,
                "{}",
                known.head
            );
        }
    });
}

#[test]
fn a_daemon_that_stops_is_not_ready() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.plain_and_alone()).await;
        let http = running.http_address().expect("on");
        // Asked before the stop, to its end after it: later nobody is let in.
        let mut stream = TcpStream::connect(http).await.expect("listens");
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n")
            .await
            .expect("sent");
        // Whoever came later was accepted, so that the first one was as well.
        assert_eq!(get(http, "/readyz", "").await.status, 200);
        let stopping = tokio::spawn(running.stop());
        while TcpStream::connect(http).await.is_ok() {
            tokio::task::yield_now().await;
        }
        stream.write_all(b"\r\n").await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with(r#"{"status":"stopping"}"#), "{answer}");
        stopping.await.expect("ends").expect("well");
    });
}

/// The samples of an OpenMetrics text, each of a family that was declared.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut families = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let (lines, end) = text.trim_end().rsplit_once('\n').expect("lines");
    assert_eq!(end, "# EOF");
    for line in lines.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a name and a type");
            assert!(families.insert(name, kind).is_none(), "{name} twice");
            continue;
        }
        if line.starts_with("# HELP ") || line.starts_with("# UNIT ") {
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        let name = sample.split('{').next().expect("a name");
        let histogram = ["_bucket", "_sum", "_count"]
            .into_iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|family| families.get(family) == Some(&"histogram"));
        let counter = name.strip_suffix("_total");
        let (family, expected) = match (histogram, counter) {
            (Some(family), _) => (family, "histogram"),
            (None, Some(family)) => (family, "counter"),
            (None, None) => (name, "gauge"),
        };
        assert_eq!(families.get(family), Some(&expected), "{line}");
        let value = value.parse().expect("a number");
        assert!(samples.insert(sample.to_owned(), value).is_none(), "{line}");
    }
    samples
}

async fn metrics(running: &Running) -> BTreeMap<String, f64> {
    let address = running.metrics_address().expect("on");
    let older = get(address, "/metrics", "").await;
    assert!(
        older.head.contains("content-type: text/plain"),
        "{}",
        older.head
    );
    assert!(!older.body.contains("# EOF"), "it has no end");
    let asked = "accept: application/openmetrics-text\r\n";
    let Answer { status, head, body } = get(address, "/metrics", asked).await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: application/openmetrics-text"),
        "{head}"
    );
    samples(&body)
}

#[test]
fn metrics_tell_who_calls_and_what_is_served() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            auth_token: Some("one-token-for-all".to_owned()),
            ..home.tls(false)
        };
        let running = home.start(&settings).await;
        let mut client = home.connect(&running, None).await;
        let info = wire::GetServerInfoRequest {};
        client
            .inner
            .get_server_info(info)
            .await
            .expect_err("nobody");
        let leaf = home.client("spiffe://lab/a");
        let mut certified = home.connect(&running, Some(&leaf)).await;
        certified.inner.get_server_info(info).await.expect("known");
        let mut named = tonic::Request::new(info);
        let value = "Bearer one-token-for-all".parse().expect("ASCII");
        named.metadata_mut().insert("authorization", value);
        client.inner.get_server_info(named).await.expect("known");
        let samples = metrics(&running).await;
        for (sample, value) in [
            ("evidenceos_identified_calls_total{by=\"denied\"}", 1.0),
            ("evidenceos_identified_calls_total{by=\"mtls\"}", 1.0),
            ("evidenceos_identified_calls_total{by=\"bearer\"}", 1.0),
            ("evidenceos_connections_open{listener=\"grpc\"}", 2.0),
            ("evidenceos_log_entries", 1.0),
            ("evidenceos_log_signature_pending_seconds", 0.0),
        ] {
            let counted = samples.get(sample);
            assert_eq!(counted, Some(&value), "{sample} {samples:#?}");
        }
        let expiry = "evidenceos_tls_certificate_not_after_seconds{listener=\"grpc\"}";
        // 2999-01-01, as the certificate says.
        assert_eq!(samples.get(expiry), Some(&32_472_144_000.0), "{samples:#?}");
    });
}

/// Values of one family, by labels.
fn of<'s>(samples: &'s BTreeMap<String, f64>, family: &str) -> BTreeMap<&'s str, f64> {
    let named = samples.iter().filter_map(|(sample, value)| {
        let labels = sample.strip_prefix(family)?;
        labels.starts_with('{').then_some((labels, *value))
    });
    named.collect()
}

#[test]
fn calls_are_counted_by_method_and_code_from_closed_sets() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.plain()).await;
        let client = home.connect_plain(&running).await;
        let mut inner = client.inner.clone();
        let info = wire::GetServerInfoRequest {};
        inner.get_server_info(info).await.expect("answers");
        let unknown = wire::GetClaimRequest::default();
        inner.get_claim(unknown).await.expect_err("no such claim");
        let endpoint = format!("http://{}", running.grpc_address());
        let channel = tonic::transport::Endpoint::from_shared(endpoint).expect("an address");
        let mut any = tonic::client::Grpc::new(channel.connect().await.expect("listens"));
        for path in ["/evidenceos.v2.EvidenceOS/Later", "/a.b/C", "/d.e/F"] {
            any.ready().await.expect("ready");
            let codec = tonic_prost::ProstCodec::<
                wire::GetServerInfoRequest,
                wire::GetServerInfoResponse,
            >::default();
            let path = path.parse().expect("a path");
            let answer = any.unary(tonic::Request::new(info), path, codec).await;
            assert_eq!(answer.expect_err("unknown").code(), Code::Unimplemented);
        }
        let samples = metrics(&running).await;
        let calls = of(&samples, "evidenceos_rpc_calls_total");
        let expected = BTreeMap::from([
            ("{method=\"GetServerInfo\",code=\"OK\"}", 1.0),
            ("{method=\"GetClaim\",code=\"INVALID_ARGUMENT\"}", 1.0),
            ("{method=\"other\",code=\"UNIMPLEMENTED\"}", 3.0),
        ]);
        assert_eq!(calls, expected);
        let took = of(&samples, "evidenceos_rpc_seconds_count");
        assert_eq!(took["{method=\"other\"}"], 3.0, "{took:?}");
    });
}

/// On the gate's port and on that of metrics.
#[test]
fn a_request_names_its_host_once() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.plain()).await;
        let gate = running.http_address().expect("on");
        let metrics = running.metrics_address().expect("on");
        for (address, path) in [
            (gate, "/livez"),
            (gate, "/v1/preflight_tool_call"),
            (gate, "/nothing"),
            (metrics, "/metrics"),
        ] {
            for (version, hosts, refused) in [
                ("1.1", "", true),
                ("1.1", "host: a\r\nhost: a\r\n", true),
                ("1.1", "host: a\r\nHOST: b\r\n", true),
                ("1.1", "host: a, b\r\n", true),
                ("1.0", "host: a\r\nhost: a\r\n", true),
                ("1.1", "host: a\r\n", false),
                ("1.0", "", false),
            ] {
                let mut stream = tokio::net::TcpStream::connect(address)
                    .await
                    .expect("listens");
                let request =
                    format!("GET {path} HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).await.expect("sent");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.expect("text");
                let is_400 = answer.starts_with(&format!("HTTP/{version} 400 "));
                assert_eq!(is_400, refused, "{path} {version} {hosts:?}: {answer}");
            }
        }
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_run_moves_the_bits_of_its_holdout_and_burns_credit() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.plain()).await;
        let mut client = home.connect_plain(&running).await;
        let holdout = client.put_default("a-name-that-tells").await;
        // By its id: who reads metrics need not be known, and a name may say much.
        let label = hex::encode(&holdout.holdout_id[..4]);
        let before = metrics(&running).await;
        assert!(
            before.keys().all(|sample| !sample.contains("tells")),
            "{before:?}"
        );
        let predictions = predictions("a-name-that-tells", 20);
        let module = judged(&predictions);
        let (_, result) = client.run("c", "a-name-that-tells", &module).await;
        let after = metrics(&running).await;
        let sealed = format!("{{holdout=\"{label}\",part=\"sealed\"}}");
        let moved = |family: &str| {
            let sample = format!("{family}{sealed}");
            after[&sample] - before[&sample]
        };
        let charged = moved("evidenceos_holdout_leakage_charged_total");
        assert!(charged > 0.0, "{charged}");
        let left = moved("evidenceos_holdout_leakage_left");
        assert!((charged + left).abs() < 1e-9, "{charged} {left}");
        assert_eq!(moved("evidenceos_holdout_leakage_budget"), 0.0);
        for family in ["settled", "certified"] {
            let sample = format!("evidenceos_holdout_claims_{family}_total{{holdout=\"{label}\"}}");
            assert_eq!((before[&sample], after[&sample]), (0.0, 1.0), "{sample}");
        }
        let burned = after["evidenceos_credit_burned_total"];
        assert_eq!(burned, result.credit_burned as f64);
        assert_eq!(after["evidenceos_credit_accounts"], 1.0);
        for (sample, moved) in [
            ("evidenceos_claims_total{state=\"certified\"}", 1.0),
            ("evidenceos_run_seconds_count{end=\"emitted\"}", 1.0),
            ("evidenceos_modules_prepared_total{cache=\"hit\"}", 1.0),
        ] {
            let of = |samples: &BTreeMap<String, f64>| samples.get(sample).copied().unwrap_or(0.0);
            assert_eq!(of(&after) - of(&before), moved, "{sample}");
        }
        assert!(after["evidenceos_run_fuel_total"] > 0.0);
        // Each durable transaction was timed, and each call's changes are in one of them.
        let commits = after["evidenceos_store_commits_total"];
        for family in ["changes", "sync_seconds"] {
            assert_eq!(after[&format!("evidenceos_commit_{family}_count")], commits);
        }
        let changes = "evidenceos_commit_changes_sum";
        assert!(after[changes] - before[changes] >= 5.0, "five calls");
    });
}

#[test]
fn alerts_and_dashboard_are_about_metrics_that_exist() {
    const FILES: [&str; 2] = [
        include_str!("../../../../deploy/observability/alerts.yml"),
        include_str!("../../../../deploy/observability/dashboard.json"),
    ];
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            mtls_client_crl: Some(vec![home.file("clients.crl", &home.ca.crl(&[], 2999))]),
            ..home.tls(false)
        };
        let running = home.start(&settings).await;
        let mut client = home.connect(&running, None).await;
        let info = wire::GetServerInfoRequest {};
        let nobody = client.inner.get_server_info(info).await;
        nobody.expect_err("a denied call is counted as well");
        let mut samples = metrics(&running).await;
        // Where nobody is asked who he is, there is no denied call, but a holdout and a decision.
        let home = Home::new();
        let running = home.start(&home.plain()).await;
        let mut operator = home.connect_plain(&running).await;
        operator.put_default("h").await;
        let http = running.http_address().expect("on");
        let asked = post(http, "/v1/preflight_tool_call", "", b"{}").await;
        assert_ne!(asked.status, 404);
        samples.extend(metrics(&running).await);
        let exist: BTreeSet<_> = samples.keys().filter_map(|k| k.split('{').next()).collect();
        for file in FILES {
            let words = file.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let ours = |w: &&str| w.starts_with("evidenceos_") || w.starts_with("process_");
            let named: BTreeSet<_> = words.filter(ours).collect();
            let unknown: Vec<_> = named.difference(&exist).collect();
            assert!(named.len() > 5 && unknown.is_empty(), "{unknown:?}");
        }
    });
}

#[test]
fn a_probe_that_connects_and_closes_is_counted_and_no_refusal() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.tls(true)).await;
        drop(
            TcpStream::connect(running.grpc_address())
                .await
                .expect("listens"),
        );
        let unused = "evidenceos_connections_closed_unused_total{listener=\"grpc\"}";
        let counted = async {
            loop {
                let samples = metrics(&running).await;
                if samples[unused] > 0.0 {
                    return samples;
                }
            }
        };
        let within = std::time::Duration::from_secs(20);
        let counted = tokio::time::timeout(within, counted).await;
        let samples = counted.expect("counted");
        assert_eq!(
            samples["evidenceos_handshakes_refused_total{listener=\"grpc\"}"],
            0.0
        );
    });
}
