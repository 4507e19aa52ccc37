//! One caller is shut out of everything, at once: by `[[deny]]` entries and by revocation lists, on
//! new connections, on open ones, and in the middle of calls.

use std::time::Duration;

use evidenceos_daemon::{Config, Running, config::Settings};
use evidenceos_driver::clock::unix_ms;
use evidenceos_proto as wire;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

use crate::{
    harness::{Client, block_on, refused},
    pki::{self, Leaf, write_file},
    secure::{Home, get, get_tls, post},
};

const ALICE: &str = "spiffe://lab/alice";
const BOB: &str = "spiffe://lab/bob";
const TOKEN: &str = "a token of forty characters, or so it is";
const OPEN: &str =
    "default = \"submitter\"\n[[rule]]\nuri = \"spiffe://lab/ops\"\nroles = [\"operator\"]\n";
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    home: Home,
    running: Running,
    alice: Leaf,
    bob: Leaf,
}

impl World {
    async fn new(change: impl FnOnce(&Home, &mut Settings)) -> Self {
        let home = Home::new();
        let mut settings = Settings {
            preflight_tls: Some(true),
            auth_policy: Some(home.file("policy.toml", OPEN)),
            auth_token_file: Some(home.file("token", TOKEN)),
            ..home.tls(true)
        };
        change(&home, &mut settings);
        let running = home.start(&settings).await;
        let (alice, bob) = (home.client(ALICE), home.client(BOB));
        Self {
            home,
            running,
            alice,
            bob,
        }
    }

    async fn with_list() -> Self {
        Self::new(|home, settings| {
            let list = home.file("clients.crl", &home.ca.crl(&[], 2999));
            settings.mtls_client_crl = Some(vec![list]);
        })
        .await
    }

    fn deny(&self, entry: &str) {
        self.home
            .file("policy.toml", &format!("{OPEN}[[deny]]\n{entry}\n"));
    }

    fn revoke(&self, leaf: &Leaf) {
        self.home
            .file("clients.crl", &self.home.ca.crl(&[leaf], 2999));
    }

    async fn connect(&self, leaf: &Leaf) -> Client {
        self.home.connect(&self.running, Some(leaf)).await
    }

    /// The status of the HTTP port for a caller with a certificate and perhaps a token.
    async fn http(&self, leaf: &Leaf, headers: &str) -> Option<u16> {
        let http = self.running.http_address().expect("on");
        let path = "/openapi.json";
        let answer = get_tls(http, &self.home.ca, Some(leaf), path, headers).await;
        answer.ok().map(|answer| answer.status)
    }
}

/// Whether a client is known; why not.
async fn known(client: &Client, token: Option<&str>) -> Result<(), Status> {
    let mut request = tonic::Request::new(wire::GetServerInfoRequest {});
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("ASCII");
        request.metadata_mut().insert("authorization", value);
    }
    client
        .inner
        .clone()
        .get_server_info(request)
        .await
        .map(drop)
}

fn shut_out(result: Result<(), Status>, words: &str) {
    refused(result, Code::Unauthenticated, "UNAUTHENTICATED", words);
}

#[test]
fn a_deny_entry_shuts_a_caller_out_everywhere_at_the_reload() {
    block_on(async {
        let world = World::new(|_, _| {}).await;
        let digest = hex::encode(Sha256::digest(world.alice.der()));
        let serial = hex::encode(world.alice.serial());
        let open = world.connect(&world.alice).await;
        let other = world.connect(&world.bob).await;
        for entry in [
            format!("uri = \"{ALICE}\""),
            format!("cert_sha256 = \"{digest}\""),
            format!("serial = \"{serial}\""),
        ] {
            known(&open, None).await.expect("let in");
            assert_eq!(world.http(&world.alice, "").await, Some(200));
            world.deny(&entry);
            world.running.reload().await.expect("a policy");
            let words = "the role policy denies this client certificate";
            let fresh = world.connect(&world.alice).await;
            for client in [&open, &fresh] {
                shut_out(known(client, None).await, words);
                shut_out(known(client, Some(TOKEN)).await, words);
            }
            let bearer = format!("authorization: Bearer {TOKEN}\r\n");
            for headers in ["", bearer.as_str()] {
                assert_eq!(world.http(&world.alice, headers).await, Some(401));
                assert_eq!(world.http(&world.bob, headers).await, Some(200));
            }
            known(&other, None).await.expect("somebody else");
            known(&other, Some(TOKEN))
                .await
                .expect("the token of others");
            world.home.file("policy.toml", OPEN);
            world.running.reload().await.expect("a policy");
        }
        // Its token alone is shut out as well, whichever certificate comes with it.
        let digest = hex::encode(Sha256::digest(TOKEN));
        world.deny(&format!("token_sha256 = \"{digest}\""));
        world.running.reload().await.expect("a policy");
        let words = "the role policy denies this caller";
        shut_out(known(&other, Some(TOKEN)).await, words);
        known(&other, None).await.expect("by its certificate");
    });
}

