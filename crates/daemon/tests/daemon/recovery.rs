//! The two ways out of a database that is older than its log: the log never forks, and the meter
//! of leakage never runs backwards.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
};

use evidenceos_proto as wire;
use prost::bytes::Bytes;
use tempfile::TempDir;
use tonic::Code;

use crate::{
    continuity::{end, must, must_not, text},
    harness::{Client, header, judged, labels, predictions, refused, terms},
    process::{Serving, block_on_value, spawn_with},
};

struct Place {
    kept: TempDir,
    data: PathBuf,
    newer: PathBuf,
    anchor: PathBuf,
    /// Sealed before the backup, settled after it.
    early: Bytes,
    /// Created after the backup.
    late: Bytes,
    /// The holdout as it was in the end.
    holdout: wire::Holdout,
}

impl Place {
    /// A log that was rolled back whole, with an anchor that remembers its end.
    fn rolled_back() -> Self {
        let kept = tempfile::tempdir().expect("a directory");
        let at = |name: &str| kept.path().join(name);
        let (data, newer, anchor) = (at("data"), at("newer"), at("anchor"));
        let with_anchor = ["--anchor", text(&anchor)];
        let (child, address) = spawn_with(&data, &with_anchor);
        let early = block_on_value(async {
            let mut client = Client::connect(&address, None).await;
            client.put_default("h").await;
            client
                .run("first", "h", &judged(&predictions("h", 2)))
                .await;
            client
                .sealed("early", "h", &judged(&predictions("h", 20)))
                .await
        });
        end(child);
        let status = std::process::Command::new("cp")
            .args(["-a".as_ref(), data.as_os_str(), at("older").as_os_str()])
            .status();
        assert!(status.expect("cp runs").success());
        let (child, address) = spawn_with(&data, &with_anchor);
        let (late, holdout) = block_on_value(async {
            let mut client = Client::connect(&address, None).await;
            client.execute(&early).await.expect("settles");
            // At chance, but not the vector of the early one: that would not be judged again.
            let mut vector = predictions("h", 2);
            vector[1] ^= 1;
            let (late, _) = client.run("late", "h", &judged(&vector)).await;
            let revoke = client.request(wire::RevokeClaimRequest {
                claim_id: early.clone(),
                reason: "wrong".to_owned(),
            });
            client.inner.revoke_claim(revoke).await.expect("revoked");
            client
                .put(header("new"), &labels("new"))
                .await
                .expect("a holdout");
            (late, client.holdout("h").await)
        });
        end(child);
        fs::rename(&data, &newer).expect("ours");
        fs::rename(at("older"), &data).expect("ours");
        Self {
            kept,
            data,
            newer,
            anchor,
            early,
            late,
            holdout,
        }
    }

    fn start(&self) -> (Serving, String) {
        spawn_with(&self.data, &["--anchor", text(&self.anchor)])
    }

    fn serves_reads_only(&self) {
        let (child, address) = self.start();
        block_on_value(async {
            let mut client = Client::connect(&address, None).await;
            let why = client.is_held().await;
            assert!(why.contains("log recover"), "{why}");
        });
        end(child);
    }

    fn log(&self, arguments: &[&str]) -> Vec<String> {
        let place = [
            "--data-dir",
            text(&self.data),
            "--anchor",
            text(&self.anchor),
        ];
        let all = [&["log"], arguments, &place].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    fn must_log(&self, arguments: &[&str]) -> String {
        let all = self.log(arguments);
        must(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn must_not_log(&self, arguments: &[&str]) -> String {
        let all = self.log(arguments);
        must_not(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn checkpoint(&self, of: &Path) -> String {
        fs::read_to_string(of.join("log/checkpoint")).expect("published")
    }
}

#[test]
fn what_was_lost_comes_back_from_a_mirror_byte_for_byte_and_with_its_charges() {
    let place = Place::rolled_back();
    place.serves_reads_only();
    let said = place.must_log(&["recover", "--from", text(&place.newer)]);
    assert!(said.contains("1 claims") && said.contains("new"), "{said}");
    must(&["fsck", "--data-dir", text(&place.data)]);
    let again = place.must_not_log(&["recover", "--from", text(&place.newer)]);
    assert!(again.contains("nothing to recover"), "{again}");
    let (child, address) = place.start();
    block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        let holdout = client.holdout("h").await;
        assert_eq!(
            holdout.sealed_charged_microbits,
            place.holdout.sealed_charged_microbits
        );
        assert_eq!(holdout.settled, place.holdout.settled);
        assert_eq!(holdout.certified, place.holdout.certified);
        // What the backup knew of has its result, and what it did not stays unknown.
        let early = client.get(&place.early).await.expect("known");
        assert_eq!(early.state, wire::ClaimState::Revoked as i32);
        client.fetch(&place.early).await.expect("its capsule");
        let late = client.get(&place.late).await.expect_err("its row is lost");
        assert_eq!(late.code(), Code::NotFound);
        client
            .run("next", "h", &judged(&predictions("h", 20)))
            .await;
    });
    end(child);
    must(&["fsck", "--data-dir", text(&place.data)]);
    let grown = place.checkpoint(&place.data);
    let size: u64 = grown
        .lines()
        .nth(1)
        .expect("a size")
        .parse()
        .expect("a number");
    let before = place.checkpoint(&place.newer);
    let was: u64 = before
        .lines()
        .nth(1)
        .expect("a size")
        .parse()
        .expect("a number");
    assert_eq!(size, was + 1);
    drop(place.kept);
}

/// Serves a directory over HTTP.
fn web(root: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 4_096];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request
                .split(' ')
                .nth(1)
                .unwrap_or("/")
                .trim_start_matches('/');
            let (status, body) = match fs::read(root.join(path)) {
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(&[head.into_bytes(), body].concat());
        }
    });
    url
}

