//! Lists of revoked certificates: in handshakes, on open connections, and when they do not fit.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use evidenceos_access::{ClientCertificates, Limits, Reloaded, Stats, Tls, TlsError, incoming};
use tokio::{net::TcpListener, time::timeout};
use tokio_stream::StreamExt as _;

use crate::{
    pki::{self, Ca, Leaf, client},
    server::{Client, Log, ONLY_TLS12, ONLY_TLS13, Server},
};

const URI: &str = "spiffe://lab/a";

/// One authority for everything, and a set of its files.
struct Lab {
    directory: tempfile::TempDir,
    ca: Ca,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            directory: tempfile::tempdir().expect("a directory"),
            ca: Ca::new("the lab"),
        };
        pki::write(lab.path(), &lab.ca.issue(&pki::server()), &lab.ca);
        lab
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn list(&self, content: &str) {
        pki::write_file(&self.path().join("clients.crl"), content, 0o644);
    }

    fn load_files(&self, crls: &[&str]) -> Result<Arc<Tls>, TlsError> {
        let mut files = pki::files(self.path(), true);
        files.client_crls = crls.iter().map(|name| self.path().join(name)).collect();
        Tls::load(files, ClientCertificates::Required, &[b"h2"], false)
    }

    fn load(&self) -> Result<Arc<Tls>, TlsError> {
        self.load_files(&["clients.crl"])
    }

    fn client(&self) -> Leaf {
        self.ca.issue(&client(URI))
    }
}

#[tokio::test]
async fn a_revoked_certificate_makes_no_handshake_and_resumes_none() {
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let lab = Lab::new();
        let (good, bad) = (lab.client(), lab.client());
        lab.list(&lab.ca.crl(&[], 2999));
        let tls = lab.load().expect("a list");
        let server = Server::start(Some(Arc::clone(&tls)), Limits::default()).await;
        let [good_one, bad_one] =
            [&good, &bad].map(|leaf| Client::new(&lab.ca, Some(leaf), versions));
        for client in [&good_one, &bad_one] {
            client
                .talk(server.address)
                .await
                .expect("nobody is revoked");
        }
        lab.list(&lab.ca.crl(&[&bad], 2999));
        assert_eq!(tls.reload().expect("a list"), Reloaded::Replaced);
        good_one.talk(server.address).await.expect("not revoked");
        assert!(bad_one.talk(server.address).await.is_err(), "by a session");
        let fresh = Client::new(&lab.ca, Some(&bad), versions);
        assert!(fresh.talk(server.address).await.is_err());
        // The same name in a certificate of another number is the same caller, who is let in.
        let renewed = Client::new(&lab.ca, Some(&lab.client()), versions);
        renewed.talk(server.address).await.expect("not revoked");
    }
}

#[tokio::test]
async fn an_open_connection_learns_that_its_certificate_is_revoked() {
    let lab = Lab::new();
    let leaf = lab.client();
    lab.list(&lab.ca.crl(&[], 2999));
    let tls = lab.load().expect("a list");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let never = std::future::pending();
    let (limits, stats) = (Limits::default(), Arc::<Stats>::default());
    let mut connections = incoming(listener, Some(Arc::clone(&tls)), limits, stats, never);
    let config = crate::server::config(&lab.ca, Some(&leaf), ONLY_TLS13);
    let connect = async {
        let tcp = tokio::net::TcpStream::connect(address)
            .await
            .expect("listens");
        let name = "localhost".try_into().expect("a name");
        let connector = tokio_rustls::TlsConnector::from(config);
        connector.connect(name, tcp).await.expect("let in")
    };
    let (_client, connection) = tokio::join!(connect, connections.next());
    let connection = connection.expect("one").expect("no error");
    assert!(!connection.peer().is_revoked());
    lab.list(&lab.ca.crl(&[&leaf], 2999));
    tls.reload().expect("a list");
    assert!(connection.peer().is_revoked());
    lab.list(&lab.ca.crl(&[&lab.client()], 2999));
    tls.reload().expect("a list");
    assert!(!connection.peer().is_revoked(), "another's number");
}

/// Whichever comes first: an authority's older list beside its newer one lets nobody in.
#[tokio::test]
async fn of_two_lists_of_one_authority_both_count() {
    let lab = Lab::new();
    let bad = lab.client();
    let (older, newer) = (lab.ca.crl(&[], 2999), lab.ca.crl(&[&bad], 2999));
    for lists in [format!("{older}{newer}"), format!("{newer}{older}")] {
        lab.list(&lists);
        let tls = lab.load().expect("two lists");
        let server = Server::start(Some(tls), Limits::default()).await;
        let talk = Client::new(&lab.ca, Some(&bad), ONLY_TLS13)
            .talk(server.address)
            .await;
        assert!(talk.is_err());
    }
}

/// Each certificate of a chain needs a list of its issuer, and is looked up in it.
#[tokio::test]
async fn a_chain_holds_if_none_of_its_certificates_is_revoked_or_unlisted() {
    let lab = Lab::new();
    let (between, certificate) = lab.ca.intermediate("between");
    let mut leaf = between.issue(&client(URI));
    leaf.cert_pem.push_str(&certificate.cert_pem);
    let (root_list, own_list) = (lab.ca.crl(&[], 2999), between.crl(&[], 2999));
    for (lists, let_in) in [
        (root_list.clone(), false),
        (format!("{root_list}{own_list}"), true),
        (format!("{root_list}{}", between.crl(&[&leaf], 2999)), false),
        (
            format!("{}{own_list}", lab.ca.crl(&[&certificate], 2999)),
            false,
        ),
    ] {
        lab.list(&lists);
        let tls = lab.load().expect("lists");
        let server = Server::start(Some(tls), Limits::default()).await;
        for versions in [ONLY_TLS12, ONLY_TLS13] {
            let talk = Client::new(&lab.ca, Some(&leaf), versions)
                .talk(server.address)
                .await;
            assert_eq!(talk.is_ok(), let_in, "{lists}");
        }
    }
}

