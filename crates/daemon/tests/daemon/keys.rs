//! Keys: where they come from, how one follows another, and what stops a start.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use evidenceos_daemon::{
    Config, Running,
    config::{KeySource, KmsKeys},
};
use evidenceos_keys::{
    KeyId, Ring, Secret,
    kms::{KeyRef, Kms, KmsSettings, Provider},
};
use evidenceos_proto as wire;
use evidenceos_tlog::{SignedCheckpoint, VerifierKey};

use crate::harness::{Client, Directory, asking, block_on, config, judged, predictions};

struct Home(Directory);

impl Home {
    fn new() -> Self {
        Self(Directory::with_anchor())
    }

    fn keys(&self) -> PathBuf {
        self.0.path().join("keys")
    }

    fn ring(&self) -> Ring {
        Ring::open(&self.keys()).expect("a good ring")
    }

    /// A key in the ring that does not sign yet.
    fn another(&self) -> KeyId {
        self.ring().generate().expect("writable")
    }

    fn with(&self, keys: KeySource) -> Config {
        Config {
            keys,
            ..config(self.0.path())
        }
    }

    async fn start(&self) -> (Running, Client) {
        self.start_with(KeySource::default()).await
    }

    async fn start_with(&self, keys: KeySource) -> (Running, Client) {
        let running = evidenceos_daemon::start(self.with(keys))
            .await
            .expect("starts");
        let client = Client::connect(&running.grpc_address().to_string(), None).await;
        (running, client)
    }

    async fn refusal(&self, config: Config) -> String {
        let started = evidenceos_daemon::start(config).await;
        started.err().expect("does not start").to_string()
    }
}

async fn log_keys(client: &mut Client) -> Vec<wire::LogKey> {
    let reply = client
        .inner
        .list_log_keys(wire::ListLogKeysRequest {})
        .await;
    reply.expect("public").into_inner().keys
}

async fn head(client: &mut Client) -> wire::GetSignedTreeHeadResponse {
    let reply = client
        .inner
        .get_signed_tree_head(wire::GetSignedTreeHeadRequest {})
        .await;
    reply.expect("public").into_inner()
}

/// Demands that a checkpoint is signed by a key.
fn signed_by(checkpoint: &str, vkey: &str) {
    let key: VerifierKey = vkey.parse().expect("a verifier key");
    SignedCheckpoint::open(checkpoint.as_bytes(), &key, &[]).expect("signed by that key");
}

#[test]
fn an_activated_key_takes_over_at_the_next_start_and_old_receipts_keep_verifying() {
    block_on(async {
        let home = Home::new();
        let (running, mut client) = home.start().await;
        client.put_default("h").await;
        let (claim, _) = client.run("c", "h", &judged(&predictions("h", 20))).await;
        let (old_vkey, old) = (
            running.log_vkey(),
            client.fetch(&claim).await.expect("fetched"),
        );
        running.stop().await.expect("stops");

        let next = home.another();
        home.ring().activate(next).expect("writable");
        let (running, mut client) = home.start().await;
        assert_ne!(running.log_vkey(), old_vkey);
        signed_by(&old.checkpoint, &old_vkey);
        let new = client.fetch(&claim).await.expect("fetched");
        signed_by(&new.checkpoint, &running.log_vkey());

        let keys = log_keys(&mut client).await;
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[0].vkey, old_vkey);
        assert_eq!(
            (keys[0].since_size, keys[1].since_size),
            (0, old.tree_size + 1)
        );
        assert_eq!(keys[1].key_id.to_vec(), next.0);
        for key in keys {
            let request = wire::GetPublicKeyRequest { key_id: key.key_id };
            let reply = client.inner.get_public_key(request).await;
            let found = reply.expect("both stay known").into_inner();
            assert_eq!(found.ed25519_public_key, key.ed25519_public_key);
        }
        running.stop().await.expect("stops");
        // The old key has done its work: the log goes on without it.
        let old_key = Ring::open(&home.keys()).expect("good");
        let gone = old_key.keys().keys().find(|id| **id != next).expect("two");
        fs::remove_file(old_key.file_of(*gone)).expect("there");
        let (running, mut client) = home.start().await;
        assert_eq!(log_keys(&mut client).await.len(), 2, "and linked once");
        running.stop().await.expect("stops");
    });
}

