//! Azure: a vault over TLS that challenges first, takes the token that its own authority gave, and
//! wraps with real RSA-OAEP-256. The credentials are tried each in its own way.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey,
};
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::SECRET;
use crate::child::Case;
use crate::cloud::{Asked, Reply, Server, Trouble, Troubles, json as reply, names};
use crate::every::Cloud;

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const KEY: &str = "https://lab.vault.azure.net/keys/lab/0123456789abcdef";
const TOKEN: &str = "the vault's token";

static RSA: LazyLock<PrivateDecryptingKey> =
    LazyLock::new(|| PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("a key"));

fn answer(asked: &Asked, troubles: &Troubles) -> Reply {
    let path = asked.uri.path();
    if path == format!("/{TENANT}/oauth2/v2.0/token") {
        return token(&String::from_utf8_lossy(&asked.body));
    }
    if path == "/msi" {
        let known = asked.header("x-identity-header") == "the machine's"
            && asked
                .uri
                .query()
                .unwrap_or_default()
                .contains("vault.azure.net");
        return if known {
            reply(
                200,
                &json!({"access_token": TOKEN, "expires_on": "4102444800", "resource": "https://vault.azure.net", "token_type": "Bearer"}),
            )
        } else {
            reply(400, &json!({"error": "invalid_request"}))
        };
    }
    if asked.header("authorization") != format!("Bearer {TOKEN}") {
        assert!(
            asked.body.is_empty(),
            "nothing is shown to a vault that has not challenged"
        );
        return challenge("the request has no token");
    }
    let trouble = troubles.next();
    match trouble {
        Some(Trouble::Silence) => return None,
        Some(Trouble::Throttled) => return refusal(429, "Throttled", "too many requests"),
        Some(Trouble::Expired) => return challenge("the token is expired"),
        Some(Trouble::Disabled) => {
            return refusal(
                403,
                "Forbidden",
                "Operation unwrapKey is not allowed on a disabled key.",
            );
        }
        _ => {}
    }
    let request = asked.json();
    assert_eq!(request["alg"], "RSA-OAEP-256");
    let value = URL_SAFE_NO_PAD
        .decode(request["value"].as_str().unwrap_or_default())
        .expect("base64url");
    let mut room = [0; 256];
    let result = match path {
        "/keys/lab/0123456789abcdef/wrapkey" | "/keys/lab//wrapkey" => {
            let key = OaepPublicEncryptingKey::new(RSA.public_key()).expect("OAEP");
            key.encrypt(&OAEP_SHA256_MGF1SHA256, &value, &mut room, None)
                .expect("encrypted")
        }
        "/keys/lab/0123456789abcdef/unwrapkey" => {
            let key = OaepPrivateDecryptingKey::new(RSA.clone()).expect("OAEP");
            match key.decrypt(&OAEP_SHA256_MGF1SHA256, &value, &mut room, None) {
                Ok(plaintext) if trouble == Some(Trouble::Short) => &mut plaintext[1..],
                Ok(plaintext) => plaintext,
                Err(_) => return refusal(400, "BadParameter", "the value could not be decrypted"),
            }
        }
        _ => return refusal(404, "KeyNotFound", path),
    };
    reply(
        200,
        &json!({"kid": KEY, "value": URL_SAFE_NO_PAD.encode(result)}),
    )
}

