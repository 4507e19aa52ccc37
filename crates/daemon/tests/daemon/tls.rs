//! TLS around the whole daemon: who gets in, who they are, and certificates that change meanwhile.

use std::fs;

use evidenceos_daemon::config::Settings;
use evidenceos_kernel::in_force::{InForce, NO_POLICIES, PoliciesStated};
use evidenceos_proto::{self as wire, evidence_os_client::EvidenceOsClient};
use rcgen::ExtendedKeyUsagePurpose as Usage;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Request};

use crate::{
    harness::{block_on, refused},
    pki::{self, Ask, Ca, Leaf, client, server},
    secure::{Home, get, get_tls, info_at},
};

const URI: &str = "spiffe://lab/submitter/a";

fn principal(kind: &str, name: &str) -> String {
    let digest = Sha256::digest([kind.as_bytes(), &[0], name.as_bytes()].concat());
    format!("mtls:{}", hex::encode(digest))
}

#[test]
fn who_has_no_certificate_that_holds_gets_no_call_where_one_is_required() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.tls(true)).await;
        let with = |change: fn(&mut Ask)| {
            let mut ask = client(URI);
            change(&mut ask);
            home.ca.issue(&ask)
        };
        let wrong: [(&str, Option<Leaf>); 5] = [
            ("none", None),
            ("another CA's", Some(Ca::new("the lab").issue(&client(URI)))),
            ("expired", Some(with(|ask| ask.expired = true))),
            (
                "for servers",
                Some(with(|ask| ask.usages = vec![Usage::ServerAuth])),
            ),
            ("for nothing named", Some(with(|ask| ask.usages.clear()))),
        ];
        for (what, leaf) in &wrong {
            let info = home.info(&running, leaf.as_ref()).await;
            assert!(info.is_err(), "{what}: {info:?}");
        }
        let right = home.client(URI);
        let info = home.info(&running, Some(&right)).await.expect("ours");
        assert_eq!(info.principal, principal("uri", URI));
        let metrics = running.metrics_address().expect("on");
        let text = get(metrics, "/metrics", "").await.body;
        let line = "evidenceos_handshakes_refused_total{listener=\"grpc\"} ";
        let counted = text.lines().find_map(|text| text.strip_prefix(line));
        let counted: usize = counted.expect("there").parse().expect("a number");
        assert!(counted >= wrong.len(), "{counted}");
    });
}

#[test]
fn certificates_that_do_not_say_what_they_are_for_need_a_flag() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            allow_client_cert_without_eku: Some(true),
            ..home.tls(true)
        };
        let running = home.start(&settings).await;
        let ask = |usages| Ask {
            usages,
            ..client(URI)
        };
        let silent = home.ca.issue(&ask(vec![]));
        assert!(home.info(&running, Some(&silent)).await.is_ok());
        let for_servers = home.ca.issue(&ask(vec![Usage::ServerAuth]));
        assert!(home.info(&running, Some(&for_servers)).await.is_err());
    });
}

#[test]
fn a_caller_is_the_name_in_its_certificate_and_the_kind_of_it() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.tls(true)).await;
        let by_dns = home.ca.issue(&Ask {
            uris: vec![],
            dns: vec!["runner.example"],
            ..client(URI)
        });
        let both = home.ca.issue(&Ask {
            dns: vec!["runner.example"],
            ..client(URI)
        });
        for (leaf, expected) in [
            (&by_dns, principal("dns", "runner.example")),
            (&both, principal("uri", URI)),
        ] {
            let info = home.info(&running, Some(leaf)).await.expect("ours");
            assert_eq!(info.principal, expected);
        }
        // A renewed certificate is the same caller, who goes on owning what it owns.
        let renewed = home.client(URI);
        let info = home.info(&running, Some(&renewed)).await.expect("ours");
        assert_eq!(info.principal, principal("uri", URI));
        // Without any name it is the certificate itself, not the CN, which says "operator" here.
        let nameless = home.ca.issue(&Ask {
            uris: vec![],
            ..client(URI)
        });
        let info = home.info(&running, Some(&nameless)).await.expect("ours");
        let digest = hex::encode(Sha256::digest(nameless.der()));
        assert_eq!(info.principal, principal("cert", &digest));
    });
}