#[test]
fn the_gates_own_token_carries_no_denied_certificate() {
    block_on(async {
        let world = World::new(|home, settings| {
            let token = home.file("own", "the gate's own token");
            settings.preflight_require_bearer_token_file = Some(token);
        })
        .await;
        let own = "authorization: Bearer the gate's own token\r\n";
        assert_eq!(world.http(&world.alice, own).await, Some(200));
        world.deny(&format!("uri = \"{ALICE}\""));
        world.running.reload().await.expect("a policy");
        assert_eq!(world.http(&world.alice, own).await, Some(401));
        assert_eq!(world.http(&world.bob, own).await, Some(200));
        let digest = hex::encode(Sha256::digest("the gate's own token"));
        world.deny(&format!("token_sha256 = \"{digest}\""));
        world.running.reload().await.expect("a policy");
        assert_eq!(world.http(&world.bob, own).await, Some(401));
    });
}

#[test]
fn a_revoked_certificate_is_shut_out_of_open_connections_too() {
    block_on(async {
        let world = World::with_list().await;
        let (open, other) = (
            world.connect(&world.alice).await,
            world.connect(&world.bob).await,
        );
        known(&open, None).await.expect("let in");
        assert_eq!(world.http(&world.alice, "").await, Some(200));
        world.revoke(&world.alice);
        world.running.reload().await.expect("a list");
        let words = "the client certificate is revoked";
        shut_out(known(&open, None).await, words);
        shut_out(known(&open, Some(TOKEN)).await, words);
        known(&other, None).await.expect("somebody else");
        let info = world.home.info(&world.running, Some(&world.alice)).await;
        assert!(info.is_err(), "no new handshake: {info:?}");
        assert_eq!(world.http(&world.alice, "").await, None, "nor on HTTP");
        assert_eq!(world.http(&world.bob, "").await, Some(200));
    });
}

/// The watcher finds the list: no signal is sent.
#[test]
fn a_list_that_changes_takes_effect_without_a_signal() {
    block_on(async {
        let world = World::with_list().await;
        let open = world.connect(&world.alice).await;
        let mut stream = watch_revocations(&open).await;
        world.revoke(&world.alice);
        let end = timeout(PATIENCE, stream.next()).await.expect("in time");
        let status = end.expect("a message").expect_err("the end");
        assert!(status.message().contains("revoked"), "{status:?}");
        shut_out(known(&open, None).await, "revoked");
    });
}

/// A watch that has told what there is, and waits.
async fn watch_revocations(client: &Client) -> tonic::Streaming<wire::WatchRevocationsResponse> {
    let request = client.request(wire::WatchRevocationsRequest {});
    let stream = client.inner.clone().watch_revocations(request).await;
    let mut stream = stream.expect("let in").into_inner();
    stream.next().await.expect("what there is").expect("served");
    stream
}

async fn watch_accounts(client: &Client) -> tonic::Streaming<wire::WatchAccountsResponse> {
    let request = client.request(wire::WatchAccountsRequest::default());
    let stream = client.inner.clone().watch_accounts(request).await;
    stream.expect("let in").into_inner()
}

