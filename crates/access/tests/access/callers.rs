//! Who a call comes from, by everything that may be verified about it.

use ::hmac::{Hmac, KeyInit as _, Mac as _};
use evidenceos_access::{
    AuthSettings, Authenticator, Credentials, Denied, Identity, Roles, principal,
    strip_identity_headers,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::pki::{Ca, Leaf, client};

const NOW: u64 = 1_800_000_000;
const PATH: &str = "/evidenceos.v2.EvidenceOS/CreateClaimV2";

/// A short word as a token or secret that is long enough.
fn long(word: &str) -> String {
    format!("{word:-<16}")
}

/// One secret, or several with commas between them.
fn secret(text: &str) -> Option<Zeroizing<String>> {
    let parts: Vec<String> = text.split(',').map(|part| long(part.trim())).collect();
    Some(Zeroizing::new(parts.join(",")))
}

fn build(change: impl FnOnce(&mut AuthSettings)) -> Authenticator {
    let mut settings = AuthSettings::default();
    change(&mut settings);
    settings.build().expect("settings that fit")
}

/// A policy beside other settings.
fn with_policy(text: &str, change: impl FnOnce(&mut AuthSettings)) -> Authenticator {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("roles.toml");
    std::fs::write(&path, text).expect("written");
    build(|settings| {
        settings.policy = Some(path);
        change(settings);
    })
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
            (HeaderName::from_static(name), value)
        })
        .collect()
}

fn bearer(token: &str) -> HeaderMap {
    headers(&[("authorization", &format!("Bearer {}", long(token)))])
}

fn signed(secret: &str, id: &str, at: u64) -> HeaderMap {
    let mut mac = Hmac::<Sha256>::new_from_slice(long(secret).as_bytes()).expect("a key");
    mac.update(format!("{id}:{PATH}:{at}").as_bytes());
    let signature = hex::encode(mac.finalize().into_bytes());
    headers(&[
        ("x-request-id", id),
        ("x-evidenceos-timestamp", &at.to_string()),
        ("x-evidenceos-signature", &format!("sha256={signature}")),
    ])
}

fn identify(
    authenticator: &Authenticator,
    headers: &HeaderMap,
    certificate: Option<&Leaf>,
) -> Result<Identity, Denied> {
    identify_at(NOW, authenticator, headers, certificate)
}

fn identify_at(
    now: u64,
    authenticator: &Authenticator,
    headers: &HeaderMap,
    certificate: Option<&Leaf>,
) -> Result<Identity, Denied> {
    let der = certificate.map(Leaf::der);
    let credentials = Credentials {
        path: PATH,
        headers,
        certificate: der.as_deref(),
    };
    authenticator.identify(now, &credentials)
}

fn alice() -> Leaf {
    Ca::new("ca").issue(&client("spiffe://lab/alice"))
}

#[test]
fn a_new_token_can_be_the_caller_that_an_old_one_was() {
    let digest =
        |token: &str| principal::bearer(long(token).as_bytes())["bearer:".len()..].to_owned();
    let old = principal::bearer(long("old").as_bytes());
    let rule = |extra: &str| {
        format!(
            "[[rule]]\ntoken_sha256 = \"{}\"\nname = \"carol\"\nprincipal = \"{old}\"\nroles = [\"submitter\"]\n{extra}",
            digest("new")
        )
    };
    let rotated = with_policy(&rule(""), |_| {});
    let carol = identify(&rotated, &bearer("new"), None).expect("the new token");
    assert_eq!(
        (carol.principal.as_str(), carol.roles),
        (old.as_str(), Roles::SUBMITTER)
    );
    assert_eq!(
        rotated.names().collect::<Vec<_>>(),
        [(old.as_str(), "carol")]
    );
    assert!(
        identify(&rotated, &bearer("old"), None).is_err(),
        "the old one is over"
    );
    // Shut out is the caller, and also the token by itself.
    for denied in [
        format!("principal = \"{old}\""),
        format!("token_sha256 = \"{}\"", digest("new")),
    ] {
        let shut = with_policy(&rule(&format!("[[deny]]\n{denied}\n")), |_| {});
        assert!(identify(&shut, &bearer("new"), None).is_err(), "{denied}");
    }
}

