//! Files that are not as they were left: what each damage to each kind of file does to a start.
//!
//! What a start reads and cannot make again stops it, with words that say what and how to mend
//! it, and the damaged file stays as it is. What the rows can make again is made again. What only
//! a later read would meet is refused there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use evidenceos_proto as wire;
use prost::bytes::Bytes;
use rusqlite::Connection;
use tonic::Code;

use crate::harness::{Client, Daemon, Directory, block_on, config, judged, predictions};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Truncated,
    Zeroed,
    Flipped,
    Missing,
}
use Damage::{Flipped, Missing, Truncated, Zeroed};

const ALL: [Damage; 4] = [Truncated, Zeroed, Flipped, Missing];

fn spoil(path: &Path, damage: Damage) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).expect("there");
    match damage {
        Truncated => bytes.truncate(bytes.len() / 2),
        Zeroed => bytes.fill(0),
        Flipped => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Missing => {
            fs::remove_file(path).expect("there");
            return None;
        }
    }
    fs::write(path, &bytes).expect("a free disk");
    Some(bytes)
}

/// A directory that was served and left well: one holdout, one settled claim.
async fn left_well() -> (Directory, Bytes) {
    let daemon = Daemon::start().await;
    let mut client = daemon.operator().await;
    client.put_default("h").await;
    let (claim, _) = client.run("c", "h", &judged(&predictions("h", 2))).await;
    daemon.running.stop().await.expect("stops");
    (daemon.directory, claim)
}

fn copy(from: &Path) -> Directory {
    let to = Directory::new();
    let status = std::process::Command::new("cp")
        .args(["-a", "-T"])
        .args([from, to.path()])
        .status();
    assert!(status.expect("cp runs").success());
    to
}

/// The first file below a directory whose path has this in it.
fn find(directory: &Path, part: &str) -> PathBuf {
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains(part) {
                return path;
            }
        }
    }
    panic!("no {part} in {}", directory.display());
}

#[test]
fn what_a_start_needs_and_cannot_make_again_stops_it_and_stays_as_it_is() {
    block_on(async {
        let (left, _) = left_well().await;
        // Which file, which damages, and words of the refusal.
        let table: [(&str, &[Damage], &str); 6] = [
            ("evidenceos.db", &[Zeroed, Truncated, Missing], "backup"),
            (".key", &ALL, "key"),
            ("owners.secret", &ALL, "owners.secret"),
            ("holdouts.secret", &ALL, "holdouts.secret"),
            (
                "accounts.json",
                &[Truncated, Zeroed, Flipped],
                "accounts import",
            ),
            ("blobs/", &[Truncated, Zeroed, Flipped, Missing], "blob"),
        ];
        for (part, damages, words) in table {
            for damage in damages {
                let copy = copy(left.path());
                let path = find(copy.path(), part);
                let spoilt = spoil(&path, *damage);
                let started = evidenceos_daemon::start(config(copy.path())).await;
                let error = match started {
                    Err(error) => error.to_string(),
                    Ok(running) => {
                        running.stop().await.expect("stops");
                        panic!("{part} {damage:?}: it starts");
                    }
                };
                assert!(error.contains(words), "{part} {damage:?}: {error}");
                assert!(fs::read(&path).ok() == spoilt, "{part} {damage:?}");
            }
        }
    });
}

#[test]
fn what_the_rows_can_make_again_is_made_again() {
    block_on(async {
        let (left, claim) = left_well().await;
        let table: [(&str, &[Damage]); 3] = [
            ("log/tile/0/", &ALL),
            // A checkpoint with another root is a log that forked, and has a test of its own.
            ("log/checkpoint", &ALL),
            ("accounts.json", &[Missing]),
        ];
        for (part, damages) in table {
            for damage in damages {
                let copy = copy(left.path());
                let path = find(copy.path(), part);
                let before = fs::read(&path).expect("there");
                spoil(&path, *damage);
                let running = evidenceos_daemon::start(config(copy.path())).await;
                let running = running.unwrap_or_else(|e| panic!("{part} {damage:?}: {e}"));
                let mut client = Client::connect(&running.grpc_address().to_string(), None).await;
                client.fetch(&claim).await.expect("with its proof");
                running.stop().await.expect("stops");
                let after = fs::read(&path).expect("there");
                assert!(after == before, "{part} {damage:?}");
            }
        }
    });
}

#[test]
fn what_only_a_read_meets_is_refused_there() {
    block_on(async {
        let (left, claim) = left_well().await;
        for (table, column) in [("claims", "row"), ("entries", "bytes")] {
            let copy = copy(left.path());
            let database = Connection::open(copy.path().join("evidenceos.db")).expect("ours");
            let change = format!("UPDATE {table} SET {column} = zeroblob(length({column}))");
            assert!(database.execute(&change, []).expect("written") > 0);
            drop(database);
            let started = evidenceos_daemon::start(config(copy.path())).await;
            let running = match started {
                Ok(running) => running,
                // A short log is read whole at the start.
                Err(error) => {
                    assert!(error.to_string().contains("damaged"), "{table}: {error}");
                    continue;
                }
            };
            let mut client = Client::connect(&running.grpc_address().to_string(), None).await;
            let request = client.request(wire::FetchCapsuleRequest {
                claim_id: claim.clone(),
                known_tree_size: 0,
            });
            let fetched = client.inner.fetch_capsule(request).await;
            assert_eq!(
                fetched.expect_err("damaged").code(),
                Code::Internal,
                "{table}"
            );
            running.stop().await.expect("stops");
        }
    });
}
