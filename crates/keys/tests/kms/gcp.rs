//! GCP: a REST endpoint that verifies the service account's RS256 token, decrypts with the
//! authenticated data, signs with Ed25519, and keeps the CRC32C rules of the service.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::pkcs8::EncodePublicKey as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SECRET;
use crate::child::Case;
use crate::cloud::{Asked, Reply, Server, Trouble, Troubles, json as reply, open, seal};
use crate::every::Cloud;

const KEY: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/lab";
const SIGNER: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/signer/cryptoKeyVersions/1";
const ACCOUNT: &str = "lab@p.iam.gserviceaccount.example";

/// The account's key, and one that the cloud does not know.
static ACCOUNT_KEY: LazyLock<KeyPair> =
    LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).expect("a key"));
static STRANGER: LazyLock<KeyPair> =
    LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).expect("a key"));

fn answer(asked: &Asked, troubles: &Troubles) -> Reply {
    if let Err(problem) = authorised(asked) {
        return refusal(401, "UNAUTHENTICATED", problem);
    }
    let trouble = troubles.next();
    match trouble {
        Some(Trouble::Silence) => return None,
        Some(Trouble::Throttled) => {
            return refusal(429, "RESOURCE_EXHAUSTED", "quota of the minute");
        }
        Some(Trouble::Expired) => return refusal(401, "UNAUTHENTICATED", "the token is expired"),
        Some(Trouble::Disabled) => {
            return refusal(
                400,
                "FAILED_PRECONDITION",
                "lab is not enabled, current state is: DISABLED.",
            );
        }
        _ => {}
    }
    let request = asked.json();
    let field = |name: &str| {
        let bytes = STANDARD
            .decode(request[name].as_str().unwrap_or_default())
            .expect("base64");
        let sum = crc32c::crc32c(&bytes).to_string();
        let sent = &request[format!("{name}Crc32c")];
        assert!(
            bytes.is_empty() || *sent == Value::String(sum),
            "{name} comes with its CRC32C: {request}"
        );
        bytes
    };
    let signer = SigningKey::from_bytes(&[9; 32]);
    let path = asked.uri.path();
    // What the service vouches for, unless the trouble is that it does not.
    let vouched = |name: &str, value: &[u8], shown: Value| {
        let damage = u32::from(trouble == Some(Trouble::Corrupt));
        let sum = (crc32c::crc32c(value) ^ damage).to_string();
        let sum = if trouble == Some(Trouble::NoChecksum) {
            Value::Null
        } else {
            sum.into()
        };
        let verified = trouble != Some(Trouble::NoChecksum);
        reply(
            200,
            &json!({
                name: shown, format!("{name}Crc32c"): sum, "verifiedPlaintextCrc32c": verified,
                "verifiedAdditionalAuthenticatedDataCrc32c": verified, "verifiedDataCrc32c": verified,
            }),
        )
    };
    if path == format!("/v1/{KEY}:encrypt") {
        let sealed = seal(&field("plaintext"), &field("additionalAuthenticatedData"));
        vouched("ciphertext", &sealed, STANDARD.encode(&sealed).into())
    } else if path == format!("/v1/{KEY}:decrypt") {
        let Some(mut plaintext) = open(&field("ciphertext"), &field("additionalAuthenticatedData"))
        else {
            return refusal(
                400,
                "INVALID_ARGUMENT",
                "Decryption failed: verify that 'name' refers to the correct CryptoKey.",
            );
        };
        plaintext.truncate(if trouble == Some(Trouble::Short) {
            31
        } else {
            99
        });
        vouched("plaintext", &plaintext, STANDARD.encode(&plaintext).into())
    } else if path == format!("/v1/{SIGNER}/publicKey") {
        let pem = signer
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .expect("PEM");
        let pem = if trouble == Some(Trouble::OtherKind) {
            pem.replace("MCowBQYDK2Vw", "MCowBQYDK2Vu")
        } else {
            pem
        };
        vouched("pem", pem.as_bytes(), pem.as_str().into())
    } else if path == format!("/v1/{SIGNER}:asymmetricSign") {
        let mut signature = signer.sign(&field("data")).to_bytes();
        // Wrong although its checksum is right.
        signature[0] ^= u8::from(trouble == Some(Trouble::Short));
        vouched("signature", &signature, STANDARD.encode(signature).into())
    } else {
        refusal(404, "NOT_FOUND", path)
    }
}

