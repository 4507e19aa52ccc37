//! Connections end for certain: with the authority behind their client's certificate, with their
//! age, and with the daemon, whatever their clients do.

use std::time::Duration;

use evidenceos_daemon::{
    Running,
    config::{Listeners, Settings},
};
use evidenceos_proto as wire;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

use crate::{
    harness::{Client, Directory, block_on, config},
    http2::{self, ACK, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, frame, next_frame},
    pki::{self, Ca, Leaf, write_file},
    secure::{Home, open_tls},
};

/// Nothing else ends these connections as early.
const SOON: Duration = Duration::from_secs(8);

const COMMIT: &str = "/evidenceos.v2.EvidenceOS/CommitArtifacts";
const LIVE: &[u8] = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
const HALF_A_CALL: &[u8] =
    b"POST /v1/preflight_tool_call HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{";

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Waits until the server closes a connection, and does nothing for it. A reset is an end as well.
async fn ends(what: &'static str, mut stream: impl AsyncRead + Unpin) {
    let mut heard = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut heard)).await;
    assert!(end.is_ok(), "{what}: open, after {} bytes", heard.len());
}

/// A request over HTTP/1.1, and its answer, after which the connection stays open.
async fn live(stream: &mut impl Stream) {
    stream.write_all(LIVE).await.expect("open");
    let mut answer = Vec::new();
    while !answer.ends_with(br#"{"status":"ok"}"#) {
        assert!(stream.read_buf(&mut answer).await.expect("open") > 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

/// The headers of a call whose message does not come.
fn half_a_call() -> Vec<u8> {
    let grpc = [
        &[0x0f, 0x10, 16][..],
        b"application/grpc",
        &[0, 2],
        b"te",
        &[8],
        b"trailers",
    ];
    let fields = http2::request(true, COMMIT, &grpc.concat());
    frame(HEADERS, END_HEADERS, 1, &fields)
}

async fn watch(client: &Client) -> tonic::Streaming<wire::WatchRevocationsResponse> {
    let request = client.request(wire::WatchRevocationsRequest {});
    let stream = client.inner.clone().watch_revocations(request).await;
    let mut stream = stream.expect("let in").into_inner();
    stream.next().await.expect("what there is").expect("served");
    stream
}

async fn end_of_watch(mut stream: tonic::Streaming<wire::WatchRevocationsResponse>) -> Status {
    let end = timeout(SOON, stream.next()).await.expect("in time");
    end.expect("a status").expect_err("the end")
}

/// A daemon whose clients are of two authorities, one of which goes.
struct Exchange {
    home: Home,
    running: Running,
    gone: Ca,
}

impl Exchange {
    async fn new() -> Self {
        let home = Home::new();
        let gone = Ca::new("gone");
        home.file("ca.crt", &format!("{}{}", gone.pem, home.ca.pem));
        let settings = Settings {
            preflight_tls: Some(true),
            metrics_tls: Some(true),
            ..home.tls(true)
        };
        let running = home.start(&settings).await;
        Self {
            home,
            running,
            gone,
        }
    }

    async fn raw(&self, leaf: Option<&Leaf>, alpn: &[u8]) -> impl Stream + use<> {
        let http = self.running.http_address().expect("on");
        let stream = open_tls(http, &self.home.ca, leaf, alpn).await;
        stream.expect("let in")
    }

    /// The bundle has one authority less, and other files are what they were.
    fn exchange(&self) {
        let path = self.home.path().join("ca.crt");
        write_file(&path, &self.home.ca.pem, 0o644);
    }
}

#[test]
fn a_reload_closes_the_connections_of_an_authority_that_is_gone() {
    for by_signal in [true, false] {
        block_on(async {
            let world = Exchange::new().await;
            let (home, running) = (&world.home, &world.running);
            let old = world.gone.issue(&pki::client("spiffe://lab/old"));
            let kept = home.client("spiffe://lab/kept");
            let grpc = running.grpc_address();

            let opening = http2::opening(65_535);
            let mut idle = open_tls(grpc, &home.ca, Some(&old), b"h2")
                .await
                .expect("let in");
            idle.write_all(&opening).await.expect("open");
            let mut calling = open_tls(grpc, &home.ca, Some(&old), b"h2")
                .await
                .expect("let in");
            let call = [opening.clone(), half_a_call()].concat();
            calling.write_all(&call).await.expect("open");
            let watching = watch(&home.connect(running, Some(&old)).await).await;
            let mut kept_alive = world.raw(Some(&old), b"http/1.1").await;
            live(&mut kept_alive).await;
            let mut half = world.raw(Some(&old), b"http/1.1").await;
            live(&mut half).await;
            half.write_all(HALF_A_CALL).await.expect("open");
            let mut idle_http = world.raw(Some(&old), b"h2").await;
            idle_http.write_all(&opening).await.expect("open");

            let mut stays = world.raw(Some(&kept), b"http/1.1").await;
            live(&mut stays).await;
            let mut nobody = world.raw(None, b"http/1.1").await;
            live(&mut nobody).await;
            let client = home.connect(running, Some(&kept)).await;
            let mut goes_on = watch(&client).await;

            world.exchange();
            if by_signal {
                running.reload().await.expect("a bundle");
            }
            tokio::join!(
                ends("gRPC, idle", idle),
                ends("gRPC, a call", calling),
                ends("HTTP/1.1, kept alive", kept_alive),
                ends("HTTP/1.1, half a request", half),
                ends("HTTP/2, idle", idle_http),
                async { drop(end_of_watch(watching).await) },
            );
            live(&mut stays).await;
            live(&mut nobody).await;
            let info = client.request(wire::GetServerInfoRequest {});
            let info = client.inner.clone().get_server_info(info).await;
            info.expect("let in");
            // An end would have come before this answer, over the same connection.
            let quiet = timeout(Duration::ZERO, goes_on.next()).await;
            assert!(quiet.is_err(), "nothing to tell, and no end: {quiet:?}");
        });
    }
}

/// Every port without TLS, and connections that get so old.
async fn aged(age: Duration, grace: Duration) -> (Running, Directory) {
    let directory = Directory::new();
    let free = || "127.0.0.1:0".parse().expect("an address");
    let mut config = config(directory.path());
    config.listeners = Listeners {
        http: Some(free()),
        metrics: Some(free()),
        max_connection_age: age,
        max_connection_age_grace: grace,
        ..config.listeners
    };
    config.drain = Duration::from_millis(200);
    let running = evidenceos_daemon::start(config).await.expect("starts");
    (running, directory)
}

/// Sends the same again and again and reads no answer, until the server closes the connection.
async fn never_reads(what: &'static str, mut stream: TcpStream, again: Vec<u8>) {
    let sends = async { while stream.write_all(&again).await.is_ok() {} };
    let end = timeout(SOON, sends).await;
    assert!(end.is_ok(), "{what}: open");
}

/// Acknowledges what the server wants acknowledged, and keeps its call open.
async fn keeps_calling(mut stream: TcpStream) {
    let call = [http2::opening(65_535), half_a_call()].concat();
    stream.write_all(&call).await.expect("open");
    let obeys = async {
        while let Ok(next) = next_frame(&mut stream).await {
            if [PING, SETTINGS].contains(&next.kind) && next.flags & ACK == 0 {
                let payload = if next.kind == PING {
                    next.payload.as_slice()
                } else {
                    &[]
                };
                let acknowledged = frame(next.kind, ACK, 0, payload);
                // It closes between two frames.
                let _ = stream.write_all(&acknowledged).await;
            }
        }
    };
    let end = timeout(SOON, obeys).await;
    assert!(end.is_ok(), "an open call keeps its connection");
}

#[test]
fn a_connection_ends_with_its_age_on_every_port_whatever_its_client_does() {
    block_on(async {
        let age = Duration::from_millis(300);
        let (running, _directory) = aged(age, age).await;
        let grpc = running.grpc_address();
        let http = running.http_address().expect("on");
        let metrics = running.metrics_address().expect("on");
        let open = async |address, bytes: &[u8]| {
            let mut stream = TcpStream::connect(address).await.expect("listens");
            stream.write_all(bytes).await.expect("open");
            stream
        };
        let opening = http2::opening(65_535);
        let ping = frame(PING, 0, 0, &[0; 8]);
        // Its answer may have no byte.
        let fields = http2::request(false, "/metrics", &[]);
        let unread = [
            http2::opening(0),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields),
        ]
        .concat();
        let mut all = JoinSet::new();
        for (port, address) in [("gRPC", grpc), ("HTTP", http), ("metrics", metrics)] {
            // Nobody acknowledges the PING that follows the GOAWAY.
            all.spawn(ends(port, open(address, &opening).await));
            all.spawn(ends(port, open(address, &unread).await));
            let pinging = open(address, &opening).await;
            all.spawn(never_reads(port, pinging, ping.clone()));
            if address != grpc {
                let get = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
                all.spawn(ends("kept alive", open(address, get).await));
                all.spawn(ends("half a request", open(address, &get[..20]).await));
                all.spawn(ends("half a body", open(address, HALF_A_CALL).await));
                let pipelining = open(address, get).await;
                all.spawn(never_reads("pipelined", pipelining, get.to_vec()));
            }
        }
        all.spawn(keeps_calling(open(grpc, b"").await));
        all.join_all().await;
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_watch_ends_with_the_age_of_its_connection_and_says_so() {
    block_on(async {
        let (running, _directory) = aged(Duration::from_secs(1), Duration::from_secs(3_600)).await;
        let client = Client::connect(&running.grpc_address().to_string(), None).await;
        let status = end_of_watch(watch(&client).await).await;
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("connect again"), "{status:?}");
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_stop_ends_watches_with_a_word_and_other_connections_without_one() {
    block_on(async {
        let hour = Duration::from_secs(3_600);
        let (running, _directory) = aged(hour, hour).await;
        let client = Client::connect(&running.grpc_address().to_string(), None).await;
        let watching = watch(&client).await;
        let connect = TcpStream::connect(running.grpc_address());
        let calling = tokio::spawn(keeps_calling(connect.await.expect("listens")));
        let mut http = TcpStream::connect(running.http_address().expect("on"))
            .await
            .expect("listens");
        http.write_all(HALF_A_CALL).await.expect("open");
        // Whoever came later was accepted, so that the others were as well.
        watch(&client).await;
        running.stop().await.expect("stops");
        let status = end_of_watch(watching).await;
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("connect again"), "{status:?}");
        calling.await.expect("closed");
        ends("half a call", http).await;
    });
}
