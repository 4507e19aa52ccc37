//! A copy of the past and an empty present are noticed before anything is signed.

mod shown;

mod beginnings;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use evidenceos_daemon::{StartError, config::Settings};
use evidenceos_proto as wire;
use tempfile::TempDir;
use tonic::Code;

use crate::{
    continuity::{bring_keys, end, must, must_not, said, text},
    harness::{
        Client, Directory, block_on, config, configured, header, judged, labels, predictions,
        refused, terms,
    },
    process::{Serving, block_on_value, spawn, spawn_saying, spawn_with},
};

/// A temporary directory with a data directory, and the anchor beside that.
struct Home {
    kept: TempDir,
}

impl Home {
    fn new() -> Self {
        Self {
            kept: tempfile::tempdir().expect("a directory"),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.kept.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.at("data")
    }

    fn anchor(&self) -> PathBuf {
        self.at("data.anchor")
    }

    /// A served log with a holdout, stopped well.
    fn begun() -> Self {
        let home = Self::new();
        home.grows("h");
        home
    }

    /// Registers a holdout, and stops well.
    fn grows(&self, holdout: &str) {
        let (child, address) = spawn(&self.data());
        block_on_value(async {
            let mut client = Client::connect(&address, None).await;
            let policy = wire::HoldoutPolicy {
                sealed_budget_microbits: Some(256_000_000),
                ..Default::default()
            };
            let header = wire::PutHoldoutHeader {
                policy: Some(policy),
                ..header(holdout)
            };
            let put = client.put(header, &labels(holdout)).await;
            put.expect("a holdout");
        });
        end(child);
    }

    /// Certifies claims, each of which costs the holdout something.
    fn certifies(&self, claims: usize) {
        let (child, address) = spawn(&self.data());
        block_on_value(async {
            let mut client = Client::connect(&address, None).await;
            for claim in 0..claims {
                let name = format!("claim {claim} of {claims}");
                // Other claims than before, and certified all the same.
                let wrong = judged(&predictions("h", 20 + claim));
                let (_, result) = client.run(&name, "h", &wrong).await;
                assert_eq!(result.state, wire::ClaimState::Certified as i32);
            }
        });
        end(child);
    }

    /// The log's file in the anchor beside the data directory.
    fn head_file(&self) -> PathBuf {
        heads(&self.anchor()).pop().expect("one log")
    }
}

/// The heads that an anchor directory remembers.
fn heads(anchor: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(anchor).expect("there");
    files
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|end| end == "head"))
        .collect()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .args(["-a".as_ref(), from.as_os_str(), to.as_os_str()])
        .status();
    assert!(status.expect("cp runs").success());
}

/// The program over a data directory, which must not start; what it says.
fn must_not_start(data: &Path, more: &[&str]) -> String {
    let ports = ["--listen", "127.0.0.1:0", "--preflight-listen", "off"];
    let place = ["--metrics-listen", "off", "--data-dir", text(data)];
    must_not(&[&ports[..], &place, more].concat())
}

/// Serves reads and nothing else; the reason that it gives.
fn is_held(data: &Path, more: &[&str]) -> String {
    let published = fs::read(data.join("log/checkpoint")).expect("published");
    let (child, address) = spawn_with(data, more);
    let why = block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        assert_eq!(client.holdout("h").await.items, 200);
        client.is_held().await
    });
    end(child);
    let after = fs::read(data.join("log/checkpoint")).expect("published");
    assert_eq!(published, after, "nothing was signed");
    why
}

/// Serves and signs.
fn is_free(data: &Path, more: &[&str]) {
    let (child, address) = spawn_with(data, more);
    signs(&address);
    end(child);
}

fn signs(address: &str) {
    static SIGNED: AtomicU64 = AtomicU64::new(0);
    let name = format!("signed-{}", SIGNED.fetch_add(1, Ordering::Relaxed));
    block_on_value(async {
        let mut client = Client::connect(address, None).await;
        // One entry: declared fresh, it is compared with nothing.
        let mut fresh = header(&name);
        fresh.fresh_items = true;
        client.put(fresh, &labels(&name)).await.expect("a holdout");
        assert!(!client.warnings().await.contains("anchor"));
    });
}

