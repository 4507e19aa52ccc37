//! `policy` on files alone: the examples, signed again by a key of the test's.

use std::{fs, path::Path};

use crate::place::{Place, text_of};

const DIR: &str = "policies";

/// The examples' drafts and modules, and a key; nobody is trusted.
fn place() -> (Place, String) {
    let place = Place::new();
    fs::create_dir(place.path(DIR)).expect("made");
    place.set_mode(DIR, 0o755);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/policies");
    for name in ["deny-shell-pipes", "require-review-for-payments"] {
        for file in [format!("{name}.json"), format!("{name}.wasm")] {
            fs::copy(examples.join(&file), place.path(DIR).join(&file)).expect("copied");
            place.set_mode(&format!("{DIR}/{file}"), 0o644);
        }
    }
    place.text(&["keys", "generate", "--key-dir", "seeds"]);
    let key = place.only("seeds", ".key").display().to_string();
    (place, key)
}

#[test]
fn what_is_signed_and_trusted_is_checked_and_asked() {
    let (place, key) = place();
    // Signed by somebody whom nobody here trusts.
    place.fails(&["policy", "check", DIR], 1, "is not in trusted_keys.json");
    for name in ["deny-shell-pipes", "require-review-for-payments"] {
        let manifest = format!("{DIR}/{name}.json");
        let said = place.text(&["policy", "sign", &manifest, "--key", &key]);
        assert!(
            said.contains("evidenceos policy trust policies --key"),
            "{said}"
        );
        assert_eq!(place.mode(&manifest), 0o644);
    }
    let trusted = place.json(&["policy", "trust", DIR, "--key", &key]);
    assert_eq!(trusted["added"], true);
    let public = text_of(&trusted, "public_key_hex").to_owned();
    let again = place.json(&["policy", "trust", DIR, "--key", &public]);
    assert_eq!(again["added"], false);

    let checked = place.json(&["policy", "check", DIR]);
    assert_eq!(checked["verdict"], "approve");
    assert_eq!(
        checked["oracles"][0]["oracle_id"],
        "example.deny-shell-pipes"
    );
    assert_eq!(checked["oracles"][1]["vote"], "pass");

    let call = br#"{"agent_id":null,"params_canonical_json_b64":"e30=","session_id":null,"tool_name":"payment.charge"}"#;
    fs::write(place.path("call.json"), call).expect("written");
    let said = place.text(&["policy", "check", DIR, "--input", "call.json"]);
    assert!(
        said.contains("together: defer, by example.require-review"),
        "{said}"
    );

    // A request to the gate is translated as the daemon translates it.
    let request =
        r#"{ "toolName": "payment.charge", "params": {"amount": 1000}, "sessionId": "s" }"#;
    fs::write(place.path("request.json"), request).expect("written");
    let said = place.text(&["policy", "check", DIR, "--input", "request.json"]);
    assert!(
        said.contains("together: defer, by example.require-review"),
        "{said}"
    );
    for (content, why) in [
        ("amount;1000", "no JSON object"),
        (r#"{"tool":"payment.charge"}"#, "no policy is shown this"),
        (r#"{"toolName":"payment.charge"}"#, "params (an object)"),
        (
            r#"{"tool_name":"payment.charge"}"#,
            "no policy is shown this",
        ),
    ] {
        fs::write(place.path("other.json"), content).expect("written");
        place.fails(&["policy", "check", DIR, "--input", "other.json"], 2, why);
    }

    // An oracle that cannot answer is a failure of the check.
    let long = format!(
        r#"{{"toolName":"a","params":{{"t":"{}"}}}}"#,
        "x".repeat(65_537)
    );
    fs::write(place.path("long.json"), long).expect("written");
    let output = place.run(&["policy", "check", DIR, "--input", "long.json"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("max_input_bytes allows 65536"), "{said}");
}

#[test]
fn what_no_daemon_takes_is_not_signed() {
    let (place, key) = place();
    let manifest = format!("{DIR}/deny-shell-pipes.json");
    let sign = ["policy", "sign", &manifest, "--key", &key];
    fs::write(place.path(DIR).join("deny-shell-pipes.wasm"), b"no module").expect("written");
    let before = place.files(DIR);
    place.fails(&sign, 1, "is not admitted");
    fs::remove_file(place.path(DIR).join("deny-shell-pipes.wasm")).expect("removed");
    place.fails(&sign, 1, "deny-shell-pipes.wasm is missing");
    place.set_mode(&manifest, 0o664);
    place.fails(&sign, 1, "chmod go-w");
    place.fails(
        &["policy", "sign", "none.json", "--key", &key],
        1,
        "none.json is missing",
    );
    place.fails(
        &["policy", "sign", &manifest, "--key", "none"],
        2,
        "no such file",
    );
    place.fails(
        &["policy", "trust", DIR, "--key", &"zz".repeat(32)],
        2,
        "no such file",
    );
    place.fails(
        &["policy", "trust", DIR, "--key", &"02".repeat(32)],
        2,
        "is no Ed25519 public key",
    );
    place.fails(&["policy", "check", "nowhere"], 1, "nowhere");
    let manifest = place.path(&manifest);
    assert_eq!(fs::read(&manifest).ok().as_ref(), before.get(&manifest));
}
