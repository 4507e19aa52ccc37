//! Exchanging the files of a listener while it serves.

use std::{
    fs, io::Read as _, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc,
    time::Duration,
};

use evidenceos_access::{ClientCertificates, Limits, Reloaded, Reloads, Tls, TlsError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

use crate::{
    pki::{self, Ca, Leaf, SecretMount, client},
    server::{Client, Log, ONLY_TLS12, ONLY_TLS13, Server, tls},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing but an event makes the watcher look.
const NEVER: Duration = Duration::from_secs(86_400);

/// A CA for servers, one for clients, and a directory with a set of both.
struct Lab {
    directory: tempfile::TempDir,
    server_ca: Ca,
    client_ca: Ca,
    leaf: Leaf,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (server_ca, client_ca) = (Ca::new("servers"), Ca::new("clients"));
        let leaf = server_ca.issue(&pki::server());
        pki::write(directory.path(), &leaf, &client_ca);
        Self {
            directory,
            server_ca,
            client_ca,
            leaf,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn tls(&self) -> Arc<Tls> {
        tls(self.path(), ClientCertificates::Required)
    }
}

/// Waits until the counts are these.
async fn reached(tls: &Tls, wanted: Reloads) {
    let mut reloads = tls.reloads();
    let reached = timeout(PATIENCE, reloads.wait_for(|reloads| *reloads == wanted)).await;
    let held = reached.is_ok();
    drop(reached);
    assert!(held, "wanted {wanted:?}, got {:?}", *reloads.borrow());
}

#[tokio::test]
async fn a_session_that_the_old_ca_let_in_is_not_resumed_under_the_new_one() {
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let lab = Lab::new();
        let tls = lab.tls();
        let server = Server::start(Some(Arc::clone(&tls)), Limits::default()).await;
        let old = lab.client_ca.issue(&client("spiffe://lab/old"));
        let old = Client::new(&lab.server_ca, Some(&old), versions);

        let mut first = old.talk(server.address).await.expect("let in");
        assert!(!first.resumed());
        let mut second = old.talk(server.address).await.expect("let in");
        assert!(second.resumed(), "or this test shows nothing");
        assert_eq!(second.name, "spiffe://lab/old");
        for talk in [&mut first, &mut second] {
            talk.echo("known").await.expect("an echo");
        }

        let new_ca = Ca::new("new clients");
        pki::write(lab.path(), &lab.server_ca.issue(&pki::server()), &new_ca);
        assert_eq!(tls.reload().expect("it fits"), Reloaded::Replaced);

        let refused = old.talk(server.address).await;
        assert!(refused.is_err(), "the old CA, by a session that was kept");
        server
            .counts_until(|counts| counts.handshake_failures == 1)
            .await;
        // Its connections are closed: one of a whole handshake, and one of a resumed session.
        assert!(first.ends().await && second.ends().await);
        let new = new_ca.issue(&client("spiffe://lab/new"));
        let new = Client::new(&lab.server_ca, Some(&new), versions);
        assert_eq!(
            new.talk(server.address).await.expect("let in").name,
            "spiffe://lab/new"
        );
    }
}

/// A certificate of an intermediate authority, which the client sends along.
fn through(root: &Ca, uri: &'static str) -> (Ca, Leaf) {
    let (between, certificate) = root.intermediate("between");
    let mut leaf = between.issue(&client(uri));
    leaf.cert_pem.push_str(&certificate.cert_pem);
    (between, leaf)
}

#[tokio::test]
async fn connections_end_with_the_authority_behind_them_and_no_others_do() {
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let lab = Lab::new();
        let (gone, kept) = (Ca::new("gone"), Ca::new("kept"));
        let (_, through_gone) = through(&gone, "spiffe://lab/through-gone");
        let (between, through_kept) = through(&kept, "spiffe://lab/through-kept");
        let (between_gone, through_both) = through(&gone, "spiffe://lab/through-both");
        let bundle = |authorities: &[&Ca]| {
            let pems: String = authorities.iter().map(|ca| ca.pem.as_str()).collect();
            pki::write_file(&lab.path().join("ca.crt"), &pems, 0o644);
        };
        bundle(&[&gone, &kept]);
        let tls = tls(lab.path(), ClientCertificates::Optional);
        let server = Server::start(Some(Arc::clone(&tls)), Limits::default()).await;
        let open = async |leaf: Option<&Leaf>| {
            let client = Client::new(&lab.server_ca, leaf, versions);
            client.talk(server.address).await.expect("let in")
        };
        let mut ends = [
            open(Some(&gone.issue(&client("spiffe://lab/gone")))).await,
            open(Some(&through_gone)).await,
        ];
        let mut stay = [
            open(Some(&kept.issue(&client("spiffe://lab/kept")))).await,
            open(Some(&through_kept)).await,
            // Its own authority is in the new bundle, though the one above is not.
            open(Some(&through_both)).await,
            open(None).await,
        ];
        async fn stay_open<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
            talks: &mut [crate::server::Talk<S>],
        ) {
            for talk in talks {
                assert_eq!(talk.echo("here").await.expect("an echo"), "here");
            }
        }
        // Another certificate of the server, and a bundle in another order: nothing ends.
        let fresh = lab.server_ca.issue(&pki::server());
        pki::write_file(&lab.path().join("server.key"), &fresh.key_pem, 0o440);
        pki::write_file(&lab.path().join("server.crt"), &fresh.cert_pem, 0o644);
        bundle(&[&kept, &gone]);
        assert_eq!(tls.reload().expect("it fits"), Reloaded::Replaced);
        stay_open(&mut ends).await;
        stay_open(&mut stay).await;
        // A bundle that does not fit ends nothing either.
        pki::write_file(&lab.path().join("ca.crt"), "nobody", 0o644);
        tls.reload().expect_err("no bundle");
        stay_open(&mut ends).await;

        bundle(&[&kept, &between, &between_gone]);
        assert_eq!(tls.reload().expect("it fits"), Reloaded::Replaced);
        for talk in &mut ends {
            assert!(talk.ends().await, "{}", talk.name);
        }
        stay_open(&mut stay).await;
        server.counts_until(|counts| counts.open == 4).await;
    }
}

