//! The process: signals, crashes, and data directories that are not as they were left.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use evidenceos_daemon::config::Settings;
use evidenceos_proto as wire;

use crate::harness::{
    Client, Daemon, Directory, block_on, config, header, judged, labels, predictions, terms,
};

/// The real program; it does not outlive its test.
pub struct Serving(Child);

impl Serving {
    /// Takes a child over.
    pub fn of(child: Child) -> Self {
        Self(child)
    }
}

impl std::ops::Deref for Serving {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Serving {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"));
    command
        .args(["--listen", "127.0.0.1:0", "--preflight-listen", "off"])
        .args(["--metrics-listen", "off", "--log", "error", "--data-dir"])
        .arg(directory);
    command
}

/// The real program, and where it serves.
pub fn spawn(directory: &Path) -> (Serving, String) {
    spawn_with(directory, &[])
}

/// As [`spawn`], with more flags.
pub fn spawn_with(directory: &Path, more: &[&str]) -> (Serving, String) {
    let (child, line) = spawn_saying(directory, more);
    let address = line
        .split_whitespace()
        .find(|word| word.parse::<std::net::SocketAddr>().is_ok());
    (child, address.expect("an address").to_owned())
}

/// As [`spawn_with`], and the first line that it says.
pub fn spawn_saying(directory: &Path, more: &[&str]) -> (Serving, String) {
    let mut child = program(directory)
        .args(more)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert!(line.contains("development server"), "{line}");
    (Serving(child), line)
}

pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(status.expect("kill runs").success());
}

/// Supervisors begin again after 1, and not after the others, which would come again.
#[test]
fn the_exit_status_tells_a_wrong_command_line_and_wrong_settings_from_the_rest() {
    let directory = Directory::new();
    let status = |more: &[&str]| {
        let output = program(directory.path()).args(more).output();
        output.expect("runs").status.code()
    };
    assert_eq!(status(&["--no-such-flag"]), Some(64));
    // A certificate without its key.
    assert_eq!(status(&["--tls-cert", "/nowhere/server.crt"]), Some(78));
    let both = [
        "--tls-cert",
        "/nowhere/server.crt",
        "--tls-key",
        "/nowhere/server.key",
    ];
    assert_eq!(status(&both), Some(1));
}

/// What `healthcheck` says of a data directory: its exit status and its words.
fn healthcheck(directory: &Path) -> (Option<i32>, String) {
    ordered("healthcheck", directory)
}

fn ordered(order: &str, directory: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"))
        .args([order, "--data-dir"])
        .arg(directory)
        .output()
        .expect("runs");
    let words = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&words).into_owned(),
    )
}

#[test]
fn a_health_check_needs_the_data_directory_alone() {
    let directory = Directory::new();
    let (mut child, _) = spawn(directory.path());
    assert_eq!(
        healthcheck(directory.path()),
        (Some(0), "serving\n".to_owned())
    );
    child.kill().expect("ours");
    child.wait().expect("ends");
    let (code, words) = healthcheck(directory.path());
    assert_eq!(code, Some(1));
    assert!(words.contains("no daemon answers at"), "{words}");
    let nowhere = directory.path().join("nowhere");
    for order in ["healthcheck", "reload"] {
        let (code, words) = ordered(order, &nowhere);
        assert_eq!(code, Some(1), "{order}");
        assert!(words.contains("no daemon answers at"), "{words}");
    }
    // Nothing in the directory is open to others, but for the public log and accounts.json.
    for name in [
        "evidenceos.db",
        "evidenceos.db-wal",
        "blobs",
        "keys",
        "secrets",
    ] {
        let mode = fs::metadata(directory.path().join(name))
            .expect(name)
            .mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
}

#[test]
fn a_reload_says_what_came_of_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let policy = directory.path().join("policy.toml");
    fs::write(&policy, "default = \"submitter\"\n").expect("written");
    let more = [
        "--auth-policy",
        policy.to_str().expect("text"),
        "--auth-token",
        "a-token-of-the-process",
    ];
    let mut child = program(&data)
        .args(more)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut greeting = String::new();
    let stdout = child.stdout.take().expect("piped");
    let _child = Serving(child);
    BufReader::new(stdout)
        .read_line(&mut greeting)
        .expect("a line");
    let (code, words) = ordered("reload", &data);
    assert!(
        code == Some(0) && words.contains("read again"),
        "{code:?} {words}"
    );
    fs::write(&policy, "default = \"king\"\n").expect("written");
    let (code, words) = ordered("reload", &data);
    assert!(
        code == Some(1) && words.contains("policy.toml, line 1"),
        "{code:?} {words}"
    );
}

