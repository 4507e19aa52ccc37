//! Which clients a handshake lets in, and how those it refuses are logged.

use evidenceos_access::{ClientCertificates, Limits};
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};

use crate::{
    pki::{self, Ask, Ca, Leaf, client},
    server::{BOTH, Client, Log, ONLY_TLS12, ONLY_TLS13, Server, tls, tls_without_eku},
};

/// A server of one CA for everything, and a client with a certificate, or none.
async fn attempt(
    mode: ClientCertificates,
    allow_without_eku: bool,
    ca: &Ca,
    certificate: Option<&Leaf>,
) -> Result<String, String> {
    let directory = tempfile::tempdir().expect("a directory");
    pki::write(directory.path(), &ca.issue(&pki::server()), ca);
    let mut heard = Vec::new();
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let (log, _guard) = Log::begin();
        let tls = tls_without_eku(directory.path(), mode, allow_without_eku);
        let server = Server::start(Some(tls), Limits::default()).await;
        let talk = Client::new(ca, certificate, versions)
            .talk(server.address)
            .await;
        heard.push(match talk {
            Ok(talk) => {
                assert_eq!(server.counts().handshake_failures, 0);
                Ok(talk.name)
            }
            Err(_) => {
                server
                    .counts_until(|counts| counts.handshake_failures == 1)
                    .await;
                assert_eq!(
                    server
                        .counts_until(|counts| counts.open == 0)
                        .await
                        .probe_like,
                    0
                );
                let text = log.text();
                assert!(
                    text.contains("peer=127.0.0.1") && text.contains("INFO"),
                    "{text}"
                );
                Err(text)
            }
        });
    }
    assert_eq!(
        heard[0].is_ok(),
        heard[1].is_ok(),
        "TLS 1.2 and 1.3 differ: {heard:?}"
    );
    heard.remove(0)
}

#[tokio::test]
async fn only_a_current_client_certificate_of_the_ca_with_one_identity_is_let_in() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let with = |change: fn(&mut Ask)| {
        let mut ask = client("spiffe://lab/a");
        change(&mut ask);
        ask
    };
    let uri = "spiffe://lab/a";
    let cases = [
        ("as it should be", with(|_| ()), Ok(uri)),
        (
            "URI before DNS",
            with(|ask| ask.dns = vec!["bob.example"]),
            Ok(uri),
        ),
        (
            "the first DNS name",
            with(|ask| (ask.uris, ask.dns) = (vec![], vec!["bob.example", "eve.example"])),
            Ok("bob.example"),
        ),
        (
            "two URIs",
            with(|ask| ask.uris.push("spiffe://lab/b")),
            Err("several URIs"),
        ),
        (
            "the same URI twice",
            with(|ask| ask.uris.push("spiffe://lab/a")),
            Err("several URIs"),
        ),
        ("expired", with(|ask| ask.expired = true), Err("expired")),
        (
            "for servers only",
            with(|ask| ask.usages = vec![ServerAuth]),
            Err("invalid peer certificate"),
        ),
        (
            "for both",
            with(|ask| ask.usages = vec![ServerAuth, ClientAuth]),
            Ok(uri),
        ),
        (
            "for no purpose in particular",
            with(|ask| ask.usages.clear()),
            Err("InvalidPurpose"),
        ),
    ];
    for (what, ask, expected) in cases {
        let leaf = ca.issue(&ask);
        let heard = attempt(ClientCertificates::Required, false, &ca, Some(&leaf)).await;
        match (&heard, expected) {
            (Ok(name), Ok(expected)) => assert_eq!(name, expected, "{what}"),
            (Err(log), Err(expected)) => assert!(log.contains(expected), "{what}: {log}"),
            _ => panic!("{what}: {heard:?}"),
        }
    }
    let stranger = other.issue(&client("spiffe://lab/a"));
    let heard = attempt(ClientCertificates::Required, false, &ca, Some(&stranger)).await;
    assert!(heard.expect_err("another CA").contains("UnknownIssuer"));
    let heard = attempt(ClientCertificates::Required, false, &ca, None).await;
    assert!(heard.expect_err("none").contains("no certificates"));
}

#[tokio::test]
async fn a_certificate_without_extended_key_usage_needs_the_explicit_flag() {
    let ca = Ca::new("ca");
    let mut ask = client("spiffe://lab/a");
    ask.usages.clear();
    let unrestricted = ca.issue(&ask);
    ask.usages = vec![ServerAuth];
    let servers = ca.issue(&ask);
    for (leaf, allow, is_in) in [
        (&unrestricted, false, false),
        (&unrestricted, true, true),
        (&servers, true, false),
    ] {
        let heard = attempt(ClientCertificates::Required, allow, &ca, Some(leaf)).await;
        assert_eq!(heard.is_ok(), is_in, "{heard:?}");
    }
}

#[tokio::test]
async fn a_common_name_is_never_an_identity() {
    let ca = Ca::new("ca");
    let mut ask = client("unused");
    ask.uris.clear();
    // Its common name is "operator".
    let leaf = ca.issue(&ask);
    let heard = attempt(ClientCertificates::Required, false, &ca, Some(&leaf)).await;
    let digest = {
        use sha2::{Digest as _, Sha256};
        hex::encode(Sha256::digest(leaf.der()))
    };
    assert_eq!(heard, Ok(digest));
}

#[tokio::test]
async fn where_certificates_are_optional_none_is_fine_and_a_bad_one_is_not() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let good = ca.issue(&client("spiffe://lab/a"));
    let bad = other.issue(&client("spiffe://lab/a"));
    let optional = ClientCertificates::Optional;
    assert_eq!(
        attempt(optional, false, &ca, None).await.as_deref(),
        Ok("nobody")
    );
    let heard = attempt(optional, false, &ca, Some(&good)).await;
    assert_eq!(heard.as_deref(), Ok("spiffe://lab/a"));
    assert!(attempt(optional, false, &ca, Some(&bad)).await.is_err());
    // Nobody asks for it: nobody is shown it.
    let heard = attempt(ClientCertificates::None, false, &ca, Some(&bad)).await;
    assert_eq!(heard.as_deref(), Ok("nobody"));
}

#[tokio::test]
async fn tls_1_3_is_preferred_and_1_2_is_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::new("ca");
    pki::write(directory.path(), &ca.issue(&pki::server()), &ca);
    let tls = tls(directory.path(), ClientCertificates::None);
    let server = Server::start(Some(tls), Limits::default()).await;
    for (versions, expected) in [
        (BOTH, rustls::ProtocolVersion::TLSv1_3),
        (ONLY_TLS12, rustls::ProtocolVersion::TLSv1_2),
    ] {
        let mut talk = Client::new(&ca, None, versions)
            .talk(server.address)
            .await
            .expect("let in");
        assert_eq!(talk.version(), expected);
        assert_eq!(talk.echo("hello").await.expect("an echo"), "hello");
    }
}