/// The files are exchanged after the server has chosen those of this handshake.
#[tokio::test]
async fn a_handshake_that_is_under_way_ends_under_the_new_authority() {
    for let_in in [false, true] {
        let lab = Lab::new();
        let tls = lab.tls();
        let server = Server::start(Some(Arc::clone(&tls)), Limits::default()).await;
        let leaf = lab.client_ca.issue(&client("spiffe://lab/a"));
        let half = HalfWay::new(&lab.server_ca, &leaf, server.address).await;

        let other = Ca::new("other clients");
        let authority = if let_in { &lab.client_ca } else { &other };
        pki::write(lab.path(), &lab.server_ca.issue(&pki::server()), authority);
        assert_eq!(tls.reload().expect("it fits"), Reloaded::Replaced);

        let greeting = half.finish().await;
        assert_eq!(greeting.starts_with(b"spiffe://lab/a\n"), let_in);
        let failures = u64::from(!let_in);
        server
            .counts_until(|counts| counts.handshake_failures == failures)
            .await;
    }
}

/// A handshake for which the client's last flight is missing.
struct HalfWay {
    tcp: TcpStream,
    tls: rustls::ClientConnection,
}

impl HalfWay {
    async fn new(server_ca: &Ca, leaf: &Leaf, address: SocketAddr) -> Self {
        let config = crate::server::config(server_ca, Some(leaf), ONLY_TLS13);
        let name = "localhost".try_into().expect("a name");
        let tls = rustls::ClientConnection::new(config, name).expect("a client");
        let tcp = TcpStream::connect(address).await.expect("listens");
        let mut half = Self { tcp, tls };
        half.send().await;
        while half.tls.is_handshaking() {
            assert!(half.receive().await, "the server's flight");
        }
        half
    }