#[test]
fn the_service_manager_is_told_when_it_serves_reloads_and_stops() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
    manager
        .set_read_timeout(Some(std::time::Duration::from_secs(60)))
        .expect("set");
    let told = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let data = directory.path().join("data");
    let mut child = Serving(
        program(&data)
            .env("NOTIFY_SOCKET", &path)
            .stdout(Stdio::null())
            .spawn()
            .expect("starts"),
    );
    assert_eq!(told(), "READY=1\n");
    assert_eq!(healthcheck(&data).0, Some(0), "ready is ready");
    signal(&child, "HUP");
    let reloading = told();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(told(), "READY=1\n");
    signal(&child, "TERM");
    assert_eq!(told(), "STOPPING=1\n");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_variable_that_is_set_to_nothing_is_not_set() {
    let output = Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"))
        .args(["config", "show"])
        .env("EVIDENCEOS_AUTH_POLICY", "")
        .env("EVIDENCEOS_DRAIN_SECONDS", "")
        .env("EVIDENCEOS_LOG_ORIGIN", "log.example.org")
        .output()
        .expect("runs");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let given: Vec<&str> = shown
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert_eq!(given, ["log_origin = \"log.example.org\"  # environment"]);
    // Everything else is shown as it is by default, and the whole is a file that the daemon takes.
    for line in [
        "# listen = 127.0.0.1:50051  # default",
        "# drain_seconds = 20  # default",
        "# auth_policy  # not set",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    toml::from_str::<Settings>(&shown).expect("a configuration");
}

#[test]
fn told_to_stop_it_drains_and_ends_well() {
    for name in ["TERM", "INT"] {
        let directory = Directory::new();
        let (mut child, address) = spawn(directory.path());
        block_on(async {
            let mut client = Client::connect(&address, None).await;
            client.put_default("h").await;
            client.run("c", "h", &judged(&predictions("h", 2))).await;
        });
        signal(&child, name);
        assert_eq!(child.wait().expect("ends").code(), Some(0), "SIG{name}");
        let checkpoint = fs::read_to_string(directory.path().join("log/checkpoint"));
        assert_eq!(checkpoint.expect("published").lines().nth(1), Some("3"));
    }
}

/// A guest that needs a while: some hundred million steps.
fn long_guest() -> Vec<u8> {
    wat::parse_str(
        r#"(module
            (import "env" "emit_structured_claim" (func $emit (param i32 i32)))
            (memory (export "memory") 1)
            (func (export "run") (local $i i32)
                (loop $l
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br_if $l (i32.lt_u (local.get $i) (i32.const 100000000))))
                (call $emit (i32.const 0) (i32.const 1))))"#,
    )
    .expect("valid text")
}

