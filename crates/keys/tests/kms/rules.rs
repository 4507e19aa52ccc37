//! What is refused before anything is sent.

use std::time::Duration;

use evidenceos_keys::kms::{Context, KeyRef, Kms, KmsSettings, MAX_KEY_REF, Problem, Provider};

#[test]
fn providers_are_named_in_any_case() {
    for (text, provider) in [
        ("mock", Provider::Mock),
        ("AWS", Provider::Aws),
        ("Gcp", Provider::Gcp),
        ("azURE", Provider::Azure),
    ] {
        assert_eq!(text.parse::<Provider>().expect(text), provider);
        assert_eq!(provider.to_string(), text.to_lowercase());
    }
    let error = "vault"
        .parse::<Provider>()
        .expect_err("unknown")
        .to_string();
    assert_eq!(
        error,
        "unknown KMS provider \"vault\"; expected mock, aws, gcp or azure"
    );
}

#[test]
fn a_key_id_splits_at_the_first_bar() {
    for (text, resource, ciphertext) in [
        ("alias/lab|AAEC", "alias/lab", Some(vec![0, 1, 2])),
        (
            "arn:aws:kms:eu-west-1:1:key/a|AA==",
            "arn:aws:kms:eu-west-1:1:key/a",
            Some(vec![0]),
        ),
        (
            "projects/p/locations/l/keyRings/r/cryptoKeys/k",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k",
            None,
        ),
    ] {
        let key: KeyRef = text.parse().expect(text);
        assert_eq!(
            (key.resource.as_str(), &key.ciphertext),
            (resource, &ciphertext)
        );
        assert_eq!(key.to_string(), text);
    }
}

#[test]
fn a_key_id_without_both_parts_is_refused() {
    let long = format!("k|{}", "A".repeat(MAX_KEY_REF));
    for (text, says) in [
        ("", "names no key"),
        ("|AAEC", "names no key"),
        ("alias/lab|", "ends with `|`"),
        ("alias/lab|AAE", "not standard base64"),
        ("alias/lab|AAEC|AAEC", "not standard base64"),
        ("alias/lab|_-8=", "not standard base64"),
        (long.as_str(), "at most 4096"),
    ] {
        let error = text.parse::<KeyRef>().expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_context_is_sorted_pairs() {
    let context: Context = "stage=prod,lab=a=b".parse().expect("a context");
    assert_eq!(context.to_string(), "lab=a=b,stage=prod");
    assert!("".parse::<Context>().expect("none").is_empty());
    for (text, says) in [
        ("lab", "not name=value"),
        ("lab=", "not name=value"),
        ("=a", "not name=value"),
        ("a=1,", "not name=value"),
        ("a=1,a=2", "twice"),
    ] {
        let error = text.parse::<Context>().expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn an_endpoint_is_https_or_on_loopback() {
    let with = |endpoint: &str| {
        let endpoint = Some(endpoint.into());
        KmsSettings {
            mock_key: Some([0; 32].into()),
            endpoint,
            ..KmsSettings::new(Provider::Mock)
        }
        .problems()
    };
    for good in [
        "https://kms.example",
        "https://10.0.0.1:8443/path",
        "http://localhost:1",
        "http://127.9.9.9",
        "http://[::1]:80",
    ] {
        assert_eq!(with(good), [], "{good}");
    }
    for bad in [
        "http://kms.example",
        "http://10.0.0.1",
        "http://[::2]",
        "http://127.0.0.1.example",
        "http://localhost.example",
        "http://127.0.0.1@kms.example",
        "https://user@kms.example",
        "kms.example",
        "localhost:80",
        "ftp://localhost",
        "",
    ] {
        assert_eq!(with(bad), [Problem::Endpoint(bad.into())], "{bad}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let settings = KmsSettings {
        endpoint: Some("ftp://x".into()),
        timeout: Duration::ZERO,
        ..KmsSettings::new(Provider::Mock)
    };
    let error = Kms::new(settings).expect_err("wrong").to_string();
    for says in [
        "EVIDENCEOS_KMS_MOCK_KEY_HEX, 64",
        "ftp://x",
        "EVIDENCEOS_KMS_TIMEOUT",
    ] {
        assert!(error.contains(says), "{says} is not in {error}");
    }
}

#[test]
fn what_a_provider_cannot_do_is_a_problem_of_its_settings() {
    let settings = |provider| KmsSettings {
        context: "a=b".parse().expect("a context"),
        ca_file: Some("ca.pem".into()),
        endpoint: Some("http://localhost:1".into()),
        mock_key: Some([0; 32].into()),
        ..KmsSettings::new(provider)
    };
    let azure = settings(Provider::Azure).problems();
    assert!(
        azure.contains(&Problem::AzureContext)
            && azure.contains(&Problem::MockKey(Provider::Azure)),
        "{azure:?}"
    );
    assert!(
        azure.contains(&Problem::AzureEndpoint("http://localhost:1".into())),
        "{azure:?}"
    );
    let gcp = settings(Provider::Gcp).problems();
    assert!(
        gcp.contains(&Problem::GcpCaFile) && !gcp.contains(&Problem::AzureContext),
        "{gcp:?}"
    );
}

#[test]
fn a_provider_that_is_not_built_in_names_the_feature() {
    for (provider, feature, built) in [
        (Provider::Aws, "kms-aws", cfg!(feature = "kms-aws")),
        (Provider::Gcp, "kms-gcp", cfg!(feature = "kms-gcp")),
        (Provider::Azure, "kms-azure", cfg!(feature = "kms-azure")),
    ] {
        let problems = KmsSettings::new(provider).problems();
        assert_eq!(problems.is_empty(), built, "{problems:?}");
        for problem in problems {
            assert_eq!(
                problem.to_string(),
                format!("the {provider} KMS is not built in; build with --features {feature}")
            );
        }
    }
}

#[test]
fn settings_never_show_the_mock_key() {
    let settings = KmsSettings {
        mock_key: Some([0xab; 32].into()),
        ..KmsSettings::new(Provider::Mock)
    };
    let kms = Kms::new(settings.clone()).expect("a mock");
    for shown in [format!("{settings:?}"), format!("{kms:?}")] {
        assert!(
            !shown.contains("171") && !shown.contains("ab, ab") && !shown.contains("mock_key"),
            "{shown}"
        );
    }
}
