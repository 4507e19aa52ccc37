//! AWS KMS over its official SDK: `Decrypt`, `Encrypt`, `GetPublicKey` and `Sign`.
//!
//! Credentials and region come from the SDK's default chain; an ARN names its region itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{EncryptionAlgorithmSpec, MessageType, SigningAlgorithmSpec};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider as TlsProvider, TlsContext, TrustStore};
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey as _;
use zeroize::Zeroizing;

use super::backend::{Backend, required};
use super::error::Fault;
use super::key_ref::KeyRef;
use super::settings::{KmsSettings, is_private};

pub(super) struct Aws {
    client: Client,
    context: Option<std::collections::HashMap<String, String>>,
    seen: Seen,
}

impl Aws {
    pub(super) async fn connect(settings: &KmsSettings, resource: &str) -> Result<Self, Fault> {
        let attempt = super::attempt_timeout(settings);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(attempt)
                    .operation_attempt_timeout(attempt)
                    .build(),
            )
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(4)
                    .with_initial_backoff(Duration::from_millis(100))
                    .with_max_backoff(Duration::from_secs(5)),
            );
        if let Some(region) = region(resource) {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let Some(path) = &settings.ca_file {
            let pem = tokio::fs::read(path).await.map_err(|error| {
                Fault::Refused(format!("the CA file {}: {error}", path.display()))
            })?;
            let tls = TlsContext::builder()
                .with_trust_store(TrustStore::default().with_pem_certificate(pem))
                .build()
                .map_err(|error| Fault::of(None, &error))?;
            let provider = TlsProvider::Rustls(CryptoMode::AwsLc);
            loader = loader.http_client(
                aws_smithy_http_client::Builder::new()
                    .tls_provider(provider)
                    .tls_context(tls)
                    .build_https(),
            );
        }
        let shared = loader.load().await;
        let first = settings
            .endpoint
            .as_deref()
            .unwrap_or("its default endpoint");
        let seen = Seen(Arc::new(Mutex::new(first.into())));
        let mut config = aws_sdk_kms::config::Builder::from(&shared).interceptor(seen.clone());
        // Only the KMS is behind our endpoint: the credentials' services keep theirs.
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let context = settings
            .context
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Ok(Self {
            client: Client::from_conf(config.build()),
            context: (!settings.context.is_empty()).then_some(context),
            seen,
        })
    }
}

#[async_trait]
impl Backend for Aws {
    fn endpoint(&self, _: &str) -> String {
        self.seen
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn unwrap(
        &self,
        resource: &str,
        ciphertext: Option<&[u8]>,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let answer = self
            .client
            .decrypt()
            .key_id(resource)
            .ciphertext_blob(Blob::new(required(ciphertext)?))
            .set_encryption_context(self.context.clone())
            .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
            .send()
            .await
            .map_err(refused)?;
        let plaintext = answer
            .plaintext
            .ok_or(Fault::Damaged("the answer has no plaintext"))?;
        Ok(Zeroizing::new(plaintext.into_inner()))
    }

    async fn wrap(&self, resource: &str, secret: &[u8; 32]) -> Result<KeyRef, Fault> {
        let answer = self
            .client
            .encrypt()
            .key_id(resource)
            .plaintext(Blob::new(secret))
            .set_encryption_context(self.context.clone())
            .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
            .send()
            .await
            .map_err(refused)?;
        let ciphertext = answer
            .ciphertext_blob
            .ok_or(Fault::Damaged("the answer has no ciphertext"))?;
        Ok(KeyRef {
            resource: resource.into(),
            ciphertext: Some(ciphertext.into_inner()),
        })
    }

    async fn public_key(&self, resource: &str) -> Result<VerifyingKey, Fault> {
        let answer = self
            .client
            .get_public_key()
            .key_id(resource)
            .send()
            .await
            .map_err(refused)?;
        let der = answer
            .public_key
            .ok_or(Fault::Damaged("the answer has no public key"))?;
        VerifyingKey::from_public_key_der(der.as_ref())
            .map_err(|error| Fault::KeyKind(error.to_string()))
    }

    async fn sign(&self, resource: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
        // Readers verify pure Ed25519 (RFC 8032), which signs the message itself and not a digest
        // of it.
        let answer = self
            .client
            .sign()
            .key_id(resource)
            .message(Blob::new(message))
            .message_type(MessageType::Raw)
            .signing_algorithm(SigningAlgorithmSpec::Ed25519Sha512)
            .send()
            .await
            .map_err(refused)?;
        let signature = answer
            .signature
            .ok_or(Fault::Damaged("the answer has no signature"))?;
        Ok(signature.into_inner())
    }
}

/// The region in an ARN: `eu-west-1` of `arn:aws:kms:eu-west-1:…`.
fn region(resource: &str) -> Option<&str> {
    resource
        .strip_prefix("arn:")?
        .split(':')
        .nth(2)
        .filter(|region| !region.is_empty())
}

/// The service's code and message if it answered, or else the deepest cause.
fn refused<E>(error: SdkError<E>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let service = error.as_service_error().map(ProvideErrorMetadata::meta);
    match service.and_then(|meta| Some((meta.code()?, meta.message()))) {
        Some((code, message)) => Fault::Refused(format!(
            "{code}: {}",
            message.unwrap_or("the service gives no reason")
        )),
        // The text of a proxy or a load balancer is not JSON; its status is the most useful part.
        None => {
            let status = error
                .raw_response()
                .map(|raw| format!("HTTP {}", raw.status()));
            Fault::of(status.as_deref(), &error)
        }
    }
}

/// The endpoint of the last request. The SDK has variables of its own for the endpoint, so only the
/// request shows it; and only here can plain http beyond loopback be stopped, whatever configured
/// it.
#[derive(Clone, Debug)]
struct Seen(Arc<Mutex<String>>);

impl Intercept for Seen {
    fn name(&self) -> &'static str {
        "Seen"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let uri = context.request().uri().to_owned();
        let private = is_private(&uri);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = uri;
        if private {
            Ok(())
        } else {
            Err("plain http is refused beyond this machine; use an https endpoint".into())
        }
    }
}
