//! One program under its names: the daemon, its commands, the client.

use super::*;

/// A process that ends with its test.
struct Ending(std::process::Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // If it has ended already there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_program_serves_and_looks_after_what_it_serves() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data").display().to_string();
    let admin = |args: &[&str]| {
        let output = evidenceos(&[&["admin"], args, &["--data-dir", &data]].concat()).output();
        output.expect("the command runs")
    };
    let nobody = admin(&["healthcheck"]);
    assert_eq!(nobody.status.code(), Some(1), "{}", stderr(&nobody));
    let mut serving = evidenceos(&["serve", "--data-dir", &data])
        .args(["--listen", "127.0.0.1:0", "--preflight-listen", "off"])
        .args(["--metrics-listen", "off", "--log", "error"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Ending)
        .expect("the daemon starts");
    let mut line = String::new();
    let stdout = serving.0.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert!(line.contains("127.0.0.1:"), "{line}");
    for command in [&["healthcheck"][..], &["reload"]] {
        let done = admin(command);
        assert!(done.status.success(), "{command:?}: {}", stderr(&done));
    }
    let id = serving.0.id().to_string();
    let stopped = Command::new("kill").args(["-s", "TERM", &id]).status();
    assert!(stopped.expect("kill runs").success());
    let status = serving.0.wait().expect("it ends");
    assert!(status.success(), "{status}");
    let sound = admin(&["fsck"]);
    assert!(sound.status.success(), "{}", stderr(&sound));
}

#[test]
fn each_name_of_the_daemon_says_what_it_takes() {
    let says = |args: &[&str]| {
        let output = evidenceos(args).output().expect("the command runs");
        let words = [&output.stdout[..], &output.stderr[..]].concat();
        (
            output.status.code(),
            String::from_utf8(words).expect("text"),
        )
    };
    let (status, serve) = says(&["serve", "--help"]);
    assert_eq!(status, Some(0), "{serve}");
    assert!(serve.contains("Usage: evidenceos serve"), "{serve}");
    assert!(serve.contains("--listen"), "{serve}");
    assert!(!serve.contains("evidenceos-daemon"), "{serve}");
    for word in [
        "config",
        "accounts",
        "backup",
        "restore",
        "log",
        "fsck",
        "healthcheck",
        "reload",
    ] {
        let (status, help) = says(&["admin", word, "--help"]);
        assert_eq!(status, Some(0), "{help}");
        assert!(
            help.contains(&format!("Usage: evidenceos admin {word}")),
            "{help}"
        );
        assert!(!help.contains("evidenceos-daemon"), "{help}");
    }
    let (status, backup) = says(&["admin", "backup", "--help"]);
    assert!(
        backup.contains("evidenceos admin backup /mnt/backups"),
        "{status:?} {backup}"
    );
    for (args, words) in [
        (&["serve", "fsck"][..], "evidenceos admin COMMAND"),
        (&["admin"], "Usage: evidenceos admin"),
        (
            &["admin", "--listen", "127.0.0.1:0"],
            "Usage: evidenceos admin",
        ),
        (&["--json", "serve"], "come first"),
    ] {
        let (status, said) = says(args);
        assert!(status.is_some_and(|status| status != 0), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
}
