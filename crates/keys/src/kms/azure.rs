//! Azure Key Vault over its official SDK: `wrapKey` and `unwrapKey` with RSA-OAEP-256.
//!
//! The key's URL names the vault. The vault has no Ed25519, so nothing signs here.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::credentials::{Secret, TokenCredential};
use azure_core::error::ErrorKind;
use azure_core::http::{ClientOptions, ExponentialRetryOptions, RetryOptions, Transport};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientWrapKeyOptions, KeyOperationParameters, KeyOperationResult,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions, ResourceId};
use ed25519_dalek::VerifyingKey;
use zeroize::Zeroizing;

use super::backend::{Backend, required};
use super::error::Fault;
use super::key_ref::KeyRef;
use super::settings::{KmsSettings, is_private};

const NO_ED25519: &str = "Azure Key Vault has no Ed25519 keys, so it cannot sign checkpoints; \
    wrap a signing key with an RSA key there instead (`keys wrap`)";

pub(super) struct Azure {
    credential: Arc<dyn TokenCredential>,
    options: ClientOptions,
    endpoint: Option<String>,
}

impl Azure {
    pub(super) fn connect(settings: &KmsSettings) -> Result<Self, Fault> {
        // A redirect could carry the request and its credential to a host that the operator did not
        // configure.
        let mut http = reqwest::Client::builder()
            .timeout(super::attempt_timeout(settings))
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = &settings.ca_file {
            let wrong = |error: &dyn std::error::Error| {
                Fault::Refused(format!("the CA file {}: {error}", path.display()))
            };
            let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&error))?;
            http = http.tls_certs_merge(certificates);
        }
        let http = http.build().map_err(|error| Fault::of(None, &error))?;
        let retry = ExponentialRetryOptions {
            max_retries: 3,
            ..ExponentialRetryOptions::default()
        };
        let options = ClientOptions {
            transport: Some(Transport::new(Arc::new(http))),
            retry: RetryOptions::exponential(retry),
            ..ClientOptions::default()
        };
        let credential = credential(&options).map_err(|error| Fault::of(None, &error))?;
        Ok(Self {
            credential,
            options,
            endpoint: settings.endpoint.clone(),
        })
    }

    /// A client for the vault of `resource`, and the key's name and version there.
    fn key(&self, resource: &str) -> Result<(KeyClient, ResourceId), Fault> {
        let id: ResourceId = resource
            .parse()
            .map_err(|error: azure_core::Error| Fault::of(None, &error))?;
        let vault = self.endpoint.as_deref().unwrap_or(&id.vault_url);
        if !vault.starts_with("https://") || !is_private(vault) {
            return Err(Fault::Unsupported(
                "the key must be named by its https URL, https://<vault>/keys/<name>/<version>",
            ));
        }
        let options = KeyClientOptions {
            client_options: self.options.clone(),
            // Behind an endpoint of ours the vault cannot have the host that its challenge names.
            verify_challenge_resource: Some(self.endpoint.is_none()),
            ..KeyClientOptions::default()
        };
        let client = KeyClient::new(vault, self.credential.clone(), Some(options))
            .map_err(|error| Fault::of(None, &error))?;
        Ok((client, id))
    }
}

#[async_trait]
impl Backend for Azure {
    fn endpoint(&self, resource: &str) -> String {
        match (&self.endpoint, resource.parse::<ResourceId>()) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Ok(id)) => id.vault_url,
            (None, Err(_)) => "no vault".into(),
        }
    }

    async fn unwrap(
        &self,
        resource: &str,
        ciphertext: Option<&[u8]>,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let value = required(ciphertext)?.to_vec();
        let (client, id) = self.key(resource)?;
        let version = id.version.as_deref().unwrap_or_default();
        let answer = client
            .unwrap_key(&id.name, version, parameters(value)?, None)
            .await
            .map_err(refused)?;
        let answer = answer.into_model().map_err(refused)?;
        answer
            .result
            .map(Zeroizing::new)
            .ok_or(Fault::Damaged("the answer has no value"))
    }

    async fn wrap(&self, resource: &str, secret: &[u8; 32]) -> Result<KeyRef, Fault> {
        let (client, id) = self.key(resource)?;
        let options = KeyClientWrapKeyOptions {
            key_version: id.version.clone(),
            ..Default::default()
        };
        let answer = client
            .wrap_key(&id.name, parameters(secret.to_vec())?, Some(options))
            .await
            .map_err(refused)?;
        let KeyOperationResult { kid, result, .. } = answer.into_model().map_err(refused)?;
        // An unversioned name means the newest version, which after a rotation unwraps nothing old.
        let used = kid
            .and_then(|kid| kid.parse::<ResourceId>().ok())
            .and_then(|used| used.version);
        let resource = match (&id.version, used) {
            (None, Some(used)) => format!("{}/{used}", resource.trim_end_matches('/')),
            _ => resource.into(),
        };
        Ok(KeyRef {
            resource,
            ciphertext: Some(result.ok_or(Fault::Damaged("the answer has no value"))?),
        })
    }

    async fn public_key(&self, _: &str) -> Result<VerifyingKey, Fault> {
        Err(Fault::Unsupported(NO_ED25519))
    }

    async fn sign(&self, _: &str, _: &[u8]) -> Result<Vec<u8>, Fault> {
        Err(Fault::Unsupported(NO_ED25519))
    }
}

/// Workload identity if Kubernetes injected it, or else a client secret, or else the machine's own
/// identity. The SDK has no default chain; these are its own variables.
fn credential(options: &ClientOptions) -> azure_core::Result<Arc<dyn TokenCredential>> {
    let of = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let client_options = options.clone();
    if of("AZURE_FEDERATED_TOKEN_FILE").is_some() {
        let credential_options = ClientAssertionCredentialOptions { client_options };
        let options = WorkloadIdentityCredentialOptions {
            credential_options,
            ..Default::default()
        };
        return Ok(WorkloadIdentityCredential::new(Some(options))?);
    }
    let client = of("AZURE_CLIENT_ID");
    if let (Some(tenant), Some(client), Some(secret)) =
        (of("AZURE_TENANT_ID"), &client, of("AZURE_CLIENT_SECRET"))
    {
        let options = ClientSecretCredentialOptions { client_options };
        return Ok(ClientSecretCredential::new(
            &tenant,
            client.clone(),
            Secret::new(secret),
            Some(options),
        )?);
    }
    let user_assigned_id = client.map(UserAssignedId::ClientId);
    let options = ManagedIdentityCredentialOptions {
        client_options,
        user_assigned_id,
    };
    Ok(ManagedIdentityCredential::new(Some(options))?)
}

fn parameters(
    value: Vec<u8>,
) -> Result<azure_core::http::RequestContent<KeyOperationParameters>, Fault> {
    let algorithm = Some(EncryptionAlgorithm::RsaOaep256);
    KeyOperationParameters {
        algorithm,
        value: Some(value),
        ..Default::default()
    }
    .try_into()
    .map_err(refused)
}

fn refused(error: azure_core::Error) -> Fault {
    let code = match error.kind() {
        ErrorKind::HttpResponse { error_code, .. } => error_code.as_deref(),
        _ => None,
    };
    Fault::of(code, &error)
}