#[test]
fn an_activated_key_takes_over_while_the_daemon_serves() {
    block_on(async {
        let home = Home::new();
        let (running, mut client) = home.start().await;
        client.put_default("h").await;
        running.reload().await.expect("nothing changed");
        let before = head(&mut client).await;
        let next = home.another();
        home.ring().activate(next).expect("writable");
        running.reload().await.expect("a good ring");
        // The writer takes the key over before it decides what comes after.
        let (claim, _) = client.run("c", "h", &judged(&predictions("h", 20))).await;
        let fetched = client.fetch(&claim).await.expect("fetched");
        signed_by(&fetched.checkpoint, &running.log_vkey());
        assert_eq!(head(&mut client).await.key_id.to_vec(), next.0);
        let keys = log_keys(&mut client).await;
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[1].since_size, before.tree_size + 1);

        fs::write(home.keys().join("active_key_id"), "nonsense").expect("writable");
        let problems = running.reload().await.expect_err("no such key");
        assert!(problems[0].contains("64 hex digits"), "{problems:?}");
        assert_eq!(head(&mut client).await.key_id.to_vec(), next.0);
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_key_that_lies_ready_is_known_and_does_not_sign() {
    block_on(async {
        let home = Home::new();
        let (running, _) = home.start().await;
        running.stop().await.expect("stops");
        let ready = home.another();
        let (running, mut client) = home.start().await;
        assert_eq!(log_keys(&mut client).await.len(), 1);
        let request = wire::GetPublicKeyRequest {
            key_id: ready.0.to_vec().into(),
        };
        let found = client.inner.get_public_key(request).await.expect("known");
        assert_eq!(found.into_inner().key_id.to_vec(), ready.0);
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_log_does_not_change_its_key_in_silence() {
    block_on(async {
        let home = Home::new();
        let (running, mut client) = home.start().await;
        let before = head(&mut client).await;
        running.stop().await.expect("stops");
        let old = *home.ring().keys().keys().next().expect("one");
        let kept = fs::read(home.ring().file_of(old)).expect("readable");
        fs::remove_file(home.ring().file_of(old)).expect("there");
        for (refused, expected) in [
            // An empty volume.
            (
                home.refusal(home.with(KeySource::default())).await,
                "keys import",
            ),
            // Another key, and nobody to vouch for it.
            (
                {
                    home.another();
                    home.refusal(home.with(KeySource::default())).await
                },
                "must vouch for the new one",
            ),
        ] {
            assert!(refused.contains(expected), "{refused}");
        }
        let path = home.keys().join(format!("{old}.key"));
        fs::write(&path, kept).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        let (running, mut client) = home.start().await;
        assert_eq!(head(&mut client).await.tree_size, before.tree_size);
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_first_start_that_must_not_make_a_key_says_how_to_bring_one() {
    block_on(async {
        let home = Home::new();
        let forbidden = || Config {
            generate_key: false,
            ..config(home.0.path())
        };
        let message = home.refusal(forbidden()).await;
        assert!(message.contains("keys generate"), "{message}");
        assert!(!home.keys().exists());
        Ring::open_or_create(&home.keys())
            .and_then(|mut ring| ring.generate())
            .expect("writable");
        let running = evidenceos_daemon::start(forbidden()).await;
        running
            .expect("a key is there")
            .stop()
            .await
            .expect("stops");
    });
}

#[test]
fn keys_that_others_can_read_stop_the_start() {
    block_on(async {
        let home = Home::new();
        let (running, _) = home.start().await;
        running.stop().await.expect("stops");
        let key = home
            .ring()
            .file_of(*home.ring().keys().keys().next().expect("one"));
        for path in [key, home.0.path().join("secrets/holdouts.secret")] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("ours");
            let message = home.refusal(home.with(KeySource::default())).await;
            assert!(
                message.contains("0640") && message.contains("chmod 600"),
                "{message}"
            );
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        }
        let (running, _) = home.start().await;
        running.stop().await.expect("stops");
    });
}

#[test]
fn nothing_is_written_beside_imported_keys() {
    block_on(async {
        let home = Home::new();
        let id = Ring::open_or_create(&home.keys())
            .and_then(|mut ring| ring.generate())
            .expect("writable");
        for _ in 0..2 {
            let (running, _) = home.start().await;
            running.stop().await.expect("stops");
        }
        let names: Vec<_> = fs::read_dir(home.keys())
            .expect("there")
            .map(|entry| entry.expect("readable").file_name())
            .collect();
        assert_eq!(names, [format!("{id}.key").as_str()]);
    });
}

fn mock() -> KmsSettings {
    let mut settings = KmsSettings::new(Provider::Mock);
    settings.mock_key = Some(Secret::new([6; 32]));
    settings
}

/// Keys in the mock KMS: its own key, a wrapped one, or one that never leaves.
fn in_kms(key: Option<KeyRef>) -> KmsKeys {
    KmsKeys {
        settings: mock(),
        key,
        previous: None,
        expect: None,
        holdout_key: None,
    }
}

fn stays_inside() -> Option<KeyRef> {
    Some("vault".parse().expect("a resource"))
}

async fn wrapped(seed: u8) -> KeyRef {
    let kms = Kms::new(mock()).expect("a good mock");
    kms.wrap("vault", &[seed; 32]).await.expect("wraps")
}

fn source(keys: KmsKeys) -> KeySource {
    KeySource::Kms(Box::new(keys))
}

#[test]
fn a_log_is_signed_by_a_key_of_the_kms_unwrapped_or_inside() {
    block_on(async {
        for key in [None, Some(wrapped(3).await), stays_inside()] {
            let home = Home::new();
            let mut vkey = None;
            for round in 0..2 {
                let (running, mut client) = home.start_with(source(in_kms(key.clone()))).await;
                assert_eq!(*vkey.get_or_insert(running.log_vkey()), running.log_vkey());
                if round == 0 {
                    client.put_default("h").await;
                }
                let name = round.to_string();
                let (claim, _) = client.run(&name, "h", &judged(&predictions("h", 20))).await;
                let fetched = client.fetch(&claim).await.expect("a head covers it");
                assert!(fetched.tree_size > fetched.etl_index);
                signed_by(&fetched.checkpoint, &running.log_vkey());
                running.stop().await.expect("stops");
            }
            assert!(!home.keys().exists(), "no key is on the disk");
            let published = fs::read_to_string(home.0.path().join("log/checkpoint"));
            signed_by(&published.expect("published"), &vkey.expect("started"));
        }
    });
}

#[test]
fn another_key_than_expected_signs_nothing() {
    block_on(async {
        let home = Home::new();
        let expected = KeyId([9; 32]);
        let keys = KmsKeys {
            expect: Some(expected),
            ..in_kms(None)
        };
        let message = home.refusal(home.with(source(keys))).await;
        assert!(message.contains(&expected.to_string()), "{message}");
        assert!(!home.0.path().join("log/checkpoint").exists());
    });
}

#[test]
fn a_log_moves_from_a_file_into_the_kms_and_to_the_next_key_there() {
    block_on(async {
        let home = Home::new();
        let (running, mut client) = home.start().await;
        client.put_default("h").await;
        running.stop().await.expect("stops");

        let (running, mut client) = home.start_with(source(in_kms(stays_inside()))).await;
        assert_eq!(log_keys(&mut client).await.len(), 2);
        let (claim, _) = client.run("c", "h", &judged(&predictions("h", 20))).await;
        let fetched = client.fetch(&claim).await.expect("fetched");
        signed_by(&fetched.checkpoint, &running.log_vkey());
        running.stop().await.expect("stops");

        let next = in_kms(Some(wrapped(3).await));
        let message = home.refusal(home.with(source(next.clone()))).await;
        assert!(
            message.contains("EVIDENCEOS_KMS_PREVIOUS_KEY_ID"),
            "{message}"
        );
        let linked = KmsKeys {
            previous: stays_inside(),
            ..next
        };
        let (running, mut client) = home.start_with(source(linked)).await;
        assert_eq!(log_keys(&mut client).await.len(), 3);
        signed_by(&head(&mut client).await.checkpoint, &running.log_vkey());
        running.stop().await.expect("stops");
    });
}

#[test]
fn the_holdouts_move_to_another_key_while_the_daemon_serves() {
    block_on(async {
        for holdout_key in [None, Some("vault".to_owned())] {
            let home = Home::new();
            let keys = KmsKeys {
                holdout_key: holdout_key.clone(),
                ..in_kms(None)
            };
            let (running, mut client) = home.start_with(source(in_kms(None))).await;
            client.put_default("h").await;
            client.put_default("other").await;
            running.stop().await.expect("stops");
            let secret = home.0.path().join("secrets/holdouts.secret");
            let old = fs::read(&secret).expect("a file");

            let (running, mut client) = home.start_with(source(keys.clone())).await;
            client
                .run("before", "h", &asking(&predictions("h", 2)))
                .await;
            let before = blobs(home.0.path());
            let mut twice = client.with_id("rotate-1");
            let mut after = Vec::new();
            for _ in 0..2 {
                let request = twice.request(wire::RotateHoldoutKeyRequest {});
                let reply = twice.inner.rotate_holdout_key(request).await;
                assert_eq!(reply.expect("an operator").into_inner().holdouts, 2);
                after.push(blobs(home.0.path()).len() - before.len());
            }
            assert_eq!(after, [2, 2], "a repeat rotates nothing");
            client
                .run("after", "other", &judged(&predictions("other", 20)))
                .await;
            running.stop().await.expect("stops");

            match &holdout_key {
                None => assert_ne!(fs::read(&secret).expect("a file"), old),
                Some(_) => {
                    assert!(!secret.exists(), "no key of a holdout is on the disk");
                    assert!(home.0.path().join("secrets/holdouts.wrapped").exists());
                }
            }
            let (running, mut client) = home.start_with(source(keys)).await;
            client
                .run("later", "h", &judged(&predictions("h", 20)))
                .await;
            running.stop().await.expect("stops");
        }
    });
}

#[test]
fn a_blob_in_the_place_of_another_does_not_open() {
    block_on(async {
        let home = Home::new();
        let (running, mut client) = home.start().await;
        for name in ["a", "b"] {
            client.put_default(name).await;
        }
        let blobs = blobs(home.0.path());
        assert_eq!(blobs.len(), 2);
        // Addressed by digest: a swapped blob is found before it is decrypted.
        let kept = fs::read(&blobs[0]).expect("readable");
        fs::write(&blobs[0], fs::read(&blobs[1]).expect("readable")).expect("writable");
        fs::write(&blobs[1], kept).expect("writable");
        running.stop().await.expect("stops");
        let message = home.refusal(home.with(KeySource::default())).await;
        assert!(message.contains("damaged"), "{message}");
    });
}

fn blobs(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![data.join("blobs")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}
