//! Calls that are signed with a shared secret, over a socket: what holds, whose they are, and what
//! comes of repeating one.

mod once;

use evidenceos_daemon::{Running, config::Settings};
use evidenceos_driver::clock::unix_ms;
use evidenceos_proto::{self as wire, evidence_os_client::EvidenceOsClient};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    harness::{block_on, refused, terms},
    secure::Home,
};

/// Of the key `default`.
const SECRET: &str = "discos-shared-secret";
const INFO: &str = "/evidenceos.v2.EvidenceOS/GetServerInfo";
const CREATE: &str = "/evidenceos.v2.EvidenceOS/CreateClaimV2";
const PUT: &str = "/evidenceos.v2.EvidenceOS/PutHoldout";
const RETIRE: &str = "/evidenceos.v2.EvidenceOS/RetireHoldout";

const POLICY: &str = r#"
[[rule]]
hmac_key_id = "default"
roles = ["submitter"]
[[rule]]
hmac_key_id = "ops"
roles = ["operator"]
"#;

/// What a call is signed with.
#[derive(Clone)]
struct Signature {
    key: Option<&'static str>,
    secret: &'static str,
    id: String,
    path: &'static str,
    time: Option<u64>,
}

impl Signature {
    fn of(id: &str, path: &'static str) -> Self {
        Self {
            key: None,
            secret: SECRET,
            id: id.to_owned(),
            path,
            time: Some(unix_ms() / 1_000),
        }
    }

    /// The operator's.
    fn ops(id: &str, path: &'static str) -> Self {
        Self {
            key: Some("ops"),
            secret: "second-secret-of-ops",
            ..Self::of(id, path)
        }
    }

    fn hex(&self) -> String {
        let mut material = format!("{}:{}", self.id, self.path);
        if let Some(time) = self.time {
            material.push_str(&format!(":{time}"));
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes()).expect("any length");
        mac.update(material.as_bytes());
        hex::encode(mac.finalize().into_bytes())
    }

    fn sign<T>(&self, message: T) -> Request<T> {
        with_headers(message, &self.id, self.key, self.time, &self.hex())
    }
}

/// The headers of a request to the HTTP port, signed now with the key `default`.
pub fn http_headers(secret: &str, id: &str, path: &str) -> String {
    http_headers_at(secret, id, path, unix_ms() / 1_000)
}

fn http_headers_at(secret: &str, id: &str, path: &str, time: u64) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
    mac.update(format!("{id}:{path}:{time}").as_bytes());
    let signature = hex::encode(mac.finalize().into_bytes());
    format!(
        "x-request-id: {id}\r\nx-evidenceos-timestamp: {time}\r\nx-evidenceos-signature: sha256={signature}\r\n"
    )
}

fn with_headers<T>(
    message: T,
    id: &str,
    key: Option<&str>,
    time: Option<u64>,
    signature: &str,
) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("x-request-id", id.parse().expect("ASCII"));
    let signature = format!("sha256={signature}");
    metadata.insert("x-evidenceos-signature", signature.parse().expect("ASCII"));
    if let Some(key) = key {
        metadata.insert("x-evidenceos-key-id", key.parse().expect("ASCII"));
    }
    if let Some(time) = time {
        metadata.insert("x-evidenceos-timestamp", time.into());
    }
    request
}

struct World {
    home: Home,
    settings: Settings,
    running: Running,
    client: EvidenceOsClient<Channel>,
}