    async fn send(&mut self) {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).expect("memory");
        }
        self.tcp.write_all(&bytes).await.expect("sent");
    }

    /// Whether something came.
    async fn receive(&mut self) -> bool {
        let mut bytes = [0; 4_096];
        let received = timeout(PATIENCE, self.tcp.read(&mut bytes)).await;
        let count = received.expect("in time").unwrap_or(0);
        let mut bytes = &bytes[..count];
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes).expect("memory");
            if self.tls.process_new_packets().is_err() {
                return false;
            }
        }
        count > 0
    }

    /// Finishes it; what the server says then.
    async fn finish(mut self) -> Vec<u8> {
        self.send().await;
        let mut said = Vec::new();
        while !said.contains(&b'\n') && self.receive().await {
            // It fails while there is no more.
            let _ = self.tls.reader().read_to_end(&mut said);
        }
        said
    }
}

#[tokio::test]
async fn a_new_set_of_the_same_ca_starts_with_no_sessions() {
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let lab = Lab::new();
        let tls = lab.tls();
        let server = Server::start(Some(Arc::clone(&tls)), Limits::default()).await;
        let leaf = lab.client_ca.issue(&client("spiffe://lab/a"));
        let peer = Client::new(&lab.server_ca, Some(&leaf), versions);
        for resumed in [false, true] {
            assert_eq!(
                peer.talk(server.address).await.expect("let in").resumed(),
                resumed
            );
        }
        pki::write(
            lab.path(),
            &lab.server_ca.issue(&pki::server()),
            &lab.client_ca,
        );
        assert_eq!(tls.reload().expect("it fits"), Reloaded::Replaced);
        for resumed in [false, true] {
            assert_eq!(
                peer.talk(server.address).await.expect("let in").resumed(),
                resumed
            );
        }
    }
}

#[tokio::test]
async fn a_set_that_does_not_fit_leaves_the_old_one_serving() {
    let lab = Lab::new();
    let tls = lab.tls();
    let server = Server::start(Some(Arc::clone(&tls)), Limits::default()).await;
    let leaf = lab.client_ca.issue(&client("spiffe://lab/a"));
    let peer = Client::new(&lab.server_ca, Some(&leaf), ONLY_TLS13);

    // The certificate alone, as in the middle of a copy.
    let fresh = lab.server_ca.issue(&pki::server());
    pki::write_file(&lab.path().join("server.crt"), &fresh.cert_pem, 0o644);
    let error = tls.reload().expect_err("another's key");
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error}");
    assert_eq!(tls.reload_failures(), 1);
    assert_eq!(
        peer.talk(server.address).await.expect("let in").name,
        "spiffe://lab/a"
    );

    pki::write_file(&lab.path().join("server.key"), &fresh.key_pem, 0o440);
    assert_eq!(tls.reload().expect("now a pair"), Reloaded::Replaced);
    assert_eq!(tls.reload().expect("the same"), Reloaded::Unchanged);
    assert_eq!(tls.reload_failures(), 1);
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_path() {
    let lab = Lab::new();
    let (cert, key, ca) = ("server.crt", "server.key", "ca.crt");
    let other = lab.server_ca.issue(&pki::server());
    let broken = lab.leaf.cert_pem.replace("MII", "M!!");
    let cases = [
        (cert, "", 0o644, "no PEM certificate found in"),
        (
            cert,
            lab.leaf.key_pem.as_str(),
            0o640,
            "no PEM certificate found in",
        ),
        (cert, &broken, 0o644, "is not PEM"),
        (ca, "# to come", 0o644, "no PEM certificate found in"),
        (
            key,
            &lab.leaf.cert_pem,
            0o440,
            "no PEM private key found in",
        ),
        (
            key,
            &other.key_pem,
            0o440,
            "does not belong to the certificate",
        ),
        (
            key,
            &lab.leaf.key_pem,
            0o644,
            "is open to all users (mode 0644): run `chmod o= ",
        ),
        (
            key,
            &lab.leaf.key_pem,
            0o441,
            "is open to all users (mode 0441)",
        ),
    ];
    for (name, content, mode, expected) in cases {
        pki::write(lab.path(), &lab.leaf, &lab.client_ca);
        let path = lab.path().join(name);
        pki::write_file(&path, content, mode);
        let files = pki::files(lab.path(), true);
        let error = Tls::load(files, ClientCertificates::Required, &[], false)
            .expect_err(expected)
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(!error.contains(lab.leaf.key_pem.lines().nth(1).expect("a line")));
    }
    for name in [cert, key, ca] {
        pki::write(lab.path(), &lab.leaf, &lab.client_ca);
        fs::remove_file(lab.path().join(name)).expect("removed");
        let files = pki::files(lab.path(), true);
        let error = Tls::load(files, ClientCertificates::Required, &[], false)
            .expect_err("missing")
            .to_string();
        assert!(
            error.starts_with("cannot read ") && error.contains(name),
            "{error}"
        );
    }
}

