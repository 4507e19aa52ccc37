use std::{ffi::OsString, path::Path};

use super::{flags::Asked, *};

/// A token that no setting of these tests gives.
const TOKEN: &str = "a-token-of-some-length";

fn ask(arguments: &[&str]) -> Result<Layers, ConfigError> {
    let arguments = ["evidenceos-daemon"].iter().chain(arguments);
    match Flags::ask(CalledAs::Daemon, arguments.map(OsString::from)).expect("known flags")? {
        Asked::Serve(layers) | Asked::Check(layers) | Asked::Show(layers) => Ok(layers),
        _ => panic!("a command without all settings"),
    }
}

fn config(arguments: &[&str]) -> Result<Config, ConfigError> {
    Config::new(&ask(arguments)?.settings)
}

fn problems(arguments: &[&str]) -> Vec<String> {
    config(arguments)
        .err()
        .map_or_else(Vec::new, |error| error.0)
}

fn written(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("writable");
    path.to_str().expect("text").to_owned()
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "listen = \"127.0.0.1:1\"\ndrain_seconds = 3\npreflight_listen = \"off\"\n";
    let path = written(directory.path(), "config.toml", text);
    let given = ["--config", &path, "--listen", "127.0.0.1:2"];
    let config = config(&given).expect("fine");
    assert_eq!(config.listeners.grpc.port(), 2);
    assert_eq!(config.listeners.http, None);
    assert_eq!(config.listeners.metrics.map(|a| a.port()), Some(9464));
    assert_eq!(config.drain, Duration::from_secs(3));
    assert_eq!(config.data_dir, PathBuf::from("./data"));
    let layers = ask(&given).expect("fine");
    assert_eq!(layers.origins["listen"], Origin::Flag);
    assert_eq!(layers.origins["drain_seconds"], Origin::File);
}

#[test]
fn a_file_with_unknown_settings_is_refused_with_its_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written(directory.path(), "config.toml", "\nlisten_on = \"x\"\n");
    let message = problems(&["--config", &path]).join("\n");
    assert!(
        message.contains("listen_on") && message.contains("line 2"),
        "{message}"
    );
    assert!(!problems(&["--config", "/nowhere"]).is_empty());
}