impl World {
    async fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let home = Home::new();
        let mut settings = home.plain();
        settings.hmac_shared_secret = Some(SECRET.to_owned());
        let ops = format!("ops:{}", hex::encode("second-secret-of-ops"));
        settings.hmac_keys_file = Some(home.file("keys", &ops));
        settings.auth_policy = Some(home.file("policy.toml", POLICY));
        change(&mut settings);
        let running = home.start(&settings).await;
        let address = running.grpc_address();
        let client = EvidenceOsClient::connect(format!("http://{address}")).await;
        Self {
            home,
            settings,
            running,
            client: client.expect("listens"),
        }
    }

    async fn restart(self) -> Self {
        self.running.stop().await.expect("stops");
        let running = self.home.start(&self.settings).await;
        let address = running.grpc_address();
        let client = EvidenceOsClient::connect(format!("http://{address}")).await;
        Self {
            running,
            client: client.expect("listens"),
            ..self
        }
    }

    async fn principal(&self, signature: &Signature) -> Result<String, Status> {
        let request = signature.sign(wire::GetServerInfoRequest {});
        let info = self.client.clone().get_server_info(request).await?;
        Ok(info.into_inner().principal)
    }

    /// Registers a holdout.
    async fn put(&self, name: &str, id: &str) {
        let signature = Signature::ops(id, PUT);
        let put = self.try_put(name, &signature, crate::harness::labels(name));
        put.await.expect("registered");
    }

    async fn try_put(
        &self,
        name: &str,
        signature: &Signature,
        labels: Vec<u8>,
    ) -> Result<(), Status> {
        use wire::put_holdout_request::Part;
        let chunk = wire::PutHoldoutChunk {
            labels: labels.into(),
            ..Default::default()
        };
        let parts = [
            Part::Header(crate::harness::header(name)),
            Part::Chunk(chunk),
        ];
        let parts = parts.map(|part| wire::PutHoldoutRequest { part: Some(part) });
        let request = signature.sign(tokio_stream::iter(parts));
        self.client.clone().put_holdout(request).await.map(drop)
    }

    async fn create(&self, signature: &Signature, name: &str) -> Result<Vec<u8>, Status> {
        let request = signature.sign(terms(name, "h"));
        let created = self.client.clone().create_claim_v2(request).await?;
        Ok(created.into_inner().claim_id.to_vec())
    }
}

fn no_name<T: std::fmt::Debug>(result: Result<T, Status>, words: &str) {
    refused(result, Code::Unauthenticated, "UNAUTHENTICATED", words);
}

/// Made with `printf 'req-1:/evidenceos.v2.EvidenceOS/GetServerInfo' | openssl dgst -sha256 -hmac
/// discos-shared-secret`.
#[test]
fn a_signature_that_openssl_made_is_taken() {
    block_on(async {
        let world = World::new(|settings| settings.hmac_timestamp_optional = Some(true)).await;
        let signature = "b1f1b673046158f78674e9ffce44c2cc4338a355ec0019a7b5a3f213ff1aea41";
        for signature in [signature.to_owned(), signature.to_uppercase()] {
            let message = wire::GetServerInfoRequest {};
            let request = with_headers(message, "req-1", None, None, &signature);
            let info = world.client.clone().get_server_info(request).await;
            let expected = format!("hmac:{}", hex::encode(Sha256::digest("default")));
            assert_eq!(info.expect("signed").into_inner().principal, expected);
        }
    });
}

#[test]
fn a_signature_of_another_id_path_time_or_key_is_none() {
    block_on(async {
        let world = World::new(|_| {}).await;
        let good = Signature::of("req-1", INFO);
        world.principal(&good).await.expect("signed");
        let now = good.time.expect("there");
        let make = |change: fn(&mut Signature)| {
            let mut signature = good.clone();
            change(&mut signature);
            signature.hex()
        };
        let ids = make(|signature| signature.id = "req-2".to_owned());
        let paths = make(|signature| signature.path = CREATE);
        let roots = make(|signature| signature.path = "/");
        let untimed = make(|signature| signature.time = None);
        let secrets = make(|signature| signature.secret = "other");
        for (key, time, signature, words) in [
            (None, Some(now), ids.as_str(), "invalid signature"),
            (None, Some(now), &paths, "invalid signature"),
            (None, Some(now), &roots, "invalid signature"),
            (None, Some(now), &untimed, "invalid signature"),
            (None, Some(now), &secrets, "invalid signature"),
            (None, Some(now - 1), &good.hex(), "invalid signature"),
            // The key id is not signed, but each key has a secret of its own.
            (Some("ops"), Some(now), &good.hex(), "invalid signature"),
            (Some("who"), Some(now), &good.hex(), "unknown"),
            (None, Some(now - 400), &good.hex(), "300 s"),
            (None, Some(now + 400), &good.hex(), "300 s"),
            (None, None, &untimed, "missing x-evidenceos-timestamp"),
            (None, Some(now), "00", "64 hex digits"),
        ] {
            let message = wire::GetServerInfoRequest {};
            let request = with_headers(message, "req-1", key, time, signature);
            no_name(world.client.clone().get_server_info(request).await, words);
        }
        let info = wire::GetServerInfoRequest {};
        no_name(
            world.client.clone().get_server_info(info).await,
            "missing credentials",
        );
        let mut both = good.sign(info);
        let token = "Bearer t".parse().expect("ASCII");
        both.metadata_mut().insert("authorization", token);
        no_name(world.client.clone().get_server_info(both).await, "not both");
    });
}