#[test]
fn lists_are_taken_as_pem_or_der_and_several_to_a_file() {
    let lab = Lab::new();
    let other = Ca::new("others");
    let both = format!("{}{}", lab.ca.pem, other.pem);
    pki::write_file(&lab.path().join("ca.crt"), &both, 0o644);
    let (ours, theirs) = (lab.ca.crl(&[], 2999), other.crl(&[], 2998));
    lab.list(&format!("a comment\n{ours}{theirs}"));
    let tls = lab.load().expect("both in one file");
    assert_eq!(
        tls.crl_next_update_unix(),
        Some(32_440_608_000),
        "2998-01-01"
    );
    lab.list(&ours);
    let error = lab.load().expect_err("one authority has none").to_string();
    for words in ["no revocation list of the authority", "CN=others", "ca.crt"] {
        assert!(error.contains(words), "{error}");
    }
    let der = pem_body(&theirs);
    fs::write(lab.path().join("theirs.crl"), der).expect("written");
    lab.load_files(&["clients.crl", "theirs.crl"])
        .expect("two files, one of DER");
}

fn pem_body(pem: &str) -> Vec<u8> {
    use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject as _};
    CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
        .expect("PEM")
        .to_vec()
}

#[test]
fn a_list_that_does_not_fit_stops_a_start_and_says_what_to_do() {
    let lab = Lab::new();
    let good = lab.ca.crl(&[], 2999);
    let cut = &good[..good.len() / 2];
    let garbled = good.replace("MII", "M!!").replacen("MIG", "M!!", 1);
    let certificate = lab.client().cert_pem;
    let swapped = certificate.replace("CERTIFICATE", "X509 CRL");
    for (content, words) in [
        ("", "no revocation list found in"),
        ("nonsense", "no revocation list found in"),
        (certificate.as_str(), "no revocation list found in"),
        (cut, "is not PEM"),
        (&swapped, "revocation list 1 in"),
        (
            "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n",
            "revocation list 1 in",
        ),
        (
            &lab.ca.crl(&[], 2021),
            "past its nextUpdate (1609459200 s since 1970): get the authority's newest",
        ),
        (
            &Ca::new("others").crl(&[], 2999),
            "no revocation list of the authority",
        ),
    ] {
        lab.list(content);
        let error = lab.load().expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
        let names_a_file = error.contains("clients.crl") || error.contains("ca.crt");
        assert!(names_a_file, "{error}");
    }
    if garbled != good {
        lab.list(&garbled);
        assert!(lab.load().is_err(), "base64 that is none");
    }
    fs::remove_file(lab.path().join("clients.crl")).expect("removed");
    let error = lab.load().expect_err("missing").to_string();
    assert!(
        error.starts_with("cannot read ") && error.contains("clients.crl"),
        "{error}"
    );
    lab.list(&good);
    let path = lab.path().join("clients.crl");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("a mode");
    let error = lab.load().expect_err("everybody's").to_string();
    assert!(error.contains("chmod o-w"), "{error}");
}

#[test]
fn lists_need_certificates_that_they_could_be_about() {
    let lab = Lab::new();
    lab.list(&lab.ca.crl(&[], 2999));
    let mut files = pki::files(lab.path(), false);
    files.client_crls = vec![lab.path().join("clients.crl")];
    let loaded = Tls::load(files, ClientCertificates::None, &[b"h2"], false);
    assert!(
        matches!(loaded, Err(TlsError::UnusedClientCrl { .. })),
        "{loaded:?}"
    );
}

#[tokio::test]
async fn a_list_of_an_impostor_lets_nobody_in() {
    let lab = Lab::new();
    // The same name, another key.
    lab.list(&Ca::new("the lab").crl(&[], 2999));
    let tls = lab
        .load()
        .expect("its signature is checked in the handshake");
    let server = Server::start(Some(tls), Limits::default()).await;
    let leaf = lab.client();
    let talk = Client::new(&lab.ca, Some(&leaf), ONLY_TLS13)
        .talk(server.address)
        .await;
    assert!(talk.is_err());
}

#[tokio::test]
async fn a_reload_keeps_the_list_that_serves_and_is_loud() {
    let lab = Lab::new();
    let bad = lab.client();
    lab.list(&lab.ca.crl(&[&bad], 2999));
    let tls = lab.load().expect("a list");
    let server = Server::start(Some(Arc::clone(&tls)), Limits::default()).await;
    let refused = Client::new(&lab.ca, Some(&bad), ONLY_TLS13);
    for content in ["", &lab.ca.crl(&[], 2021)] {
        lab.list(content);
        tls.reload().expect_err("it does not fit");
        assert!(
            refused.talk(server.address).await.is_err(),
            "the old list serves"
        );
    }
    assert_eq!(tls.reload_failures(), 2);
    // The watcher says so too, once.
    let (log, _guard) = Log::begin();
    let watching = tls.watch(Duration::from_secs(86_400), std::future::pending());
    let mut reloads = tls.reloads();
    lab.list("");
    let reached = timeout(
        Duration::from_secs(30),
        reloads.wait_for(|reloads| reloads.failures >= 3),
    );
    reached.await.expect("in time").expect("watched");
    let said = timeout(Duration::from_secs(30), async {
        // It counts, and then says so.
        while !log.text().contains("refused") {
            tokio::task::yield_now().await;
        }
        log.text()
    });
    let text = said.await.expect("in time");
    assert!(text.contains("clients.crl"), "{text}");
    watching.abort();
}
