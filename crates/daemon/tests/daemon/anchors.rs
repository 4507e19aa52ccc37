//! What remembers the log's head outside of the data directory: a directory that was rolled back
//! is noticed before anything is signed.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use evidenceos_daemon::{
    Config,
    config::{AnchorPlace, Anchoring},
};
use tempfile::TempDir;
use tonic::Code;

use crate::harness::{Daemon, Directory, block_on, config, judged, predictions, refused};

fn anchored(directory: &Path, places: &[AnchorPlace]) -> Config {
    Config {
        anchors: if places.is_empty() {
            Anchoring::Off
        } else {
            Anchoring::At(places.to_vec())
        },
        ..config(directory)
    }
}

pub struct Place {
    pub kept: TempDir,
    pub data: PathBuf,
    file: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let kept = tempfile::tempdir().expect("a directory");
        let (data, file) = (kept.path().join("data"), kept.path().join("anchor"));
        Self { kept, data, file }
    }

    fn anchor(&self) -> Vec<AnchorPlace> {
        vec![AnchorPlace::File(self.file.clone())]
    }

    async fn start(&self, places: &[AnchorPlace]) -> Result<Daemon, String> {
        let started = evidenceos_daemon::start(anchored(&self.data, places)).await;
        started
            .map(|running| Daemon {
                running,
                directory: Directory::new(),
            })
            .map_err(|error| error.to_string())
    }

    /// A log with some entries, rolled back whole to before the last of them.
    pub async fn rolled_back(&self, places: &[AnchorPlace]) {
        let daemon = self.start(places).await.expect("starts");
        daemon.operator().await.put_default("h").await;
        daemon.running.stop().await.expect("stops");
        let older = self.kept.path().join("older");
        copy(&self.data, &older);
        let daemon = self.start(places).await.expect("starts");
        let mut client = daemon.operator().await;
        client.run("c", "h", &judged(&predictions("h", 2))).await;
        daemon.running.stop().await.expect("stops");
        fs::rename(&self.data, self.kept.path().join("newer")).expect("ours");
        fs::rename(&older, &self.data).expect("ours");
    }

    /// Every file of the log and the size that the head has: nothing may change.
    pub fn published(&self) -> String {
        fs::read_to_string(self.data.join("log/checkpoint")).expect("there")
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .args(["-a".as_ref(), from.as_os_str(), to.as_os_str()])
        .status();
    assert!(status.expect("cp runs").success());
}

async fn warnings(daemon: &Daemon) -> String {
    daemon.operator().await.warnings().await
}

/// Starts, serves reads and nothing else; why.
async fn held(place: &Place, anchors: &[AnchorPlace]) -> String {
    let before = place.published();
    let daemon = place.start(anchors).await.expect("serves reads");
    let mut client = daemon.operator().await;
    assert_eq!(client.holdout("h").await.items, 200);
    let why = client.is_held().await;
    daemon.running.stop().await.expect("stops");
    assert_eq!(place.published(), before);
    why
}

#[test]
fn a_directory_that_was_rolled_back_whole_serves_reads_only() {
    block_on(async {
        let place = Place::new();
        place.rolled_back(&place.anchor()).await;
        let remembered = fs::read(&place.file).expect("written");
        let why = held(&place, &place.anchor()).await;
        assert!(
            why.contains("log recover") && why.contains("log restart"),
            "{why}"
        );
        assert!(why.contains("remembers 3 entries"), "{why}");
        // It would be refused.
        assert!(!why.contains("log continue"), "{why}");
        assert_eq!(fs::read(&place.file).expect("there"), remembered);
        // Without the anchor nobody notices, and the daemon says so.
        let daemon = place.start(&[]).await.expect("cannot know");
        assert!(warnings(&daemon).await.contains("no anchor"));
        daemon.running.stop().await.expect("stops");
    });
}

#[test]
fn an_anchor_follows_the_log_and_is_ahead_of_what_is_published() {
    block_on(async {
        let place = Place::new();
        let daemon = place.start(&place.anchor()).await.expect("a new log");
        assert!(!warnings(&daemon).await.contains("anchor"));
        daemon.operator().await.put_default("h").await;
        daemon.running.stop().await.expect("stops");
        assert_eq!(
            fs::read_to_string(&place.file).expect("written"),
            place.published()
        );
    });
}

#[test]
fn a_fork_at_the_same_size_or_below_it_stops_the_start() {
    block_on(async {
        let place = Place::new();
        place.rolled_back(&place.anchor()).await;
        // Somebody signs over the restored state, without the anchor.
        for more in [1, 2] {
            let daemon = place.start(&[]).await.expect("cannot know");
            let mut client = daemon.operator().await;
            client.put_default(&format!("other-{more}")).await;
            daemon.running.stop().await.expect("stops");
            let refused = place.start(&place.anchor()).await.err().expect("a fork");
            assert!(refused.contains("forked"), "{refused}");
        }
    });
}

