//! The `evidenceos` command against a real daemon, on a free port, over a directory of its own.

mod files;
mod programs;
mod words;

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use evidenceos_daemon::{Config, Running, start};

/// A free port of loopback.
const FREE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A daemon in this process, and commands in others.
struct World {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    daemon: Option<Running>,
    endpoint: String,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let mut config = Config {
            listeners: evidenceos_daemon::config::Listeners {
                grpc: FREE,
                http: Some(FREE),
                metrics: Some(FREE),
                ..Default::default()
            },
            guest_program: evidenceos_sandbox::Program(env!("CARGO_BIN_EXE_evidenceos").into()),
            data_dir: dir.path().join("daemon"),
            ..Config::default()
        };
        change(&mut config);
        let daemon = runtime.block_on(start(config)).expect("the daemon starts");
        let endpoint = format!("http://{}", daemon.grpc_address());
        Self {
            dir,
            runtime,
            daemon: Some(daemon),
            endpoint,
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, content: &str) -> String {
        std::fs::write(self.dir.path().join(name), content).expect("written");
        self.path(name)
    }

    fn run_as(&self, token: Option<&str>, args: &[&str]) -> Output {
        let mut command = evidenceos(args);
        command.env("EVIDENCEOS_ENDPOINT", &self.endpoint);
        if let Some(token) = token {
            command.env("EVIDENCEOS_BEARER_TOKEN", token);
        }
        command.output().expect("the command runs")
    }

    /// A success, as JSON.
    fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.run_as(None, &[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// A failure: its exit code and its sentence.
    fn fails(&self, args: &[&str], code: i32, part: &str) {
        let output = self.run_as(None, args);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(part), "{args:?}: {error}");
    }

    /// 500 labels and predictions of which every `period`-th is wrong.
    fn files(&self, period: usize) -> (String, String) {
        let label = |i: usize| u8::from(i * i % 7 < 3);
        let labels: String = (0..500)
            .map(|i| format!("item-{i},{}\n", label(i)))
            .collect();
        let bits: String = (0..500)
            .map(|i| format!("{}\n", label(i) ^ u8::from(i % period == 0)))
            .collect();
        (
            self.write("labels.csv", &format!("item,label\n{labels}")),
            self.write(&format!("predictions-{period}.csv"), &bits),
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            let stopped = self.runtime.block_on(daemon.stop());
            assert!(
                stopped.is_ok() || std::thread::panicking(),
                "the daemon stops well"
            );
        }
    }
}

fn evidenceos(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evidenceos"));
    command
        .args(args)
        .env_remove("EVIDENCEOS_ENDPOINT")
        .env_remove("EVIDENCEOS_BEARER_TOKEN");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_claim_goes_from_predictions_to_an_audited_verdict() {
    let world = World::new();
    let (labels, good) = world.files(20);
    let holdout = world.json(&["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"]);
    assert_eq!(
        (holdout["items"].as_u64(), holdout["sealed_items"].as_u64()),
        (Some(500), Some(400))
    );
    assert!(
        holdout["forecast"]["accuracy_now"]
            .as_f64()
            .is_some_and(|a| (0.6..0.7).contains(&a))
    );

    let (module, receipt) = (world.path("good.wasm"), world.path("receipt.json"));
    world.json(&[
        "claim",
        "pack",
        &good,
        "-o",
        &module,
        "--ask",
        "--holdout",
        "h",
    ]);
    let run = [
        "claim",
        "run",
        &module,
        "--holdout",
        "h",
        "--receipt",
        &receipt,
        "--require-certified",
    ];
    let result = world.json(&run);
    assert_eq!(result["outcome"], "certified");
    assert_eq!(result["charged_answer_microbits"], 1_000_000);
    // The same module under the same name is the same claim, and costs nothing.
    assert_eq!(world.json(&run)["claim_id"], result["claim_id"]);

    let (_, bad) = world.files(2);
    let coin = world.path("coin.wasm");
    world.json(&["claim", "pack", &bad, "-o", &coin]);
    let output = world.run_as(
        Some("bob"),
        &[
            "claim",
            "run",
            &coin,
            "--holdout",
            "h",
            "--require-certified",
        ],
    );
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));