#[test]
fn every_problem_is_reported() {
    let found = problems(&[
        "--listen",
        "0.0.0.0:50051",
        "--preflight-listen",
        "here",
        "--log",
        "a=b=c",
        "--key-provider",
        "paper",
    ]);
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn incomplete_protection_is_a_problem_and_never_a_weaker_server() {
    for (arguments, expected) in [
        (&["--require-client-cert"][..], "--mtls-client-ca"),
        (&["--require-client-cert"], "--tls-cert and --tls-key"),
        (&["--tls-cert", "a"], "--tls-key"),
        (&["--tls-key", "a"], "--tls-cert"),
        (&["--mtls-client-ca", "a"], "--tls-cert and --tls-key"),
        (&["--preflight-tls"], "--tls-cert"),
        (&["--metrics-tls"], "--tls-cert"),
        (&["--listen", "0.0.0.0:1"], "needs TLS"),
        (&["--listen", "0.0.0.0:1"], "callers must authenticate"),
        (&["--listen", "[::]:1", "--auth-token", TOKEN], "needs TLS"),
        (
            &["--listen", "0.0.0.0:1", "--tls-cert", "a", "--tls-key", "b"],
            "callers must authenticate",
        ),
        (
            &["--preflight-listen", "0.0.0.0:1"],
            "callers must authenticate",
        ),
        (
            &["--preflight-listen", "0.0.0.0:1", "--auth-token", TOKEN],
            "--preflight-tls",
        ),
        (
            &["--auth-token", TOKEN, "--auth-hmac-key", TOKEN],
            "exclude",
        ),
        (
            &["--auth-token", TOKEN, "--auth-token-file", "f"],
            "both given",
        ),
        (&["--auth-token-file", "/nowhere"], "/nowhere"),
        (&["--auth-policy", "/nowhere"], "/nowhere"),
        (&["--key-provider", "kms"], "EVIDENCEOS_KMS_PROVIDER"),
        (&["--kms-provider", "mock"], "is not kms"),
        (
            &["--key-provider", "kms", "--kms-provider", "mock"],
            "EVIDENCEOS_KMS_MOCK_KEY_HEX",
        ),
        (
            &["--key-provider", "kms", "--kms-provider", "aws"],
            "EVIDENCEOS_KMS_KEY_ID",
        ),
        (&["--active-key-id", "beef"], "64 hex digits"),
        (&["--max-connection-age", "0"], "at least 1 second"),
    ] {
        let found = problems(arguments).join("\n");
        assert!(found.contains(expected), "{arguments:?}: {found}");
    }
}

#[test]
fn explicit_flags_lift_what_beyond_loopback_needs() {
    assert_eq!(
        problems(&["--listen", "0.0.0.0:1", "--insecure-allow-plaintext"]),
        Vec::<String>::new()
    );
    let http = ["--preflight-listen", "0.0.0.0:1", "--auth-token", TOKEN];
    let lifted = [&http[..], &["--preflight-allow-plaintext"]].concat();
    assert_eq!(problems(&lifted), Vec::<String>::new());
    let metrics = config(&["--metrics-listen", "0.0.0.0:9464"]).expect("no secrets there");
    assert!(metrics.is_development());
}

#[test]
fn a_protected_server_makes_no_key_and_takes_no_mock_unless_told() {
    let mock = [
        "--tls-cert",
        "a",
        "--tls-key",
        "b",
        "--auth-token",
        TOKEN,
        "--key-provider",
        "kms",
        "--kms-provider",
        "mock",
        "--kms-mock-key-hex",
        "0101010101010101010101010101010101010101010101010101010101010101",
    ];
    assert!(problems(&mock).join("\n").contains("--allow-mock-kms"));
    let allowed = config(&[&mock[..], &["--allow-mock-kms"]].concat()).expect("allowed");
    assert!(!allowed.generate_key);
    assert!(config(&[]).expect("development").generate_key);
    let told = [&mock[..], &["--allow-mock-kms", "--generate-key"]].concat();
    assert!(config(&told).expect("told").generate_key);
}

#[test]
fn no_secret_is_shown() {
    let key = "0202020202020202020202020202020202020202020202020202020202020202";
    let layers = ask(&[
        "--auth-token",
        "hunter2-and-more-of-it",
        "--key-provider",
        "kms",
        "--kms-provider",
        "mock",
        "--kms-mock-key-hex",
        key,
    ])
    .expect("known");
    let shown = layers.shown().join("\n");
    assert!(shown.contains("auth_token = (hidden)  # flag"), "{shown}");
    let debug = format!("{:?}", Config::new(&layers.settings).expect("fine"));
    for text in [&shown, &debug] {
        assert!(
            !text.contains("hunter2-and-more-of-it") && !text.contains(key),
            "{text}"
        );
    }
    let wrong = problems(&[
        "--key-provider",
        "kms",
        "--kms-provider",
        "mock",
        "--kms-mock-key-hex",
        "hunter2-and-more-of-it",
    ]);
    assert!(!wrong.join("\n").contains("hunter2-and-more-of-it"));
}

#[test]
fn switches_are_read_as_the_published_environment_has_them() {
    for (text, on) in [
        ("true", true),
        ("1", true),
        ("TRUE", true),
        ("false", false),
        ("0", false),
    ] {
        let flag = format!("--allow-core-dumps={text}");
        assert_eq!(
            config(&[&flag]).expect("fine").allow_core_dumps,
            on,
            "{text}"
        );
    }
}

#[test]
fn prices_are_exact_decimals_and_limits_are_by_name() {
    let arguments = [
        "--lambda-k-per-bit=2.5",
        "--lambda-cpu-per-fuel=0.0000005",
        "--default-credit-limit=77",
        "--principal-credit-limits=alice=5, CN=bob,O=x=9",
    ];
    let problems = problems(&arguments);
    assert!(
        problems[0].contains("\"CN=bob\""),
        "a name has no comma: {problems:?}"
    );
    let arguments = [
        "--lambda-k-per-bit=2.5",
        "--lambda-cpu-per-fuel=0.0000005",
        "--default-credit-limit=77",
        "--principal-credit-limits=alice=5, CN=bob=9",
    ];
    let accounting = config(&arguments).expect("fine").accounting;
    assert_eq!(accounting.tariff.per_bit.to_string(), "2.5");
    assert_eq!(accounting.tariff.per_fuel.to_string(), "0.0000005");
    assert_eq!(accounting.tariff.per_page.to_string(), "0.001");
    assert_eq!(accounting.credit_limit, 77);
    assert_eq!(accounting.credit_limits["CN=bob"], 9);
    for wrong in [
        "--lambda-k-per-bit=1e3",
        "--lambda-mem-per-wasm-page=0.0000000000001",
        "--default-credit-limit=9007199254740992",
        "--principal-credit-limits=alice=5,alice=6",
        "--principal-credit-limits=alice",
    ] {
        assert_eq!(super::tests::problems(&[wrong]).len(), 1, "{wrong}");
    }
}

#[test]
fn secrets_that_others_can_read_are_refused_wherever_they_are() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let token = written(directory.path(), "token", TOKEN);
    let keys = written(
        directory.path(),
        "keys",
        "ci:00112233445566778899aabbccddeeff",
    );
    let in_config = format!("auth_token = \"{TOKEN}\"\n");
    let in_config = written(directory.path(), "secret.toml", &in_config);
    let no_secret = written(directory.path(), "plain.toml", "drain_seconds = 3\n");
    let set = |path: &str, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    for (mode, taken) in [(0o600, true), (0o440, true), (0o644, false), (0o666, false)] {
        for (flag, path) in [
            ("--auth-token-file", &token),
            ("--agent-tokens-file", &token),
            ("--auditor-tokens-file", &token),
            ("--auth-hmac-key-file", &token),
            ("--hmac-keys-file", &keys),
            ("--hmac-shared-secret-file", &token),
            ("--preflight-require-bearer-token-file", &token),
            ("--config", &in_config),
        ] {
            set(path, mode);
            let found = config(&[flag, path])
                .err()
                .map_or_else(String::new, |error| error.to_string());
            assert_eq!(found.is_empty(), taken, "{flag} {mode:o}: {found}");
            if !taken {
                let command = format!("run `chmod o= {path}`");
                assert!(found.contains(&command) && found.contains(flag), "{found}");
            }
        }
        set(&no_secret, mode);
        assert_eq!(problems(&["--config", &no_secret]), Vec::<String>::new());
    }
    let short = problems(&["--preflight-require-bearer-token", "let-me-in"]).join("\n");
    assert!(short.contains("at least 16 characters"), "{short}");
}