#[test]
fn a_development_server_knows_tokens_apart_and_gives_nobody_in_particular_every_role() {
    let authenticator = AuthSettings::default().build().expect("nothing");
    assert!(authenticator.is_development());
    let nobody = identify(&authenticator, &HeaderMap::new(), None).expect("anonymous");
    assert_eq!(
        (nobody.principal.as_str(), nobody.roles, nobody.kind),
        ("anonymous", Roles::ALL, "anonymous")
    );
    let one = identify(&authenticator, &bearer("one"), None).expect("a token");
    assert_eq!((one.roles, one.kind), (Roles::SUBMITTER, "bearer"));
    assert_eq!(one.principal, principal::bearer(long("one").as_bytes()));
    // What is no token does not become nobody, who may more.
    for value in ["Basic b25l", "Bearerone", "Bearer ", "one"] {
        let denied = identify(&authenticator, &headers(&[("authorization", value)]), None);
        assert_eq!(denied, Err(Denied::BadAuthorization), "{value}");
    }
}

#[test]
fn a_role_comes_from_no_header_that_a_client_sends() {
    let claims = [
        ("x-client-cert-san", "operator"),
        ("x-client-cert-fp", "aa"),
        ("x-evidenceos-auth-role", "operator"),
        ("x-evidenceos-token-scopes", "role=operator"),
        ("x-evidenceos-principal", "anonymous"),
    ];
    let authenticator = build(|settings| settings.agent_tokens = secret("agent"));
    let mut spoofed = bearer("agent");
    spoofed.extend(headers(&claims));
    let honest = identify(&authenticator, &bearer("agent"), None).expect("a token");
    assert_eq!(identify(&authenticator, &spoofed, None), Ok(honest));
    // Alone they are no credential.
    let alone = identify(&authenticator, &headers(&claims), None);
    assert!(matches!(alone, Err(Denied::Missing(_))));
    strip_identity_headers(&mut spoofed);
    assert_eq!(spoofed, bearer("agent"));
}

#[test]
fn one_key_is_one_principal_over_all_its_requests() {
    let authenticator = build(|settings| settings.hmac_key = secret("shared"));
    let first = identify(&authenticator, &signed("shared", "1", NOW), None).expect("signed");
    let second = identify(&authenticator, &signed("shared", "2", NOW - 9), None).expect("signed");
    assert_eq!(first.principal, second.principal);
    assert_eq!(first.principal, principal::hmac("default"));
    assert_eq!((first.roles, first.kind), (Roles::SUBMITTER, "hmac"));
    // Request ids count from 1 in each process of a key; the timestamp tells them apart.
    assert_eq!(first.request_scope.as_deref(), Some("1800000000"));
    assert_eq!(second.request_scope.as_deref(), Some("1799999991"));
}

#[test]
fn a_signature_is_checked_over_the_path_of_the_call() {
    let authenticator = build(|settings| settings.hmac_key = secret("shared"));
    let headers = signed("shared", "1", NOW);
    let elsewhere = Credentials {
        path: "/evidenceos.v2.EvidenceOS/RevokeClaim",
        headers: &headers,
        certificate: None,
    };
    assert!(identify(&authenticator, &headers, None).is_ok());
    assert_eq!(
        authenticator.identify(NOW, &elsewhere),
        Err(Denied::WrongSignature)
    );
    let late = identify_at(NOW + 301, &authenticator, &headers, None);
    assert_eq!(late, Err(Denied::OutsideWindow));
}