#[test]
fn a_run_that_a_kill_interrupted_is_executed_again() {
    let directory = Directory::new();
    let (mut child, address) = spawn(directory.path());
    let claim = block_on_value(async {
        let mut client = Client::connect(&address, None).await;
        client.put_default("h").await;
        let mut heavy = terms("long", "h");
        heavy.metadata.as_mut().expect("there").lane = "heavy".into();
        let claim = client.create(heavy).await.expect("created");
        client
            .commit(&claim, &long_guest())
            .await
            .expect("committed");
        client.seal(&claim).await.expect("sealed");
        let (mut runner, running) = (client.clone(), claim.clone());
        let execution = tokio::spawn(async move { runner.execute(&running).await });
        // The state is durable before the run begins.
        while client.get(&claim).await.expect("there").state != wire::ClaimState::Executing as i32 {
            tokio::task::yield_now().await;
        }
        execution.abort();
        claim
    });
    child.kill().expect("ours");
    child.wait().expect("ends");
    let (mut child, address) = spawn(directory.path());
    block_on(async {
        let mut client = Client::connect(&address, None).await;
        let result = client.execute(&claim).await.expect("joins the run");
        assert_eq!(result.outcome, "not_judged");
        assert_eq!(result.reason_codes, [2, 120]);
        let (_, next) = client.run("next", "h", &judged(&predictions("h", 2))).await;
        assert_eq!(next.etl_index, result.etl_index + 1);
    });
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

pub fn block_on_value<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

#[test]
fn a_second_daemon_on_the_directory_is_told_who_holds_it() {
    block_on(async {
        let daemon = Daemon::start().await;
        let second = evidenceos_daemon::start(config(daemon.directory.path())).await;
        let refused = second.err().expect("held").to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        daemon.operator().await.put_default("h").await;
    });
}

#[test]
fn a_data_directory_that_is_a_file_is_refused() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "text").expect("writable");
        let refused = evidenceos_daemon::start(config(&path))
            .await
            .err()
            .expect("a file")
            .to_string();
        assert!(refused.contains("not a directory"), "{refused}");
        let nowhere = evidenceos_daemon::start(config(Path::new("/proc/evidenceos"))).await;
        let refused = nowhere.err().expect("read-only").to_string();
        assert!(refused.contains("/proc/evidenceos"), "{refused}");
    });
}

#[test]
fn garbage_in_place_of_the_database_stops_the_start_and_stays() {
    block_on(async {
        let daemon = Daemon::start().await;
        daemon.operator().await.put_default("h").await;
        let directory = daemon.directory.path().to_owned();
        let garbage = vec![0x5a; 64 * 1_024];
        let refused = daemon
            .spoil(|path| {
                fs::write(path.join("evidenceos.db"), &garbage).expect("writable");
                for rest in ["evidenceos.db-wal", "evidenceos.db-shm"] {
                    let _ = fs::remove_file(path.join(rest));
                }
            })
            .await
            .to_string();
        assert!(refused.contains("backup"), "{refused}");
        drop(directory);
    });
}

#[test]
fn an_older_database_under_a_newer_log_stops_the_start() {
    block_on(async {
        let daemon = Daemon::start().await;
        daemon.operator().await.put_default("h").await;
        let refused = daemon
            .spoil(|path| {
                for file in ["evidenceos.db", "evidenceos.db-wal", "evidenceos.db-shm"] {
                    let _ = fs::remove_file(path.join(file));
                }
            })
            .await
            .to_string();
        // The keys are there, the database is not: nothing may be signed over that.
        assert!(refused.contains("the database was lost"), "{refused}");
    });
}

#[test]
fn tampered_log_files_are_made_again_from_the_entries() {
    block_on(async {
        let daemon = Daemon::start().await;
        let mut client = daemon.operator().await;
        client
            .put(header("h"), &labels("h"))
            .await
            .expect("registered");
        let (claim, _) = client.run("c", "h", &judged(&predictions("h", 2))).await;
        let vkey = daemon.running.log_vkey();
        let Daemon { running, directory } = daemon;
        running.stop().await.expect("stops");
        let tile = directory.path().join("log/tile/0/000.p/3");
        let mut bytes = fs::read(&tile).expect("written");
        bytes[5] ^= 1;
        fs::write(&tile, &bytes).expect("writable");
        let running = evidenceos_daemon::start(config(directory.path()))
            .await
            .expect("starts");
        assert_eq!(running.log_vkey(), vkey);
        bytes[5] ^= 1;
        assert_eq!(fs::read(&tile).expect("there"), bytes);
        let daemon = Daemon { running, directory };
        daemon
            .operator()
            .await
            .fetch(&claim)
            .await
            .expect("verifies");
    });
}