/// The entries of a stopped log, by schema, in order.
fn schemas(data: &Path) -> Vec<String> {
    let home = tempfile::tempdir().expect("a directory");
    let copied = home.path().join("copy");
    copy(data, &copied);
    let (child, address) = spawn_with(&copied, &["--anchor", "none"]);
    let entries = block_on_value(async { Client::connect(&address, None).await.entries().await });
    end(child);
    entries
        .iter()
        .map(|entry| {
            let entry: serde_json::Value = serde_json::from_slice(entry).expect("JSON");
            let short = entry["schema"].as_str().expect("a schema");
            short.trim_start_matches("evidenceos.v2.").to_owned()
        })
        .collect()
}

#[test]
fn the_first_start_makes_an_anchor_beside_the_data_and_later_ones_miss_it() {
    let home = Home::begun();
    let mode = fs::metadata(home.anchor()).expect("made").permissions();
    assert_eq!(mode.mode() & 0o777, 0o700);
    let head = fs::read_to_string(home.head_file()).expect("text");
    let published = fs::read_to_string(home.data().join("log/checkpoint")).expect("published");
    assert!(head.contains(&published), "{head}");
    is_free(&home.data(), &[]);
    // Gone: an unmounted volume looks the same.
    let away = home.at("away");
    fs::rename(home.anchor(), &away).expect("ours");
    let why = is_held(&home.data(), &[]);
    assert!(
        why.contains("no anchor answers") && why.contains("log continue"),
        "{why}"
    );
    assert!(!home.anchor().exists(), "no other is made");
    // There, and empty.
    fs::create_dir(home.anchor()).expect("ours");
    let why = is_held(&home.data(), &[]);
    assert!(why.contains("is not"), "{why}");
    fs::remove_dir_all(home.anchor()).expect("ours");
    // A new one elsewhere remembers nothing, and is no answer.
    let other = home.at("other");
    fs::create_dir(&other).expect("ours");
    is_held(&home.data(), &["--anchor", text(&other)]);
    // Brought along, it is: the log goes on by itself, and from now on looks there.
    is_free(&home.data(), &["--anchor", text(&away)]);
    is_free(&home.data(), &[]);
    assert!(!home.anchor().exists());
}

#[test]
fn the_first_line_says_whether_only_reads_are_served() {
    let home = Home::begun();
    let first_line = || {
        let (child, line) = spawn_saying(&home.data(), &[]);
        end(child);
        line
    };
    let line = first_line();
    assert!(line.contains("may do everything"), "{line}");
    assert!(!line.contains("reads only"), "{line}");
    fs::rename(home.anchor(), home.at("away")).expect("ours");
    let line = first_line();
    assert!(line.contains("serves reads only"), "{line}");
    assert!(!line.contains("may do everything"), "{line}");
    let why = is_held(&home.data(), &[]);
    assert!(!why.contains("may do everything"), "{why}");
}

#[test]
fn a_held_daemon_goes_on_once_its_anchor_is_back() {
    let home = Home::begun();
    let away = home.at("away");
    fs::rename(home.anchor(), &away).expect("ours");
    let (child, address) = spawn(&home.data());
    block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        let held = client.create(terms("c", "h")).await;
        refused(held, Code::Unavailable, "HELD", "read-only");
        fs::rename(&away, home.anchor()).expect("ours");
        // It is asked again each second.
        for _ in 0..400 {
            match client.create(terms("c", "h")).await {
                Ok(_) => return,
                Err(held) => assert_eq!(held.code(), Code::Unavailable),
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("it answers again");
    });
    end(child);
}

