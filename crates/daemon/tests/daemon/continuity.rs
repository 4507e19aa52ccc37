//! Backups, checks, and data directories that lost something: with the real program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use prost::bytes::Bytes;
use tempfile::TempDir;

use crate::{
    harness::{Client, Directory, judged, predictions},
    process::{Serving, block_on_value, signal, spawn},
};

/// The program with arguments, to its end.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"))
        .args(arguments)
        .output()
        .expect("runs")
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

pub fn said(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(both).expect("text")
}

/// Runs the program, which must succeed.
pub fn must(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

/// Runs the program, which must not succeed.
pub fn must_not(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

pub fn end(mut child: Serving) {
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

fn place() -> (TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let (data, copy) = (directory.path().join("data"), directory.path().join("copy"));
    (directory, data, copy)
}

/// Brings back what backups leave out.
pub fn bring_keys(from: &Path, to: &Path) {
    for name in ["keys", "secrets"] {
        let status = Command::new("cp")
            .args(["-a".as_ref(), from.join(name).as_os_str(), to.as_os_str()])
            .status();
        assert!(status.expect("cp runs").success());
    }
}

async fn fetched(client: &mut Client, claim: &Bytes) -> Vec<u8> {
    let fetched = client.fetch(claim).await.expect("there");
    fetched.capsule_bytes.to_vec()
}

#[test]
fn a_backup_made_under_load_is_whole_and_comes_back() {
    let (_kept, data, copy) = place();
    let (child, address) = spawn(&data);
    let (first, before, acknowledged) = block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        client.put_default("h").await;
        let (first, _) = client
            .run("first", "h", &judged(&predictions("h", 2)))
            .await;
        let before = fetched(&mut client, &first).await;
        let done = Arc::new(AtomicBool::new(false));
        let load = {
            let (mut client, done) = (client.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut created = 0;
                while !done.load(Ordering::Relaxed) {
                    let terms = crate::harness::terms(&format!("claim {created}"), "h");
                    client.create(terms).await.expect("goes on meanwhile");
                    created += 1;
                }
                created
            })
        };
        let (data, copy) = (data.clone(), copy.clone());
        let made = tokio::task::spawn_blocking(move || {
            must(&["backup", text(&copy), "--data-dir", text(&data), "--json"])
        });
        let made = made.await.expect("made");
        done.store(true, Ordering::Relaxed);
        let last = made.lines().last().expect("a line");
        let last: serde_json::Value = serde_json::from_str(last).expect("JSON");
        assert_eq!(last["done"]["format"], "evidenceos.backup.v1", "{made}");
        (first, before, load.await.expect("created"))
    });
    assert!(acknowledged > 0);
    assert!(!copy.join("keys").exists() && !copy.join("secrets").exists());
    assert!(!copy.join("LOCK").exists());
    end(child);
    let back = data.with_file_name("back");
    let said = must(&["restore", text(&copy), "--data-dir", text(&back)]);
    assert!(said.contains("anchor"), "{said}");
    let missing = must_not(&["fsck", "--data-dir", text(&back)]);
    assert!(missing.contains("owners.secret"), "{missing}");
    bring_keys(&data, &back);
    must(&["fsck", "--data-dir", text(&back)]);
    let (child, address) = spawn(&back);
    block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        assert_eq!(fetched(&mut client, &first).await, before);
        client
            .run("next", "h", &judged(&predictions("h", 20)))
            .await;
    });
    end(child);
    must(&["fsck", "--data-dir", text(&back)]);
}

#[test]
fn a_stopped_directory_is_backed_up_and_a_crashed_one_too() {
    let (_kept, data, copy) = place();
    let (mut child, address) = spawn(&data);
    block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        client.put_default("h").await;
    });
    child.kill().expect("ours");
    child.wait().expect("ends");
    // The socket of the dead daemon is still there, and nobody waits for it.
    assert!(data.join("control.sock").exists());
    must(&["backup", text(&copy), "--data-dir", text(&data)]);
    must(&["fsck", "--data-dir", text(&data)]);
    let again = must_not(&["backup", text(&copy), "--data-dir", text(&data)]);
    assert!(again.contains("is not empty"), "{again}");
    let inside = data.join("copy");
    let inside = must_not(&["backup", text(&inside), "--data-dir", text(&data)]);
    assert!(inside.contains("in the data directory"), "{inside}");
    let nothing = data.with_extension("gone");
    let nothing = must_not(&["backup", text(&copy), "--data-dir", text(&nothing)]);
    assert!(nothing.contains("is no data directory"), "{nothing}");
    let (child, _) = spawn(&data);
    end(child);
    assert!(!data.join("control.sock").exists());
}

#[test]
fn a_long_path_does_not_keep_the_control_socket_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("d".repeat(120)).join("data");
    let (child, _) = spawn(&data);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(data.join("control.sock"))
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let copy = directory.path().join("copy");
    must(&["backup", text(&copy), "--data-dir", text(&data)]);
    let busy = must_not(&["fsck", "--data-dir", text(&data)]);
    assert!(busy.contains(&format!("process {}", child.id())), "{busy}");
    end(child);
}

#[test]
fn what_is_no_order_is_answered_and_ends() {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };
    let directory = Directory::new();
    let (child, _) = spawn(directory.path());
    let ask = |order: &[u8]| {
        let mut stream =
            UnixStream::connect(directory.path().join("control.sock")).expect("listens");
        // It may hang up before all of it was written.
        let _ = stream.write_all(order);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    for order in [
        &b"{}\n"[..],
        b"backup\n",
        b"\xff\xfe\n",
        b"",
        &[b'x'; 100_000],
    ] {
        let answer = ask(order);
        assert!(answer.starts_with("{\"failed\":"), "{answer}");
    }
    let relative = ask(b"{\"command\":\"backup\",\"destination\":\"copy\"}\n");
    assert!(relative.contains("absolute"), "{relative}");
    end(child);
}

#[test]
fn told_to_stop_under_load_it_loses_nothing_that_it_acknowledged() {
    let (_kept, data, _) = place();
    let (mut child, address) = spawn(&data);
    let created = block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        client.put_default("h").await;
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    let mut created = Vec::new();
                    for n in 0.. {
                        let terms = crate::harness::terms(&format!("{worker} {n}"), "h");
                        match client.create(terms).await {
                            Ok(claim) => created.push(claim),
                            Err(_) => break,
                        }
                    }
                    created
                })
            })
            .collect();
        client
            .create(crate::harness::terms("last", "h"))
            .await
            .expect("served");
        signal(&child, "TERM");
        let mut created = Vec::new();
        for worker in workers {
            created.extend(worker.await.expect("ended"));
        }
        created
    });
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    let (child, address) = spawn(&data);
    block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        for claim in &created {
            client.get(claim).await.expect("acknowledged");
        }
    });
    end(child);
    must(&["fsck", "--data-dir", text(&data)]);
}
