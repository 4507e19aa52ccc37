//! The daemon with what `keys` and `lab` made, and commands that call it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Stdio},
};

use serde_json::Value;

use crate::place::{MOCK_KEY, Place, stderr, text_of};

/// What `lab init` says to run.
const SERVE: [&str; 15] = [
    "--data-dir",
    "ops/data",
    "--key-dir",
    "ops/keys",
    "--anchor",
    "ops/anchor",
    "--tls-cert",
    "ops/certs/server.crt",
    "--tls-key",
    "ops/certs/server.key",
    "--mtls-client-ca",
    "ops/certs/ca.crt",
    "--require-client-cert",
    "--auth-policy",
    "ops/certs/policy.toml",
];

/// The daemon: the same program under its other name.
struct Daemon {
    process: Child,
    port: u16,
}

impl Daemon {
    fn start(place: &Place, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = place.command(args);
        command
            .arg0("evidenceos-daemon")
            .args(["--listen", "127.0.0.1:0"])
            .args(["--preflight-listen", "off", "--metrics-listen", "off"])
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(place.path("daemon.log")).expect("made"));
        let mut process = command.spawn().expect("the daemon runs");
        let output = process.stdout.take().expect("piped");
        let mut greeting = String::new();
        let read = BufReader::new(output).read_line(&mut greeting);
        // Made first, so that whatever fails below ends the process.
        let mut daemon = Self { process, port: 0 };
        read.expect("a greeting");
        let Some((_, words)) = greeting.split_once(" on 127.0.0.1:") else {
            let log = fs::read_to_string(place.path("daemon.log")).expect("a log");
            panic!("no address in {greeting:?}: {log}");
        };
        let port = words.split(' ').next().expect("a port");
        daemon.port = port.parse().expect("a port");
        daemon
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let ended = self.process.wait();
        let well = ended.is_ok_and(|status| status.success());
        assert!(well || std::thread::panicking(), "the daemon stops well");
    }
}

#[test]
fn a_daemon_signs_with_the_key_that_was_wrapped_for_it() {
    let place = Place::new();
    place.text(&["keys", "generate", "--data-dir", "vault"]);
    let id = place.json(&["keys", "show", "--data-dir", "vault"]);
    let mock = [
        "--provider",
        "mock",
        "--resource",
        "lab-key",
        "--context",
        "log=lab",
    ];
    let wrap = |from: &[&str]| {
        let mut command = place.command(&[&["keys", "wrap"], &mock[..], from].concat());
        let output = command
            .env("EVIDENCEOS_KMS_MOCK_KEY_HEX", MOCK_KEY)
            .output()
            .expect("runs");
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).expect("text")
    };
    let key = place.only("vault/keys", ".key");
    let key_id = text_of(&id, "key_id");
    for from in [
        vec!["--data-dir", "vault"],
        vec!["--data-dir", "vault", "--key-id", key_id],
        vec!["--from", key.to_str().expect("text")],
    ] {
        let lines = wrap(&from);
        assert!(
            lines.contains(&format!("EVIDENCEOS_KMS_EXPECT_KEY_ID={key_id}\n")),
            "{lines}"
        );
        assert!(!lines.contains(MOCK_KEY), "no secret is printed");
        let mut environment: Vec<_> = lines
            .lines()
            .map(|line| line.split_once('=').expect("a line of an environment"))
            .collect();
        environment.push(("EVIDENCEOS_KMS_MOCK_KEY_HEX", MOCK_KEY));
        let data = format!("data-{}-{}", from.len(), from[0].trim_start_matches('-'));
        // The key was there before the start: an anchor tells that it has signed nothing.
        fs::create_dir_all(place.path(&format!("{data}.anchor"))).expect("made");
        let daemon = Daemon::start(&place, &["--data-dir", &data], &environment);
        let endpoint = format!("http://127.0.0.1:{}", daemon.port);
        let signs = place.json(&["log", "key", "--all", "--endpoint", &endpoint]);
        assert!(
            !place.path(&data).join("keys").exists(),
            "no key on the disk"
        );
        assert_eq!(text_of(&signs["keys"][0], "key_id"), key_id);
    }
}

/// A lab with its daemon, called with the lab's own profiles.
struct Lab {
    daemon: Daemon,
    place: Place,
}

impl Lab {
    fn new() -> Self {
        let place = Place::new();
        place.text(&["lab", "init", "ops"]);
        let daemon = Daemon::start(&place, &SERVE, &[]);
        Self { daemon, place }
    }

    fn endpoint(&self) -> String {
        format!("https://localhost:{}", self.daemon.port)
    }

    fn json_as(&self, role: &str, args: &[&str]) -> Value {
        let profile = format!("ops/clients/{role}/profile.toml");
        let endpoint = self.endpoint();
        let who = ["--profile", &profile, "--endpoint", &endpoint];
        self.place.json(&[&who, args].concat())
    }
}