#[test]
fn a_copy_at_another_path_looks_at_the_same_anchor() {
    let home = Home::begun();
    let (aside, other) = (home.at("aside"), home.at("elsewhere/data"));
    fs::create_dir(home.at("elsewhere")).expect("ours");
    copy(&home.data(), &aside);
    home.certifies(1);
    // Put back in place, or anywhere else.
    copy(&aside, &other);
    for data in [&other, &aside] {
        let refused = is_held(data, &[]);
        assert!(refused.contains("remembers 3 entries"), "{refused}");
        let refused = must_not(&[
            "log",
            "continue",
            "--nothing-was-signed-since",
            "--because",
            "it looks like it",
            "--data-dir",
            text(data),
        ]);
        assert!(refused.contains("remembers 3 entries"), "{refused}");
        // Nor does another anchor make it forget the one that it has.
        let fresh = home.at("fresh");
        let _ = fs::create_dir(&fresh);
        let refused = is_held(data, &["--anchor", text(&fresh)]);
        assert!(refused.contains("remembers 3 entries"), "{refused}");
    }
    fs::remove_dir_all(home.data()).expect("ours");
    fs::rename(&aside, home.data()).expect("ours");
    let refused = is_held(&home.data(), &[]);
    assert!(refused.contains("log recover"), "{refused}");
}

#[test]
fn two_copies_of_one_directory_do_not_both_sign() {
    let home = Home::begun();
    let other = home.at("other");
    copy(&home.data(), &other);
    let (child, address) = spawn(&home.data());
    signs(&address);
    let told = is_held(&other, &[]);
    assert!(told.contains("remembers 3 entries"), "{told}");
    end(child);
    // The same size, and both at once: one holds the anchor's file.
    fs::remove_dir_all(&other).expect("ours");
    copy(&home.data(), &other);
    let (child, address) = spawn(&home.data());
    let (second, held) = spawn(&other);
    block_on_value(async {
        let mut client = Client::connect(&held, None).await;
        let held = client.create(terms("c", "h")).await;
        refused(held, Code::Unavailable, "HELD", "read-only");
    });
    signs(&address);
    end(child);
    drop(second);
    let told = is_held(&other, &[]);
    assert!(told.contains("remembers 4 entries"), "{told}");
}

#[test]
fn a_restored_directory_signs_nothing_until_it_is_told_what_happened() {
    let home = Home::begun();
    let backup = home.at("backup");
    must(&["backup", text(&backup), "--data-dir", text(&home.data())]);
    home.certifies(3);
    // Elsewhere, with the machine that it came from gone with its anchor.
    let (gone, gone_anchor) = (home.at("gone"), home.at("gone.anchor"));
    fs::rename(home.data(), &gone).expect("ours");
    fs::rename(home.anchor(), &gone_anchor).expect("ours");
    for restored in [home.at("restored"), home.data()] {
        let told = must(&["restore", text(&backup), "--data-dir", text(&restored)]);
        assert!(told.contains("read-only"), "{told}");
        assert!(told.contains("--nothing-was-signed-since"), "{told}");
        bring_keys(&gone, &restored);
        must(&["fsck", "--data-dir", text(&restored)]);
        for more in [
            &[][..],
            &["--anchor", "none"],
            &["--anchor-optional"],
            // An empty one knows nothing.
            &["--anchor", text(home.kept.path())],
        ] {
            let why = is_held(&restored, more);
            assert!(why.contains("restored from a backup"), "{more:?}: {why}");
        }
        // The anchor knows more, wherever it is now.
        let refused = is_held(&restored, &["--anchor", text(&gone_anchor)]);
        assert!(refused.contains("remembers 5 entries"), "{refused}");
        let refused = must_not(&[
            "log",
            "continue",
            "--nothing-was-signed-since",
            "--because",
            "hope",
            "--anchor",
            text(&gone_anchor),
            "--data-dir",
            text(&restored),
        ]);
        assert!(refused.contains("remembers 5 entries"), "{refused}");
    }
    // What was lost comes back: free, and what was spent is spent.
    let data = home.data();
    let recovered = must(&[
        "log",
        "recover",
        "--from",
        text(&gone),
        "--data-dir",
        text(&data),
    ]);
    assert!(recovered.contains("recovered 3 entries"), "{recovered}");
    is_free(&data, &[]);
    let (child, address) = spawn(&data);
    block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        let holdout = client.holdout("h").await;
        assert_eq!((holdout.settled, holdout.certified), (3, 3));
    });
    end(child);
}

