//! The settings of the log's key and of a KMS.

use std::time::Duration;

use evidenceos_keys::{
    Secret,
    kms::{DEFAULT_TIMEOUT, KeyRef, KmsSettings, Provider},
};
use evidenceos_notary::{KeySource, KmsKeys};

use super::Settings;

/// Where the settings say that the log's key is.
pub(super) fn source(
    settings: &Settings,
    is_protected: bool,
    problems: &mut Vec<String>,
) -> KeySource {
    let provider = settings.key_provider.as_deref().unwrap_or("file");
    if provider.eq_ignore_ascii_case("kms") {
        if settings.active_key_id.is_some() {
            problems.push(
                "--active-key-id chooses among files; with a KMS use EVIDENCEOS_KMS_EXPECT_KEY_ID"
                    .to_owned(),
            );
        }
        return match kms(settings, is_protected, problems) {
            Some(keys) => KeySource::Kms(Box::new(keys)),
            None => KeySource::default(),
        };
    }
    if !provider.eq_ignore_ascii_case("file") {
        problems.push(format!(
            "EVIDENCEOS_KEY_PROVIDER {provider:?}: must be file or kms"
        ));
    }
    if settings.kms_provider.is_some() {
        problems.push(
            "EVIDENCEOS_KMS_PROVIDER is set, but EVIDENCEOS_KEY_PROVIDER is not kms".to_owned(),
        );
    }
    KeySource::Files(parsed(
        "--active-key-id",
        settings.active_key_id.as_deref(),
        problems,
    ))
}

fn kms(settings: &Settings, is_protected: bool, problems: &mut Vec<String>) -> Option<KmsKeys> {
    let Some(name) = settings.kms_provider.as_deref() else {
        problems.push(
            "EVIDENCEOS_KEY_PROVIDER is kms: set EVIDENCEOS_KMS_PROVIDER to mock, aws, gcp or azure".to_owned(),
        );
        return None;
    };
    let provider: Provider = parsed("EVIDENCEOS_KMS_PROVIDER", Some(name), problems)?;
    let is_mock = provider == Provider::Mock;
    let key: Option<KeyRef> = parsed(
        "EVIDENCEOS_KMS_KEY_ID",
        settings.kms_key_id.as_deref(),
        problems,
    );
    if settings.kms_key_id.is_none() && !is_mock {
        problems.push(format!(
            "EVIDENCEOS_KMS_KEY_ID is required with provider {provider}: <kms-key-resource>|<base64-ciphertext>, as `evidenceos keys wrap` prints it"
        ));
    }
    if is_mock && is_protected && !settings.allow_mock_kms.unwrap_or(false) {
        problems.push(
            "the mock KMS protects nothing: if TLS and authentication are on, it needs --allow-mock-kms".to_owned(),
        );
    }
    let mut kms = KmsSettings::new(provider);
    kms.mock_key = mock_key(settings, problems);
    if let Some(context) = parsed(
        "EVIDENCEOS_KMS_CONTEXT",
        settings.kms_context.as_deref(),
        problems,
    ) {
        kms.context = context;
    }
    kms.endpoint = settings.kms_endpoint.clone();
    kms.ca_file = settings.kms_ca_file.clone();
    kms.timeout = settings
        .kms_timeout
        .map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    problems.extend(kms.problems().iter().map(ToString::to_string));
    Some(KmsKeys {
        settings: kms,
        key,
        previous: parsed(
            "EVIDENCEOS_KMS_PREVIOUS_KEY_ID",
            settings.kms_previous_key_id.as_deref(),
            problems,
        ),
        expect: parsed(
            "EVIDENCEOS_KMS_EXPECT_KEY_ID",
            settings.kms_expect_key_id.as_deref(),
            problems,
        ),
        holdout_key: settings.kms_holdout_key.clone(),
    })
}

fn mock_key(settings: &Settings, problems: &mut Vec<String>) -> Option<Secret> {
    let hex = settings.kms_mock_key_hex.as_deref()?;
    let mut key = Secret::default();
    // The decoder's message would show a digit of the key.
    if hex::decode_to_slice(hex.trim(), key.as_mut_slice()).is_ok() {
        return Some(key);
    }
    problems.push("EVIDENCEOS_KMS_MOCK_KEY_HEX must be 64 hex digits".to_owned());
    None
}

fn parsed<T>(name: &str, text: Option<&str>, problems: &mut Vec<String>) -> Option<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    match text?.trim().parse() {
        Ok(value) => Some(value),
        Err(error) => {
            problems.push(format!("{name}: {error}"));
            None
        }
    }
}
