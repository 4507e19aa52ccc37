//! `keys` on files alone.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use serde_json::Value;

use crate::place::{MOCK_KEY, Place, stderr, text_of};

#[test]
fn keys_are_made_listed_shown_and_chosen_and_no_seed_is_printed() {
    let place = Place::new();
    let at = ["--data-dir", "srv/data"];
    let said = |args: &[&str]| place.text(&[&["keys"], args, &at].concat());
    let mut all = said(&["generate"]);
    assert_eq!(place.mode("srv/data"), 0o700);
    let first = place.only("srv/data/keys", ".key");
    assert!(all.contains("it is the only key, so it signs"), "{all}");
    let second = place.json(&[&["keys", "generate"][..], &at].concat());
    let second = text_of(&second, "key_id").to_owned();
    all += &said(&["list"]);
    assert!(all.contains("no key is activated"), "{all}");
    place.fails(&[&["keys", "show"][..], &at].concat(), 1, "keys activate");

    all += &said(&["activate", &second]);
    assert!(all.contains("evidenceos-daemon reload"), "{all}");
    let listed = place.json(&[&["keys", "list"][..], &at].concat());
    for key in listed["keys"].as_array().expect("a list") {
        assert_eq!(key["active"] == true, key["key_id"] == *second, "{key}");
        assert!(place.path(text_of(key, "file")).is_file(), "{key}");
    }
    let shown = place.json(&[&["keys", "show"][..], &at].concat());
    assert_eq!(text_of(&shown, "key_id"), second);
    all += &said(&["show"]);
    assert!(all.contains(text_of(&shown, "public_key_hex")));

    let third = said(&["generate", "--activate"]);
    assert!(third.contains("next start or reload"), "{third}");
    for path in [first, place.path(&format!("srv/data/keys/{second}.key"))] {
        let seed = fs::read(path).expect("a seed");
        assert_eq!(seed.len(), 32);
        let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!all.contains(&hex));
    }
}

#[test]
fn keys_lie_where_the_daemon_is_told_that_they_do() {
    let place = Place::new();
    place.text(&["keys", "generate", "--key-dir", "elsewhere"]);
    let by_flag = place.json(&["keys", "list", "--key-dir", "elsewhere"]);
    let mut command = place.command(&["keys", "list", "--json"]);
    command.env("EVIDENCEOS_KEY_DIR", "elsewhere");
    // What says where a daemon is has no say here.
    command.env("EVIDENCEOS_PROFILE", "/nowhere");
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let by_environment: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(by_flag, by_environment);
    assert!(!place.path("data").exists());
}

#[test]
fn keys_that_are_not_there_are_said_to_be_missing() {
    let place = Place::new();
    place.fails(&["keys", "list"], 1, "data/keys");
    place.fails(&["keys", "fix-permissions"], 1, "--data-dir");
    place.text(&["keys", "generate"]);
    place.fails(&["keys", "activate", &"0".repeat(64)], 1, "keys list");
    place.fails(&["keys", "activate", "abc"], 2, "64 hex digits");
    fs::remove_file(place.only("data/keys", ".key")).expect("removed");
    let text = place.text(&["keys", "list"]);
    assert!(text.contains("keys generate"), "{text}");
}

#[test]
fn keys_that_others_can_read_are_refused_until_they_are_closed() {
    let place = Place::new();
    place.text(&["keys", "generate"]);
    let key = place.only("data/keys", ".key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("changed");
    place.set_mode("data/keys", 0o777);
    place.fails(&["keys", "list"], 1, "chmod go-w");
    let text = place.text(&["keys", "fix-permissions"]);
    assert!(
        text.contains(&*key.file_name().expect("a name").to_string_lossy()),
        "{text}"
    );
    place.text(&["keys", "list"]);
    let again = place.text(&["keys", "fix-permissions"]);
    assert!(again.contains("nothing to close"), "{again}");
}

#[test]
fn keys_come_from_a_mount_as_kubernetes_makes_it_any_number_of_times() {
    let place = Place::new();
    place.text(&["keys", "generate", "--data-dir", "source"]);
    let key = place.only("source/keys", ".key");
    let name = key.file_name().expect("a name").to_owned();
    // Links through ..data to a directory with the time in its name.
    fs::create_dir_all(place.path("mount/..2026_01_01")).expect("made");
    let real = place.path("mount/..2026_01_01").join(&name);
    fs::copy(&key, &real).expect("copied");
    fs::set_permissions(&real, Permissions::from_mode(0o440)).expect("changed");
    symlink("..2026_01_01", place.path("mount/..data")).expect("linked");
    symlink(
        Path::new("..data").join(&name),
        place.path("mount").join(&name),
    )
    .expect("linked");

    let import = [
        "keys",
        "import",
        "--from",
        "mount",
        "--data-dir",
        "new/data",
    ];
    for (added, kept) in [(1, 0), (0, 1)] {
        let done = place.json(&import);
        let count = |name: &str| done[name].as_array().expect(name).len();
        assert_eq!((count("added"), count("kept")), (added, kept));
    }
    let copy = place.path("new/data/keys").join(&name);
    assert_eq!(
        fs::read(&copy).expect("read"),
        fs::read(&key).expect("read")
    );
    assert_eq!(fs::metadata(&copy).expect("there").mode() & 0o777, 0o600);

    fs::set_permissions(&real, Permissions::from_mode(0o444)).expect("changed");
    place.fails(&import, 1, "defaultMode: 0440");
    place.fails(&["keys", "import", "--from", "/nowhere"], 1, "/nowhere");
}

#[test]
fn what_cannot_be_wrapped_is_refused() {
    let place = Place::new();
    place.text(&["keys", "generate"]);
    let wrap = |provider| ["keys", "wrap", "--provider", provider, "--resource", "r"];
    place.fails(&wrap("mock"), 1, "EVIDENCEOS_KMS_MOCK_KEY_HEX");
    place.fails(&wrap("vault"), 2, "aws, gcp or azure");
    #[cfg(not(feature = "kms-aws"))]
    place.fails(&wrap("aws"), 1, "--features kms-aws");
    let mock = |hex, from: &[&str]| {
        let mut command = place.command(&[&wrap("mock")[..], from].concat());
        let output = command
            .env("EVIDENCEOS_KMS_MOCK_KEY_HEX", hex)
            .output()
            .expect("runs");
        assert!(!output.status.success());
        stderr(&output)
    };
    assert!(mock("0g", &[]).contains("64 hex digits"));
    fs::write(place.path("seed"), [7; 32]).expect("written");
    place.set_mode("seed", 0o644);
    assert!(mock(MOCK_KEY, &["--from", "seed"]).contains("chmod 600"));
    assert!(mock(MOCK_KEY, &["--from", "no-seed"]).contains("no such file"));
}