/// Entra's token endpoint (RFC 6749 §4.4; RFC 7523 §2.2 for a workload).
fn token(form: &str) -> Reply {
    let secret = form.contains("client_secret=the+lab%27s+secret");
    let workload = form.contains("client_assertion=projected") && form.contains("jwt-bearer");
    let scope = form.contains("scope=https%3A%2F%2Fvault.azure.net%2F.default");
    if form.contains("client_id=lab") && scope && (secret || workload) {
        reply(
            200,
            &json!({"token_type": "Bearer", "expires_in": 3600, "access_token": TOKEN}),
        )
    } else {
        reply(
            401,
            &json!({"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}),
        )
    }
}

fn challenge(message: &str) -> Reply {
    let challenge = format!(
        "Bearer authorization=\"https://login.example/{TENANT}\", resource=\"https://vault.azure.net\""
    );
    let body = json!({"error": {"code": "Unauthorized", "message": message}}).to_string();
    let headers = [
        ("www-authenticate", challenge.as_str()),
        ("content-type", "application/json"),
    ];
    Some((axum::http::StatusCode::UNAUTHORIZED, headers, body).into_response())
}

fn refusal(status: u16, code: &str, message: &str) -> Reply {
    reply(
        status,
        &json!({"error": {"code": code, "message": message}}),
    )
}

struct Lab {
    troubles: Arc<Troubles>,
    server: Server,
}

impl Lab {
    async fn start() -> Self {
        let troubles = Arc::new(Troubles::default());
        let of = troubles.clone();
        let server = Server::start_tls(move |asked| answer(&asked, &of)).await;
        Self { troubles, server }
    }

    /// Somebody without credentials.
    fn nobody(&self) -> Case {
        Case::new("azure")
            .at(&self.server.url())
            .trusting(self.server.ca_file())
            .with("AZURE_AUTHORITY_HOST", self.server.url())
    }

    fn caller(&self) -> Case {
        self.nobody()
            .with("AZURE_TENANT_ID", TENANT)
            .with("AZURE_CLIENT_ID", "lab")
            .with("AZURE_CLIENT_SECRET", "the lab's secret")
    }

    fn cloud(&self) -> Cloud<'_> {
        Cloud {
            provider: "azure",
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
async fn what_is_wrapped_is_unwrapped() {
    let lab = Lab::start().await;
    let key = lab.caller().wrap(KEY, &SECRET).await.expect("wrapped");
    assert_eq!(lab.caller().unwrap(&key).await.expect("unwrapped"), SECRET);
    let other = lab
        .caller()
        .unwrap(&key.replace("cdef|", "0000|"))
        .await
        .expect_err("another version");
    lab.tells(&other, &["unwrap", "KeyNotFound"]);
}

#[tokio::test]
async fn a_key_named_without_a_version_is_wrapped_under_the_version_that_the_vault_used() {
    let lab = Lab::start().await;
    let key = lab
        .caller()
        .wrap("https://lab.vault.azure.net/keys/lab", &SECRET)
        .await
        .expect("wrapped");
    assert!(key.starts_with(&format!("{KEY}|")), "{key}");
    assert_eq!(lab.caller().unwrap(&key).await.expect("unwrapped"), SECRET);
}

#[tokio::test]
async fn a_pod_and_a_machine_are_known_by_their_own_identities() {
    let lab = Lab::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, "projected").expect("written");
    let pod = lab
        .nobody()
        .with("AZURE_TENANT_ID", TENANT)
        .with("AZURE_CLIENT_ID", "lab")
        .with("AZURE_FEDERATED_TOKEN_FILE", token.to_str().expect("UTF-8"));
    pod.wrap(KEY, &SECRET).await.expect("by workload identity");
    let machine = lab
        .nobody()
        .with("IDENTITY_ENDPOINT", format!("{}/msi", lab.server.url()))
        .with("IDENTITY_HEADER", "the machine's");
    machine
        .wrap(KEY, &SECRET)
        .await
        .expect("by managed identity");
}

#[tokio::test]
async fn a_throttled_call_is_tried_again_and_at_last_told() {
    let lab = Lab::start().await;
    let cloud = lab.cloud();
    cloud.throttles(1, "too many requests").await;
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_service() {
    let lab = Lab::start().await;
    let cloud = lab.cloud();
    let (disabled, expired) = ("not allowed on a disabled key", "the token is expired");
    cloud.refuses(disabled, expired).await;
}

#[tokio::test]
async fn a_silent_endpoint_ends_at_the_deadline() {
    let lab = Lab::start().await;
    let cloud = lab.cloud();
    cloud.is_silent().await;
}

#[tokio::test]
async fn wrong_credentials_and_an_unknown_authority_are_told() {
    let lab = Lab::start().await;
    let error = lab
        .caller()
        .with("AZURE_CLIENT_SECRET", "another")
        .wrap(KEY, &SECRET)
        .await
        .expect_err("a wrong secret");
    lab.tells(&error, &["AADSTS7000215"]);
    let strangers = Case::new("azure")
        .at(&lab.server.url())
        .with("AZURE_TENANT_ID", TENANT);
    let strangers = strangers
        .with("AZURE_CLIENT_ID", "lab")
        .with("AZURE_CLIENT_SECRET", "the lab's secret");
    let error = strangers
        .wrap(KEY, &SECRET)
        .await
        .expect_err("an unknown authority");
    lab.tells(&error, &["UnknownIssuer"]);
}

#[tokio::test]
async fn signing_inside_says_that_azure_has_no_ed25519() {
    let lab = Lab::start().await;
    let error = lab
        .caller()
        .sign(KEY, b"checkpoint")
        .await
        .expect_err("no Ed25519");
    lab.tells(&error, &["has no Ed25519 keys", "keys wrap"]);
}

#[tokio::test]
async fn a_key_that_is_no_https_url_is_refused() {
    let lab = Lab::start().await;
    for resource in ["lab", "http://lab.vault.azure.net/keys/lab/1"] {
        let error = lab
            .caller()
            .at_default()
            .wrap(resource, &SECRET)
            .await
            .expect_err(resource);
        names(&error, &["azure KMS", resource]);
    }
}