    let key = world.json(&["log", "key"])["vkey"]
        .as_str()
        .expect("a key")
        .to_owned();
    let verified = world.json(&["verify", &receipt, "--key", &key]);
    assert_eq!(verified["receipts"][0]["outcome"], "certified");
    let mirror = world.path("mirror");
    world.json(&["log", "entries", "-o", &mirror]);
    let audited = world.json(&["verify", &receipt, "--key", &key, "--log", &mirror]);
    assert_eq!(audited["log"]["holdouts"][0]["settled"], 2);
    assert_eq!(audited["log"]["holdouts"][0]["certified"], 1);
    // The daemon's own projection is a mirror too.
    world.json(&["log", "proof", "--index", "1"]);

    let shown = world.json(&["holdout", "show", "h"]);
    assert_eq!(
        shown["sealed_charged_microbits"],
        audited["log"]["holdouts"][0]["sealed_charged_microbits"]
    );
    open_and_audit(&world, &key);
}

/// Retires and opens the holdout, fetches every trace, and recomputes answers and verdicts.
fn open_and_audit(world: &World, key: &str) {
    world.fails(
        &[
            "holdout",
            "open",
            "h",
            "--yes",
            "-o",
            &world.path("opening.json"),
        ],
        1,
        "retire",
    );
    world.json(&[
        "holdout",
        "retire",
        "h",
        "--reason",
        "the end of the test",
        "--yes",
    ]);
    world.json(&[
        "holdout",
        "open",
        "h",
        "--yes",
        "-o",
        &world.path("opening.json"),
    ]);
    // A directory that is not there yet.
    let traces = world.path("traces/");
    let claims = world.json(&["claim", "list", "--all"]);
    for claim in claims["claims"].as_array().expect("a list") {
        let id = claim["claim_id"].as_str().expect("an id");
        world.json(&["claim", "trace", id, "-o", &traces]);
    }
    let mirror = world.path("mirror-2");
    world.json(&["log", "entries", "-o", &mirror]);
    let opened = ["--opened", &world.path("opening.json"), "--traces", &traces];
    let audited = world.json(&[&["verify", "--key", key, "--log", &mirror], &opened[..]].concat());
    assert_eq!(audited["opened"]["traces_checked"], 2);
    assert_eq!(audited["opened"]["answers_checked"], 1);
    assert_eq!(audited["log"]["holdouts"][0]["opened"], true);
}

