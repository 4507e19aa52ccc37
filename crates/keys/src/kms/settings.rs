//! The settings of a KMS, and the rules that are checked before anything is sent.
//!
//! Invariant: settings without [`KmsSettings::problems`] never send a credential in the clear
//! beyond this machine.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;

use crate::Secret;

/// The deadline of one call if none is configured.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The KMS that holds or wraps a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// In this process, with a key from the configuration: for tests and trials.
    Mock,
    /// AWS KMS; cargo feature `kms-aws`.
    Aws,
    /// Google Cloud KMS; cargo feature `kms-gcp`.
    Gcp,
    /// Azure Key Vault; cargo feature `kms-azure`.
    Azure,
}

impl Provider {
    /// The cargo feature to build with, and whether this build has it; `None` needs none.
    const fn feature(self) -> Option<(&'static str, bool)> {
        match self {
            Self::Mock => None,
            Self::Aws => Some(("kms-aws", cfg!(feature = "kms-aws"))),
            Self::Gcp => Some(("kms-gcp", cfg!(feature = "kms-gcp"))),
            Self::Azure => Some(("kms-azure", cfg!(feature = "kms-azure"))),
        }
    }
}

/// A word that does not name a [`Provider`].
#[derive(Debug, thiserror::Error)]
#[error("unknown KMS provider {0:?}; expected mock, aws, gcp or azure")]
pub struct UnknownProvider(pub String);

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(text: &str) -> Result<Self, UnknownProvider> {
        [Self::Mock, Self::Aws, Self::Gcp, Self::Azure]
            .into_iter()
            .find(|provider| provider.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownProvider(text.into()))
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mock => "mock",
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        })
    }
}

/// The context to which a ciphertext is bound besides its key: `name=value[,name=value…]`, sorted
/// by name. AWS calls it the encryption context; GCP gets the text as additional authenticated
/// data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context(BTreeMap<String, String>);

/// The reason why a text is not a [`Context`].
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A part is not `name=value`.
    #[error("{0:?} in the KMS context is not name=value")]
    NotAPair(String),
    /// A name occurs twice.
    #[error("the KMS context has {0:?} twice; give it once")]
    Twice(String),
}

impl Context {
    /// Whether it binds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl FromStr for Context {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Self, ContextError> {
        let mut pairs = BTreeMap::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .filter(|(name, value)| !name.is_empty() && !value.is_empty())
                .ok_or_else(|| ContextError::NotAPair(part.into()))?;
            if pairs.insert(name.into(), value.into()).is_some() {
                return Err(ContextError::Twice(name.into()));
            }
        }
        Ok(Self(pairs))
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (name, value)) in self.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{name}={value}")?;
        }
        Ok(())
    }
}

/// The settings of a KMS. They contain no credentials: each SDK finds its own.
#[derive(Clone)]
pub struct KmsSettings {
    pub provider: Provider,
    /// The mock's key; only the mock uses it.
    pub mock_key: Option<Secret>,
    /// The context to which ciphertexts are bound; empty by default.
    pub context: Context,
    /// Instead of the provider's own endpoint: https, or http to loopback.
    pub endpoint: Option<String>,
    /// PEM certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// For one call: credentials, connection and retries together.
    pub timeout: Duration,
}

impl KmsSettings {
    /// Settings with nothing but defaults.
    #[must_use]
    pub fn new(provider: Provider) -> Self {
        Self {
            provider,
            mock_key: None,
            context: Context::default(),
            endpoint: None,
            ca_file: None,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// All problems of the settings, without sending anything.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let endpoint = self.endpoint.as_deref();
        let found = [
            match self.provider.feature() {
                Some((feature, false)) => Some(Problem::NotBuilt {
                    provider: self.provider,
                    feature,
                }),
                _ => None,
            },
            (self.provider == Provider::Mock && self.mock_key.is_none())
                .then_some(Problem::NoMockKey),
            (self.provider != Provider::Mock && self.mock_key.is_some())
                .then_some(Problem::MockKey(self.provider)),
            (self.provider == Provider::Azure && !self.context.is_empty())
                .then_some(Problem::AzureContext),
            (self.provider == Provider::Gcp && self.ca_file.is_some())
                .then_some(Problem::GcpCaFile),
            endpoint
                .filter(|endpoint| !is_private(endpoint))
                .map(|endpoint| Problem::Endpoint(endpoint.into())),
            endpoint
                .filter(|endpoint| {
                    self.provider == Provider::Azure && endpoint.starts_with("http://")
                })
                .map(|endpoint| Problem::AzureEndpoint(endpoint.into())),
            self.timeout.is_zero().then_some(Problem::NoTime),
        ];
        found.into_iter().flatten().collect()
    }
}

impl fmt::Debug for KmsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmsSettings")
            .field("provider", &self.provider)
            .field("context", &self.context)
            .field("endpoint", &self.endpoint)
            .field("ca_file", &self.ca_file)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The reason why settings cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// This build does not contain the SDK.
    #[error("the {provider} KMS is not built in; build with --features {feature}")]
    NotBuilt {
        provider: Provider,
        /// The cargo feature that builds the provider in.
        feature: &'static str,
    },
    /// The mock has no key.
    #[error("the mock KMS needs EVIDENCEOS_KMS_MOCK_KEY_HEX, 64 hex digits")]
    NoMockKey,
    /// A real KMS has the mock's key.
    #[error("EVIDENCEOS_KMS_MOCK_KEY_HEX is for the mock, not for {0}; unset it")]
    MockKey(Provider),
    /// RSA-OAEP has no place for a context.
    #[error("Azure's unwrapKey takes no context; unset EVIDENCEOS_KMS_CONTEXT")]
    AzureContext,
    /// The SDK builds its HTTP client itself.
    #[error(
        "Google's SDK takes no CA file; unset EVIDENCEOS_KMS_CA_FILE and set SSL_CERT_FILE, which it reads"
    )]
    GcpCaFile,
    /// The endpoint is not a URL, or is plain http beyond loopback.
    #[error("the KMS endpoint {0:?} is neither an https URL nor an http URL to loopback")]
    Endpoint(String),
    /// The SDK authorises https requests only.
    #[error(
        "the KMS endpoint {0:?} must be https: Azure's SDK sends no credentials over http, not even to loopback"
    )]
    AzureEndpoint(String),
    /// The timeout is too short for any call.
    #[error("EVIDENCEOS_KMS_TIMEOUT must be more than 0")]
    NoTime,
}

/// Whether no third party can read the traffic to `url`: https, or http within this machine.
pub(super) fn is_private(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let Some(host) = uri.host() else { return false };
    // In `https://known@other/` the host is `other`, and no KMS endpoint needs that form.
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return false;
    }
    match uri.scheme_str() {
        Some("https") => true,
        Some("http") => {
            // The URL keeps the brackets of an IPv6 address, which the parser of addresses does not
            // take.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        _ => false,
    }
}
