//! The command against daemons with and without TLS: who is let in, and what is said to the others.
//!
//! The materials are those that `evidenceos lab init` makes, so they are tested with it. Sentences
//! are claims too: whoever reads one must learn which option to change.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use evidenceos_daemon::{
    Config, Running,
    config::{Listeners, Settings},
    start,
};
use evidenceos_sandbox::Program;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A lab's materials, and daemons in this process that use them.
struct World {
    dir: TempDir,
    runtime: Runtime,
    daemons: Vec<Running>,
}

impl World {
    fn new() -> Self {
        let world = Self {
            dir: tempfile::tempdir().expect("a directory"),
            runtime: Runtime::new().expect("a runtime"),
            daemons: Vec::new(),
        };
        world.init("lab");
        world
    }

    /// Other materials, from an authority of their own.
    fn init(&self, name: &str) {
        let path = self.path(name);
        let output = evidenceos(&["lab", "init", &path]).output();
        let output = output.expect("the command runs");
        assert!(output.status.success(), "{}", stderr(&output));
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A daemon as `lab init` says to start it, on a free port.
    fn serve(&mut self, change: impl FnOnce(&mut Settings)) -> u16 {
        let mut settings = Settings {
            listen: Some("127.0.0.1:0".to_owned()),
            preflight_listen: Some("off".to_owned()),
            metrics_listen: Some("off".to_owned()),
            data_dir: Some(self.file("lab/data")),
            key_dir: Some(self.file("lab/keys")),
            anchors: Some(vec![self.path("lab/anchor")]),
            tls_cert: Some(self.file("lab/certs/server.crt")),
            tls_key: Some(self.file("lab/certs/server.key")),
            mtls_client_ca: Some(self.file("lab/certs/ca.crt")),
            require_client_cert: Some(true),
            auth_policy: Some(self.file("lab/certs/policy.toml")),
            ..Settings::default()
        };
        change(&mut settings);
        self.start(Config::new(&settings).expect("a good configuration"))
    }

    /// A development server, in the clear.
    fn serve_plain(&mut self) -> u16 {
        let config = Config {
            listeners: Listeners {
                grpc: ([127, 0, 0, 1], 0).into(),
                ..Listeners::default()
            },
            data_dir: self.file("plain"),
            ..Config::default()
        };
        self.start(config)
    }

    fn start(&mut self, config: Config) -> u16 {
        let config = Config {
            guest_program: Program(env!("CARGO_BIN_EXE_evidenceos").into()),
            ..config
        };
        let daemon = self.runtime.block_on(start(config));
        let daemon = daemon.expect("the daemon starts");
        let port = daemon.grpc_address().port();
        self.daemons.push(daemon);
        port
    }

    /// A command with a role's profile, but to where the daemon really is.
    fn run_as(&self, role: &str, port: u16, args: &[&str]) -> Output {
        let profile = self.path(&format!("lab/clients/{role}/profile.toml"));
        let endpoint = format!("https://127.0.0.1:{port}");
        let connection = ["--profile", &profile, "--endpoint", &endpoint];
        let output = evidenceos(&[args, &connection, &["--json"]].concat()).output();
        output.expect("the command runs")
    }

    /// A success, as JSON.
    fn json_as(&self, role: &str, port: u16, args: &[&str]) -> serde_json::Value {
        let output = self.run_as(role, port, args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// `holdout list` with these options fails; its code for programs and its sentence.
    fn refusal(&self, options: &[&str]) -> (String, String) {
        let output = evidenceos(&[&["holdout", "list", "--json"], options].concat())
            .current_dir(self.dir.path())
            .output()
            .expect("the command runs");
        assert!(!output.status.success(), "{options:?} was let in");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            stderr(&output)
        );
        let json = text.lines().find_map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(value["error"].clone()).filter(|error| !error.is_null())
        });
        let error = json.unwrap_or_else(|| panic!("no JSON in {text}"));
        let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (part("code"), part("message"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for daemon in self.daemons.drain(..) {
            let stopped = self.runtime.block_on(daemon.stop());
            assert!(stopped.is_ok() || std::thread::panicking(), "stops well");
        }
    }
}

/// The command with none of the caller's environment that it would read.
fn evidenceos(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evidenceos"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVIDENCEOS_") {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A certificate for `elsewhere.example` that is its own authority, and its key.
fn elsewhere(dir: &Path) {
    let names = vec!["elsewhere.example".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    fs::write(dir.join("elsewhere.crt"), made.cert.pem()).expect("written");
    let key = dir.join("elsewhere.key");
    fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(key, mode).expect("closed to others");
}

#[test]
fn profiles_of_a_lab_do_what_their_roles_may_and_no_more() {
    let mut world = World::new();
    let port = world.serve(|_| ());
    let rows: String = (0..500)
        .map(|i| format!("item-{i},{}\n", u8::from(i * i % 7 < 3)))
        .collect();
    let bits: String = (0..500)
        .map(|i| format!("{}\n", u8::from(i * i % 7 < 3) ^ u8::from(i % 20 == 0)))
        .collect();
    let (labels, predictions) = (world.path("labels.csv"), world.path("predictions.csv"));
    fs::write(&labels, format!("item,label\n{rows}")).expect("written");
    fs::write(&predictions, bits).expect("written");
    let (module, receipt) = (world.path("good.wasm"), world.path("receipt.json"));

    let add = ["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"];
    let denied = world.run_as("submitter", port, &add);
    assert_eq!(denied.status.code(), Some(1));
    assert!(stderr(&denied).contains("operator"), "{}", stderr(&denied));
    world.json_as("operator", port, &add);

    let pack = ["claim", "pack", &predictions, "-o", &module, "--ask"];
    world.json_as(
        "submitter",
        port,
        &[&pack[..], &["--holdout", "h"]].concat(),
    );
    let run = ["claim", "run", &module, "--holdout", "h"];
    world.json_as(
        "submitter",
        port,
        &[&run[..], &["--receipt", &receipt, "--require-certified"]].concat(),
    );

    let key = world.json_as("auditor", port, &["log", "key"]);
    let key = key["keys"][0]["vkey"].as_str().or(key["vkey"].as_str());
    let key = key.expect("a key").to_owned();
    // Offline: no profile, and one that is not there does no harm.
    let verified = evidenceos(&["verify", &receipt, "--key", &key])
        .env("EVIDENCEOS_PROFILE", "/nowhere")
        .output()
        .expect("the command runs");
    assert!(verified.status.success(), "{}", stderr(&verified));
}

#[test]
fn whoever_is_not_let_in_learns_which_option_to_change() {
    let mut world = World::new();
    world.init("other");
    elsewhere(world.dir.path());
    let tls = format!("https://127.0.0.1:{}", world.serve(|_| ()));
    let clear = format!("http://127.0.0.1:{}", world.serve_plain());
    let (as_clear, as_tls) = (tls.replace("https", "http"), clear.replace("http", "https"));
    let (cert, file) = (world.file("elsewhere.crt"), world.file("elsewhere.key"));
    let other_dir = |settings: &mut Settings, name: &Path| settings.data_dir = Some(name.into());
    let (data, ring) = (world.file("other/data"), world.file("other/keys"));
    let misnamed = world.serve(|settings| {
        other_dir(settings, &data);
        settings.key_dir = Some(ring);
        settings.tls_cert = Some(cert);
        settings.tls_key = Some(file);
    });
    let misnamed = format!("https://127.0.0.1:{misnamed}");

    let ca = ["--tls-ca", "lab/certs/ca.crt"];
    let own = |lab: &'static str| match lab {
        "lab" => [
            "--tls-cert",
            "lab/clients/operator/client.crt",
            "--tls-key",
            "lab/clients/operator/client.key",
        ],
        _ => [
            "--tls-cert",
            "other/clients/operator/client.crt",
            "--tls-key",
            "other/clients/operator/client.key",
        ],
    };
    let server_only = [
        "--tls-cert",
        "lab/certs/server.crt",
        "--tls-key",
        "lab/certs/server.key",
    ];
    let cases: [(&str, Vec<&str>, &str); 7] = [
        (&tls, ca.to_vec(), "give --tls-cert and --tls-key"),
        (
            &tls,
            [&ca[..], &own("other")].concat(),
            "refused the certificate of --tls-cert",
        ),
        (
            &tls,
            [&ca[..], &server_only].concat(),
            "meant for client authentication",
        ),
        (
            &tls,
            [&["--tls-ca", "other/certs/ca.crt"][..], &own("lab")].concat(),
            "does not come from the authorities in --tls-ca other/certs/ca.crt",
        ),
        (&as_clear, vec![], "write https://"),
        (&as_tls, ca.to_vec(), "does not speak TLS"),
        (
            &misnamed,
            [&["--tls-ca", "elsewhere.crt"][..], &own("lab")].concat(),
            "elsewhere.example",
        ),
    ];
    for (endpoint, options, expected) in cases {
        let (code, sentence) =
            world.refusal(&[&["--endpoint", endpoint], options.as_slice()].concat());
        assert!(sentence.contains(expected), "{options:?}: {sentence}");
        assert_eq!(code, "UNREACHABLE", "{sentence}");
        // Somebody did answer: to start another daemon would not help.
        assert!(!sentence.contains("start one"), "{sentence}");
    }
}

#[test]
fn files_that_are_not_what_their_option_says_are_named_before_anything_is_sent() {
    let world = World::new();
    fs::write(world.file("empty.pem"), "").expect("written");
    // Nobody listens there: whatever were sent would fail otherwise.
    let endpoint = ["--endpoint", "https://127.0.0.1:1"];
    let cert = "lab/clients/operator/client.crt";
    let cases: [(&[&str], &str); 4] = [
        (
            &["--tls-ca", "empty.pem"],
            "--tls-ca empty.pem: no certificate",
        ),
        (
            &["--tls-cert", "empty.pem", "--tls-key", "empty.pem"],
            "--tls-cert empty.pem: no certificate",
        ),
        (
            &["--tls-cert", cert, "--tls-key", cert],
            "--tls-key lab/clients/operator/client.crt: no private key",
        ),
        (
            &[
                "--tls-cert",
                cert,
                "--tls-key",
                "lab/clients/auditor/client.key",
            ],
            "is not the key of --tls-cert",
        ),
    ];
    for (options, expected) in cases {
        let (code, sentence) = world.refusal(&[&endpoint[..], options].concat());
        assert!(sentence.contains(expected), "{sentence}");
        assert_eq!(code, "USAGE", "{sentence}");
    }
}

#[test]
fn a_caller_who_is_not_known_is_told_what_was_sent_but_never_the_secret() {
    let mut world = World::new();
    let (good, bad) = (
        "good-token-0123456789-abcdefghi",
        "bad-token-0123456789-abcdefghij",
    );
    for (name, token) in [("good", good), ("bad", bad)] {
        let path = world.file(name);
        fs::write(&path, token).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(path, mode).expect("closed to others");
    }
    let token = world.file("good");
    let port = world.serve(|settings| {
        settings.require_client_cert = None;
        settings.auth_token_file = Some(token);
    });
    let endpoint = format!("https://127.0.0.1:{port}");
    let to = ["--endpoint", &endpoint, "--tls-ca", "lab/certs/ca.crt"];

    let list = [&["holdout", "list", "--token-file", "good"][..], &to].concat();
    let mut known = evidenceos(&list);
    let known = known.current_dir(world.dir.path()).output().expect("runs");
    assert!(known.status.success(), "{}", stderr(&known));

    let (_, sentence) = world.refusal(&[&to[..], &["--token-file", "bad"]].concat());
    assert!(
        sentence.contains("sent: the bearer token in bad"),
        "{sentence}"
    );
    assert!(sentence.contains("evidenceos admin reload"), "{sentence}");
    assert!(!sentence.contains(bad), "{sentence}");
    let (_, sentence) = world.refusal(&to);
    assert!(sentence.contains("sent: no credentials"), "{sentence}");
    assert!(!sentence.contains("reload"), "{sentence}");
}
