//! How a log may begin, and that of two beginnings one wins.

use super::*;

#[test]
fn an_empty_directory_with_a_key_that_was_there_begins_no_second_log() {
    let home = Home::new();
    let keys = home.at("keys");
    let with_keys = ["--key-dir", text(&keys)];
    // Rule 1: this start makes the key.
    let (child, _) = spawn_with(&home.data(), &with_keys);
    end(child);
    let first = first_entry(&home.data(), &with_keys);
    assert_eq!(first["begun_by"], "new_key");
    let origin = first["origin"].as_str().expect("a name").to_owned();
    fs::rename(home.data(), home.at("lost")).expect("ours");
    let refused = must_not_start(&home.data(), &with_keys);
    assert!(refused.contains("the directory was lost"), "{refused}");
    // Its anchor was lost as well: nothing can tell.
    fs::remove_dir_all(home.anchor()).expect("ours");
    let refused = must_not_start(&home.data(), &with_keys);
    assert!(
        refused.contains(&format!("--begin-log {origin}")) && refused.contains("mkdir"),
        "{refused}"
    );
    assert!(!home.anchor().exists());
    let none = [&with_keys[..], &["--anchor", "none"]].concat();
    must_not_start(&home.data(), &none);
    // Another anchor that remembers this key, under whatever name.
    let other = home.at("other");
    fs::create_dir(&other).expect("ours");
    let lost = home.at("lost");
    copy(&lost.join("log/checkpoint"), &other.join("copied"));
    let named = [
        &with_keys[..],
        &[
            "--anchor",
            text(&other),
            "--log-origin",
            "example.org/other",
        ],
    ]
    .concat();
    let refused = must_not_start(&home.data(), &named);
    assert!(refused.contains("that this key signed"), "{refused}");
    // Rule 3: the operator states it, by name.
    let wrong = [&with_keys[..], &["--begin-log", "example.org/wrong"]].concat();
    let refused = must_not_start(&home.data(), &wrong);
    assert!(refused.contains("names another log"), "{refused}");
    let right = [&with_keys[..], &["--begin-log", &origin]].concat();
    let (child, _) = spawn_with(&home.data(), &right);
    end(child);
    let first = first_entry(&home.data(), &with_keys);
    assert_eq!(first["begun_by"], "operator");
    let refused = must_not_start(&home.data(), &wrong);
    assert!(
        refused.contains("the data directory has the log"),
        "{refused}"
    );
}

#[test]
fn an_anchor_that_was_there_and_knows_nothing_lets_a_log_begin() {
    let home = Home::new();
    let (keys, anchor) = (home.at("keys"), home.at("anchor"));
    let mut ring = evidenceos_keys::Ring::open_or_create(&keys).expect("writable");
    ring.generate().expect("writable");
    let flags = ["--key-dir", text(&keys), "--anchor", text(&anchor)];
    // It is not there, neither as a file nor as a directory.
    must_not_start(&home.data(), &flags);
    let as_directory = format!("{}/", text(&anchor));
    let refused = must_not_start(
        &home.data(),
        &["--key-dir", text(&keys), "--anchor", &as_directory],
    );
    let once = format!("({}: No such file", text(&anchor));
    assert!(refused.contains(&once), "{refused}");
    fs::create_dir(&anchor).expect("ours");
    fs::write(anchor.join(".gitkeep"), "").expect("ours");
    let (child, address) = spawn_with(&home.data(), &flags);
    signs(&address);
    end(child);
    let first = first_entry(&home.data(), &flags);
    assert_eq!(first["begun_by"], "anchor");
    // An empty directory beside it is not another log's.
    fs::rename(home.data(), home.at("lost")).expect("ours");
    let refused = must_not_start(&home.data(), &flags);
    assert!(refused.contains("the directory was lost"), "{refused}");
    // Nor with a file for an anchor that was made for it.
    let file = home.at("file");
    let with_file = ["--key-dir", text(&keys), "--anchor", text(&file)];
    must_not_start(&home.data(), &with_file);
    fs::write(&file, "").expect("ours");
    let (child, _) = spawn_with(&home.data(), &with_file);
    end(child);
    let first = first_entry(&home.data(), &with_file);
    assert_eq!(first["begun_by"], "anchor");
}

#[test]
fn of_two_first_starts_beside_one_anchor_one_wins() {
    for _ in 0..4 {
        let home = Home::new();
        let (keys, anchor) = (home.at("keys"), home.at("anchor"));
        let mut ring = evidenceos_keys::Ring::open_or_create(&keys).expect("writable");
        ring.generate().expect("writable");
        fs::create_dir(&anchor).expect("ours");
        let start = |data: &Path| {
            Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"))
                .args(["--listen", "127.0.0.1:0", "--preflight-listen", "off"])
                .args(["--metrics-listen", "off", "--log", "error", "--key-dir"])
                .arg(&keys)
                .arg("--anchor")
                .arg(&anchor)
                .arg("--data-dir")
                .arg(data)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("starts")
        };
        let both = [start(&home.at("one")), start(&home.at("two"))];
        let mut serving = Vec::new();
        let mut refused = Vec::new();
        for mut child in both {
            let mut line = String::new();
            let stdout = child.stdout.take().expect("piped");
            std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)
                .expect("a line or the end");
            if line.is_empty() {
                refused.push(said(&child.wait_with_output().expect("ends")));
            } else {
                serving.push(Serving::of(child));
            }
        }
        assert_eq!((serving.len(), refused.len()), (1, 1), "{refused:?}");
        assert!(
            refused[0].contains("the directory was lost"),
            "{}",
            refused[0]
        );
        assert_eq!(heads(&anchor).len(), 1);
    }
}

/// Entry 0 of a stopped log.
fn first_entry(data: &Path, more: &[&str]) -> serde_json::Value {
    let (child, address) = spawn_with(data, more);
    let entry = block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        client.entries().await.remove(0)
    });
    end(child);
    serde_json::from_slice(&entry).expect("JSON")
}
