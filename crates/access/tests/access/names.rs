//! Names in certificates that something else could read in another way.

use evidenceos_access::{
    CertificateError, ClientCertificates, IdentityKind, Limits, PeerCertificate,
};

use crate::{
    pki::{self, Ask, Ca, client},
    server::{Client, Log, ONLY_TLS13, Server, tls},
};

const URI: u8 = 0x86;
const DNS: u8 = 0x82;

/// A subject alternative name of these names, whatever bytes they have.
fn names(names: &[(u8, &[u8])]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    for (tag, name) in names {
        content.extend([*tag, u8::try_from(name.len()).expect("short")]);
        content.extend(*name);
    }
    let mut sequence = vec![0x30, u8::try_from(content.len()).expect("short")];
    sequence.extend(content);
    Some(sequence)
}

fn read(ask: &Ask) -> Result<PeerCertificate, CertificateError> {
    PeerCertificate::read(&Ca::new("ca").issue(ask).der())
}

#[test]
fn a_name_with_anything_but_visible_ascii_is_no_identity() {
    let bad: [&[u8]; 12] = [
        b"spiffe://lab/alice\0",
        b"\0spiffe://lab/alice",
        b"spiffe://lab/alice\0.evil",
        b"spiffe://lab/alice\n",
        b"spiffe://lab/\ralice",
        b"spiffe://lab/al\tice",
        b"spiffe://lab/\x1b[2Jalice",
        b"spiffe://lab/alice\x7f",
        b"spiffe://lab/al ice",
        b"spiffe://lab/\xc3\xa4lice",
        b"spiffe://lab/\xe2\x80\xaealice",
        b"spiffe://lab/\xff",
    ];
    for name in bad {
        for tag in [URI, DNS] {
            let good: (u8, &[u8]) = (DNS, b"good.example");
            for all in [
                vec![(tag, name)],
                vec![(tag, name), good],
                vec![good, (tag, name)],
            ] {
                let ask = Ask {
                    uris: vec![],
                    raw_names: names(&all),
                    ..client("")
                };
                let refused = read(&ask).expect_err("no identity");
                let text = refused.to_string();
                assert_eq!(refused, CertificateError::UnreadableName, "{all:?}");
                assert!(text.contains("0x21-0x7e") && text.is_ascii(), "{text}");
            }
        }
    }
    let good = Ask {
        uris: vec![],
        raw_names: names(&[
            (DNS, b"a.example"),
            (URI, b"spiffe://lab/a~!$&'()*+,;=:@%C3%A4"),
        ]),
        ..client("")
    };
    let good = read(&good).expect("visible ASCII");
    assert_eq!(good.kind, IdentityKind::Uri);
    assert_eq!(good.dns_names, ["a.example"]);
}

#[test]
fn a_common_name_may_be_in_any_script_and_has_no_control_characters() {
    for (common_name, taken) in [
        ("operator", true),
        ("J\u{f6}rg M\u{fc}ller", true),
        ("a\0b", false),
        ("a\nrole=operator", false),
        ("\x1b[31moperator", false),
        ("a\u{85}b", false),
    ] {
        let ask = Ask {
            common_name,
            ..client("spiffe://lab/alice")
        };
        match read(&ask) {
            Ok(certificate) => {
                assert!(taken, "{common_name:?}");
                assert_eq!(certificate.name, "spiffe://lab/alice");
            }
            Err(refused) => {
                assert!(!taken, "{common_name:?}");
                assert_eq!(refused, CertificateError::ControlInCommonName);
            }
        }
    }
}

#[tokio::test]
async fn a_handshake_with_such_a_name_is_refused_and_the_log_stays_plain() {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::new("ca");
    pki::write(directory.path(), &ca.issue(&pki::server()), &ca);
    let (log, _guard) = Log::begin();
    let server = Server::start(
        Some(tls(directory.path(), ClientCertificates::Required)),
        Limits::default(),
    )
    .await;
    let leaf = ca.issue(&Ask {
        uris: vec![],
        raw_names: names(&[(URI, b"spiffe://lab/\x1b[2J\nalice")]),
        ..client("")
    });
    let talk = Client::new(&ca, Some(&leaf), ONLY_TLS13)
        .talk(server.address)
        .await;
    assert!(talk.is_err());
    server
        .counts_until(|counts| counts.handshake_failures == 1)
        .await;
    let text = log.text();
    assert!(text.contains("control character"), "{text}");
    assert!(!text.contains("[2J") && !text.contains("\nalice"), "{text}");
}
