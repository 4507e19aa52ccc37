//! What may be configured together.

use evidenceos_access::AuthSettings;
use zeroize::Zeroizing;

type Change = fn(&mut AuthSettings);

fn secret(text: &str) -> Option<Zeroizing<String>> {
    Some(Zeroizing::new(text.to_owned()))
}

/// A secret of 16 characters.
fn long(word: &str) -> Option<Zeroizing<String>> {
    secret(&format!("{word:-<16}"))
}

fn problems(changes: &[Change]) -> Vec<String> {
    let mut settings = AuthSettings::default();
    for change in changes {
        change(&mut settings);
    }
    settings.build().err().unwrap_or_default()
}

const AUTH_TOKEN: Change = |settings| settings.auth_token = long("s-token");
const AGENTS: Change =
    |settings| settings.agent_tokens = secret("s-agent---------, s-other---------");
const AUDITORS: Change = |settings| settings.auditor_tokens = long("s-auditor");
const KEY: Change = |settings| settings.hmac_key = long("s-raw");
const KEYS: Change = |settings| settings.hmac_keys = secret("ci:00ff00ff00ff00ff00ff00ff00ff00ff");
const DEFAULT_KEYS: Change = |settings| {
    settings.hmac_keys =
        secret("ci:00ff00ff00ff00ff00ff00ff00ff00ff,default:11ff11ff11ff11ff11ff11ff11ff11ff")
};
const SHARED: Change = |settings| settings.hmac_shared_secret = long("s-shared");

#[test]
fn modes_that_exclude_each_other_are_refused_together() {
    let conflicts: [(&[Change], &[&str]); 13] = [
        (&[AUTH_TOKEN, KEY], &["--auth-token", "--auth-hmac-key"]),
        (&[AUTH_TOKEN, AGENTS], &["--auth-token", "--agent-tokens"]),
        (
            &[AUTH_TOKEN, AUDITORS],
            &["--auth-token", "--auditor-tokens"],
        ),
        (
            &[AUTH_TOKEN, KEYS],
            &["--auth-token", "EVIDENCEOS_HMAC_KEYS"],
        ),
        (
            &[AUTH_TOKEN, SHARED],
            &["--auth-token", "EVIDENCEOS_HMAC_SHARED_SECRET"],
        ),
        (&[AGENTS, KEY], &["--agent-tokens", "--auth-hmac-key"]),
        (&[AGENTS, KEYS], &["--agent-tokens", "EVIDENCEOS_HMAC_KEYS"]),
        (
            &[AGENTS, SHARED],
            &["--agent-tokens", "EVIDENCEOS_HMAC_SHARED_SECRET"],
        ),
        (&[AUDITORS, KEY], &["--auditor-tokens", "--auth-hmac-key"]),
        (
            &[AUDITORS, KEYS],
            &["--auditor-tokens", "EVIDENCEOS_HMAC_KEYS"],
        ),
        (
            &[AUDITORS, SHARED],
            &["--auditor-tokens", "EVIDENCEOS_HMAC_SHARED_SECRET"],
        ),
        (&[KEY, KEYS], &["--auth-hmac-key", "EVIDENCEOS_HMAC_KEYS"]),
        (&[DEFAULT_KEYS, SHARED], &["EVIDENCEOS_HMAC_SHARED_SECRET"]),
    ];
    for (changes, names) in conflicts {
        let problems = problems(changes);
        assert_eq!(problems.len(), 1, "{names:?}: {problems:?}");
        for name in names {
            assert!(problems[0].contains(name), "{problems:?}");
        }
    }
    let all = problems(&[AUTH_TOKEN, AGENTS, AUDITORS, KEY, KEYS, SHARED]);
    assert!(all.len() >= 13, "{all:?}");
    assert!(!all.concat().contains("s-"), "{all:?}");
}

#[test]
fn a_raw_key_beside_a_shared_secret_is_not_silently_ignored() {
    let problems = problems(&[KEY, SHARED]);
    assert!(problems[0].contains("exclude each other"), "{problems:?}");
}

#[test]
fn what_goes_together_is_taken() {
    let fine: [&[Change]; 7] = [
        &[],
        &[AUTH_TOKEN],
        &[AGENTS, AUDITORS],
        &[KEY],
        &[KEYS, SHARED],
        &[DEFAULT_KEYS],
        &[SHARED, |settings| settings.client_certificates = true],
    ];
    for changes in fine {
        assert_eq!(problems(changes), Vec::<String>::new());
    }
}

