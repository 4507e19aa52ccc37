//! How callers are authenticated, and where the secrets for it are.
//!
//! A secret is in a setting or in a file. A reload reads the files again, so that tokens can be
//! changed without a restart; secrets in settings cannot.

use std::path::PathBuf;

use evidenceos_access::{AuthSettings, Authenticator, ClientCertificates};
use zeroize::Zeroizing;

use super::{Listeners, Settings, secret_files};

/// How callers are authenticated: settings, and secrets in files that a reload reads again.
#[derive(Debug, Clone, Default)]
pub struct IdentityConfig {
    /// The values of settings.
    given: AuthSettings,
    /// Secrets in files: the setting's name, and the path.
    files: Vec<(SecretName, PathBuf)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecretName {
    AuthToken,
    AgentTokens,
    AuditorTokens,
    HmacKey,
    HmacKeys,
    HmacSharedSecret,
}

impl SecretName {
    fn flag(self) -> &'static str {
        match self {
            Self::AuthToken => "--auth-token",
            Self::AgentTokens => "--agent-tokens",
            Self::AuditorTokens => "--auditor-tokens",
            Self::HmacKey => "--auth-hmac-key",
            Self::HmacKeys => "--hmac-keys",
            Self::HmacSharedSecret => "--hmac-shared-secret",
        }
    }

    fn of(self, settings: &mut AuthSettings) -> &mut Option<Zeroizing<String>> {
        match self {
            Self::AuthToken => &mut settings.auth_token,
            Self::AgentTokens => &mut settings.agent_tokens,
            Self::AuditorTokens => &mut settings.auditor_tokens,
            Self::HmacKey => &mut settings.hmac_key,
            Self::HmacKeys => &mut settings.hmac_keys,
            Self::HmacSharedSecret => &mut settings.hmac_shared_secret,
        }
    }
}

impl IdentityConfig {
    pub(super) fn new(
        settings: &Settings,
        listeners: &Listeners,
        problems: &mut Vec<String>,
    ) -> Self {
        let verifies = |tls: &super::TlsConfig| tls.clients != ClientCertificates::None;
        let mut config = Self {
            given: AuthSettings {
                policy: settings.auth_policy.clone(),
                hmac_require_timestamp: !settings.hmac_timestamp_optional.unwrap_or(false),
                hmac_accept_root_path: settings.hmac_accept_root_path.unwrap_or(false),
                client_certificates: listeners.tls.as_ref().is_some_and(verifies),
                ..AuthSettings::default()
            },
            files: Vec::new(),
        };
        use SecretName as S;
        for (name, value, file) in [
            (
                S::AuthToken,
                &settings.auth_token,
                &settings.auth_token_file,
            ),
            (
                S::AgentTokens,
                &settings.agent_tokens,
                &settings.agent_tokens_file,
            ),
            (
                S::AuditorTokens,
                &settings.auditor_tokens,
                &settings.auditor_tokens_file,
            ),
            (
                S::HmacKey,
                &settings.auth_hmac_key,
                &settings.auth_hmac_key_file,
            ),
            (S::HmacKeys, &settings.hmac_keys, &settings.hmac_keys_file),
            (
                S::HmacSharedSecret,
                &settings.hmac_shared_secret,
                &settings.hmac_shared_secret_file,
            ),
        ] {
            match (value, file) {
                (Some(_), Some(_)) => problems.push(format!(
                    "{0} and {0}-file are both given; keep one",
                    name.flag()
                )),
                (Some(value), None) => {
                    *name.of(&mut config.given) = Some(Zeroizing::new(value.clone()));
                }
                (None, Some(path)) => config.files.push((name, path.clone())),
                (None, None) => {}
            }
        }
        // The files are read once here, so that their problems are reported with the others.
        if let Err(wrong) = config.load() {
            problems.extend(wrong);
        }
        config
    }

    /// Whether callers must authenticate.
    #[must_use]
    pub fn authenticates(&self) -> bool {
        let given = &self.given;
        given.client_certificates
            || !self.files.is_empty()
            || given.policy.is_some()
            || [
                &given.auth_token,
                &given.agent_tokens,
                &given.auditor_tokens,
                &given.hmac_key,
                &given.hmac_keys,
                &given.hmac_shared_secret,
            ]
            .into_iter()
            .any(Option::is_some)
    }

    /// Reads the files and makes the authenticator.
    ///
    /// # Errors
    /// Every problem, without any secret in it.
    pub fn load(&self) -> Result<Authenticator, Vec<String>> {
        let mut settings = self.given.clone();
        let mut problems = Vec::new();
        for (name, path) in &self.files {
            match secret_files::read(path) {
                Ok(secret) => *name.of(&mut settings) = Some(secret),
                Err(problem) => problems.push(format!("{}-file {problem}", name.flag())),
            }
        }
        match settings.build() {
            Ok(authenticator) if problems.is_empty() => Ok(authenticator),
            Ok(_) => Err(problems),
            Err(wrong) => Err(problems.into_iter().chain(wrong).collect()),
        }
    }
}
