//! AWS: an endpoint that recomputes every SigV4 signature, decrypts under AES-256-GCM with the
//! encryption context, and signs with Ed25519.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::EncodePublicKey as _;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::SECRET;
use crate::child::Case;
use crate::cloud::{Asked, Reply, Server, Trouble, Troubles, json as reply, names, open, seal};
use crate::every::Cloud;

const KEY: &str = "alias/lab";
const SIGNER: &str = "arn:aws:kms:eu-west-3:111122223333:key/signer";
const ACCESS_KEY: &str = "AKIDEXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SESSION: &str = "a session of the role";

/// The cloud's side of things.
#[derive(Default)]
struct Aws {
    troubles: Troubles,
    session: Option<&'static str>,
}

impl Aws {
    fn cloud<'l>(&'l self, server: &'l Server) -> Cloud<'l> {
        Cloud {
            provider: "aws",
            server,
            troubles: &self.troubles,
            caller: caller(server),
            key: KEY,
        }
    }

    fn answer(&self, asked: &Asked) -> Reply {
        if let Err(problem) = signed(asked, self.session) {
            return refusal("InvalidSignatureException", &problem);
        }
        let trouble = self.troubles.next();
        match trouble {
            Some(Trouble::Silence) => return None,
            Some(Trouble::Throttled) => return refusal("ThrottlingException", "Rate exceeded"),
            Some(Trouble::Expired) => {
                return refusal("ExpiredTokenException", "The security token is expired");
            }
            Some(Trouble::Disabled) => return refusal("DisabledException", "key/lab is disabled."),
            _ => {}
        }
        let request = asked.json();
        let operation = asked
            .header("x-amz-target")
            .trim_start_matches("TrentService.")
            .to_owned();
        let bytes = |field: &str| {
            STANDARD
                .decode(request[field].as_str().unwrap_or_default())
                .expect("base64")
        };
        // Sorted by serde_json's map; an absent context is null.
        let context = request["EncryptionContext"].to_string();
        let signer = SigningKey::from_bytes(&[9; 32]);
        match operation.as_str() {
            "Encrypt" => {
                let sealed = seal(&bytes("Plaintext"), context.as_bytes());
                reply(
                    200,
                    &json!({"KeyId": KEY, "CiphertextBlob": STANDARD.encode(sealed)}),
                )
            }
            "Decrypt" => {
                assert_eq!(request["KeyId"], KEY);
                let Some(mut plaintext) = open(&bytes("CiphertextBlob"), context.as_bytes()) else {
                    return refusal(
                        "InvalidCiphertextException",
                        "the ciphertext or its context is not ours",
                    );
                };
                plaintext.truncate(if trouble == Some(Trouble::Short) {
                    31
                } else {
                    99
                });
                reply(
                    200,
                    &json!({"KeyId": KEY, "Plaintext": STANDARD.encode(plaintext)}),
                )
            }
            "GetPublicKey" if trouble == Some(Trouble::OtherKind) => reply(
                200,
                &json!({"PublicKey": STANDARD.encode(b"0Y0\x13 not Ed25519")}),
            ),
            "GetPublicKey" => {
                let der = signer.verifying_key().to_public_key_der().expect("SPKI");
                reply(
                    200,
                    &json!({"PublicKey": STANDARD.encode(der.as_bytes()), "KeySpec": "ECC_NIST_EDWARDS25519"}),
                )
            }
            "Sign" => {
                assert_eq!(request["SigningAlgorithm"], "ED25519_SHA_512");
                assert_eq!(request["MessageType"], "RAW");
                let mut signature = signer.sign(&bytes("Message")).to_bytes();
                signature[0] ^= u8::from(trouble == Some(Trouble::Corrupt));
                reply(200, &json!({"Signature": STANDARD.encode(signature)}))
            }
            other => refusal("UnknownOperationException", other),
        }
    }

    async fn start(self) -> (Arc<Self>, Server) {
        let aws = Arc::new(self);
        let server = Server::start({
            let aws = aws.clone();
            move |asked| aws.answer(&asked)
        });
        (aws.clone(), server.await)
    }
}

fn refusal(code: &str, message: &str) -> Reply {
    reply(400, &json!({"__type": code, "message": message}))
}

