//! Google Cloud KMS over its official SDK (REST). Every payload is sent with its CRC32C, and an answer without one is
//! not used.

use std::time::Duration;

use async_trait::async_trait;
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey as _;
use google_cloud_gax::exponential_backoff::ExponentialBackoffBuilder;
use google_cloud_gax::options::RequestOptionsBuilder as _;
use google_cloud_gax::retry_policy::{Aip194Strict, RetryPolicyExt as _};
use google_cloud_kms_v1::client::KeyManagementService;
use zeroize::Zeroizing;

use super::backend::{Backend, required};
use super::error::Fault;
use super::key_ref::KeyRef;
use super::settings::KmsSettings;

const DEFAULT_ENDPOINT: &str = "https://cloudkms.googleapis.com";

pub(super) struct Gcp {
    client: KeyManagementService,
    endpoint: String,
    /// The context's text; empty if there is none.
    aad: Vec<u8>,
    attempt: Duration,
}

impl Gcp {
    pub(super) async fn connect(settings: &KmsSettings) -> Result<Self, Fault> {
        let attempt = super::attempt_timeout(settings);
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_delay(Duration::from_millis(100))
            .with_maximum_delay(Duration::from_secs(5))
            .build()
            .map_err(|error| Fault::of(None, &error))?;
        let endpoint = settings.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT);
        let mut builder = KeyManagementService::builder()
            .with_retry_policy(
                Aip194Strict
                    .continue_on_too_many_requests()
                    .continue_on_client_timeout()
                    .with_attempt_limit(4),
            )
            .with_backoff_policy(backoff);
        if settings.endpoint.is_some() {
            builder = builder.with_endpoint(endpoint);
        }
        Ok(Self {
            client: builder
                .build()
                .await
                .map_err(|error| Fault::of(None, &error))?,
            endpoint: endpoint.into(),
            aad: settings.context.to_string().into_bytes(),
            attempt,
        })
    }
}

#[async_trait]
impl Backend for Gcp {
    fn endpoint(&self, _: &str) -> String {
        self.endpoint.clone()
    }

    async fn unwrap(
        &self,
        resource: &str,
        ciphertext: Option<&[u8]>,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let ciphertext = required(ciphertext)?.to_vec();
        // The SDK retries only idempotent requests, and counts no POST as one by itself. Decrypting
        // again changes nothing.
        let answer = self
            .client
            .decrypt()
            .set_name(resource)
            .set_ciphertext_crc32c(crc32c(&ciphertext))
            .set_ciphertext(ciphertext)
            .set_additional_authenticated_data_crc32c(crc32c(&self.aad))
            .set_additional_authenticated_data(self.aad.clone())
            .with_idempotency(true)
            .with_attempt_timeout(self.attempt)
            .send()
            .await
            .map_err(refused)?;
        checked(
            &answer.plaintext,
            answer.plaintext_crc32c,
            "the plaintext has no CRC32C or does not match it",
        )?;
        // Takes over the buffer if no other handle shares it, so that it is wiped.
        Ok(Zeroizing::new(Vec::from(answer.plaintext)))
    }

    async fn wrap(&self, resource: &str, secret: &[u8; 32]) -> Result<KeyRef, Fault> {
        let answer = self
            .client
            .encrypt()
            .set_name(resource)
            .set_plaintext(secret.to_vec())
            .set_plaintext_crc32c(crc32c(secret))
            .set_additional_authenticated_data_crc32c(crc32c(&self.aad))
            .set_additional_authenticated_data(self.aad.clone())
            .with_idempotency(true)
            .with_attempt_timeout(self.attempt)
            .send()
            .await
            .map_err(refused)?;
        if !answer.verified_plaintext_crc32c
            || !answer.verified_additional_authenticated_data_crc32c
        {
            return Err(Fault::Damaged(
                "the KMS did not confirm the CRC32C of the request",
            ));
        }
        checked(
            &answer.ciphertext,
            answer.ciphertext_crc32c,
            "the ciphertext has no CRC32C or does not match it",
        )?;
        Ok(KeyRef {
            resource: resource.into(),
            ciphertext: Some(answer.ciphertext.to_vec()),
        })
    }

    async fn public_key(&self, resource: &str) -> Result<VerifyingKey, Fault> {
        let answer = self
            .client
            .get_public_key()
            .set_name(resource)
            .with_attempt_timeout(self.attempt)
            .send()
            .await
            .map_err(refused)?;
        checked(
            answer.pem.as_bytes(),
            answer.pem_crc32c,
            "the public key has no CRC32C or does not match it",
        )?;
        VerifyingKey::from_public_key_pem(&answer.pem)
            .map_err(|error| Fault::KeyKind(error.to_string()))
    }

    async fn sign(&self, resource: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let answer = self
            .client
            .asymmetric_sign()
            .set_name(resource)
            .set_data(message.to_vec())
            .set_data_crc32c(crc32c(message))
            .with_idempotency(true)
            .with_attempt_timeout(self.attempt)
            .send()
            .await
            .map_err(refused)?;
        if !answer.verified_data_crc32c {
            return Err(Fault::Damaged(
                "the KMS did not confirm the CRC32C of the request",
            ));
        }
        checked(
            &answer.signature,
            answer.signature_crc32c,
            "the signature has no CRC32C or does not match it",
        )?;
        Ok(answer.signature.to_vec())
    }
}

fn crc32c(bytes: &[u8]) -> i64 {
    i64::from(crc32c::crc32c(bytes))
}

/// A missing checksum is as bad as a wrong one.
fn checked(bytes: &[u8], sum: Option<i64>, problem: &'static str) -> Result<(), Fault> {
    if sum == Some(crc32c(bytes)) {
        Ok(())
    } else {
        Err(Fault::Damaged(problem))
    }
}

fn refused(error: google_cloud_gax::error::Error) -> Fault {
    match error.status() {
        Some(status) => Fault::Refused(format!("{}: {}", status.code, status.message)),
        None => Fault::of(None, &error),
    }
}