#[test]
fn calls_of_one_key_are_one_caller_who_owns_its_claims() {
    block_on(async {
        let world = World::new(|_| {}).await;
        world.put("h", "o-1").await;
        let first = world.principal(&Signature::of("a", INFO)).await;
        let second = world.principal(&Signature::of("b", INFO)).await;
        assert_eq!(first.expect("signed"), second.expect("signed"));
        let claim = world.create(&Signature::of("c", CREATE), "c").await;
        let claim_id: prost::bytes::Bytes = claim.expect("created").into();
        let path = "/evidenceos.v2.EvidenceOS/GetClaim";
        let message = wire::GetClaimRequest { claim_id };
        let got = Signature::of("d", path).sign(message);
        world.client.clone().get_claim(got).await.expect("his own");
        // The policy gives this key no more than it says.
        let rotate = Signature::of("e", "/evidenceos.v2.EvidenceOS/RotateHoldoutKey");
        let rotate = rotate.sign(wire::RotateHoldoutKeyRequest {});
        let rotated = world.client.clone().rotate_holdout_key(rotate).await;
        refused(rotated, Code::PermissionDenied, "ROLE_REQUIRED", "operator");
    });
}

#[test]
fn a_repeated_call_does_nothing_twice_and_takes_no_other_body() {
    block_on(async {
        let world = World::new(|_| {}).await;
        world.put("h", "o-1").await;
        world.put("other", "o-2").await;
        let signature = Signature::ops("o-3", RETIRE);
        let retire = |holdout: &str| {
            let message = wire::RetireHoldoutRequest {
                holdout: holdout.to_owned(),
                reason: "a test".to_owned(),
            };
            let request = signature.sign(message);
            let mut client = world.client.clone();
            async move { client.retire_holdout(request).await }
        };
        let once = retire("h").await.expect("retired").into_inner();
        let size = |world: &World| {
            let request = Signature::of("s", "/evidenceos.v2.EvidenceOS/GetSignedTreeHead");
            let request = request.sign(wire::GetSignedTreeHeadRequest {});
            let mut client = world.client.clone();
            async move {
                let head = client.get_signed_tree_head(request).await;
                head.expect("public").into_inner().tree_size
            }
        };
        let before = size(&world).await;
        let again = retire("h").await.expect("what was said before");
        assert_eq!(again.into_inner(), once);
        // The body is not signed: whoever heard the call could send the signature with another.
        let other = retire("other").await;
        refused(other, Code::AlreadyExists, "REQUEST_ID_REUSED", "new one");
        assert_eq!(size(&world).await, before);
    });
}

#[test]
fn two_processes_that_count_from_one_do_not_collide() {
    block_on(async {
        let world = World::new(|_| {}).await;
        world.put("h", "o-1").await;
        let first = Signature::of("discos-1", CREATE);
        let second = Signature {
            time: first.time.map(|time| time - 1),
            ..first.clone()
        };
        let one = world.create(&first, "one").await.expect("created");
        let two = world.create(&second, "two").await.expect("created");
        assert_ne!(one, two);
        assert_eq!(world.create(&first, "one").await.expect("again"), one);
        // The same second, the same count, another body: it cannot be told from an attack.
        let three = world.create(&second, "three").await;
        refused(three, Code::AlreadyExists, "REQUEST_ID_REUSED", "new one");
    });
}

#[test]
fn a_signature_over_the_root_path_needs_the_switch() {
    block_on(async {
        for accept in [false, true] {
            let world = World::new(|settings| settings.hmac_accept_root_path = Some(accept)).await;
            let by_path = world.principal(&Signature::of("req-1", INFO)).await;
            let root = Signature::of("req-2", "/");
            let by_root = world.principal(&root).await;
            let by_path = by_path.expect("signed");
            if accept {
                assert_eq!(by_root.expect("as the switch says"), by_path);
            } else {
                no_name(by_root, "invalid signature");
            }
        }
    });
}

#[test]
fn a_key_that_was_taken_out_of_its_file_signs_nothing_after_a_reload() {
    block_on(async {
        let world = World::new(|_| {}).await;
        let ops = Signature::ops("o-1", INFO);
        let before = world.principal(&ops).await.expect("signed");
        world.home.file("keys", "nonsense");
        world.running.reload().await.expect_err("no keys");
        assert_eq!(world.principal(&ops).await.expect("as before"), before);
        world
            .home
            .file("keys", "next:6e6578742d7365637265742d6f662d6f7073");
        world.running.reload().await.expect("keys");
        no_name(world.principal(&ops).await, "unknown");
        let next = Signature {
            key: Some("next"),
            secret: "next-secret-of-ops",
            ..Signature::of("n-1", INFO)
        };
        assert_ne!(world.principal(&next).await.expect("signed"), before);
    });
}