/// Recomputes Signature Version 4 (AWS General Reference, "Create a signed AWS API request").
fn signed(asked: &Asked, session: Option<&str>) -> Result<(), String> {
    let fields: BTreeMap<&str, &str> = asked
        .header("authorization")
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or("not signed")?
        .split(", ")
        .filter_map(|field| field.split_once('='))
        .collect();
    let scope = fields["Credential"]
        .strip_prefix(ACCESS_KEY)
        .ok_or("unknown access key")?
        .trim_start_matches('/');
    if session.unwrap_or_default() != asked.header("x-amz-security-token") {
        return Err("not the session's token".into());
    }
    let names = fields["SignedHeaders"];
    if !["host", "x-amz-date", "x-amz-target"]
        .iter()
        .all(|name| names.split(';').any(|signed| signed == *name))
    {
        return Err(format!("only {names} are signed"));
    }
    let headers: String = names
        .split(';')
        .map(|name| format!("{name}:{}\n", asked.header(name).trim()))
        .collect();
    let body = hex::encode(Sha256::digest(&asked.body));
    let canonical = format!(
        "{}\n{}\n\n{headers}\n{names}\n{body}",
        asked.method,
        asked.uri.path()
    );
    let canonical = hex::encode(Sha256::digest(canonical));
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope}\n{canonical}",
        asked.header("x-amz-date")
    );
    let key = scope
        .split('/')
        .fold(format!("AWS4{SECRET_KEY}").into_bytes(), |key, part| {
            hmac(&key, part)
        });
    let right = hex::encode(hmac(&key, &to_sign)) == fields["Signature"];
    if right {
        Ok(())
    } else {
        Err("The request signature we calculated does not match".into())
    }
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    Hmac::<Sha256>::new_from_slice(key)
        .expect("any length")
        .chain_update(text)
        .finalize()
        .into_bytes()
        .to_vec()
}