#[test]
fn a_backup_that_was_copied_into_place_is_known_as_one() {
    let home = Home::begun();
    let backup = home.at("backup");
    must(&["backup", text(&backup), "--data-dir", text(&home.data())]);
    home.certifies(1);
    let away = home.at("away");
    fs::rename(home.anchor(), home.at("away.anchor")).expect("ours");
    fs::rename(home.data(), &away).expect("ours");
    let data = home.data();
    copy(&backup, &data);
    bring_keys(&away, &data);
    let why = is_held(&data, &[]);
    assert!(why.contains("restored from a backup"), "{why}");
    // A backup of a backup is one too.
    let again = home.at("again");
    must(&["backup", text(&again), "--data-dir", text(&data)]);
    let third = home.at("third");
    must(&["restore", text(&again), "--data-dir", text(&third)]);
    bring_keys(&away, &third);
    is_held(&third, &[]);
    // The statement is an entry, and ends it.
    let stated = must(&[
        "log",
        "continue",
        "--nothing-was-signed-since",
        "--because",
        "only a test",
        "--data-dir",
        text(&data),
    ]);
    assert!(
        stated.contains("states that nothing was signed"),
        "{stated}"
    );
    is_free(&data, &[]);
    assert!(home.anchor().exists(), "it has an anchor again");
    assert_eq!(
        schemas(&data),
        [
            "log_started",
            "holdout_registered",
            "log_continued",
            "holdout_registered"
        ]
    );
    must(&["fsck", "--data-dir", text(&data)]);
    let nothing = must_not(&[
        "log",
        "continue",
        "--nothing-was-signed-since",
        "--because",
        "again",
        "--data-dir",
        text(&data),
    ]);
    assert!(nothing.contains("nothing needs to be stated"), "{nothing}");
    let unstated = must_not(&[
        "log",
        "continue",
        "--because",
        "x",
        "--data-dir",
        text(&data),
    ]);
    assert!(
        unstated.contains("--nothing-was-signed-since"),
        "{unstated}"
    );
}

#[test]
fn a_planned_move_goes_on_by_itself() {
    let home = Home::begun();
    home.certifies(1);
    let (backup, moved) = (home.at("backup"), home.at("moved"));
    must(&["backup", text(&backup), "--data-dir", text(&home.data())]);
    must(&["restore", text(&backup), "--data-dir", text(&moved)]);
    bring_keys(&home.data(), &moved);
    is_free(&moved, &[]);
    // The one that it came from is the older one now.
    let refused = is_held(&home.data(), &[]);
    assert!(refused.contains("remembers 4 entries"), "{refused}");
    is_free(&moved, &[]);
}

#[test]
fn an_anchor_that_is_behind_is_compared_with_the_tree_of_its_size() {
    let home = Home::begun();
    let older = home.at("older");
    copy(&home.anchor(), &older);
    home.certifies(2);
    let back = || {
        fs::remove_dir_all(home.anchor()).expect("ours");
        copy(&older, &home.anchor());
    };
    // As after a crash before it was written, with the log's files further or not.
    back();
    is_free(&home.data(), &[]);
    back();
    fs::remove_dir_all(home.data().join("log")).expect("ours");
    is_free(&home.data(), &[]);
    // It agrees, and does not know whether more is missing.
    let (backup, restored) = (home.at("backup"), home.at("restored"));
    must(&["backup", text(&backup), "--data-dir", text(&home.data())]);
    must(&["restore", text(&backup), "--data-dir", text(&restored)]);
    bring_keys(&home.data(), &restored);
    back();
    is_held(&restored, &[]);
    must(&[
        "log",
        "continue",
        "--nothing-was-signed-since",
        "--because",
        "a test",
        "--data-dir",
        text(&restored),
    ]);
    is_free(&restored, &[]);
}

#[test]
fn a_copy_from_before_a_restart_does_not_go_on_under_the_old_name() {
    let home = Home::begun();
    let before = home.at("before");
    copy(&home.data(), &before);
    let restarted = must(&[
        "log",
        "restart",
        "--origin",
        "example.org/2",
        "--because",
        "a test",
        "--data-dir",
        text(&home.data()),
    ]);
    assert!(restarted.contains("holdout h: exhausted"), "{restarted}");
    is_free(&home.data(), &[]);
    assert_eq!(heads(&home.anchor()).len(), 2);
    let refused = is_held(&before, &[]);
    assert!(refused.contains("was restarted as"), "{refused}");
}