#[test]
fn verify_says_what_it_did_not_check() {
    let world = World::new();
    let (labels, good) = world.files(20);
    let (_, bad) = world.files(2);
    world.json(&["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"]);
    let mut claims = Vec::new();
    for (name, predictions) in [("good", &good), ("bad", &bad)] {
        let (module, receipt) = (
            world.path(&format!("{name}.wasm")),
            world.path(&format!("{name}.json")),
        );
        world.json(&["claim", "pack", predictions, "-o", &module]);
        let run = [
            "claim",
            "run",
            &module,
            "--holdout",
            "h",
            "--receipt",
            &receipt,
        ];
        let ran = world.json(&run);
        claims.push(ran["claim_id"].as_str().expect("an id").to_owned());
    }
    let key = world.json(&["log", "key"])["vkey"]
        .as_str()
        .expect("a key")
        .to_owned();
    let (receipt, mirror) = (world.path("good.json"), world.path("mirror"));
    world.json(&["log", "entries", "-o", &mirror]);
    let known = format!("{mirror}/checkpoint");
    let says = |args: &[&str], code: i32, parts: &[&str]| {
        let output = world.run_as(None, &[&["verify", "--key", &key], args].concat());
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            stderr(&output)
        );
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: {part}: {said}");
        }
    };
    says(&[&receipt], 0, &["verified", "Not checked without --log"]);
    says(
        &[&receipt, "--log", &mirror],
        0,
        &[
            "accuracy above 0.5",
            "\"h\", 500 items of which 400 sealed",
            "settled:",
        ],
    );

    world.json(&["claim", "revoke", &claims[0], "--reason", "a slip", "--yes"]);
    world.json(&["holdout", "retire", "h", "--reason", "the end", "--yes"]);
    let opening = world.path("opening.json");
    world.json(&["holdout", "open", "h", "--yes", "-o", &opening]);
    let later = world.path("later");
    world.json(&["log", "entries", "-o", &later]);
    says(&[&receipt, "--log", &later], 1, &["REVOKED", "a slip"]);
    says(
        &["--log", &later, "--known", &known],
        0,
        &["1: heads given with --known", "1: revoked claims"],
    );
    let newer = format!("{later}/checkpoint");
    says(
        &["--log", &mirror, "--known", &newer],
        1,
        &["the log has only 4"],
    );

    let traces = world.path("traces");
    std::fs::create_dir_all(&traces).expect("made");
    world.json(&["claim", "trace", &claims[0], "-o", &traces]);
    let opened = ["--log", &later, "--opened", &opening, "--traces", &traces];
    says(
        &opened,
        1,
        &["1 of 2 verdicts checked", "NOT CHECKED: 1 claims"],
    );
    let allowed = [&opened[..], &["--allow-missing-traces"]].concat();
    says(&allowed, 0, &["1 of 2 verdicts checked"]);
    world.json(&["claim", "trace", &claims[1], "-o", &traces]);
    says(&opened, 0, &["2 of 2 verdicts checked"]);
    let stray = std::path::Path::new(&traces).join(format!("{}.trace", "0".repeat(64)));
    std::fs::write(stray, b"a trace").expect("written");
    says(&opened, 1, &["no capsule in this log"]);
    // A log that does not say that the holdout was opened is older than the opening.
    let older = ["--log", &mirror, "--opened", &opening];
    says(&older, 1, &["does not say that this holdout was opened"]);
}

#[test]
fn each_step_can_be_taken_alone() {
    let world = World::new();
    let (labels, good) = world.files(10);
    world.json(&[
        "holdout",
        "add",
        &labels,
        "--p0",
        "0.5",
        "--answer-share",
        "0",
    ]);
    let module = world.path("m.wasm");
    world.json(&["claim", "pack", &good, "-o", &module]);
    let created = world.json(&[
        "claim",
        "create",
        "--holdout",
        "labels",
        "--name",
        "stepwise",
    ]);
    let id = created["claim_id"].as_str().expect("an id");
    world.fails(&["claim", "seal", id], 1, "[");
    assert_eq!(
        world.json(&["claim", "commit", id, &module])["state"],
        "committed"
    );
    assert_eq!(world.json(&["claim", "seal", id])["state"], "sealed");
    assert_eq!(world.json(&["claim", "execute", id])["certified"], true);
    assert_eq!(world.json(&["claim", "show", id])["state"], "certified");
    world.json(&["claim", "fetch", id, "-o", &world.path("r.json")]);
    assert_eq!(
        world.json(&["claim", "revoke", id, "--reason", "a slip", "--yes"])["state"],
        "revoked"
    );
    let tail = world.json(&["log", "tail", "-n", "1"]);
    assert!(
        tail["entries"][0]["entry"]
            .as_str()
            .is_some_and(|entry| entry.contains("claim_revoked"))
    );
    let text = world.run_as(None, &["claim", "list"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("revoked"));
}

#[test]
fn errors_say_what_to_do() {
    let world = World::new();
    let (labels, _) = world.files(10);
    world.json(&["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"]);
    world.fails(
        &["holdout", "add", &labels, "--ref", "h2", "--p0", "0.5"],
        1,
        "in one holdout only",
    );
    world.fails(
        &["holdout", "add", &labels, "--p0", "1"],
        2,
        "strictly between",
    );
    world.fails(
        &["holdout", "add", "/nowhere.csv", "--p0", "0.5"],
        1,
        "/nowhere.csv",
    );
    world.fails(&["holdout", "show", "nothing"], 1, "holdout list");
    world.fails(&["claim", "show", &"0".repeat(64)], 1, "not found");
    world.fails(&["claim", "show", "abc"], 1, "claim list");
    let bad = world.write("bad.csv", "1\n2\n");
    world.fails(
        &["claim", "pack", &bad, "-o", &world.path("x.wasm")],
        2,
        "line 2",
    );
    let short = world.write("short.csv", "1\n0\n");
    world.fails(
        &[
            "claim",
            "pack",
            &short,
            "-o",
            &world.path("x.wasm"),
            "--holdout",
            "h",
        ],
        2,
        "500 items",
    );
    let text = world.write("text.wasm", "not wasm");
    world.fails(&["claim", "check", &text], 1, "would be refused");
    // What no daemon would admit creates no claim.
    for (module, code, part) in [
        (&text, 2, "claim pack"),
        (&short, 2, "claim pack"),
        (
            &world.write("empty.wasm", "\0asm\u{1}\0\0\0"),
            1,
            "would be refused",
        ),
    ] {
        world.fails(&["claim", "run", module, "--holdout", "h"], code, part);
    }
    assert_eq!(
        world.json(&["claim", "list"])["claims"],
        serde_json::json!([])
    );
    let nobody = evidenceos(&["log", "key", "--endpoint", "http://127.0.0.1:1"])
        .output()
        .expect("runs");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        stderr(&nobody).contains("evidenceos-daemon"),
        "{}",
        stderr(&nobody)
    );
}