#[test]
fn streams_end_at_the_reload_that_shuts_their_caller_out() {
    block_on(async {
        let world = World::with_list().await;
        let carol = world.home.client("spiffe://lab/carol");
        let [alice, bob, carol_client] = [
            world.connect(&world.alice).await,
            world.connect(&world.bob).await,
            world.connect(&carol).await,
        ];
        let mut ends = [
            watch_revocations(&alice).await,
            watch_revocations(&carol_client).await,
        ];
        let mut goes_on = watch_revocations(&bob).await;
        let mut accounts = watch_accounts(&alice).await;
        world.deny(&format!("uri = \"{ALICE}\""));
        world.revoke(&carol);
        world.running.reload().await.expect("a policy and a list");
        for (stream, words) in ends.iter_mut().zip(["denies", "revoked"]) {
            let end = timeout(PATIENCE, stream.next()).await.expect("in time");
            let status = end.expect("a status").expect_err("the end");
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
            assert!(status.message().contains(words), "{status:?}");
        }
        let end = timeout(PATIENCE, async {
            loop {
                match accounts.next().await {
                    Some(Ok(_)) => {}
                    end => return end,
                }
            }
        });
        let status = end.await.expect("in time").expect("a status");
        assert_eq!(status.expect_err("the end").code(), Code::Unauthenticated);
        // Somebody else's goes on, over any number of reloads.
        world.running.reload().await.expect("the same");
        known(&bob, None).await.expect("let in");
        // An end would have come before this answer, over the same connection.
        let quiet = timeout(Duration::ZERO, goes_on.next()).await;
        assert!(quiet.is_err(), "nothing to tell, and no end: {quiet:?}");
    });
}

/// Nothing happens, and still it ends.
#[test]
fn a_watch_ends_with_the_time_of_its_certificate() {
    block_on(async {
        let world = World::new(|_, _| {}).await;
        let short = world.home.ca.issue(&pki::Ask {
            not_after_unix: Some(unix_ms() / 1_000 + 2),
            ..pki::client("spiffe://lab/short")
        });
        let client = world.connect(&short).await;
        let mut stream = watch_revocations(&client).await;
        let end = timeout(PATIENCE, stream.next()).await.expect("in time");
        let status = end.expect("a status").expect_err("the end");
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        shut_out(known(&client, None).await, "not valid now");
        let own = format!("authorization: Bearer {TOKEN}\r\n");
        assert_eq!(world.http(&short, &own).await, None, "no handshake either");
    });
}

#[test]
fn a_stream_ends_with_the_role_that_it_began_with() {
    block_on(async {
        let world = World::new(|_, _| {}).await;
        let ops = world.home.client("spiffe://lab/ops");
        let ops = world.connect(&ops).await;
        let request = ops.request(wire::WatchAccountsRequest {
            all: true,
            ..Default::default()
        });
        let stream = ops.inner.clone().watch_accounts(request).await;
        let mut stream = stream.expect("an operator").into_inner();
        world.home.file("policy.toml", "default = \"submitter\"\n");
        world.running.reload().await.expect("a policy");
        let end = timeout(PATIENCE, async {
            loop {
                match stream.next().await {
                    Some(Ok(_)) => {}
                    end => return end,
                }
            }
        });
        let end = end.await.expect("in time").expect("a status");
        assert_eq!(end.expect_err("the end").code(), Code::PermissionDenied);
    });
}

/// Who began to send labels and is denied before the last of them has registered nothing.
#[test]
fn an_upload_breaks_off_when_its_caller_is_shut_out() {
    use wire::put_holdout_request::Part;
    block_on(async {
        let world = World::new(|_, _| {}).await;
        let ops = world.home.client("spiffe://lab/ops");
        let ops = world.connect(&ops).await;
        let (parts, sent) = tokio::sync::mpsc::channel(1);
        let request = ops.request(tokio_stream::wrappers::ReceiverStream::new(sent));
        let mut inner = ops.inner.clone();
        let put = tokio::spawn(async move { inner.put_holdout(request).await.map(drop) });
        let part = |part| wire::PutHoldoutRequest { part: Some(part) };
        let header = part(Part::Header(crate::harness::header("late")));
        parts.send(header).await.expect("read");
        // The second part is taken from the channel once the first is on its way.
        let chunk = |labels: Vec<u8>| {
            part(Part::Chunk(wire::PutHoldoutChunk {
                labels: labels.into(),
                ..Default::default()
            }))
        };
        let labels = crate::harness::labels("late");
        let (first, last) = labels.split_at(labels.len() / 2);
        parts.send(chunk(first.to_vec())).await.expect("read");
        known(&ops, None).await.expect("let in");
        world.deny("uri = \"spiffe://lab/ops\"");
        world.running.reload().await.expect("a policy");
        // Whether the daemon has broken off before, or does so now, nothing is registered.
        let _ = parts.send(chunk(last.to_vec())).await;
        drop(parts);
        let put = timeout(PATIENCE, put).await.expect("in time");
        shut_out(put.expect("no panic"), "the role policy denies");
        world.home.file("policy.toml", OPEN);
        world.running.reload().await.expect("a policy");
        let request = ops.request(wire::ListHoldoutsRequest::default());
        let listed = ops.inner.clone().list_holdouts(request).await;
        assert!(listed.expect("let in").into_inner().holdouts.is_empty());
    });
}

