//! A KMS in this process: real AES-256-GCM and Ed25519 under one configured key. It guards nothing,
//! since the configuration contains the key; it lets everything else be tested.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, Key, KeyInit as _, Nonce};
use async_trait::async_trait;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::backend::Backend;
use super::error::Fault;
use super::key_ref::KeyRef;
use super::settings::{Context, KmsSettings};
use crate::Secret;

/// Length of the nonce before the AES-GCM ciphertext, in bytes.
const NONCE: usize = 12;

pub(super) struct Mock {
    key: Secret,
    context: Context,
}

impl Mock {
    pub(super) fn new(settings: &KmsSettings) -> Result<Self, Fault> {
        let key = settings
            .mock_key
            .clone()
            .ok_or(Fault::Unsupported("the mock has no key"))?;
        Ok(Self {
            key,
            context: settings.context.clone(),
        })
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&Key::<Aes256Gcm>::from(*self.key))
    }

    fn signer(&self) -> SigningKey {
        SigningKey::from_bytes(&self.key)
    }

    /// As in a real KMS, a ciphertext belongs to one key name and one context.
    fn bound_to(&self, resource: &str) -> Vec<u8> {
        format!("{resource}|{}", self.context).into_bytes()
    }
}

#[async_trait]
impl Backend for Mock {
    fn endpoint(&self, _: &str) -> String {
        "this process".into()
    }

    async fn unwrap(
        &self,
        resource: &str,
        ciphertext: Option<&[u8]>,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let Some(ciphertext) = ciphertext else {
            return Ok(Zeroizing::new(self.key.to_vec()));
        };
        let refused =
            || Fault::Refused("the ciphertext belongs to another key, key name or context".into());
        let (nonce, sealed) = ciphertext
            .split_first_chunk::<NONCE>()
            .ok_or_else(refused)?;
        let payload = Payload {
            msg: sealed,
            aad: &self.bound_to(resource),
        };
        // AES-GCM gives no reason for a failure.
        let plaintext = self
            .cipher()
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_| refused())?;
        Ok(Zeroizing::new(plaintext))
    }

    async fn wrap(&self, resource: &str, secret: &[u8; 32]) -> Result<KeyRef, Fault> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|error| Fault::Refused(error.to_string()))?;
        let payload = Payload {
            msg: secret,
            aad: &self.bound_to(resource),
        };
        let sealed = self
            .cipher()
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|error| Fault::Refused(error.to_string()))?;
        Ok(KeyRef {
            resource: resource.into(),
            ciphertext: Some([nonce.as_slice(), &sealed].concat()),
        })
    }

    async fn public_key(&self, _: &str) -> Result<VerifyingKey, Fault> {
        Ok(self.signer().verifying_key())
    }

    async fn sign(&self, _: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
        Ok(self.signer().sign(message).to_bytes().to_vec())
    }
}