fn refusal(status: u16, name: &str, message: &str) -> Reply {
    reply(
        status,
        &json!({"error": {"code": status, "status": name, "message": message}}),
    )
}

/// A self-signed token of the account (RFC 7519, RS256), for this service and not yet expired.
fn authorised(asked: &Asked) -> Result<(), &'static str> {
    let token = asked
        .header("authorization")
        .strip_prefix("Bearer ")
        .ok_or("no bearer token")?;
    let (signed, signature) = token.rsplit_once('.').ok_or("no signature")?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
    let key = UnparsedPublicKey::new(
        &RSA_PKCS1_2048_8192_SHA256,
        ACCOUNT_KEY.public_key().as_ref(),
    );
    key.verify(signed.as_bytes(), &decode(signature))
        .map_err(|_| "not the account's signature")?;
    let claims = signed.split_once('.').ok_or("no claims")?.1;
    let claims: Value = serde_json::from_slice(&decode(claims)).map_err(|_| "no claims")?;
    let scope = claims["scope"]
        .as_str()
        .unwrap_or_default()
        .contains("cloud-platform");
    let audience = claims["aud"]
        .as_str()
        .unwrap_or_default()
        .contains("cloudkms");
    if claims["iss"] == ACCOUNT && (scope || audience) {
        Ok(())
    } else {
        Err("not for this service")
    }
}

struct Lab {
    troubles: Arc<Troubles>,
    server: Server,
    home: TempDir,
}

impl Lab {
    async fn start() -> Self {
        let troubles = Arc::new(Troubles::default());
        let of = troubles.clone();
        let server = Server::start(move |asked| answer(&asked, &of)).await;
        Self {
            troubles,
            server,
            home: tempfile::tempdir().expect("a directory"),
        }
    }

    fn caller(&self) -> Case {
        self.caller_with(&ACCOUNT_KEY)
    }

    fn caller_with(&self, key: &KeyPair) -> Case {
        let der: Pkcs8V1Der<'static> = key.as_der().expect("PKCS #8");
        let body = STANDARD.encode(der.as_ref());
        let account = json!({
            "type": "service_account", "client_email": ACCOUNT, "private_key_id": "1", "project_id": "p",
            "private_key": format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"),
        });
        let path = self.home.path().join("account.json");
        std::fs::write(&path, account.to_string()).expect("written");
        let path = path.to_str().expect("UTF-8");
        Case::new("gcp")
            .at(&self.server.url())
            .with("GOOGLE_APPLICATION_CREDENTIALS", path)
    }

    fn cloud(&self) -> Cloud<'_> {
        Cloud {
            provider: "gcp",
            server: &self.server,
            troubles: &self.troubles,
            caller: self.caller(),
            key: KEY,
        }
    }

    fn tells(&self, error: &str, parts: &[&str]) {
        self.cloud().tells(error, parts);
    }
}

#[tokio::test]
async fn what_is_wrapped_is_unwrapped_with_the_same_authenticated_data_only() {
    let lab = Lab::start().await;
    for context in ["", "lab=a,stage=prod"] {
        let caller = lab.caller().bound_to(context);
        let key = caller.wrap(KEY, &SECRET).await.expect("wrapped");
        assert_eq!(caller.unwrap(&key).await.expect("unwrapped"), SECRET);
        let error = caller
            .bound_to("lab=b")
            .unwrap(&key)
            .await
            .expect_err("another context");
        lab.tells(
            &error,
            &["unwrap", KEY, "INVALID_ARGUMENT: Decryption failed"],
        );
    }
}