#[test]
fn tokens_have_the_roles_of_their_flag() {
    let one = build(|settings| settings.auth_token = secret("one"));
    let two = build(|settings| {
        settings.agent_tokens = secret("agent, both");
        settings.auditor_tokens = secret("auditor,both");
    });
    for (authenticator, token, roles) in [
        (&one, "one", Roles::SUBMITTER_AUDITOR),
        (&two, "agent", Roles::SUBMITTER),
        (&two, "auditor", Roles::SUBMITTER_AUDITOR),
        (&two, "both", Roles::SUBMITTER_AUDITOR),
    ] {
        let caller = identify(authenticator, &bearer(token), None).expect(token);
        assert_eq!(caller.roles, roles, "{token}");
        assert_eq!(caller.principal, principal::bearer(long(token).as_bytes()));
        assert_eq!(caller.request_scope, None);
    }
    for token in ["One", "one ", "on", "onee"] {
        let denied = identify(&one, &bearer(token), None);
        assert_eq!(denied, Err(Denied::UnknownToken), "{token}");
    }
    for value in ["Bearerone", "Basic one", "Bearer", "one"] {
        let denied = identify(&one, &headers(&[("authorization", value)]), None);
        assert_eq!(denied, Err(Denied::BadAuthorization), "{value}");
    }
    let long = bearer(&"t".repeat(4_097));
    assert_eq!(identify(&one, &long, None), Err(Denied::BadAuthorization));
}

#[test]
fn a_verified_certificate_is_enough_and_is_known_by_its_kind_and_name() {
    let authenticator = build(|settings| settings.client_certificates = true);
    let caller = identify(&authenticator, &HeaderMap::new(), Some(&alice())).expect("verified");
    let digest = Sha256::digest(b"uri\0spiffe://lab/alice");
    assert_eq!(caller.principal, format!("mtls:{}", hex::encode(digest)));
    assert_eq!((caller.roles, caller.kind), (Roles::SUBMITTER, "mtls"));
    let nobody = identify(&authenticator, &HeaderMap::new(), None);
    assert!(matches!(nobody, Err(Denied::Missing(_))));
}

#[test]
fn a_connection_does_not_outlive_its_certificate() {
    let authenticator = build(|settings| {
        settings.client_certificates = true;
        settings.auth_token = secret("one");
    });
    // After 2999-01-01.
    for headers in [HeaderMap::new(), bearer("one")] {
        let late = identify_at(32_472_144_001, &authenticator, &headers, Some(&alice()));
        assert_eq!(late, Err(Denied::CertificateNotCurrent));
    }
}

#[test]
fn a_header_decides_over_a_certificate_and_is_never_ignored() {
    let authenticator = build(|settings| {
        settings.client_certificates = true;
        settings.auth_token = secret("one");
    });
    let alice = alice();
    let caller = identify(&authenticator, &bearer("one"), Some(&alice)).expect("both");
    assert_eq!(caller.principal, principal::bearer(long("one").as_bytes()));
    for (headers, expected) in [
        (bearer("two"), Denied::UnknownToken),
        (
            headers(&[("authorization", "Basic b25l")]),
            Denied::BadAuthorization,
        ),
        (signed("shared", "1", NOW), Denied::SignaturesNotTaken),
        (
            headers(&[("x-evidenceos-key-id", "ci")]),
            Denied::SignaturesNotTaken,
        ),
    ] {
        assert_eq!(
            identify(&authenticator, &headers, Some(&alice)),
            Err(expected)
        );
    }
    let certificates_only = build(|settings| settings.client_certificates = true);
    let denied = identify(&certificates_only, &bearer("one"), Some(&alice));
    assert_eq!(denied, Err(Denied::TokensNotTaken));
}

#[test]
fn a_token_and_a_signature_are_one_too_many() {
    let digest = hex::encode(Sha256::digest(long("op")));
    let policy = format!("[[rule]]\ntoken_sha256 = \"{digest}\"\nroles = [\"operator\"]");
    let authenticator = with_policy(&policy, |settings| settings.hmac_key = secret("shared"));
    let mut both = signed("shared", "1", NOW);
    both.extend(bearer("op"));
    assert_eq!(
        identify(&authenticator, &both, None),
        Err(Denied::TwoCredentials)
    );
    // Each alone is fine.
    assert!(identify(&authenticator, &bearer("op"), None).is_ok());
    assert!(identify(&authenticator, &signed("shared", "1", NOW), None).is_ok());
    let mut twice = bearer("op");
    twice.append("authorization", HeaderValue::from_static("Bearer other"));
    let denied = identify(&authenticator, &twice, None);
    assert_eq!(denied, Err(Denied::Repeated("authorization")));
}