#[test]
fn headers_that_say_who_the_client_is_change_nothing() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.tls(true)).await;
        let leaf = home.client(URI);
        let mut client = home.connect(&running, Some(&leaf)).await;
        for (name, value) in [
            ("x-client-cert-san", "operator"),
            ("x-client-cert-fp", "operator"),
            ("x-evidenceos-auth-role", "operator"),
            ("x-evidenceos-role", "operator"),
            ("x-evidenceos-token-scopes", "operator"),
            ("x-evidenceos-principal", "operator"),
            ("x-forwarded-client-cert", "URI=spiffe://lab/operator"),
        ] {
            let mut request = Request::new(wire::RotateHoldoutKeyRequest {});
            let value = value.parse().expect("ASCII");
            request.metadata_mut().insert(name, value);
            let mut asked = Request::new(wire::GetServerInfoRequest {});
            asked.metadata_mut().clone_from(request.metadata());
            let rotated = client.inner.rotate_holdout_key(request).await;
            refused(rotated, Code::PermissionDenied, "ROLE_REQUIRED", "operator");
            let info = client.inner.get_server_info(asked).await.expect("known");
            assert_eq!(info.into_inner().principal, principal("uri", URI), "{name}");
        }
    });
}

#[test]
fn a_set_that_was_exchanged_serves_new_connections_alone() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.tls(true)).await;
        let old = home.client(URI);
        let mut open = home.connect(&running, Some(&old)).await;
        let info = wire::GetServerInfoRequest {};
        open.inner.get_server_info(info).await.expect("ours");

        let next = Ca::new("the next lab");
        pki::write(home.path(), &next.issue(&server()), &next);
        running.reload().await.expect("a set");

        let over = open.inner.get_server_info(info).await;
        assert!(
            over.is_err(),
            "nor does its client know the server: {over:?}"
        );
        let address = running.grpc_address();
        let new = next.issue(&client(URI));
        let info = info_at(address, &next, Some(&new)).await.expect("ours");
        assert_eq!(info.principal, principal("uri", URI));
        assert!(info_at(address, &next, Some(&old)).await.is_err());
        assert!(info_at(address, &home.ca, Some(&new)).await.is_err());
    });
}

#[test]
fn a_set_that_does_not_fit_leaves_the_one_that_serves() {
    block_on(async {
        let home = Home::new();
        let running = home.start(&home.tls(true)).await;
        let leaf = home.client(URI);
        let other = home.ca.issue(&server());
        let good = fs::read_to_string(home.path().join("server.crt")).expect("there");
        for (name, content) in [
            ("server.crt", other.cert_pem.as_str()),
            ("server.crt", "no PEM"),
            ("ca.crt", ""),
        ] {
            let path = home.path().join(name);
            let before = fs::read_to_string(&path).expect("there");
            home.file(name, content);
            let problems = running.reload().await.expect_err("no set");
            assert!(problems.concat().contains(name), "{problems:?}");
            home.info(&running, Some(&leaf)).await.expect("as before");
            home.file(name, &before);
        }
        running.reload().await.expect("as at first");
        assert_eq!(
            fs::read_to_string(home.path().join("server.crt")).expect("there"),
            good
        );
        let metrics = running.metrics_address().expect("on");
        let text = get(metrics, "/metrics", "").await.body;
        let none = "evidenceos_tls_reload_failures_total{listener=\"grpc\"} 0";
        assert!(
            text.contains("evidenceos_tls_reload_failures_total") && !text.contains(none),
            "{text}"
        );
    });
}

#[test]
fn a_role_that_is_taken_away_is_gone_with_the_next_call() {
    block_on(async {
        let home = Home::new();
        let rule = |roles: &str| format!("[[rule]]\nuri = \"{URI}\"\nroles = [{roles:?}]\n");
        let settings = Settings {
            auth_policy: Some(home.file("policy.toml", &rule("operator"))),
            ..home.tls(true)
        };
        let running = home.start(&settings).await;
        let leaf = home.client(URI);
        let mut client = home.connect(&running, Some(&leaf)).await;
        client.put_default("h").await;
        home.file("policy.toml", &rule("boss"));
        let problems = running.reload().await.expect_err("no policy");
        assert!(problems.concat().contains("boss"), "{problems:?}");
        client.put_default("still-an-operator").await;
        home.file("policy.toml", &rule("auditor"));
        running.reload().await.expect("a policy");
        let rotate = wire::RotateHoldoutKeyRequest {};
        let refusal = client.inner.rotate_holdout_key(rotate).await;
        refused(refusal, Code::PermissionDenied, "ROLE_REQUIRED", "operator");

        // Each file of roles that was taken over is in the log, and none of its words are.
        let entries = client.entries().await;
        let stated: Vec<InForce> = entries
            .iter()
            .filter_map(|entry| Some(PoliciesStated::parse(entry).ok()?.in_force))
            .collect();
        assert_eq!(stated.len(), 2);
        assert!(stated.iter().all(|stated| stated.policies == NO_POLICIES));
        assert!(stated[0].roles.is_some() && stated[0].roles != stated[1].roles);
        running.stop().await.expect("a stop");
        let running = home.start(&settings).await;
        let mut client = home.connect(&running, Some(&leaf)).await;
        assert_eq!(client.entries().await, entries, "nothing changed since");
    });
}

