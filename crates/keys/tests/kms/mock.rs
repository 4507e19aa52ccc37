//! The mock wraps and signs for real.

use ed25519_dalek::{Signature, VerifyingKey};
use evidenceos_keys::kms::{KeyRef, Kms, KmsSettings, Provider};

use crate::SECRET;

fn mock(key: [u8; 32], context: &str) -> Kms {
    Kms::new(KmsSettings {
        mock_key: Some(key.into()),
        context: context.parse().expect("a context"),
        ..KmsSettings::new(Provider::Mock)
    })
    .expect("a mock")
}

#[tokio::test]
async fn without_a_key_id_the_mock_key_is_the_seed() {
    let key = KeyRef {
        resource: "mock".into(),
        ciphertext: None,
    };
    assert_eq!(
        *mock([3; 32], "").unwrap(&key).await.expect("a seed"),
        [3; 32]
    );
}

#[tokio::test]
async fn what_the_mock_wraps_only_the_same_key_name_and_context_unwrap() {
    let wrapped = mock([3; 32], "lab=a")
        .wrap("holdouts", &SECRET)
        .await
        .expect("wrapped");
    let wrapped: KeyRef = wrapped.to_string().parse().expect("a key id");
    assert_eq!(
        *mock([3; 32], "lab=a")
            .unwrap(&wrapped)
            .await
            .expect("unwrapped"),
        SECRET
    );

    let renamed = KeyRef {
        resource: "others".into(),
        ..wrapped.clone()
    };
    let cut = KeyRef {
        ciphertext: Some(vec![1, 2, 3]),
        ..wrapped.clone()
    };
    for (what, kms, key) in [
        ("another key", mock([4; 32], "lab=a"), &wrapped),
        ("another context", mock([3; 32], "lab=b"), &wrapped),
        ("no context", mock([3; 32], ""), &wrapped),
        ("another key name", mock([3; 32], "lab=a"), &renamed),
        ("too short", mock([3; 32], "lab=a"), &cut),
    ] {
        let error = kms.unwrap(key).await.expect_err(what).to_string();
        assert!(
            error.starts_with("mock KMS, unwrap with "),
            "{what}: {error}"
        );
    }
}

#[tokio::test]
async fn a_wrapped_key_never_looks_the_same_twice() {
    let kms = mock([3; 32], "");
    let (one, two) = (kms.wrap("k", &SECRET).await, kms.wrap("k", &SECRET).await);
    assert_ne!(one.expect("wrapped"), two.expect("wrapped"));
}

#[tokio::test]
async fn the_mock_signs_inside_as_a_cloud_does() {
    let key = mock([3; 32], "")
        .signing_key("remote")
        .await
        .expect("a key");
    let signature = key.clone().sign(b"checkpoint").await.expect("signed");
    let public = VerifyingKey::from_bytes(&key.public_key()).expect("a point");
    public
        .verify_strict(b"checkpoint", &Signature::from_bytes(&signature))
        .expect("valid");
    assert_eq!(key.resource(), "remote");
}

#[tokio::test]
async fn a_signing_key_can_cross_tasks() {
    let key = mock([3; 32], "")
        .signing_key("remote")
        .await
        .expect("a key");
    let signing = tokio::spawn(async move { key.sign(b"from another task").await });
    signing.await.expect("no panic").expect("signed");
}