#[test]
fn a_key_that_its_group_can_read_is_served_with() {
    let lab = Lab::new();
    for mode in [0o400, 0o440, 0o600, 0o660] {
        let key = lab.path().join("server.key");
        fs::set_permissions(key, fs::Permissions::from_mode(mode)).expect("a mode");
        lab.tls();
    }
}

#[test]
fn client_certificates_and_a_ca_come_together() {
    let lab = Lab::new();
    for mode in [ClientCertificates::Optional, ClientCertificates::Required] {
        let alone = Tls::load(pki::files(lab.path(), false), mode, &[], false);
        assert!(matches!(alone, Err(TlsError::NoClientCa)));
    }
    let unused = Tls::load(
        pki::files(lab.path(), true),
        ClientCertificates::None,
        &[],
        false,
    );
    assert!(matches!(unused, Err(TlsError::UnusedClientCa { .. })));
}

#[test]
fn the_end_of_the_servers_validity_is_known() {
    let lab = Lab::new();
    // 2999-01-01T00:00:00Z
    assert_eq!(lab.tls().not_after_unix(), 32_472_144_000);
}

#[tokio::test]
async fn a_mounted_secret_that_is_exchanged_by_one_link_is_seen() {
    let lab = Lab::new();
    let mount = tempfile::tempdir().expect("a directory");
    let secret = SecretMount::new(mount.path());
    secret.update("..2026_01", &lab.leaf, &lab.client_ca);
    let tls = tls(mount.path(), ClientCertificates::Required);
    let (stop, stopped) = oneshot::channel::<()>();
    let watching = tls.watch(NEVER, async {
        let _ = stopped.await;
    });
    // The first may be found by the look at the start; the second only by an event.
    for (version, replaced) in [("..2026_02", 1), ("..2026_03", 2)] {
        let leaf = lab.server_ca.issue(&pki::server());
        secret.update(version, &leaf, &Ca::new(version));
        let failures = 0;
        reached(&tls, Reloads { replaced, failures }).await;
    }
    drop(stop);
    timeout(PATIENCE, watching)
        .await
        .expect("in time")
        .expect("ended");
}

#[tokio::test]
async fn a_refused_set_is_told_once_and_the_next_good_one_is_taken() {
    let lab = Lab::new();
    let tls = lab.tls();
    let (log, _guard) = Log::begin();
    // By the clock alone, so often that the same set is met again and again.
    let watching = tls.watch(Duration::from_millis(1), std::future::pending());
    let key = lab.path().join("server.key");
    let fresh = lab.server_ca.issue(&pki::server());
    pki::write_file(&key, &fresh.key_pem, 0o440);
    reached(
        &tls,
        Reloads {
            replaced: 0,
            failures: 1,
        },
    )
    .await;
    let other = lab.server_ca.issue(&pki::server());
    pki::write_file(&key, &other.key_pem, 0o440);
    reached(
        &tls,
        Reloads {
            replaced: 0,
            failures: 2,
        },
    )
    .await;
    pki::write(lab.path(), &fresh, &lab.client_ca);
    let mut reloads = tls.reloads();
    timeout(PATIENCE, reloads.wait_for(|reloads| reloads.replaced == 1))
        .await
        .expect("in time")
        .expect("a count");
    watching.abort();
    let text = log.text();
    let told = text.matches("new TLS files are refused").count() as u64;
    // While three files were put in place, one more set may have been met half way.
    assert!(
        (2..=4).contains(&told) && told == tls.reload_failures(),
        "{text}"
    );
    assert!(
        text.contains("does not belong to the certificate"),
        "{text}"
    );
}