#[test]
fn credit_is_shown_granted_limited_and_watched() {
    let world = World::new();
    let (labels, predictions) = world.files(2);
    let wasm = world.path("claim.wasm");
    world.json(&["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"]);
    world.json(&["claim", "pack", &predictions, "-o", &wasm]);
    let run = world.json(&["claim", "run", &wasm, "--holdout", "h"]);
    assert_eq!(run["credit_burned"], 1, "{run}");
    let own = world.json(&["account", "show"]);
    assert_eq!(
        (&own["credit_balance"], &own["burned_total"]),
        (&9_999.into(), &1.into())
    );
    let name = own["principal_id"].as_str().expect("a name").to_owned();
    world.fails(
        &["account", "grant", &name, "500", "--reason", "more"],
        1,
        "grant at most 1, or raise the limit first",
    );
    let limited = world.json(&["account", "limit", &name, "20000"]);
    assert_eq!(limited["credit_limit"], 20_000);
    let granted = world.json(&[
        "account", "grant", &name, "500", "--reason", "more", "--wait",
    ]);
    assert_eq!(granted["credit_balance"], 10_499);
    let file = std::fs::read_to_string(world.dir.path().join("daemon/accounts.json"));
    let file = file.expect("the grant waited for it");
    assert!(file.contains("\"credit_balance\":10499"), "{file}");
    let listed = world.json(&["account", "list"]);
    assert_eq!(
        listed["accounts"][0],
        world.json(&["account", "show", &name])
    );
    assert_eq!(listed["totals"]["granted"], 500);
    let narrow = world.json(&["holdout", "narrow", "h", "--credit-budget", "3"]);
    assert_eq!(narrow["credit_budget"], 3.0);
    let text = world.run_as(None, &["server", "info"]).stdout;
    assert!(String::from_utf8_lossy(&text).contains("you are    anonymous"));
    let clock = world.json(&["server", "confirm-clock"]);
    assert_eq!(clock["from_unix_ms"], clock["to_unix_ms"]);
}

#[test]
fn other_peoples_claims_look_like_none() {
    let world = World::new();
    let (labels, _) = world.files(10);
    world.json(&["holdout", "add", &labels, "--ref", "h", "--p0", "0.5"]);
    let create = [
        "claim",
        "create",
        "--holdout",
        "h",
        "--name",
        "mine",
        "--json",
    ];
    let created = world.run_as(Some("alice"), &create);
    let created: serde_json::Value = serde_json::from_slice(&created.stdout).expect("JSON");
    let id = created["claim_id"].as_str().expect("an id");
    assert!(
        world
            .run_as(Some("alice"), &["claim", "show", id])
            .status
            .success()
    );
    let others = stderr(&world.run_as(Some("bob"), &["claim", "show", id]));
    let unknown = stderr(&world.run_as(Some("bob"), &["claim", "show", &"0".repeat(64)]));
    assert_eq!(others.replace(id, ""), unknown.replace(&"0".repeat(64), ""));
}

