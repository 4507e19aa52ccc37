//! What a listener does with peers that do not mean to talk, or are too many.

use std::time::Duration;

use evidenceos_access::{ClientCertificates, Limits};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    pki::{self, Ca},
    server::{BOTH, Client, Log, Server, Talk, tls},
};

/// A TLS listener without client certificates, and a client for it.
async fn lab(limits: Limits) -> (Server, Client) {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::new("ca");
    pki::write(directory.path(), &ca.issue(&pki::server()), &ca);
    let tls = tls(directory.path(), ClientCertificates::None);
    let server = Server::start(Some(tls), limits).await;
    (server, Client::new(&ca, None, BOTH))
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address).await.expect("connected")
}

/// Reads to the end, which a reset is as well.
async fn end_of(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

#[tokio::test]
async fn a_peer_that_connects_and_leaves_is_counted_and_not_logged() {
    let (log, _guard) = Log::begin();
    let (server, client) = lab(Limits::default()).await;
    drop(connect(&server).await);
    let resetting = connect(&server).await;
    resetting
        .set_zero_linger()
        .expect("a reset instead of an end");
    drop(resetting);
    let mut half = connect(&server).await;
    half.write_all(&[22, 3, 1]).await.expect("sent");
    drop(half);
    let counts = server.counts_until(|counts| counts.probe_like == 3).await;
    assert_eq!((counts.accepted, counts.handshake_failures), (3, 0));
    server.counts_until(|counts| counts.open == 0).await;
    client.talk(server.address).await.expect("let in");
    assert_eq!(log.text(), "");
}

#[tokio::test]
async fn a_silent_peer_is_dropped_in_time_and_nobody_waits_for_it() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let (server, client) = lab(limits).await;
    let silent = connect(&server).await;
    client.talk(server.address).await.expect("let in beside it");
    assert!(end_of(silent).await.is_empty());
    let counts = server
        .counts_until(|counts| counts.handshake_timeouts == 1)
        .await;
    assert_eq!((counts.probe_like, counts.handshake_failures), (0, 0));
}