/// A caller with credentials in its environment.
fn caller(server: &Server) -> Case {
    Case::new("aws")
        .at(&server.url())
        .with("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .with("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .with("AWS_REGION", "eu-west-1")
}

#[tokio::test]
async fn what_is_wrapped_is_unwrapped_under_the_same_context_only() {
    let (_, server) = Aws::default().start().await;
    for context in ["", "lab=a,stage=prod"] {
        let caller = caller(&server).bound_to(context);
        let key = caller.wrap(KEY, &SECRET).await.expect("wrapped");
        assert_eq!(caller.unwrap(&key).await.expect("unwrapped"), SECRET);
        let error = caller
            .bound_to("lab=b")
            .unwrap(&key)
            .await
            .expect_err("another context");
        names(
            &error,
            &[
                "aws KMS, unwrap",
                KEY,
                &server.url(),
                "InvalidCiphertextException",
            ],
        );
    }
}

#[tokio::test]
async fn the_kms_signs_and_the_signature_verifies() {
    let (aws, server) = Aws::default().start().await;
    // No region in the environment: the ARN has it.
    let caller = caller(&server).with("AWS_REGION", "");
    let (public, signature) = caller.sign(SIGNER, b"checkpoint").await.expect("signed");
    let public = VerifyingKey::from_bytes(&public).expect("a point");
    public
        .verify_strict(b"checkpoint", &Signature::from_bytes(&signature))
        .expect("valid");

    aws.troubles.are([Trouble::Corrupt; 2]);
    let error = caller
        .sign(SIGNER, b"checkpoint")
        .await
        .expect_err("corrupt");
    names(&error, &["aws KMS, sign", SIGNER, "does not verify"]);

    aws.troubles.are([Trouble::OtherKind]);
    let error = caller
        .sign(SIGNER, b"checkpoint")
        .await
        .expect_err("another kind");
    names(
        &error,
        &[
            "public key",
            "not an Ed25519 public key",
            "ECC_NIST_EDWARDS25519",
        ],
    );
}

#[tokio::test]
async fn a_throttled_call_is_tried_again_and_at_last_told() {
    let (aws, server) = Aws::default().start().await;
    let cloud = aws.cloud(&server);
    cloud
        .throttles(2, "ThrottlingException: Rate exceeded")
        .await;
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_service() {
    let (aws, server) = Aws::default().start().await;
    let cloud = aws.cloud(&server);
    let (disabled, expired) = (
        "DisabledException: key/lab is disabled.",
        "ExpiredTokenException: The security token is expired",
    );
    cloud.refuses(disabled, expired).await;
}

#[tokio::test]
async fn a_silent_endpoint_ends_at_the_deadline() {
    let (aws, server) = Aws::default().start().await;
    let cloud = aws.cloud(&server);
    cloud.is_silent().await;
}

#[tokio::test]
async fn the_deadline_covers_the_search_for_credentials() {
    let (_, server) = Aws::default().start().await;
    let silent = Server::start(|_| None).await;
    let pod = Case::new("aws")
        .at(&server.url())
        .with("AWS_REGION", "eu-west-1")
        .with("AWS_CONTAINER_CREDENTIALS_FULL_URI", silent.url())
        .within(Duration::from_secs(1));
    let error = pod.wrap(KEY, &SECRET).await.expect_err("silence");
    names(
        &error,
        &["aws KMS, wrap", &server.url(), "no answer within 1s"],
    );
}

#[tokio::test]
async fn wrong_or_absent_credentials_are_told() {
    let (_, server) = Aws::default().start().await;
    let error = caller(&server)
        .with("AWS_SECRET_ACCESS_KEY", "another")
        .wrap(KEY, &SECRET)
        .await
        .expect_err("wrong");
    names(&error, &["InvalidSignatureException", "does not match"]);
    let nobody = Case::new("aws")
        .at(&server.url())
        .with("AWS_REGION", "eu-west-1")
        .with("AWS_EC2_METADATA_DISABLED", "true");
    let error = nobody.wrap(KEY, &SECRET).await.expect_err("absent");
    names(&error, &["aws KMS, wrap", &server.url(), "credential"]);
}

#[tokio::test]
async fn a_role_is_assumed_by_web_identity_at_its_own_endpoint() {
    let sts = Server::start(|asked| {
        let body = String::from_utf8_lossy(&asked.body).into_owned();
        assert!(body.contains("Action=AssumeRoleWithWebIdentity") && body.contains("WebIdentityToken=projected"), "{body}");
        let xml = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/lab/s</Arn>\
             <AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>{ACCESS_KEY}</AccessKeyId>\
             <SecretAccessKey>{SECRET_KEY}</SecretAccessKey><SessionToken>{SESSION}</SessionToken>\
             <Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
             </AssumeRoleWithWebIdentityResponse>"
        );
        Some(([("content-type", "text/xml")], xml).into_response())
    })
    .await;
    let (_, kms) = Aws {
        session: Some(SESSION),
        ..Aws::default()
    }
    .start()
    .await;
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, "projected").expect("written");
    let pod = Case::new("aws")
        .at(&kms.url())
        .with("AWS_REGION", "eu-west-1")
        .with("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/lab")
        .with(
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            token.to_str().expect("UTF-8"),
        )
        .with("AWS_ENDPOINT_URL_STS", sts.url());
    pod.wrap(KEY, &SECRET).await.expect("wrapped");
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_its_file_is_given() {
    let aws = Aws::default();
    let server = Server::start_tls(move |asked| aws.answer(&asked)).await;
    caller(&server)
        .trusting(server.ca_file())
        .wrap(KEY, &SECRET)
        .await
        .expect("wrapped");
    let error = caller(&server)
        .wrap(KEY, &SECRET)
        .await
        .expect_err("unknown authority");
    names(&error, &["aws KMS", &server.url(), "UnknownIssuer"]);
    let error = caller(&server)
        .trusting("/nowhere/ca.pem".into())
        .wrap(KEY, &SECRET)
        .await
        .expect_err("no file");
    names(&error, &["the CA file /nowhere/ca.pem", "No such file"]);
}

#[tokio::test]
async fn plain_http_beyond_loopback_is_stopped_whoever_asked_for_it() {
    let (_, server) = Aws::default().start().await;
    let plain = caller(&server)
        .at_default()
        .with("AWS_ENDPOINT_URL_KMS", "http://192.0.2.1");
    let error = plain.wrap(KEY, &SECRET).await.expect_err("plain");
    names(&error, &["http://192.0.2.1", "https"]);
}

#[tokio::test]
async fn a_key_id_without_its_ciphertext_cannot_be_unwrapped() {
    let (_, server) = Aws::default().start().await;
    let error = caller(&server)
        .unwrap(KEY)
        .await
        .expect_err("nothing to unwrap");
    names(&error, &["has no ciphertext", "keys wrap"]);
}