#[test]
fn a_policy_gives_roles_to_whom_it_names_and_to_nobody_else() {
    let digest = |token: &[u8]| hex::encode(Sha256::digest(token));
    let policy = format!(
        r#"
        [[rule]]
        uri = "spiffe://lab/"
        roles = ["auditor"]
        [[rule]]
        token_sha256 = "{}"
        roles = ["operator", "auditor"]
        [[rule]]
        token_sha256 = "{}"
        roles = ["submitter"]
        [[rule]]
        hmac_key_id = "ci"
        roles = ["submitter"]
        "#,
        digest(long("op").as_bytes()),
        digest(long("auditor").as_bytes()),
    );
    let authenticator = with_policy(&policy, |settings| {
        settings.client_certificates = true;
        settings.auditor_tokens = secret("auditor,other");
    });
    let roles = |headers: HeaderMap| {
        identify(&authenticator, &headers, None).map(|caller| caller.roles.to_string())
    };
    // A digest in the policy is a credential of its own.
    assert_eq!(roles(bearer("op")).as_deref(), Ok("auditor+operator"));
    // It wins over the flag's roles; who is not named keeps them.
    assert_eq!(roles(bearer("auditor")).as_deref(), Ok("submitter"));
    assert_eq!(roles(bearer("other")).as_deref(), Ok("submitter+auditor"));
    let none = HeaderMap::new();
    let named = identify(&authenticator, &none, Some(&alice())).expect("verified");
    assert_eq!(named.roles.to_string(), "auditor");
    let stranger = Ca::new("ca").issue(&client("spiffe://elsewhere/alice"));
    let stranger = identify(&authenticator, &none, Some(&stranger)).expect("verified");
    assert!(stranger.roles.is_empty());

    let keys = with_policy(&policy, |settings| {
        settings.hmac_shared_secret = secret("shared");
    });
    let other = identify(&keys, &signed("shared", "1", NOW), None).expect("signed");
    assert!(other.roles.is_empty(), "the key \"default\" has no rule");
}