#[test]
fn a_labs_roles_run_a_claim_and_its_receipt_outlives_the_keys() {
    let lab = Lab::new();
    let place = &lab.place;
    let label = |i: usize| u8::from(i * i % 7 < 3);
    let labels: String = (0..500)
        .map(|i| format!("item-{i},{}\n", label(i)))
        .collect();
    fs::write(place.path("labels.csv"), format!("item,label\n{labels}")).expect("written");
    let bits: String = (0..500)
        .map(|i| format!("{}\n", label(i) ^ u8::from(i % 20 == 0)))
        .collect();
    fs::write(place.path("predictions.csv"), bits).expect("written");
    lab.json_as(
        "operator",
        &["holdout", "add", "labels.csv", "--ref", "h", "--p0", "0.5"],
    );
    place.text(&["claim", "pack", "predictions.csv", "-o", "claim.wasm"]);
    let run = |name: &str, receipt: &str| {
        let run = [
            "claim",
            "run",
            "claim.wasm",
            "--holdout",
            "h",
            "--name",
            name,
        ];
        lab.json_as("submitter", &[&run[..], &["--receipt", receipt]].concat());
    };
    run("before", "before.json");
    let first = lab.json_as("auditor", &["log", "key"]);
    let vkey = text_of(&first, "vkey").to_owned();
    place.json(&["verify", "before.json", "--key", &vkey]);

    // Another key takes over while the daemon serves, and another key encrypts the holdouts.
    let made = place.json(&["keys", "generate", "--activate", "--key-dir", "ops/keys"]);
    lab.daemon.signal(rustix::process::Signal::HUP);
    let signers = || lab.json_as("auditor", &["log", "key", "--all"])["keys"].take();
    let follows = || signers()[1]["key_id"] == made["key_id"];
    assert!((0..500).any(|_| follows()), "the new key never signed");
    let rotated = lab.json_as("operator", &["holdout", "rotate-key", "--yes"]);
    assert_eq!(rotated["holdouts"], 1);

    run("after", "after.json");
    lab.json_as("auditor", &["log", "entries", "-o", "mirror"]);
    place.json(&["verify", "before.json", "--key", &vkey]);
    place.fails(&["verify", "after.json", "--key", &vkey], 1, "--log");
    let both = ["verify", "before.json", "after.json", "--key", &vkey];
    place.json(&[&both[..], &["--log", "mirror"]].concat());
    assert_eq!(signers().as_array().map(Vec::len), Some(2));
}

#[test]
fn a_labs_door_says_what_a_caller_lacks() {
    let lab = Lab::new();
    let (place, endpoint) = (&lab.place, lab.endpoint());
    place.text(&["lab", "init", "stranger"]);
    let call = ["holdout", "list", "--endpoint", &endpoint];
    let ca = ["--tls-ca", "ops/certs/ca.crt"];
    let stranger = [
        "--tls-cert",
        "stranger/clients/operator/client.crt",
        "--tls-key",
        "stranger/clients/operator/client.key",
    ];
    let cases: [(&[&[&str]], &str); 4] = [
        (&[&ca], "give --tls-cert and --tls-key"),
        (
            &[&["--tls-ca", "stranger/certs/ca.crt"]],
            "--tls-ca stranger/certs/ca.crt",
        ),
        (&[&ca, &stranger], "refused the certificate"),
        (&[], "give --tls-ca"),
    ];
    for (options, part) in cases {
        place.fails(&[&call, &options.concat()[..]].concat(), 1, part);
    }
    let auditor = format!("--profile ops/clients/auditor/profile.toml --endpoint {endpoint}");
    let auditor: Vec<&str> = auditor.split(' ').collect();
    let retire = [&auditor[..], &["holdout", "retire", "h", "--yes"]].concat();
    place.fails(&retire, 1, "operator");
}

#[test]
fn under_the_daemons_name_keys_and_labs_are_the_same() {
    let place = Place::new();
    for args in [
        vec!["lab", "init", "ops"],
        vec!["keys", "list", "--key-dir", "ops/keys"],
    ] {
        let mut command = place.command(&args);
        let output = command.arg0("evidenceos-daemon").output().expect("runs");
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    }
    // What both names have is the daemon's.
    for what in ["recover", "restart", "continue"] {
        let mut command = place.command(&["log", what, "--help"]);
        let output = command.arg0("evidenceos-daemon").output().expect("runs");
        assert!(output.status.success(), "{what}: {}", stderr(&output));
    }
    // Its own ports, as the check binds them: whoever has a daemon on the usual ones must still pass.
    let ports: Vec<&str> =
        "--listen 127.0.0.1:0 --preflight-listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0"
            .split(' ')
            .collect();
    let mut check = place.command(&[&["config", "check"], &SERVE[..], &ports].concat());
    let output = check.arg0("evidenceos-daemon").output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_probe_checks_the_servers_certificate_with_and_without_one_of_its_own() {
    let lab = Lab::new();
    let place = &lab.place;
    let found = lab.json_as("operator", &["probe"]);
    assert_eq!(found["ok"], true, "{found}");
    assert!(text_of(&found["checks"][0], "found").contains("serves log"));

    let endpoint = lab.endpoint();
    let anonymous = ["--endpoint", &endpoint, "--tls-ca"];
    let found = place.json(&[&anonymous[..], &["ops/certs/ca.crt", "probe"]].concat());
    assert_eq!(found["ok"], true, "{found}");
    assert!(text_of(&found["checks"][0], "found").contains("no call was made"));

    place.text(&["lab", "init", "other"]);
    let output = place.run(&[&anonymous[..], &["other/certs/ca.crt", "probe"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("TLS: invalid peer certificate"), "{text}");
}