#[test]
fn verification_needs_no_daemon_and_finds_a_changed_byte() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/verify");
    let receipt = testdata.join("receipt.json").display().to_string();
    let key = testdata.join("log.vkey").display().to_string();
    let good = evidenceos(&["verify", &receipt, "--key", &key])
        .output()
        .expect("runs");
    assert!(good.status.success(), "{}", stderr(&good));
    let dir = tempfile::tempdir().expect("a directory");
    let changed = dir.path().join("changed.json");
    let bytes = std::fs::read_to_string(&receipt)
        .expect("read")
        .replace("\"index\":2", "\"index\":1");
    std::fs::write(&changed, bytes).expect("written");
    let bad = evidenceos(&["verify", &changed.display().to_string(), "--key", &key])
        .output()
        .expect("runs");
    assert_eq!(bad.status.code(), Some(1));
    assert!(
        stderr(&bad).contains("inclusion check failed"),
        "{}",
        stderr(&bad)
    );
}

#[test]
fn the_demo_holds() {
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = dir.path().join("demo").display().to_string();
    for _ in 0..2 {
        let output = evidenceos(&["demo", "--json", "--data-dir", &data_dir])
            .output()
            .expect("runs");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            stderr(&output)
        );
    }
    assert!(
        dir.path().join("demo-2/receipts/good-model.json").exists(),
        "a second demo goes beside the first"
    );
}

#[test]
fn completions_are_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = evidenceos(&["completions", shell]).output().expect("runs");
        assert!(output.status.success(), "{shell}");
        // Words of the client, and those that the daemon reads itself.
        let script = String::from_utf8(output.stdout).expect("text");
        for word in ["require-certified", "preflight-listen", "fsck"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn a_probe_looks_at_each_port_and_names_the_one_that_is_not_well() {
    let mut world = World::new();
    let daemon = world.daemon.as_ref().expect("runs");
    let url = |address: Option<SocketAddr>| format!("http://{}", address.expect("serves"));
    let (http, metrics) = (url(daemon.http_address()), url(daemon.metrics_address()));
    let probe = ["probe", "--preflight", &http, "--metrics", &metrics];
    let found = world.json(&probe);
    assert_eq!(found["ok"], true, "{found}");
    assert_eq!(found["checks"].as_array().map(Vec::len), Some(3));

    // Metrics have no /readyz, and HTTP no /metrics.
    let mixed_up = ["probe", "--preflight", &metrics, "--json"];
    let output = world.run_as(None, &mixed_up);
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["checks"][0]["ok"], true, "{found}");
    assert_eq!(found["checks"][1]["ok"], false, "{found}");

    let daemon = world.daemon.take().expect("runs");
    world.runtime.block_on(daemon.stop()).expect("stops");
    let output = world.run_as(None, &probe);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.matches("FAILED").count(), 3, "{text}");
    assert!(text.contains("cannot connect"), "{text}");
}

/// It tells how the account is once over each connection: the server ends the first for its age.
#[test]
fn a_watch_goes_on_over_another_connection() {
    let world = World::with(|config| {
        config.listeners.max_connection_age = Duration::from_secs(1);
    });
    let mut watch = evidenceos(&["account", "watch"])
        .env("EVIDENCEOS_ENDPOINT", &world.endpoint)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let stdout = watch.stdout.take().expect("piped");
    let told: Vec<String> = BufReader::new(stdout)
        .lines()
        .take(2)
        .map(|line| line.expect("UTF-8"))
        .collect();
    watch.kill().expect("it runs");
    watch.wait().expect("ended");
    assert_eq!(told.len(), 2, "it ended by itself: {told:?}");
    assert_eq!(told[0], told[1]);
}
