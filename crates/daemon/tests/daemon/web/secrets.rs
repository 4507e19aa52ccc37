//! No secret is shown, in whatever form.

use super::*;

/// A secret, in every form in which a log line could have it.
fn forms(secret: &[u8]) -> Vec<String> {
    let list = format!("{secret:?}");
    let mut forms = vec![
        String::from_utf8_lossy(secret).into_owned(),
        hex::encode(secret),
        hex::encode_upper(secret),
        list[1..list.len() - 1].to_owned(),
    ];
    // Base64 of it alone, and behind one or two other bytes; less what depends on the neighbours.
    for before in 0..3 {
        let text = BASE64_STANDARD.encode([&vec![0; before], secret].concat());
        let text = text.trim_end_matches('=');
        forms.push(text[before * 4 / 3 + usize::from(before > 0)..text.len() - 1].to_owned());
    }
    forms
}

/// A setting of a secret, as a file or in the environment.
struct Told {
    /// Environment variables.
    environment: Vec<(&'static str, String)>,
    /// Flags that name a file, and its content.
    files: Vec<(&'static str, String)>,
    /// What must not be shown.
    secrets: Vec<&'static str>,
    /// Headers of a call that is known.
    headers: &'static str,
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evidenceos-daemon"));
    command.env_clear();
    command
}

#[test]
fn no_secret_is_shown_in_any_form() {
    const MOCK_KEY: &str = "6d6f636b2d6b65792d6f662d746869732d746573742d33322d62797465732121";
    let mock = || {
        vec![
            ("EVIDENCEOS_KEY_PROVIDER", "kms".to_owned()),
            ("EVIDENCEOS_KMS_PROVIDER", "mock".to_owned()),
            ("EVIDENCEOS_KMS_MOCK_KEY_HEX", MOCK_KEY.to_owned()),
        ]
    };
    let cases = [
        Told {
            environment: [
                mock(),
                vec![(
                    "EVIDENCEOS_AGENT_TOKENS",
                    "correct-horse-battery,battery-staple-correct".to_owned(),
                )],
            ]
            .concat(),
            files: vec![(
                "--auditor-tokens-file",
                "tr0ub4dor-and-3-of-them\n".to_owned(),
            )],
            secrets: vec![
                "correct-horse-battery",
                "battery-staple-correct",
                "tr0ub4dor-and-3-of-them",
                MOCK_KEY,
                "mock-key-of-this-test-32-bytes!!",
            ],
            headers: "authorization: Bearer tr0ub4dor-and-3-of-them\r\n",
        },
        Told {
            environment: vec![(
                "EVIDENCEOS_HMAC_SHARED_SECRET",
                "shared-and-unsaid".to_owned(),
            )],
            files: vec![(
                "--hmac-keys-file",
                format!("ops:{}", hex::encode("second-secret-of-ops")),
            )],
            secrets: vec!["shared-and-unsaid", "second-secret-of-ops"],
            headers: "x-request-id: 1\r\nx-evidenceos-key-id: ops\r\nx-evidenceos-timestamp: 1\r\n",
        },
        Told {
            environment: vec![("EVIDENCEOS_AUTH_TOKEN", "correct-horse-battery".to_owned())],
            files: vec![],
            secrets: vec!["correct-horse-battery"],
            headers: "authorization: Bearer correct-horse-battery\r\n",
        },
    ];
    for told in cases {
        let home = Home::new();
        let data = home.path().join("data");
        let configured = |command: &mut Command| {
            for (flag, content) in &told.files {
                command.arg(flag).arg(home.file(&flag[2..], content));
            }
            for (name, value) in &told.environment {
                command.env(name, value);
            }
            command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "off"]);
            command.args(["--preflight-listen", "off"]);
            command.args(["--log", "trace", "--data-dir"]).arg(&data);
        };
        let mut shown = String::new();
        for what in ["show", "check"] {
            let mut command = program();
            command.args(["config", what]);
            configured(&mut command);
            let output = command.output().expect("runs");
            assert!(output.status.success(), "{output:?}");
            shown += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
        }
        let mut command = program();
        configured(&mut command);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stderr = child.stderr.take().expect("piped");
        let log = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).expect("readable");
            bytes
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        shown += &line;
        let address = line
            .split_whitespace()
            .find_map(|word| word.parse::<SocketAddr>().ok())
            .unwrap_or_else(|| panic!("{line} {:?}", child.kill()));
        let arguments = fs::read(format!("/proc/{}/cmdline", child.id())).expect("there");
        shown += &String::from_utf8_lossy(&arguments);
        block_on(calls(address, told.headers, &told.secrets));
        let pid = child.id().to_string();
        while !handles_hangup(&pid) {
            std::thread::yield_now();
        }
        for name in ["HUP", "TERM"] {
            let sent = Command::new("kill").args(["-s", name, &pid]).status();
            assert!(sent.expect("kill runs").success());
        }
        let status = child.wait().expect("ends");
        stdout.read_to_string(&mut shown).expect("readable");
        let log = log.join().expect("read");
        let log = String::from_utf8_lossy(&log);
        let end = &log[log.floor_char_boundary(log.len().saturating_sub(2_000))..];
        assert!(status.success(), "{status}: {end}");
        shown += &log;
        assert!(shown.contains("TRACE"), "it logs all that it has");

        let mut secrets: Vec<Vec<u8>> = told.secrets.iter().map(|s| s.as_bytes().into()).collect();
        secrets.extend(files_of_keys(&data));
        for secret in &secrets {
            for form in forms(secret) {
                let at = shown.find(&form);
                let around = at.map(|at| {
                    let from = shown[..at].rfind('\n').unwrap_or(0);
                    shown[from..].lines().take(2).collect::<String>()
                });
                assert!(around.is_none(), "{form}: {around:?}");
            }
        }
    }
}

/// Whether SIGHUP, the lowest bit of what is caught, does not end the process any more. It says
/// that it serves a moment before.
fn handles_hangup(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.expect("there").trim(), 16);
    caught.expect("hex") & 1 == 1
}

/// Calls with the credential, with a wrong one, and with each secret as a credential.
async fn calls(address: SocketAddr, headers: &str, secrets: &[&str]) {
    let client = Client::connect(&address.to_string(), None).await;
    let wrong = secrets
        .iter()
        .map(|secret| format!("authorization: Bearer {secret}\r\n"));
    for headers in wrong.chain([headers.to_owned()]) {
        let mut request = tonic::Request::new(wire::GetServerInfoRequest {});
        for (name, value) in headers.lines().filter_map(|line| line.split_once(": ")) {
            let name: tonic::metadata::MetadataKey<_> = name.parse().expect("a name");
            let value = value.parse().expect("ASCII");
            request.metadata_mut().insert(name, value);
        }
        // Whether it is let in is not asked here.
        let _ = client.inner.clone().get_server_info(request).await;
    }
}

/// What lies in files that nobody else may read: keys, raw.
fn files_of_keys(data: &std::path::Path) -> Vec<Vec<u8>> {
    let directories = ["keys", "secrets"].map(|name| data.join(name));
    let files = directories
        .iter()
        .filter_map(|path| fs::read_dir(path).ok());
    let files = files.flatten().map(|entry| entry.expect("readable").path());
    files
        .filter(|path| path.is_file())
        .map(|path| fs::read(path).expect("ours"))
        .filter(|bytes| bytes.len() == 32)
        .collect()
}