#[tokio::test]
async fn where_silent_peers_are_many_the_oldest_gives_way() {
    let limits = Limits {
        handshake_timeout: Duration::from_secs(3_600),
        max_handshakes: 2,
        ..Limits::default()
    };
    let (server, client) = lab(limits).await;
    let oldest = connect(&server).await;
    server.counts_until(|counts| counts.accepted == 1).await;
    let _second = connect(&server).await;
    server.counts_until(|counts| counts.accepted == 2).await;
    let talk = client.talk(server.address).await.expect("let in");
    assert_eq!(talk.name, "nobody");
    assert!(end_of(oldest).await.is_empty());
    assert_eq!(server.counts().over_limit, 1);
    // Its place is free again: a conversation is no handshake.
    client.talk(server.address).await.expect("let in");
    assert_eq!(server.counts().over_limit, 1);
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_refused_and_logged_once_a_second() {
    let (log, _guard) = Log::begin();
    let (server, client) = lab(Limits::default()).await;
    for _ in 0..20 {
        let mut http = connect(&server).await;
        http.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .expect("sent");
        end_of(http).await;
    }
    server
        .counts_until(|counts| counts.handshake_failures == 20)
        .await;
    client.talk(server.address).await.expect("let in");
    let text = log.text();
    assert!(text.contains("InvalidContentType"), "{text}");
    assert!(text.lines().count() < 20, "{text}");
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_its_place_comes_back() {
    let limits = Limits {
        max_connections: 1,
        ..Limits::default()
    };
    let server = Server::start(None, limits).await;
    let mut first = Talk::begin(connect(&server).await).await.expect("served");
    first.echo("known").await.expect("an echo");
    assert!(end_of(connect(&server).await).await.is_empty());
    assert_eq!(server.counts().over_limit, 1);
    assert_eq!(first.echo("here").await.expect("an echo"), "here");
    drop(first);
    server.counts_until(|counts| counts.open == 0).await;
    Talk::begin(connect(&server).await).await.expect("served");
}

/// A server, and a client that it lets in if it has TLS.
async fn served(tls: bool, limits: Limits) -> (Server, Option<Client>) {
    if tls {
        let (server, client) = lab(limits).await;
        (server, Some(client))
    } else {
        (Server::start(None, limits).await, None)
    }
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_in_time() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(500),
        first_request_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    for tls in [false, true] {
        let (server, client) = served(tls, limits).await;
        let _silent = connect(&server).await;
        server.counts_until(|counts| counts.accepted == 1).await;
        server.counts_until(|counts| counts.open == 0).await;
        if let Some(client) = client {
            // The handshake is no request.
            let _silent = client.talk(server.address).await.expect("let in");
            server.counts_until(|counts| counts.open == 0).await;
        }
    }
}

/// The peer says nothing, sends for ever, reads nothing, or stops in the middle of its handshake.
#[tokio::test]
async fn a_connection_ends_with_its_age_whatever_its_peer_does() {
    let limits = Limits {
        handshake_timeout: Duration::from_secs(1),
        max_age: Duration::from_millis(500),
        age_grace: Duration::from_millis(500),
        ..Limits::default()
    };
    for tls in [false, true] {
        let (server, client) = served(tls, limits).await;
        let silent = connect(&server).await;
        if let Some(client) = client {
            let mut idle = client.talk(server.address).await.expect("let in");
            idle.echo("known").await.expect("an echo");
            let slow = client.talk(server.address).await.expect("let in");
            let mut busy = client.talk(server.address).await.expect("let in");
            tokio::join!(
                async { assert!(idle.ends().await) },
                slow.never_reads(),
                async { while busy.echo("more").await.is_ok() {} }
            );
        } else {
            let talk = async || Talk::begin(connect(&server).await).await.expect("served");
            let mut idle = talk().await;
            idle.echo("known").await.expect("an echo");
            let slow = talk().await;
            let mut busy = talk().await;
            tokio::join!(
                async { assert!(idle.ends().await) },
                slow.never_reads(),
                async { while busy.echo("more").await.is_ok() {} }
            );
        }
        end_of(silent).await;
        server.counts_until(|counts| counts.open == 0).await;
    }
}

#[tokio::test]
async fn all_connections_of_a_listener_can_be_ended() {
    let (server, client) = lab(Limits::default()).await;
    let mut talk = client.talk(server.address).await.expect("let in");
    talk.echo("known").await.expect("an echo");
    let handshake = connect(&server).await;
    server.counts_until(|counts| counts.open == 2).await;
    server.connections.end();
    assert!(talk.ends().await);
    assert!(end_of(handshake).await.is_empty());
    server.counts_until(|counts| counts.open == 0).await;
}

#[tokio::test]
async fn where_connections_are_many_those_of_nobody_give_way() {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let server = Server::start(None, limits).await;
    let silent = connect(&server).await;
    server.counts_until(|counts| counts.open == 1).await;
    let mut nobody = Talk::begin(connect(&server).await).await.expect("served");
    nobody.echo("nobody").await.expect("an echo");
    // What has shown nothing gives way first, then what has asked and is not known.
    let mut first = Talk::begin(connect(&server).await).await.expect("served");
    assert!(!end_of(silent).await.is_empty(), "it was greeted before");
    first.echo("known").await.expect("an echo");
    let mut second = Talk::begin(connect(&server).await).await.expect("served");
    assert!(nobody.echo("still here?").await.is_err());
    second.echo("known").await.expect("an echo");
    assert!(end_of(connect(&server).await).await.is_empty());
    assert_eq!(first.echo("here").await.expect("an echo"), "here");
    assert_eq!(second.echo("here").await.expect("an echo"), "here");
    assert_eq!(server.counts().over_limit, 3);
}

#[tokio::test]
async fn without_tls_connections_are_plain_and_nobody_is_known() {
    let server = Server::start(None, Limits::default()).await;
    let mut talk = Talk::begin(connect(&server).await).await.expect("served");
    assert_eq!(talk.name, "nobody");
    assert_eq!(talk.echo("hello").await.expect("an echo"), "hello");
}

#[tokio::test]
async fn a_listener_that_is_stopped_closes_its_port_and_keeps_its_conversations() {
    let (mut server, client) = lab(Limits::default()).await;
    let mut talk = client.talk(server.address).await.expect("let in");
    server.stop().await;
    assert!(TcpStream::connect(server.address).await.is_err());
    assert_eq!(talk.echo("still").await.expect("an echo"), "still");
}