#[test]
fn secrets_that_say_nothing_are_refused_by_name() {
    let cases: [(Change, &str); 9] = [
        (
            |settings| settings.auth_token = secret(""),
            "--auth-token: ",
        ),
        (
            |settings| settings.auth_token = secret(" s "),
            "--auth-token: ",
        ),
        (
            |settings| settings.auth_token = secret("s\n"),
            "--auth-token: ",
        ),
        (
            |settings| settings.agent_tokens = secret("a---------------,,b---------------"),
            "--agent-tokens, entry 2: ",
        ),
        (
            |settings| settings.auditor_tokens = secret(""),
            "--auditor-tokens, entry 1: ",
        ),
        (
            |settings| settings.hmac_key = secret(""),
            "--auth-hmac-key: ",
        ),
        (
            |settings| settings.hmac_keys = secret(""),
            "EVIDENCEOS_HMAC_KEYS, entry 1: ",
        ),
        (
            |settings| settings.hmac_shared_secret = secret(""),
            "EVIDENCEOS_HMAC_SHARED_SECRET: ",
        ),
        (
            |settings| settings.auth_token = secret(&"t".repeat(4_097)),
            "--auth-token: ",
        ),
    ];
    for (change, expected) in cases {
        let problems = problems(&[change]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(expected), "{problems:?}");
    }
}

#[test]
fn an_empty_shared_secret_is_noticed_in_every_mode() {
    let problems = problems(&[AGENTS, |settings| settings.hmac_shared_secret = secret("")]);
    assert!(
        problems
            .iter()
            .any(|problem| problem.contains("must not be empty")),
        "{problems:?}"
    );
}

#[test]
fn debug_shows_which_secrets_are_set_and_none_of_them() {
    let mut settings = AuthSettings::default();
    for change in [AUTH_TOKEN, AGENTS, AUDITORS, KEY, KEYS, SHARED] {
        change(&mut settings);
    }
    let shown = format!("{settings:?}");
    assert!(!shown.contains("s-") && !shown.contains("00ff"), "{shown}");
    assert_eq!(shown.matches("hidden").count(), 6);
}

#[test]
fn a_policy_that_cannot_be_read_or_has_nobody_to_rule_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("roles.toml");
    let build = |certificates| {
        AuthSettings {
            policy: Some(path.clone()),
            client_certificates: certificates,
            ..AuthSettings::default()
        }
        .build()
        .err()
        .unwrap_or_default()
    };
    assert!(build(true)[0].starts_with("cannot read "));
    std::fs::write(&path, "default = \"submitter\"").expect("written");
    assert_eq!(build(true), Vec::<String>::new());
    // Else the policy would make way for a server where everybody may everything.
    assert!(build(false)[0].contains("callers cannot be authenticated"));
    std::fs::write(&path, "defualt = \"submitter\"").expect("written");
    assert!(build(true)[0].contains("roles.toml, line 1: unknown field"));
}

#[test]
fn secrets_that_are_guessed_easily_are_refused_with_how_to_make_one() {
    let cases: [(Change, &str); 7] = [
        (
            |settings| settings.auth_token = secret("s-23456789abcde"),
            "--auth-token: ",
        ),
        (
            |settings| settings.agent_tokens = secret("s-23456789abcdef,s-short"),
            "--agent-tokens, entry 2: ",
        ),
        (
            |settings| settings.auditor_tokens = secret("s"),
            "--auditor-tokens, entry 1: ",
        ),
        (
            |settings| settings.hmac_key = secret("s-23456789abcde"),
            "--auth-hmac-key: ",
        ),
        (
            |settings| settings.hmac_shared_secret = secret("s-"),
            "EVIDENCEOS_HMAC_SHARED_SECRET: ",
        ),
        (
            |settings| settings.hmac_keys = secret("ci:00ff"),
            "EVIDENCEOS_HMAC_KEYS, key \"ci\": ",
        ),
        (
            |settings| {
                settings.hmac_keys =
                    secret("a:000102030405060708090a0b0c0d0e,b:00112233445566778899aabbccddeeff")
            },
            "EVIDENCEOS_HMAC_KEYS, key \"a\": ",
        ),
    ];
    for (change, expected) in cases {
        let problems = problems(&[change]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let problem = problems[0].strip_prefix(expected).expect(expected);
        assert!(problem.contains("at least 16"), "{problem}");
        assert!(problem.contains("`openssl rand -hex 32`"), "{problem}");
        assert!(!problem.contains("s-"), "{problem}");
    }
    // A signature would be of either: the key id is not signed.
    let twice = problems(&[|settings| {
        settings.hmac_keys =
            secret("a:00112233445566778899aabbccddeeff,b:00112233445566778899aabbccddeeff");
    }]);
    assert_eq!(twice.len(), 1, "{twice:?}");
    assert!(
        twice[0].contains("entry 2") && twice[0].contains("the same secret"),
        "{twice:?}"
    );
    let enough: [Change; 3] = [
        |settings| settings.auth_token = secret("0123456789abcdef"),
        |settings| settings.hmac_key = secret("0123456789abcdef"),
        |settings| settings.hmac_keys = secret("ci:00112233445566778899aabbccddeeff"),
    ];
    for change in enough {
        assert_eq!(problems(&[change]), Vec::<String>::new());
    }
}