#[test]
fn lists_that_do_not_fit_stop_a_start_and_leave_what_serves() {
    block_on(async {
        let world = World::with_list().await;
        let path = world.home.path().join("clients.crl");
        world.revoke(&world.alice);
        world.running.reload().await.expect("a list");
        let open = world.connect(&world.bob).await;
        for (content, words) in [
            ("nonsense", "no revocation list found in"),
            (&world.home.ca.crl(&[], 2021), "past its nextUpdate"),
        ] {
            write_file(&path, content, 0o644);
            let problems = world.running.reload().await.expect_err("no list");
            assert!(problems.concat().contains(words), "{problems:?}");
            let info = world.home.info(&world.running, Some(&world.alice)).await;
            assert!(info.is_err(), "still revoked: {info:?}");
            known(&open, None).await.expect("still served");
            let settings = Settings {
                data_dir: Some(world.home.path().join("another")),
                mtls_client_crl: Some(vec![path.clone()]),
                ..world.home.tls(true)
            };
            let config = Config::new(&settings).expect("it fits together");
            let started = evidenceos_daemon::start(config).await;
            let error = started.err().expect("no start").to_string();
            assert!(
                error.contains(words) && error.contains("clients.crl"),
                "{error}"
            );
        }
        let metrics = world.running.metrics_address().expect("on");
        let text = get(metrics, "/metrics", "").await.body;
        let line = "evidenceos_tls_reload_failures_total{listener=\"grpc\"} ";
        let counted = text.lines().find_map(|text| text.strip_prefix(line));
        let counted: usize = counted.expect("there").parse().expect("a number");
        assert!(counted >= 2, "{counted}");
        let line = "evidenceos_tls_client_crl_next_update_seconds{listener=\"grpc\"} 32472144000";
        assert!(text.contains(line), "{text}");
        // A deny entry with a mistake leaves the policy as it was, too.
        world.deny("serial = \"none\"");
        let problems = world
            .running
            .reload()
            .await
            .expect_err("no number")
            .concat();
        assert!(
            problems.contains("deny 1") && problems.contains("serial must be"),
            "{problems}"
        );
    });
}

/// A signature, a token and the gate without TLS: keys are shut out by their id.
#[test]
fn a_signing_key_is_shut_out_by_its_id() {
    block_on(async {
        let home = Home::new();
        let policy = home.file("policy.toml", "default = \"submitter\"\n");
        let settings = Settings {
            auth_hmac_key_file: Some(home.file("key", "a secret that is shared")),
            auth_policy: Some(policy.clone()),
            ..home.plain()
        };
        let running = home.start(&settings).await;
        let http = running.http_address().expect("on");
        let path = "/v1/preflight_tool_call";
        let call = |id: &'static str| async move {
            let headers = crate::signed::http_headers("a secret that is shared", id, path);
            post(http, path, &headers, br#"{"toolName":"t","params":{}}"#)
                .await
                .status
        };
        assert_eq!(call("one").await, 200);
        home.file(
            "policy.toml",
            "default = \"submitter\"\n[[deny]]\nhmac_key_id = \"default\"\n",
        );
        running.reload().await.expect("a policy");
        assert_eq!(call("two").await, 401);
    });
}