#[tokio::test]
async fn a_checksum_that_is_wrong_or_absent_stops_every_operation() {
    let lab = Lab::start().await;
    let caller = lab.caller();
    let key = caller.wrap(KEY, &SECRET).await.expect("wrapped");
    for trouble in [Trouble::Corrupt, Trouble::NoChecksum] {
        lab.troubles.are([trouble]);
        lab.tells(
            &caller.unwrap(&key).await.expect_err("unwrap"),
            &["the plaintext has no CRC32C"],
        );
        lab.troubles.are([trouble]);
        lab.tells(
            &caller.wrap(KEY, &SECRET).await.expect_err("wrap"),
            &["CRC32C", "damaged"],
        );
        lab.troubles.are([trouble]);
        lab.tells(
            &caller.sign(SIGNER, b"m").await.expect_err("public key"),
            &["the public key has no CRC32C"],
        );
    }
}

#[tokio::test]
async fn the_kms_signs_and_the_signature_verifies() {
    let lab = Lab::start().await;
    let caller = lab.caller();
    let (public, signature) = caller.sign(SIGNER, b"checkpoint").await.expect("signed");
    let public = VerifyingKey::from_bytes(&public).expect("a point");
    public
        .verify_strict(b"checkpoint", &Signature::from_bytes(&signature))
        .expect("valid");

    lab.troubles.are([Trouble::Short; 2]);
    let error = caller
        .sign(SIGNER, b"checkpoint")
        .await
        .expect_err("a wrong signature");
    lab.tells(&error, &["sign", SIGNER, "does not verify"]);

    lab.troubles.are([Trouble::OtherKind]);
    let error = caller
        .sign(SIGNER, b"checkpoint")
        .await
        .expect_err("another kind");
    lab.tells(&error, &["not an Ed25519 public key", "EC_SIGN_ED25519"]);
}

#[tokio::test]
async fn a_throttled_call_is_tried_again_and_at_last_told() {
    let lab = Lab::start().await;
    let cloud = lab.cloud();
    cloud
        .throttles(2, "RESOURCE_EXHAUSTED: quota of the minute")
        .await;
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_service() {
    let lab = Lab::start().await;
    let cloud = lab.cloud();
    let (disabled, expired) = (
        "FAILED_PRECONDITION: lab is not enabled",
        "UNAUTHENTICATED: the token is expired",
    );
    cloud.refuses(disabled, expired).await;
}

#[tokio::test]
async fn a_silent_endpoint_ends_at_the_deadline() {
    let lab = Lab::start().await;
    let cloud = lab.cloud();
    cloud.is_silent().await;
}

#[tokio::test]
async fn wrong_or_absent_credentials_are_told() {
    let lab = Lab::start().await;
    let error = lab
        .caller_with(&STRANGER)
        .wrap(KEY, &SECRET)
        .await
        .expect_err("another key");
    lab.tells(&error, &["UNAUTHENTICATED: not the account's signature"]);
    let error = lab
        .caller()
        .with("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
        .wrap(KEY, &SECRET)
        .await
        .expect_err("no file");
    lab.tells(&error, &["/nowhere.json", "GOOGLE_APPLICATION_CREDENTIALS"]);
}

#[tokio::test]
async fn a_key_id_without_its_ciphertext_cannot_be_unwrapped() {
    let lab = Lab::start().await;
    lab.tells(
        &lab.caller()
            .unwrap(KEY)
            .await
            .expect_err("nothing to unwrap"),
        &["has no ciphertext", "keys wrap"],
    );
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_the_sdks_own_variable_names_it() {
    let troubles = Troubles::default();
    let server = Server::start_tls(move |asked| answer(&asked, &troubles)).await;
    let lab = Lab {
        server,
        ..Lab::start().await
    };
    let ca = lab.server.ca_file();
    let caller = lab
        .caller()
        .with("SSL_CERT_FILE", ca.to_str().expect("UTF-8"));
    caller.wrap(KEY, &SECRET).await.expect("wrapped");
    let error = lab
        .caller()
        .wrap(KEY, &SECRET)
        .await
        .expect_err("unknown authority");
    lab.tells(&error, &["UnknownIssuer"]);
}