#[test]
fn dropped_while_it_serves_it_gives_its_directory_back_at_once() {
    block_on(async {
        let directory = Directory::new();
        for round in 0..20 {
            let running = evidenceos_daemon::start(config(directory.path()))
                .await
                .expect("nobody has it");
            let mut client = Client::connect(&running.grpc_address().to_string(), None).await;
            if round == 0 {
                client.put_default("h").await;
            }
            let sealed = client
                .sealed(&format!("c {round}"), "h", &judged(&predictions("h", 2)))
                .await;
            // One is under way while it goes.
            let under_way = tokio::spawn(async move { client.execute(&sealed).await });
            tokio::task::yield_now().await;
            drop(running);
            under_way.abort();
        }
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("nobody has it");
        running.stop().await.expect("stops");
    });
}

#[test]
fn a_start_that_fails_after_it_opened_gives_its_directory_back() {
    block_on(async {
        let directory = Directory::new();
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        running.stop().await.expect("stops");
        for _ in 0..5 {
            // Tokens are read once everything else is there.
            let token = directory.beside("token");
            fs::write(&token, "correct-horse-battery\n").expect("writable");
            fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("ours");
            let settings = Settings {
                listen: Some("127.0.0.1:0".to_owned()),
                preflight_listen: Some("off".to_owned()),
                metrics_listen: Some("off".to_owned()),
                data_dir: Some(directory.path().to_owned()),
                auth_token_file: Some(token.clone()),
                ..Settings::default()
            };
            let wrong = configured(&settings);
            fs::remove_file(&token).expect("ours");
            let refused = evidenceos_daemon::start(wrong).await.err();
            assert!(
                matches!(refused, Some(StartError::Identity(_))),
                "{refused:?}"
            );
            let running = evidenceos_daemon::start(config(directory.path()))
                .await
                .expect("nobody has it");
            running.stop().await.expect("stops");
        }
    });
}

/// A data directory with its anchorless log, keys and secrets, as release 2.1.0 before this one left
/// it: `testdata/data-tables-4.tar.gz`, made by that release's program.
fn older(at: &Path) {
    let tar = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/data-tables-4.tar.gz");
    fs::create_dir(at).expect("a new name");
    let status = Command::new("tar")
        .args(["-xz", "--no-same-owner", "-f"])
        .arg(tar)
        .arg("-C")
        .arg(at)
        .status();
    assert!(status.expect("tar runs").success());
}

#[test]
fn a_directory_of_the_release_before_gets_an_anchor_at_its_first_start() {
    let home = Home::new();
    older(&home.data());
    // It cannot be made: reads are served until it can, or another is named.
    fs::write(home.anchor(), "in the way").expect("writable");
    is_held(&home.data(), &[]);
    fs::remove_file(home.anchor()).expect("ours");
    is_free(&home.data(), &[]);
    assert_eq!(heads(&home.anchor()).len(), 1);
    let away = home.at("away");
    fs::rename(home.anchor(), &away).expect("ours");
    is_held(&home.data(), &[]);
    must(&["fsck", "--data-dir", text(&home.data())]);
}

#[test]
fn an_older_backup_is_marked_by_the_restore_and_where_it_was_copied_into_place() {
    let home = Home::new();
    let source = home.at("source");
    older(&source);
    for (how, restored) in [("restored", home.at("a")), ("copied", home.at("b"))] {
        let backup = source.join("backup");
        if how == "restored" {
            must(&["restore", text(&backup), "--data-dir", text(&restored)]);
        } else {
            copy(&backup, &restored);
        }
        bring_keys(&source, &restored);
        let why = is_held(&restored, &[]);
        assert!(why.contains("restored from a backup"), "{how}: {why}");
        assert!(!restored.join("backup.json").exists());
        is_held(&restored, &[]);
        let because = ["--nothing-was-signed-since", "--because", "a test"];
        let place = ["--data-dir", text(&restored)];
        must(&[&["log", "continue"][..], &because, &place].concat());
        is_free(&restored, &[]);
        must(&["fsck", "--data-dir", text(&restored)]);
    }
}