#[test]
fn the_server_tells_what_protects_it_as_it_is() {
    block_on(async {
        let home = Home::new();
        let leaf = home.client(URI);
        let without_clients = Settings {
            mtls_client_ca: None,
            ..home.tls(false)
        };
        for (settings, clients, development) in [
            (without_clients, false, true),
            (home.tls(false), true, false),
            (home.tls(true), true, false),
        ] {
            let running = home.start(&settings).await;
            let info = home.info(&running, Some(&leaf)).await.expect("ours");
            let flags = info.feature_flags.expect("there");
            assert_eq!((flags.tls_enabled, flags.mtls_enabled), (true, clients));
            assert_eq!(info.development, development);
            running.stop().await.expect("stops");
        }
        let plain = Settings {
            serve_unprotected: true,
            ..home.plain()
        };
        let running = home.start(&plain).await;
        let address = running.grpc_address();
        let mut client = EvidenceOsClient::connect(format!("http://{address}"))
            .await
            .expect("plain");
        let info = client.get_server_info(wire::GetServerInfoRequest {}).await;
        let info = info.expect("open").into_inner();
        let flags = info.feature_flags.expect("there");
        assert_eq!((flags.tls_enabled, flags.mtls_enabled), (false, false));
        assert!(info.development && info.principal == "anonymous");
    });
}

#[test]
fn under_tls_health_needs_no_certificate_and_everything_else_does() {
    block_on(async {
        let home = Home::new();
        for required in [true, false] {
            let settings = Settings {
                preflight_tls: Some(true),
                metrics_tls: Some(true),
                ..home.tls(required)
            };
            let running = home.start(&settings).await;
            let http = running.http_address().expect("on");
            let leaf = home.client(URI);
            for (path, without, with) in [
                ("/livez", 200, 200),
                ("/readyz", 200, 200),
                ("/health", 200, 200),
                ("/version", 200, 200),
                ("/v1/preflight_tool_call", 401, 405),
                ("/", 401, 404),
            ] {
                for (leaf, status) in [(None, without), (Some(&leaf), with)] {
                    let answer = get_tls(http, &home.ca, leaf, path, "").await;
                    let answer = answer.expect("an answer");
                    assert_eq!(answer.status, status, "{path}: {answer:?}");
                }
            }
            let header = "x-client-cert-san: operator\r\n";
            let answer = get_tls(http, &home.ca, None, "/", header).await;
            assert_eq!(answer.expect("an answer").status, 401);
            let metrics = running.metrics_address().expect("on");
            let answer = get_tls(metrics, &home.ca, None, "/metrics", "").await;
            assert_eq!(answer.expect("no certificate is asked").status, 200);
            let stranger = Ca::new("another").issue(&client(URI));
            let answer = get_tls(http, &home.ca, Some(&stranger), "/livez", "").await;
            assert!(answer.is_err(), "one that is shown must hold: {answer:?}");
            running.stop().await.expect("stops");
        }
    });
}

#[test]
fn plain_text_on_a_port_of_tls_is_not_answered() {
    block_on(async {
        let home = Home::new();
        let settings = Settings {
            preflight_tls: Some(true),
            ..home.tls(false)
        };
        let running = home.start(&settings).await;
        let address = running.grpc_address();
        let answered = async {
            let mut client = EvidenceOsClient::connect(format!("http://{address}")).await?;
            let health = client.health(wire::HealthRequest {}).await;
            Ok::<_, Box<dyn std::error::Error>>(health?)
        };
        assert!(answered.await.is_err());
        for address in [address, running.http_address().expect("on")] {
            let mut stream = TcpStream::connect(address).await.expect("listens");
            stream
                .write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
                .await
                .expect("sent");
            let mut answer = Vec::new();
            // A reset is an end as well.
            let _ = stream.read_to_end(&mut answer).await;
            let text = String::from_utf8_lossy(&answer);
            assert!(!text.contains("HTTP/") && answer.len() < 32, "{text:?}");
        }
        // Nor does TLS get through to a port of plain text.
        let metrics = running.metrics_address().expect("on");
        let answer = get_tls(metrics, &home.ca, None, "/metrics", "").await;
        assert!(answer.is_err());
    });
}