#[test]
fn it_comes_back_from_the_published_log_too() {
    let place = Place::rolled_back();
    let url = web(place.newer.join("log"));
    place.must_log(&["recover", "--from", &url]);
    must(&["fsck", "--data-dir", text(&place.data)]);
    let (child, _) = place.start();
    end(child);
    assert_eq!(
        place.checkpoint(&place.data),
        place.checkpoint(&place.newer)
    );
}

#[test]
fn a_mirror_that_was_changed_or_is_of_another_log_brings_nothing_back() {
    let place = Place::rolled_back();
    let size = place.checkpoint(&place.newer);
    let size = size.lines().nth(1).expect("a size");
    let bundle = place.newer.join("log/tile/entries/000.p").join(size);
    let intact = fs::read(&bundle).expect("there");
    let mut changed = intact.clone();
    let last = changed.len() - 30;
    changed[last] ^= 1;
    fs::write(&bundle, &changed).expect("writable");
    let said = place.must_not_log(&["recover", "--from", text(&place.newer)]);
    assert!(said.contains("do not lead to its root"), "{said}");
    fs::write(&bundle, &intact[..intact.len() - 1]).expect("writable");
    place.must_not_log(&["recover", "--from", text(&place.newer)]);
    fs::write(&bundle, &intact).expect("writable");
    let checkpoint = place.newer.join("log/checkpoint");
    let signed = fs::read_to_string(&checkpoint).expect("there");
    let mut lines: Vec<&str> = signed.lines().collect();
    let forged = lines.pop().expect("a signature").replace("= ", "=");
    let forged = forged.chars().rev().collect::<String>();
    fs::write(&checkpoint, format!("{}\n{forged}\n", lines.join("\n"))).expect("writable");
    place.must_not_log(&["recover", "--from", text(&place.newer)]);
    fs::write(&checkpoint, signed).expect("writable");
    place.serves_reads_only();
    must(&["fsck", "--data-dir", text(&place.data)]);
    place.must_log(&["recover", "--from", text(&place.newer)]);
}

#[test]
fn a_log_that_goes_on_under_another_name_has_forgotten_no_leakage() {
    let place = Place::rolled_back();
    let same = place.checkpoint(&place.data);
    let newer = place.checkpoint(&place.newer);
    let known = newer.lines().nth(1).expect("a size");
    let origin = same.lines().next().expect("a name");
    let said = place.must_not_log(&["restart", "--origin", origin, "--because", "lost"]);
    assert!(said.contains("already"), "{said}");
    let said = place.must_log(&["restart", "--origin", "example.org/2", "--because", "lost"]);
    assert!(said.contains("example.org/2"), "{said}");
    must(&["fsck", "--data-dir", text(&place.data)]);
    let (child, address) = place.start();
    block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        let holdout = client.holdout("h").await;
        let policy = holdout.policy.as_ref().expect("a policy");
        assert_eq!(
            holdout.sealed_charged_microbits,
            policy.sealed_budget_microbits.expect("fixed")
        );
        let exhausted = client.execute(&place.early).await;
        let status = exhausted.expect_err("exhausted");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        // What is fresh can be registered.
        client.put_default("fresh").await;
        client
            .run("c", "fresh", &judged(&predictions("fresh", 20)))
            .await;
    });
    end(child);
    must(&["fsck", "--data-dir", text(&place.data)]);
    let published = place.checkpoint(&place.data);
    assert_eq!(published.lines().next(), Some("example.org/2"));
    assert_eq!(
        fs::read_to_string(&place.anchor).expect("written"),
        published
    );
    let size = published.lines().nth(1).expect("a size");
    let bundle = place.data.join("log/tile/entries/000.p").join(size);
    let entries = String::from_utf8_lossy(&fs::read(bundle).expect("published")).into_owned();
    assert!(
        entries.contains(&format!("\"known_size\":{known}")),
        "{entries}"
    );
    assert!(entries.contains("\"basis\":\"exhausted\""), "{entries}");
}

#[test]
fn what_the_operator_states_is_charged_and_no_more() {
    let place = Place::rolled_back();
    let wrong = place.must_not_log(&[
        "restart",
        "--origin",
        "example.org/2",
        "--because",
        "lost",
        "--charged",
        "x=1",
    ]);
    assert!(wrong.contains("no holdout"), "{wrong}");
    let before = {
        let (child, address) = spawn_with(&place.data, &["--anchor", "none"]);
        // Started without the anchor it would fork the log: only looked at here.
        let before =
            block_on_value(async { Client::connect(&address, None).await.holdout("h").await });
        end(child);
        before
    };
    place.must_log(&[
        "restart",
        "--origin",
        "example.org/2",
        "--because",
        "lost",
        "--charged",
        "h=2.5",
    ]);
    must(&["fsck", "--data-dir", text(&place.data)]);
    let (child, address) = place.start();
    block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        let holdout = client.holdout("h").await;
        assert_eq!(
            holdout.sealed_charged_microbits,
            before.sealed_charged_microbits + 2_500_000
        );
        client.execute(&place.early).await.expect("settles");
        let again = client.create(terms("late", "h")).await;
        again.expect("the old one is not known here");
        let none = client.get(&Bytes::from_static(&[0; 32])).await;
        refused(none, Code::NotFound, "CLAIM_NOT_FOUND", "not found");
    });
    end(child);
    must(&["fsck", "--data-dir", text(&place.data)]);
}