#[test]
fn a_lost_directory_is_not_begun_anew_over_its_anchor() {
    block_on(async {
        let place = Place::new();
        place.rolled_back(&place.anchor()).await;
        fs::remove_dir_all(&place.data).expect("ours");
        let refused = place.start(&place.anchor()).await.err().expect("lost");
        assert!(refused.contains("the directory was lost"), "{refused}");
    });
}

#[test]
fn while_no_anchor_answers_reads_are_served_and_nothing_is_signed() {
    block_on(async {
        let place = Place::new();
        let daemon = place.start(&place.anchor()).await.expect("a new log");
        daemon.operator().await.put_default("h").await;
        daemon.running.stop().await.expect("stops");
        let away = place.kept.path().join("away");
        fs::rename(&place.file, &away).expect("ours");
        let before = place.published();
        let daemon = place.start(&place.anchor()).await.expect("serves reads");
        let mut client = daemon.operator().await;
        assert_eq!(client.holdout("h").await.items, 200);
        let held = client.create(crate::harness::terms("c", "h")).await;
        refused(
            held,
            Code::Unavailable,
            "HELD",
            "no anchor remembers the newest head",
        );
        assert!(warnings(&daemon).await.contains("no anchor answers"));
        assert_eq!(place.published(), before);
        fs::rename(&away, &place.file).expect("ours");
        // It is asked again each second.
        let mut tries = 0;
        while let Err(held) = client.create(crate::harness::terms("c", "h")).await {
            assert_eq!(held.code(), Code::Unavailable);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            tries += 1;
            assert!(tries < 200, "it answers again");
        }
        assert!(!warnings(&daemon).await.contains("anchor"));
        daemon.running.stop().await.expect("stops");
        // Optional anchors hold nobody up.
        fs::remove_file(&place.file).expect("ours");
        let optional = Config {
            anchor_optional: true,
            ..anchored(&place.data, &place.anchor())
        };
        let running = evidenceos_daemon::start(optional).await.expect("starts");
        running.stop().await.expect("stops");
        assert!(place.file.exists(), "it is written again");
    });
}

/// Serves one text at every path, or 404 while there is none.
fn web(text: &Arc<Mutex<Option<Vec<u8>>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let text = Arc::clone(text);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request);
            let body = text.lock().expect("not poisoned").clone();
            let status = if body.is_some() {
                "200 OK"
            } else {
                "404 Not Found"
            };
            let body = body.unwrap_or_default();
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
fn the_published_log_is_an_anchor_too() {
    block_on(async {
        let place = Place::new();
        let published = Arc::default();
        let url = web(&published);
        let anchors = [AnchorPlace::Url(format!("{url}/checkpoint"))];
        place.rolled_back(&[]).await;
        let newer = fs::read(place.kept.path().join("newer/log/checkpoint")).expect("there");
        *published.lock().expect("not poisoned") = Some(newer);
        let why = held(&place, &anchors).await;
        assert!(why.contains("remembers 3 entries"), "{why}");
        *published.lock().expect("not poisoned") = Some(place.published().into_bytes());
        let daemon = place.start(&anchors).await.expect("as far as it was");
        daemon.running.stop().await.expect("stops");
    });
}

#[test]
fn somebody_else_who_continues_the_log_stops_this_one() {
    block_on(async {
        let place = Place::new();
        place.rolled_back(&place.anchor()).await;
        let newer = fs::read(&place.file).expect("written");
        // The anchor's volume comes back with what somebody else has written there.
        let older = place.published();
        fs::write(&place.file, older).expect("writable");
        let daemon = place.start(&place.anchor()).await.expect("in step");
        fs::write(&place.file, newer).expect("writable");
        let mut client = daemon.operator().await;
        // The head is released, and the next look at the anchor ends it. One entry, so that the
        // log does not come to be longer than the other one.
        let mut fresh = crate::harness::header("x");
        fresh.fresh_items = true;
        let _ = client.put(fresh, &crate::harness::labels("x")).await;
        while !daemon.running.has_failed() {
            tokio::task::yield_now().await;
        }
        assert!(daemon.running.stop().await.is_err());
    });
}

#[test]
fn an_anchor_must_be_outside_and_of_this_log() {
    block_on(async {
        let place = Place::new();
        let daemon = place.start(&place.anchor()).await.expect("a new log");
        daemon.running.stop().await.expect("stops");
        let other = Place::new();
        let daemon = other.start(&other.anchor()).await.expect("a new log");
        daemon.running.stop().await.expect("stops");
        let refused = place.start(&other.anchor()).await.err().expect("another's");
        assert!(refused.contains("another log"), "{refused}");
    });
}