#[test]
fn who_is_missing_a_credential_is_told_what_is_taken() {
    type Change = fn(&mut AuthSettings);
    let cases: [(Change, &[&str]); 4] = [
        (|settings| settings.auth_token = secret("t"), &["Bearer"]),
        (
            |settings| settings.hmac_key = secret("t"),
            &["x-evidenceos-signature"],
        ),
        (
            |settings| settings.client_certificates = true,
            &["client certificate"],
        ),
        (
            |settings| {
                settings.hmac_key = secret("t");
                settings.client_certificates = true;
            },
            &["x-evidenceos-signature", "client certificate"],
        ),
    ];
    for (change, words) in cases {
        let denied = identify(&build(change), &HeaderMap::new(), None).expect_err("nobody");
        let text = denied.to_string();
        assert!(text.starts_with("missing credentials: "), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn no_refusal_repeats_what_was_sent() {
    let authenticator = build(|settings| settings.auth_token = secret("right"));
    let keys = build(|settings| settings.hmac_key = secret("right"));
    let mut wrong = signed("wrong", "hunter2", NOW);
    let texts = [
        identify(&authenticator, &bearer("hunter2"), None),
        identify(
            &authenticator,
            &headers(&[("authorization", "hunter2")]),
            None,
        ),
        identify(&keys, &wrong, None),
        identify(&keys, &bearer("hunter2"), None),
        {
            wrong.insert("x-evidenceos-key-id", HeaderValue::from_static("hunter2"));
            identify(&keys, &wrong, None)
        },
    ];
    for denied in texts {
        let text = denied.expect_err("refused").to_string();
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// What a call may bring: none, one that holds, one that does not.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Brought {
    Nothing,
    Good,
    Bad,
}

const EACH: [Brought; 3] = [Brought::Nothing, Brought::Good, Brought::Bad];

/// Every combination of certificate, token, token of the port's own, and signature: all must hold,
/// there is one header credential at most, and something must be there.
#[test]
fn every_credential_that_is_there_must_hold_whatever_comes_with_it() {
    let everything = |settings: &mut AuthSettings| {
        settings.client_certificates = true;
        settings.hmac_key = secret("a secret that is shared");
    };
    let digest = hex::encode(Sha256::digest(b"a token of the policy"));
    let policy = format!("[[rule]]\ntoken_sha256 = \"{digest}\"\nroles = [\"operator\"]");
    let configured = with_policy(&policy, everything);
    let development = AuthSettings::default().build().expect("nothing");
    let mut own = evidenceos_access::Tokens::default();
    own.add(b"the port's own token", Roles::SUBMITTER);
    let (good, expired) = (
        alice(),
        Ca::new("ca").issue(&crate::pki::Ask {
            expired: true,
            ..client("spiffe://lab/alice")
        }),
    );
    let signature = |brought| match brought {
        Brought::Nothing => HeaderMap::new(),
        Brought::Good => signed("a secret that is shared", "1", NOW),
        Brought::Bad => signed("another", "1", NOW),
    };
    let mut asked = 0;
    for certificate in EACH {
        for token in [
            "",
            "a token of the policy",
            "the port's own token",
            "no token of ours",
        ] {
            for signing in EACH {
                for with_own in [false, true] {
                    let mut headers = signature(signing);
                    if !token.is_empty() {
                        headers.extend(bearer(token));
                    }
                    let leaf = match certificate {
                        Brought::Nothing => None,
                        Brought::Good => Some(good.der()),
                        Brought::Bad => Some(expired.der()),
                    };
                    let credentials = Credentials {
                        path: PATH,
                        headers: &headers,
                        certificate: leaf.as_deref(),
                    };
                    let own = with_own.then_some(&own);
                    let known = configured.identify_with(own, NOW, &credentials);
                    let token_holds = match token {
                        "a token of the policy" => true,
                        "the port's own token" => with_own,
                        _ => false,
                    };
                    let expected = match (certificate, token, signing) {
                        (Brought::Bad, ..) => None,
                        (_, "", Brought::Good) => Some("hmac"),
                        (_, "", Brought::Bad) => None,
                        (Brought::Good, "", Brought::Nothing) => Some("mtls"),
                        (Brought::Nothing, "", Brought::Nothing) => None,
                        (_, _, Brought::Nothing) if token_holds => Some("bearer"),
                        _ => None,
                    };
                    let found = known.as_ref().ok().map(|identity| identity.kind);
                    let case = (certificate, token, signing, with_own);
                    assert_eq!(found, expected, "{case:?}: {known:?}");
                    asked += 1;
                    // Where the port's own tokens are all that is configured.
                    if certificate == Brought::Nothing && with_own {
                        let known = development.identify_with(own, NOW, &credentials);
                        let holds = token == "the port's own token" && signing == Brought::Nothing;
                        assert_eq!(known.is_ok(), holds, "{case:?}: {known:?}");
                    }
                }
            }
        }
    }
    assert_eq!(asked, 72);
}

#[test]
fn a_deny_entry_wins_over_every_rule_and_every_other_credential() {
    let token = hex::encode(Sha256::digest(b"a token of the policy"));
    let alice = alice();
    let cert = hex::encode(Sha256::digest(alice.der()));
    let serial = hex::encode(alice.serial());
    let principal =
        principal::certificate(evidenceos_access::IdentityKind::Uri, "spiffe://lab/alice");
    let rules = format!(
        "default = \"submitter\"\n\
         [[rule]]\ncert_sha256 = \"{cert}\"\nroles = [\"operator\"]\n\
         [[rule]]\nhmac_key_id = \"default\"\nroles = [\"operator\"]\n\
         [[rule]]\ntoken_sha256 = \"{token}\"\nroles = [\"operator\"]\n"
    );
    let with = |entry: &str| {
        with_policy(&format!("{rules}[[deny]]\n{entry}\n"), |settings| {
            settings.client_certificates = true;
            settings.hmac_key = secret("a secret that is shared");
        })
    };
    let signed = signed("a secret that is shared", "1", NOW);
    let token_header = bearer("a token of the policy");
    let ways = [
        ("certificate", HeaderMap::new(), Some(&alice)),
        ("token", token_header.clone(), None),
        ("signature", signed.clone(), None),
        ("certificate and token", token_header, Some(&alice)),
        ("certificate and signature", signed, Some(&alice)),
    ];
    let by_certificate = [
        r#"uri = "spiffe://lab/alice""#.to_owned(),
        r#"uri = "spiffe://lab/""#.to_owned(),
        format!("cert_sha256 = \"{cert}\""),
        format!("serial = \"{serial}\""),
        format!("principal = \"{principal}\""),
    ];
    let by_token = [format!("token_sha256 = \"{token}\"")];
    let by_key = [r#"hmac_key_id = "default""#.to_owned()];
    let nobody = [r#"uri = "spiffe://lab/bob""#.to_owned()];
    for (entries, denies) in [
        (&by_certificate[..], "certificate"),
        (&by_token, "token"),
        (&by_key, "signature"),
        (&nobody, "nobody"),
    ] {
        for entry in entries {
            let authenticator = with(entry);
            for (way, headers, leaf) in &ways {
                let known = identify(&authenticator, headers, *leaf);
                let expected = !way.contains(denies);
                assert_eq!(known.is_ok(), expected, "{entry}, {way}: {known:?}");
                if let Err(denied) = known {
                    assert!(
                        denied.to_string().contains("the role policy denies"),
                        "{denied}"
                    );
                }
            }
        }
    }
    // Also a token that no rule names, and one of the port's own.
    let digest = hex::encode(Sha256::digest(b"the port's own token"));
    let authenticator = with(&format!("token_sha256 = \"{digest}\""));
    let mut own = evidenceos_access::Tokens::default();
    own.add(b"the port's own token", Roles::SUBMITTER);
    let headers = bearer("the port's own token");
    let credentials = Credentials {
        path: PATH,
        headers: &headers,
        certificate: None,
    };
    let denied = authenticator.identify_with(Some(&own), NOW, &credentials);
    assert_eq!(denied, Err(Denied::ShutOut));
}

#[test]
fn a_call_that_lasts_is_looked_at_again_by_what_it_showed() {
    let rules = |deny: &str| {
        let digest = hex::encode(Sha256::digest(b"a token of the policy"));
        let text = format!(
            "[[rule]]\nuri = \"spiffe://lab/alice\"\nroles = [\"auditor\"]\n\
             [[rule]]\ntoken_sha256 = \"{digest}\"\nroles = [\"operator\"]\n{deny}"
        );
        with_policy(&text, |settings| {
            settings.client_certificates = true;
            settings.hmac_key = secret("a secret that is shared");
        })
    };
    let before = rules("");
    let der = alice().der();
    let by_token = identify(&before, &bearer("a token of the policy"), None).expect("a token");
    let signed = signed("a secret that is shared", "1", NOW);
    let by_key = identify(&before, &signed, None).expect("signed");
    let by_certificate = identify(&before, &HeaderMap::new(), Some(&alice())).expect("verified");
    let now = |authenticator: &Authenticator, identity: &Identity, at: u64, der: Option<&[u8]>| {
        authenticator.roles_now(None, at, &identity.proof, der)
    };
    // A signature's time is over long before its call is.
    for identity in [&by_token, &by_key, &by_certificate] {
        let roles = now(&before, identity, NOW + 9_999, Some(&der));
        assert_eq!(roles, Ok(identity.roles), "{identity:?}");
    }
    let late = now(&before, &by_token, 32_472_144_001, Some(&der));
    assert_eq!(late, Err(Denied::CertificateNotCurrent));
    let shut = rules("[[deny]]\nuri = \"spiffe://lab/alice\"\n");
    for identity in [&by_token, &by_key, &by_certificate] {
        let denied = now(&shut, identity, NOW, Some(&der));
        assert_eq!(denied, Err(Denied::CertificateShutOut), "{identity:?}");
    }
    let shut = rules("[[deny]]\nhmac_key_id = \"default\"\n");
    assert_eq!(now(&shut, &by_key, NOW, None), Err(Denied::ShutOut));
    assert_eq!(now(&shut, &by_token, NOW, None), Ok(by_token.roles));
    let others = build(|settings| settings.agent_tokens = secret("another token of a list"));
    assert_eq!(
        now(&others, &by_token, NOW, None),
        Err(Denied::UnknownToken)
    );
    assert_eq!(now(&others, &by_key, NOW, None), Err(Denied::UnknownKeyId));
    assert!(now(&others, &by_certificate, NOW, Some(&der)).is_err());
}
