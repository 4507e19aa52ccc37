//! Anchors over https: whom the daemon believes, and what it says of whom it does not.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tonic::Code;

use crate::{
    anchors::Place,
    harness::{Client, block_on, refused, terms},
    pki::{Ca, Leaf, server},
    process::Serving,
};

/// A server that gives one text at every path, over TLS; returns its port.
fn web(leaf: &Leaf, text: &Arc<Mutex<String>>) -> u16 {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(leaf.chain(), leaf.key())
        .expect("a certificate with its key");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let text = Arc::clone(text);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a configuration");
            let mut tls = StreamOwned::new(connection, stream);
            // Whoever does not believe the certificate goes away in the middle of the handshake.
            let mut request = [0; 4_096];
            if tls.read(&mut request).is_err() {
                continue;
            }
            let body = text.lock().expect("not poisoned").clone();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = tls.write_all((head + &body).as_bytes());
            let _ = tls.flush();
        }
    });
    port
}

/// What a start came to.
struct Start {
    /// The process and its address, where it serves.
    serving: Option<(Serving, String)>,
    /// What it logged until then.
    said: String,
}

/// Starts the real program with an anchor and the authorities of a file.
fn start(place: &Place, anchor: &str, authorities: &Path) -> Start {
    let log = place.kept.path().join("log.txt");
    let child = Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"))
        .args(["--listen", "127.0.0.1:0", "--preflight-listen", "off"])
        .args(["--metrics-listen", "off", "--log", "warn"])
        .args(["--anchor", anchor, "--data-dir"])
        .arg(&place.data)
        .env("SSL_CERT_FILE", authorities)
        .env_remove("SSL_CERT_DIR")
        .stdout(Stdio::piped())
        .stderr(File::create(&log).expect("ours"))
        .spawn()
        .expect("starts");
    let mut child = Serving::of(child);
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let address = line
        .split_whitespace()
        .find(|word| word.parse::<std::net::SocketAddr>().is_ok());
    let serving = address.map(str::to_owned);
    if serving.is_none() {
        assert_ne!(child.wait().expect("ends").code(), Some(0));
    }
    Start {
        serving: serving.map(|address| (child, address)),
        said: fs::read_to_string(&log).expect("ours"),
    }
}

#[test]
fn an_https_anchor_is_compared_by_whom_ssl_cert_file_trusts() {
    let place = Place::new();
    block_on(place.rolled_back(&[]));
    let newer = place.kept.path().join("newer/log/checkpoint");
    let newer = fs::read_to_string(newer).expect("there");
    let (ours, others) = (Ca::new("the lab"), Ca::new("somebody"));
    let file = |name: &str, ca: &Ca| {
        let path = place.kept.path().join(name);
        fs::write(&path, &ca.pem).expect("ours");
        path
    };
    let (trusted, wrong) = (file("ours.pem", &ours), file("others.pem", &others));
    let text = Arc::new(Mutex::new(newer));
    let port = web(&ours.issue(&server()), &text);
    let anchor = format!("https://localhost:{port}");

    let ahead = start(&place, &anchor, &trusted);
    let (daemon, address) = ahead.serving.expect("it serves reads");
    block_on(async {
        let mut client = Client::connect(&address, None).await;
        let why = client.is_held().await;
        assert!(why.contains("remembers 3 entries"), "{why}");
    });
    drop(daemon);

    *text.lock().expect("not poisoned") = place.published();
    let in_step = start(&place, &anchor, &trusted);
    let (daemon, address) = in_step.serving.expect("as far as it was");
    block_on(async {
        let mut client = Client::connect(&address, None).await;
        let created = client.create(terms("c", "h")).await;
        created.expect("an anchor answers");
    });
    drop(daemon);

    // Whom nobody vouches for is no anchor: reads are served, nothing is charged.
    let by_address = format!("https://127.0.0.1:{port}");
    let missing = place.kept.path().join("nobody.pem");
    for (anchor, authorities, words) in [
        (&anchor, &wrong, "issued the server's certificate"),
        (
            &anchor,
            &missing,
            "no certificate authority is trusted here",
        ),
        (&by_address, &trusted, "not valid for name"),
    ] {
        let held = start(&place, anchor, authorities);
        assert!(held.said.contains(words), "{words}: {}", held.said);
        let (_daemon, address) = held.serving.expect("reads are served");
        block_on(async {
            let mut client = Client::connect(&address, None).await;
            assert_eq!(client.holdout("h").await.items, 200);
            let created = client.create(terms("d", "h")).await;
            refused(
                created,
                Code::Unavailable,
                "HELD",
                "remembers the newest head",
            );
        });
    }
}
